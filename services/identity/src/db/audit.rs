//! The audit record: what was given out and what was refused.

use super::{Db, Tx, int, unsigned};
use sqlx::{AssertSqlSafe, Row, any::AnyRow};
use std::fmt::Write as _;
use weft_store::StoreError;

/// Rows of one INSERT, nine values each: far below the 32766 that SQLite takes. Few sizes, so that
/// each stays prepared.
const ROWS: [usize; 4] = [128, 32, 8, 1];

/// Entries that are dropped at a time.
const TRIMMED: i64 = 2000;

/// What is recorded of an issuance or a refusal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// Seconds since the Unix epoch.
    pub time: u64,
    /// The method asked.
    pub action: &'static str,
    /// Who asked.
    pub caller: String,
    /// How the caller was known.
    pub attested: &'static str,
    /// What was asked for or given.
    pub spiffe_id: String,
    /// Of the certificate given.
    pub serial: String,
    /// When the certificate given ends.
    pub not_after: u64,
    /// Why it was refused; empty for an issuance.
    pub reason: String,
}

/// An issuance or refusal with who signed.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// What is written down.
    pub entry: Audit,
    /// The issuer that signed; 0 when nothing was.
    pub issuer_id: i64,
}

/// A recorded [`Audit`] as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Set by the database.
    pub id: u64,
    /// "issue" or "refuse".
    pub outcome: String,
    /// The method asked.
    pub action: String,
    /// How the caller was known.
    pub attested: String,
    /// What was recorded; `action` and `attested` are in the fields beside it.
    pub entry: Audit,
}

/// Which entries are asked for.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// At most so many.
    pub limit: u32,
    /// Older than this one; 0 for the newest.
    pub before_id: u64,
    /// "issue", "refuse", or empty for both.
    pub outcome: String,
    /// About this one; empty for all.
    pub spiffe_id: String,
    /// About this certificate; empty for all.
    pub serial: String,
    /// Certificates that are valid then; 0 for all entries.
    pub alive_at: u64,
}

impl Db {
    /// Records an issuance or refusal as a part of a transaction.
    pub async fn audit_in(&self, tx: &mut Tx, entry: &Audit) -> Result<(), StoreError> {
        self.audit_all(tx, &[entry]).await
    }

    /// Records any number.
    pub async fn audit_all(&self, tx: &mut Tx, entries: &[&Audit]) -> Result<(), StoreError> {
        let mut rest = entries;
        while let Some(rows) = ROWS.into_iter().find(|rows| *rows <= rest.len()) {
            let (chunk, after) = rest.split_at(rows);
            rest = after;
            let sql = insert(chunk.len());
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for entry in chunk {
                let outcome = if entry.reason.is_empty() {
                    "issue"
                } else {
                    "refuse"
                };
                query = query
                    .bind(int(entry.time))
                    .bind(outcome)
                    .bind(entry.action)
                    .bind(entry.caller.as_str())
                    .bind(entry.spiffe_id.as_str())
                    .bind(entry.serial.as_str())
                    .bind(entry.reason.as_str())
                    .bind(int(entry.not_after))
                    .bind(entry.attested);
            }
            query.execute(&mut **tx).await.map_err(|e| self.error(&e))?;
        }
        Ok(())
    }

    /// Newest first.
    pub async fn list_audit(&self, filter: &Filter) -> Result<Vec<AuditRow>, StoreError> {
        let before = match filter.before_id {
            0 => i64::MAX,
            id => int(id),
        };
        let rows = sqlx::query(
            "SELECT * FROM audit WHERE id < $1 AND ($3 = '' OR outcome = $3) AND ($4 = '' OR spiffe_id = $4) \
             AND ($5 = '' OR serial = $5) AND not_after >= $6 ORDER BY id DESC LIMIT $2",
        )
        .bind(before)
        .bind(i64::from(filter.limit))
        .bind(filter.outcome.as_str())
        .bind(filter.spiffe_id.as_str())
        .bind(filter.serial.as_str())
        .bind(int(filter.alive_at))
        .fetch_all(self.store.pool())
        .await;
        rows.and_then(|rows| rows.iter().map(audit_row).collect())
            .map_err(|e| self.error(&e))
    }

    /// Drops all but the newest `keep` entries, some at a time: nobody waits long for the write lock.
    pub async fn trim_audit(&self, keep: u64) -> Result<u64, StoreError> {
        let mut dropped = 0;
        loop {
            let done = sqlx::query(
                "DELETE FROM audit WHERE id <= (SELECT coalesce(max(id), 0) FROM audit) - $1 \
                 AND id < (SELECT coalesce(min(id), 0) FROM audit) + $2",
            )
            .bind(int(keep))
            .bind(TRIMMED)
            .execute(self.store.pool())
            .await;
            let rows = done.map_err(|e| self.error(&e))?.rows_affected();
            if rows == 0 {
                return Ok(dropped);
            }
            dropped += rows;
        }
    }
}

/// One statement for so many rows.
fn insert(rows: usize) -> String {
    const COLUMNS: usize = 9;
    let mut sql = String::from(
        "INSERT INTO audit (time, outcome, action, caller, spiffe_id, serial, reason, not_after, attested) VALUES ",
    );
    for row in 0..rows {
        sql.push_str(if row == 0 { "(" } else { ", (" });
        for column in 1..=COLUMNS {
            // Writing to a string does not fail.
            let _ = write!(
                sql,
                "{}${}",
                if column == 1 { "" } else { ", " },
                row * COLUMNS + column
            );
        }
        sql.push(')');
    }
    sql
}

fn audit_row(row: &AnyRow) -> sqlx::Result<AuditRow> {
    Ok(AuditRow {
        id: unsigned(row.try_get("id")?),
        outcome: row.try_get("outcome")?,
        action: row.try_get("action")?,
        attested: row.try_get("attested")?,
        entry: Audit {
            time: unsigned(row.try_get("time")?),
            action: "",
            caller: row.try_get("caller")?,
            attested: "",
            spiffe_id: row.try_get("spiffe_id")?,
            serial: row.try_get("serial")?,
            not_after: unsigned(row.try_get("not_after")?),
            reason: row.try_get("reason")?,
        },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_entries_are_kept() {
        let dir = tempfile::TempDir::new().unwrap();
        let db = Db::open(&dir.path().join("identity.db")).await.unwrap();
        let entries: Vec<Audit> = (0..5000)
            .map(|time| Audit {
                time,
                ..Audit::default()
            })
            .collect();
        let mut tx = db.begin().await.unwrap();
        db.audit_all(&mut tx, &entries.iter().collect::<Vec<_>>())
            .await
            .unwrap();
        db.commit(tx).await.unwrap();
        assert_eq!(db.trim_audit(5000).await.unwrap(), 0);
        // More than are dropped at a time.
        assert_eq!(db.trim_audit(700).await.unwrap(), 4300);
        let filter = Filter {
            limit: 1000,
            ..Filter::default()
        };
        let kept = db.list_audit(&filter).await.unwrap();
        let times = [kept[0].entry.time, kept.last().unwrap().entry.time];
        assert_eq!((kept.len(), times), (700, [4999, 4300]));
    }
}
