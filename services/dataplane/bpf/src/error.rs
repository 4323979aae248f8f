//! What can go wrong, said to the operator: what, where, what to do.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Failures of the loader.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder for pins isn't on a bpf file system.
    #[error(
        "{path} is not on a bpf file system: mount one with `mount -t bpf bpf <folder>` and give it as --bpffs"
    )]
    NotBpffs {
        /// The folder asked for.
        path: PathBuf,
    },
    /// bpffs refuses names with dots.
    #[error("{path} cannot hold pins: bpffs allows no dots in names; choose a folder without")]
    Dots {
        /// The folder asked for.
        path: PathBuf,
    },
    /// A bpf file system could not be mounted.
    #[error(
        "cannot mount a bpf file system at {path}: {source}; it needs CAP_SYS_ADMIN, or mount it beforehand"
    )]
    Mount {
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no cgroup v2 hierarchy.
    #[error("no cgroup v2 hierarchy is mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified` makes one")]
    NoCgroup2,
    /// The node's cgroup can't be opened.
    #[error("cannot open the cgroup {path}: {source}")]
    Cgroup {
        /// The cgroup.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The programs were not accepted.
    #[error(
        "the kernel did not accept {what}: {detail}; root (CAP_BPF and CAP_NET_ADMIN) and Linux 5.19 or newer are needed"
    )]
    Load {
        /// The object or program.
        what: String,
        /// The kernel's or the verifier's words.
        detail: String,
    },
    /// A link could not be made, replaced or removed.
    #[error("cannot {action} the program {program} at its cgroup: {source}")]
    Link {
        /// The program.
        program: &'static str,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A program could not be put at an interface, replaced or run there.
    #[error(
        "cannot {action} the program {program} at an interface: {source}; it needs CAP_NET_ADMIN and Linux 6.6 or newer"
    )]
    Interface {
        /// The program.
        program: &'static str,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A pin could not be written or removed.
    #[error("cannot {action} {path}: {source}")]
    Pin {
        /// The pin or its folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A map does not look as this version expects it.
    #[error(
        "map {map} has a layout of another version ({detail}): uninstall the programs and load them anew"
    )]
    Layout {
        /// The map.
        map: String,
        /// What was found.
        detail: String,
    },
    /// A map call failed.
    #[error("cannot {action} the map {map}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A map has no room.
    #[error("the node's table {map} is full ({max} entries): fewer policies, peers or ports are needed")]
    Full {
        /// The map.
        map: &'static str,
        /// How many entries it can hold.
        max: u32,
    },
    /// A descriptor was not handed over.
    #[error("the descriptor of the map {map} was not handed over: weft-node is of another version")]
    NoMap {
        /// The map.
        map: &'static str,
    },
    /// The table of workloads is full.
    #[error("the node's table of workloads is full ({max} entries): remove workloads")]
    WorkloadsFull {
        /// How many it can hold.
        max: u32,
    },
    /// The table of services is full.
    #[error("the node's table of services is full ({max} entries): remove services")]
    ServicesFull {
        /// How many it can hold.
        max: u32,
    },
    /// A service has a backend that its callers could not reach.
    #[error(
        "the service at {service} cannot have the backend {backend}, which is of the other IP family: give the service an address of that family"
    )]
    BackendFamily {
        /// The service's address.
        service: SocketAddr,
        /// The backend's.
        backend: SocketAddr,
    },
    /// A namespace's sockets could not be listed or closed.
    #[error(
        "cannot {action} sockets of a network namespace: {source}; it needs CAP_NET_ADMIN, CAP_BPF and a kernel with CONFIG_INET_DIAG_DESTROY"
    )]
    Sockets {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}
