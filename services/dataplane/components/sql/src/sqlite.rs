//! `state.sqlite`: one file beneath the app's folder.
//!
//! Values that are JSON are kept as they are, others in base64, as `is_binary` says.

use crate::common::{Running, duration, exists, failed, identifier, mismatch, timeout, within};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures::{FutureExt, future::BoxFuture};
use sqlx::{
    AssertSqlSafe, Row, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow},
};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use weft_components_api::{
    Block, Component, Concurrency, DeleteRequest, Driver, Field, GetRequest, InitError, Instance, Item,
    Metadata, MetadataError, Operation, Schema, SetRequest, SpecError, StateCapability, StateError,
    StateStore, beneath::parts, state_ttl,
};

/// Readers beside the one that writes.
const CONNECTIONS: u32 = 4;
const BUSY: Duration = Duration::from_secs(2);
/// What is written in the table of migrations when all of them are done.
const LEVEL: &str = "1";

/// The driver.
#[derive(Debug, Clone, Copy, Default)]
pub struct SqliteState;

impl Driver for SqliteState {
    fn block(&self) -> Block {
        Block::State
    }

    fn kind(&self) -> &'static str {
        "state.sqlite"
    }

    fn schema(&self) -> &'static Schema {
        const SCHEMA: &Schema = &Schema {
            fields: &[
                Field::required("connectionString"),
                Field::optional("tableName"),
                Field::optional("metadataTableName"),
                Field::optional("timeout"),
                Field::optional("timeoutInSeconds"),
                Field::optional("cleanupInterval"),
                Field::optional("cleanupIntervalInSeconds"),
                Field::optional("busyTimeout"),
                Field::optional("disableWAL"),
            ],
        };
        SCHEMA
    }

    fn open(&self, instance: Instance) -> BoxFuture<'_, Result<Component, InitError>> {
        async move {
            let settings = Settings::read(&instance).map_err(SpecError::from)?;
            let store = Store::open(settings).await;
            Ok(Component::State(Arc::new(
                store.map_err(|e| InitError::Failed(e.to_string()))?,
            )))
        }
        .boxed()
    }
}

struct Settings {
    /// `None`: in memory.
    file: Option<PathBuf>,
    table: String,
    metadata_table: String,
    timeout: Duration,
    busy: Duration,
    cleanup: Option<Duration>,
    wal: bool,
}

impl Settings {
    fn read(instance: &Instance) -> Result<Self, MetadataError> {
        const STRING: &str = "connectionString";
        let metadata = &instance.metadata;
        let given = metadata.get(STRING).unwrap_or_default().trim();
        let name = given.strip_prefix("file:").unwrap_or(given);
        let (name, options) = name.split_once('?').unwrap_or((name, ""));
        let in_memory = name == ":memory:" || options.split('&').any(|o| o == "mode=memory");
        if !in_memory
            && options
                .split('&')
                .any(|o| !o.is_empty() && o != "cache=shared" && o != "mode=rwc")
        {
            let why = format!("options {options:?} are not supported; there are metadata for them");
            return Err(Metadata::wrong(STRING, why));
        }
        let file = match in_memory {
            true => None,
            false => {
                let steps = parts(name).map_err(|e| Metadata::wrong(STRING, e.to_string()))?;
                if steps.is_empty() {
                    return Err(Metadata::wrong(STRING, format!("{given:?} names no file")));
                }
                Some(instance.home.files.join(steps.join("/")))
            }
        };
        let table = identifier(metadata, "tableName", "state")?;
        let metadata_table = identifier(metadata, "metadataTableName", "metadata")?;
        if table == metadata_table {
            return Err(Metadata::wrong("metadataTableName", "must not be tableName"));
        }
        Ok(Self {
            file,
            table,
            metadata_table,
            timeout: timeout(metadata)?,
            busy: duration(metadata, ["busyTimeout", "busyTimeout"])?.unwrap_or(BUSY),
            cleanup: duration(metadata, ["cleanupInterval", "cleanupIntervalInSeconds"])?,
            wal: !metadata.truth("disableWAL")?,
        })
    }
}

/// The statements on one table.
struct Statements {
    get: String,
    upsert: String,
    insert: String,
    update: String,
    delete: String,
    delete_version: String,
}

const THERE: &str = "(expiration_time IS NULL OR expiration_time > CURRENT_TIMESTAMP)";
const VALUES: &str = "(?1, ?2, ?3, ?4, CURRENT_TIMESTAMP, \
    CASE WHEN ?5 > 0 THEN DATETIME(CURRENT_TIMESTAMP, '+' || ?5 || ' seconds') END)";
