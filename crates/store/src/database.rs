//! Either database under one set of queries: a SQLite file of one process, or a PostgreSQL server
//! that several replicas share or one process at a time owns. Queries use `$1` for parameters and the types both have (BIGINT,
//! TEXT, BLOB or BYTEA).

use crate::{
    DatabaseUrl, Standing, StoreError,
    lease::Lease,
    sqlite::{BUSY_TIMEOUT, MAX_CONNECTIONS, is_sound, lock, private_file},
};
use sqlx::{
    Any, AnyConnection, AnyPool, Connection as _, Executor, Transaction,
    any::{AnyConnectOptions, AnyPoolOptions, install_default_drivers},
    migrate::Migrator,
};
use std::{fs::File, io, path::Path, str::FromStr, sync::Arc, time::Duration};

/// Pages of a file that each connection keeps, KiB (SQLite's own would be 2000): what is written all the
/// time is at the end of a table.
const CACHE_KIB: u32 = 512;
/// A server is asked by few at a time: what is durable is written in batches.
const SERVER_CONNECTIONS: u32 = 8;
/// How long a query waits for a connection to the server.
const SERVER_PATIENCE: Duration = Duration::from_secs(5);

/// Where a database is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    File(Arc<Path>),
    /// Without user and password: for messages.
    Server(Arc<str>),
}

/// An open database. Clones share the pool.
#[derive(Debug, Clone)]
pub struct Database {
    pool: AnyPool,
    place: Place,
    // A file belongs to one process.
    _lock: Option<Arc<File>>,
    lease: Option<Arc<Lease>>,
}

impl Database {
    /// Opens the SQLite file at `path` (made with mode 0600 if it is not there, its folder with 0700) and
    /// applies `migrations`.
    ///
    /// The file belongs to one process at a time: a second one waits five seconds for the first
    /// to end and then fails with [`StoreError::Locked`].
    pub async fn file(path: &Path, migrations: &Migrator) -> Result<Self, StoreError> {
        Self::file_with(path, migrations, BUSY_TIMEOUT).await
    }

    /// [`Database::file`] with another limit on the wait for locks.
    pub async fn file_with(
        path: &Path,
        migrations: &Migrator,
        busy_timeout: Duration,
    ) -> Result<Self, StoreError> {
        let io_error = |e: io::Error| StoreError::from_io(path, &e);
        let url = file_url(path).map_err(io_error)?;
        private_file(path).map_err(io_error)?;
        let lock = lock(path, busy_timeout).await?;
        let place = Place::File(path.into());
        let settings = format!(
            "PRAGMA busy_timeout = {}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
             PRAGMA foreign_keys = ON; PRAGMA cache_size = -{CACHE_KIB}",
            busy_timeout.as_millis()
        );
        // Once outside of the pool, which tries again and logs each attempt at a file that is no
        // database.
        try_once(&url, &settings)
            .await
            .map_err(|e| classify(&place, &e))?;
        let options = AnyPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(busy_timeout + Duration::from_secs(5))
            .test_before_acquire(false)
            .after_release(|connection, _| Box::pin(is_sound(connection)))
            .after_connect(move |connection, _| {
                let settings = sqlx::AssertSqlSafe(settings.clone());
                Box::pin(async move { connection.execute(sqlx::raw_sql(settings)).await.map(|_| ()) })
            });
        let pool = connect(options, &url, &place).await?;
        let database = Self {
            pool,
            place,
            _lock: Some(Arc::new(lock)),
            lease: None,
        };
        database.migrated(migrations).await
    }

    /// Connects to the PostgreSQL server that `url` names (`postgres://user:password@host/database`).
    pub async fn server(url: &str, migrations: &Migrator) -> Result<Self, StoreError> {
        Self::connected(url).await?.migrated(migrations).await
    }

    /// [`Database::server`] for a service that must be alone: waits until no other process owns the
    /// database, then owns it until [`Database::close`], or its own death and ten seconds.
    ///
    /// `holder` is how others call this process; `waiting` is told for whom it waits.
    pub async fn owned(
        url: &DatabaseUrl,
        migrations: &Migrator,
        holder: &str,
        waiting: impl FnMut(&str),
    ) -> Result<Self, StoreError> {
        let mut database = Self::connected(url.reveal()).await?;
        let lease = Lease::take(&database.pool, holder, waiting).await;
        let lease = lease.map_err(|e| database.error(&e))?;
        database.lease = Some(Arc::new(lease));
        database.migrated(migrations).await
    }

