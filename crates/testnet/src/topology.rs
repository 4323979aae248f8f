//! The network: nodes on one underlay, pods behind their node.
//!
//! Node i has 172.30.0.i and fd00:30::i on a bridge in a namespace of its own; its pods have
//! 10.244.i.k and fd00:244:i::k, point to point over a veth, and reach every other pod by routes
//! over the nodes. Nothing of this is in the caller's namespace, so networks do not meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::capture::Capture;
use crate::error::Error;
use crate::home::Home;
use crate::namespace::Namespace;
use crate::process::{self, Process, Spawn};

/// A network. Dropping it kills its processes and removes everything it made.
#[derive(Debug)]
pub struct Testnet {
    nodes: Mutex<Vec<Node>>,
    underlay: Namespace,
    home: Arc<Home>,
}

/// A node: a namespace with an address on the underlay.
#[derive(Debug, Clone)]
pub struct Node {
    namespace: Namespace,
    index: u8,
    pods: Arc<Mutex<u8>>,
    uplink: Link,
    dir: PathBuf,
    cgroup: PathBuf,
    default_cgroup: PathBuf,
}

/// A pod: a namespace behind a node, with an address of its own.
#[derive(Debug, Clone)]
pub struct Pod {
    namespace: Namespace,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    link: Link,
    node_link: Link,
}

/// One end of a veth pair.
#[derive(Debug, Clone)]
pub struct Link {
    namespace: Namespace,
    name: String,
}

const MAX: u8 = 250;

impl Testnet {
    /// An empty network. First removes what dead processes left of theirs.
    pub fn new() -> Result<Self, Error> {
        let home = Arc::new(Home::new()?);
        let underlay = namespace(&home, "_underlay")?;
        underlay.ip("link add br0 type bridge\nlink set br0 up\n")?;
        Ok(Self {
            nodes: Mutex::default(),
            underlay,
            home,
        })
    }

    /// What its folder and its cgroup are called: `<pid>-<n>`.
    pub fn key(&self) -> &str {
        &self.home.key
    }

    /// Its folder, `/run/weft-test/<key>`, for sockets and files; removed with the network.
    pub fn dir(&self) -> &Path {
        &self.home.dir
    }

    /// Its cgroup, `<cgroup2>/weft-test/<key>`; removed with the network, with all processes in it.
    pub fn cgroup(&self) -> &Path {
        &self.home.cgroup
    }

    /// Its own bpf file system, mounted at the first call.
    pub fn bpffs(&self) -> Result<PathBuf, Error> {
        self.home.bpffs()
    }

    /// A new node. The name is used in folder names: lower-case letters, digits and dashes.
    pub fn node(&self, name: &str) -> Result<Node, Error> {
        check_name(name)?;
        let mut nodes = lock(&self.nodes);
        let index = u8::try_from(nodes.len() + 1).ok().filter(|index| *index <= MAX);
        let index = index.ok_or(Error::Full("node"))?;
        let namespace = namespace(&self.home, name)?;
        for (key, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")] {
            namespace.sysctl(key, value)?;
        }
        self.underlay.ip(&format!(
            "link add node{index} type veth peer name eth0 netns {}\n\
             link set node{index} master br0 up\n",
            namespace.path().display()
        ))?;
        let node = Node {
            uplink: Link {
                namespace: namespace.clone(),
                name: "eth0".into(),
            },
            namespace,
            index,
            pods: Arc::default(),
            dir: self.home.dir.join("ns"),
            cgroup: self.home.cgroup.join(name),
            default_cgroup: default_cgroup(&self.home),
        };
        node.namespace.ip(&format!(
            "link set eth0 up\n\
             address add {}/24 dev eth0\n\
             address add {}/64 dev eth0 nodad\n",
            node.v4(),
            node.v6()
        ))?;
        for other in nodes.iter() {
            other.namespace.ip(&node.routes())?;
            node.namespace.ip(&other.routes())?;
        }
        nodes.push(node.clone());
        Ok(node)
    }

    /// The bridge's end of a node's uplink: what every packet between nodes passes.
    pub fn underlay(&self, node: &Node) -> Link {
        Link {
            namespace: self.underlay.clone(),
            name: format!("node{}", node.index),
        }
    }

