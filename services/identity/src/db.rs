//! The authority's tables: its own certificates, join tokens, members and the audit record.

use crate::pattern::HostPattern;
use rustls_pki_types::CertificateDer;
use sqlx::{Executor, Row, Sqlite, Transaction, sqlite::SqliteRow};
use std::path::Path;
use weft_store::{Store, StoreError};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");

/// A certificate of the authority as stored.
#[derive(Debug, Clone)]
pub struct StoredAuthority {
    /// DER.
    pub cert: CertificateDer<'static>,
    /// PKCS#8 under the key-encryption key.
    pub sealed_key: Vec<u8>,
}

/// All there is of the authority.
#[derive(Debug, Clone)]
pub struct StoredTrust {
    /// Whose authority it is.
    pub trust_domain: String,
    /// Version of the bundle.
    pub bundle_version: u64,
    /// The newest root.
    pub root: StoredAuthority,
    /// The newest issuers, newest first.
    pub issuers: Vec<StoredAuthority>,
}

/// A join token's record.
#[derive(Debug, Clone)]
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

/// What is recorded of an issuance or a refusal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// Set by the database.
    pub id: u64,
    /// Seconds since the Unix epoch.
    pub time: u64,
    /// The method asked.
    pub action: &'static str,
    /// Who asked.
    pub caller: String,
    /// What was asked for or given.
    pub spiffe_id: String,
    /// Of the certificate given.
    pub serial: String,
    /// Why it was refused; empty for an issuance.
    pub reason: String,
}

/// A recorded [`Audit`] as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// What was recorded; `action` is in the field beside it.
    pub entry: Audit,
    /// "issue" or "refuse".
    pub outcome: String,
    /// The method asked.
    pub action: String,
}

/// The open database. Clones share.
#[derive(Debug, Clone)]
pub struct Db {
    store: Store,
}

