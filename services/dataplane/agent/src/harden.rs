//! What the process gives up before it reads the first byte of a tenant: capabilities, the way to
//! new ones, and every system call it does not need.
//!
//! Owns the order of these steps. Capabilities belong to a thread, so [`harden`] runs in `main`
//! before the runtime makes its threads; they inherit all of it.

use crate::seccomp;
use caps::{CapSet, Capability};

/// Why the process could not be hardened. It does not go on then.
#[derive(Debug, thiserror::Error)]
pub enum HardenError {
    /// A capability set could not be emptied.
    #[error("cannot give up {set} capabilities: {reason}")]
    Capabilities {
        /// Which set.
        set: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// Capabilities are left after they were given up.
    #[error("capabilities are left in the {0} set after giving them up")]
    Left(&'static str),
    /// `no_new_privs` could not be set.
    #[error("cannot set no_new_privs: {0}")]
    NoNewPrivileges(std::io::Error),
    /// The filter could not be installed.
    #[error("cannot install the seccomp filter: {0}; a kernel with CONFIG_SECCOMP_FILTER is needed")]
    Seccomp(String),
}

/// The sets that decide what a process may do or may come to do.
const SETS: &[(CapSet, &str)] = &[
    (CapSet::Ambient, "ambient"),
    (CapSet::Inheritable, "inheritable"),
    (CapSet::Effective, "effective"),
    (CapSet::Permitted, "permitted"),
];

/// Gives up everything, for the calling thread and all it will make. Call it first in `main`.
pub fn harden() -> Result<(), HardenError> {
    drop_capabilities()?;
    no_new_privileges()?;
    seccomp::install().map_err(HardenError::Seccomp)
}

fn drop_capabilities() -> Result<(), HardenError> {
    let fail = |set| {
        move |e: caps::errors::CapsError| HardenError::Capabilities {
            set,
            reason: e.to_string(),
        }
    };
    // The bounding set can only be cut by who may; without CAP_SETPCAP, no_new_privs closes that
    // way (it makes execve ignore file capabilities and set-user-ID).
    let may_cut =
        caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(fail("bounding"))?;
    if may_cut {
        for capability in caps::runtime::thread_all_supported() {
            caps::drop(None, CapSet::Bounding, capability).map_err(fail("bounding"))?;
        }
    }
    for &(set, name) in SETS {
        caps::clear(None, set).map_err(fail(name))?;
    }
    for &(set, name) in SETS {
        if !caps::read(None, set).map_err(fail(name))?.is_empty() {
            return Err(HardenError::Left(name));
        }
    }
    Ok(())
}

fn no_new_privileges() -> Result<(), HardenError> {
    nix::sys::prctl::set_no_new_privs().map_err(|e| HardenError::NoNewPrivileges(e.into()))
}

/// What the kernel says of this thread, for `weft status` and the log.
pub fn hardened() -> bool {
    let without = |set| caps::read(None, set).is_ok_and(|c| c.is_empty());
    without(CapSet::Permitted)
        && without(CapSet::Effective)
        && nix::sys::prctl::get_no_new_privs().unwrap_or(false)
        && seccomp::active()
}
