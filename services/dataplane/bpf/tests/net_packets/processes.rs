//! Processes of the node: told apart by their sockets' cgroups, whatever address they share.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use weft_bpf::{
    Address, Datapath, Direction, Endpoint, Entry, Kernel, Options, PolicyKey, Set, Transport, Workload,
    cgroup_id, pin_dir,
};
use weft_testnet::{Node, Spawn, Testnet};

use crate::actor::Actor;
use crate::rig::{ALLOW, DENY, DENY_IN, DENY_OUT};

const CALLER: u32 = 21;
const CALLEE: u32 = 22;

struct Rig {
    kernel: Kernel,
    datapath: Datapath,
    caller: Actor,
    callee: Actor,
    stranger: Actor,
    own: Actor,
    node: Node,
    _net: Testnet,
    generation: std::cell::Cell<u32>,
}

fn cgroup(node: &Node, name: &str) -> PathBuf {
    let path = node.cgroup().join(name);
    std::fs::create_dir_all(&path).unwrap();
    path
}

impl Rig {
    fn new() -> Self {
        let net = Testnet::new().unwrap();
        let node = net.node("n").unwrap();
        std::fs::create_dir_all(node.cgroup()).unwrap();
        let mut options = Options::new(node.cgroup(), pin_dir(&net.bpffs().unwrap(), node.name()));
        options.max_connections = 4096;
        let kernel = Kernel::load(&options).unwrap();
        let datapath = kernel.datapath().unwrap();
        for address in [IpAddr::from(node.v4()), node.v6().into()] {
            let host = Address {
                identity: 1,
                local: true,
                host: true,
                ..Address::default()
            };
            datapath.addresses.set(address.into(), host).unwrap();
        }
        let process = |name: &str, index: u32| {
            let path = cgroup(&node, name);
            let workload = Workload {
                index,
                identity: 1000 + index,
            };
            kernel.add_workload(cgroup_id(&path).unwrap(), workload).unwrap();
            Actor::nobody(node.namespace(), &path)
        };
        let own = Spawn::root().cgroup(cgroup(&node, "_node"));
        let rig = Self {
            caller: process("caller", CALLER),
            callee: process("callee", CALLEE),
            stranger: Actor::new(node.namespace(), &Spawn::nobody()),
            own: Actor::new(node.namespace(), &own),
            kernel,
            datapath,
            node,
            _net: net,
            generation: std::cell::Cell::new(0),
        };
        for index in [CALLER, CALLEE] {
            rig.policy(index, 0);
            rig.endpoint(index);
        }
        assert!(!rig.kernel.attach_processes().unwrap());
        rig
    }

    fn endpoint(&self, index: u32) {
        let endpoint = Endpoint {
            identity: 1000 + index,
            set: index,
            process: true,
            ..Endpoint::default()
        };
        self.datapath.endpoints.set(index, endpoint).unwrap();
    }

    fn policy(&self, index: u32, flags: u32) {
        self.generation.set(self.generation.get() + 1);
        let set = Set {
            shapes_in: 63,
            shapes_out: 63,
            flags,
            generation: self.generation.get(),
        };
        self.datapath.sets.set(index, set).unwrap();
    }

    fn rule(&self, index: u32, direction: Direction, identity: u32, entry: Option<Entry>) {
        let key = PolicyKey {
            set: index,
            identity,
            direction,
            protocol: 6,
            port: 0,
        };
        match entry {
            Some(entry) => self.datapath.policy.set(key, entry).unwrap(),
            None => drop(self.datapath.policy.remove(key).unwrap()),
        }
    }

    fn addresses(&self) -> [IpAddr; 4] {
        [
            Ipv4Addr::LOCALHOST.into(),
            Ipv6Addr::LOCALHOST.into(),
            self.node.v4().into(),
            self.node.v6().into(),
        ]
    }
}

/// Can it connect? Asked of the kernel's own table: a SYN that is dropped is not answered.
pub fn connects(actor: &Actor, to: SocketAddr) -> bool {
    let any: SocketAddr = if to.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0; 16], 0).into()
    };
    let (number, _) = actor.begin(any, to);
    let answer = actor.ask(&format!("wait {number}"), &[]);
    actor.close(number);
    answer.is_ok()
}

