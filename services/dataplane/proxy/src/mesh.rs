//! What the proxy needs of its surroundings. The agent implements it over its view of the mesh; all
//! but connecting is answered from memory.

use crate::Backends;
use futures::future::BoxFuture;
use http::{Request, Response};
use std::{io, net::SocketAddr, sync::Arc};
use tokio::{net::TcpStream, sync::watch};
use weft_flows::Party;
use weft_l7::Body;
use weft_route::spec::BackendRef;
use weft_runtime::{AppContext, Directory, Endpoint, Judge};

/// Answers requests in the place of a workload.
pub trait Answers: Send + Sync {
    /// Answers one, which `from` has sent and policy has let pass.
    fn answer(&self, from: &Arc<Party>, request: Request<Body>) -> BoxFuture<'static, Response<Body>>;
}

/// Who answers at a port of a workload of this node.
#[derive(Clone)]
pub enum Answerer {
    /// The workload, on a socket of its own.
    Itself,
    /// The agent, in the place of a shared endpoint.
    Agent(Arc<dyn Answers>),
    /// Nobody: an agent answers for it, and not there.
    Nobody,
}

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

    /// Who answers at a port of a workload of this node.
    fn answerer(&self, _workload: &str, _port: u16) -> Answerer {
        Answerer::Itself
    }

    /// Connects from where a workload of this node is.
    fn connect(&self, workload: &str, to: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>>;
}
