//! `state.postgresql` v2.

use crate::{
    bridge::Bridge,
    common::{Running, duration, exists, failed, identifier, mismatch, timeout, within},
    dsn::Server,
};
use futures::{FutureExt, future::BoxFuture};
use sqlx::{
    AssertSqlSafe, PgConnection, PgPool, Row,
    postgres::{PgPoolOptions, PgRow, PgSslMode},
};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};
use weft_components_api::{
    Block, Component, Concurrency, DeleteRequest, Driver, Field, GetRequest, InitError, Instance, Item,
    Metadata, MetadataError, Operation, Schema, SetRequest, SpecError, StateCapability, StateError,
    StateStore, state_ttl,
};

/// Connections of one app, when the manifest does not say.
const CONNECTIONS: u64 = 8;
const MAX_CONNECTIONS: u64 = 64;
const CLEANUP: Duration = Duration::from_secs(3600);
/// The migrations that there are, as Dapr counts them.
const LEVEL: i32 = 2;

/// The driver.
#[derive(Debug, Clone, Copy, Default)]
pub struct PostgresState;

impl Driver for PostgresState {
    fn block(&self) -> Block {
        Block::State
    }

    fn kind(&self) -> &'static str {
        "state.postgresql"
    }

    fn versions(&self) -> &'static [&'static str] {
        &["v2"]
    }

    fn schema(&self) -> &'static Schema {
        const SCHEMA: &Schema = &Schema {
            fields: &[
                Field::required("connectionString"),
                Field::optional("tablePrefix"),
                Field::optional("metadataTableName"),
                Field::optional("timeout"),
                Field::optional("timeoutInSeconds"),
                Field::optional("cleanupInterval"),
                Field::optional("cleanupIntervalInSeconds"),
                Field::optional("maxConns"),
                Field::optional("connectionMaxIdleTime"),
            ],
        };
        SCHEMA
    }

    fn open(&self, instance: Instance) -> BoxFuture<'_, Result<Component, InitError>> {
        async move {
            let settings = Settings::read(&instance.metadata).map_err(SpecError::from)?;
            let store = Store::open(settings, &instance)
                .await
                .map_err(InitError::Failed)?;
            Ok(Component::State(Arc::new(store)))
        }
        .boxed()
    }
}

struct Settings {
    server: Server,
    prefix: String,
    metadata_table: String,
    timeout: Duration,
    cleanup: Option<Duration>,
    connections: u32,
    idle: Option<Duration>,
}

impl Settings {
    fn read(metadata: &Metadata) -> Result<Self, MetadataError> {
        const STRING: &str = "connectionString";
        let server = Server::read(metadata.get(STRING).unwrap_or_default());
        let connections = metadata.get("maxConns").filter(|text| !text.trim().is_empty());
        let connections = connections
            .map(|_| metadata.number("maxConns"))
            .transpose()?
            .flatten();
        let connections = connections
            .filter(|n| *n > 0)
            .unwrap_or(CONNECTIONS)
            .min(MAX_CONNECTIONS);
        let cleanup = duration(metadata, ["cleanupInterval", "cleanupIntervalInSeconds"])?.unwrap_or(CLEANUP);
        Ok(Self {
            server: server.map_err(|e| Metadata::wrong(STRING, e))?,
            prefix: identifier(metadata, "tablePrefix", "")?,
            metadata_table: identifier(metadata, "metadataTableName", "dapr_metadata")?,
            timeout: timeout(metadata)?,
            cleanup: Some(cleanup),
            connections: u32::try_from(connections).unwrap_or(1),
            idle: duration(metadata, ["connectionMaxIdleTime", "connectionMaxIdleTime"])?,
        })
    }

    fn table(&self) -> String {
        format!("{}state", self.prefix)
    }
}

/// The statements on one table.
struct Statements {
    get: String,
    bulk: String,
    upsert: String,
    insert: String,
    update: String,
    delete: String,
    delete_version: String,
}

const ENDS: &str = "CASE WHEN $3 > 0 THEN now() + make_interval(secs => $3) END";
const COLUMNS: &str = "key, value, etag::text AS etag, EXTRACT(EPOCH FROM expires_at)::float8 AS ends";

