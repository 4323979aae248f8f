//! The whole desired state, and what of it each node needs. No I/O: one task owns a [`World`], stores
//! what must be stored before it changes the world, and calls [`World::settle`] after each event.
//!
//! What a node needs:
//! - every node's addresses and pod ranges;
//! - endpoints, identities and Services of every namespace in which it hosts a workload or which it asked for;
//! - the same of namespaces in which the app behind one of its shared endpoints is;
//! - endpoints and identities that the policy of one of its workloads names, wherever they are;
//! - policy sets that govern a workload of its own;
//! - addresses with a local redirect, all of them;
//! - Gateways with the Services made for them, all of them; routes that are attached to a Gateway, or to a
//!   Service of a namespace that it needs, and for each route the Services it names with their endpoints
//!   and identities, wherever they are;
//! - Components, Subscriptions, Resiliencies and HTTPEndpoints of namespaces in which it hosts a workload with
//!   an app-id, if their scopes name one of these app-ids or nobody; Configurations of these namespaces.
//!
//! So a change that touches nothing of this sends nothing to the node. After an event only the keys it
//! touched are compared for each node, with those by which the node's needs differ from before; all keys
//! only when it begins or ends to need a namespace.

mod addresses;
mod check;
mod explain;
mod former;
mod node;
mod nodes;
mod policies;
mod ports;
mod redirects;
mod resources;
mod routing;
mod scope;
mod seen;
mod shared;
mod workloads;

pub(crate) use addresses::Name;
pub(crate) use check::{RegisterError, check as check_workload, check_loopback, svid_name};
pub(crate) use explain::ExplainError;
pub(crate) use node::{Session, WINDOW};
pub(crate) use resources::ObjectKey;
pub(crate) use routing::Written;
pub(crate) use shared::{Nodes as SharedNodes, SharedChange};

use node::{Node, Taking};
use nodes::Nodes;
use policies::Policies;
use redirects::Redirects;
use resources::Objects;
use routing::Routing;
use scope::Scope;
use seen::Seen;
use shared::Shared as SharedApps;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::time::{Duration, Instant};
use weft_model::{NumericIdentity, SvidForm, TrustDomain};
use weft_proto::weft::policy::v1 as pb;
use workloads::Workloads;
pub(crate) use workloads::{Pending, Planned};

/// A resource as it is sent; nodes share it.
pub(crate) type Shared = Arc<pb::Resource>;

/// Kinds in the order in which they are delivered: what an endpoint needs comes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Node,
    Identity,
    PolicySet,
    Component,
    Configuration,
    Subscription,
    Resiliency,
    HttpEndpoint,
    Endpoint,
    Service,
    Gateway,
    Route,
}

/// Names a resource on the wire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub kind: Kind,
    pub name: String,
}

impl Key {
    pub(crate) fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
        }
    }

    pub(crate) fn to_wire(&self) -> pb::ResourceKey {
        let kind = match self.kind {
            Kind::Node => "node",
            Kind::Identity => "identity",
            Kind::PolicySet => "policy-set",
            Kind::Component => "component",
            Kind::Configuration => "configuration",
            Kind::Subscription => "subscription",
            Kind::Resiliency => "resiliency",
            Kind::HttpEndpoint => "http-endpoint",
            Kind::Endpoint => "endpoint",
            Kind::Service => "service",
            Kind::Gateway => "gateway",
            Kind::Route => "route",
        };
        pb::ResourceKey {
            kind: kind.into(),
            name: self.name.clone(),
        }
    }

    pub(crate) fn with(self, body: pb::resource::Body) -> (Self, Shared) {
        let resource = Arc::new(pb::Resource {
            key: Some(self.to_wire()),
            body: Some(body),
        });
        (self, resource)
    }
}

/// What a start waits for at a node.
#[derive(Debug)]
pub(crate) struct Awaited {
    key: Key,
    taking: Taking,
}

/// What an event touched.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    keys: BTreeSet<Key>,
    /// Nodes whose needs may have changed.
    nodes: BTreeSet<String>,
}

