//! What went wrong with a database, in one line with its path and the remedy.

use nix::sys::statvfs::statvfs;
use sqlx::migrate::MigrateError;
use std::path::{Path, PathBuf};

/// Why a database can not be used. Every message is one line.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No permission, no such folder, a read-only file system.
    #[error(
        "database {} can not be opened: {cause}; check that the file and its folder exist and \
         belong to the user this process runs as",
        path.display()
    )]
    Unreadable {
        /// The database file.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// Held by another process, or a lock that was not given back in time.
    #[error(
        "database {} is locked: {cause}; stop the process that holds it (`fuser -v {}`), or give \
         this one another state folder",
        path.display(), path.display()
    )]
    Locked {
        /// The database file.
        path: PathBuf,
        /// Which lock.
        cause: String,
    },
    /// No space or no quota left.
    #[error(
        "database {} can not be written: the disk is full ({cause}); free space on the file \
         system of {}",
        path.display(), folder(path).display()
    )]
    Full {
        /// The database file.
        path: PathBuf,
        /// What the database said.
        cause: String,
    },
    /// Damaged, or no database at all.
    #[error(
        "database {} is damaged or no SQLite database: {cause}; restore it from a backup, or move \
         it away to start empty",
        path.display()
    )]
    Corrupt {
        /// The database file.
        path: PathBuf,
        /// What the database said.
        cause: String,
    },
    /// Written by a later version.
    #[error(
        "database {} has schema version {found}, this binary knows up to {known}: it was written \
         by a newer version; run that version, or restore a backup from before the upgrade",
        path.display()
    )]
    Newer {
        /// The database file.
        path: PathBuf,
        /// The version in the file.
        found: i64,
        /// The newest version this binary has migrations for.
        known: i64,
    },
    /// A migration that was applied is not the one this binary has.
    #[error(
        "database {} was made by a different build: migration {version} is not the one this \
         binary has; run the binary that wrote it, or restore a backup",
        path.display()
    )]
    Foreign {
        /// The database file.
        path: PathBuf,
        /// The migration that differs.
        version: i64,
    },
    /// A server that does not answer, or does not let us in.
    #[error(
        "database {server} can not be reached: {cause}; check that the server runs, and that address, \
         user and password are right"
    )]
    Unreachable {
        /// The server and the database.
        server: String,
        /// What the connection said.
        cause: String,
    },
    /// Another process writes to a database that belongs to one at a time.
    #[error(
        "database {server} now belongs to {holder}, so this process may not write any more; give each \
         service a database of its own, or run one of the two"
    )]
    Taken {
        /// The server and the database.
        server: String,
        /// As it calls itself.
        holder: String,
    },
    /// The server did not answer for so long that another process may own the database.
    #[error(
        "database {server} has not answered for a while, so another process may own it by now; check \
         that the server runs"
    )]
    Unsure {
        /// The server and the database.
        server: String,
    },
    /// Anything else that a server says.
    #[error("database {server}: {cause}")]
    Server {
        /// The server and the database.
        server: String,
        /// What it said.
        cause: String,
    },
    /// Anything else.
    #[error("database {}: {cause}", path.display())]
    Other {
        /// The database file.
        path: PathBuf,
        /// What the database said.
        cause: String,
    },
}

fn folder(path: &Path) -> &Path {
    path.parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// SQLite's primary result codes that mean something to an operator.
mod code {
    pub const PERM: i32 = 3;
    pub const BUSY: i32 = 5;
    pub const LOCKED: i32 = 6;
    pub const READONLY: i32 = 8;
    pub const IOERR: i32 = 10;
    pub const CORRUPT: i32 = 11;
    pub const FULL: i32 = 13;
    pub const CANTOPEN: i32 = 14;
    pub const NOTADB: i32 = 26;
}

impl StoreError {
    /// Sorts an sqlx error about the file at `path`.
    pub fn classify(path: &Path, error: &sqlx::Error) -> Self {
        let (path, cause) = (path.to_path_buf(), one_line(error));
        match error {
            sqlx::Error::Migrate(e) => Self::classify_migration(&path, e, 0),
            sqlx::Error::Database(e) => {
                // The low byte of SQLite's extended code is the primary one.
                let primary = e
                    .code()
                    .and_then(|c| c.parse::<i32>().ok())
                    .map_or(0, |c| c & 0xff);
                match primary {
                    code::BUSY | code::LOCKED => Self::Locked { path, cause },
                    code::FULL => Self::Full { path, cause },
                    code::CORRUPT | code::NOTADB => Self::Corrupt { path, cause },
                    // Some writes (the shared-memory file, the truncation of the log) report a
                    // full disk as a plain I/O error.
                    code::IOERR | code::CANTOPEN if no_space_left(&path) => Self::Full { path, cause },
                    code::PERM | code::READONLY | code::CANTOPEN => Self::Unreadable { path, cause },
                    _ => Self::Other { path, cause },
                }
            }
            sqlx::Error::Io(e) => Self::from_io(&path, e),
            sqlx::Error::PoolTimedOut => Self::Locked {
                path,
                cause: "no connection came free in time, each waits for a lock or a slow disk".into(),
            },
            _ => Self::Other { path, cause },
        }
    }

    /// Sorts an error of the migrations; `known` is the newest version of this binary.
    pub(crate) fn classify_migration(path: &Path, error: &MigrateError, known: i64) -> Self {
        let path_buf = path.to_path_buf();
        match error {
            MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _) => Self::classify(path, e),
            MigrateError::VersionMissing(found) if *found > known => Self::Newer {
                path: path_buf,
                found: *found,
                known,
            },
            MigrateError::VersionMissing(version) | MigrateError::VersionMismatch(version) => Self::Foreign {
                path: path_buf,
                version: *version,
            },
            e => Self::Other {
                path: path_buf,
                cause: one_line(e),
            },
        }
    }

    /// Sorts an sqlx error about a server.
    pub(crate) fn classify_server(server: &str, error: &sqlx::Error) -> Self {
        let (server, cause) = (server.to_owned(), one_line(error));
        match error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unreachable { server, cause },
            // Class 28: not let in; 3D000: no such database; 57P: shutting down or not up yet.
            sqlx::Error::Database(e)
                if e.code()
                    .is_some_and(|c| c.starts_with("28") || c == "3D000" || c.starts_with("57P")) =>
            {
                Self::Unreachable { server, cause }
            }
            _ => Self::Server { server, cause },
        }
    }

    /// Sorts an error of the migrations of a server's database.
    pub(crate) fn classify_server_migration(server: &str, error: &MigrateError, known: i64) -> Self {
        match error {
            MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _) => {
                Self::classify_server(server, e)
            }
            MigrateError::VersionMissing(_) | MigrateError::VersionMismatch(_) => {
                Self::classify_migration(Path::new(server), error, known)
            }
            e => Self::Server {
                server: server.into(),
                cause: one_line(e),
            },
        }
    }

    /// Sorts an error of the file system.
    pub(crate) fn from_io(path: &Path, error: &std::io::Error) -> Self {
        let (path, cause) = (path.to_path_buf(), one_line(error));
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::Full { path, cause },
            _ => Self::Unreadable { path, cause },
        }
    }
}

fn no_space_left(path: &Path) -> bool {
    statvfs(folder(path)).is_ok_and(|s| s.blocks_available() == 0)
}

fn one_line(error: &dyn std::error::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
