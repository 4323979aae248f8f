//! `weft uninstall` and `weft doctor` on a machine on which others have programs as well: needs root.
#![allow(clippy::unwrap_used, missing_docs)]

use nix::sys::signal::Signal;
use serde_json::Value;
use std::process::Command;
use weft_process_tests::{Ended, Home, SOON, Serving, run, run_as_nobody};
use weft_testnet::{ForeignProgram, Node, Spawn, Testnet};

struct Rig {
    home: Home,
    node: Node,
    net: Testnet,
}

impl Rig {
    fn new() -> Self {
        let net = Testnet::new().unwrap();
        Self {
            home: Home::new(),
            node: net.node("n1").unwrap(),
            net,
        }
    }

    fn start(&self) -> Serving {
        let mut command = self.home.command("weft-node");
        command
            .args(["--no-agent", "true", "--node-name", "n1", "--agent-user", "65100"])
            .arg("--netns")
            .arg(self.node.namespace().path())
            .arg("--cgroup-root")
            .arg(self.node.cgroup())
            .arg("--bpffs")
            .arg(self.net.bpffs().unwrap());
        let process = Serving::start(&mut command);
        process.logged("waiting for an agent", "path");
        process
    }

    fn uninstall(&self, more: &[&str]) -> Ended {
        let mut command = self.home.bare("weft");
        command.args(["uninstall", "--node", "n1", "--run-dir"]);
        command
            .arg(self.home.at("run"))
            .arg("--bpffs")
            .arg(self.net.bpffs().unwrap());
        command.arg("--cgroup-root").arg(self.node.cgroup()).args(more);
        run(&mut command)
    }

    fn pins(&self) -> std::path::PathBuf {
        self.net.bpffs().unwrap().join("weft")
    }
}

