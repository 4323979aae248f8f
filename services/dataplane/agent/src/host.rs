//! Where workloads are put: by `weft-node`, in namespaces and cgroups, or without it, each on
//! loopback ports of its own.
//!
//! Owns the difference between the two; the rest of the agent sees a [`Placement`].

use crate::rootless::Rootless;
use arc_swap::ArcSwap;
use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
};
use tokio::net::{TcpSocket, TcpStream};
use weft_flows::Proof;
use weft_handoff::{AgentLink, Family, HandoffError, ListenerKind, PlacedWorkload};
use weft_proto::weft::{
    dataplane::v1::{WorkloadSpec, workload_spec::Place},
    policy::v1::WorkloadKind,
};

/// Why a workload could not be put in its place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// `weft-node` said no, or is not there.
    #[error(transparent)]
    Node(#[from] HandoffError),
    /// This agent can not place that kind.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A socket could not be made.
    #[error("cannot open the workload's ports on 127.0.0.1: {0}")]
    Ports(io::Error),
}

/// A workload in its place, before the mesh knows of it.
#[derive(Debug)]
pub struct Placement {
    /// `<node>/<namespace>/<name>/<start>`.
    pub id: String,
    /// As asked for.
    pub spec: WorkloadSpec,
    /// With addresses of its own, or sharing the node's.
    pub kind: WorkloadKind,
    /// What proves that a connection to `http` or `grpc` is the workload's.
    pub proof: Proof,
    /// Dapr's HTTP API; empty for processes that use the node's.
    pub http: Vec<TcpListener>,
    /// Dapr's gRPC API.
    pub grpc: Vec<TcpListener>,
    /// Tunnels from other nodes, for pods.
    pub tunnel: Vec<TcpListener>,
    /// Connections that the kernel redirects, for pods.
    pub capture: Vec<TcpListener>,
    /// Questions to resolvers that the kernel redirects, for pods.
    pub dns: Vec<UdpSocket>,
    /// For the launcher to start the process in.
    pub cgroup: Option<PathBuf>,
    /// 0 when there is none.
    pub cgroup_id: u64,
    /// Its number in the kernel's maps; 0 for none.
    pub endpoint: u32,
    /// A pod's own; the node's for processes.
    pub addresses: Vec<IpAddr>,
    /// What an earlier agent was told by the policy service.
    pub derived: Option<(u32, String)>,
    /// What every call must show, where nothing else proves the caller.
    pub token: Option<String>,
    /// For the launcher to give to the process.
    pub environment: HashMap<String, String>,
}

/// Where workloads are put.
#[derive(Debug, Clone)]
pub enum Host {
    /// By `weft-node`.
    Node {
        /// Requests to it; replaced when it started anew.
        link: Arc<ArcSwap<AgentLink>>,
        /// The node's own addresses.
        addresses: Arc<[IpAddr]>,
    },
    /// On ports of this process.
    Rootless(Rootless),
}

impl Host {
    /// Puts a workload in its place.
    pub async fn place(&self, spec: WorkloadSpec, attached: bool) -> Result<Placement, PlaceError> {
        match self {
            Self::Node { link, addresses } => Ok(from_node(link.load_full().place(spec).await?, addresses)),
            Self::Rootless(rootless) => rootless.place(spec, attached),
        }
    }

    /// Takes it away again.
    pub async fn remove(&self, id: &str) -> Result<(), PlaceError> {
        match self {
            Self::Node { link, .. } => Ok(link.load_full().remove(id).await?),
            Self::Rootless(rootless) => {
                rootless.remove(id);
                Ok(())
            }
        }
    }

    /// Keeps what was derived for the next agent (and for the kernel's maps).
    pub async fn derived(&self, id: &str, identity: u32, spiffe_id: &str) -> Result<(), PlaceError> {
        match self {
            Self::Node { link, .. } => Ok(link.load_full().derived(id, identity, spiffe_id).await?),
            Self::Rootless(rootless) => {
                rootless.derived(id, identity, spiffe_id);
                Ok(())
            }
        }
    }

