//! Who serves which app-id, and where: the index that every invocation reads.
//!
//! Owns the join of two sources. Of this node's workloads the workload table says who is there;
//! of all others the policy service does. A change makes one app-id's [`Target`] anew and no
//! other's; an endpoint that did not change stays the same object, so what is counted on it stays.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use weft_flows::Party;
use weft_model::NumericIdentity;
use weft_proto::weft::policy::v1 as pb;
use weft_runtime::{Endpoint, Place, Target};

/// The index. Not shared by itself; [`crate::mesh::Mesh`] holds it under its lock.
#[derive(Debug)]
pub struct Endpoints {
    node: Arc<str>,
    tunnel_port: u16,
    /// As the policy service sent them, this node's too.
    known: HashMap<String, Known>,
    /// Of this node, as the workload table says.
    local: HashMap<String, Arc<Endpoint>>,
    apps: HashMap<String, HashMap<String, App>>,
    /// SPIFFE ID → workload ids among `known`.
    holders: HashMap<String, BTreeSet<String>>,
    /// Shared endpoints of this node among `known`.
    shared_here: BTreeSet<String>,
}

#[derive(Debug)]
struct Known {
    message: Arc<pb::Endpoint>,
    /// The same object until it changes: readers keep what they made of it.
    party: Arc<Party>,
    /// `None`: of this node, or without an address by which it could be reached.
    remote: Option<Arc<Endpoint>>,
}

impl Known {
    fn is_shared(&self) -> bool {
        self.message.workload.as_ref().is_some_and(|w| w.shared.is_some())
    }
}

#[derive(Debug, Default)]
struct App {
    members: BTreeSet<String>,
    target: Option<Arc<Target>>,
}

impl Endpoints {
    /// Empty, as seen from `node`.
    pub fn new(node: &str, tunnel_port: u16) -> Self {
        Self {
            node: node.into(),
            tunnel_port,
            known: HashMap::new(),
            local: HashMap::new(),
            apps: HashMap::new(),
            holders: HashMap::new(),
            shared_here: BTreeSet::new(),
        }
    }

    /// The shared endpoints that are this node's to answer for.
    pub fn shared_here(&self) -> impl Iterator<Item = &pb::Workload> {
        let known = self.shared_here.iter().filter_map(|id| self.known.get(id));
        known.filter_map(|known| known.message.workload.as_ref())
    }

    /// How many the policy service sent.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// As it was sent.
    pub fn message(&self, id: &str) -> Option<&Arc<pb::Endpoint>> {
        self.known.get(id).map(|k| &k.message)
    }

    /// All as they were sent.
    pub fn messages(&self) -> impl Iterator<Item = &Arc<pb::Endpoint>> {
        self.known.values().map(|k| &k.message)
    }

    /// Who serves an app-id.
    pub fn target(&self, namespace: &str, app_id: &str) -> Option<Arc<Target>> {
        self.apps.get(namespace)?.get(app_id)?.target.clone()
    }

    /// Whether any app of a namespace is known.
    pub fn knows(&self, namespace: &str) -> bool {
        self.apps.contains_key(namespace)
    }

    /// A workload of this node.
    pub fn local(&self, id: &str) -> Option<Arc<Endpoint>> {
        self.local.get(id).cloned()
    }

    /// A workload that can be called, wherever it runs.
    pub fn endpoint(&self, id: &str) -> Option<Arc<Endpoint>> {
        let elsewhere = || self.known.get(id)?.remote.clone();
        self.local(id).or_else(elsewhere)
    }

    /// This node, and the port of all nodes' tunnels.
    pub fn here(&self) -> (&Arc<str>, u16) {
        (&self.node, self.tunnel_port)
    }