/// A write transaction.
pub type Tx = Transaction<'static, Sqlite>;

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
            store: Store::open(path, &MIGRATIONS).await?,
        })
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

    /// The authority; `None` on first start.
    pub async fn trust(&self) -> Result<Option<StoredTrust>, StoreError> {
        self.read_trust().await.map_err(|e| self.error(&e))
    }

    async fn read_trust(&self) -> sqlx::Result<Option<StoredTrust>> {
        let row =
            sqlx::query("SELECT trust_domain, bundle_version FROM trust").fetch_optional(self.store.pool());
        let Some(row) = row.await? else { return Ok(None) };
        Ok(Some(StoredTrust {
            trust_domain: row.try_get("trust_domain")?,
            bundle_version: unsigned(row.try_get("bundle_version")?),
            root: self
                .newest("root")
                .await?
                .into_iter()
                .next()
                .ok_or(sqlx::Error::RowNotFound)?,
            issuers: self.newest("issuer").await?,
        }))
    }

    async fn newest(&self, kind: &str) -> sqlx::Result<Vec<StoredAuthority>> {
        const KEPT: i64 = 8;
        sqlx::query("SELECT cert_der, sealed_key FROM authorities WHERE kind = ? ORDER BY id DESC LIMIT ?")
            .bind(kind)
            .bind(KEPT)
            .fetch_all(self.store.pool())
            .await?
            .iter()
            .map(|row| {
                let cert: Vec<u8> = row.try_get("cert_der")?;
                Ok(StoredAuthority {
                    cert: cert.into(),
                    sealed_key: row.try_get("sealed_key")?,
                })
            })
            .collect()
    }

    /// Writes a new authority, whole.
    pub async fn create_trust(&self, trust: &StoredTrust, now: u64) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let written: sqlx::Result<()> = async {
            sqlx::query("INSERT INTO trust (id, trust_domain, bundle_version) VALUES (1, ?, ?)")
                .bind(&trust.trust_domain)
                .bind(int(trust.bundle_version))
                .execute(&mut *tx)
                .await?;
            insert_authority(&mut tx, "root", &trust.root, now).await?;
            for issuer in &trust.issuers {
                insert_authority(&mut tx, "issuer", issuer, now).await?;
            }
            Ok(())
        }
        .await;
        written.map_err(|e| self.error(&e))?;
        self.commit(tx).await
    }

    /// Adds an issuer; from now on it is the newest.
    pub async fn add_issuer(&self, issuer: &StoredAuthority, now: u64) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        insert_authority(&mut tx, "issuer", issuer, now)
            .await
            .map_err(|e| self.error(&e))?;
        self.commit(tx).await
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
            sqlx::query("DELETE FROM join_tokens WHERE expires_at < ?")
                .bind(int(now.saturating_sub(KEPT_SECONDS)))
                .execute(&mut **tx)
                .await?;
            sqlx::query(
                "INSERT INTO join_tokens (id, secret_sha256, kind, name, may_host, created_at, expires_at) \
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
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
        select_token(self.store.pool(), id)
            .await
            .map_err(|e| self.error(&e))
    }

    /// A join token's record, that nobody else uses before the transaction ends.
    pub async fn token(&self, tx: &mut Tx, id: &str) -> Result<Option<TokenRecord>, StoreError> {
        select_token(&mut **tx, id).await.map_err(|e| self.error(&e))
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
            sqlx::query("UPDATE join_tokens SET used_at = ? WHERE id = ?")
                .bind(int(now))
                .bind(id)
                .execute(&mut **tx)
                .await?;
            sqlx::query(
                "INSERT INTO members (kind, name, may_host, joined_at) VALUES (?, ?, ?, ?) \
                 ON CONFLICT (kind, name) DO UPDATE SET may_host = excluded.may_host, joined_at = excluded.joined_at",
            )
            .bind(&token.kind)
            .bind(&token.name)
            .bind(patterns_json(&token.may_host))
            .bind(int(now))
            .execute(&mut **tx)
            .await?;
            Ok(())
        }
        .await;
        written.map_err(|e| self.error(&e))
    }

    /// What a member may host; `None` when nobody of this name joined.
    pub async fn member(&self, kind: &str, name: &str) -> Result<Option<Vec<HostPattern>>, StoreError> {
        let text: sqlx::Result<Option<String>> =
            sqlx::query_scalar("SELECT may_host FROM members WHERE kind = ? AND name = ?")
                .bind(kind)
                .bind(name)
                .fetch_optional(self.store.pool())
                .await;
        text.and_then(|t| t.map(|t| patterns_from(&t)).transpose())
            .map_err(|e| self.error(&e))
    }

    /// All nodes, with what each may host.
    pub async fn nodes(&self) -> Result<Vec<(String, Vec<HostPattern>)>, StoreError> {
        let rows = sqlx::query("SELECT name, may_host FROM members WHERE kind = 'node' ORDER BY name")
            .fetch_all(self.store.pool())
            .await;
        let read = |row: &SqliteRow| Ok((row.try_get("name")?, patterns_from(row.try_get("may_host")?)?));
        rows.and_then(|rows| rows.iter().map(read).collect())
            .map_err(|e| self.error(&e))
    }

    /// Records an issuance or refusal.
    pub async fn audit(&self, entry: &Audit) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        self.audit_in(&mut tx, entry).await?;
        self.commit(tx).await
    }

    /// [`Db::audit`] as a part of a transaction.
    pub async fn audit_in(&self, tx: &mut Tx, entry: &Audit) -> Result<(), StoreError> {
        let outcome = if entry.reason.is_empty() {
            "issue"
        } else {
            "refuse"
        };
        sqlx::query(
            "INSERT INTO audit (time, outcome, action, caller, spiffe_id, serial, reason) \
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(int(entry.time))
        .bind(outcome)
        .bind(entry.action)
        .bind(&entry.caller)
        .bind(&entry.spiffe_id)
        .bind(&entry.serial)
        .bind(&entry.reason)
        .execute(&mut **tx)
        .await
        .map_err(|e| self.error(&e))?;
        Ok(())
    }

    /// Newest first, at most `limit`, older than `before_id` when that is not 0.
    pub async fn list_audit(&self, limit: u32, before_id: u64) -> Result<Vec<AuditRow>, StoreError> {
        let before = if before_id == 0 { i64::MAX } else { int(before_id) };
        let rows = sqlx::query("SELECT * FROM audit WHERE id < ? ORDER BY id DESC LIMIT ?")
            .bind(before)
            .bind(i64::from(limit))
            .fetch_all(self.store.pool())
            .await;
        rows.and_then(|rows| rows.iter().map(audit_row).collect())
            .map_err(|e| self.error(&e))
    }

    /// Drops all but the newest `keep` entries.
    pub async fn trim_audit(&self, keep: u64) -> Result<u64, StoreError> {
        let done = sqlx::query("DELETE FROM audit WHERE id <= (SELECT coalesce(max(id), 0) FROM audit) - ?")
            .bind(int(keep))
            .execute(self.store.pool())
            .await;
        done.map(|d| d.rows_affected()).map_err(|e| self.error(&e))
    }
}

async fn insert_authority(tx: &mut Tx, kind: &str, it: &StoredAuthority, now: u64) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO authorities (kind, cert_der, sealed_key, created_at) VALUES (?, ?, ?, ?)")
        .bind(kind)
        .bind(it.cert.as_ref())
        .bind(&it.sealed_key)
        .bind(int(now))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn select_token(
    db: impl Executor<'_, Database = Sqlite>,
    id: &str,
) -> sqlx::Result<Option<TokenRecord>> {
    let row = sqlx::query(
        "SELECT secret_sha256, kind, name, may_host, expires_at, used_at FROM join_tokens WHERE id = ?",
    )
    .bind(id)
    .fetch_optional(db)
    .await?;
    row.map(|r| token_record(&r)).transpose()
}

fn token_record(row: &SqliteRow) -> sqlx::Result<TokenRecord> {
    Ok(TokenRecord {
        secret_sha256: row.try_get("secret_sha256")?,
        kind: row.try_get("kind")?,
        name: row.try_get("name")?,
        may_host: patterns_from(row.try_get("may_host")?)?,
        expires_at: unsigned(row.try_get("expires_at")?),
        used_at: row.try_get::<Option<i64>, _>("used_at")?.map(unsigned),
    })
}

fn audit_row(row: &SqliteRow) -> sqlx::Result<AuditRow> {
    Ok(AuditRow {
        outcome: row.try_get("outcome")?,
        action: row.try_get("action")?,
        entry: Audit {
            id: unsigned(row.try_get("id")?),
            time: unsigned(row.try_get("time")?),
            action: "",
            caller: row.try_get("caller")?,
            spiffe_id: row.try_get("spiffe_id")?,
            serial: row.try_get("serial")?,
            reason: row.try_get("reason")?,
        },
    })
}
