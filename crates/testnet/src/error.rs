//! What can go wrong while building a network, with what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Failures of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Namespaces need root.
    #[error("network namespaces need root: run this as root")]
    NotRoot,
    /// There is no cgroup v2 hierarchy.
    #[error("no cgroup v2 hierarchy is mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified` makes one")]
    NoCgroup2,
    /// `ip` isn't installed.
    #[error("cannot run `ip`: {0}; install the package iproute2")]
    NoIp(io::Error),
    /// `ip` refused.
    #[error("ip refused in namespace {namespace}: {message}\n{script}")]
    Ip {
        /// The namespace's name.
        namespace: String,
        /// What it was given.
        script: String,
        /// What it said.
        message: String,
    },
    /// A system call failed.
    #[error("cannot {action} {what}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A name that is no name.
    #[error("{name:?} is no name here: {why}")]
    Name {
        /// The name given.
        name: String,
        /// What it should be.
        why: &'static str,
    },
    /// The address plan has no room left.
    #[error("no room for another {0}: at most 250 nodes, and 250 pods on each")]
    Full(&'static str),
}

pub(crate) fn io(action: &'static str, what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { action, what, source }
}

pub(crate) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path: PathBuf = path.to_path_buf();
    move |source| Error::Io {
        action,
        what: path.display().to_string(),
        source,
    }
}