#[test]
fn a_dead_node_is_removed_and_nothing_of_others() {
    let rig = Rig::new();
    let process = rig.start();
    // Others, at the same hooks.
    let bpffs = rig.net.bpffs().unwrap();
    let at_cgroup = ForeignProgram::at_cgroup(rig.node.cgroup()).unwrap();
    at_cgroup.pin(&bpffs.join("foreign")).unwrap();
    let pod = rig.node.pod("shop").unwrap();
    let at_interface = ForeignProgram::at_interface(pod.node_link()).unwrap();
    let untouched = || {
        assert!(at_cgroup.is_attached().unwrap() && at_interface.is_attached().unwrap());
        assert!(bpffs.join("foreign").exists());
    };
    // An app of a workload, and what an agent left.
    let spawn = |name: &str| {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000");
        let cgroup = rig.node.cgroup().join(name);
        rig.net.spawn(sleep, &Spawn::nobody().cgroup(cgroup)).unwrap()
    };
    let mut app = spawn("default_shop_1");
    let mut agent = spawn("_node/agent");

    // One that runs is left alone.
    rig.uninstall(&["--yes"])
        .says("weft", 1, &["weft-node of n1 runs", "stop it first"]);
    assert!(rig.pins().exists());
    process.signal(Signal::SIGKILL);
    process.ended();
    assert!(rig.pins().exists(), "what a killed node has loaded stays");

    // First it only says so.
    let planned = rig.uninstall(&[]);
    assert_eq!(planned.code, Some(0), "{planned:?}");
    for words in [
        "would detach the programs",
        "would end what an agent left",
        "agent.sock",
        "--yes",
    ] {
        assert!(planned.stdout.contains(words), "{words}: {planned:?}");
    }
    assert!(rig.pins().exists() && agent.try_wait().unwrap().is_none());

    let done = rig.uninstall(&["--yes"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(
        done.stdout.contains("default_shop_1"),
        "the app is not named: {done:?}"
    );
    assert!(!rig.pins().exists() && !rig.home.at("run/agent.sock").exists());
    agent.wait().unwrap();
    assert!(app.try_wait().unwrap().is_none(), "an app was ended");
    untouched();

    // Once more, with the app gone: its cgroups go as well; and then there is nothing.
    app.kill().unwrap();
    app.wait().unwrap();
    let mut foreign = spawn("stranger");
    assert_eq!(rig.uninstall(&["--yes"]).code, Some(0));
    assert!(!rig.node.cgroup().join("default_shop_1").exists());
    assert!(foreign.try_wait().unwrap().is_none());
    foreign.kill().unwrap();
    foreign.wait().unwrap();
    untouched();
    rig.uninstall(&["--yes"]);
    assert!(!rig.node.cgroup().exists());
    let nothing = rig.uninstall(&["--yes"]);
    assert_eq!(
        (nothing.code, &*nothing.stdout),
        (Some(0), "nothing of Weft is here\n")
    );
}

#[test]
fn only_root_uninstalls() {
    let home = Home::new();
    run_as_nobody(home.bare("weft").args(["uninstall", "--node", "n1"])).says("weft", 1, &["root", "sudo"]);
    run(home.bare("weft").arg("uninstall")).says("weft", 2, &["--node"]);
}

fn doctor(command: &mut Command) -> (Option<i32>, Value) {
    let ended = run(command.args(["doctor", "-o", "json"]));
    let report = serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended:?}"));
    (ended.code, report)
}

#[track_caller]
fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let all = report["checks"].as_array().unwrap();
    let found = all
        .iter()
        .find(|check| check["name"].as_str().unwrap().starts_with(name));
    found.unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

#[test]
fn the_doctor_tries_what_a_node_uses_and_names_others() {
    let rig = Rig::new();
    let _program = ForeignProgram::at_cgroup(rig.net.cgroup()).unwrap();
    let mut command = rig.home.bare("weft");
    command
        .env("WEFT_CGROUP_ROOT", rig.net.cgroup())
        .env("WEFT_BPFFS", rig.net.bpffs().unwrap());
    let (code, report) = doctor(&mut command);
    let missing: Vec<_> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["state"] == "missing")
        .collect();
    // Ports may be some other process's, all else is there.
    assert!(
        missing.iter().all(|check| check["name"] == "ports"),
        "{missing:#?}"
    );
    assert_eq!(code, Some(i32::from(!missing.is_empty())));
    for tried in [
        "map ring buffer",
        "map socket storage",
        "program tcx egress",
        "sock_diag destroy",
    ] {
        assert_eq!(check(&report, tried)["found"], "tried", "{tried}");
    }
    assert_eq!(check(&report, "bpffs")["state"], "ok");
    let others = check(&report, "other programs at");
    assert!(others["found"].as_str().unwrap().contains("foreign"), "{others}");
    assert!(others["name"].as_str().unwrap().ends_with("connect4"), "{others}");
}

/// Root in a container without the right to namespaces.
#[test]
fn the_doctor_says_what_is_missing_and_fails() {
    let home = Home::new();
    let weft = home.bare("weft");
    let mut inside = Command::new("setpriv");
    inside
        .args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"])
        .arg(weft.get_program());
    let (code, report) = doctor(&mut inside);
    assert_eq!((code, &report["passed"]), (Some(1), &Value::Bool(false)));
    let namespace = check(&report, "network namespace");
    assert_eq!(namespace["state"], "missing");
    assert!(
        namespace["remedy"].as_str().unwrap().contains("CAP_SYS_ADMIN"),
        "{namespace}"
    );
}

#[test]
fn the_doctor_works_without_root() {
    let home = Home::new();
    let begun = std::time::Instant::now();
    let ended = run_as_nobody(home.bare("weft").args(["doctor", "-o", "yaml"]));
    assert!(ended.code.is_some() && begun.elapsed() < SOON);
    for words in [
        "state: unchecked",
        "run `weft doctor` as root",
        "cgroup hierarchy",
    ] {
        assert!(ended.stdout.contains(words), "{words}: {ended:?}");
    }
}
