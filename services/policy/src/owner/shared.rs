//! Shared endpoints: brought to what Services ask for.

use super::{Owner, Refused, now};
use crate::world::{SharedChange, SharedNodes};
use std::collections::BTreeSet;
use tokio::time::Instant;
use weft_proto::weft::policy::v1 as pb;

impl Owner {
    /// Brings shared endpoints to what Services ask for, on the nodes that are there for them.
    pub(super) async fn make_shared(&mut self) {
        let clock = Instant::now();
        let away = self.absent.iter();
        let away = away.filter(|(_, since)| clock.duration_since(**since) >= self.move_after);
        let away: BTreeSet<String> = away.map(|(node, _)| node.clone()).collect();
        let hosts = self.hosts.clone();
        let changes = self.world.shared_changes(&SharedNodes {
            may_host: &|node, namespace, name| hosts.may_host(node, namespace, name),
            away: &away,
        });
        for change in changes {
            let (id, made) = match change {
                SharedChange::Remove(id) => {
                    let removed = self.remove(std::slice::from_ref(&id)).await;
                    (id, removed.map_err(Refused::from))
                }
                SharedChange::Put(message) => {
                    if self.unmade.get(&message.id) == Some(&*message) {
                        continue;
                    }
                    let (id, wanted) = (message.id.clone(), (*message).clone());
                    let made = self.put_shared(*message).await;
                    if let Err(Refused::Register(_)) = &made {
                        self.unmade.insert(id.clone(), wanted);
                    }
                    (id, made)
                }
            };
            match made {
                Ok(()) => {
                    self.unmade.remove(&id);
                    tracing::info!(workload = id, "shared endpoint changed");
                }
                Err(error) => {
                    tracing::error!(workload = id, %error, "a shared endpoint is not as desired");
                    // What can not be stored now can be later.
                    if matches!(error, Refused::Store(_)) {
                        self.world.look_at_shared();
                        return;
                    }
                }
            }
        }
    }

    async fn put_shared(&mut self, message: pb::Workload) -> Result<(), Refused> {
        let now = now();
        let planned = self.world.plan_shared(message, now)?;
        self.state.write(&planned.writes).await?;
        self.world.register(planned, now);
        Ok(())
    }
}