impl Statements {
    fn of(table: &str) -> Self {
        let there = "(expires_at IS NULL OR expires_at >= now())";
        let upsert = format!(
            "INSERT INTO {table} AS t (key, value, etag, expires_at) VALUES ($1, $2, gen_random_uuid(), {ENDS})
             ON CONFLICT (key) DO UPDATE SET
               value = excluded.value, updated_at = now(), etag = excluded.etag, expires_at = excluded.expires_at"
        );
        Self {
            get: format!("SELECT {COLUMNS} FROM {table} WHERE key = $1 AND {there}"),
            bulk: format!("SELECT {COLUMNS} FROM {table} WHERE key = ANY($1) AND {there}"),
            insert: format!("{upsert} WHERE t.expires_at IS NOT NULL AND t.expires_at < now()"),
            upsert,
            update: format!(
                "UPDATE {table} SET value = $2, updated_at = now(), etag = gen_random_uuid(), expires_at = {ENDS}
                 WHERE key = $1 AND etag = $4::uuid AND {there}"
            ),
            delete: format!("DELETE FROM {table} WHERE key = $1"),
            delete_version: format!("DELETE FROM {table} WHERE key = $1 AND etag = $2::uuid AND {there}"),
        }
    }
}

struct Store {
    pool: PgPool,
    statements: Statements,
    timeout: Duration,
    _sweeping: Option<Running>,
    _bridge: Bridge,
}

impl Store {
    async fn open(settings: Settings, instance: &Instance) -> Result<Self, String> {
        let Server { host, port, options } = &settings.server;
        let net = instance.home.net.clone();
        let bridge = Bridge::open(net, host.clone(), *port).map_err(|e| e.to_string())?;
        let options = options
            .clone()
            .socket(bridge.folder())
            .port(*port)
            .ssl_mode(PgSslMode::Disable);
        let pool = PgPoolOptions::new()
            .max_connections(settings.connections)
            .acquire_timeout(settings.timeout)
            .idle_timeout(settings.idle)
            .connect_with(options)
            .await
            .map_err(|e| format!("failed to connect to the database at {host}:{port}: {e}"))?;
        let table = settings.table();
        migrate(&pool, &settings)
            .await
            .map_err(|e| format!("failed to make table {table}: {e}"))?;
        let sweeper = pool.clone();
        let sweep = format!("DELETE FROM {table} WHERE expires_at IS NOT NULL AND expires_at < now()");
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
            pool,
            statements: Statements::of(&table),
            timeout: settings.timeout,
            _sweeping: sweeping,
            _bridge: bridge,
        })
    }

    async fn set(&self, connection: &mut PgConnection, set: SetRequest) -> Result<(), StateError> {
        let ttl = state_ttl(&set.metadata)?.map_or(0.0, |ttl| ttl.as_secs_f64());
        let wanted = set.etag.as_deref().filter(|etag| !etag.is_empty());
        if let Some(wanted) = wanted {
            check(&set.key, wanted)?;
        }
        let statement = match (wanted, set.concurrency) {
            (Some(_), _) => &self.statements.update,
            (None, Concurrency::FirstWrite) => &self.statements.insert,
            (None, Concurrency::LastWrite) => &self.statements.upsert,
        };
        let query = sqlx::query(AssertSqlSafe(statement.clone()));
        let mut query = query.bind(&set.key).bind(set.value.as_ref()).bind(ttl);
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

    async fn remove(&self, connection: &mut PgConnection, delete: DeleteRequest) -> Result<(), StateError> {
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
        check(&delete.key, wanted)?;
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
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        for operation in operations {
            match operation {
                Operation::Upsert(set) => self.set(&mut transaction, set).await?,
                Operation::Delete(delete) => self.remove(&mut transaction, delete).await?,
            }
        }
        transaction.commit().await.map_err(failed)
    }

    async fn several(&self, keys: &[String]) -> Result<HashMap<String, Item>, StateError> {
        let query = sqlx::query(AssertSqlSafe(self.statements.bulk.clone()));
        let rows = query.bind(keys).fetch_all(&self.pool).await.map_err(failed)?;
        rows.iter()
            .map(|row| Ok((row.try_get("key").map_err(failed)?, item(row)?)))
            .collect()
    }
}

