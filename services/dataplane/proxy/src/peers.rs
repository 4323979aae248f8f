//! The HTTP connections to endpoints. Everything that must be the same for two requests to share
//! them is in the key: to workloads of this node the agent is the only one that connects, so all
//! callers share; across a tunnel, and to the outside, each caller has its own.

use crate::{Answers, Mesh};
use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use parking_lot::RwLock;
use std::{collections::HashMap, io, net::SocketAddr, sync::Arc};
use weft_flows::Party;
use weft_l7::{
    Body, Connection, Connector, InFlight, MuxConnection, MuxConnector, MuxPool, Pool, PoolLimits, SendError,
};
use weft_runtime::{AppContext, Endpoint, Place, Tunnels};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// Whose connections they are; empty for those to workloads of this node.
    caller: Arc<str>,
    /// The workload that answers; empty outside the mesh.
    callee: Arc<str>,
    place: Option<Place>,
    address: SocketAddr,
    two: bool,
}

/// Connections to one endpoint.
#[derive(Clone)]
pub(crate) enum Peer {
    One(Arc<Pool>),
    Two(Arc<MuxPool>),
    /// None are needed: the agent answers who asks.
    Agent(Arc<dyn Answers>, Arc<Party>),
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::One(_) => "One",
            Self::Two(_) => "Two",
            Self::Agent(..) => "Agent",
        })
    }
}

impl Peer {
    /// On the heap: within the future of the whole request it would be moved with that several times,
    /// and an idle connection would keep room for it.
    pub fn send(
        &self,
        request: Request<Body>,
        counted: Option<InFlight>,
    ) -> BoxFuture<'_, Result<Response<Body>, Box<SendError>>> {
        match self {
            Self::One(pool) => pool.send(request, counted).boxed(),
            Self::Two(pool) => pool.send(request, counted).boxed(),
            Self::Agent(answers, from) => async move {
                let answer = answers.answer(from, request).await;
                drop(counted);
                Ok(answer)
            }
            .boxed(),
        }
    }

    /// Whether the headers of a request come back with its answer, as long as that has not ended.
    pub fn gives_back(&self) -> bool {
        matches!(self, Self::One(_))
    }

    fn is_unused(&self) -> bool {
        match self {
            Self::One(pool) => Arc::strong_count(pool) == 1 && pool.is_unused(),
            Self::Two(pool) => Arc::strong_count(pool) == 1 && pool.is_unused(),
            Self::Agent(..) => true,
        }
    }

    fn sweep(&self) {
        match self {
            Self::One(pool) => pool.sweep(),
            Self::Two(pool) => pool.sweep(),
            Self::Agent(..) => {}
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Peers {
    limits: PoolLimits,
    all: RwLock<HashMap<Key, Peer>>,
}

impl Peers {
    pub fn new(limits: PoolLimits) -> Self {
        Self {
            limits,
            all: RwLock::default(),
        }
    }

    /// To a workload of this node.
    pub fn local(
        &self,
        mesh: &Arc<dyn Mesh>,
        endpoint: &Arc<Endpoint>,
        address: SocketAddr,
        two: bool,
    ) -> Peer {
        let key = Key {
            caller: Arc::default(),
            callee: endpoint.workload().clone(),
            place: Some(endpoint.place().clone()),
            address,
            two,
        };
        self.get(key, || ToSocket {
            mesh: mesh.clone(),
            from: endpoint.workload().clone(),
            address,
        })
    }

    /// From one workload to one of another node.
    pub fn remote(
        &self,
        tunnels: &Tunnels,
        caller: &Arc<AppContext>,
        endpoint: &Arc<Endpoint>,
        address: SocketAddr,
        two: bool,
    ) -> Peer {
        let key = Key {
            caller: caller.workload().clone(),
            callee: endpoint.workload().clone(),
            place: Some(endpoint.place().clone()),
            address,
            two,
        };
        self.get(key, || ToTunnel {
            tunnels: tunnels.clone(),
            caller: caller.clone(),
            endpoint: endpoint.clone(),
            address,
        })
    }

    /// From one workload to what is outside the mesh.
    pub fn outside(&self, mesh: &Arc<dyn Mesh>, caller: &AppContext, address: SocketAddr, two: bool) -> Peer {
        let key = Key {
            caller: caller.workload().clone(),
            callee: Arc::default(),
            place: None,
            address,
            two,
        };
        self.get(key, || ToSocket {
            mesh: mesh.clone(),
            from: caller.workload().clone(),
            address,
        })
    }

    fn get<C: Connector + MuxConnector>(&self, key: Key, connector: impl FnOnce() -> C) -> Peer {
        if let Some(peer) = self.all.read().get(&key) {
            return peer.clone();
        }
        let two = key.two;
        let mut all = self.all.write();
        let made = || match two {
            true => Peer::Two(MuxPool::new(connector(), self.limits.clone())),
            false => Peer::One(Pool::new(connector(), self.limits.clone())),
        };
        all.entry(key).or_insert_with(made).clone()
    }

    /// Closes what is idle for too long and forgets pools that nobody uses.
    pub fn sweep(&self) {
        let peers: Vec<Peer> = self.all.read().values().cloned().collect();
        peers.iter().for_each(Peer::sweep);
        drop(peers);
        // Held by nobody else, so nobody is about to use it.
        self.all.write().retain(|_, peer| !peer.is_unused());
    }

    /// Endpoints with connections.
    pub fn len(&self) -> usize {
        self.all.read().len()
    }
}

/// Connects from where a workload is.
struct ToSocket {
    mesh: Arc<dyn Mesh>,
    from: Arc<str>,
    address: SocketAddr,
}

impl Connector for ToSocket {
    fn connect(&self) -> BoxFuture<'static, io::Result<Connection>> {
        let socket = self.mesh.connect(&self.from, self.address);
        async move {
            let socket = socket.await?;
            socket.set_nodelay(true)?;
            Connection::handshake(socket, None).await
        }
        .boxed()
    }
}

impl MuxConnector for ToSocket {
    fn connect(&self) -> BoxFuture<'static, io::Result<MuxConnection>> {
        let socket = self.mesh.connect(&self.from, self.address);
        async move {
            let socket = socket.await?;
            socket.set_nodelay(true)?;
            MuxConnection::handshake(socket, None).await
        }
        .boxed()
    }
}

struct ToTunnel {
    tunnels: Tunnels,
    caller: Arc<AppContext>,
    endpoint: Arc<Endpoint>,
    address: SocketAddr,
}

impl ToTunnel {
    fn open(&self) -> impl Future<Output = io::Result<weft_tunnel::TunnelStream>> + Send + 'static {
        let (tunnels, caller, endpoint) = (self.tunnels.clone(), self.caller.clone(), self.endpoint.clone());
        let authority = self.address.to_string();
        async move { Ok(tunnels.open(&caller, &endpoint, &authority).await?) }
    }
}

impl Connector for ToTunnel {
    fn connect(&self) -> BoxFuture<'static, io::Result<Connection>> {
        let stream = self.open();
        async move {
            let stream = stream.await?;
            let retired = stream.retired();
            Connection::handshake(stream, Some(retired)).await
        }
        .boxed()
    }
}

impl MuxConnector for ToTunnel {
    fn connect(&self) -> BoxFuture<'static, io::Result<MuxConnection>> {
        let stream = self.open();
        async move {
            let stream = stream.await?;
            let retired = stream.retired();
            MuxConnection::handshake(stream, Some(retired)).await
        }
        .boxed()
    }
}