const FIELDS: &str = "(key, value, is_binary, etag, update_time, expiration_time)";
const REPLACE: &str = "value = excluded.value, is_binary = excluded.is_binary, etag = excluded.etag, \
    update_time = excluded.update_time, expiration_time = excluded.expiration_time";

impl Statements {
    fn of(table: &str) -> Self {
        let insert =
            format!("INSERT INTO {table} {FIELDS} VALUES {VALUES} ON CONFLICT (key) DO UPDATE SET {REPLACE}");
        Self {
            get: format!(
                "SELECT value, is_binary, etag, unixepoch(expiration_time) AS ends FROM {table} WHERE key = ?1 AND {THERE}"
            ),
            insert: format!(
                "{insert} WHERE NOT (expiration_time IS NULL OR {table}.expiration_time > CURRENT_TIMESTAMP)"
            )
            .replace(
                "(expiration_time IS NULL",
                &format!("({table}.expiration_time IS NULL"),
            ),
            upsert: insert,
            update: format!(
                "UPDATE {table} SET value = ?2, is_binary = ?3, etag = ?4, update_time = CURRENT_TIMESTAMP, \
                 expiration_time = CASE WHEN ?5 > 0 THEN DATETIME(CURRENT_TIMESTAMP, '+' || ?5 || ' seconds') END \
                 WHERE key = ?1 AND etag = ?6 AND {THERE}"
            ),
            delete: format!("DELETE FROM {table} WHERE key = ?1"),
            delete_version: format!("DELETE FROM {table} WHERE key = ?1 AND etag = ?2 AND {THERE}"),
        }
    }
}

struct Store {
    pool: SqlitePool,
    statements: Statements,
    timeout: Duration,
    _sweeping: Option<Running>,
}

impl Store {
    async fn open(settings: Settings) -> Result<Self, sqlx::Error> {
        let Settings {
            file,
            table,
            metadata_table,
            ..
        } = &settings;
        let mut options = SqliteConnectOptions::new()
            .busy_timeout(settings.busy)
            .create_if_missing(true);
        options = match file {
            Some(file) => {
                if let Some(folder) = file.parent() {
                    tokio::fs::create_dir_all(folder).await?;
                }
                let journal = match settings.wal {
                    true => SqliteJournalMode::Wal,
                    false => SqliteJournalMode::Delete,
                };
                options.filename(file).journal_mode(journal)
            }
            None => options.in_memory(true),
        };
        // A database in memory is its connection's.
        let connections = if file.is_some() { CONNECTIONS } else { 1 };
        let pool = SqlitePoolOptions::new()
            .min_connections(u32::from(file.is_none()))
            .max_connections(connections)
            .acquire_timeout(settings.timeout)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options)
            .await?;
        migrate(&pool, table, metadata_table).await?;
        let (sweeper, sweep) = (
            pool.clone(),
            format!(
                "DELETE FROM {table} WHERE expiration_time IS NOT NULL AND expiration_time < CURRENT_TIMESTAMP"
            ),
        );
        let sweeping = Running::sweeping(settings.cleanup, move || {
            let (pool, sweep) = (sweeper.clone(), sweep.clone());
            async move {
                Ok(sqlx::query(AssertSqlSafe(sweep))
                    .execute(&pool)
                    .await?
                    .rows_affected())
            }
        });
        Ok(Self {
            statements: Statements::of(table),
            timeout: settings.timeout,
            pool,
            _sweeping: sweeping,
        })
    }

    async fn set(&self, connection: &mut SqliteConnection, set: SetRequest) -> Result<(), StateError> {
        let ttl = state_ttl(&set.metadata)?.map_or(0, |ttl| ttl.as_secs());
        let ttl = i64::try_from(ttl).unwrap_or(i64::MAX);
        let wanted = set.etag.as_deref().filter(|etag| !etag.is_empty());
        let statement = match (wanted, set.concurrency) {
            (Some(_), _) => &self.statements.update,
            (None, Concurrency::FirstWrite) => &self.statements.insert,
            (None, Concurrency::LastWrite) => &self.statements.upsert,
        };
        let (value, is_binary) = text_of(&set.value);
        let mut query = sqlx::query(AssertSqlSafe(statement.clone()))
            .bind(&set.key)
            .bind(value)
            .bind(is_binary)
            .bind(uuid::Uuid::new_v4().to_string())
            .bind(ttl);
        if let Some(wanted) = wanted {
            query = query.bind(wanted);
        }
        let done = query.execute(connection).await.map_err(failed)?;
        match (done.rows_affected(), wanted) {
            (1.., _) => Ok(()),
            (0, Some(_)) => Err(mismatch(&set.key)),
            (0, None) => Err(exists()),
        }
    }

    async fn remove(
        &self,
        connection: &mut SqliteConnection,
        delete: DeleteRequest,
    ) -> Result<(), StateError> {
        let wanted = delete.etag.as_deref().filter(|etag| !etag.is_empty());
        let Some(wanted) = wanted else {
            let query = sqlx::query(AssertSqlSafe(self.statements.delete.clone()));
            return query
                .bind(&delete.key)
                .execute(connection)
                .await
                .map(drop)
                .map_err(failed);
        };
        let query = sqlx::query(AssertSqlSafe(self.statements.delete_version.clone()));
        let done = query
            .bind(&delete.key)
            .bind(wanted)
            .execute(connection)
            .await
            .map_err(failed)?;
        match done.rows_affected() {
            0 => Err(mismatch(&delete.key)),
            _ => Ok(()),
        }
    }

    async fn write(&self, operations: Vec<Operation>) -> Result<(), StateError> {
        // Not begun as a reader: who only then wants to write may not be able to any more.
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        for operation in operations {
            match operation {
                Operation::Upsert(set) => self.set(&mut transaction, set).await?,
                Operation::Delete(delete) => self.remove(&mut transaction, delete).await?,
            }
        }
        transaction.commit().await.map_err(failed)
    }
}

