//! One endpoint, 7, behind the interface 1, with a peer of every kind.

use std::net::IpAddr;

use weft_bpf::{
    Address, Build, Datapath, Direction, Endpoint, Entry, Event, Events, Hooked, Kernel, Options, PolicyKey,
    Set, pin_dir,
};
use weft_testnet::{Node, Testnet};

use crate::packet::Packet;

pub const POD: u32 = 7;
pub const OTHER: u32 = 8;
pub const SET: u32 = 3;
pub const IDENTITY: u32 = 1007;
pub const IFINDEX: u32 = 1;
/// Where the other endpoint of the node is.
pub const OTHER_IFINDEX: u32 = 4242;
/// Where other nodes are.
pub const UPLINK: u32 = 4243;
pub const GENERATION: u32 = 100;

pub const DENY_IN: u32 = 1;
pub const DENY_OUT: u32 = 2;
pub const RANGES: u32 = 8 | 16;
pub const ALL: u32 = 63;

/// Addresses of one family.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    pub pod: IpAddr,
    /// Endpoint 8 of this node.
    pub other: IpAddr,
    /// A workload of another node, reached by tunnel.
    pub remote: IpAddr,
    /// In the cluster, not known yet.
    pub unknown: IpAddr,
    pub world: IpAddr,
    /// This node and another one.
    pub host: IpAddr,
    pub node: IpAddr,
}

pub const OTHER_IDENTITY: u32 = 1008;
pub const REMOTE_IDENTITY: u32 = 1009;

pub fn families() -> [Family; 2] {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    [
        Family {
            pod: ip("10.1.0.7"),
            other: ip("10.1.0.8"),
            remote: ip("10.2.0.9"),
            unknown: ip("10.3.0.1"),
            world: ip("192.0.2.1"),
            host: ip("172.16.0.1"),
            node: ip("172.16.0.2"),
        },
        Family {
            pod: ip("fd01::7"),
            other: ip("fd01::8"),
            remote: ip("fd02::9"),
            unknown: ip("fd03::1"),
            world: ip("2001:db8::1"),
            host: ip("fd16::1"),
            node: ip("fd16::2"),
        },
    ]
}

