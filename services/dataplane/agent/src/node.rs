//! The other half of the node: `weft-node`, or its absence.
//!
//! Owns the link: what is handed over at the start, the node's own listeners, what is told later,
//! and connecting again when `weft-node` started anew.

use crate::{
    agent::{Environment, Shared, active, inactive},
    backoff::Backoff,
    capture,
    config::AgentConfig,
    dns,
    error::AgentError,
    harden,
    host::{Host, Placement, from_node},
    kernel::Handed,
    listen::{self, Api},
    rootless::Rootless,
    table::Table,
    workload_api,
};
use arc_swap::ArcSwap;
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use weft_bpf::{Conntrack, Counters, Origins, Questions};
use weft_drain::Watcher;
use weft_handoff::{AgentLink, Connected, Event, Events, Hello, ListenerKind};
use weft_proto::weft::dataplane::v1::Capability;

/// Name of the map of who connected, as `weft-node` hands it over.
const ORIGINS: &str = "origins";
/// Of what the programs tell of packets, and of what they count.
const EVENTS: &str = "events";
const COUNTERS: &str = "counters";
/// Of whom questions to resolvers were for, and of connections.
const ASKED: &str = "asked";
const CONNTRACK: &str = "conntrack";

/// What the start needs of it.
pub struct NodeSide {
    /// The node's name.
    pub node: String,
    /// Where workloads are put.
    pub host: Host,
    /// What was here before this agent.
    pub replayed: Vec<Placement>,
    /// What is enforced, what not and why.
    pub capabilities: Vec<Capability>,
    link: Link,
}

enum Link {
    Node {
        hello: Box<Hello>,
        events: Events,
        current: Arc<ArcSwap<AgentLink>>,
        addresses: Arc<[IpAddr]>,
        /// To connect again.
        path: Option<PathBuf>,
    },
    Rootless,
}

impl NodeSide {
    /// Takes what is handed over; without `weft-node`, what was kept in `workloads`.
    pub async fn connect(
        config: &AgentConfig,
        environment: Environment,
        workloads: &Path,
    ) -> Result<Self, AgentError> {
        let (connected, path) = match environment {
            Environment::Handoff(fd) => (AgentLink::start(fd).await?, None),
            Environment::HandoffPath(path) => (AgentLink::connect(&path).await?, Some(path)),
            Environment::Rootless => return Self::rootless(config, workloads),
        };
        let Connected {
            link,
            hello,
            workloads,
            events,
        } = connected;
        let current = Arc::new(ArcSwap::from_pointee(link));
        let addresses: Arc<[IpAddr]> = hello.addresses.clone().into();
        let mut capabilities = hello.capabilities.clone();
        capabilities.push(hardening());
        Ok(Self {
            node: hello.node.clone(),
            host: Host::Node {
                link: current.clone(),
                addresses: addresses.clone(),
            },
            replayed: workloads.into_iter().map(|w| from_node(w, &addresses)).collect(),
            capabilities,
            link: Link::Node {
                hello: Box::new(hello),
                events,
                current,
                addresses,
                path,
            },
        })
    }

    /// The kernel's policy tables; none without `weft-node`, or where it could not make any.
    pub fn kernel(&mut self) -> Result<Option<Handed>, AgentError> {
        let Link::Node { hello, .. } = &mut self.link else {
            return Ok(None);
        };
        kernel(hello)
    }

    /// What the kernel's programs tell of packets, and what they count.
    pub fn packets(&mut self) -> Result<Option<(weft_bpf::Events, Option<Counters>)>, AgentError> {
        let Link::Node { hello, .. } = &mut self.link else {
            return Ok(None);
        };
        let Some(map) = hello.maps.remove(EVENTS) else {
            return Ok(None);
        };
        let counters = hello.maps.remove(COUNTERS).map(Counters::from_fd).transpose()?;
        Ok(Some((weft_bpf::Events::from_fd(map)?, counters)))
    }

    /// Whether there is no weft-node.
    pub fn is_rootless(&self) -> bool {
        matches!(self.link, Link::Rootless)
    }

    fn rootless(config: &AgentConfig, workloads: &Path) -> Result<Self, AgentError> {
        let node = config.node_name();
        let rootless = Rootless::new(&node, config.address, workloads.into())?;
        const WHY: &str = "without weft-node (needs root)";
        Ok(Self {
            replayed: rootless.restore(),
            capabilities: vec![
                active("runtime-http"),
                active("tunnel"),
                hardening(),
                inactive(
                    "kernel-attribution",
                    &format!("{WHY}: callers are known by their port and token"),
                ),
                inactive("pods", &format!("{WHY}: no network namespace can be entered")),
                inactive(
                    "kernel-policy",
                    &format!("{WHY}: policy is enforced on what passes the agent, not on direct connections"),
                ),
            ],
            node,
            host: Host::Rootless(rootless),
            link: Link::Rootless,
        })
    }

