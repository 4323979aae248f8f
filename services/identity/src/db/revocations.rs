//! Revocations as stored.

use super::{Db, Tx, int, unsigned};
use sqlx::{Row, any::AnyRow};
use weft_model::SpiffeId;
use weft_store::StoreError;

/// What a revocation meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// All certificates of an identity that begin too early.
    Identity(SpiffeId),
    /// One certificate.
    Serial(String),
}

impl Target {
    /// The identity or the serial.
    pub fn text(&self) -> String {
        match self {
            Self::Identity(id) => id.to_string(),
            Self::Serial(serial) => serial.clone(),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Identity(_) => "identity",
            Self::Serial(_) => "serial",
        }
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// What it meets.
    pub target: Target,
    /// Of an identity: certificates that begin before are revoked.
    pub valid_from: u64,
    /// The operator's words.
    pub reason: String,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// Nothing is left that it could meet.
    pub until: u64,
}

impl Db {
    /// When a recorded certificate ends.
    pub async fn certificate_end(&self, serial: &str) -> Result<Option<u64>, StoreError> {
        let end: sqlx::Result<Option<i64>> =
            sqlx::query_scalar("SELECT not_after FROM audit WHERE serial = $1 AND outcome = 'issue' LIMIT 1")
                .bind(serial)
                .fetch_optional(self.store.pool())
                .await;
        end.map(|e| e.filter(|e| *e > 0).map(unsigned))
            .map_err(|e| self.error(&e))
    }
}

pub(super) async fn put(tx: &mut Tx, it: &Revocation) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO revocations (kind, value, valid_from, reason, created_at, until) \
         VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (kind, value) DO UPDATE SET valid_from = excluded.valid_from, reason = excluded.reason, \
         created_at = excluded.created_at, until = excluded.until",
    )
    .bind(it.target.kind())
    .bind(it.target.text())
    .bind(int(it.valid_from))
    .bind(it.reason.as_str())
    .bind(int(it.created_at))
    .bind(int(it.until))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

pub(super) async fn remove(tx: &mut Tx, target: &Target) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM revocations WHERE kind = $1 AND value = $2")
        .bind(target.kind())
        .bind(target.text())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

pub(super) async fn all(tx: &mut Tx) -> sqlx::Result<Vec<Revocation>> {
    let rows = sqlx::query("SELECT * FROM revocations")
        .fetch_all(&mut **tx)
        .await?;
    rows.iter().map(revocation).collect()
}

fn revocation(row: &AnyRow) -> sqlx::Result<Revocation> {
    let value: String = row.try_get("value")?;
    let target = match row.try_get("kind")? {
        "identity" => Target::Identity(value.parse().map_err(|e| sqlx::Error::Decode(Box::new(e)))?),
        _ => Target::Serial(value),
    };
    // The largest number of the database stands for the largest there is.
    let time = |n: i64| if n == i64::MAX { u64::MAX } else { unsigned(n) };
    Ok(Revocation {
        target,
        valid_from: time(row.try_get("valid_from")?),
        reason: row.try_get("reason")?,
        created_at: unsigned(row.try_get("created_at")?),
        until: time(row.try_get("until")?),
    })
}
