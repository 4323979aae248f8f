//! What can go wrong on the node, in words for the operator: what, where, what to do.

use std::{io, net::SocketAddr, path::PathBuf};
use weft_handoff::HandoffError;

/// Failures of the privileged process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// Started as somebody else than root.
    #[error(
        "weft-node must run as root: it enters network namespaces and loads BPF programs; use sudo, or `weft dev` without root, where each app has a port of its own"
    )]
    NotRoot,
    /// A name that is none.
    #[error("{what}: {detail}")]
    Name {
        /// Which setting or field.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A network namespace that cannot be entered.
    #[error("network namespace {place}: {detail}")]
    Namespace {
        /// The path or process asked for.
        place: String,
        /// What is wrong, and what to do.
        detail: String,
    },
    /// A port that somebody else has.
    #[error(
        "{address} is in use in {place}: stop what listens there (`ss -ltnp` in that namespace shows it), Weft needs this port"
    )]
    PortInUse {
        /// The address wanted.
        address: SocketAddr,
        /// The namespace, in words.
        place: String,
    },
    /// A listener that cannot be opened for another reason.
    #[error("cannot listen on {address} in {place}: {source}")]
    Listen {
        /// The address wanted.
        address: SocketAddr,
        /// The namespace, in words.
        place: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There are no cgroups for processes.
    #[error("processes cannot be placed: {0}")]
    NoCgroups(String),
    /// A cgroup operation failed.
    #[error("cannot {action} the cgroup {path}: {source}", path = path.display())]
    Cgroup {
        /// What was tried.
        action: &'static str,
        /// The cgroup.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Two nodes want the same subtree.
    #[error(
        "another weft-node serves {path}: stop it, or give this one its own --node-name or --cgroup-root", path = path.display()
    )]
    Busy {
        /// The subtree of cgroups.
        path: PathBuf,
    },
    /// The folder for sockets.
    #[error("cannot {action} {path}: {source}; choose another folder with --run-dir", path = path.display())]
    RunDir {
        /// What was tried.
        action: &'static str,
        /// The folder or socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The agent's program cannot be started.
    #[error("cannot start the agent {path}: {detail}; give its path with --agent-bin", path = path.display())]
    AgentBinary {
        /// Of the program.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// The agent's user.
    #[error("agent's user {user:?}: {detail}; name an unprivileged one with --agent-user")]
    AgentUser {
        /// As configured.
        user: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A workload that is not there.
    #[error("workload {0} is not on this node")]
    UnknownWorkload(String),
    /// Too many.
    #[error("this node has {0} workloads already, which is its limit: remove some or add a node")]
    Full(usize),
    /// What the kernel's programs know of a workload could not be changed.
    #[error(transparent)]
    Bpf(#[from] weft_bpf::Error),
    /// The socket to the agent.
    #[error(transparent)]
    Handoff(#[from] HandoffError),
    /// A thread or task that must live is gone.
    #[error("weft-node is shutting down")]
    Stopped,
    /// Something of the process itself.
    #[error("cannot {action}: {source}")]
    Process {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}
