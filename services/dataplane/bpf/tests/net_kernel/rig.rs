//! One node with its programs loaded, for a test of its own.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use weft_bpf::{Kernel, Options, Origin, Origins, Workload, cgroup_id, pin_dir};
use weft_testnet::{Node, Spawn, Testnet};

use crate::actor::Actor;

pub const V4: Ipv4Addr = Ipv4Addr::LOCALHOST;
pub const V6: Ipv6Addr = Ipv6Addr::LOCALHOST;

pub struct Rig {
    pub kernel: Kernel,
    pub options: Options,
    pub origins: Origins,
    /// Runs where weft-node does, in `<node>/_node`, and makes the listeners.
    pub keeper: Actor,
    pub node: Node,
    pub net: Testnet,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Options)) -> Self {
        let net = Testnet::new().unwrap();
        let node = net.node("n").unwrap();
        Self::on(net, node, change)
    }

    pub fn on(net: Testnet, node: Node, change: impl FnOnce(&mut Options)) -> Self {
        fs::create_dir_all(node.cgroup()).unwrap();
        let mut options = Options::new(node.cgroup(), pin_dir(&net.bpffs().unwrap(), node.name()));
        change(&mut options);
        let kernel = Kernel::load(&options).unwrap();
        let origins = Origins::from_fd(kernel.origins_map_fd().unwrap()).unwrap();
        let keeper = Actor::new(
            node.namespace(),
            &Spawn::root().cgroup(node.cgroup().join("_node")),
        );
        Self {
            kernel,
            options,
            origins,
            keeper,
            node,
            net,
        }
    }

    /// A listener as weft-node makes them.
    pub fn listener(&self) -> (TcpListener, SocketAddr) {
        listening(self.keeper.listen((V4, 0).into(), 128))
    }

    /// A cgroup that is a workload, and its id.
    pub fn workload(&self, name: &str, index: u32) -> (PathBuf, u64) {
        let (path, id) = self.cgroup(name);
        self.kernel
            .add_workload(
                id,
                Workload {
                    index,
                    identity: 1000 + index,
                },
            )
            .unwrap();
        (path, id)
    }

    /// A cgroup in the subtree that is none.
    pub fn cgroup(&self, name: &str) -> (PathBuf, u64) {
        let path = self.node.cgroup().join(name);
        fs::create_dir_all(&path).unwrap();
        let id = cgroup_id(&path).unwrap();
        (path, id)
    }

    /// An unprivileged process on the node, in a cgroup.
    pub fn process(&self, cgroup: &std::path::Path) -> Actor {
        Actor::nobody(self.node.namespace(), cgroup)
    }

    /// One on the node but not in its cgroup.
    pub fn outsider(&self) -> Actor {
        Actor::new(self.node.namespace(), &Spawn::nobody())
    }

    /// Accepts the next connection; it must be the one from `from`.
    pub fn accept(&self, listener: &TcpListener, from: SocketAddr) -> Option<Origin> {
        let (stream, peer) = listener.accept().unwrap();
        assert_eq!(
            SocketAddr::new(peer.ip().to_canonical(), peer.port()),
            canonical(from),
            "another connection"
        );
        self.origins.read(&stream).unwrap()
    }

    pub fn count(&self, name: &str) -> u64 {
        count(&self.kernel, name)
    }
}

pub fn listening(listener: TcpListener) -> (TcpListener, SocketAddr) {
    let address = listener.local_addr().unwrap();
    (listener, address)
}

pub fn count(kernel: &Kernel, name: &str) -> u64 {
    kernel
        .counters()
        .unwrap()
        .into_iter()
        .find(|counter| counter.name == name)
        .unwrap()
        .value
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
