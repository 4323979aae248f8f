//! Registrations and removals, which are stored before anybody is told. All that wait are stored in one
//! transaction, because each costs a write to the disk; each is planned as if it were alone, so two that
//! would not be planned so are never in the same one.

use crate::{
    owner::{Owner, Refused, now},
    store::Write,
    world::{Pending, Planned, RegisterError},
};
use std::{collections::BTreeSet, sync::Arc};
use tokio::sync::oneshot;
use weft_proto::weft::policy::v1 as pb;

type Registered = oneshot::Sender<Result<pb::Workload, Refused>>;
type Removed = oneshot::Sender<Result<(), Refused>>;

/// A change that was planned, and who waits for it.
#[derive(Debug)]
enum Change {
    Register {
        planned: Box<Planned>,
        reply: Registered,
    },
    Remove {
        id: String,
        reply: Removed,
    },
}

/// What is to be stored together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    changes: Vec<Change>,
    writes: Vec<Write>,
    ids: BTreeSet<String>,
    pending: Pending,
}

impl Owner {
    /// Plans a registration, so that the batch's commit makes it.
    pub(crate) async fn register(
        &mut self,
        batch: &mut Batch,
        node: &str,
        workload: pb::Workload,
        reply: Registered,
    ) {
        if batch.ids.contains(&workload.id) {
            self.commit(batch).await;
        }
        let mut planned = self
            .world
            .plan_among(node, workload.clone(), now(), &batch.pending);
        // What is refused now may not be when what was planned is made: an address is free, say.
        let again = match &planned {
            Ok(planned) => batch.pending.meets(planned),
            Err(_) => !batch.changes.is_empty(),
        };
        if again {
            self.commit(batch).await;
            planned = self.world.plan_among(node, workload, now(), &batch.pending);
        }
        match planned {
            Ok(mut planned) => {
                batch.writes.append(&mut planned.writes);
                batch.ids.insert(planned.message.id.clone());
                batch.pending.add(&planned);
                let planned = Box::new(planned);
                batch.changes.push(Change::Register { planned, reply });
            }
            Err(refused) => {
                // A caller that went away meanwhile does not want its answer any more; so below.
                let _ = reply.send(Err(refused.into()));
            }
        }
    }

    /// Plans a removal.
    pub(crate) async fn deregister(&mut self, batch: &mut Batch, node: &str, id: String, reply: Removed) {
        if batch.ids.contains(&id) {
            self.commit(batch).await;
        }
        match self.world.node_of(&id) {
            // Not there: that is what the caller wants. A name under another node is refused all the same.
            None if id.starts_with(&format!("{node}/")) => {
                let _ = reply.send(Ok(()));
            }
            // Who believes that it is gone does not say when it is.
            Some(owner) if owner == node && self.world.is_shared(&id) => {
                let _ = reply.send(Ok(()));
            }
            Some(owner) if owner == node => {
                batch.writes.extend(self.world.plan_removal(&id, now()));
                batch.ids.insert(id.clone());
                batch.changes.push(Change::Remove { id, reply });
            }
            owner => {
                let owner = owner.or(id.split('/').next()).unwrap_or_default().to_owned();
                let _ = reply.send(Err(RegisterError::NotYours { id, owner }.into()));
            }
        }
    }

    /// Stores what was planned, makes it, and answers: removals now, registrations when the nodes that
    /// their starts wait for have it. If it can not be stored, nothing changes.
    pub(crate) async fn commit(&mut self, batch: &mut Batch) {
        let Batch { changes, writes, .. } = std::mem::take(batch);
        if changes.is_empty() {
            return;
        }
        if let Err(error) = self.state.write(&writes).await {
            let error = Arc::new(error);
            for change in changes {
                let refused = Refused::Store(error.clone());
                let _ = match change {
                    Change::Register { reply, .. } => reply.send(Err(refused)).is_ok(),
                    Change::Remove { reply, .. } => reply.send(Err(refused)).is_ok(),
                };
            }
            return;
        }
        let mut starting = Vec::new();
        for change in changes {
            match change {
                Change::Register { planned, reply } => {
                    let registered = self.world.register(*planned, now());
                    tracing::info!(
                        workload = registered.id,
                        identity = registered.identity,
                        spiffe_id = registered.spiffe_id,
                        "workload registered"
                    );
                    starting.push((registered, reply));
                }
                Change::Remove { id, reply } => {
                    self.world.deregister(&id, now());
                    tracing::info!(workload = id, "workload deregistered");
                    let _ = reply.send(Ok(()));
                }
            }
        }
        self.world.settle();
        for (workload, reply) in starting {
            self.starts.begin(&self.world, workload, reply);
        }
    }
}
