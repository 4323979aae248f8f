//! `weft-node` as a process that operators watch: needs root.
#![allow(clippy::unwrap_used, missing_docs)]

use nix::sys::signal::Signal;
use weft_process_tests::{Home, SOON, Serving, get, run};
use weft_testnet::Testnet;

#[test]
fn the_node_is_watched_ends_in_order_and_starts_again() {
    let (home, net) = (Home::new(), Testnet::new().unwrap());
    let node = net.node("n1").unwrap();
    let command = || {
        let mut command = home.command("weft-node");
        command
            .args(["--no-agent", "true", "--node-name", "n1", "--agent-user", "65100"])
            .env("WEFT_LOG", "info")
            .arg("--netns")
            .arg(node.namespace().path())
            .arg("--cgroup-root")
            .arg(node.cgroup())
            .arg("--bpffs")
            .arg(net.bpffs().unwrap());
        command
    };
    let socket = home.at("run/agent.sock");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let process = Serving::start(&mut command());
        let metrics = process.logged("weft-node started", "metrics");
        process.logged("waiting for an agent", "path");
        assert_eq!(get(&metrics, "/healthz").0, 200);
        let (status, text) = get(&metrics, "/metrics");
        assert_eq!(status, 200);
        assert!(text.contains("weft_node_build_info{version=\""), "{text}");
        let own = text
            .lines()
            .filter(|l| l.starts_with("weft_node_") && !l.contains("build_info"));
        assert!(own.count() > 0, "weft-node measures nothing of its own:\n{text}");

        // A second one is told what is in its way, and does not disturb the first.
        let mut second = command();
        second.env("WEFT_RUN_DIR", home.at("run2"));
        run(&mut second).says("weft-node", 1, &["another weft-node serves", "--node-name"]);
        assert_eq!(get(&metrics, "/healthz").0, 200);
        assert!(socket.exists());

        let begun = std::time::Instant::now();
        process.signal(signal);
        let ended = process.ended();
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        assert!(begun.elapsed() < SOON / 3, "it took {:?} to end", begun.elapsed());
        assert!(
            !socket.exists() && !node.cgroup().exists(),
            "something is left behind"
        );
    }
}

/// The port of tunnels in the node's namespace.
#[test]
fn a_port_in_use_in_the_nodes_namespace_is_named() {
    let (home, net) = (Home::new(), Testnet::new().unwrap());
    let node = net.node("n1").unwrap();
    let _taken = node.namespace().listen(("0.0.0.0", 15008)).unwrap();
    let mut command = home.command("weft-node");
    command
        .args(["--no-agent", "true", "--node-name", "n1", "--agent-user", "65100"])
        .arg("--netns")
        .arg(node.namespace().path())
        .arg("--cgroup-root")
        .arg(node.cgroup())
        .arg("--bpffs")
        .arg(net.bpffs().unwrap());
    run(&mut command).says("weft-node", 1, &["15008", "in use", "stop what listens"]);
    assert!(!home.at("run/agent.sock").exists());
}
