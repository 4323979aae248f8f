//! Pods and processes of one node: each knows who the other is, though a process has no address of
//! its own.

use std::net::{SocketAddr, TcpStream};

use weft_bpf::{Address, Direction, Endpoint, Entry, PolicyKey, Set, Workload, cgroup_id};
use weft_testnet::Spawn;

use crate::actor::Actor;
use crate::links::{CLIENT, Pods, QUIET, SERVER};
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

    // On its way out the pod's call is one to the node, and so are the answers.
    mixed.policy(CLIENT, DENY_OUT | DENY_IN);
    assert!(!mixed.pod_connects(to));
    mixed.rule(CLIENT, Direction::Out, 1, Some(ALLOW));
    assert!(mixed.pod_connects(to));
}