    async fn connected(url: &str) -> Result<Self, StoreError> {
        let place = Place::Server(shown(url).into());
        let options = AnyPoolOptions::new()
            .max_connections(SERVER_CONNECTIONS)
            .acquire_timeout(SERVER_PATIENCE);
        let pool = connect(options, url, &place).await?;
        Ok(Self {
            pool,
            place,
            _lock: None,
            lease: None,
        })
    }

    async fn migrated(self, migrations: &Migrator) -> Result<Self, StoreError> {
        let known = migrations.iter().map(|m| m.version).max().unwrap_or(0);
        if let Err(e) = migrations.run(&self.pool).await {
            let error = match &self.place {
                Place::File(path) => StoreError::classify_migration(path, &e, known),
                Place::Server(server) => StoreError::classify_server_migration(server, &e, known),
            };
            self.close().await;
            return Err(error);
        }
        tracing::debug!(place = ?self.place, schema = known, "database open");
        Ok(self)
    }

    /// Waits until this process may not count on owning the database any more: at once when another one
    /// took it ([`StoreError::Taken`]), and with `strict` also when the server has not answered for so
    /// long that one may take it ([`StoreError::Unsure`]). Never ends for what nobody else can take.
    pub fn lost(&self, strict: bool) -> impl Future<Output = StoreError> + Send + use<> {
        let (server, lease) = (self.to_string(), self.lease.as_ref());
        // Not the database itself, which is closed when its last clone is gone.
        let standing = lease.map(|lease| lease.standing());
        async move {
            let Some(mut standing) = standing else {
                return std::future::pending().await;
            };
            let lost = standing.wait_for(|now| match now {
                Standing::Held => false,
                Standing::Unsure => strict,
                Standing::Taken { .. } => true,
            });
            match lost.await.map(|lost| lost.clone()) {
                Ok(Standing::Taken { by }) => StoreError::Taken { server, holder: by },
                Ok(_) => StoreError::Unsure { server },
                // Given back: nothing was lost.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// For queries that only read, or write with a single statement.
    pub fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// Whether several processes may use it at once.
    pub fn is_shared(&self) -> bool {
        matches!(self.place, Place::Server(_))
    }

    /// A transaction that may write. On a file it holds the write lock from its start; on a server
    /// what it reads and must not change meanwhile is to be read `FOR UPDATE` (see
    /// [`Database::for_update`]).
    ///
    /// It fails with [`StoreError::Taken`] when another process owns the database.
    pub async fn begin_write(&self) -> Result<Transaction<'static, Any>, StoreError> {
        let begun = match self.place {
            Place::File(_) => self.pool.begin_with("BEGIN IMMEDIATE").await,
            Place::Server(_) => self.pool.begin().await,
        };
        let mut tx = begun.map_err(|e| self.error(&e))?;
        if let Some(lease) = &self.lease {
            let may = lease.check(&mut tx).await.map_err(|e| self.error(&e))?;
            may.map_err(|holder| StoreError::Taken {
                server: self.to_string(),
                holder,
            })?;
        }
        Ok(tx)
    }

    /// A transaction that only reads, all of it as of one moment.
    pub async fn begin_read(&self) -> Result<Transaction<'static, Any>, StoreError> {
        let begun = match self.place {
            Place::File(_) => self.pool.begin().await,
            Place::Server(_) => {
                self.pool
                    .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ")
                    .await
            }
        };
        begun.map_err(|e| self.error(&e))
    }

    /// What a SELECT ends with whose rows are to stay as they are until the transaction ends.
    pub fn for_update(&self) -> &'static str {
        match self.place {
            Place::File(_) => "",
            Place::Server(_) => " FOR UPDATE",
        }
    }

    /// Sorts an error of a query on this database.
    pub fn error(&self, error: &sqlx::Error) -> StoreError {
        classify(&self.place, error)
    }

    /// Finishes running queries and ends all connections.
    pub async fn close(self) {
        if let Some(lease) = &self.lease {
            lease.give_back(&self.pool).await;
        }
        self.pool.close().await;
    }
}

impl std::fmt::Display for Database {
    /// The file or the server, without its password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.place {
            Place::File(path) => path.display().fmt(f),
            Place::Server(server) => f.write_str(server),
        }
    }
}

