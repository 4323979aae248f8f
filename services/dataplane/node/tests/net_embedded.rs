//! The node inside a process that is the agent itself, as `weft dev` has it. Needs root. One test
//! per process, because a node moves its process into its cgroup.
#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    net::SocketAddr,
};
use weft_handoff::{AgentLink, ListenerKind};
use weft_node::Config;
use weft_proto::weft::dataplane::v1::{WorkloadSpec, workload_spec::Place};
use weft_testnet::Testnet;

fn own_cgroup() -> String {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    text.lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_in_the_agents_own_process() {
    let net = Testnet::new().unwrap();
    let node = net.node("n1").unwrap();
    let shop = node.pod("shop").unwrap();
    let before = own_cgroup();
    let config = Config {
        node_name: "n1".into(),
        netns: Some(node.namespace().path().to_owned()),
        cgroup_root: Some(node.cgroup().to_owned()),
        // Not mounted yet: the node does it, and undoes it.
        bpffs: net.dir().join("own-bpffs"),
        run_dir: net.dir().join("run"),
        ..Config::default()
    };
    let running = weft_node::start(&config).await.unwrap();
    assert!(own_cgroup().ends_with("/n1/_node"), "{}", own_cgroup());
    assert!(
        running
            .capabilities()
            .iter()
            .any(|c| c.name == "process-attribution" && c.active)
    );
    // A second node in one process would take the first one's place.
    let other = Config {
        cgroup_root: Some(net.cgroup().join("n2")),
        ..config.clone()
    };
    let error = weft_node::start(&other).await.unwrap_err().to_string();
    assert!(error.contains("another weft-node"), "{error}");
    assert!(!net.cgroup().join("n2").exists());

    let agent = AgentLink::start(running.agent_end().await.unwrap())
        .await
        .unwrap();
    let mut addresses = agent.hello.addresses.clone();
    addresses.sort();
    assert!(
        addresses.contains(&node.v4().into()) && addresses.contains(&node.v6().into()),
        "{addresses:?}"
    );
    let spec = WorkloadSpec {
        namespace: "default".into(),
        name: "shop".into(),
        app_id: "shop".into(),
        place: Some(Place::NetnsPath(shop.namespace().path().to_str().unwrap().into())),
        ..Default::default()
    };
    let mut large = spec.clone();
    large.annotations.insert("note".into(), "x".repeat(200 * 1024));
    let error = agent.link.place(large).await.unwrap_err().to_string();
    assert!(error.contains("shorten its labels"), "{error}");
    let placed = agent.link.place(spec).await.unwrap();
    let runtime = placed
        .listeners
        .into_iter()
        .find(|l| l.kind == ListenerKind::RuntimeHttp)
        .unwrap();
    let address: SocketAddr = runtime.tcp_address().unwrap();
    let listener = tokio::net::TcpListener::from_std(runtime.into_tcp().unwrap()).unwrap();
    let mut client = shop.namespace().connect(address).unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    accepted.into_std().unwrap().write_all(b"x").unwrap();
    let mut byte = [0];
    client.read_exact(&mut byte).unwrap();

    let api = config.run_dir.join("agent.sock");
    assert!(api.exists());
    // Kept: the programs stay attached, the next start adopts them.
    running.stop(true).await;
    assert_eq!(own_cgroup(), before);
    let pins = config.bpffs.join("weft/n1/links/sock_ops");
    assert!(pins.exists() && !api.exists());
    drop((agent, listener, client));
    let again = weft_node::start(&config).await.unwrap();
    again.stop(false).await;
    assert!(!config.bpffs.join("weft").exists());
    // What the first of the two mounted was kept for the second, which knows whose it was.
    assert!(!weft_bpf::is_bpffs(&config.bpffs));
    // Its twin: what somebody else mounted stays.
    weft_bpf::ensure_bpffs(&config.bpffs).unwrap();
    weft_node::start(&config).await.unwrap().stop(false).await;
    assert!(weft_bpf::is_bpffs(&config.bpffs));
    nix::mount::umount(&config.bpffs).unwrap();
    assert!(!node.cgroup().exists());
    assert_eq!(own_cgroup(), before);
}
