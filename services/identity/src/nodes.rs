//! Which nodes there are and what each may host, for whoever follows it.

use crate::{
    core::{Core, Decision},
    db::Audit,
    pattern::HostPattern,
    tokens::Kind,
};
use std::sync::Arc;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use weft_proto::weft::identity::v1 as pb;
use weft_rpc::Caller;

/// One follower's place: all nodes first, then each as it joins.
#[derive(Debug)]
pub(crate) struct NodeWatch {
    core: Arc<Core>,
    joins: Receiver<String>,
    begun: bool,
    /// What the record says if it fails.
    asked: Audit,
}

fn node(name: String, may_host: Vec<HostPattern>) -> pb::MemberNode {
    let may_host = may_host.into_iter().map(|p| pb::HostPattern {
        namespace: p.namespace,
        app_id: p.app_id,
    });
    pb::MemberNode {
        name,
        may_host: may_host.collect(),
    }
}

impl NodeWatch {
    pub(crate) fn new(core: Arc<Core>, caller: &Caller) -> Self {
        // Before the first look at the database: who joins in between is told twice, not never.
        let joins = core.joins.subscribe();
        Self {
            asked: core.asked("watch-nodes", caller, ""),
            core,
            joins,
            begun: false,
        }
    }

    /// Waits for the next message; nothing when the service ends.
    pub(crate) async fn next(&mut self) -> Option<Decision<pb::WatchNodesResponse>> {
        let told = if self.begun {
            match self.joins.recv().await {
                Ok(name) => self.one(name).await,
                Err(RecvError::Lagged(_)) => self.all().await,
                Err(RecvError::Closed) => return None,
            }
        } else {
            self.all().await
        };
        Some(self.core.or_record(&self.asked, told).await)
    }

    async fn all(&mut self) -> Decision<pb::WatchNodesResponse> {
        let nodes = self.core.db.nodes().await?;
        self.begun = true;
        Ok(pb::WatchNodesResponse {
            snapshot: true,
            upserts: nodes
                .into_iter()
                .map(|(name, may_host)| node(name, may_host))
                .collect(),
            removed_names: Vec::new(),
        })
    }

    /// As it is now, not as it was when it joined: two joins of one name may be told in any order.
    async fn one(&self, name: String) -> Decision<pb::WatchNodesResponse> {
        let mut told = pb::WatchNodesResponse::default();
        match self.core.db.member(Kind::Node.as_str(), &name).await? {
            Some((may_host, _)) => told.upserts.push(node(name, may_host)),
            None => told.removed_names.push(name),
        }
        Ok(told)
    }
}