/// Somebody who follows the registry, at his own pace.
#[derive(Debug, Default)]
struct Follower {
    /// Whether the first message was taken.
    begun: bool,
    changed: BTreeSet<String>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct World {
    pub epoch: String,
    trust_domain: TrustDomain,
    svid_form: SvidForm,
    workloads: Workloads,
    policies: Policies,
    objects: Objects,
    routing: Routing,
    redirects: Redirects,
    shared: SharedApps,
    seen: Seen,
    /// Seconds since the Unix epoch, as the owner told it last.
    now: u64,
    node_facts: Nodes,
    nodes: BTreeMap<String, (Node, Scope)>,
    followers: BTreeMap<u64, Follower>,
    dirty: Dirty,
}

impl World {
    pub(crate) fn new(trust_domain: TrustDomain, epoch: String) -> Self {
        Self {
            epoch,
            trust_domain,
            svid_form: SvidForm::default(),
            workloads: Workloads::default(),
            policies: Policies::default(),
            objects: Objects::default(),
            routing: Routing::default(),
            redirects: Redirects::default(),
            shared: SharedApps::default(),
            seen: Seen::default(),
            now: 0,
            node_facts: Nodes::default(),
            nodes: BTreeMap::new(),
            followers: BTreeMap::new(),
            dirty: Dirty::default(),
        }
    }

    /// Tells what time it is.
    pub(crate) fn set_time(&mut self, now: u64) {
        self.now = now;
    }

    /// With another form of workloads' SPIFFE IDs.
    pub(crate) fn with_form(self, svid_form: SvidForm) -> Self {
        Self { svid_form, ..self }
    }

    /// Brings every node's share up to date and sends what changed.
    pub(crate) fn settle(&mut self) {
        self.policies.recompile(&self.workloads, &mut self.dirty);
        self.judge_routing();
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.keys.is_empty() && dirty.nodes.is_empty() {
            return;
        }
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in names {
            let Some((mut node, mut scope)) = self.nodes.remove(&name) else {
                continue;
            };
            if dirty.nodes.contains(&name) {
                let now = self.scope(&name, scope.asked_for.clone());
                match self.between(&scope, &now) {
                    Some(keys) => {
                        for key in &keys {
                            node.set(key, self.wanted(&name, &now, key));
                        }
                    }
                    None => node.set_all(self.share(&name, &now)),
                }
                scope = now;
            }
            for key in &dirty.keys {
                node.set(key, self.wanted(&name, &scope, key));
            }
            node.flush(&self.epoch);
            self.nodes.insert(name, (node, scope));
        }
    }

    /// Begins a node's stream.
    pub(crate) fn connect(&mut self, name: &str, session: Session, hello: &pb::Hello) {
        self.settle();
        let (mut node, scope) = self.nodes.remove(name).unwrap_or_default();
        let scope = self.scope(name, scope.asked_for);
        node.set_all(self.share(name, &scope));
        let held = (hello.held_epoch == self.epoch).then_some(hello.held_version);
        node.connect(session, held, &self.epoch);
        self.nodes.insert(name.to_owned(), (node, scope));
    }

    /// A node wants to know these namespaces, in which it hosts nothing, and no others any more.
    pub(crate) fn ask_for(&mut self, name: &str, namespaces: Vec<String>) {
        if let Some((_, scope)) = self.nodes.get_mut(name) {
            scope.asked_for = namespaces.into_iter().collect();
            self.dirty.nodes.insert(name.to_owned());
        }
    }

    pub(crate) fn ack(&mut self, name: &str, session: u64, version: u64) {
        let epoch = &self.epoch;
        if let Some((node, _)) = self.nodes.get_mut(name).filter(|(n, _)| n.is_on(session)) {
            node.ack(version, epoch);
        }
    }

    pub(crate) fn nack(&mut self, name: &str, session: u64, version: u64, reasons: Vec<String>) {
        let epoch = &self.epoch;
        if let Some((node, _)) = self.nodes.get_mut(name).filter(|(n, _)| n.is_on(session)) {
            node.nack(version, reasons, epoch);
        }
    }

    pub(crate) fn disconnect(&mut self, name: &str, session: u64) {
        if let Some((node, _)) = self.nodes.get_mut(name) {
            node.disconnect(session);
        }
    }

