//! How the hand-off fails, in words for the operator.

use std::{io, path::PathBuf};

/// Why a packet, a request or the link failed.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    /// The socket itself failed.
    #[error("handoff socket: cannot {action}: {source}")]
    Socket {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The path cannot be connected to or bound.
    #[error("handoff socket {path}: {source}; {remedy}", path = path.display())]
    Path {
        /// Of the socket.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The other side closed the socket.
    #[error("the other end of the handoff socket is gone")]
    Closed,
    /// The other side does not speak this protocol.
    #[error("handoff protocol: {0}; run weft-node and weft-agent of the same release")]
    Protocol(String),
    /// Descriptors were lost on the way.
    #[error(
        "handoff: no file descriptors left in this process for what was sent; raise its limit (LimitNOFILE, ulimit -n)"
    )]
    OutOfDescriptors,
    /// A message is larger than a packet may be.
    #[error("handoff: a message of {size} bytes with {descriptors} descriptors is over the limit of {max_size} and {max_descriptors}", max_size = crate::wire::MAX_MESSAGE, max_descriptors = crate::wire::MAX_DESCRIPTORS)]
    TooLarge {
        /// Encoded size in bytes.
        size: usize,
        /// How many descriptors.
        descriptors: usize,
    },
    /// The node answered a request with a failure.
    #[error("{0}")]
    Refused(String),
    /// No answer in time.
    #[error("weft-node did not answer `{request}` within {seconds} s; look at its log")]
    Timeout {
        /// The request's name.
        request: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// The peer is another user than the one the node serves.
    #[error("handoff refused: peer process {pid} runs as uid {uid}, only uid {allowed} may connect")]
    Peer {
        /// Of the peer process.
        pid: i32,
        /// Of the peer process.
        uid: u32,
        /// The one that is admitted.
        allowed: u32,
    },
}

impl HandoffError {
    pub(crate) fn socket(action: &'static str, source: io::Error) -> Self {
        Self::Socket { action, source }
    }

    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol(what.into())
    }
}
