//! Writes the record of what is given out, in batches: each commit reaches the disk before any of
//! its callers answers, and while one is on its way the next ones gather.

use crate::{
    db::{Audit, Db, Recorded},
    refused::Refused,
};
use std::collections::HashMap;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

/// Entries of one transaction, and those that wait for the next.
const BATCH: usize = 512;
const QUEUE: usize = 4 * BATCH;

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
    while items.recv_many(&mut batch, BATCH).await > 0 {
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
            Err(refused) => {
                kept.clear();
                for item in batch.drain(..) {
                    let _ = item.done.send(Err(refused.clone()));
                }
            }
        }
    }
}

/// One transaction. Answers which issuers were dropped meanwhile: what they signed is not recorded.
async fn commit(db: &Db, kept: &mut HashMap<i64, u64>, batch: &[Item]) -> Result<Vec<i64>, Refused> {
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
