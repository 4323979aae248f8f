//! What a captured connection needs of its surroundings. The agent implements it over its view of
//! the mesh; all but connecting is answered from memory.

use futures::future::BoxFuture;
use std::{io, net::SocketAddr, sync::Arc};
use tokio::net::TcpStream;
use weft_flows::Party;
use weft_runtime::{AppContext, Directory, Endpoint, Judge};

/// Where a connection was meant to go, as the kernel recorded it when the app connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// As the app wrote it.
    pub destination: SocketAddr,
    /// The backend that the kernel chose, where it did.
    pub target: Option<SocketAddr>,
}

/// Whom an address means.
#[derive(Debug, Clone)]
pub enum Found {
    /// A workload of the mesh.
    Workload {
        /// Which.
        endpoint: Arc<Endpoint>,
        /// Its own address: the one asked for, or that of the backend picked for a service.
        address: SocketAddr,
    },
    /// A node, or what is outside the mesh: reached directly, judged as this party.
    Other(Arc<Party>),
    /// A service that nobody serves now.
    Nobody,
}

/// Who is there, who may, and sockets where workloads are.
pub trait Mesh: Judge + Directory {
    /// A workload of this node, as it is now; `None` once it is gone.
    fn caller(&self, workload: &str) -> Option<Arc<AppContext>>;

    /// Whom an address means for `caller`.
    fn find(&self, caller: &str, to: SocketAddr) -> Found;

    /// A workload of the mesh as it is now, wherever it runs.
    fn endpoint(&self, workload: &str) -> Option<Arc<Endpoint>>;

    /// Whether who listens at `address` can be nobody but this workload of this node.
    fn answers_at(&self, workload: &str, address: SocketAddr) -> bool;

    /// Connects from where a workload of this node is.
    fn connect(&self, workload: &str, to: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>>;
}