    /// Forgets what was sent to nodes that have been away for longer than `after`, and returns their
    /// names. Their workloads are another matter.
    pub(crate) fn forget_lost_nodes(&mut self, after: Duration) -> Vec<String> {
        let now = Instant::now();
        let lost = |node: &Node| node.lost_at.is_some_and(|at| now.duration_since(at) >= after);
        let names: Vec<String> = self
            .nodes
            .iter()
            .filter(|(_, (node, _))| lost(node))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &names {
            self.nodes.remove(name);
        }
        names
    }

    /// The nodes that a workload's start waits for: those whose policies name its identity and that do
    /// not have it yet, and those that take one of its addresses for somebody's who left it.
    pub(crate) fn takers(&self, workload: &pb::Workload) -> BTreeMap<String, Awaited> {
        let identity = NumericIdentity(workload.identity);
        let own = Key::new(Kind::Endpoint, workload.id.clone());
        let former: Vec<Key> = self
            .workloads
            .former(workload)
            .map(|id| Key::new(Kind::Endpoint, id))
            .collect();
        let awaited = |node: &Node, key: &Key| {
            let taking = node.taking(key)?;
            Some(Awaited {
                key: key.clone(),
                taking,
            })
        };
        let nodes = self.nodes.iter().filter_map(|(name, (node, scope))| {
            let named = scope.names(identity).then(|| awaited(node, &own)).flatten();
            let waits = named.or_else(|| former.iter().find_map(|key| awaited(node, key)))?;
            Some((name.clone(), waits))
        });
        nodes.collect()
    }

    /// How a node stands with what it was taking; `None`: it has it, refused it or is away.
    pub(crate) fn still_taking(&self, name: &str, awaited: Awaited) -> Option<Awaited> {
        let (node, _) = self.nodes.get(name)?;
        match awaited.taking {
            Taking::Sent(version) => node.is_in_flight(version).then_some(awaited),
            Taking::Queued => Some(Awaited {
                taking: node.taking(&awaited.key)?,
                key: awaited.key,
            }),
        }
    }

    pub(crate) fn connected_nodes(&self) -> usize {
        self.nodes
            .values()
            .filter(|(node, _)| node.session.is_some())
            .count()
    }

    pub(crate) fn is_connected(&self, name: &str) -> bool {
        self.nodes
            .get(name)
            .is_some_and(|(node, _)| node.session.is_some())
    }

    pub(crate) fn node_statuses(&self) -> Vec<pb::NodeStatus> {
        self.nodes
            .iter()
            .map(|(name, (node, _))| node.status(name))
            .collect()
    }

    /// Begins to follow the registry.
    pub(crate) fn follow(&mut self, number: u64) {
        self.followers.insert(number, Follower::default());
    }

    pub(crate) fn unfollow(&mut self, number: u64) {
        self.followers.remove(&number);
    }

    /// Whether a follower has something to fetch.
    pub(crate) fn has_news(&self, number: u64) -> bool {
        self.followers
            .get(&number)
            .is_some_and(|f| !f.begun || !f.changed.is_empty())
    }

    /// What a follower has not seen yet; nothing when there is nothing.
    pub(crate) fn news(&mut self, number: u64) -> Option<pb::WatchResponse> {
        let follower = self.followers.get_mut(&number)?;
        if !std::mem::replace(&mut follower.begun, true) {
            follower.changed.clear();
            let upserts = self.workloads.iter().map(|w| w.message.clone()).collect();
            return Some(pb::WatchResponse {
                snapshot: true,
                upserts,
                removed_ids: Vec::new(),
            });
        }
        if follower.changed.is_empty() {
            return None;
        }
        let mut news = pb::WatchResponse::default();
        for id in std::mem::take(&mut follower.changed) {
            match self.workloads.get(&id) {
                Some(workload) => news.upserts.push(workload.message.clone()),
                None => news.removed_ids.push(id),
            }
        }
        Some(news)
    }

    fn tell_followers(&mut self, id: &str) {
        for follower in self.followers.values_mut().filter(|f| f.begun) {
            follower.changed.insert(id.to_owned());
        }
    }
}

#[cfg(test)]
#[path = "convergence_tests.rs"]
mod tests;

#[cfg(test)]
mod routing_tests;
