//! The network itself: who reaches whom, what is seen on the way, and that nothing stays behind.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use weft_testnet::{Namespace, Spawn, Testnet, sweep};

/// Sends `text` from one namespace to a listener in another and returns who the listener saw.
fn deliver(from: &Namespace, to: &Namespace, address: IpAddr, text: &[u8]) -> (SocketAddr, SocketAddr) {
    let listener = to.listen((address, 0)).unwrap();
    let target = listener.local_addr().unwrap();
    let mut client = from.connect(target).unwrap();
    let (mut server, peer) = listener.accept().unwrap();
    client.write_all(text).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert_eq!(got, text);
    (peer, target)
}

#[test]
fn pods_reach_pods_on_their_node_and_on_others_by_both_families() {
    let net = Testnet::new().unwrap();
    let (a, b, c) = (
        net.node("a").unwrap(),
        net.node("b").unwrap(),
        net.node("c").unwrap(),
    );
    let (one, two) = (a.pod("one").unwrap(), a.pod("two").unwrap());
    let (far, farther) = (b.pod("far").unwrap(), c.pod("one").unwrap());
    for (from, to) in [(&one, &two), (&one, &far), (&farther, &two)] {
        for (own, address) in from.addresses().into_iter().zip(to.addresses()) {
            let (peer, _) = deliver(from.namespace(), to.namespace(), address, b"hello");
            assert_eq!(peer.ip(), own, "no address is rewritten on the way");
        }
    }
    deliver(a.namespace(), b.namespace(), b.v4().into(), b"node to node");
    deliver(
        a.namespace(),
        far.namespace(),
        far.v6().into(),
        b"node to pod elsewhere",
    );
    // Nothing of it is in this process's own namespace.
    assert!(!fs::read_to_string("/proc/net/dev").unwrap().contains("br0"));
}

#[test]
fn a_program_has_the_host_name_it_is_given() {
    let net = Testnet::new().unwrap();
    let node = net.node("a").unwrap();
    let name = |spawn: &Spawn| {
        let mut command = Command::new("uname");
        command.arg("-n").stdout(Stdio::piped());
        let mut process = node.namespace().spawn(command, spawn).unwrap();
        let mut said = String::new();
        process.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        said.trim().to_owned()
    };
    let own = name(&Spawn::root());
    assert_eq!(name(&Spawn::nobody().hostname("whoami-0")), "whoami-0");
    assert_eq!(name(&Spawn::root()), own, "it is that program's alone");
}

#[test]
fn a_capture_sees_what_passes_its_link_and_nothing_else() {
    const SECRET: &[u8] = b"a text that is nowhere else";
    let net = Testnet::new().unwrap();
    let (a, b) = (net.node("a").unwrap(), net.node("b").unwrap());
    let (one, two, far) = (
        a.pod("one").unwrap(),
        a.pod("two").unwrap(),
        b.pod("far").unwrap(),
    );

    let (pod, between) = (one.link().capture().unwrap(), net.underlay(&b).capture().unwrap());
    let (_, target) = deliver(one.namespace(), two.namespace(), two.v4().into(), SECRET);
    assert!(pod.wait_for(SECRET, Duration::from_secs(5)));
    let (pod, between) = (pod.stop().unwrap(), between.stop().unwrap());
    assert!(pod.complete() && between.complete());
    assert!(pod.contains(SECRET), "the positive control");
    assert!(!between.contains(SECRET), "it stayed on its node");
    let sent = pod
        .streams_on(target.port())
        .find(|stream| stream.destination == target)
        .unwrap();
    assert_eq!((sent.bytes.as_slice(), sent.gap), (SECRET, false));

    // The same text, and enough of it for segments to be joined and split, between the nodes.
    let between = net.underlay(&b).capture().unwrap();
    let record = [[23, 3, 3, 1, 0].as_slice(), &[7; 256]].concat();
    let (_, target) = deliver(
        one.namespace(),
        far.namespace(),
        far.v6().into(),
        &record.repeat(2000),
    );
    let (_, clear) = deliver(
        one.namespace(),
        far.namespace(),
        far.v4().into(),
        &SECRET.repeat(2000),
    );
    let between = between.stop().unwrap();
    assert!(between.complete() && between.contains(SECRET));
    let tls = between.tls_on(target.port());
    assert_eq!((tls.records, tls.bytes, tls.other_bytes), (2000, 2000 * 261, 0));
    assert_eq!(between.tls_on(clear.port()).records, 0);
    let clear = between
        .streams_on(clear.port())
        .find(|stream| stream.destination == clear)
        .unwrap();
    assert_eq!(clear.bytes.len(), 2000 * SECRET.len());
}

