//! The node's view of the mesh: endpoints, identities, policies and services, as the policy
//! service last sent them.
//!
//! Owns the tables and their indexes. An update costs what it changes. Readers take a short lock
//! and clone an `Arc`; one task writes ([`crate::subscription`]). What can not be used is left
//! out and named: an endpoint whose policy is missing is closed, never open.

use crate::{
    components::Changes,
    endpoints::Endpoints,
    interest::Interest,
    journal::Journal,
    places::{Meaning, Places},
};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, OnceLock},
    time::SystemTime,
};
use tokio::sync::watch;
use weft_dns::Names;
use weft_flows::Party;
use weft_model::NumericIdentity;
use weft_policy_engine::{Direction, NameRule, PolicySet, RuleRef, is_meant};
use weft_proto::weft::policy::v1::{self as pb, resource::Body};
use weft_proxy::{Backends, Member, Routing, Speaks};
use weft_route::spec::BackendRef;
use weft_runtime::{AppContext, Endpoint};

/// Most resources of one kind that are held: a bound on memory, far above a node's need.
const MAX_PER_KIND: usize = 1_000_000;

/// A policy with the texts of its rules as flows show them, made once.
#[derive(Debug)]
pub struct Compiled {
    /// As it was sent.
    source: Arc<PolicySet>,
    /// The rules by which it names peers by their names in DNS.
    names: Vec<NameRule>,
    /// With the addresses that these have now.
    set: Arc<PolicySet>,
    texts: HashMap<Arc<RuleRef>, Arc<str>>,
    /// The same by where the rule is kept, which is asked for with each request.
    places: HashMap<usize, Arc<str>>,
    /// What refuses by default, coming in and going out.
    selected_by: [Option<Arc<str>>; 2],
}

impl Compiled {
    fn new(source: Arc<PolicySet>, names: &Names) -> Self {
        let rules: Vec<NameRule> = source.names().into_iter().cloned().collect();
        let set = match rules.is_empty() {
            true => source.clone(),
            false => Arc::new(source.bind(|rule| names.addresses(rule))),
        };
        let entries = set.ingress().entries.iter().chain(&set.egress().entries);
        let texts: HashMap<Arc<RuleRef>, Arc<str>> = entries
            .clone()
            .map(|e| (e.rule.clone(), Arc::from(e.rule.to_string())))
            .collect();
        let places = entries.filter_map(|e| Some((Arc::as_ptr(&e.rule).addr(), texts.get(&e.rule)?.clone())));
        let places = places.collect();
        let selected_by = [set.ingress(), set.egress()].map(|policy| {
            let objects: Vec<String> = policy.selected_by.iter().map(|r| r.to_string()).collect();
            (!objects.is_empty()).then(|| format!("no rule of {}", objects.join(", ")).into())
        });
        Self {
            source,
            names: rules,
            set,
            texts,
            places,
            selected_by,
        }
    }

    /// The policy, with the addresses that its names have now.
    pub fn set(&self) -> &PolicySet {
        &self.set
    }

    /// The policy as it was sent, by whose id workloads name it.
    pub fn source(&self) -> &PolicySet {
        &self.source
    }

    /// The policy, shared.
    pub fn shared(&self) -> Arc<PolicySet> {
        self.set.clone()
    }

    /// For flows of what no rule allows: the objects that let nothing else in that direction pass.
    pub fn selected_by(&self, direction: Direction) -> Option<Arc<str>> {
        self.selected_by[usize::from(direction == Direction::Egress)].clone()
    }

    /// A rule of it, as flows show it.
    pub fn text(&self, rule: Option<&RuleRef>) -> Option<Arc<str>> {
        let rule = rule?;
        let kept = self.places.get(&std::ptr::from_ref(rule).addr());
        kept.or_else(|| self.texts.get(rule)).cloned()
    }
}

/// Where the view stands: versions of different epochs can not be compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// Of the policy service's process.
    pub epoch: String,
    /// The last update that was applied.
    pub version: u64,
}