pub struct Rig {
    pub kernel: Kernel,
    pub datapath: Datapath,
    pub events: Events,
    _node: Node,
    _net: Testnet,
    generation: std::cell::Cell<u32>,
    flags: std::cell::Cell<u32>,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Options)) -> Self {
        Self::built(Build::own(), change)
    }

    /// With other programs than those of the sources.
    pub fn built(build: Build<'_>, change: impl FnOnce(&mut Options)) -> Self {
        let net = Testnet::new().unwrap();
        let node = net.node("n").unwrap();
        std::fs::create_dir_all(node.cgroup()).unwrap();
        let mut options = Options::new(node.cgroup(), pin_dir(&net.bpffs().unwrap(), node.name()));
        options.max_connections = 4096;
        change(&mut options);
        let kernel = Kernel::load_build(&options, build).unwrap();
        let datapath = kernel.datapath().unwrap();
        let events = kernel.events().unwrap();
        let rig = Self {
            kernel,
            datapath,
            events,
            _node: node,
            _net: net,
            generation: std::cell::Cell::new(GENERATION),
            flags: std::cell::Cell::new(0),
        };
        rig.fill();
        rig
    }

    fn fill(&self) {
        let address = |ip: IpAddr, address| self.datapath.addresses.set(ip.into(), address).unwrap();
        let wide = |text: &str, value| self.datapath.addresses.set(text.parse().unwrap(), value).unwrap();
        let world = Address {
            identity: 2,
            ..Address::default()
        };
        wide("::/0", world);
        wide("0.0.0.0/0", world);
        let aggregate = Address {
            identity: 11,
            aggregate: true,
            ..Address::default()
        };
        wide("10.3.0.0/16", aggregate);
        wide("fd03::/64", aggregate);
        for family in families() {
            let local = |endpoint, identity| Address {
                identity,
                local: true,
                endpoint,
                ..Address::default()
            };
            address(family.pod, local(POD, IDENTITY));
            address(family.other, local(OTHER, OTHER_IDENTITY));
            address(
                family.remote,
                Address {
                    identity: REMOTE_IDENTITY,
                    tunnel: true,
                    node: 2,
                    ..Address::default()
                },
            );
            let host = |identity, local| Address {
                identity,
                local,
                host: true,
                ..Address::default()
            };
            address(family.host, host(1, true));
            address(family.node, host(6, false));
            self.kernel.sources().unwrap().add(POD, family.pod).unwrap();
        }
        let interfaces = self.kernel.interfaces().unwrap();
        interfaces.set(IFINDEX, POD).unwrap();
        interfaces.set(OTHER_IFINDEX, OTHER).unwrap();
        self.endpoint(|_| {});
        self.datapath.endpoints.set(OTHER, self.other_endpoint()).unwrap();
        self.set(0);
    }

    pub fn other_endpoint(&self) -> Endpoint {
        Endpoint {
            identity: OTHER_IDENTITY,
            set: SET,
            ..Endpoint::default()
        }
    }

    /// The endpoint, but for what is changed.
    pub fn endpoint(&self, change: impl FnOnce(&mut Endpoint)) {
        let mut endpoint = Endpoint {
            identity: IDENTITY,
            set: SET,
            ..Endpoint::default()
        };
        change(&mut endpoint);
        self.datapath.endpoints.set(POD, endpoint).unwrap();
    }

    /// The set's flags, with a new generation.
    pub fn set(&self, flags: u32) {
        self.generation.set(self.generation.get() + 1);
        self.flags.set(flags);
        self.datapath
            .sets
            .set(
                SET,
                Set {
                    shapes_in: ALL,
                    shapes_out: ALL,
                    flags,
                    generation: self.generation.get(),
                },
            )
            .unwrap();
    }

    /// A rule more, or another; the set has another generation then.
    pub fn rule(&self, key: PolicyKey, entry: Entry) {
        self.datapath.policy.set(key, entry).unwrap();
        self.set(self.flags.get());
    }

    pub fn no_rule(&self, key: PolicyKey) {
        self.datapath.policy.remove(key).unwrap();
        self.set(self.flags.get());
    }

    /// Whether a packet passes at the pod's interface.
    pub fn passes(&self, direction: Direction, packet: &Packet) -> bool {
        self.passes_by(direction, packet, UPLINK)
    }

    /// The same for one that came in by an interface.
    pub fn passes_by(&self, direction: Direction, packet: &Packet, ingress: u32) -> bool {
        self.frame_passes(direction, &packet.frame(), ingress)
    }

    pub fn frame_passes(&self, direction: Direction, frame: &[u8], ingress: u32) -> bool {
        let hook = Hooked::Interface(direction);
        let run = self.kernel.test_run(hook, (IFINDEX, ingress), frame, 1).unwrap();
        match run.action {
            -1 => true,
            2 => false,
            other => panic!("the program returned {other}"),
        }
    }

    /// What was told since the last time.
    pub fn told(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.read()).collect()
    }

    /// The reason for which the last packet was refused.
    pub fn reason(&mut self) -> u8 {
        self.told().last().map_or(0, |event| event.reason)
    }

    pub fn count(&self, name: &str) -> u64 {
        let all = self.kernel.counters().unwrap();
        all.iter().find(|counter| counter.name == name).unwrap().value
    }
}

pub fn key(direction: Direction, identity: u32, protocol: u8, port: u16) -> PolicyKey {
    PolicyKey {
        set: SET,
        identity,
        direction,
        protocol,
        port,
    }
}

pub const ALLOW: Entry = Entry {
    deny: false,
    redirect: false,
    auth: false,
    free: false,
    derived: false,
    proxied: false,
    length: 0,
    rule: 41,
};

pub const DENY: Entry = Entry {
    deny: true,
    rule: 42,
    ..ALLOW
};
