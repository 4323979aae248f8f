//! Writes the record of what is given out, in batches: each commit reaches the disk before any of
//! its callers answers, and while one is on its way the next ones gather.
//!
//! What could not be recorded was not given out. That is recorded too, as soon as the database can be
//! written again.

use crate::{
    db::{Audit, Db, Recorded},
    refused::Refused,
};
use std::{
    collections::{HashMap, VecDeque},
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
    task: JoinHandle<()>,
}

impl Recorder {
    /// Starts the task.
    pub fn start(db: Db) -> Self {
        let (queue, items) = mpsc::channel(QUEUE);
        let task = tokio::spawn(write(db, items));
        Self { queue, task }
    }

    /// Records; when this returns, it is on the disk.
    pub async fn record(&self, recorded: Recorded) -> Result<(), Refused> {
        self.put(recorded, None).await
    }

    /// Records a certificate of the service itself, valid from `begins`.
    pub async fn record_own(&self, recorded: Recorded, begins: u64) -> Result<(), Refused> {
        self.put(recorded, Some(begins)).await
    }

    /// Records later that something failed: nobody waits for it.
    pub fn owe(&self, entry: Audit) {
        let item = Item {
            recorded: Recorded { entry, issuer_id: 0 },
            own_begins: None,
            done: oneshot::channel().0,
        };
        if self.queue.try_send(item).is_err() {
            tracing::error!("a failure could not be recorded: too much waits for the database");
        }
    }

    async fn put(&self, recorded: Recorded, own_begins: Option<u64>) -> Result<(), Refused> {
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

async fn write(db: Db, mut items: mpsc::Receiver<Item>) {
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
            }
            Err(error) => {
                kept.clear();
                let cause = error.to_string();
                let refused = Refused::from(error);
                for item in batch.drain(..) {
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
}

impl Owed {
    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn add(&mut self, entry: Audit, cause: &str) {
        if self.entries.len() >= OWED {
            self.more += 1;
            return;
        }
        // A refusal stands as it is; of an issuance, nothing left the service.
        let reason = match entry.reason.as_str() {
            "" => format!("nothing was given out, because it could not be recorded: {cause}"),
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
        if let Some(last) = self.entries.back_mut()
            && self.more > 0
        {
            let more = std::mem::take(&mut self.more);
            last.reason = format!("{} (and {more} more after it were not recorded)", last.reason);
        }
        let written = async {
            let mut tx = db.begin().await?;
            let all: Vec<&Audit> = self.entries.iter().collect();
            db.audit_all(&mut tx, &all).await?;
            db.commit(tx).await
        };
        match written.await {
            Ok(()) => self.entries.clear(),
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
