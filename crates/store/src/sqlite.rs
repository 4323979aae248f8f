//! A SQLite file as the state of one service in one process.

use crate::StoreError;
use sqlx::{
    Connection, Sqlite, SqlitePool, Transaction,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How long a statement waits for a lock, and a start for the previous process to end.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// SQLite has one writer; the others read.
pub(crate) const MAX_CONNECTIONS: u32 = 4;

/// An open database. Clones share the pool; the file is free for another process when the last
/// clone is gone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
    path: Arc<Path>,
    // Released by the kernel when this process ends, however it ends.
    _lock: Arc<File>,
}

impl Store {
    /// Opens the file at `path` (made with mode 0600 if it is not there, its folder with 0700) and
    /// applies `migrations`.
    ///
    /// The file belongs to one process at a time: a second one waits five seconds for the first
    /// to end and then fails with [`StoreError::Locked`].
    pub async fn open(path: &Path, migrations: &Migrator) -> Result<Self, StoreError> {
        Self::open_with(path, migrations, BUSY_TIMEOUT).await
    }

    /// [`Store::open`] with another limit on the wait for locks.
    pub async fn open_with(
        path: &Path,
        migrations: &Migrator,
        busy_timeout: Duration,
    ) -> Result<Self, StoreError> {
        let io_error = |e: io::Error| StoreError::from_io(path, &e);
        private_file(path).map_err(io_error)?;
        let lock = lock(path, busy_timeout).await?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            // With WAL, NORMAL may lose the last commits at a power cut: a used token would be
            // good again. FULL syncs each commit.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(busy_timeout)
            .create_if_missing(true);
        let pool = SqlitePoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(busy_timeout + Duration::from_secs(5))
            .after_release(|connection, _| Box::pin(is_sound(connection)))
            .connect_with(options)
            .await
            .map_err(|e| StoreError::classify(path, &e))?;
        let known = migrations.iter().map(|m| m.version).max().unwrap_or(0);
        if let Err(e) = migrations.run(&pool).await {
            pool.close().await;
            return Err(StoreError::classify_migration(path, &e, known));
        }
        tracing::debug!(path = %path.display(), schema = known, "database open");
        Ok(Self {
            pool,
            path: path.into(),
            _lock: Arc::new(lock),
        })
    }

    /// For queries that only read, or write with a single statement.
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// A transaction that holds the write lock from its start, so that what it reads is still
    /// true when it writes, and it can not fail half way because another one wrote first.
    pub async fn begin_write(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.pool
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(|e| self.error(&e))
    }

    /// Sorts an error of a query on this database.
    pub fn error(&self, error: &sqlx::Error) -> StoreError {
        StoreError::classify(&self.path, error)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Finishes running queries and writes the log back into the file.
    pub async fn close(self) {
        self.pool.close().await;
    }
}

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