/// As it is kept.
fn text_of(value: &[u8]) -> (String, bool) {
    match serde_json::from_slice::<serde::de::IgnoredAny>(value).map(|_| std::str::from_utf8(value)) {
        Ok(Ok(json)) => (json.to_owned(), false),
        _ => (STANDARD.encode(value), true),
    }
}

fn item(row: &SqliteRow) -> Result<Item, StateError> {
    let text: String = row.try_get("value").map_err(failed)?;
    let is_binary: bool = row.try_get("is_binary").map_err(failed)?;
    let value = match is_binary {
        true => STANDARD
            .decode(&text)
            .map_err(|e| failed(format!("failed to decode binary data: {e}")))?,
        false => text.into_bytes(),
    };
    let ends: Option<i64> = row.try_get("ends").map_err(failed)?;
    let ends = ends.and_then(|ends| u64::try_from(ends).ok());
    Ok(Item {
        value: value.into(),
        etag: Some(row.try_get("etag").map_err(failed)?),
        expires: ends.map(|ends| SystemTime::UNIX_EPOCH + Duration::from_secs(ends)),
    })
}

async fn migrate(pool: &SqlitePool, table: &str, metadata_table: &str) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    let made = format!(
        "CREATE TABLE IF NOT EXISTS {metadata_table} (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL)"
    );
    sqlx::query(AssertSqlSafe(made))
        .execute(&mut *transaction)
        .await?;
    let asked = format!("SELECT value FROM {metadata_table} WHERE key = 'migrations'");
    let level: Option<String> = sqlx::query_scalar(AssertSqlSafe(asked))
        .fetch_optional(&mut *transaction)
        .await?;
    match level.as_deref() {
        Some(LEVEL) => return transaction.commit().await,
        None | Some("0") => {}
        Some(other) => {
            let problem =
                format!("the database has the form {other}, and this version of Weft knows {LEVEL}");
            return Err(sqlx::Error::Configuration(problem.into()));
        }
    }
    let made = format!(
        "CREATE TABLE IF NOT EXISTS {table} (
            key TEXT NOT NULL PRIMARY KEY,
            value TEXT NOT NULL,
            is_binary BOOLEAN NOT NULL,
            etag TEXT NOT NULL,
            expiration_time TIMESTAMP DEFAULT NULL,
            update_time TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        )"
    );
    sqlx::query(AssertSqlSafe(made))
        .execute(&mut *transaction)
        .await?;
    let noted = format!(
        "INSERT INTO {metadata_table} (key, value) VALUES ('migrations', ?1)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    );
    sqlx::query(AssertSqlSafe(noted))
        .bind(LEVEL)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}

