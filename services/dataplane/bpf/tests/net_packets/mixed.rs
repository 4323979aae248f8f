//! Pods and processes of one node: each knows who the other is, though a process has no address of
//! its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};

use weft_bpf::{Address, Direction, Endpoint, Entry, PolicyKey, Set, Workload, cgroup_id};
use weft_testnet::Spawn;

use crate::actor::Actor;
use crate::links::{CLIENT, PATIENCE, Pods, QUIET, SERVER};
use crate::processes::connects;
use crate::rig::{ALLOW, DENY_IN, DENY_OUT};

const PROCESS: u32 = 31;

struct Mixed {
    pods: Pods,
    process: Actor,
    stranger: Actor,
    generation: std::cell::Cell<u32>,
}

impl Mixed {
    fn new() -> Self {
        let pods = Pods::new();
        pods.attach_both();
        let datapath = pods.kernel.datapath().unwrap();
        let host = Address {
            identity: 1,
            local: true,
            host: true,
            ..Address::default()
        };
        // That at the node's end of the pods' links is not said: packets of the node itself show it.
        let address = std::net::IpAddr::from(pods.node.v4());
        datapath.addresses.set(address.into(), host).unwrap();
        let cluster = Address {
            identity: 11,
            aggregate: true,
            ..Address::default()
        };
        datapath
            .addresses
            .set("10.244.0.0/16".parse().unwrap(), cluster)
            .unwrap();
        let cgroup = pods.node.cgroup().join("process");
        std::fs::create_dir_all(&cgroup).unwrap();
        let workload = Workload {
            index: PROCESS,
            identity: 1000 + PROCESS,
        };
        pods.kernel
            .add_workload(cgroup_id(&cgroup).unwrap(), workload)
            .unwrap();
        let endpoint = Endpoint {
            identity: 1000 + PROCESS,
            set: PROCESS,
            process: true,
            ..Endpoint::default()
        };
        datapath.endpoints.set(PROCESS, endpoint).unwrap();
        pods.kernel.attach_processes().unwrap();
        let mixed = Self {
            process: Actor::nobody(pods.node.namespace(), &cgroup),
            stranger: Actor::new(pods.node.namespace(), &Spawn::nobody()),
            pods,
            generation: std::cell::Cell::new(1000),
        };
        mixed.policy(PROCESS, 0);
        mixed
    }

    /// Everybody has an SVID.
    fn prove(&self) {
        let endpoints = self.pods.kernel.datapath().unwrap().endpoints;
        for (number, mut endpoint) in endpoints.list().unwrap() {
            endpoint.svid = true;
            endpoints.set(number, endpoint).unwrap();
        }
    }

    fn policy(&self, set: u32, flags: u32) {
        self.generation.set(self.generation.get() + 1);
        let value = Set {
            shapes_in: 63,
            shapes_out: 63,
            flags,
            generation: self.generation.get(),
        };
        self.pods.kernel.datapath().unwrap().sets.set(set, value).unwrap();
    }

    fn rule(&self, set: u32, direction: Direction, identity: u32, entry: Option<Entry>) {
        let key = PolicyKey {
            set,
            identity,
            direction,
            protocol: 6,
            port: 0,
        };
        let policy = self.pods.kernel.datapath().unwrap().policy;
        match entry {
            Some(entry) => policy.set(key, entry).unwrap(),
            None => drop(policy.remove(key).unwrap()),
        }
    }

    fn pod_connects(&self, to: SocketAddr) -> bool {
        let pod = self.pods.client.0.namespace();
        pod.run(|| TcpStream::connect_timeout(&to, QUIET).is_ok())
            .unwrap()
    }
}

#[test]
fn a_pod_knows_the_process_that_calls_it() {
    let mixed = Mixed::new();
    let (_listener, _, to) = mixed.pods.serve(mixed.pods.server.0.v4().into());
    assert!(connects(&mixed.process, to) && connects(&mixed.stranger, to));
    mixed.policy(SERVER, DENY_IN);
    assert!(!connects(&mixed.process, to) && !connects(&mixed.stranger, to));
    mixed.rule(SERVER, Direction::In, 1000 + PROCESS, Some(ALLOW));
    assert!(connects(&mixed.process, to) && !connects(&mixed.stranger, to));
    // Also when either has to be proven.
    let proven = Entry { auth: true, ..ALLOW };
    mixed.rule(SERVER, Direction::In, 1000 + PROCESS, Some(proven));
    assert!(!connects(&mixed.process, to));
    mixed.prove();
    assert!(connects(&mixed.process, to));
    mixed.rule(SERVER, Direction::In, 1000 + PROCESS, None);
    mixed.rule(SERVER, Direction::In, 1, Some(ALLOW));
    assert!(!connects(&mixed.process, to) && connects(&mixed.stranger, to));
    mixed.policy(SERVER, 0);

    mixed.policy(PROCESS, DENY_OUT);
    assert!(!connects(&mixed.process, to) && connects(&mixed.stranger, to));
    mixed.rule(PROCESS, Direction::Out, 1000 + SERVER, Some(ALLOW));
    assert!(connects(&mixed.process, to));
}