fn classify(place: &Place, error: &sqlx::Error) -> StoreError {
    match place {
        Place::File(path) => StoreError::classify(path, error),
        Place::Server(server) => StoreError::classify_server(server, error),
    }
}

async fn try_once(url: &str, settings: &str) -> sqlx::Result<()> {
    install_default_drivers();
    let mut connection = AnyConnection::connect(url).await?;
    let settings = sqlx::AssertSqlSafe(settings.to_owned());
    connection.execute(sqlx::raw_sql(settings)).await?;
    connection.close().await
}

async fn connect(options: AnyPoolOptions, url: &str, place: &Place) -> Result<AnyPool, StoreError> {
    install_default_drivers();
    let target = AnyConnectOptions::from_str(url).map_err(|e| classify(place, &e))?;
    options
        .connect_with(target)
        .await
        .map_err(|e| classify(place, &e))
}

/// A file's path as a URL: sqlx' common options are made of nothing else.
fn file_url(path: &Path) -> io::Result<String> {
    let text = path
        .to_str()
        .ok_or_else(|| io::Error::other("its path is not UTF-8"))?;
    let mut url = String::from("sqlite://");
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url.push_str("?mode=rwc");
    Ok(url)
}

/// Without user, password and parameters.
pub(crate) fn shown(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("postgres://{host}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    static NOTES: Migrator = sqlx::migrate!("tests/migrations/v1");

    #[tokio::test]
    async fn a_file_with_any_name_is_opened_and_kept_safe() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b?c#d%20é/x.db");
        let database = Database::file(&path, &NOTES).await.unwrap();
        assert!(path.exists() && !database.is_shared());
        let mut tx = database.begin_write().await.unwrap();
        let inserted = sqlx::query("INSERT INTO notes (body) VALUES ($1)").bind("kept");
        inserted.execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        for (pragma, value) in [
            ("PRAGMA synchronous", 2),
            ("PRAGMA busy_timeout", 5000),
            ("PRAGMA cache_size", -512),
        ] {
            let found: i64 = sqlx::query_scalar(pragma)
                .fetch_one(database.pool())
                .await
                .unwrap();
            assert_eq!(found, value, "{pragma}");
        }
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode")
            .fetch_one(database.pool())
            .await
            .unwrap();
        assert_eq!(journal, "wal");
        database.close().await;
        let again = Database::file(&path, &NOTES).await.unwrap();
        let kept: String = sqlx::query_scalar("SELECT body FROM notes")
            .fetch_one(again.pool())
            .await
            .unwrap();
        assert_eq!(kept, "kept");
    }

    #[tokio::test]
    async fn a_transaction_that_found_no_room_does_not_spoil_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::file(&dir.path().join("x.db"), &NOTES).await.unwrap();
        let insert = async |body: String| {
            let mut tx = database.begin_write().await?;
            let inserted = sqlx::query("INSERT INTO notes (body) VALUES ($1)").bind(body);
            let done = inserted.execute(&mut *tx).await;
            done.map_err(|e| database.error(&e))?;
            tx.commit().await.map_err(|e| database.error(&e))
        };
        for _ in 0..2 * MAX_CONNECTIONS {
            let mut tx = database.begin_write().await.unwrap();
            // Of this connection only: the next one has room again.
            sqlx::query("PRAGMA max_page_count = 1")
                .execute(&mut *tx)
                .await
                .unwrap();
            let large = sqlx::query("INSERT INTO notes (body) VALUES ($1)").bind("x".repeat(1 << 20));
            let error = large.execute(&mut *tx).await.unwrap_err();
            assert!(
                matches!(database.error(&error), StoreError::Full { .. }),
                "{error}"
            );
            drop(tx);
            insert("small".into()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_named_without_its_password() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let url = format!("postgres://weft:hunter2@127.0.0.1:{port}/weft?sslmode=disable");
        let error = Database::server(&url, &NOTES).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&format!("postgres://127.0.0.1:{port}/weft")),
            "{text}"
        );
        assert!(!text.contains("hunter2") && !text.contains('\n'), "{text}");
        assert!(matches!(error, StoreError::Unreachable { .. }), "{text}");
    }

    #[test]
    fn no_secret_is_shown() {
        for (url, text) in [
            ("postgres://u:p@h:1/d?x=y", "postgres://h:1/d"),
            ("postgresql://u:p%40q@h/d", "postgres://h/d"),
            ("postgres://h", "postgres://h"),
        ] {
            assert_eq!(shown(url), text);
        }
    }
}