#[test]
fn a_process_is_judged_by_who_it_is_at_either_end() {
    let rig = Rig::new();
    for address in rig.addresses() {
        let listener = rig.callee.listen((address, 0).into(), 8);
        let to = listener.local_addr().unwrap();
        let everybody = [&rig.caller, &rig.stranger, &rig.own];
        for actor in everybody {
            assert!(connects(actor, to), "{to}");
        }
        // Whom the server lets in.
        rig.policy(CALLEE, DENY_IN);
        assert!(!connects(&rig.caller, to), "{to}");
        assert!(!connects(&rig.stranger, to), "{to}");
        rig.rule(CALLEE, Direction::In, 1000 + CALLER, Some(ALLOW));
        assert!(connects(&rig.caller, to), "{to}");
        assert!(
            !connects(&rig.stranger, to),
            "the same address, another process: {to}"
        );
        rig.rule(CALLEE, Direction::In, 1, Some(ALLOW));
        assert!(connects(&rig.stranger, to), "{to}");
        rig.rule(CALLEE, Direction::In, 1, None);
        rig.rule(CALLEE, Direction::In, 1000 + CALLER, None);
        rig.policy(CALLEE, 0);

        // Where the client may go.
        rig.policy(CALLER, DENY_OUT);
        assert!(!connects(&rig.caller, to), "{to}");
        rig.rule(CALLER, Direction::Out, 1000 + CALLEE, Some(ALLOW));
        assert!(connects(&rig.caller, to), "{to}");
        let elsewhere = rig.stranger.listen((address, 0).into(), 8);
        let elsewhere = elsewhere.local_addr().unwrap();
        assert!(
            !connects(&rig.caller, elsewhere),
            "the same address, another process: {to}"
        );
        rig.rule(CALLER, Direction::Out, 1, Some(ALLOW));
        assert!(connects(&rig.caller, elsewhere), "{to}");
        rig.rule(CALLER, Direction::Out, 1, Some(DENY));
        // The node's own components are no policy's business, nor is talking to oneself.
        let own = rig.own.listen((address, 0).into(), 8);
        assert!(connects(&rig.caller, own.local_addr().unwrap()), "{to}");
        let itself = rig.caller.listen((address, 0).into(), 8);
        assert!(connects(&rig.caller, itself.local_addr().unwrap()), "{to}");
        rig.rule(CALLER, Direction::Out, 1, None);
        rig.rule(CALLER, Direction::Out, 1000 + CALLEE, None);
        rig.policy(CALLER, 0);
    }
}

#[test]
fn a_process_that_is_not_known_yet_is_closed_and_a_detached_program_judges_nobody() {
    let rig = Rig::new();
    let listener = rig.callee.listen((rig.node.v4(), 0).into(), 8);
    let to = listener.local_addr().unwrap();
    rig.datapath.endpoints.remove(CALLER).unwrap();
    assert!(!connects(&rig.caller, to));
    assert!(connects(&rig.stranger, to));
    rig.endpoint(CALLER);
    assert!(connects(&rig.caller, to));

    rig.policy(CALLER, DENY_OUT);
    assert!(!connects(&rig.caller, to));
    assert!(rig.kernel.attach_processes().unwrap(), "attached already");
    assert!(!connects(&rig.caller, to));
    rig.kernel.detach_processes().unwrap();
    assert!(connects(&rig.caller, to));
}

#[test]
fn a_process_is_known_by_its_datagrams() {
    let rig = Rig::new();
    let bind = || UdpSocket::bind((rig.node.v4(), 0)).unwrap();
    let server = rig.node.namespace().run(bind).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let to = server.local_addr().unwrap();
    let number = rig.caller.datagrams(to);
    let send = || rig.caller.ask(&format!("sendto {number} {to} hello"), &[]);
    rig.policy(CALLER, DENY_IN);
    send().unwrap();
    let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
    assert_eq!(
        rig.kernel.process(Transport::Udp, from, to).unwrap(),
        Some(CALLER)
    );
    // What nobody asked for comes first and is not heard; the answer is.
    let stranger = rig.node.namespace().run(bind).unwrap();
    stranger.send_to(b"unasked", from).unwrap();
    server.send_to(b"answer", from).unwrap();
    let (heard, by) = rig.caller.hear(number).unwrap();
    assert_eq!((heard.as_str(), by), ("answer", to));

    rig.policy(CALLER, DENY_OUT);
    assert!(send().is_err(), "the caller is told");
    rig.policy(CALLER, 0);
    send().unwrap();
}

#[test]
fn a_process_cannot_pass_as_an_agent() {
    let rig = Rig::new();
    let own = rig.stranger.listen((rig.node.v4(), 15008).into(), 8);
    let to = own.local_addr().unwrap();
    assert!(connects(&rig.stranger, to));
    assert!(!connects(&rig.caller, to));
}
