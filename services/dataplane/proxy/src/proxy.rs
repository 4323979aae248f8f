//! The proxy of a node: what the agent makes one of, and where each connection enters.

use crate::{Front, Mesh, ProxyLimits, Routing, peers::Peers, served::Served};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use weft_drain::Watcher;
use weft_flows::FlowLog;
use weft_l7::{ServeError, serve_any, unless};
use weft_runtime::Tunnels;

/// How often idle connections are looked at.
const SWEEP: Duration = Duration::from_secs(10);

/// Takes requests from connections to endpoints.
pub struct Proxy {
    pub(crate) mesh: Arc<dyn Mesh>,
    pub(crate) tunnels: Tunnels,
    pub(crate) flows: FlowLog,
    pub(crate) limits: ProxyLimits,
    pub(crate) peers: Peers,
    /// Places for copies of requests.
    pub(crate) mirrors: Arc<Semaphore>,
    routing: Arc<Routing>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy")
            .field("endpoints", &self.peers.len())
            .finish_non_exhaustive()
    }
}

impl Proxy {
    /// With no connections yet.
    pub fn new(
        mesh: Arc<dyn Mesh>,
        routing: Arc<Routing>,
        tunnels: Tunnels,
        flows: FlowLog,
        limits: ProxyLimits,
    ) -> Arc<Self> {
        Arc::new(Self {
            mesh,
            tunnels,
            flows,
            peers: Peers::new(limits.pool.clone()),
            mirrors: Arc::new(Semaphore::new(limits.mirrors)),
            limits,
            routing,
        })
    }

    /// Routes and gateways.
    pub fn routing(&self) -> &Arc<Routing> {
        &self.routing
    }

    /// Serves one connection to its end: by itself, with its workload (`gone`), or as the drain says.
    pub async fn serve<T>(
        self: &Arc<Self>,
        io: T,
        front: Front,
        gone: CancellationToken,
        drain: Watcher,
    ) -> Result<(), ServeError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let served = Served::new(self.clone(), front, gone.clone(), Some(drain.clone()));
        let serving = pin!(serve_any(io, &self.limits.server, drain, |request| {
            served.clone().handle(request)
        }));
        unless(serving, pin!(gone.cancelled())).await.unwrap_or(Ok(()))
    }

    /// Closes idle connections until the drain starts.
    pub async fn maintain(self: Arc<Self>, drain: Watcher) {
        let sweeping = async {
            let mut every = tokio::time::interval(SWEEP);
            loop {
                every.tick().await;
                self.peers.sweep();
            }
        };
        let _: Option<()> = drain.until_draining(sweeping).await;
    }
}
