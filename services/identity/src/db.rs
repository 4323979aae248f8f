//! The authority's tables: join tokens and members here, its own certificates, the audit record,
//! revocations and replicas in the files below.

mod audit;
mod backup;
mod replicas;
mod revocations;
mod tokens;
mod trust;

pub use audit::{Audit, AuditRow, Filter, Recorded};
pub use backup::Image;
pub use replicas::Replica;
pub use revocations::{Revocation, Target};
pub use tokens::TokenUse;
pub use trust::{
    Cross, NewIssuer, NewJwtKey, NewRoot, Op, State, StoredIssuer, StoredJwtKey, StoredRoot, StoredTrust,
};

use crate::pattern::HostPattern;
use sqlx::{Any, AssertSqlSafe, Executor, Row, Transaction, any::AnyRow};
use std::path::Path;
use weft_store::{Database, StoreError};

static SQLITE: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: sqlx::migrate::Migrator = sqlx::migrate!("migrations/postgres");

/// A join token's record.
#[derive(Debug, Clone, Default)]
pub struct TokenRecord {
    /// SHA-256 of the secret.
    pub secret_sha256: Vec<u8>,
    /// "service" or "node".
    pub kind: String,
    /// The name inside the role.
    pub name: String,
    /// What a node may host.
    pub may_host: Vec<HostPattern>,
    /// Seconds since the Unix epoch.
    pub expires_at: u64,
    /// When it was used.
    pub used_at: Option<u64>,
}

/// The open database. Clones share.
#[derive(Debug, Clone)]
pub struct Db {
    store: Database,
}

/// A write transaction.
pub type Tx = Transaction<'static, Any>;

/// Times and counters are far below 2^63; what is not is stored as the largest.
fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn patterns_json(patterns: &[HostPattern]) -> String {
    // A list of two-text objects always serialises.
    serde_json::to_string(patterns).unwrap_or_else(|_| "[]".into())
}

fn patterns_from(text: &str) -> Result<Vec<HostPattern>, sqlx::Error> {
    serde_json::from_str(text).map_err(|e| sqlx::Error::Decode(Box::new(e)))
}

