//! What a captured connection needs of its surroundings. The agent implements it over its view of
//! the mesh; all but connecting is answered from memory.

use std::{net::SocketAddr, sync::Arc};
use weft_flows::Party;
use weft_route::spec::BackendRef;
use weft_runtime::{AppContext, Endpoint};

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

/// What addresses mean; all else as the proxy needs it.
pub trait Mesh: weft_proxy::Mesh {
    /// Whom an address means for `caller`.
    fn find(&self, caller: &str, to: SocketAddr) -> Found;

    /// As whom the gateways of this node call; `None` while it has none.
    fn ingress(&self) -> Option<Arc<AppContext>> {
        None
    }

    /// The Service that has an address, with the port of it.
    fn service(&self, at: SocketAddr) -> Option<BackendRef>;

    /// Whether who listens at `address` can be nobody but this workload of this node.
    fn answers_at(&self, workload: &str, address: SocketAddr) -> bool;
}
