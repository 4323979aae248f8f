//! The HTTP connections of all apps: one pool per app of this node, one per pair of caller and
//! callee across a tunnel.

use crate::{AppContext, AppDialer, Endpoint, Place, TunnelDialer};
use futures::{FutureExt, future::BoxFuture};
use parking_lot::RwLock;
use std::{collections::HashMap, io, sync::Arc};
use weft_l7::{Connection, Connector, Pool, PoolLimits};

/// Everything that must be the same for two requests to share connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// Empty for the apps of this node: the agent is the only one that calls them.
    caller: Arc<str>,
    callee: Arc<str>,
    place: Place,
}

/// All pools of a runtime.
#[derive(Debug)]
pub(crate) struct Pools {
    limits: PoolLimits,
    all: RwLock<HashMap<Key, Arc<Pool>>>,
}

impl Pools {
    pub fn new(limits: PoolLimits) -> Self {
        Self {
            limits,
            all: RwLock::default(),
        }
    }

    /// To an app of this node.
    pub fn local(&self, dialer: &Arc<dyn AppDialer>, endpoint: &Arc<Endpoint>) -> Arc<Pool> {
        let key = Key {
            caller: Arc::default(),
            callee: endpoint.workload().clone(),
            place: endpoint.place().clone(),
        };
        self.get(key, || ToApp {
            dialer: dialer.clone(),
            endpoint: endpoint.clone(),
        })
    }

    /// From one app of this node to one of another.
    pub fn remote(
        &self,
        dialer: &Arc<dyn TunnelDialer>,
        caller: &Arc<AppContext>,
        endpoint: &Arc<Endpoint>,
    ) -> Arc<Pool> {
        let key = Key {
            caller: caller.workload().clone(),
            callee: endpoint.workload().clone(),
            place: endpoint.place().clone(),
        };
        self.get(key, || ToTunnel {
            dialer: dialer.clone(),
            caller: caller.clone(),
            endpoint: endpoint.clone(),
        })
    }

    fn get<C: Connector>(&self, key: Key, connector: impl FnOnce() -> C) -> Arc<Pool> {
        if let Some(pool) = self.all.read().get(&key) {
            return pool.clone();
        }
        let mut all = self.all.write();
        all.entry(key)
            .or_insert_with(|| Pool::new(connector(), self.limits.clone()))
            .clone()
    }

    /// Closes what is idle for too long and forgets pools that nobody uses.
    pub fn sweep(&self) {
        let pools: Vec<_> = self.all.read().values().cloned().collect();
        pools.iter().for_each(|pool| pool.sweep());
        drop(pools);
        // Held by nobody else, so nobody is about to use it.
        self.all
            .write()
            .retain(|_, pool| Arc::strong_count(pool) > 1 || !pool.is_unused());
    }

    pub fn connections_made(&self) -> usize {
        self.all.read().values().map(|pool| pool.connections_made()).sum()
    }
}

struct ToApp {
    dialer: Arc<dyn AppDialer>,
    endpoint: Arc<Endpoint>,
}

impl Connector for ToApp {
    fn connect(&self) -> BoxFuture<'static, io::Result<Connection>> {
        let socket = self.dialer.connect(self.endpoint.clone());
        async move {
            let socket = socket.await?;
            socket.set_nodelay(true)?;
            Connection::handshake(socket, None).await
        }
        .boxed()
    }
}

struct ToTunnel {
    dialer: Arc<dyn TunnelDialer>,
    caller: Arc<AppContext>,
    endpoint: Arc<Endpoint>,
}

impl Connector for ToTunnel {
    fn connect(&self) -> BoxFuture<'static, io::Result<Connection>> {
        let stream = self.dialer.connect(self.caller.clone(), self.endpoint.clone());
        async move {
            let stream = stream.await?;
            let retired = stream.retired();
            Connection::handshake(stream, Some(retired)).await
        }
        .boxed()
    }
}