    /// The kernel's records of who connected; none where it keeps none.
    pub fn origins(&mut self) -> Result<Option<Arc<Origins>>, AgentError> {
        match &mut self.link {
            Link::Node { hello, .. } => origins(hello),
            Link::Rootless => Ok(None),
        }
    }

    /// The kernel's records of whom questions to resolvers were for; none where it keeps none.
    pub fn questions(&mut self) -> Result<Option<Arc<Questions>>, AgentError> {
        match &mut self.link {
            Link::Node { hello, .. } => questions(hello),
            Link::Rootless => Ok(None),
        }
    }

    /// The connections that the kernel knows, to look at.
    pub fn conntrack(&mut self) -> Result<Option<Arc<Conntrack>>, AgentError> {
        match &mut self.link {
            Link::Node { hello, .. } => conntrack(hello),
            Link::Rootless => Ok(None),
        }
    }

    /// By which other nodes reach this one.
    pub fn addresses(&self, config: &AgentConfig) -> Vec<IpAddr> {
        match &self.link {
            Link::Node { addresses, .. } => addresses.to_vec(),
            Link::Rootless => vec![config.address],
        }
    }

    /// The local API's listener, and where launchers find it.
    pub fn local_socket(&mut self, config: &AgentConfig) -> Result<(UnixListener, PathBuf), AgentError> {
        let found = self.socket(ListenerKind::LocalApi, &config.local_socket)?;
        found.ok_or(AgentError::Missing("local socket"))
    }

    /// The listener of Hubble's socket; none from a node that knows of none.
    pub fn hubble_socket(&mut self, config: &AgentConfig) -> Result<Option<UnixListener>, AgentError> {
        let found = self.socket(ListenerKind::Hubble, &config.hubble_socket())?;
        Ok(found.map(|(listener, _)| listener))
    }

    /// A unix socket that was handed over, or made here where there is no `weft-node`.
    fn socket(
        &mut self,
        kind: ListenerKind,
        own: &Path,
    ) -> Result<Option<(UnixListener, PathBuf)>, AgentError> {
        let Link::Node { hello, .. } = &mut self.link else {
            let listener = weft_rpc::bind_local(own)?;
            return Ok(Some((listener, own.to_owned())));
        };
        let Some(at) = hello.listeners.iter().position(|l| l.kind == kind) else {
            return Ok(None);
        };
        let listener = hello.listeners.remove(at);
        let path = PathBuf::from(&listener.address);
        let fail = |source| AgentError::Listener {
            address: path.display().to_string(),
            source,
        };
        let socket = listener.into_unix().map_err(fail)?;
        socket.set_nonblocking(true).map_err(fail)?;
        Ok(Some((UnixListener::from_std(socket).map_err(fail)?, path)))
    }
}

/// Runs the link until the drain.
pub async fn run(
    side: NodeSide,
    shared: Arc<Shared>,
    table: Table,
    config: AgentConfig,
    mut drain: Watcher,
) -> Result<(), AgentError> {
    let Link::Node {
        hello,
        mut events,
        current,
        addresses,
        path,
    } = side.link
    else {
        return rootless(shared, config, drain).await;
    };
    tokio::select! {
        () = shared.settled.cancelled() => {}
        () = drain.draining() => return Ok(()),
    }
    let mut replaced = serve_node(&shared, *hello)?;
    tell_ready(&current.load_full()).await;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = drain.draining() => return Ok(()),
        };
        match event {
            Some(Event::Placed(placed)) => table.placed(from_node(*placed, &addresses)).await,
            Some(Event::Gone { id, reason }) => table.gone(id, reason).await,
            None => {
                let Some(path) = &path else {
                    return Err(AgentError::NodeGone);
                };
                tracing::warn!("weft-node is gone; what runs goes on, connecting again");
                let Some(connected) = again(path, &mut drain).await else {
                    return Ok(());
                };
                replaced.cancel();
                let mut hello = connected.hello;
                let tables = kernel(&mut hello)?;
                shared.origins.store(origins(&mut hello)?);
                shared.dns.questions.store(questions(&mut hello)?);
                shared.dns.conntrack.store(conntrack(&mut hello)?);
                replaced = serve_node(&shared, hello)?;
                let placements = connected.workloads.into_iter().map(|w| from_node(w, &addresses));
                current.store(Arc::new(connected.link));
                table.replayed(placements.collect()).await;
                if let (Some(writer), Some(tables)) = (&shared.kernel, tables) {
                    writer.replace(tables).await;
                }
                events = connected.events;
                tell_ready(&current.load_full()).await;
            }
        }
    }
}

async fn again(path: &Path, drain: &mut Watcher) -> Option<Connected> {
    let mut backoff = Backoff::upstream();
    loop {
        tokio::select! {
            () = tokio::time::sleep(backoff.pause()) => {}
            () = drain.draining() => return None,
        }
        match AgentLink::connect(path).await {
            Ok(connected) => return Some(connected),
            Err(error) => tracing::debug!(%error, "weft-node"),
        }
    }
}

