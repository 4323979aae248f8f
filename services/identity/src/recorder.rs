//! Writes the record of what is given out, in batches: each commit reaches the disk before any of
//! its callers answers, and while one is on its way the next ones gather.
//!
//! What could not be recorded was not given out. That is recorded too, as soon as the database can be
//! written again.

use crate::{
    counts::Counts,
    db::{Audit, Db, Recorded},
    record::failed,
    refused::Refused,
};
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use weft_store::StoreError;

/// Entries of one transaction, and those that wait for the next.
const BATCH: usize = 512;
const QUEUE: usize = 4 * BATCH;
/// What failed while the database was away and is remembered; more is only counted.
const OWED: usize = 4 * BATCH;
/// How often the database is tried for them.
const RETRY: Duration = Duration::from_secs(1);

struct Item {
    recorded: Recorded,
    /// Of the service's own certificate.
    own_begins: Option<u64>,
    done: oneshot::Sender<Result<(), Refused>>,
}

/// The queue to the writing task. The task ends with the last sender.
#[derive(Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Item>,
    /// Entries that nobody waits for and that found no room.
    lost: Arc<AtomicU64>,
    /// Entries that were handed to the task.
    recorded: AtomicU64,
    task: JoinHandle<()>,
}

impl Recorder {
    /// Starts the task.
    pub fn start(db: Db, counts: Counts) -> Self {
        let (queue, items) = mpsc::channel(QUEUE);
        let lost = Arc::<AtomicU64>::default();
        let task = tokio::spawn(write(db, items, lost.clone(), counts));
        Self {
            queue,
            lost,
            recorded: AtomicU64::new(0),
            task,
        }
    }

    /// Records; when this returns, it is on the disk.
    pub async fn record(&self, recorded: Recorded) -> Result<(), Refused> {
        self.put(recorded, None).await
    }

    /// Records a certificate of the service itself, valid from `begins`.
    pub async fn record_own(&self, recorded: Recorded, begins: u64) -> Result<(), Refused> {
        self.put(recorded, Some(begins)).await
    }

    /// Records soon, or once the database can be written again; nobody waits for it.
    pub fn owe(&self, entry: Audit) {
        let item = Item {
            recorded: Recorded { entry, issuer_id: 0 },
            own_begins: None,
            done: oneshot::channel().0,
        };
        if self.queue.try_send(item).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many entries there were, to see whether something is done.
    pub fn recorded(&self) -> u64 {
        self.recorded.load(Ordering::Relaxed)
    }

    async fn put(&self, recorded: Recorded, own_begins: Option<u64>) -> Result<(), Refused> {
        self.recorded.fetch_add(1, Ordering::Relaxed);
        let (done, answer) = oneshot::channel();
        let item = Item {
            recorded,
            own_begins,
            done,
        };
        // The task runs as long as the service does.
        self.queue.send(item).await.map_err(|_| Refused::internal())?;
        answer.await.map_err(|_| Refused::internal())?
    }

    /// Waits until everything is written.
    pub async fn close(self) {
        drop(self.queue);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the audit record's task failed");
        }
    }
}

async fn write(db: Db, mut items: mpsc::Receiver<Item>, lost: Arc<AtomicU64>, counts: Counts) {
    // Until when the database knows that each issuer is needed.
    let mut kept: HashMap<i64, u64> = HashMap::new();
    let mut batch = Vec::with_capacity(BATCH);
    let mut owed = Owed::default();
    loop {
        let received = if owed.is_empty() {
            items.recv_many(&mut batch, BATCH).await
        } else {
            match timeout(RETRY, items.recv_many(&mut batch, BATCH)).await {
                Ok(received) => received,
                Err(_) => {
                    owed.pay(&db).await;
                    continue;
                }
            }
        };
        if received == 0 {
            owed.pay(&db).await;
            return;
        }
        owed.more(lost.swap(0, Ordering::Relaxed), &batch);
        // Callers that went away are recorded all the same: what they asked for was signed.
        let outcome = commit(&db, &mut kept, &batch).await;
        match outcome {
            Ok(gone) => {
                for item in batch.drain(..) {
                    let lost = item.recorded.issuer_id != 0 && gone.contains(&item.recorded.issuer_id);
                    let result = if lost {
                        Err(Refused::stale_issuer())
                    } else {
                        Ok(())
                    };
                    let _ = item.done.send(result);
                }
                if !owed.is_empty() {
                    owed.pay(&db).await;
                }
            }
            Err(error) => {
                kept.clear();
                let cause = error.to_string();
                // It will be, from what is owed.
                let refused = Refused::from(error).recorded();
                for item in batch.drain(..) {
                    // A refusal was counted when it was made.
                    if item.recorded.entry.reason.is_empty() {
                        counts.refused(item.recorded.entry.action, refused.reason().as_str());
                    }
                    owed.add(item.recorded.entry, &cause);
                    let _ = item.done.send(Err(refused.clone()));
                }
            }
        }
    }
}

