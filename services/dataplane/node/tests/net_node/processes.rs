//! Processes: cgroups, and the kernel's word on who connects.

use crate::rig::{Rig, eventually, open, pod_spec, process_spec, processes_in};
use std::{net::TcpListener, path::Path, process::Command, time::Duration};
use weft_bpf::Origins;
use weft_handoff::{Event, ListenerKind};
use weft_testnet::{Process, Spawn};

fn run_in(rig: &Rig, cgroup: &Path, script: &str) -> Process {
    let mut command = Command::new("bash");
    command.args(["-c", script]);
    rig.node
        .namespace()
        .spawn(command, &Spawn::nobody().cgroup(cgroup))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_is_gone_once_its_cgroup_is_empty_and_not_before_it_started() {
    let rig = Rig::without_agent();
    let mut agent = rig.connect().await;
    let placed = agent.link.place(process_spec("worker")).await.unwrap();
    let cgroup = placed.cgroup.clone().unwrap();
    assert!(cgroup.starts_with(rig.node.cgroup()));
    assert_eq!(placed.cgroup_id, weft_bpf::cgroup_id(&cgroup).unwrap());
    let early = tokio::time::timeout(Duration::from_millis(100), agent.events.next()).await;
    assert!(early.is_err(), "{early:?}");

    let mut app = run_in(&rig, &cgroup, "sleep 1000");
    let early = tokio::time::timeout(Duration::from_millis(100), agent.events.next()).await;
    assert!(early.is_err(), "{early:?}");
    app.kill().unwrap();
    app.wait().unwrap();
    let Some(Event::Gone { id, reason }) = agent.events.next().await else {
        panic!("no event")
    };
    assert_eq!(id, placed.id);
    assert!(reason.contains("last process"), "{reason}");
    assert!(!cgroup.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_tells_which_process_connected_to_the_nodes_listener() {
    let rig = Rig::without_agent();
    let mut agent = rig.connect().await;
    let capability = |name: &str| {
        agent
            .hello
            .capabilities
            .iter()
            .find(|c| c.name == name)
            .unwrap()
            .clone()
    };
    assert!(
        capability("process-attribution").active,
        "{:?}",
        agent.hello.capabilities
    );
    assert!(capability("kernel-policy").active && capability("encryption").active);
    // What the agent writes it may write, callers it may not make up.
    assert_eq!(writable(agent.hello.maps.get("endpoints").unwrap()), Some(true));
    assert_eq!(writable(agent.hello.maps.get("services").unwrap()), Some(true));
    assert_eq!(writable(agent.hello.maps.get("origins").unwrap()), Some(false));
    let origins = Origins::from_fd(agent.hello.maps.remove("origins").unwrap()).unwrap();
    let index = agent
        .hello
        .listeners
        .iter()
        .position(|l| l.kind == ListenerKind::RuntimeHttp && l.address.starts_with("127"))
        .unwrap();
    let listener: TcpListener = agent.hello.listeners.remove(index).into_tcp().unwrap();
    listener.set_nonblocking(false).unwrap();

    let placed = agent.link.place(process_spec("worker")).await.unwrap();
    agent
        .link
        .derived(&placed.id, 77, "spiffe://cluster.local/ns/default/worker")
        .await
        .unwrap();
    // The node's own components are open to all its workloads, once these are known.
    open(&mut agent, &[&placed]);
    let connect = "exec 3<>/dev/tcp/127.0.0.1/3500; read -u 3 x";
    let _app = run_in(&rig, placed.cgroup.as_deref().unwrap(), connect);
    let (accepted, _) = listener.accept().unwrap();
    let origin = origins.read(&accepted).unwrap().unwrap();
    assert_eq!(origin.cgroup_id, placed.cgroup_id);
    assert_eq!(origin.destination, "127.0.0.1:3500".parse().unwrap());

    // The twin: the same connect from outside the cgroup has no record.
    let mut command = Command::new("bash");
    command.args(["-c", connect]);
    let _other = rig.node.namespace().spawn(command, &Spawn::nobody()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    assert_eq!(origins.read(&accepted).unwrap(), None);
}

/// What the kernel says of a map's descriptor: `O_RDWR` or not.
fn writable(map: &std::os::fd::OwnedFd) -> Option<bool> {
    use std::os::fd::AsRawFd as _;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    Some(u32::from_str_radix(flags.trim(), 8).unwrap() & 3 == 2)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_process_keeps_running_and_loses_its_name() {
    let rig = Rig::without_agent();
    let agent = rig.connect().await;
    let placed = agent.link.place(process_spec("worker")).await.unwrap();
    let cgroup = placed.cgroup.unwrap();
    let mut app = run_in(&rig, &cgroup, "sleep 1000");
    agent.link.remove(&placed.id).await.unwrap();
    assert!(app.try_wait().unwrap().is_none(), "the app was ended");
    assert!(cgroup.exists());
    // Added again it is found again, under a new id.
    let again = agent.link.place(process_spec("worker")).await.unwrap();
    assert_eq!(again.cgroup.as_deref(), Some(cgroup.as_path()));
    assert_ne!(again.id, placed.id);
    // A second one of that name gets a cgroup of its own.
    let second = agent.link.place(process_spec("worker")).await.unwrap();
    assert_ne!(second.cgroup, again.cgroup);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_killed_is_taken_over_by_the_next() {
    let mut rig = Rig::without_agent();
    let agent = rig.connect().await;
    let placed = agent.link.place(process_spec("worker")).await.unwrap();
    let empty = agent.link.place(process_spec("empty")).await.unwrap();
    let pod = rig.node.pod("shop").unwrap();
    // Without its listeners, which are the node's and not the test's to keep open.
    let in_pod = agent.link.place(pod_spec(&pod, "shop")).await.unwrap().endpoint;
    let cgroup = placed.cgroup.unwrap();
    let _app = run_in(&rig, &cgroup, "sleep 1000");
    // Something that an earlier agent would be.
    let own = rig.node.cgroup().join("_node");
    let mut stale = run_in(&rig, &own, "sleep 1000");

    // An agent that somebody else started goes by itself when its node is gone: as long as it holds
    // the listeners, nobody else can have their ports.
    drop(agent);
    let mut killed = rig.process.take().unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    let _ = std::fs::remove_file(rig.run_dir.join("node.sock"));
    rig.start(&["--no-agent"], &[]);
    let mut agent = rig.connect().await;
    // The pod is there as before; processes are when their launchers say so.
    let there: Vec<_> = agent.workloads.iter().map(|w| w.endpoint).collect();
    assert_eq!(there, [in_pod]);
    let kept = agent.workloads.pop().unwrap().id;
    eventually("the stale agent is ended", || stale.try_wait().unwrap().is_some()).await;
    assert_eq!(processes_in(&own), [rig.pid()]);
    assert!(!empty.cgroup.unwrap().exists());
    let again = agent.link.place(process_spec("worker")).await.unwrap();
    assert_eq!((again.cgroup, again.cgroup_id), (Some(cgroup), placed.cgroup_id));
    // Numbers stay with those who stay, and nobody else gets one of before.
    assert_eq!(again.endpoint, placed.endpoint);
    let new = agent.link.place(process_spec("new")).await.unwrap();
    let before = [placed.endpoint, empty.endpoint, in_pod];
    assert!(!before.contains(&new.endpoint), "{} of {before:?}", new.endpoint);
    let pod = agent.link.place(pod_spec(&pod, "shop")).await.unwrap();
    assert_eq!((pod.endpoint, pod.id), (in_pod, kept));
}