    /// Starts a command in the caller's own namespace but in the network's cgroup, so that it goes
    /// when the network goes.
    pub fn spawn(&self, command: Command, spawn: &Spawn) -> Result<Process, Error> {
        process::spawn(command, None, spawn, &default_cgroup(&self.home))
    }
}

impl Node {
    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.namespace.name()
    }

    /// Its IPv4 address on the underlay.
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, 0, self.index)
    }

    /// Its IPv6 address on the underlay.
    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, self.index.into())
    }

    /// Its end of the link to the underlay.
    pub fn uplink(&self) -> &Link {
        &self.uplink
    }

    /// The node's subtree of cgroups, `<network's cgroup>/<node>`. Made by whoever puts something
    /// in; removed with the network.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A new pod on this node.
    pub fn pod(&self, name: &str) -> Result<Pod, Error> {
        check_name(name)?;
        let mut pods = lock(&self.pods);
        if *pods >= MAX {
            return Err(Error::Full("pod"));
        }
        *pods += 1;
        // .1 and ::1 are the node's end of every pod's link.
        let (node, pod) = (self.index, *pods + 1);
        let v4 = Ipv4Addr::new(10, 244, node, pod);
        let v6 = Ipv6Addr::new(0xfd00, 0x244, node.into(), 0, 0, 0, 0, pod.into());
        let path = self.dir.join(format!("{}.{name}", self.name()));
        let namespace = Namespace::create(name, path, self.default_cgroup.clone())?;
        let link = format!("pod{pod}");
        self.namespace.ip(&format!(
            "link add {link} type veth peer name eth0 netns {}\n\
             link set {link} up\n\
             address add 10.244.{node}.1/32 dev {link}\n\
             address add fe80::1/64 dev {link} nodad\n\
             route add {v4}/32 dev {link}\n\
             route add {v6}/128 dev {link}\n",
            namespace.path().display()
        ))?;
        namespace.ip(&format!(
            "link set eth0 up\n\
             address add {v4}/32 dev eth0\n\
             address add {v6}/128 dev eth0 nodad\n\
             route add 10.244.{node}.1/32 dev eth0\n\
             route add default via 10.244.{node}.1\n\
             route add default via fe80::1 dev eth0\n"
        ))?;
        Ok(Pod {
            link: Link {
                namespace: namespace.clone(),
                name: "eth0".into(),
            },
            node_link: Link {
                namespace: self.namespace.clone(),
                name: link,
            },
            namespace,
            v4,
            v6,
        })
    }

    /// What other nodes need to reach this node's pods.
    fn routes(&self) -> String {
        let index = self.index;
        format!(
            "route add 10.244.{index}.0/24 via {}\nroute add fd00:244:{index:x}::/64 via {}\n",
            self.v4(),
            self.v6()
        )
    }
}

impl Pod {
    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.namespace.name()
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.v6
    }

    /// Both.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Its end of the link to the node.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// The node's end of that link.
    pub fn node_link(&self) -> &Link {
        &self.node_link
    }
}

impl Link {
    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace it is in.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Takes it down or up again.
    pub fn set_up(&self, up: bool) -> Result<(), Error> {
        self.namespace.ip(&format!(
            "link set {} {}\n",
            self.name,
            if up { "up" } else { "down" }
        ))
    }

    /// Begins to record what passes, in both directions.
    pub fn capture(&self) -> Result<Capture, Error> {
        Capture::start(&self.namespace, &self.name)
    }
}

impl Namespace {
    /// Its loopback, to record what processes inside say to each other.
    pub fn loopback(&self) -> Link {
        Link {
            namespace: self.clone(),
            name: "lo".into(),
        }
    }
}

fn namespace(home: &Home, name: &str) -> Result<Namespace, Error> {
    Namespace::create(name, home.dir.join("ns").join(name), default_cgroup(home))
}

fn default_cgroup(home: &Home) -> PathBuf {
    home.cgroup.join("_procs")
}

fn check_name(name: &str) -> Result<(), Error> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 63 || !name.chars().all(fits) {
        return Err(Error::Name {
            name: name.into(),
            why: "lower-case letters, digits and dashes, at most 63",
        });
    }
    Ok(())
}

/// What is behind these locks is whole after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