    /// Who is known to hold a SPIFFE ID: ids and what flows call them.
    pub fn holders<'a>(
        &'a self,
        spiffe_id: &str,
    ) -> impl Iterator<Item = (&'a str, &'a Arc<Party>)> + use<'a> {
        let ids = self.holders.get(spiffe_id).into_iter().flatten();
        ids.filter_map(|id| Some((id.as_str(), &self.known.get(id)?.party)))
    }

    /// Takes what the policy service sent.
    pub fn put(&mut self, endpoint: pb::Endpoint) {
        let Some(w) = endpoint.workload.clone() else {
            return;
        };
        let old = self.known.get(&w.id);
        if old.is_some_and(|o| *o.message == endpoint) {
            return;
        }
        self.remove(&w.id);
        let party = party(&w);
        let remote = (w.node != *self.node).then(|| self.remote(&w, &party)).flatten();
        self.holders
            .entry(w.spiffe_id.clone())
            .or_default()
            .insert(w.id.clone());
        let is_remote = remote.is_some();
        let known = Known {
            message: Arc::new(endpoint),
            party,
            remote,
        };
        let is_shared = known.is_shared();
        self.known.insert(w.id.clone(), known);
        if is_remote {
            self.join(&w.namespace, &w.app_id, &w.id);
        } else if is_shared && w.node == *self.node {
            self.shared_here.insert(w.id.clone());
            // It may be up already.
            self.retarget(&w.namespace, &w.app_id);
        }
    }

    /// The policy service sent that it is gone.
    pub fn remove(&mut self, id: &str) {
        let Some(old) = self.known.remove(id) else { return };
        self.shared_here.remove(id);
        let Some(w) = &old.message.workload else { return };
        if let Some(ids) = self.holders.get_mut(&w.spiffe_id) {
            ids.remove(id);
            if ids.is_empty() {
                self.holders.remove(&w.spiffe_id);
            }
        }
        if old.remote.is_some() {
            self.leave(&w.namespace, &w.app_id, id);
        }
    }

    /// Forgets all that the policy service sent; this node's workloads stay.
    pub fn clear(&mut self) {
        let ids: Vec<String> = self.known.keys().cloned().collect();
        for id in ids {
            self.remove(&id);
        }
    }

    /// A workload of this node is ready to be called (or changed).
    pub fn local_up(&mut self, endpoint: Arc<Endpoint>) {
        let id = endpoint.workload().to_string();
        self.local_down(&id);
        let party = endpoint.party().clone();
        self.local.insert(id.clone(), endpoint);
        self.join(&party.namespace, &party.app_id, &id);
    }

    /// A workload of this node is gone.
    pub fn local_down(&mut self, id: &str) {
        if let Some(old) = self.local.remove(id) {
            let party = old.party().clone();
            self.leave(&party.namespace, &party.app_id, id);
        }
    }

    fn join(&mut self, namespace: &str, app_id: &str, id: &str) {
        if app_id.is_empty() {
            return;
        }
        let apps = self.apps.entry(namespace.to_owned()).or_default();
        let app = apps.entry(app_id.to_owned()).or_default();
        app.members.insert(id.to_owned());
        self.retarget(namespace, app_id);
    }

    fn leave(&mut self, namespace: &str, app_id: &str, id: &str) {
        let Some(apps) = self.apps.get_mut(namespace) else {
            return;
        };
        let Some(app) = apps.get_mut(app_id) else { return };
        app.members.remove(id);
        if app.members.is_empty() {
            apps.remove(app_id);
            if apps.is_empty() {
                self.apps.remove(namespace);
            }
            return;
        }
        self.retarget(namespace, app_id);
    }

    fn retarget(&mut self, namespace: &str, app_id: &str) {
        let Some(app) = self.apps.get_mut(namespace).and_then(|a| a.get_mut(app_id)) else {
            return;
        };
        let find = |id: &String| {
            self.local
                .get(id)
                .or_else(|| self.known.get(id)?.remote.as_ref())
                .cloned()
        };
        let is_shared = |id: &&String| self.known.get(*id).is_some_and(Known::is_shared);
        let shared: Vec<&String> = app.members.iter().filter(is_shared).collect();
        // Runtimes that are there for an app come before workloads that say to be it, and that of this node
        // before others.
        let here = shared.iter().copied().filter(|id| self.local.contains_key(*id));
        let here: Vec<&String> = here.collect();
        app.target = Some(match (here.is_empty(), shared.is_empty()) {
            (false, _) => Target::shared(here.into_iter().filter_map(find).collect()),
            (true, false) => Target::shared(shared.into_iter().filter_map(find).collect()),
            (true, true) => Target::new(app.members.iter().filter_map(find).collect()),
        });
    }

    fn remote(&self, w: &pb::Workload, party: &Arc<Party>) -> Option<Arc<Endpoint>> {
        // Nobody listens at the address of a shared endpoint: its node does.
        let reached = w
            .shared
            .as_ref()
            .map_or(&w.addresses, |shared| &shared.node_addresses);
        let address: Option<IpAddr> = reached.iter().find_map(|a| a.parse().ok());
        let Some(address) = address else {
            tracing::warn!(workload = w.id, "it has no address: it can not be called");
            return None;
        };
        let place = Place::Remote {
            tunnel: SocketAddr::new(address, self.tunnel_port),
        };
        Some(Endpoint::new(w.id.as_str().into(), party.clone(), place))
    }
}

