//! A SQLite file as the state of one process: its permissions and its lock.

use crate::StoreError;
use sqlx::Connection;
use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How long a statement waits for a lock, and a start for the previous process to end.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// SQLite has one writer; the others read.
pub(crate) const MAX_CONNECTIONS: u32 = 4;

/// Whether a connection that comes back may be used again. Where a disk is full, SQLite ends the
/// transaction by itself; sqlx then fails to, counts it as open for ever, and begins no other one.
pub(crate) async fn is_sound<C: Connection>(connection: &mut C) -> sqlx::Result<bool> {
    // After whatever rollback is on its way.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

/// Makes the file readable by its owner only, before SQLite writes to it: SQLite gives its log
/// and shared-memory files the same permissions.
pub(crate) fn private_file(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty() && !p.exists()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// Locks `<path>.lock`. SQLite's own locks are on the database file, so this must be another one.
pub(crate) async fn lock(path: &Path, wait: Duration) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(|e| StoreError::from_io(&lock_path, &e))?;
    let deadline = Instant::now() + wait;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                sleep(Duration::from_millis(50)).await;
            }
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Locked {
                    path: path.to_path_buf(),
                    cause: format!("another process holds {}", lock_path.display()),
                });
            }
            Err(TryLockError::Error(e)) => return Err(StoreError::from_io(&lock_path, &e)),
        }
    }
}
