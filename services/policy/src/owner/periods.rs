//! What is due after a time: numbers given back, lost nodes and what they had.

use super::{Owner, now};
use crate::store::Write;
use tokio::time::Instant;
use weft_store::StoreError;

impl Owner {
    pub(super) async fn look_at_periods(&mut self) {
        self.world.set_time(now());
        self.world.note_programmed();
        for identity in self
            .world
            .expired_identities(now().saturating_sub(self.grace.as_secs()))
        {
            match self
                .state
                .write(&[Write::RemoveIdentity { number: identity }])
                .await
            {
                Ok(()) => self.world.take_back(identity),
                Err(error) => {
                    tracing::error!(%error, identity = identity.0, "a released identity could not be removed");
                    break;
                }
            }
        }
        self.world.forget_lost_nodes(self.node_timeout);
        let known = self.world.known_nodes();
        self.absent.retain(|node, _| known.contains(node));
        let now = Instant::now();
        let mut over = Vec::new();
        for node in known {
            if self.world.is_connected(&node) {
                self.absent.remove(&node);
            } else if now.duration_since(*self.absent.entry(node.clone()).or_insert(now)) >= self.node_timeout
            {
                over.push(node);
            }
        }
        if !self.absent.is_empty() {
            self.world.look_at_shared();
        }
        for node in over {
            tracing::warn!(node, "node has been away for too long; its workloads are removed");
            if let Err(error) = self.remove(&self.world.ids_of_node(&node)).await {
                tracing::error!(%error, node, "workloads of a lost node could not be removed");
            }
            let writes = self.world.node_gone(&node);
            if let Err(error) = self.state.write(&writes).await {
                tracing::error!(%error, node, "a lost node is remembered after a restart");
            }
        }
    }

    pub(super) async fn remove(&mut self, ids: &[String]) -> Result<(), StoreError> {
        let now = now();
        // There may be room for what there was none for.
        self.unmade.clear();
        for id in ids {
            self.state.write(&self.world.plan_removal(id, now)).await?;
            self.world.deregister(id, now);
        }
        Ok(())
    }
}