/// A registered workload as flows name it.
pub fn party(w: &pb::Workload) -> Arc<Party> {
    Arc::new(Party {
        namespace: w.namespace.as_str().into(),
        workload: w.name.as_str().into(),
        app_id: w.app_id.as_str().into(),
        identity: NumericIdentity(w.identity),
        spiffe_id: w.spiffe_id.as_str().into(),
        address: w.addresses.iter().find_map(|a| a.parse().ok()),
        node: w.node.as_str().into(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn workload(id: &str, node: &str, app: &str) -> pb::Workload {
        pb::Workload {
            id: id.into(),
            node: node.into(),
            namespace: "default".into(),
            name: id.into(),
            kind: pb::WorkloadKind::Process.into(),
            app_id: app.into(),
            spiffe_id: format!("spiffe://cluster.local/ns/default/{app}"),
            addresses: vec!["10.0.0.2".into()],
            ..Default::default()
        }
    }

    fn endpoint(w: pb::Workload) -> pb::Endpoint {
        pb::Endpoint {
            workload: Some(w),
            policy_set: String::new(),
        }
    }

    fn local(id: &str, app: &str) -> Arc<Endpoint> {
        let w = workload(id, "n1", app);
        Endpoint::new(id.into(), party(&w), Place::Local { app_port: 80 })
    }

    fn served(index: &Endpoints, app: &str) -> Vec<String> {
        let target = index.target("default", app);
        let endpoints = target.iter().flat_map(|t| t.endpoints());
        endpoints.map(|e| e.workload().to_string()).collect()
    }

    #[test]
    fn own_workloads_come_from_the_table_and_others_from_the_service() {
        let mut index = Endpoints::new("n1", 15008);
        index.put(endpoint(workload("far", "n2", "cart")));
        // The service says that it runs here; the table does not know it: nobody can be reached.
        index.put(endpoint(workload("stale", "n1", "cart")));
        assert_eq!(served(&index, "cart"), ["far"]);

        index.local_up(local("near", "cart"));
        index.put(endpoint(workload("near", "n1", "cart")));
        assert_eq!(served(&index, "cart"), ["far", "near"]);
        assert_eq!(index.holders("spiffe://cluster.local/ns/default/cart").count(), 3);

        // All that the service sent goes; what runs here stays.
        index.clear();
        assert_eq!(served(&index, "cart"), ["near"]);
        index.local_down("near");
        assert!(index.target("default", "cart").is_none());
    }

    fn shared(id: &str, node: &str, app: &str) -> pb::Workload {
        pb::Workload {
            kind: pb::WorkloadKind::Pod.into(),
            addresses: vec!["198.18.0.1".into()],
            shared: Some(pb::SharedApp {
                node_addresses: vec!["10.0.0.3".into()],
                ..Default::default()
            }),
            ..workload(id, node, app)
        }
    }

    #[test]
    fn a_shared_endpoint_comes_before_workloads_and_that_of_this_node_before_others() {
        let mut index = Endpoints::new("n1", 15008);
        index.put(endpoint(workload("app", "n2", "cart")));
        assert!(!index.target("default", "cart").unwrap().is_shared());
        index.put(endpoint(shared("there", "n2", "cart")));
        assert_eq!(served(&index, "cart"), ["there"]);
        let target = index.target("default", "cart").unwrap();
        assert!(target.is_shared());
        // By its node's address: nobody listens at its own.
        let tunnel = "10.0.0.3:15008".parse().unwrap();
        assert_eq!(*target.endpoints()[0].place(), Place::Remote { tunnel });

        index.put(endpoint(shared("here", "n1", "cart")));
        assert_eq!(served(&index, "cart"), ["there"], "it is not up yet");
        assert_eq!(index.shared_here().count(), 1);
        index.local_up(local("here", "cart"));
        assert_eq!(served(&index, "cart"), ["here"]);
        // A new snapshot changes nothing of it.
        index.clear();
        index.put(endpoint(shared("here", "n1", "cart")));
        assert!(index.target("default", "cart").unwrap().is_shared());
        index.local_down("here");
        index.remove("here");
        assert!(index.target("default", "cart").is_none() && index.shared_here().count() == 0);
    }

    #[test]
    fn a_change_elsewhere_keeps_the_objects() {
        let mut index = Endpoints::new("n1", 15008);
        index.put(endpoint(workload("a", "n2", "cart")));
        let before = index.target("default", "cart").unwrap();
        index.put(endpoint(workload("b", "n2", "shop")));
        // The same message again is no change either.
        index.put(endpoint(workload("a", "n2", "cart")));
        assert!(Arc::ptr_eq(&before, &index.target("default", "cart").unwrap()));
        // Another app-id moves it.
        index.put(endpoint(workload("a", "n2", "shop")));
        assert!(index.target("default", "cart").is_none());
        assert_eq!(served(&index, "shop"), ["a", "b"]);
    }
}
