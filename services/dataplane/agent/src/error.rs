//! Why an agent can not start or go on.

use crate::persist::PersistError;
use std::path::PathBuf;

/// Why an agent can not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Neither `weft-node` nor the mode without it.
    #[error(
        "no weft-node: weft-node starts weft-agent itself; to connect to one that runs give --handoff-socket, to do without it --rootless (or use `weft dev`)"
    )]
    NoNode,
    /// `weft-node` said no, or does not answer.
    #[error(transparent)]
    Node(#[from] weft_handoff::HandoffError),
    /// `weft-node` is gone and can not be connected to again.
    #[error("weft-node is gone; it starts a new agent when it comes back")]
    NodeGone,
    /// Something that `weft-node` must hand over is missing.
    #[error("weft-node handed over no {0}; run weft-node and weft-agent of the same release")]
    Missing(&'static str),
    /// Not a member of the mesh.
    #[error(transparent)]
    Enroll(#[from] weft_enroll::EnrollError),
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] weft_model::SpiffeError),
    /// The data folder.
    #[error("cannot make data folder {path}: {source}; choose another with --data-dir", path = path.display())]
    Data {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file in it.
    #[error(transparent)]
    Persist(#[from] PersistError),
    /// A port.
    #[error(
        "cannot listen on {address}: {source}; stop who has it, or choose another with --listen or --hubble-listen"
    )]
    Bind {
        /// Which.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Without TLS for others than this machine.
    #[error("--hubble-plaintext: {0} is not a loopback address; others would read and forge what is told")]
    Plaintext(std::net::SocketAddr),
    /// A listener that was handed over.
    #[error("listener {address} can not be used: {source}")]
    Listener {
        /// Which.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// BPF maps.
    #[error(transparent)]
    Bpf(#[from] weft_bpf::Error),
    /// gRPC.
    #[error(transparent)]
    Rpc(#[from] weft_rpc::RpcError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] weft_tls::TlsError),
    /// A part ended that should not.
    #[error("a part of the agent failed: {0}")]
    Task(String),
}