/// A version that is none can not be there.
fn check(key: &str, etag: &str) -> Result<(), StateError> {
    match uuid::Uuid::parse_str(etag) {
        Ok(_) => Ok(()),
        Err(_) => Err(mismatch(key)),
    }
}

fn item(row: &PgRow) -> Result<Item, StateError> {
    let value: Vec<u8> = row.try_get("value").map_err(failed)?;
    let ends: Option<f64> = row.try_get("ends").map_err(failed)?;
    let ends = ends.and_then(|ends| Duration::try_from_secs_f64(ends).ok());
    Ok(Item {
        value: value.into(),
        etag: Some(row.try_get("etag").map_err(failed)?),
        expires: ends.map(|ends| SystemTime::UNIX_EPOCH + ends),
    })
}

/// Brings the tables to Dapr's form, one agent at a time.
async fn migrate(pool: &PgPool, settings: &Settings) -> Result<(), sqlx::Error> {
    let (table, metadata_table) = (settings.table(), &settings.metadata_table);
    let key = format!("migrations-state-v2-{}", settings.prefix);
    let mut transaction = pool.begin().await?;
    let lock =
        sqlx::query("SELECT pg_advisory_xact_lock(hashtext($1))").bind(format!("weft {metadata_table}"));
    lock.execute(&mut *transaction).await?;
    let made = format!(
        "CREATE TABLE IF NOT EXISTS {metadata_table} (key text NOT NULL PRIMARY KEY, value text NOT NULL)"
    );
    sqlx::query(AssertSqlSafe(made))
        .execute(&mut *transaction)
        .await?;
    let asked = format!("SELECT value FROM {metadata_table} WHERE key = $1");
    let asked = sqlx::query_scalar(AssertSqlSafe(asked)).bind(&key);
    let level: Option<String> = asked.fetch_optional(&mut *transaction).await?;
    let level = level.map_or(Ok(0), |text| text.parse::<i32>());
    let level = level.map_err(|e| sqlx::Error::Configuration(format!("{key}: {e}").into()))?;
    if level > LEVEL {
        let problem = format!("the database has the form {level}, and this version of Weft knows {LEVEL}");
        return Err(sqlx::Error::Configuration(problem.into()));
    }
    let mut steps = Vec::new();
    if level < 1 {
        steps.push(format!(
            "CREATE TABLE IF NOT EXISTS {table} (
                key text NOT NULL PRIMARY KEY,
                value bytea NOT NULL,
                etag uuid NOT NULL DEFAULT gen_random_uuid(),
                created_at timestamp with time zone NOT NULL DEFAULT now(),
                updated_at timestamp with time zone,
                expires_at timestamp with time zone
            )"
        ));
        steps.push(format!("CREATE INDEX ON {table} (expires_at)"));
    }
    if level < 2 {
        let index = format!("{}_row_id_uidx", table.rsplit('.').next().unwrap_or(&table));
        steps.push(format!(
            "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS row_id bigint GENERATED BY DEFAULT AS IDENTITY NOT NULL"
        ));
        steps.push(format!(
            "CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {table} (row_id)"
        ));
        steps.push(format!(
            "INSERT INTO {metadata_table} (key, value) VALUES ('{key}', '{LEVEL}')
             ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        ));
    }
    for step in steps {
        sqlx::query(AssertSqlSafe(step))
            .execute(&mut *transaction)
            .await?;
    }
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

    fn bulk_get(
        &self,
        requests: Vec<GetRequest>,
        _: usize,
    ) -> BoxFuture<'_, Vec<Result<Option<Item>, StateError>>> {
        async move {
            let keys: Vec<String> = requests.into_iter().map(|request| request.key).collect();
            match within(self.timeout, self.several(&keys)).await {
                // A key may be asked for twice.
                Ok(items) => keys.iter().map(|key| Ok(items.get(key).cloned())).collect(),
                Err(e) => keys.iter().map(|_| Err(e.clone())).collect(),
            }
        }
        .boxed()
    }
}