    /// Listeners on the ports that gateways want, and no others; and which could not be had.
    pub async fn gateway_ports(
        &self,
        ports: &BTreeSet<u16>,
    ) -> Result<(Vec<(u16, TcpListener)>, Vec<(u16, String)>), PlaceError> {
        match self {
            Self::Node { link, .. } => {
                let opened = link.load_full().gateway_ports(ports).await?;
                let listener = |listener: weft_handoff::Listener| {
                    let port = listener.tcp_address()?.port();
                    Some((port, listener.into_tcp().ok()?))
                };
                Ok((
                    opened.listeners.into_iter().filter_map(listener).collect(),
                    opened.failures,
                ))
            }
            Self::Rootless(rootless) => {
                let (mut opened, mut failures) = (Vec::new(), Vec::new());
                for port in ports {
                    let at = SocketAddr::new(rootless.address(), *port);
                    match TcpListener::bind(at) {
                        Ok(listener) => opened.push((*port, listener)),
                        Err(error) => failures.push((
                            *port,
                            format!("cannot listen on {at}: {error} (ports below 1024 need weft-node, which runs as root)"),
                        )),
                    }
                }
                Ok((opened, failures))
            }
        }
    }

    /// Connects to a port of the workload's loopback: IPv4 first, as most apps listen there.
    pub async fn connect_app(&self, id: &str, kind: WorkloadKind, port: u16) -> io::Result<TcpStream> {
        let first = self
            .connect_loopback(id, kind, Ipv4Addr::LOCALHOST.into(), port)
            .await;
        match first {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => self
                .connect_loopback(id, kind, Ipv6Addr::LOCALHOST.into(), port)
                .await
                .map_err(|_| e),
            first => first,
        }
    }

    async fn connect_loopback(
        &self,
        id: &str,
        kind: WorkloadKind,
        to: IpAddr,
        port: u16,
    ) -> io::Result<TcpStream> {
        let to = SocketAddr::new(to, port);
        let stream = self.connect_from(id, kind, to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Connects to `to` from where the workload is: a pod's own namespace, else the node's.
    pub async fn connect_from(&self, id: &str, kind: WorkloadKind, to: SocketAddr) -> io::Result<TcpStream> {
        match (self, kind) {
            (Self::Node { link, .. }, WorkloadKind::Pod) => {
                let socket: OwnedFd = link
                    .load_full()
                    .socket(id, Family::of(to.ip()))
                    .await
                    .map_err(io::Error::other)?;
                TcpSocket::from_std_stream(socket.into()).connect(to).await
            }
            _ => TcpStream::connect(to).await,
        }
    }
}

/// What `weft-node` placed, in the agent's terms.
pub fn from_node(placed: PlacedWorkload, node_addresses: &[IpAddr]) -> Placement {
    let [mut http, mut grpc, mut tunnel, mut capture] = [const { Vec::new() }; 4];
    let mut dns = Vec::new();
    for listener in placed.listeners {
        let list = match listener.kind {
            ListenerKind::RuntimeHttp => &mut http,
            ListenerKind::RuntimeGrpc => &mut grpc,
            ListenerKind::Tunnel => &mut tunnel,
            ListenerKind::Capture => &mut capture,
            ListenerKind::LocalApi
            | ListenerKind::WorkloadApi
            | ListenerKind::Hubble
            | ListenerKind::Gateway => continue,
            ListenerKind::Dns => {
                dns.extend(listener.into_udp().ok());
                continue;
            }
        };
        if let Ok(socket) = listener.into_tcp() {
            list.push(socket);
        }
    }
    let pod = matches!(placed.spec.place, Some(Place::NetnsPath(_) | Place::NetnsPid(_)));
    let (kind, proof) = if pod {
        (WorkloadKind::Pod, Proof::PodListener)
    } else {
        (WorkloadKind::Process, Proof::Cgroup)
    };
    Placement {
        kind,
        proof,
        addresses: if pod {
            placed.addresses
        } else {
            node_addresses.to_vec()
        },
        id: placed.id,
        spec: placed.spec,
        http,
        grpc,
        tunnel,
        capture,
        dns,
        cgroup: placed.cgroup,
        cgroup_id: placed.cgroup_id,
        endpoint: placed.endpoint,
        derived: placed.derived,
        token: None,
        environment: HashMap::new(),
    }
}