/// The shared view. Clones share.
#[derive(Debug, Clone)]
pub struct Mesh {
    tables: Arc<RwLock<Tables>>,
    changed: watch::Sender<Position>,
    touched: watch::Sender<u64>,
    /// What changed, for the kernel's tables.
    pub journal: Journal,
    /// Components that changed, for the building blocks.
    pub components: Changes,
    /// What is to be asked for.
    pub interest: Interest,
    /// As whom the gateways of this node call; empty until there is one.
    pub ingress: Arc<OnceLock<Arc<AppContext>>>,
    /// Routes and gateways, as requests meet them.
    pub routing: Arc<Routing>,
    /// Which addresses names have.
    pub names: Arc<Names>,
    /// Held while sets are bound anew, so that what is known of names gets into them in its order.
    binding: Arc<Mutex<()>>,
    /// Policy is under audit on this node.
    audit: bool,
}

/// The annotation by which a workload's policy is under audit (`"true"`) or not (`"false"`), whatever
/// holds for the node.
const AUDIT_ANNOTATION: &str = "weft.dev/policy-audit-mode";

#[derive(Debug)]
struct Tables {
    position: Position,
    endpoints: Endpoints,
    places: Places,
    identities: HashMap<u32, Arc<pb::Identity>>,
    sets: HashMap<String, Arc<Compiled>>,
    names: Arc<Names>,
    /// Components, configurations and services, by kind and name.
    others: HashMap<(String, String), Arc<pb::Resource>>,
}

impl Mesh {
    /// Empty, as seen from `node`; all nodes' tunnels listen on `tunnel_port`.
    pub fn new(node: &str, tunnel_port: u16) -> Self {
        let names = Arc::<Names>::default();
        let tables = Tables {
            names: names.clone(),
            position: Position::default(),
            endpoints: Endpoints::new(node, tunnel_port),
            places: Places::default(),
            identities: HashMap::new(),
            sets: HashMap::new(),
            others: HashMap::new(),
        };
        Self {
            tables: Arc::new(RwLock::new(tables)),
            changed: watch::Sender::new(Position::default()),
            touched: watch::Sender::new(0),
            journal: Journal::default(),
            components: Changes::default(),
            interest: Interest::default(),
            routing: Arc::default(),
            ingress: Arc::default(),
            names,
            binding: Arc::default(),
            audit: false,
        }
    }

    /// With policy under audit on this node, or not.
    #[must_use]
    pub fn with_audit(self, audit: bool) -> Self {
        Self { audit, ..self }
    }

    /// Whether what policy refuses to a workload of this node passes, and is told as AUDIT.
    pub fn is_audited(&self, id: &str) -> bool {
        let tables = self.tables.read();
        let workload = tables.endpoints.message(id).and_then(|e| e.workload.as_ref());
        self.audits(workload)
    }

    /// The same, without looking: as the policy service sent the workload.
    pub fn audits(&self, workload: Option<&pb::Workload>) -> bool {
        let annotation = workload.and_then(|w| w.annotations.get(AUDIT_ANNOTATION));
        match annotation.map(String::as_str) {
            Some("true") => true,
            Some("false") => false,
            _ => self.audit,
        }
    }

    /// Applies one update; answers what of it can not be used, each line for the operator. The
    /// rest is in force all the same.
    pub fn apply(&self, update: pb::SubscribeResponse) -> Vec<String> {
        let mut problems = Vec::new();
        let routing = routing_part(&update);
        // Policies are compiled before the lock is taken.
        let upserts: Vec<Change> = update
            .upserts
            .into_iter()
            .filter_map(|resource| {
                Change::read(resource)
                    .map_err(|problem| problems.push(problem))
                    .ok()
            })
            .collect();
        let position = Position {
            epoch: update.epoch,
            version: update.version,
        };
        let named: HashSet<(String, String)> = match update.removes.is_empty() {
            true => HashSet::new(),
            false => upserts.iter().map(|change| change.key()).map(owned).collect(),
        };
        {
            let mut tables = self.tables.write();
            let mut journal = self.journal.write();
            if update.snapshot {
                for (kind, name) in tables.others.keys() {
                    self.components.resource(kind, name);
                }
                tables.clear();
                journal.all();
            }
            for change in upserts {
                let (kind, name) = change.key();
                journal.resource(kind, name);
                self.components.resource(kind, name);
                if let Err(problem) = tables.put(change) {
                    problems.push(problem);
                }
            }
        }
        // Between what comes and what goes: a route never names what is not here yet, or no more.
        let routed = self.routing.apply(&routing);
        problems.extend(routed.problems);
        {
            let mut tables = self.tables.write();
            let mut journal = self.journal.write();
            for service in &routed.services {
                journal.resource("service", service);
            }
            for key in update.removes {
                if !named.contains(&(key.kind.clone(), key.name.clone())) {
                    journal.resource(&key.kind, &key.name);
                    self.components.resource(&key.kind, &key.name);
                    tables.remove(&key);
                }
            }
            tables.position = position.clone();
        }
        self.journal.notify();
        self.components.notify();
        self.changed.send_replace(position);
        self.touch();
        problems
    }

