//! Another release's programs in place of these: compiled from the same sources but for a line or two,
//! under load, with the maps adopted; and one whose maps have another layout, which adopts nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use weft_bpf::{Build, Direction, Kernel, PolicyKey, Running, Set};

use crate::compile::compile;
use crate::links::{CLIENT, PATIENCE, Pods, QUIET, SERVER};
use crate::rig::{ALLOW, DENY_IN, DENY_OUT};

pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn running(kernel: &Kernel) -> BTreeMap<String, Running> {
    let all = kernel.running().unwrap().into_iter();
    all.map(|program| (program.pin.clone(), program)).collect()
}

/// The server takes TCP from the client at its port and nothing else.
fn close(pods: &Pods, kernel: &Kernel, to: SocketAddr) {
    let datapath = kernel.datapath().unwrap();
    let closed = Set {
        shapes_in: 63,
        shapes_out: 63,
        flags: DENY_IN | DENY_OUT,
        generation: 50,
    };
    let rule = PolicyKey {
        set: SERVER,
        identity: 1000 + CLIENT,
        direction: Direction::In,
        protocol: 6,
        port: to.port(),
    };
    datapath.policy.set(rule, ALLOW).unwrap();
    datapath.sets.set(SERVER, closed).unwrap();
    assert!(pods.node.cgroup().exists());
}

/// Echoes on every connection, each on a thread of its own.
fn echo(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let mut byte = [0];
                while stream.read(&mut byte).unwrap_or(0) == 1 {
                    if stream.write_all(&byte).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn ask(stream: &mut TcpStream, byte: u8) {
    stream.write_all(&[byte]).unwrap();
    let mut back = [0];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, [byte]);
}

/// Segments that the client's kernel sent again.
fn sent_again(pods: &Pods) -> u64 {
    let read = || fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let text = pods.client.0.namespace().run(read).unwrap();
    let tcp: Vec<&str> = text.lines().filter(|line| line.starts_with("Tcp:")).collect();
    let at = tcp[0].split(' ').position(|name| name == "RetransSegs").unwrap();
    tcp[1].split(' ').nth(at).unwrap().parse().unwrap()
}

#[test]
fn another_build_takes_over_and_loses_no_packet_and_lets_none_slip() {
    const UPGRADES: usize = 10;
    let pods = Pods::new();
    pods.attach_both();
    let (listener, forbidden, to) = pods.serve(pods.server.0.v4().into());
    close(&pods, &pods.kernel, to);
    let other = compile(
        &sources(),
        &[
            ("packet.bpf.h", "#define MAX_HEADERS 8", "#define MAX_HEADERS 9"),
            ("maps.bpf.h", "*value += 1;", "__sync_fetch_and_add(value, 1);"),
        ],
    );
    let other = Build {
        object: &other,
        layout: Build::own().layout,
    };
    let client = pods.client.0.namespace();
    echo(listener);
    let mut lasting = client.connect(to).unwrap();
    lasting.set_read_timeout(Some(PATIENCE)).unwrap();
    ask(&mut lasting, 1);
    let before = sent_again(&pods);
    let (done, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let load = || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            while !done.load(Ordering::Relaxed) {
                let mut stream = TcpStream::connect(to).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                for byte in 0..20 {
                    ask(&mut stream, byte);
                    ask(&mut lasting, byte);
                    let _ = socket.send_to(b"no", to);
                }
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        };
        let load = scope.spawn(move || client.run(load).unwrap());
        let mut here = running(&pods.kernel);
        for upgrade in 0..UPGRADES {
            let at = rounds.load(Ordering::Relaxed);
            let build = if upgrade % 2 == 0 { other } else { Build::own() };
            let kernel = Kernel::load_build(&pods.options, build).unwrap();
            assert!(kernel.adopted() && kernel.replaced_layout().is_none());
            let now = running(&kernel);
            assert_eq!(now.keys().collect::<Vec<_>>(), here.keys().collect::<Vec<_>>());
            for (pin, program) in &now {
                assert_ne!(program.id, here[pin].id, "{pin} is the same program");
                let changes = ["to_endpoint", "from_endpoint", "connect", "sock_ops"];
                if changes.iter().any(|name| pin.starts_with(name)) {
                    assert_ne!(program.tag, here[pin].tag, "{pin} has the same instructions");
                }
            }
            here = now;
            // What the maps held is there: who is known, and what was counted.
            assert_eq!(kernel.datapath().unwrap().endpoints.list().unwrap().len(), 2);
            let counted = |name: &str| {
                let all = kernel.counters().unwrap();
                all.iter().find(|c| c.name == name).unwrap().value
            };
            assert!(counted("packets_dropped") > 0);
            while rounds.load(Ordering::Relaxed) < at + 2 {
                assert!(!load.is_finished(), "the load ended");
                thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(rounds.into_inner() >= UPGRADES as u64);
    assert_eq!(sent_again(&pods), before, "segments were sent again");
    forbidden.set_nonblocking(true).unwrap();
    assert!(
        forbidden.recv(&mut [0; 8]).is_err(),
        "a forbidden datagram arrived"
    );
}

#[test]
fn another_layout_is_closed_and_told_until_it_is_written() {
    let pods = Pods::new();
    pods.attach_both();
    let (listener, datagrams, to) = pods.serve(pods.server.0.v4().into());
    echo(listener);
    let mut open = pods.client.0.namespace().connect(to).unwrap();
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    ask(&mut open, 1);
    assert!(pods.arrives(&datagrams, PATIENCE));

    let changed = compile(
        &sources(),
        &[(
            "packet_types.bpf.h",
            "struct weft_ports {\n",
            "struct weft_ports {\n\t__u64 since;\n",
        )],
    );
    let before = Build::own().layout;
    let next = Build {
        object: &changed,
        layout: before + 1,
    };
    let kernel = Kernel::load_build(&pods.options, next).unwrap();
    assert!(kernel.adopted(), "the programs took over in place");
    assert_eq!(kernel.replaced_layout(), Some(before));
    let old = pods.options.bpffs_dir.join(format!("maps-v{before}"));
    assert!(!old.exists(), "the old maps stay");

    // Nobody is known: neither what is open goes on nor is anything new let through.
    assert!(!pods.arrives(&datagrams, QUIET));
    open.write_all(&[2]).unwrap();
    open.set_read_timeout(Some(QUIET)).unwrap();
    let nothing = open.read(&mut [0]).unwrap_err();
    assert!(
        matches!(nothing.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{nothing}"
    );
    let counters = kernel.counters().unwrap();
    let unknown = counters.iter().find(|c| c.name == "endpoint_unknown").unwrap();
    assert!(unknown.value > 0, "{counters:?}");

    // Written, it goes on, and nothing was reset meanwhile.
    pods.tell(&kernel);
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut back = [0];
    open.read_exact(&mut back).unwrap();
    assert_eq!(back, [2]);
    ask(&mut open, 3);
    assert!(pods.arrives(&datagrams, PATIENCE));

    // The next one of the same layout adopts all of it.
    let again = Kernel::load_build(&pods.options, next).unwrap();
    assert_eq!(again.replaced_layout(), None);
    ask(&mut open, 4);
}
