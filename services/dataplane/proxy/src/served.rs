//! One served connection: who opened it and where to, and what its requests have learnt of the mesh
//! so far.

use crate::{
    Backends, Listeners, Member, Proxy, Slot,
    way::{Goal, Source, Way},
};
use http::HeaderValue;
use parking_lot::Mutex;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_drain::Watcher;
use weft_flows::{Party, Proof, ServiceName, bounded_authority};
use weft_route::spec::BackendRef;
use weft_runtime::{AppContext, Endpoint};
use weft_tls::PeerIdentity;

/// Endpoints that are kept in mind for one connection.
const MAX_WAYS: usize = 64;
/// Backends likewise.
const MAX_BACKENDS: usize = 32;

/// Who opened a connection.
#[derive(Debug, Clone)]
pub enum Caller {
    /// A workload of this node.
    Workload(Arc<AppContext>),
    /// The agent, in the place of a workload of this node: what its requests say of who calls whom is true.
    Runtime(Arc<AppContext>),
    /// One of another node, by tunnel.
    Tunnel {
        /// As the handshake proved.
        peer: Arc<PeerIdentity>,
        /// The workload that the other agent names.
        claimed: Option<String>,
    },
    /// Somebody who asks a gateway: from then on the gateway calls.
    Gateway {
        /// As whom.
        context: Arc<AppContext>,
        /// Who asked, as the socket says.
        client: IpAddr,
    },
}

/// Where a connection was meant to go.
#[derive(Debug, Clone)]
pub enum To {
    /// A Service: where its routes say, or to one of its own endpoints.
    Service {
        /// Which, at which port.
        service: BackendRef,
        /// Its routes.
        routes: Arc<Slot>,
    },
    /// One workload, at an address of its own.
    Workload(Member),
    /// Somebody outside the mesh.
    Outside(Arc<Party>, SocketAddr),
    /// A gateway: where its routes say.
    Gateway(Arc<Listeners>),
}

/// A connection to be served.
#[derive(Debug, Clone)]
pub struct Front {
    /// Who opened it.
    pub caller: Caller,
    /// Where to.
    pub to: To,
    /// The address that was asked for.
    pub address: SocketAddr,
    /// The port that it came from; 0 when that is not known.
    pub source_port: u16,
}

pub(crate) struct Served {
    pub proxy: Arc<Proxy>,
    pub front: Front,
    /// The Service that was asked for.
    pub service: Option<Arc<ServiceName>>,
    /// Ends what has become of the connection, when it is no HTTP any more.
    pub gone: CancellationToken,
    /// Likewise; none where requests come by no connection.
    pub drain: Option<Watcher>,
    changes: watch::Receiver<u64>,
    /// Only ever locked by this connection's own requests.
    known: Mutex<Known>,
}

/// What was learnt of the mesh as it was at one moment.
#[derive(Default)]
struct Known {
    at: Option<u64>,
    source: Option<Arc<Source>>,
    ways: Vec<Arc<Way>>,
    backends: Vec<(BackendRef, Arc<Backends>)>,
    /// Whom the last request was for: mostly the next one as well.
    authority: Arc<str>,
}

impl Served {
    pub fn new(
        proxy: Arc<Proxy>,
        front: Front,
        gone: CancellationToken,
        drain: Option<Watcher>,
    ) -> Arc<Self> {
        let changes = proxy.mesh.changes();
        let service = match &front.to {
            To::Service { service, .. } => Some(Arc::new(ServiceName {
                namespace: service.namespace.clone(),
                name: service.name.clone(),
            })),
            _ => None,
        };
        Arc::new(Self {
            proxy,
            front,
            service,
            gone,
            drain,
            changes,
            known: Mutex::default(),
        })
    }

    /// Notified after each change of the mesh.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    fn known(&self) -> parking_lot::MutexGuard<'_, Known> {
        // Before anything is read, so that no change is missed.
        let now = Some(*self.changes.borrow());
        let mut known = self.known.lock();
        if known.at != now {
            *known = Known {
                at: now,
                ..Known::default()
            };
        }
        known
    }

    /// Who sends, as the mesh has it now; `None` when it does not know them any more.
    pub fn source(&self) -> Option<Arc<Source>> {
        let mut known = self.known();
        if known.source.is_none() {
            known.source = self.look_up_source().map(Arc::new);
        }
        known.source.clone()
    }

    fn look_up_source(&self) -> Option<Source> {
        let mesh = &self.proxy.mesh;
        Some(match &self.front.caller {
            Caller::Workload(context) | Caller::Runtime(context) => {
                let context = mesh.caller(context.workload())?;
                Source {
                    party: context.party().clone(),
                    proof: context.proof(),
                    context: Some(context),
                    egress: true,
                }
            }
            Caller::Tunnel { peer, claimed } => Source {
                party: mesh.tunnel_peer(peer, claimed.as_deref())?,
                proof: Proof::TunnelSvid,
                context: None,
                egress: false,
            },
            Caller::Gateway { context, .. } => Source {
                party: context.party().clone(),
                proof: context.proof(),
                context: Some(context.clone()),
                egress: false,
            },
        })
    }

    /// Whom a request is for, as flows keep it.
    pub fn authority(&self, host: &HeaderValue) -> Arc<str> {
        let mut known = self.known();
        if *known.authority.as_bytes() != *host.as_bytes() {
            known.authority = bounded_authority(host.to_str().unwrap_or_default());
        }
        known.authority.clone()
    }

    /// The way to an endpoint.
    pub fn way(&self, source: &Arc<Source>, goal: Goal, two: bool) -> Arc<Way> {
        let mut known = self.known();
        if let Some(way) = known.ways.iter().find(|way| way.leads(&goal, two)) {
            return way.clone();
        }
        let way = Arc::new(Way::new(&self.proxy, source, goal, two));
        known.ways.retain(|old| !old.is_to(&way.goal, two));
        if known.ways.len() >= MAX_WAYS {
            known.ways.remove(0);
        }
        known.ways.push(way.clone());
        way
    }

    /// The endpoints of a Service's port; `None` when there is no such thing.
    pub fn backends(&self, service: &BackendRef) -> Option<Arc<Backends>> {
        let mut known = self.known();
        if let Some((_, backends)) = known.backends.iter().find(|(name, _)| name == service) {
            return Some(backends.clone());
        }
        let v4 = self.front.address.ip().to_canonical().is_ipv4();
        let backends = self.proxy.mesh.backends(service, v4)?;
        if known.backends.len() >= MAX_BACKENDS {
            known.backends.remove(0);
        }
        known.backends.push((service.clone(), backends.clone()));
        Some(backends)
    }

    /// A single endpoint as the mesh has it now.
    pub fn present(&self, member: &Member) -> Option<Member> {
        let endpoint = self.endpoint(&member.endpoint)?;
        Some(Member {
            endpoint,
            address: member.address,
        })
    }

    fn endpoint(&self, known: &Arc<Endpoint>) -> Option<Arc<Endpoint>> {
        self.proxy.mesh.endpoint(known.workload())
    }
}
