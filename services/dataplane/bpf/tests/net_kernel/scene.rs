//! A node with services, backends in pods, and two callers: a pod and a process.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use weft_bpf::{Backend, Endpoint, Frontend, Services, Transport, netns_cookie};
use weft_testnet::{Pod, Spawn};

use crate::actor::Actor;
use crate::rig::Rig;
use crate::talk;

/// Where backends answer.
pub const PORT: u16 = 8080;
/// What callers write.
pub const SERVICE_PORT: u16 = 80;
const CAPTURE_PORT: u16 = 15001;

pub struct Scene {
    pub services: Services,
    pub callers: [Caller; 2],
    pub backends: Vec<Pod>,
    pub rig: Rig,
}

pub struct Caller {
    pub name: &'static str,
    pub index: u32,
    pub actor: Actor,
    /// Capture listeners of its namespace, IPv4 and IPv6.
    pub captures: [TcpListener; 2],
    /// Its workload's cgroup; 0 for the pod.
    pub cgroup: u64,
    pub pod: Option<Pod>,
}

impl Scene {
    pub fn new(backends: usize) -> Self {
        Self::on(Rig::new(), backends)
    }

    pub fn on(rig: Rig, backends: usize) -> Self {
        let services = rig.kernel.services().unwrap();
        let backends = (1..=backends)
            .map(|number| {
                let name = format!("b{number}");
                let pod = rig.node.pod(&name).unwrap();
                for address in pod.addresses() {
                    talk::answer(pod.namespace(), (address, PORT).into(), &name);
                }
                pod
            })
            .collect();
        let (cgroup, cgroup_id) = rig.workload("process", 7);
        let process = Caller {
            name: "process",
            index: 7,
            captures: captures(&rig.keeper),
            actor: rig.process(&cgroup),
            cgroup: cgroup_id,
            pod: None,
        };
        let pod = rig.node.pod("caller").unwrap();
        let cookie = pod.namespace().run(netns_cookie).unwrap().unwrap();
        rig.kernel.add_namespace(cookie, 8).unwrap();
        let own = Spawn::root().cgroup(rig.node.cgroup().join("_node"));
        let keeper = Actor::new(pod.namespace(), &own);
        let below = rig.node.cgroup().join("pods");
        let pod = Caller {
            name: "pod",
            index: 8,
            captures: captures(&keeper),
            actor: Actor::nobody(pod.namespace(), &below),
            cgroup: 0,
            pod: Some(pod),
        };
        let scene = Self {
            services,
            callers: [process, pod],
            backends,
            rig,
        };
        for caller in &scene.callers {
            scene.endpoint(caller, true);
        }
        scene
    }

    /// Says whether the agent listens for what this caller's connections are captured to.
    pub fn endpoint(&self, caller: &Caller, capture: bool) {
        self.listens(caller, capture, 0);
    }

    /// The same for a caller under a policy.
    pub fn listens(&self, caller: &Caller, capture: bool, set: u32) {
        let endpoint = Endpoint {
            identity: 1000 + caller.index,
            set,
            capture,
            process: caller.pod.is_none(),
            ..Endpoint::default()
        };
        let endpoints = self.rig.kernel.endpoints().unwrap();
        endpoints.set(caller.index, endpoint).unwrap();
    }

    /// Puts a caller under a policy.
    pub fn policy(&self, caller: &Caller, set: u32) {
        self.listens(caller, true, set);
    }

    /// Makes an endpoint known that calls nobody.
    pub fn known(&self, number: u32, set: u32) {
        let endpoint = Endpoint {
            identity: number,
            set,
            ..Endpoint::default()
        };
        self.rig
            .kernel
            .endpoints()
            .unwrap()
            .set(number, endpoint)
            .unwrap();
    }

    /// Both addresses, both protocols.
    pub fn set(&mut self, number: u8, capture: bool, backends: &[usize]) -> Vec<SocketAddr> {
        let mut removed = Vec::new();
        for v6 in [false, true] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let frontend = Frontend {
                    address: service(number, v6),
                    transport,
                };
                let backends: Vec<Backend> = backends
                    .iter()
                    .map(|at| Backend {
                        address: self.backend(*at, v6),
                        endpoint: 0,
                    })
                    .collect();
                let change = self.services.set(frontend, capture, &backends).unwrap();
                assert_eq!(change.left_out, 0);
                removed.extend(change.removed);
            }
        }
        removed
    }

    /// A backend's address.
    pub fn backend(&self, at: usize, v6: bool) -> SocketAddr {
        let [v4_address, v6_address] = self.backends[at].addresses();
        SocketAddr::new(if v6 { v6_address } else { v4_address }, PORT)
    }

    pub fn count(&self, name: &str) -> u64 {
        self.rig.count(name)
    }
}

fn captures(keeper: &Actor) -> [TcpListener; 2] {
    [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
        .map(|address: IpAddr| keeper.listen((address, CAPTURE_PORT).into(), 16))
}

/// A service's address.
pub fn service(number: u8, v6: bool) -> SocketAddr {
    let address: IpAddr = if v6 {
        Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(10, 96, 0, number).into()
    };
    SocketAddr::new(address, SERVICE_PORT)
}

/// How a socket writes an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    V4,
    V6,
    /// IPv4 on an IPv6 socket.
    Mapped,
}

impl Written {
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Mapped];

    pub fn is_v6(self) -> bool {
        self == Self::V6
    }

    pub fn put(self, address: SocketAddr) -> SocketAddr {
        match (self, address.ip()) {
            (Self::Mapped, IpAddr::V4(v4)) => (v4.to_ipv6_mapped(), address.port()).into(),
            _ => address,
        }
    }
}
