//! Orders of operators: objects that are applied and deleted. What an order asks for is stored before it
//! is in force; if it can not be stored, nothing changes.

use super::{Owner, events::OrderError};
use crate::{applied, cluster, store::Write, world::ObjectKey};
use std::sync::Arc;
use weft_proto::weft::policy::v1 as pb;
use weft_resources::Resource;

/// A file that was read without mistakes, to be applied.
#[derive(Debug)]
pub(crate) struct Order {
    /// Who orders it.
    pub by: String,
    pub resources: Vec<Resource>,
    pub mode: pb::ApplyMode,
    /// Whether the answer has the objects themselves.
    pub objects: bool,
}

/// Objects to be deleted.
#[derive(Debug)]
pub(crate) struct Deletion {
    /// Who orders it.
    pub by: String,
    pub keys: Vec<ObjectKey>,
    pub dry_run: bool,
}

fn name(key: &ObjectKey) -> pb::ObjectName {
    pb::ObjectName {
        kind: key.kind.name().to_owned(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    }
}

impl Owner {
    pub(super) async fn apply(&mut self, order: Order) -> Result<pb::ApplyResponse, OrderError> {
        let compare = order.mode == pb::ApplyMode::Compare;
        if self.files.is_of_cluster() && !compare {
            return Err(OrderError::OfCluster);
        }
        let resources: Vec<Arc<Resource>> = order
            .resources
            .into_iter()
            .map(applied::kept)
            .map(Arc::new)
            .collect();
        if compare {
            return Ok(self.compare(&resources));
        }
        let outcomes = match self.files.plan_apply(&resources) {
            Ok(outcomes) => outcomes,
            Err(problems) => {
                return Ok(pb::ApplyResponse {
                    problems: problems.iter().map(ToString::to_string).collect(),
                    ..Default::default()
                });
            }
        };
        if let Some(text) = self.files.no_room_for(&resources) {
            return Err(OrderError::Full(text));
        }
        if order.mode == pb::ApplyMode::Unspecified {
            let new = resources.iter().zip(&outcomes);
            let new = new.filter(|(_, outcome)| **outcome != pb::Outcome::Unchanged);
            let new: Vec<Arc<Resource>> = new.map(|(resource, _)| resource.clone()).collect();
            self.put_applied(&order.by, new).await?;
        }
        let objects = resources.iter().zip(outcomes).map(|(resource, outcome)| {
            let key = ObjectKey::of(resource);
            let shown = match order.mode {
                pb::ApplyMode::Unspecified => self.world.show(&key).map(|json| json.to_string()),
                _ => None,
            };
            let object = order
                .objects
                .then(|| shown.unwrap_or_else(|| resource.json.to_string()));
            pb::AppliedObject {
                name: Some(name(&key)),
                outcome: outcome.into(),
                object_json: object.unwrap_or_default().into_bytes(),
                live_json: Vec::new(),
            }
        });
        Ok(pb::ApplyResponse {
            objects: objects.collect(),
            problems: Vec::new(),
        })
    }

    async fn put_applied(&mut self, by: &str, new: Vec<Arc<Resource>>) -> Result<(), OrderError> {
        let writes = new.iter().map(|resource| Write::Applied {
            key: ObjectKey::of(resource),
            json: resource.json.to_string(),
        });
        self.state.write(&writes.collect::<Vec<_>>()).await?;
        for resource in &new {
            tracing::info!(
                by,
                object = cluster::place(&ObjectKey::of(resource)),
                "object applied"
            );
        }
        let changes = self.files.apply_objects(new);
        self.take_over(&changes, &[]).await;
        Ok(())
    }

    /// What is there, whoever has it, beside what is asked for.
    fn compare(&self, resources: &[Arc<Resource>]) -> pb::ApplyResponse {
        let objects = resources.iter().map(|resource| {
            let key = ObjectKey::of(resource);
            let live = self
                .world
                .written_object(&key)
                .map(|live| applied::kept(weft_resources::Resource::clone(live)));
            let outcome = match &live {
                None => pb::Outcome::Created,
                Some(live) if live.json == resource.json => pb::Outcome::Unchanged,
                Some(_) => pb::Outcome::Configured,
            };
            pb::AppliedObject {
                name: Some(name(&key)),
                outcome: outcome.into(),
                object_json: resource.json.as_bytes().to_vec(),
                live_json: live.map(|live| live.json.as_bytes().to_vec()).unwrap_or_default(),
            }
        });
        pb::ApplyResponse {
            objects: objects.collect(),
            problems: Vec::new(),
        }
    }

    pub(super) async fn delete(&mut self, deletion: Deletion) -> Result<pb::DeleteResponse, OrderError> {
        if self.files.is_of_cluster() {
            return Err(OrderError::OfCluster);
        }
        let outcomes = match self.files.plan_delete(&deletion.keys) {
            Ok(outcomes) => outcomes,
            Err(problems) => {
                return Ok(pb::DeleteResponse {
                    problems,
                    ..Default::default()
                });
            }
        };
        if !deletion.dry_run {
            let there = deletion.keys.iter().zip(&outcomes);
            let there = there.filter(|(_, outcome)| **outcome == pb::Outcome::Deleted);
            let there: Vec<ObjectKey> = there.map(|(key, _)| key.clone()).collect();
            let writes = there.iter().map(|key| Write::RemoveApplied { key: key.clone() });
            self.state.write(&writes.collect::<Vec<_>>()).await?;
            for key in &there {
                tracing::info!(by = deletion.by, object = cluster::place(key), "object deleted");
            }
            let (changes, writes) = self.files.delete_objects(&there);
            self.take_over(&changes, &writes).await;
        }
        let objects = deletion
            .keys
            .iter()
            .zip(outcomes)
            .map(|(key, outcome)| pb::DeletedObject {
                name: Some(name(key)),
                outcome: outcome.into(),
            });
        Ok(pb::DeleteResponse {
            objects: objects.collect(),
            problems: Vec::new(),
        })
    }
}
