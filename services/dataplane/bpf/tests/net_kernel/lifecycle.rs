//! Loading, adopting, replacing and taking away.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use weft_bpf::{Error, Kernel, Options, Workload, cgroup_id, pin_dir, probe, uninstall};
use weft_testnet::{Spawn, Testnet};

use crate::rig::{Rig, count};

#[test]
fn a_reload_adopts_and_no_connection_falls_between() {
    const RELOADS: usize = 10;
    let rig = Rig::new();
    let (cart, id) = rig.workload("cart", 7);
    let cart = rig.process(&cart);
    let (listener, to) = rig.listener();
    assert!(!rig.kernel.adopted());

    let (done, total) = (AtomicBool::new(false), AtomicUsize::new(usize::MAX));
    let connections = thread::scope(|scope| {
        let accepting = scope.spawn(|| {
            let (mut accepted, mut known) = (0, 0);
            while accepted < total.load(Ordering::Relaxed) {
                let (stream, _) = listener.accept().unwrap();
                let origin = rig.origins.read(&stream).unwrap();
                accepted += 1;
                known += usize::from(origin.is_some_and(|origin| origin.cgroup_id == id));
            }
            (accepted, known)
        });
        scope.spawn(|| {
            for _ in 0..RELOADS {
                assert!(Kernel::load(&rig.options).unwrap().adopted());
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut connections = 0;
        while !done.load(Ordering::Relaxed) {
            cart.repeat(100, to);
            connections += 100;
        }
        total.store(connections, Ordering::Relaxed);
        // Wakes the one that accepts, should it have seen all of them before.
        cart.repeat(1, to);
        let (accepted, known) = accepting.join().unwrap();
        assert_eq!(known, accepted, "every connection has its record");
        assert!(accepted >= connections);
        connections
    });
    assert!(connections >= 500, "{connections} connections in the time");

    let adopted = Kernel::load(&rig.options).unwrap();
    assert_eq!(
        adopted.workloads().unwrap(),
        [(
            id,
            Workload {
                index: 7,
                identity: 1007
            }
        )]
    );
    // The one that woke may still be on its way.
    assert!(count(&adopted, "published") - count(&adopted, "delivered") <= 1);
    assert!(count(&adopted, "delivered") >= connections as u64);
}

/// Not a test of its own: the process that loads and is killed.
#[test]
#[ignore = "started by another test"]
fn load_and_wait() {
    let kernel = Kernel::load(&Options::new(env("WEFT_CGROUP"), env("WEFT_PINS"))).unwrap();
    kernel
        .add_workload(
            env("WEFT_ID").parse().unwrap(),
            Workload {
                index: 3,
                identity: 0,
            },
        )
        .unwrap();
    println!("\nloaded");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]);
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap()
}

#[test]
fn what_a_killed_process_loaded_goes_on_and_is_adopted() {
    let net = Testnet::new().unwrap();
    let node = net.node("n").unwrap();
    let cart = node.cgroup().join("cart");
    fs::create_dir_all(&cart).unwrap();
    let id = cgroup_id(&cart).unwrap();
    let pins = pin_dir(&net.bpffs().unwrap(), "n");
    let mut loader = Command::new("/proc/self/exe");
    loader.args(["--ignored", "--exact", "lifecycle::load_and_wait", "--nocapture"]);
    loader
        .env("WEFT_CGROUP", node.cgroup())
        .env("WEFT_PINS", &pins)
        .env("WEFT_ID", id.to_string());
    loader.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut loader = net.spawn(loader, &Spawn::root()).unwrap();
    let output = BufReader::new(loader.stdout.take().unwrap());
    assert!(output.lines().map_while(Result::ok).any(|line| line == "loaded"));
    loader.kill().unwrap();
    loader.wait().unwrap();

    // Nobody holds the programs but the pins; what connects now is read by the next process.
    let keeper = crate::actor::Actor::new(
        node.namespace(),
        &Spawn::root().cgroup(node.cgroup().join("_node")),
    );
    let (listener, to) = crate::rig::listening(keeper.listen("127.0.0.1:0".parse().unwrap(), 16));
    let caller = crate::actor::Actor::nobody(node.namespace(), &cart);
    let (_, from) = caller.connect(to);

    let rig = Rig::on(net, node, |_| {});
    assert!(rig.kernel.adopted());
    let origin = rig.accept(&listener, from).unwrap();
    assert_eq!((origin.cgroup_id, origin.workload_index), (id, 3));
}

#[test]
fn a_cgroup_made_anew_gets_its_programs() {
    let net = Testnet::new().unwrap();
    let node = net.node("n").unwrap();
    fs::create_dir_all(node.cgroup()).unwrap();
    let options = Options::new(node.cgroup(), pin_dir(&net.bpffs().unwrap(), "n"));
    Kernel::load(&options).unwrap();
    fs::remove_dir(node.cgroup()).unwrap();

    let rig = Rig::on(net, node, |_| {});
    assert!(
        !rig.kernel.adopted(),
        "the old links are at a cgroup that is gone"
    );
    let (cart, id) = rig.workload("cart", 1);
    let (listener, to) = rig.listener();
    let (_, from) = rig.process(&cart).connect(to);
    assert_eq!(rig.accept(&listener, from).unwrap().cgroup_id, id);
}

#[test]
fn programs_of_others_at_the_cgroup_stay_and_run() {
    let net = Testnet::new().unwrap();
    let node = net.node("n").unwrap();
    fs::create_dir_all(node.cgroup()).unwrap();
    // They came first, and know none of the workloads.
    let others = Options::new(node.cgroup(), pin_dir(&net.bpffs().unwrap(), "others"));
    let others = Kernel::load(&others).unwrap();
    let seen = || count(&others, "connect_unregistered");
    let rig = Rig::on(net, node, |_| {});
    let (cart, id) = rig.workload("cart", 1);
    let cart = rig.process(&cart);
    let (listener, to) = rig.listener();
    let before = seen();
    let (_, from) = cart.connect(to);
    assert_eq!(rig.accept(&listener, from).unwrap().cgroup_id, id);
    assert_eq!(seen(), before + 1, "theirs saw the same call");

    uninstall(&rig.options.bpffs_dir).unwrap();
    let (_, from) = cart.connect(to);
    assert_eq!(rig.accept(&listener, from), None, "ours are gone");
    assert_eq!(seen(), before + 2);
}

#[test]
fn uninstalling_leaves_nothing_and_may_be_repeated() {
    let rig = Rig::new();
    let (cart, id) = rig.workload("cart", 1);
    let cart = rig.process(&cart);
    let (listener, to) = rig.listener();
    let (_, from) = cart.connect(to);
    assert_eq!(rig.accept(&listener, from).unwrap().cgroup_id, id);

    // Maps of a layout that is no more are removed at the next load.
    let old = rig.options.bpffs_dir.join("maps-v0");
    fs::create_dir(&old).unwrap();
    Kernel::load(&rig.options).unwrap();
    assert!(!old.exists());

    uninstall(&rig.options.bpffs_dir).unwrap();
    assert!(!rig.options.bpffs_dir.exists());
    let (_, from) = cart.connect(to);
    assert_eq!(
        rig.accept(&listener, from),
        None,
        "the programs are gone although their maps are held here"
    );
    uninstall(&rig.options.bpffs_dir).unwrap();

    // And it can begin anew.
    assert!(!Kernel::load(&rig.options).unwrap().adopted());
}

#[test]
fn what_is_wrong_is_named() {
    let net = Testnet::new().unwrap();
    let node = net.node("n").unwrap();
    let pins = pin_dir(&net.bpffs().unwrap(), "n");
    let refused = |cgroup: &std::path::Path, pins: &std::path::Path| {
        Kernel::load(&Options::new(cgroup, pins)).map(drop).unwrap_err()
    };
    let error = refused(node.cgroup(), &pins);
    assert!(matches!(error, Error::Cgroup { .. }), "{error}");
    fs::create_dir_all(node.cgroup()).unwrap();
    let error = refused(node.cgroup(), net.dir());
    assert!(
        matches!(error, Error::NotBpffs { .. }) && error.to_string().contains("mount -t bpf"),
        "{error}"
    );
    let error = refused(node.cgroup(), &net.bpffs().unwrap().join("a.b"));
    assert!(matches!(error, Error::Dots { .. }), "{error}");
    let error = refused(net.dir(), &pins);
    assert!(
        matches!(error, Error::Cgroup { .. }) && error.to_string().contains("not a cgroup v2"),
        "{error}"
    );
    Kernel::load(&Options::new(node.cgroup(), &pins)).unwrap();

    let missing: Vec<_> = probe(&pins)
        .into_iter()
        .filter(|capability| !capability.active)
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    let nobody = crate::actor::Actor::new(node.namespace(), &Spawn::nobody());
    let (missing, _) = nobody
        .ask(&format!("probe {}", net.bpffs().unwrap().display()), &[])
        .unwrap();
    let names: Vec<&str> = missing
        .lines()
        .filter_map(|line| line.split(':').next())
        .collect();
    assert_eq!(names, ["bpf-privileges", "cgroup-programs"], "{missing}");
    assert_eq!(missing.matches("start weft-node as root").count(), 2, "{missing}");
}
