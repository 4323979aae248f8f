//! What the agent sends for a pod where policy wants each request judged: its own sockets get through,
//! and nobody else's.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrStorage};
use weft_bpf::{Direction, Entry, Event, Events, PolicyKey, Set, Verdict};

use crate::links::{CLIENT, PATIENCE, Pods, QUIET, SERVER};
use crate::packet::{ACK, Packet, SYN};
use crate::rig::{ALLOW, DENY, DENY_IN, DENY_OUT};
use weft_testnet::Pod;

const REDIRECT: Entry = Entry {
    redirect: true,
    ..ALLOW
};
const PROXY_NOT_SUPPORTED: u8 = 180;

struct Scene {
    pods: Pods,
    events: Events,
    /// Told so far.
    told: Vec<Event>,
    generation: u32,
}

impl Scene {
    fn new() -> Self {
        let pods = Pods::new();
        pods.attach_both();
        let events = pods.kernel.events().unwrap();
        Self {
            pods,
            events,
            told: Vec::new(),
            generation: 100,
        }
    }

    /// What the client's policy says of the server's port, and of nothing else.
    fn says(&mut self, port: u16, entry: Entry) {
        let datapath = self.pods.kernel.datapath().unwrap();
        let rule = PolicyKey {
            set: CLIENT,
            identity: 1000 + SERVER,
            direction: Direction::Out,
            protocol: 6,
            port,
        };
        datapath.policy.set(rule, entry).unwrap();
        self.generation += 1;
        let set = Set {
            shapes_in: 63,
            shapes_out: 63,
            flags: DENY_OUT,
            generation: self.generation,
        };
        datapath.sets.set(CLIENT, set).unwrap();
    }

    /// A socket of the client's that the node marked for the agent, or another.
    fn socket(&self, to: SocketAddr, marked: bool) -> TcpStream {
        let family = match to {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let make = || socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
        let socket = self.pods.client.0.namespace().run(make).unwrap().unwrap();
        if marked {
            self.pods
                .kernel
                .own_sockets()
                .unwrap()
                .mark(socket.as_fd())
                .unwrap();
        }
        TcpStream::from(socket)
    }

    /// A connection by such a socket.
    fn connect(&self, to: SocketAddr, marked: bool, wait: Duration) -> Option<TcpStream> {
        let stream = self.socket(to, marked);
        // Also the limit of connect(2).
        stream.set_write_timeout(Some(wait)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(to)).ok()?;
        Some(stream)
    }

    /// The client's packets that were told of, and became this.
    fn told(&mut self, verdict: Verdict) -> Vec<Event> {
        self.told.extend(std::iter::from_fn(|| self.events.read()));
        let of = |e: &&Event| e.endpoint == CLIENT && e.verdict == verdict;
        self.told.iter().filter(of).cloned().collect()
    }

    fn dropped(&mut self) -> Vec<(u8, usize)> {
        let told = self.told(Verdict::Dropped);
        told.iter().map(|e| (e.reason, e.length as usize)).collect()
    }
}

/// A word there and one back.
fn exchange(one: &mut TcpStream, other: &mut TcpStream) {
    say(one, other);
    say(other, one);
}

fn say(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"word").unwrap();
    let mut word = [0; 4];
    to.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"word");
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn the_agents_own_sockets_pass_where_requests_are_judged_and_no_others() {
    let mut scene = Scene::new();
    for address in scene.pods.server.0.addresses() {
        let (listener, _, to) = scene.pods.serve(address);
        scene.says(to.port(), REDIRECT);
        assert!(scene.connect(to, false, QUIET).is_none(), "{to}");
        let dropped = scene.dropped();
        assert!(!dropped.is_empty() && dropped.iter().all(|(reason, _)| *reason == PROXY_NOT_SUPPORTED));
        scene.told.clear();

        let mut here = scene.connect(to, true, PATIENCE).unwrap();
        let mut there = accept(&listener);
        exchange(&mut here, &mut there);
        let told = scene.told(Verdict::Forwarded);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(
            (told[0].rule, told[0].destination_port),
            (REDIRECT.rule, to.port())
        );
        assert_eq!(scene.dropped(), []);

        // A change of policy that means the same here: also when the other end speaks first.
        scene.says(to.port(), REDIRECT);
        exchange(&mut there, &mut here);
        assert_eq!(scene.dropped(), []);

        // The kernel answers for what is closed, without a socket: once its end is known to the other one.
        drop(here);
        assert_eq!(there.read(&mut [0; 4]).unwrap(), 0);
        until("the end is not acknowledged", || {
            states(&scene.pods.client.0, to.port(), 2) == ["05"]
        });
        drop(there);
        // What listens stays.
        until("the server's end is not closed", || {
            states(&scene.pods.server.0, to.port(), 1) == ["0A"]
        });
        assert_eq!(scene.dropped(), []);

        // What refuses, refuses the agent as well.
        for (entry, reason) in [
            (DENY, 181),
            (
                Entry {
                    auth: true,
                    ..REDIRECT
                },
                189,
            ),
        ] {
            scene.says(to.port(), entry);
            assert!(scene.connect(to, true, QUIET).is_none(), "{entry:?}");
            assert_eq!(scene.dropped()[0].0, reason);
            scene.told.clear();
        }
    }
}

