//! Who may write to a database on a server: one process at a time, for services whose state is in
//! memory.
//!
//! Owns the one row of `weft_lease`. Its `generation` goes up with each holder, and every write
//! transaction looks at it under a lock that lasts until the commit: a holder that was replaced while it
//! was stopped or cut off can not write any more, whatever it believes. The time in the row only says
//! when somebody else may take over; it is the server's clock alone. What crosses the border is
//! a [`Standing`].

use sqlx::{Any, AnyPool, Executor, Row, Transaction};
use std::time::Duration;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// After this long without a word of its holder, the next one takes over.
const TTL: Duration = Duration::from_secs(10);
/// Between two words.
const RENEW: Duration = Duration::from_secs(1);
/// How long each may take.
const ANSWER: Duration = Duration::from_secs(2);
/// A holder that got no answer for this long can not be sure any more. The next look after it is at most
/// `RENEW` and `ANSWER` later, before anybody else has the lease.
const SURE: Duration = Duration::from_secs(6);
/// Between two tries to get it.
const ASK: Duration = Duration::from_millis(500);

/// Any number will do, as long as every version has the same.
const CREATION: i64 = 0x7765_6674;
/// The server's clock, in milliseconds.
const NOW: &str = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)";

/// What a process knows of its right to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It has it.
    Held,
    /// The server has not answered for so long that somebody else may have it soon.
    Unsure,
    /// Somebody else took it.
    Taken {
        /// As it calls itself.
        by: String,
    },
}

/// The right to write, renewed until it is dropped or given back.
#[derive(Debug)]
pub(crate) struct Lease {
    generation: i64,
    standing: watch::Receiver<Standing>,
    keeper: JoinHandle<()>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Lease {
    /// Waits until nobody else has it; `waiting` is told who has, each time that is somebody new.
    pub(crate) async fn take(
        pool: &AnyPool,
        holder: &str,
        mut waiting: impl FnMut(&str),
    ) -> sqlx::Result<Self> {
        create(pool).await?;
        let mut told = String::new();
        loop {
            let asked = Instant::now();
            if let Some(generation) = try_take(pool, holder).await? {
                let (tell, standing) = watch::channel(Standing::Held);
                let keeper = tokio::spawn(keep(pool.clone(), generation, asked, tell));
                return Ok(Self {
                    generation,
                    standing,
                    keeper,
                });
            }
            let (_, other) = row(pool, "").await?;
            if other != told {
                waiting(&other);
                told = other;
            }
            sleep(ASK).await;
        }
    }

    /// Whether this transaction may write; nobody else can take over before it ends. If not, who has
    /// the right.
    pub(crate) async fn check(&self, tx: &mut Transaction<'static, Any>) -> sqlx::Result<Result<(), String>> {
        let (generation, holder) = row(&mut **tx, " FOR SHARE").await?;
        Ok(if generation == self.generation {
            Ok(())
        } else {
            Err(holder)
        })
    }

    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// The next one need not wait.
    pub(crate) async fn give_back(&self, pool: &AnyPool) {
        self.keeper.abort();
        let given = sqlx::query("UPDATE weft_lease SET held_until = 0 WHERE id = 1 AND generation = $1")
            .bind(self.generation)
            .execute(pool);
        if !matches!(timeout(ANSWER, given).await, Ok(Ok(_))) {
            tracing::warn!("the next process waits {TTL:?} for this one's right to write");
        }
    }
}

async fn create(pool: &AnyPool) -> sqlx::Result<()> {
    let mut tx = pool.begin().await?;
    // Two at once would both find no table.
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(CREATION)
        .execute(&mut *tx)
        .await?;
    sqlx::query(
        "CREATE TABLE IF NOT EXISTS weft_lease (id BIGINT PRIMARY KEY CHECK (id = 1), holder TEXT NOT NULL, \
         generation BIGINT NOT NULL, held_until BIGINT NOT NULL)",
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query("INSERT INTO weft_lease VALUES (1, '', 0, 0) ON CONFLICT DO NOTHING")
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}

async fn try_take(pool: &AnyPool, holder: &str) -> sqlx::Result<Option<i64>> {
    let taken = format!(
        "UPDATE weft_lease SET holder = $1, generation = generation + 1, held_until = {NOW} + $2 \
         WHERE id = 1 AND held_until < {NOW} RETURNING generation"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(taken))
        .bind(holder)
        .bind(TTL.as_millis() as i64)
        .fetch_optional(pool)
        .await?;
    row.map(|row| row.try_get(0)).transpose()
}

/// Generation and holder.
async fn row(db: impl Executor<'_, Database = Any>, lock: &str) -> sqlx::Result<(i64, String)> {
    let query = format!("SELECT generation, holder FROM weft_lease WHERE id = 1{lock}");
    let row = sqlx::query(sqlx::AssertSqlSafe(query)).fetch_one(db).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// `None` when it was renewed, otherwise who has it.
async fn renew(pool: &AnyPool, generation: i64) -> sqlx::Result<Option<String>> {
    let renewed = format!(
        "UPDATE weft_lease SET held_until = {NOW} + $2 WHERE id = 1 AND generation = $1 RETURNING generation"
    );
    let renewed = sqlx::query(sqlx::AssertSqlSafe(renewed))
        .bind(generation)
        .bind(TTL.as_millis() as i64)
        .fetch_optional(pool)
        .await?;
    match renewed {
        Some(_) => Ok(None),
        None => Ok(Some(row(pool, "").await?.1)),
    }
}

async fn keep(pool: AnyPool, generation: i64, mut renewed: Instant, tell: watch::Sender<Standing>) {
    loop {
        sleep(RENEW).await;
        let asked = Instant::now();
        let standing = match timeout(ANSWER, renew(&pool, generation)).await {
            Ok(Ok(None)) => {
                renewed = asked;
                Standing::Held
            }
            Ok(Ok(Some(by))) => Standing::Taken { by },
            Ok(Err(_)) | Err(_) if renewed.elapsed() < SURE => continue,
            Ok(Err(_)) | Err(_) => Standing::Unsure,
        };
        let over = matches!(standing, Standing::Taken { .. });
        let told = tell.send_if_modified(|known| {
            let changed = *known != standing;
            *known = standing;
            changed
        });
        if told {
            tracing::debug!(generation, "the right to write to the database changed");
        }
        if over {
            return;
        }
    }
}
