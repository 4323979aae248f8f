//! What the proxy needs of its surroundings. The agent implements it over its view of the mesh; all
//! but connecting is answered from memory.

use crate::Backends;
use futures::future::BoxFuture;
use std::{io, net::SocketAddr, sync::Arc};
use tokio::{net::TcpStream, sync::watch};
use weft_route::spec::BackendRef;
use weft_runtime::{AppContext, Directory, Endpoint, Judge};

/// Who is there, who may, and sockets where workloads are.
pub trait Mesh: Judge + Directory {
    /// Rises with each change of what the other methods answer.
    fn changes(&self) -> watch::Receiver<u64>;

    /// A workload of this node, as it is now; `None` once it is gone.
    fn caller(&self, workload: &str) -> Option<Arc<AppContext>>;

    /// A workload of the mesh as it is now, wherever it runs.
    fn endpoint(&self, workload: &str) -> Option<Arc<Endpoint>>;

    /// The ready endpoints of a Service's port, at an IPv4 address where they have one and `v4` asks
    /// for it. `None`: no such Service, or no such port of it.
    fn backends(&self, service: &BackendRef, v4: bool) -> Option<Arc<Backends>>;

    /// Connects from where a workload of this node is.
    fn connect(&self, workload: &str, to: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>>;
}