/// What is not recorded yet because the database failed.
#[derive(Default)]
struct Owed {
    entries: VecDeque<Audit>,
    /// Beyond [`OWED`].
    more: u64,
    /// Of the newest.
    time: u64,
}

impl Owed {
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.more == 0
    }

    /// So many found no room before these.
    fn more(&mut self, count: u64, batch: &[Item]) {
        if count > 0 {
            tracing::error!(
                count,
                "too much waits for the database: refusals or failures are only counted"
            );
        }
        self.more += count;
        let newest = batch.iter().map(|item| item.recorded.entry.time).max();
        self.time = self.time.max(newest.unwrap_or_default());
    }

    fn add(&mut self, entry: Audit, cause: &str) {
        if self.entries.len() >= OWED {
            self.more += 1;
            return;
        }
        // A refusal stands as it is; of an issuance, nothing left the service.
        let reason = match entry.reason.as_str() {
            "" => failed(entry.action, &format!("it could not be recorded: {cause}")),
            _ => entry.reason.clone(),
        };
        self.entries.push_back(Audit {
            serial: String::new(),
            not_after: 0,
            reason,
            ..entry
        });
    }

    /// Writes all of it, or none.
    async fn pay(&mut self, db: &Db) {
        let left_out = (self.more > 0).then(|| Audit {
            time: self.time,
            action: "left-out",
            reason: format!(
                "{} more refusals or failures while the database was away, which are not recorded one by one",
                self.more
            ),
            ..Audit::default()
        });
        let written = async {
            let mut tx = db.begin().await?;
            let all: Vec<&Audit> = self.entries.iter().chain(&left_out).collect();
            db.audit_all(&mut tx, &all).await?;
            db.commit(tx).await
        };
        match written.await {
            Ok(()) => {
                self.entries.clear();
                self.more = 0;
            }
            Err(error) => tracing::debug!(%error, owed = self.entries.len(), "the database is still away"),
        }
    }
}

/// One transaction. Answers which issuers were dropped meanwhile: what they signed is not recorded.
async fn commit(db: &Db, kept: &mut HashMap<i64, u64>, batch: &[Item]) -> Result<Vec<i64>, StoreError> {
    let mut needed: HashMap<i64, (u64, u64)> = HashMap::new();
    for Recorded { entry, issuer_id } in batch.iter().map(|i| &i.recorded) {
        if *issuer_id != 0 {
            let (until, time) = needed.entry(*issuer_id).or_default();
            *until = entry.not_after.max(*until);
            *time = entry.time.max(*time);
        }
    }
    needed.retain(|id, (until, _)| kept.get(id).is_none_or(|k| *k < *until));
    let mut tx = db.begin().await?;
    let mut gone = Vec::new();
    for (id, (until, time)) in &mut needed {
        // A sixteenth more, so that this is not written with every batch.
        *until += until.saturating_sub(*time) / 16;
        if !db.keep_until(&mut tx, *id, *until).await? {
            gone.push(*id);
        }
    }
    let lives = |item: &&Item| !gone.contains(&item.recorded.issuer_id);
    let entries: Vec<&Audit> = batch.iter().filter(lives).map(|i| &i.recorded.entry).collect();
    db.audit_all(&mut tx, &entries).await?;
    if let Some(begins) = batch.iter().filter(lives).filter_map(|i| i.own_begins).max() {
        db.note_own(&mut tx, begins).await?;
    }
    db.commit(tx).await?;
    for (id, (until, _)) in needed {
        if gone.contains(&id) {
            kept.remove(&id);
        } else {
            kept.insert(id, until);
        }
    }
    Ok(gone)
}
