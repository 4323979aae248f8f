//! What the agent sends for a pod where policy wants each request judged: its own sockets get through,
//! and nobody else's.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrStorage};
use weft_bpf::{Direction, Entry, Event, Events, PolicyKey, Set, Verdict};

use crate::links::{CLIENT, PATIENCE, Pods, QUIET, SERVER};
use crate::packet::{ACK, Packet};
use crate::rig::{ALLOW, DENY, DENY_OUT};

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

    /// A connection of the client, by a socket that the node marked for the agent or by another.
    fn connect(&self, to: SocketAddr, marked: bool, wait: Duration) -> Option<TcpStream> {
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
        let stream = TcpStream::from(socket);
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

        // The kernel answers for what is closed, without a socket.
        drop(here);
        assert_eq!(there.read(&mut [0; 4]).unwrap(), 0);
        drop(there);
        let local_end = Instant::now();
        while is_waiting(&scene, to) {
            assert!(local_end.elapsed() < PATIENCE, "the server's end is not closed");
            std::thread::sleep(Duration::from_millis(10));
        }
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

/// Whether the server's end still waits for the last word of the client's.
fn is_waiting(scene: &Scene, to: SocketAddr) -> bool {
    let file = if to.is_ipv4() { "tcp" } else { "tcp6" };
    let read = || std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let table = scene.pods.server.0.namespace().run(read).unwrap();
    let port = format!(":{:04X}", to.port());
    let local = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, state) = (words.next(), words.nth(1));
        // 0A is what listens.
        local.is_some_and(|l| l.ends_with(&port)) && state != Some("0A")
    };
    table.lines().any(local)
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
    again[20 + 13] = crate::packet::SYN;
    send_raw(&scene, target, &again);
    assert_eq!(scene.dropped().len(), 2);
    // The agent's own goes on.
    exchange(&mut here, &mut there);
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