#[test]
fn a_process_knows_the_pod_that_calls_it() {
    let mixed = Mixed::new();
    let listener = mixed.process.listen((mixed.pods.node.v4(), 0).into(), 8);
    let to = listener.local_addr().unwrap();
    assert!(mixed.pod_connects(to));
    mixed.policy(PROCESS, DENY_IN);
    assert!(!mixed.pod_connects(to));
    mixed.rule(PROCESS, Direction::In, 1000 + SERVER, Some(ALLOW));
    assert!(!mixed.pod_connects(to), "another pod may");
    mixed.rule(PROCESS, Direction::In, 1000 + CLIENT, Some(ALLOW));
    assert!(mixed.pod_connects(to));

    // And is it allowed to call that one, whose address many have?
    mixed.policy(CLIENT, DENY_OUT | DENY_IN);
    let of_nobody = mixed.stranger.listen((mixed.pods.node.v4(), 0).into(), 8);
    let elsewhere = of_nobody.local_addr().unwrap();
    assert!(!mixed.pod_connects(to) && !mixed.pod_connects(elsewhere));
    mixed.rule(CLIENT, Direction::Out, 1, Some(ALLOW));
    assert!(
        !mixed.pod_connects(to) && mixed.pod_connects(elsewhere),
        "the node is not its process"
    );
    mixed.rule(CLIENT, Direction::Out, 1, None);
    mixed.rule(CLIENT, Direction::Out, 1000 + PROCESS, Some(ALLOW));
    assert!(mixed.pod_connects(to) && !mixed.pod_connects(elsewhere));
    // Also when both have to be proven.
    let proven = Entry { auth: true, ..ALLOW };
    mixed.rule(CLIENT, Direction::Out, 1000 + PROCESS, Some(proven));
    assert!(!mixed.pod_connects(to));
    mixed.prove();
    assert!(mixed.pod_connects(to));
}

/// Every protocol and family; and all of a connection passes, also what comes after its socket is gone.
#[test]
fn a_pod_calls_a_process_by_what_it_is() {
    let mixed = Mixed::new();
    let there = mixed.pods.node.namespace();
    let host = Address {
        identity: 1,
        local: true,
        host: true,
        ..Address::default()
    };
    let datapath = mixed.pods.kernel.datapath().unwrap();
    let v6 = std::net::IpAddr::from(mixed.pods.node.v6());
    datapath.addresses.set(v6.into(), host).unwrap();
    for address in [mixed.pods.node.v4().into(), v6] {
        for auth in [false, true] {
            mixed.policy(CLIENT, DENY_OUT | DENY_IN);
            let rule = Entry { auth, ..ALLOW };
            mixed.rule(CLIENT, Direction::Out, 1000 + PROCESS, Some(rule));
            mixed.prove();
            let listener = mixed.process.listen((address, 0).into(), 8);
            let to = listener.local_addr().unwrap();
            let pod = mixed.pods.client.0.namespace();
            let mut stream = pod.connect(to).unwrap();
            let (mut served, _) = listener.accept().unwrap();
            // The server ends first, so that its socket is one that only waits when the pod's end comes.
            served.write_all(b"hello").unwrap();
            served.shutdown(std::net::Shutdown::Write).unwrap();
            let mut text = String::new();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello");
            stream.write_all(b"and back").unwrap();
            drop(stream);
            let mut text = String::new();
            served.set_read_timeout(Some(PATIENCE)).unwrap();
            served.read_to_string(&mut text).unwrap();
            assert_eq!(text, "and back");

            // Datagrams are judged by the socket at the port as well.
            let udp = |socket: &UdpSocket| {
                let to = socket.local_addr().unwrap();
                socket.set_read_timeout(Some(QUIET)).unwrap();
                let from = pod.run(|| UdpSocket::bind(any(to))).unwrap().unwrap();
                from.send_to(b"here", to).unwrap();
                socket.recv_from(&mut [0; 8]).is_ok()
            };
            let key = PolicyKey {
                set: CLIENT,
                identity: 1000 + PROCESS,
                direction: Direction::Out,
                protocol: 17,
                port: 0,
            };
            let own = mixed.process.bind((address, 0).into());
            let of_nobody = there.run(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
            assert!(!udp(&own) && !udp(&of_nobody), "{address}");
            datapath.policy.set(key, rule).unwrap();
            mixed.policy(CLIENT, DENY_OUT | DENY_IN);
            assert!(udp(&own) && !udp(&of_nobody), "{address} {auth}");
            datapath.policy.remove(key).unwrap();
        }
    }
}

fn any(like: SocketAddr) -> SocketAddr {
    match like {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0; 16], 0).into(),
    }
}