#[test]
fn a_link_that_is_down_carries_nothing_until_it_is_up() {
    let net = Testnet::new().unwrap();
    let (a, b) = (net.node("a").unwrap(), net.node("b").unwrap());
    b.uplink().set_up(false).unwrap();
    let listener = b.namespace().listen((b.v4(), 0)).unwrap();
    let target = listener.local_addr().unwrap();
    let try_it = || {
        a.namespace()
            .run(|| TcpStream::connect_timeout(&target, Duration::from_millis(200)))
    };
    assert!(try_it().unwrap().is_err());
    b.uplink().set_up(true).unwrap();
    assert!((0..50).any(|_| try_it().unwrap().is_ok()));
}

#[test]
fn a_program_runs_where_and_as_whom_it_was_told() {
    let net = Testnet::new().unwrap();
    let node = net.node("a").unwrap();
    let pod = node.pod("p").unwrap();
    let script = "id -u; id -g; id -G; grep -E '^(CapEff|CapPrm|NoNewPrivs):' /proc/self/status; \
                  readlink /proc/self/ns/net; grep ^0:: /proc/self/cgroup";
    let run = |spawn: Spawn| {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        let mut process = pod.namespace().spawn(command, &spawn).unwrap();
        let mut text = String::new();
        process.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(process.wait().unwrap().success());
        text
    };
    let inode = {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(pod.namespace().path()).unwrap().ino()
    };
    let text = run(Spawn::nobody().cgroup(node.cgroup().join("app")));
    assert!(text.starts_with("65534\n65534\n65534\n"), "{text}");
    for line in [
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(text.contains(&format!("net:[{inode}]")), "{text}");
    assert!(
        text.contains(&format!("/weft-test/{}/a/app", net.key())),
        "{text}"
    );

    let text = run(Spawn::root());
    assert!(
        text.starts_with("0\n0\n") && text.contains("NoNewPrivs:\t0"),
        "{text}"
    );
}

/// The mounts, folders and living processes that belong to a network.
fn traces(key: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mut found: Vec<String> = mounts
        .lines()
        .filter(|line| line.contains(key))
        .map(Into::into)
        .collect();
    let cgroup = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
        .unwrap();
    let cgroup = Path::new(cgroup.split(' ').nth(1).unwrap())
        .join("weft-test")
        .join(key);
    found.extend(
        [cgroup, PathBuf::from("/run/weft-test").join(key)]
            .iter()
            .filter(|p| p.exists())
            .map(|p| p.display().to_string()),
    );
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let cgroups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        // Dead ones that nobody has reaped yet stay in their cgroup after it is deleted.
        let held = |line: &&str| line.contains(&format!("/{key}/")) && !line.ends_with(" (deleted)");
        found.extend(cgroups.lines().filter(held).map(Into::into));
    }
    found
}

/// Everything a network can own, made in a child of this test.
fn furnish() -> Testnet {
    let net = Testnet::new().unwrap();
    let node = net.node("a").unwrap();
    net.bpffs().unwrap();
    fs::create_dir(net.bpffs().unwrap().join("pins")).unwrap();
    let pod = node.pod("p").unwrap();
    let mut sleeper = Command::new("sleep");
    sleeper.arg("1000");
    let process = pod
        .namespace()
        .spawn(sleeper, &Spawn::nobody().cgroup(node.cgroup().join("x/y")))
        .unwrap();
    std::mem::forget(process);
    net
}

#[test]
fn dropping_a_network_leaves_nothing() {
    let net = furnish();
    let key = net.key().to_string();
    assert!(
        traces(&key).len() >= 5,
        "the positive control: {:?}",
        traces(&key)
    );
    drop(net);
    assert_eq!(traces(&key), Vec::<String>::new());
}

/// Not a test of its own: the process that the next one kills.
#[test]
#[ignore = "started by another test"]
fn furnish_and_wait() {
    let net = furnish();
    println!("\nkey={}", net.key());
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn a_sweep_after_kill_leaves_nothing_and_spares_the_living() {
    let living = furnish();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "furnish_and_wait", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let key = lines
        .map_while(Result::ok)
        .find_map(|line| Some(line.strip_prefix("key=")?.to_string()))
        .unwrap();
    assert!(traces(&key).len() >= 5);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(traces(&key).len() >= 5, "a killed process cleans nothing up");

    // Another test's `Testnet::new` may have come first; either way it is gone afterwards.
    sweep().unwrap();
    assert_eq!(traces(&key), Vec::<String>::new());
    assert!(traces(living.key()).len() >= 5);
}

#[test]
fn names_that_are_no_folder_names_are_refused() {
    let net = Testnet::new().unwrap();
    for name in ["", "..", "a/b", "A", "a.b"] {
        assert!(net.node(name).is_err(), "{name}");
    }
    assert!(net.node("a-1").is_ok());
    assert!(net.node("a-1").is_err(), "twice");
}

#[test]
fn a_panic_inside_goes_on_outside() {
    let net = Testnet::new().unwrap();
    let node = net.node("a").unwrap();
    let inside = std::panic::AssertUnwindSafe(|| node.namespace().run(|| panic!("inside")));
    assert!(std::panic::catch_unwind(inside).is_err());
}