/// States of a pod's TCP sockets that have this port at their own (1) or their other (2) end; 05 is one that
/// waits for the other's end, 0A one that listens.
fn states(pod: &Pod, port: u16, column: usize) -> Vec<String> {
    let read = || {
        let of = |file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
        of("tcp") + &of("tcp6")
    };
    let tables = pod.namespace().run(read).unwrap();
    let port = format!(":{port:04X}");
    let of = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is = words.get(column).is_some_and(|end| end.ends_with(&port));
        is.then(|| words[3].to_owned())
    };
    tables.lines().filter_map(of).collect()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn nobody_puts_bytes_into_the_agents_connection() {
    let mut scene = Scene::new();
    let address = scene.pods.server.0.addresses()[0];
    let (listener, _, to) = scene.pods.serve(address);
    scene.says(to.port(), REDIRECT);
    let mut here = scene.connect(to, true, PATIENCE).unwrap();
    let mut there = accept(&listener);
    exchange(&mut here, &mut there);
    assert_eq!(scene.dropped(), []);

    let from = here.local_addr().unwrap();
    let (IpAddr::V4(source), IpAddr::V4(target)) = (from.ip(), to.ip()) else {
        panic!("the first address is IPv4")
    };
    let segment = |payload: &[u8]| {
        let mut packet = Packet::tcp((source.into(), from.port()), (target.into(), to.port()), ACK);
        packet.payload.extend_from_slice(payload);
        packet.ip()
    };
    send_raw(&scene, target, &segment(b"GET /secret"));
    let dropped = scene.dropped();
    assert_eq!(dropped, [(PROXY_NOT_SUPPORTED, 14 + 20 + 20 + 11)]);
    // Its twin carries nothing, as an acknowledgement does.
    send_raw(&scene, target, &segment(b""));
    assert_eq!(scene.dropped().len(), 1);
    // Nor does anybody else open it again.
    let mut again = segment(b"");
    again[20 + 13] = SYN;
    send_raw(&scene, target, &again);
    assert_eq!(scene.dropped().len(), 2);
    // The agent's own goes on.
    exchange(&mut here, &mut there);

    // One that is not answered yet is nobody else's to open either.
    let datapath = scene.pods.kernel.datapath().unwrap();
    let deaf = Set {
        flags: DENY_IN,
        generation: 99,
        ..Set::default()
    };
    datapath.sets.set(SERVER, deaf).unwrap();
    let waiting = scene.socket(to, true);
    waiting.set_nonblocking(true).unwrap();
    let begun = socket::connect(waiting.as_raw_fd(), &SockaddrStorage::from(to));
    assert_eq!(begun, Err(nix::errno::Errno::EINPROGRESS));
    let port = waiting.local_addr().unwrap().port();
    assert_eq!(scene.dropped().len(), 2);
    let opening = Packet::tcp((source.into(), port), (target.into(), to.port()), SYN);
    send_raw(&scene, target, &opening.ip());
    assert_eq!(scene.dropped().len(), 3);
}

/// As somebody in the client's pod who may send what he likes.
fn send_raw(scene: &Scene, to: Ipv4Addr, packet: &[u8]) {
    let make = || {
        // IPPROTO_RAW: the header of IP is the caller's.
        let protocol = socket::SockProtocol::Raw;
        socket::socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )
    };
    let raw = scene.pods.client.0.namespace().run(make).unwrap().unwrap();
    let to = SockaddrIn::from(std::net::SocketAddrV4::new(to, 0));
    let sent = socket::sendto(raw.as_raw_fd(), packet, &to, socket::MsgFlags::empty()).unwrap();
    assert_eq!(sent, packet.len());
}