    /// Where the view stands.
    pub fn position(&self) -> Position {
        self.tables.read().position.clone()
    }

    /// Notified after each update.
    pub fn subscribe(&self) -> watch::Receiver<Position> {
        self.changed.subscribe()
    }

    /// All of it as one snapshot, for the file of the last good state.
    pub fn snapshot(&self) -> pb::SubscribeResponse {
        let tables = self.tables.read();
        let resource = |kind: &str, name: String, body| pb::Resource {
            key: Some(pb::ResourceKey {
                kind: kind.into(),
                name,
            }),
            body: Some(body),
        };
        let endpoints = tables.endpoints.messages().map(|e| {
            let id = e.workload.as_ref().map_or_else(String::new, |w| w.id.clone());
            resource("endpoint", id, Body::Endpoint((**e).clone()))
        });
        let identities = tables.identities.values();
        let identities =
            identities.map(|i| resource("identity", i.id.to_string(), Body::Identity((**i).clone())));
        let sets = tables.sets.values();
        let sets = sets.map(|s| {
            resource(
                "policy-set",
                s.source().id().into(),
                Body::PolicySet(s.source().into()),
            )
        });
        let others = tables.others.values().map(|r| (**r).clone());
        pb::SubscribeResponse {
            version: tables.position.version,
            epoch: tables.position.epoch.clone(),
            snapshot: true,
            upserts: endpoints.chain(identities).chain(sets).chain(others).collect(),
            removes: Vec::new(),
        }
    }

    /// Runs `read` on the endpoints, under the lock: it must be short and must not come back here.
    pub fn read<T>(&self, read: impl FnOnce(&Endpoints) -> T) -> T {
        read(&self.tables.read().endpoints)
    }

    /// Labels of an identity, `source:key=value`, sorted; none when it is not known.
    pub fn labels(&self, identity: NumericIdentity) -> Vec<String> {
        let found = self.tables.read().identities.get(&identity.0).cloned();
        let Some(identity) = found else { return Vec::new() };
        let labels = identity.labels.iter();
        let mut labels: Vec<String> = labels.map(|(key, value)| format!("{key}={value}")).collect();
        labels.sort_unstable();
        labels
    }

    /// The nodes of the mesh.
    pub fn nodes(&self) -> Vec<pb::Node> {
        let tables = self.tables.read();
        let resources = tables.others.values();
        let nodes = resources.filter_map(|resource| match &resource.body {
            Some(Body::Node(node)) => Some(node.clone()),
            _ => None,
        });
        nodes.collect()
    }

    /// Runs `read` on all that the policy service sent, under the lock.
    pub fn sent<T>(&self, read: impl FnOnce(&dyn Sent) -> T) -> T {
        read(&*self.tables.read())
    }

    /// Changes which of this node's workloads are there.
    pub fn change_local(&self, change: impl FnOnce(&mut Endpoints)) {
        change(&mut self.tables.write().endpoints);
        self.touch();
    }

