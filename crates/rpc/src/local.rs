//! The local socket: operators on the same machine, known by the user id the kernel reports.

use crate::RpcError;
use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};
use tokio::net::UnixListener;

/// Root and the user this process runs as.
pub(crate) fn permitted(uid: u32) -> bool {
    uid == 0 || uid == own_uid()
}

fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    // The owner of /proc/self is the effective user; no libc call is needed for it.
    fs::metadata("/proc/self").map_or(u32::MAX, |m| m.uid())
}

/// Binds a unix socket that only its owner may open (0600), replacing one that nobody serves any
/// more. Its folder is made (0755) when missing.
pub fn bind_local(path: &Path) -> Result<UnixListener, RpcError> {
    let fail = |source: io::Error| RpcError::Bind {
        address: path.display().to_string(),
        source,
    };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(fail)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(fail(io::Error::from(io::ErrorKind::AddrInUse))),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(fail)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}
