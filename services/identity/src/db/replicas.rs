//! The processes that share the database: what their members hold, and which of them rotates.

use super::{Db, int, unsigned};
use sqlx::{Row, any::AnyRow};
use weft_store::StoreError;

/// Forgotten after so long, in seconds.
const FORGOTTEN: u64 = 3600;

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Chosen at its start.
    pub name: String,
    /// When it said so last, in seconds since the Unix epoch.
    pub seen_at: u64,
    /// Members that are connected to it.
    pub members: u64,
    /// The oldest bundle that one of them verifies by.
    pub min_acked: u64,
    /// Such a one.
    pub lagging: String,
}

impl Db {
    /// Says that a replica lives, and what its members hold.
    pub async fn heartbeat(&self, replica: &Replica) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let written: sqlx::Result<()> = async {
            sqlx::query("DELETE FROM replicas WHERE seen_at < $1")
                .bind(int(replica.seen_at.saturating_sub(FORGOTTEN)))
                .execute(&mut *tx)
                .await?;
            sqlx::query(
                "INSERT INTO replicas (id, seen_at, members, min_acked, lagging) VALUES ($1, $2, $3, $4, $5) \
                 ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at, members = excluded.members, \
                 min_acked = excluded.min_acked, lagging = excluded.lagging",
            )
            .bind(replica.name.as_str())
            .bind(int(replica.seen_at))
            .bind(int(replica.members))
            .bind(int(replica.min_acked))
            .bind(replica.lagging.as_str())
            .execute(&mut *tx)
            .await?;
            Ok(())
        }
        .await;
        written.map_err(|e| self.error(&e))?;
        self.commit(tx).await
    }

    /// Those that said something since then.
    pub async fn replicas(&self, since: u64) -> Result<Vec<Replica>, StoreError> {
        let rows = sqlx::query("SELECT * FROM replicas WHERE seen_at >= $1 ORDER BY id")
            .bind(int(since))
            .fetch_all(self.store.pool())
            .await;
        rows.and_then(|rows| rows.iter().map(replica).collect())
            .map_err(|e| self.error(&e))
    }

    /// Takes or keeps the right to rotate. False when another replica has it.
    pub async fn take_lease(&self, name: &str, now: u64, until: u64) -> Result<bool, StoreError> {
        let taken = sqlx::query(
            "UPDATE trust SET lease_holder = $1, lease_until = $2 WHERE lease_holder = $1 OR lease_until < $3",
        )
        .bind(name)
        .bind(int(until))
        .bind(int(now))
        .execute(self.store.pool())
        .await
        .map_err(|e| self.error(&e))?;
        Ok(taken.rows_affected() == 1)
    }

    /// Gives it back, and says that the replica is gone.
    pub async fn leave(&self, name: &str) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let written: sqlx::Result<()> = async {
            sqlx::query("UPDATE trust SET lease_until = 0 WHERE lease_holder = $1")
                .bind(name)
                .execute(&mut *tx)
                .await?;
            sqlx::query("DELETE FROM replicas WHERE id = $1")
                .bind(name)
                .execute(&mut *tx)
                .await?;
            Ok(())
        }
        .await;
        written.map_err(|e| self.error(&e))?;
        self.commit(tx).await
    }
}

fn replica(row: &AnyRow) -> sqlx::Result<Replica> {
    Ok(Replica {
        name: row.try_get("id")?,
        seen_at: unsigned(row.try_get("seen_at")?),
        members: unsigned(row.try_get("members")?),
        min_acked: unsigned(row.try_get("min_acked")?),
        lagging: row.try_get("lagging")?,
    })
}