    fn touch(&self) {
        self.touched.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Notified after each update, and after each change of this node's workloads.
    pub fn touched(&self) -> watch::Receiver<u64> {
        self.touched.subscribe()
    }

    /// Whom an address means; of a workload that can be reached, the endpoint as well.
    pub fn meaning(&self, to: SocketAddr) -> (Meaning, Option<Arc<Endpoint>>) {
        let tables = self.tables.read();
        let endpoint = |id: &str| tables.endpoints.endpoint(id);
        let (node, _) = tables.endpoints.here();
        let meaning = tables.places.find(node, to, |id| endpoint(id).is_some());
        let found = match &meaning {
            Meaning::Workload(id, _) => endpoint(id),
            _ => None,
        };
        (meaning, found)
    }

    /// The Service that has an address, with the port of it.
    pub fn service_at(&self, at: SocketAddr) -> Option<BackendRef> {
        let tables = self.tables.read();
        let (service, port) = tables.places.service_at(at)?;
        let (namespace, name) = service.split_once('/')?;
        Some(BackendRef {
            namespace: namespace.into(),
            name: name.into(),
            port,
        })
    }

    /// The endpoints of a Service's port; `None` when there is no such thing.
    pub fn backends(&self, service: &BackendRef, v4: bool) -> Option<Arc<Backends>> {
        let tables = self.tables.read();
        let endpoint = |id: &str| tables.endpoints.endpoint(id);
        let key = format!("{}/{}", service.namespace, service.name);
        let ready = |id: &str| endpoint(id).is_some();
        let (members, speaks) = tables.places.members(&key, service.port, v4, ready)?;
        let member = |(id, address)| {
            let endpoint = endpoint(id)?;
            Some(Member { endpoint, address })
        };
        let members = members.into_iter().filter_map(member).collect();
        Some(Backends::new(members, Speaks::of(speaks)))
    }

    /// A TCP port of a Service, or the one that is for HTTP, and an address of it; `None` when there is no
    /// such thing.
    pub fn service_port(
        &self,
        namespace: &str,
        name: &str,
        port: Option<u16>,
    ) -> Option<(BackendRef, IpAddr)> {
        let tables = self.tables.read();
        let service = tables.places.service(&format!("{namespace}/{name}"))?;
        let tcp = || service.ports.iter().filter(|p| matches!(p.protocol, 0 | 6));
        let found = match port {
            Some(port) => tcp().find(|p| p.port == u32::from(port)),
            None => tcp()
                .find(|p| p.name == "http")
                .or_else(|| tcp().find(|p| p.port == 80))
                .or_else(|| tcp().next()),
        };
        let address = service.cluster_ips.iter().find_map(|a| a.parse().ok());
        let service = BackendRef {
            namespace: namespace.into(),
            name: name.into(),
            port: u16::try_from(found?.port).ok()?,
        };
        // A headless one has none; what comes by no connection needs none.
        Some((service, address.unwrap_or(Ipv4Addr::UNSPECIFIED.into())))
    }

    /// Whether a workload is one of those that serve a Service.
    pub fn serves(&self, namespace: &str, name: &str, who: &Party) -> bool {
        let tables = self.tables.read();
        let service = tables.places.service(&format!("{namespace}/{name}"));
        let mut ids = service.into_iter().flat_map(|service| &service.endpoints);
        ids.any(|id| {
            let message = tables.endpoints.message(id).and_then(|e| e.workload.as_ref());
            message.is_some_and(|w| {
                *w.namespace == *who.namespace
                    && *w.name == *who.workload
                    && *w.node == *who.node
                    && w.identity == who.identity.0
            })
        })
    }

    /// The port of all nodes' tunnels.
    pub fn tunnel_port(&self) -> u16 {
        self.tables.read().endpoints.here().1
    }

    /// The ids that the policy service has for a node.
    pub fn ids_of_node(&self, node: &str) -> Vec<String> {
        let tables = self.tables.read();
        let workloads = tables.endpoints.messages().filter_map(|e| e.workload.as_ref());
        workloads
            .filter(|w| w.node == node)
            .map(|w| w.id.clone())
            .collect()
    }

    /// The policy that governs an endpoint of this node; `None` while it is not here.
    pub fn policy_of(&self, id: &str) -> Option<Arc<Compiled>> {
        let tables = self.tables.read();
        let set = &tables.endpoints.message(id)?.policy_set;
        tables.sets.get(set).cloned()
    }

    /// The shared endpoints that are this node's to answer for.
    pub fn shared_here(&self) -> Vec<pb::Workload> {
        self.tables.read().endpoints.shared_here().cloned().collect()
    }

    /// Changes what is known of names, and binds the policies anew that this concerns. `change` answers the names
    /// whose addresses changed, and what is answered here as well.
    pub fn change_names<T>(&self, change: impl FnOnce(&Names) -> (Vec<String>, T)) -> T {
        let binding = self.binding.lock();
        let (changed, answer) = change(&self.names);
        if changed.is_empty() {
            return answer;
        }
        let means = |rule: &NameRule| changed.iter().any(|name| is_meant(rule, name));
        let concerned: Vec<(String, Arc<Compiled>)> = {
            let tables = self.tables.read();
            let sets = tables.sets.iter().filter(|(_, set)| set.names.iter().any(means));
            sets.map(|(id, set)| (id.clone(), set.clone())).collect()
        };
        let mut bound = Vec::new();
        for (id, old) in concerned {
            let new = Compiled::new(old.source.clone(), &self.names);
            if new.set.id() != old.set.id() {
                bound.push((id, old, new));
            }
        }
        if bound.is_empty() {
            return answer;
        }
        {
            let mut tables = self.tables.write();
            let mut journal = self.journal.write();
            for (id, old, new) in bound {
                // One that came or went meanwhile was bound to the same names, or is gone.
                if let Some(there) = tables.sets.get_mut(&id).filter(|there| Arc::ptr_eq(there, &old)) {
                    *there = Arc::new(new);
                    journal.resource("policy-set", &id);
                }
            }
        }
        drop(binding);
        self.journal.notify();
        self.touch();
        answer
    }

    /// Takes over what an agent before this one knew of names.
    pub fn take_over_names(&self, path: &Path) {
        if let Err(error) = self.names.take_over(path, SystemTime::now()) {
            tracing::warn!(path = %path.display(), %error, "starting without the addresses that names had");
        }
    }

    /// The same once that agent has ended; and keeps them there from now on.
    pub fn keep_names(&self, path: &Path) {
        if let Err(error) = self.names.keep_in(path, SystemTime::now()) {
            tracing::error!(
                path = %path.display(), %error,
                "addresses of names are not kept: after a restart connections to them are cut until they are asked for again"
            );
        }
        self.bind_all();
    }

    /// Binds all policies that name names anew.
    pub fn bind_all(&self) {
        let _binding = self.binding.lock();
        {
            let mut tables = self.tables.write();
            let names = tables.names.clone();
            let mut journal = self.journal.write();
            for (id, compiled) in tables.sets.iter_mut().filter(|(_, set)| !set.names.is_empty()) {
                *compiled = Arc::new(Compiled::new(compiled.source.clone(), &names));
                journal.resource("policy-set", id);
            }
        }
        self.journal.notify();
        self.touch();
    }

    /// Waits until an endpoint and its policy are here.
    pub async fn governed(&self, id: &str) {
        let mut changed = self.subscribe();
        // The sender lives in `self`, so the wait ends by the condition only.
        let _ = changed.wait_for(|_| self.policy_of(id).is_some()).await;
    }
}

/// The gateways and routes of an update.
fn routing_part(update: &pb::SubscribeResponse) -> pb::SubscribeResponse {
    let routed = |resource: &&pb::Resource| matches!(&resource.body, Some(Body::Route(_) | Body::Gateway(_)));
    let gone = |key: &&pb::ResourceKey| matches!(key.kind.as_str(), "route" | "gateway");
    pb::SubscribeResponse {
        snapshot: update.snapshot,
        upserts: update.upserts.iter().filter(routed).cloned().collect(),
        removes: update.removes.iter().filter(gone).cloned().collect(),
        ..Default::default()
    }
}

fn owned((kind, name): (&str, &str)) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

enum Change {
    Endpoint(pb::Endpoint),
    Identity(pb::Identity),
    Set(PolicySet),
    Other(pb::ResourceKey, pb::Resource),
}

impl Change {
    fn read(resource: pb::Resource) -> Result<Self, String> {
        let key = resource.key.clone().unwrap_or_default();
        let wrong = |what: &str| format!("{} {:?}: {what}", key.kind, key.name);
        match resource.body {
            Some(Body::Endpoint(e)) => {
                let Some(w) = &e.workload else {
                    return Err(wrong("no workload in it"));
                };
                if w.id != key.name {
                    return Err(wrong("is named otherwise than its workload"));
                }
                Ok(Self::Endpoint(e))
            }
            Some(Body::Identity(i)) => Ok(Self::Identity(i)),
            Some(Body::PolicySet(set)) => match PolicySet::try_from(&set) {
                Ok(set) => Ok(Self::Set(set)),
                Err(e) => Err(format!("{e}; the workloads it governs are closed")),
            },
            Some(_) => Ok(Self::Other(key, resource)),
            // A newer server may send kinds that this agent does not know and does not need.
            None => Err(wrong("a kind this agent does not know; update it")),
        }
    }
}

/// What the policy service sent, as it was sent.
pub trait Sent {
    /// A workload, of this node or of another.
    fn endpoint(&self, id: &str) -> Option<&Arc<pb::Endpoint>>;
    /// A policy.
    fn set(&self, id: &str) -> Option<&Arc<Compiled>>;
    /// A resource of another kind.
    fn other(&self, kind: &str, name: &str) -> Option<&Arc<pb::Resource>>;
    /// Kinds and names of everything but identities.
    fn names(&self) -> Vec<(&str, &str)>;
}

impl Sent for Tables {
    fn endpoint(&self, id: &str) -> Option<&Arc<pb::Endpoint>> {
        self.endpoints.message(id)
    }

