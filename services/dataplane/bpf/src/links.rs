//! Links between programs and the node's cgroup. They are pinned, so they hold without a process,
//! and replaced in place, so there is no moment without a program.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crate::error::Error;
use crate::sys::{self, AttachType};

/// The programs by function name, and where they go. What translates back comes before what
/// translates. Callers before listeners: a record that nothing takes is harmless, a listener that
/// expects records before there are any is not.
pub(crate) const PROGRAMS: [(&str, AttachType); 11] = [
    ("post_bind4", AttachType::Inet4PostBind),
    ("post_bind6", AttachType::Inet6PostBind),
    ("getpeername4", AttachType::Inet4GetPeername),
    ("getpeername6", AttachType::Inet6GetPeername),
    ("recvmsg4", AttachType::Udp4Recvmsg),
    ("recvmsg6", AttachType::Udp6Recvmsg),
    ("sendmsg4", AttachType::Udp4Sendmsg),
    ("sendmsg6", AttachType::Udp6Sendmsg),
    ("connect4", AttachType::Inet4Connect),
    ("connect6", AttachType::Inet6Connect),
    ("sock_ops", AttachType::SockOps),
];

/// The programs that judge the packets of processes. What comes in first: an answer without its
/// opening is refused, not the other way round.
pub(crate) const PROCESS_PROGRAMS: [(&str, AttachType); 2] = [
    ("process_ingress", AttachType::InetIngress),
    ("process_egress", AttachType::InetEgress),
];

/// Whether a link is pinned under this name.
pub(crate) fn is_installed(folder: &Path, name: &str) -> bool {
    folder.join(name).exists()
}

/// Makes `program` the one behind the link pinned at `<folder>/<name>`, which attaches to `cgroup`.
/// Returns whether a link was adopted rather than made.
pub(crate) fn install(
    folder: &Path,
    (name, kind): (&'static str, AttachType),
    program: BorrowedFd<'_>,
    cgroup: &File,
    cgroup_id: u64,
) -> Result<bool, Error> {
    let at = folder.join(name);
    let failed = |action| {
        move |source| Error::Link {
            program: name,
            action,
            source,
        }
    };
    match sys::open_pin(&at, false) {
        Ok(link) => {
            // A link outlives its cgroup without doing anything, and a cgroup made anew under the
            // same path is another one.
            if sys::link_target(link.as_fd()).map_err(failed("inspect"))? == (cgroup_id, kind as u32) {
                sys::link_update(link.as_fd(), program).map_err(failed("replace"))?;
                return Ok(true);
            }
            remove(folder, name)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            return Err(Error::Pin {
                path: at,
                action: "open",
                source,
            });
        }
    }
    let link = sys::link_create(program, cgroup.as_fd(), kind).map_err(failed("attach"))?;
    sys::pin(link.as_fd(), &at).map_err(|source| Error::Pin {
        path: at,
        action: "pin",
        source,
    })?;
    Ok(false)
}

/// Detaches the link pinned at `<folder>/<name>`, also for whoever else holds it, and removes the pin.
pub(crate) fn remove(folder: &Path, name: &'static str) -> Result<(), Error> {
    let at = folder.join(name);
    let link = match sys::open_pin(&at, false) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(Error::Pin {
                path: at,
                action: "open",
                source,
            });
        }
    };
    match sys::link_detach(link.as_fd()) {
        Ok(()) => {}
        // The cgroup is gone, and the attachment with it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::ENOENT)) => {}
        Err(source) => {
            return Err(Error::Link {
                program: name,
                action: "detach",
                source,
            });
        }
    }
    fs::remove_file(&at).map_err(|source| Error::Pin {
        path: at,
        action: "remove",
        source,
    })
}
