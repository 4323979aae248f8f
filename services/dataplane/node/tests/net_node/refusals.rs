//! What is refused, each with its reason and a twin that is not.

use crate::rig::{AGENT_UID, Rig, pod_spec, process_spec, wait};
use std::process::Command;
use weft_handoff::{AgentLink, HandoffError};
use weft_proto::weft::dataplane::v1::workload_spec::Place;
use weft_testnet::Spawn;

#[tokio::test(flavor = "multi_thread")]
async fn only_the_agents_user_gets_descriptors() {
    let rig = Rig::without_agent();
    // Root passes the file's rights, and is not the agent all the same.
    let root = rig.connect_as(0).await.unwrap();
    assert!(matches!(AgentLink::start(root).await, Err(HandoffError::Closed)));
    // Others do not even reach the socket.
    let other = rig.connect_as(65534).await.unwrap_err();
    assert_eq!(other.kind(), std::io::ErrorKind::PermissionDenied);
    let agent = rig.connect_as(AGENT_UID).await.unwrap();
    assert_eq!(AgentLink::start(agent).await.unwrap().hello.node, "n1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_placed_is_refused_with_a_reason() {
    let rig = Rig::without_agent();
    let (shop, cart) = (rig.node.pod("shop").unwrap(), rig.node.pod("cart").unwrap());
    let agent = rig.connect().await;
    let refused = async |spec, words: &str| {
        let error = agent.link.place(spec).await.unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
        assert!(!error.contains('\n'), "{error}");
    };
    let with = |place| {
        let mut spec = pod_spec(&shop, "shop");
        spec.place = Some(place);
        spec
    };
    refused(
        with(Place::NetnsPath("/run/netns/weft-none".into())),
        "no such namespace",
    )
    .await;
    refused(with(Place::NetnsPath("/etc/passwd".into())), "not a namespace").await;
    refused(with(Place::NetnsPid(4194305)), "no such process").await;
    let own = rig.node.namespace().path().to_str().unwrap().to_owned();
    refused(with(Place::NetnsPath(own)), "as a process of the node").await;
    // Namespaces of the machine, of another node, of another node's pod.
    refused(with(Place::NetnsPid(std::process::id())), "the machine's own").await;
    let other = rig.net.node("n2").unwrap();
    let theirs = other.pod("theirs").unwrap();
    for namespace in [other.namespace(), theirs.namespace()] {
        let path = namespace.path().to_str().unwrap().to_owned();
        refused(with(Place::NetnsPath(path)), "another namespace than this node's").await;
    }
    let mut named = pod_spec(&shop, "shop");
    named.name = "../escape".into();
    refused(named, "name of the workload").await;
    let mut named = process_spec("x");
    named.namespace = "a_b".into();
    refused(named, "namespace of the workload").await;

    let taken = shop.namespace().listen(("127.0.0.1", 3500)).unwrap();
    refused(pod_spec(&shop, "shop"), "127.0.0.1:3500 is in use").await;
    drop(taken);
    let placed = agent.link.place(pod_spec(&shop, "shop")).await.unwrap();
    let mut twice = pod_spec(&shop, "other");
    twice.name = "other".into();
    refused(twice, &placed.id).await;
    agent.link.place(pod_spec(&cart, "cart")).await.unwrap();
    assert!(agent.link.remove("n1/default/none/1").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_work_ends_with_one_line() {
    let rig = Rig::without_agent();
    let _agent = rig.connect().await;
    // Another node in the same subtree; the first one is not disturbed.
    let (code, line) = rig.run_to_end(rig.command(&["--no-agent"]));
    assert_eq!(code, Some(1), "{line}");
    assert!(line.contains("another weft-node serves"), "{line}");
    // Its namespace's ports are taken, too; nothing of the attempt stays.
    let root = rig.net.cgroup().join("n2");
    let (run, root_text) = (rig.net.dir().join("run2"), root.to_str().unwrap().to_owned());
    let (code, line) = rig.run_to_end(rig.command(&[
        "--no-agent",
        "--cgroup-root",
        &root_text,
        "--run-dir",
        run.to_str().unwrap(),
    ]));
    assert_eq!(code, Some(1), "{line}");
    assert!(line.contains("15008 is in use"), "{line}");
    assert!(!root.exists());
    assert!(!run.join("agent.sock").exists());

    for (args, words) in [
        (&["--agent-bin", "/nonexistent/weft-agent"][..], "--agent-bin"),
        (&["--agent-bin", "/etc/passwd"], "not an executable file"),
        (&["--agent-user", "root"], "--agent-user"),
        (
            &["--no-agent", "--netns", "/run/netns/weft-none"],
            "no such namespace",
        ),
    ] {
        let (code, line) = rig.run_to_end(rig.command(args));
        assert_eq!(code, Some(1), "{args:?}: {line}");
        assert!(
            line.starts_with("weft-node: ") && line.contains(words),
            "{args:?}: {line}"
        );
    }
    for wrong in [&["--no-such-flag"][..], &["--node-name", "Not_A_Name"]] {
        let (code, line) = rig.run_to_end(rig.command(wrong));
        assert_eq!(code, Some(2), "{line}");
    }

    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-node"));
    // Root's own folder, where the configuration would be, is closed to others.
    command.env("HOME", "/nonexistent").env_remove("XDG_CONFIG_HOME");
    command
        .args(["--metrics-listen", "127.0.0.1:0"])
        .stderr(std::process::Stdio::piped());
    let mut user = rig.net.spawn(command, &Spawn::nobody()).unwrap();
    let errors = user.stderr.take().unwrap();
    let text = std::io::read_to_string(errors).unwrap();
    assert_eq!(wait(&mut user).code(), Some(1), "{text}");
    assert!(
        text.lines().last().unwrap().contains("must run as root"),
        "{text}"
    );
}