impl StateStore for Store {
    fn capabilities(&self) -> &'static [StateCapability] {
        &[
            StateCapability::Etag,
            StateCapability::Transactional,
            StateCapability::Ttl,
        ]
    }

    fn get(&self, request: GetRequest) -> BoxFuture<'_, Result<Option<Item>, StateError>> {
        let get = async move {
            let query = sqlx::query(AssertSqlSafe(self.statements.get.clone()));
            let row = query
                .bind(&request.key)
                .fetch_optional(&self.pool)
                .await
                .map_err(failed)?;
            row.as_ref().map(item).transpose()
        };
        within(self.timeout, get).boxed()
    }

    fn set(&self, request: SetRequest) -> BoxFuture<'_, Result<(), StateError>> {
        let set = async move {
            let mut connection = self.pool.acquire().await.map_err(failed)?;
            self.set(&mut connection, request).await
        };
        within(self.timeout, set).boxed()
    }

    fn delete(&self, request: DeleteRequest) -> BoxFuture<'_, Result<(), StateError>> {
        let delete = async move {
            let mut connection = self.pool.acquire().await.map_err(failed)?;
            self.remove(&mut connection, request).await
        };
        within(self.timeout, delete).boxed()
    }

    fn transact(&self, operations: Vec<Operation>) -> BoxFuture<'_, Result<(), StateError>> {
        within(self.timeout, self.write(operations)).boxed()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_components_conformance::{instance, state};

    async fn open(
        folder: &std::path::Path,
        metadata: &[(&str, &str)],
    ) -> Result<Arc<dyn StateStore>, InitError> {
        let mut instance = instance("store", metadata);
        instance.home.files = folder.to_owned();
        match SqliteState.open(instance).await? {
            Component::State(store) => Ok(store),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn conforms() {
        let folder = tempfile::tempdir().unwrap();
        let next = std::sync::atomic::AtomicUsize::new(0);
        let shown = state::conforms(async || {
            let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            open(folder.path(), &[("connectionString", &format!("data/{n}.db"))])
                .await
                .unwrap()
        })
        .await;
        weft_components_conformance::table::told("state.sqlite", &shown);
    }

    #[tokio::test]
    async fn conforms_in_memory() {
        let nowhere = std::path::Path::new("/nonexistent");
        state::conforms(async || open(nowhere, &[("connectionString", ":memory:")]).await.unwrap()).await;
    }

    fn set(key: &str, value: &'static [u8]) -> SetRequest {
        SetRequest {
            key: key.into(),
            value: value.into(),
            ..SetRequest::default()
        }
    }

    #[tokio::test]
    async fn a_file_has_daprs_form_and_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = [
            ("connectionString", "file:../../data.db"),
            ("cleanupInterval", "50ms"),
        ];
        let store = open(folder.path(), &metadata).await.unwrap();
        store.set(set("cart||json", b"{\"n\": 1}")).await.unwrap();
        store.set(set("cart||binary", b"\xffnone")).await.unwrap();
        let short = SetRequest {
            metadata: vec![("ttlInSeconds".into(), "1".into())],
            ..set("cart||short", b"1")
        };
        store.set(short).await.unwrap();
        let looked = SqliteConnectOptions::new().filename(folder.path().join("data.db"));
        let look = SqlitePool::connect_with(looked).await.unwrap();
        let row = |key: &'static str| {
            let query = sqlx::query_as::<_, (String, bool, String)>(
                "SELECT value, is_binary, etag FROM state WHERE key = ?1",
            );
            query.bind(key).fetch_one(&look)
        };
        let (value, is_binary, etag) = row("cart||json").await.unwrap();
        assert_eq!((value.as_str(), is_binary, etag.len()), ("{\"n\": 1}", false, 36));
        let (value, is_binary, _) = row("cart||binary").await.unwrap();
        assert_eq!(
            (STANDARD.decode(value).unwrap().as_slice(), is_binary),
            (b"\xffnone".as_ref(), true)
        );
        let noted: (String, String) = sqlx::query_as("SELECT key, value FROM metadata")
            .fetch_one(&look)
            .await
            .unwrap();
        assert_eq!(noted, ("migrations".into(), "1".into()));
        // What has ended is removed in time.
        let swept = async {
            while row("cart||short").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), swept)
            .await
            .expect("it is not swept");
        drop(store);
        let again = open(folder.path(), &metadata).await.unwrap();
        let request = GetRequest {
            key: "cart||binary".into(),
            ..GetRequest::default()
        };
        assert_eq!(
            again.get(request).await.unwrap().unwrap().value.as_ref(),
            b"\xffnone"
        );
        drop(again);
        sqlx::query("UPDATE metadata SET value = '7'")
            .execute(&look)
            .await
            .unwrap();
        let newer = open(folder.path(), &metadata).await.err().unwrap().to_string();
        assert!(newer.contains("the form 7"), "{newer}");
    }

    #[tokio::test]
    async fn what_can_not_be_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for (metadata, said) in [
            (&[("connectionString", "/")][..], "names no file"),
            (&[("connectionString", "a.db?_pragma=x")], "\"_pragma=x\""),
            (
                &[("connectionString", "a.db"), ("tableName", "a;b")],
                "\"tableName\"",
            ),
            (
                &[("connectionString", "a.db"), ("tableName", "metadata")],
                "must not be tableName",
            ),
            (
                &[("connectionString", "a.db"), ("disableWAL", "maybe")],
                "\"disableWAL\"",
            ),
        ] {
            let error = open(folder.path(), metadata).await.err().unwrap().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