async fn tell_ready(link: &AgentLink) {
    if let Err(error) = link.ready().await {
        tracing::warn!(%error, "weft-node was not told that this agent is ready");
    }
}

/// The kernel's records of who connected.
fn origins(hello: &mut Hello) -> Result<Option<Arc<Origins>>, AgentError> {
    let map = hello.maps.remove(ORIGINS);
    let origins = map.map(|map| Origins::from_fd(map).map(Arc::new));
    Ok(origins.transpose()?)
}

/// The kernel's records of whom questions were for. A node of an earlier release has none, and sends none.
fn questions(hello: &mut Hello) -> Result<Option<Arc<Questions>>, AgentError> {
    let map = hello.maps.remove(ASKED);
    Ok(map.map(|map| Questions::from_fd(map).map(Arc::new)).transpose()?)
}

fn conntrack(hello: &mut Hello) -> Result<Option<Arc<Conntrack>>, AgentError> {
    let map = hello.maps.remove(CONNTRACK);
    Ok(map.map(|map| Conntrack::reading(map).map(Arc::new)).transpose()?)
}

/// The kernel's policy tables. A node that has some of them only is of another release.
fn kernel(hello: &mut Hello) -> Result<Option<Handed>, AgentError> {
    if !hello.maps.contains_key("sets") {
        return Ok(None);
    }
    Ok(Some(Handed::take(&mut hello.maps)?))
}

/// Starts accepting on the node's own listeners; cancelling the token ends it.
fn serve_node(shared: &Arc<Shared>, hello: Hello) -> Result<CancellationToken, AgentError> {
    let replaced = CancellationToken::new();
    let origins = shared.origins.load_full();
    shared.view.locals.set_node_captures(false);
    for listener in hello.listeners {
        let (kind, address) = (listener.kind, listener.address.clone());
        let fail = |source| AgentError::Listener {
            address: address.clone(),
            source,
        };
        if kind == ListenerKind::WorkloadApi {
            let socket = listener.into_unix().map_err(fail)?;
            socket.set_nonblocking(true).map_err(fail)?;
            let socket = UnixListener::from_std(socket).map_err(fail)?;
            workload_api::serve(shared, socket, replaced.clone());
            continue;
        }
        if kind.is_unix() {
            continue;
        }
        if kind == ListenerKind::Dns {
            let socket = listener.into_udp().map_err(fail)?;
            let socket = dns::to_tokio(&socket).map_err(fail)?;
            tokio::spawn(dns::attributed(shared.clone(), socket, replaced.clone()));
            continue;
        }
        let socket = listener.into_tcp().map_err(fail)?;
        let socket = listen::to_tokio(&socket).map_err(fail)?;
        let api = match kind {
            ListenerKind::RuntimeHttp => Api::Http,
            ListenerKind::RuntimeGrpc => Api::Grpc,
            ListenerKind::Tunnel => {
                tunnels(shared, socket, replaced.clone());
                continue;
            }
            ListenerKind::Capture => {
                tokio::spawn(capture::attributed(shared.clone(), socket, replaced.clone()));
                shared.view.locals.set_node_captures(origins.is_some());
                shared.view.mesh.journal.write().all();
                shared.view.mesh.journal.notify();
                continue;
            }
            ListenerKind::LocalApi
            | ListenerKind::WorkloadApi
            | ListenerKind::Hubble
            | ListenerKind::Gateway
            | ListenerKind::Dns => continue,
        };
        let Some(origins) = origins.clone() else {
            tracing::warn!(
                address,
                "not served: without the kernel's records nobody's calls can be known"
            );
            continue;
        };
        tokio::spawn(listen::attributed(
            shared.clone(),
            origins,
            socket,
            api,
            replaced.clone(),
        ));
    }
    Ok(replaced)
}

async fn rootless(shared: Arc<Shared>, config: AgentConfig, mut drain: Watcher) -> Result<(), AgentError> {
    let address = SocketAddr::new(config.address, config.tunnel_port);
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| AgentError::Bind {
            address: address.to_string(),
            source,
        })?;
    tunnels(&shared, listener, CancellationToken::new());
    drain.draining().await;
    Ok(())
}

fn tunnels(shared: &Arc<Shared>, listener: TcpListener, gone: CancellationToken) {
    let who = weft_tunnel::Local::Shared(shared.identities.clone());
    let shared = shared.clone();
    tokio::spawn(async move { shared.serve_tunnels(listener, who, gone).await });
}

fn hardening() -> Capability {
    if harden::hardened() {
        active("hardening")
    } else {
        inactive(
            "hardening",
            "the agent runs inside another process; as weft-agent it gives up capabilities and system calls",
        )
    }
}