impl Db {
    /// Opens the file and brings it to the present schema.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            store: Database::file(path, &SQLITE).await?,
        })
    }

    /// Connects to a PostgreSQL server and brings its database to the present schema.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Ok(Self {
            store: Database::server(url, &POSTGRES).await?,
        })
    }

    /// The file or the server, for messages.
    pub fn name(&self) -> String {
        self.store.to_string()
    }

    /// Whether other replicas may use it at the same time.
    pub fn is_shared(&self) -> bool {
        self.store.is_shared()
    }

    /// Sorts an error of a query.
    pub fn error(&self, error: &sqlx::Error) -> StoreError {
        self.store.error(error)
    }

    /// Ends all connections.
    pub async fn close(self) {
        self.store.close().await;
    }

    /// Begins a transaction that may write.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        self.store.begin_write().await
    }

    /// Ends a transaction.
    pub async fn commit(&self, tx: Tx) -> Result<(), StoreError> {
        tx.commit().await.map_err(|e| self.error(&e))
    }

    /// Writes a new join token, and forgets those that ended long ago.
    pub async fn add_token(
        &self,
        tx: &mut Tx,
        id: &str,
        record: &TokenRecord,
        now: u64,
    ) -> Result<(), StoreError> {
        let written: sqlx::Result<()> = async {
            const KEPT_SECONDS: u64 = 7 * 24 * 3600;
            sqlx::query("DELETE FROM join_tokens WHERE expires_at < $1")
                .bind(int(now.saturating_sub(KEPT_SECONDS)))
                .execute(&mut **tx)
                .await?;
            sqlx::query(
                "INSERT INTO join_tokens (id, secret_sha256, kind, name, may_host, created_at, expires_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
            )
            .bind(id)
            .bind(&record.secret_sha256)
            .bind(&record.kind)
            .bind(&record.name)
            .bind(patterns_json(&record.may_host))
            .bind(int(now))
            .bind(int(record.expires_at))
            .execute(&mut **tx)
            .await?;
            Ok(())
        }
        .await;
        written.map_err(|e| self.error(&e))
    }

    /// A join token's record as it was committed last. It may be used up right after: whoever
    /// uses it looks again with [`Db::token`].
    pub async fn peek_token(&self, id: &str) -> Result<Option<TokenRecord>, StoreError> {
        select_token(self.store.pool(), id, "")
            .await
            .map_err(|e| self.error(&e))
    }

    /// A join token's record, that nobody else uses before the transaction ends.
    pub async fn token(&self, tx: &mut Tx, id: &str) -> Result<Option<TokenRecord>, StoreError> {
        select_token(&mut **tx, id, self.store.for_update())
            .await
            .map_err(|e| self.error(&e))
    }

    /// Uses up a token and makes its holder a member.
    pub async fn admit(
        &self,
        tx: &mut Tx,
        id: &str,
        token: &TokenRecord,
        now: u64,
    ) -> Result<(), StoreError> {
        let written: sqlx::Result<()> = async {
            sqlx::query("UPDATE join_tokens SET used_at = $1 WHERE id = $2")
                .bind(int(now))
                .bind(id)
                .execute(&mut **tx)
                .await?;
            Ok(())
        }
        .await;
        written.map_err(|e| self.error(&e))?;
        self.add_member(tx, token, "join-token", now).await
    }

    /// Makes somebody a member, or replaces what is known of it; `attested` says how it proved who it is.
    pub async fn add_member(
        &self,
        tx: &mut Tx,
        record: &TokenRecord,
        attested: &str,
        now: u64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO members (kind, name, may_host, joined_at, attested) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (kind, name) DO UPDATE SET may_host = excluded.may_host, joined_at = excluded.joined_at, \
             attested = excluded.attested",
        )
        .bind(&record.kind)
        .bind(&record.name)
        .bind(patterns_json(&record.may_host))
        .bind(int(now))
        .bind(attested)
        .execute(&mut **tx)
        .await
        .map(|_| ())
        .map_err(|e| self.error(&e))
    }

    /// What a member may host and how it proved who it is; `None` when nobody of this name joined.
    pub async fn member(
        &self,
        kind: &str,
        name: &str,
    ) -> Result<Option<(Vec<HostPattern>, String)>, StoreError> {
        let row = sqlx::query("SELECT may_host, attested FROM members WHERE kind = $1 AND name = $2")
            .bind(kind)
            .bind(name)
            .fetch_optional(self.store.pool())
            .await;
        let read = |row: AnyRow| -> sqlx::Result<_> {
            Ok((patterns_from(row.try_get("may_host")?)?, row.try_get("attested")?))
        };
        row.and_then(|row| row.map(read).transpose())
            .map_err(|e| self.error(&e))
    }

    /// Names of nodes that joined at or after a time.
    pub async fn joined_since(&self, time: u64) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar("SELECT name FROM members WHERE kind = 'node' AND joined_at >= $1")
            .bind(int(time))
            .fetch_all(self.store.pool())
            .await
            .map_err(|e| self.error(&e))
    }

    /// All nodes, with what each may host.
    pub async fn nodes(&self) -> Result<Vec<(String, Vec<HostPattern>)>, StoreError> {
        let rows = sqlx::query("SELECT name, may_host FROM members WHERE kind = 'node' ORDER BY name")
            .fetch_all(self.store.pool())
            .await;
        let read = |row: &AnyRow| Ok((row.try_get("name")?, patterns_from(row.try_get("may_host")?)?));
        rows.and_then(|rows| rows.iter().map(read).collect())
            .map_err(|e| self.error(&e))
    }
}

async fn select_token(
    db: impl Executor<'_, Database = Any>,
    id: &str,
    lock: &str,
) -> sqlx::Result<Option<TokenRecord>> {
    // The lock is one of two constants of the store.
    let row = sqlx::query(AssertSqlSafe(format!(
        "SELECT secret_sha256, kind, name, may_host, expires_at, used_at FROM join_tokens WHERE id = $1{lock}",
    )))
    .bind(id)
    .fetch_optional(db)
    .await?;
    row.map(|r| token_record(&r)).transpose()
}

fn token_record(row: &AnyRow) -> sqlx::Result<TokenRecord> {
    Ok(TokenRecord {
        secret_sha256: row.try_get("secret_sha256")?,
        kind: row.try_get("kind")?,
        name: row.try_get("name")?,
        may_host: patterns_from(row.try_get("may_host")?)?,
        expires_at: unsigned(row.try_get("expires_at")?),
        used_at: row.try_get::<Option<i64>, _>("used_at")?.map(unsigned),
    })
}