    fn set(&self, id: &str) -> Option<&Arc<Compiled>> {
        self.sets.get(id)
    }

    fn other(&self, kind: &str, name: &str) -> Option<&Arc<pb::Resource>> {
        self.others.get(&(kind.to_owned(), name.to_owned()))
    }

    fn names(&self) -> Vec<(&str, &str)> {
        let endpoints = self.endpoints.messages().filter_map(|e| e.workload.as_ref());
        let endpoints = endpoints.map(|w| ("endpoint", w.id.as_str()));
        let sets = self.sets.keys().map(|id| ("policy-set", id.as_str()));
        let others = self
            .others
            .keys()
            .map(|(kind, name)| (kind.as_str(), name.as_str()));
        endpoints.chain(sets).chain(others).collect()
    }
}

impl Change {
    /// Kind and name.
    fn key(&self) -> (&str, &str) {
        match self {
            Self::Endpoint(e) => ("endpoint", e.workload.as_ref().map_or("", |w| w.id.as_str())),
            Self::Identity(_) => ("identity", ""),
            Self::Set(set) => ("policy-set", set.id()),
            Self::Other(key, _) => (&key.kind, &key.name),
        }
    }
}

impl Tables {
    fn clear(&mut self) {
        self.endpoints.clear();
        self.places.clear();
        self.identities.clear();
        self.sets.clear();
        self.others.clear();
    }

    fn put(&mut self, change: Change) -> Result<(), String> {
        let full = |n: usize, kind: &str| {
            if n >= MAX_PER_KIND {
                return Err(format!("more than {MAX_PER_KIND} resources of kind {kind}"));
            }
            Ok(())
        };
        match change {
            Change::Endpoint(endpoint) => {
                full(self.endpoints.len(), "endpoint")?;
                if let Some(w) = &endpoint.workload {
                    self.places.put(w);
                }
                self.endpoints.put(endpoint);
            }
            Change::Identity(identity) => {
                full(self.identities.len(), "identity")?;
                self.identities.insert(identity.id, Arc::new(identity));
            }
            Change::Set(set) => {
                full(self.sets.len(), "policy-set")?;
                let compiled = Compiled::new(Arc::new(set), &self.names);
                self.sets
                    .insert(compiled.source.id().to_owned(), Arc::new(compiled));
            }
            Change::Other(key, resource) => {
                full(self.others.len(), &key.kind)?;
                self.places.put_other(&key.name, resource.body.as_ref());
                self.others.insert((key.kind, key.name), Arc::new(resource));
            }
        }
        Ok(())
    }

    fn remove(&mut self, key: &pb::ResourceKey) {
        match key.kind.as_str() {
            "endpoint" => {
                self.places.remove(&key.name);
                self.endpoints.remove(&key.name);
            }
            "identity" => {
                if let Ok(id) = key.name.parse() {
                    self.identities.remove(&id);
                }
            }
            "policy-set" => {
                self.sets.remove(&key.name);
            }
            kind => {
                self.places.remove_other(kind, &key.name);
                self.others.remove(&(kind.to_owned(), key.name.clone()));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn endpoint(id: &str, app: &str, set: &str) -> pb::Resource {
        let workload = pb::Workload {
            id: id.into(),
            node: "n1".into(),
            namespace: "default".into(),
            app_id: app.into(),
            spiffe_id: format!("spiffe://cluster.local/ns/default/{app}"),
            identity: 300,
            ..Default::default()
        };
        let body = Body::Endpoint(pb::Endpoint {
            workload: Some(workload),
            policy_set: set.into(),
        });
        resource("endpoint", id, body)
    }

    fn open_set() -> pb::Resource {
        let set = pb::PolicySet::from(&PolicySet::unrestricted());
        resource("policy-set", &set.id.clone(), Body::PolicySet(set))
    }

    fn resource(kind: &str, name: &str, body: Body) -> pb::Resource {
        pb::Resource {
            key: Some(pb::ResourceKey {
                kind: kind.into(),
                name: name.into(),
            }),
            body: Some(body),
        }
    }

    fn update(version: u64, upserts: Vec<pb::Resource>) -> pb::SubscribeResponse {
        pb::SubscribeResponse {
            version,
            epoch: "e".into(),
            snapshot: version == 1,
            upserts,
            removes: Vec::new(),
        }
    }

    #[test]
    fn a_policy_that_can_not_be_used_closes_and_is_named() {
        let mesh = Mesh::new("n1", 15008);
        // A direction is missing in this set.
        let bad = Body::PolicySet(pb::PolicySet {
            id: "bad".into(),
            ..Default::default()
        });
        let upserts = vec![resource("policy-set", "bad", bad), endpoint("a", "cart", "bad")];
        let problems = mesh.apply(update(1, upserts));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("bad"), "{problems:?}");
        assert!(mesh.read(|e| e.message("a").is_some()));
        assert!(mesh.policy_of("a").is_none());
    }

    /// Service default/web with a route to itself, and an endpoint.
    fn routed() -> Vec<pb::Resource> {
        let service = pb::Service {
            namespace: "default".into(),
            name: "web".into(),
            cluster_ips: vec!["10.96.0.1".into()],
            ports: vec![pb::ServicePort {
                port: 80,
                target_port: 8080,
                app_protocol: "kubernetes.io/h2c".into(),
                ..Default::default()
            }],
            endpoints: vec!["a".into(), "absent".into()],
        };
        let parent = pb::ServiceParent {
            namespace: "default".into(),
            name: "web".into(),
            port: 0,
        };
        let route = pb::Route {
            kind: "HTTPRoute".into(),
            namespace: "default".into(),
            name: "web".into(),
            attachments: vec![pb::Attachment {
                parent: Some(pb::attachment::Parent::Service(parent)),
                hostnames: Vec::new(),
            }],
            rules: vec![pb::RouteRule::default()],
            ..Default::default()
        };
        let mut a = endpoint("a", "web", "");
        if let Some(Body::Endpoint(e)) = &mut a.body {
            let workload = e.workload.as_mut().unwrap();
            workload.node = "n2".into();
            workload.kind = pb::WorkloadKind::Pod.into();
            workload.addresses = vec!["fd00::5".into(), "10.1.0.5".into()];
        }
        vec![
            a,
            resource("service", "default/web", Body::Service(service)),
            resource("route", "HTTPRoute/default/web", Body::Route(route)),
        ]
    }

    #[test]
    fn routes_are_kept_with_all_else_and_tell_the_kernel_which_services_to_take() {
        let mesh = Mesh::new("n1", 15008);
        assert!(mesh.apply(update(1, routed())).is_empty());
        mesh.journal.open();
        mesh.journal.take();
        let web = mesh.service_at("10.96.0.1:80".parse().unwrap()).unwrap();
        assert_eq!((&*web.namespace, &*web.name, web.port), ("default", "web", 80));
        assert!(mesh.service_at("10.96.0.1:81".parse().unwrap()).is_none());
        // By the family asked for; nobody is where nothing was told of.
        for (v4, address) in [(true, "10.1.0.5:8080"), (false, "[fd00::5]:8080")] {
            let backends = mesh.backends(&web, v4).unwrap();
            let addresses: Vec<String> = backends.members().iter().map(|m| m.address.to_string()).collect();
            assert_eq!(
                (addresses, backends.speaks()),
                (vec![address.to_owned()], Speaks::Http2)
            );
        }
        let other = BackendRef { port: 81, ..web };
        assert!(mesh.backends(&other, true).is_none());

        let again = Mesh::new("n1", 15008);
        assert!(again.apply(mesh.snapshot()).is_empty());
        assert!(again.routing.takes("default", "web"));
        // Without its last route the Service is the kernel's again, and it is told so.
        let gone = pb::SubscribeResponse {
            removes: vec![pb::ResourceKey {
                kind: "route".into(),
                name: "HTTPRoute/default/web".into(),
            }],
            ..update(2, Vec::new())
        };
        assert!(mesh.apply(gone).is_empty());
        assert!(!mesh.routing.takes("default", "web"));
        let changed = mesh.journal.take().resources;
        assert!(
            changed.contains(&("service".into(), "default/web".into())),
            "{changed:?}"
        );
    }

    #[test]
    fn a_route_that_can_not_be_used_is_named() {
        let mesh = Mesh::new("n1", 15008);
        let mut upserts = routed();
        if let Some(Body::Route(route)) = &mut upserts[2].body {
            route.rules[0].backends.push(pb::RouteBackend {
                weight: u32::MAX,
                ..Default::default()
            });
        }
        let problems = mesh.apply(update(1, upserts));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].contains("HTTPRoute/default/web: rules[0].backends[0].weight"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_snapshot_survives_the_round_trip() {
        let mesh = Mesh::new("n1", 15008);
        let set = PolicySet::unrestricted().id().to_owned();
        mesh.apply(update(1, vec![endpoint("a", "cart", &set), open_set()]));
        let again = Mesh::new("n1", 15008);
        assert!(again.apply(mesh.snapshot()).is_empty());
        assert_eq!(again.position(), mesh.position());
        assert_eq!(again.policy_of("a").unwrap().set().id(), set);
        // A snapshot replaces all there was.
        again.apply(update(1, Vec::new()));
        assert!(again.read(|e| e.message("a").is_none()));
    }

    #[test]
    fn names_are_bound_as_they_are_learned_and_kept_as_they_were_sent() {
        use std::time::Duration;
        use weft_policy_engine::{DirectionPolicy, Entry, PeerRef, Peers, Ports};
        let entry = Entry {
            deny: false,
            rule: Arc::new(RuleRef {
                kind: "CiliumNetworkPolicy".into(),
                namespace: "default".into(),
                name: "names".into(),
                path: "egress[0]".into(),
            }),
            protocol: None,
            ports: Ports::Any,
            redirect: false,
            http: Default::default(),
            dns: Default::default(),
            auth: Default::default(),
            peers: Peers {
                names: vec![NameRule::Pattern("*.test".into())],
                ..Peers::default()
            },
        };
        let egress = DirectionPolicy {
            default_deny: true,
            entries: vec![entry],
            ..Default::default()
        };
        let set = PolicySet::new(DirectionPolicy::default(), egress);
        let mesh = Mesh::new("n1", 15008);
        mesh.apply(pb::SubscribeResponse {
            version: 1,
            epoch: "e".into(),
            snapshot: true,
            upserts: vec![
                endpoint("a", "a", set.id()),
                resource("policy-set", set.id(), Body::PolicySet((&set).into())),
            ],
            removes: Vec::new(),
        });
        mesh.journal.open();
        mesh.journal.take();
        let address: IpAddr = [192, 0, 2, 1].into();
        let opens = || {
            let peer = PeerRef {
                identity: NumericIdentity::WORLD,
                address: Some(address),
            };
            let policy = mesh.policy_of("a").unwrap();
            policy.set().judge(Direction::Egress, peer, 6, 443).is_allowed()
        };
        let learn = |name: &str| {
            mesh.change_names(|names| {
                let learned = names.learn(name, &[address], Duration::from_secs(1), SystemTime::now());
                (vec![name.to_owned()], learned.changed)
            })
        };
        assert!(!opens());
        assert!(learn("a.example") && !opens(), "no rule means it");
        assert!(mesh.journal.take().resources.is_empty());
        assert!(learn("a.test") && opens());
        let told = mesh.journal.take().resources;
        assert_eq!(told, [("policy-set".to_owned(), set.id().to_owned())].into());
        // What is kept for the next start is what was sent.
        let kept = mesh.snapshot();
        assert!(
            kept.upserts
                .iter()
                .any(|r| r.body == Some(Body::PolicySet((&set).into())))
        );
        // A policy that comes anew is bound at once.
        mesh.apply(kept);
        assert!(opens());
        let later = SystemTime::now() + Duration::from_secs(60);
        mesh.change_names(|names| (names.forget(&Default::default(), later), ()));
        assert!(!opens());
    }
}
