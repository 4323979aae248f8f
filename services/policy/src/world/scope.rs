//! What one node needs of the world.

use super::{Key, Kind, Shared, World, policies::Governed};
use std::collections::{BTreeMap, BTreeSet};
use weft_model::NumericIdentity;
use weft_policy_engine::DirectionPolicy;
use weft_proto::weft::policy::v1 as pb;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    /// Namespaces whose endpoints and Services it needs.
    namespaces: BTreeSet<String>,
    /// App-ids it hosts, by namespace.
    apps: BTreeMap<String, BTreeSet<String>>,
    /// Identities of its own workloads, with the id of the set that governs each.
    sets: BTreeMap<String, Governed>,
    /// Identities that those sets name.
    named: BTreeSet<NumericIdentity>,
    /// Namespaces that it asked for.
    pub asked_for: BTreeSet<String>,
}

impl Scope {
    /// Whether the policy of one of its workloads names this identity.
    pub(super) fn names(&self, identity: NumericIdentity) -> bool {
        self.named.contains(&identity)
    }
}

impl World {
    pub(super) fn scope(&self, node: &str, asked_for: BTreeSet<String>) -> Scope {
        let mut scope = Scope {
            namespaces: asked_for.clone(),
            asked_for,
            ..Scope::default()
        };
        for workload in self.workloads.of_node(node) {
            let message = &workload.message;
            scope.namespaces.insert(message.namespace.clone());
            if let Some(shared) = &message.shared
                && let Some((namespace, _)) = Self::service_behind(shared, &message.namespace)
            {
                scope.namespaces.insert(namespace.to_owned());
            }
            if !message.app_id.is_empty() {
                scope
                    .apps
                    .entry(message.namespace.clone())
                    .or_default()
                    .insert(message.app_id.clone());
            }
            let governed = workload.governed();
            let Some(set) = self.policies.set(&governed) else {
                continue;
            };
            if scope.sets.insert(set.id().to_owned(), governed).is_none() {
                let names = |d: &DirectionPolicy, into: &mut BTreeSet<NumericIdentity>| {
                    let all = d.entries.iter().flat_map(|e| &e.peers.identities);
                    into.extend(all.filter(|i| i.is_allocated()));
                };
                names(set.ingress(), &mut scope.named);
                names(set.egress(), &mut scope.named);
            }
        }
        scope
    }

    /// The keys at which a node may get something else because its scope became another; `None`: perhaps
    /// all. What changed at a key itself is another matter.
    pub(super) fn between(&self, old: &Scope, new: &Scope) -> Option<BTreeSet<Key>> {
        if old.namespaces != new.namespaces {
            return None;
        }
        let mut keys = BTreeSet::new();
        let sets = |a: &Scope, b: &Scope| -> Vec<Key> {
            let other = a.sets.keys().filter(|id| !b.sets.contains_key(*id));
            other.map(|id| Key::new(Kind::PolicySet, id.clone())).collect()
        };
        keys.extend(sets(old, new));
        keys.extend(sets(new, old));
        for identity in old.named.symmetric_difference(&new.named) {
            keys.insert(Key::new(Kind::Identity, identity.to_string()));
            let ids = self.workloads.with_identity(*identity);
            keys.extend(ids.map(|id| Key::new(Kind::Endpoint, id)));
        }
        for namespace in old.apps.keys().chain(new.apps.keys()) {
            if old.apps.get(namespace) != new.apps.get(namespace) {
                keys.extend(self.objects.dapr_of(namespace));
            }
        }
        Some(keys)
    }

    /// All that a node with this scope should have.
    pub(super) fn share(&self, node: &str, scope: &Scope) -> BTreeMap<Key, Shared> {
        let mut keys: BTreeSet<Key> = scope
            .sets
            .keys()
            .map(|id| Key::new(Kind::PolicySet, id.clone()))
            .collect();
        keys.extend(self.node_facts.names().map(|name| Key::new(Kind::Node, name)));
        for namespace in &scope.namespaces {
            let ids = self.workloads.in_namespace(namespace);
            keys.extend(ids.map(|id| Key::new(Kind::Endpoint, id)));
            keys.extend(self.objects.services_of(namespace));
            let identities = self.workloads.identities_of(namespace);
            keys.extend(identities.map(|id| Key::new(Kind::Identity, id.to_string())));
        }
        for identity in &scope.named {
            keys.insert(Key::new(Kind::Identity, identity.to_string()));
            let ids = self.workloads.with_identity(*identity);
            keys.extend(ids.map(|id| Key::new(Kind::Endpoint, id)));
        }
        keys.extend(self.routing.gateways());
        let of_addresses = self.redirects.of_addresses();
        keys.extend(of_addresses.map(|name| Key::new(Kind::Service, name.clone())));
        keys.extend(self.routing.needs.keys(&scope.namespaces));
        for namespace in scope.apps.keys() {
            keys.extend(self.objects.dapr_of(namespace));
        }
        keys.into_iter()
            .filter_map(|key| self.wanted(node, scope, &key).map(|r| (key, r)))
            .collect()
    }

    /// What a node with this scope should have at one key.
    pub(super) fn wanted(&self, node: &str, scope: &Scope, key: &Key) -> Option<Shared> {
        let needs = &self.routing.needs;
        match key.kind {
            Kind::Node => self.node_facts.resource(&key.name),
            Kind::Identity => {
                let number = NumericIdentity(key.name.parse().ok()?);
                let labels = self.workloads.labels(number)?;
                let near = labels.namespace().is_some_and(|n| scope.namespaces.contains(n));
                let mut with = self.workloads.with_identity(number);
                let wanted = near
                    || scope.named.contains(&number)
                    || with.any(|id| needs.wants_endpoint(id, &scope.namespaces));
                wanted.then(|| self.workloads.identity_resource(number))?
            }
            Kind::PolicySet => {
                let governed = scope.sets.get(&key.name)?;
                let current = self.policies.set(governed)?.id() == key.name;
                current.then(|| self.policies.resource(governed))?
            }
            Kind::Endpoint => {
                let workload = self.workloads.get(&key.name)?;
                if workload.message.node == node {
                    let set = self.policies.set(&workload.governed());
                    let set = set.map(|s| s.id().to_owned());
                    let endpoint = pb::Endpoint {
                        workload: Some(workload.message.clone()),
                        policy_set: set.unwrap_or_default(),
                    };
                    return Some(key.clone().with(pb::resource::Body::Endpoint(endpoint)).1);
                }
                let near = scope.namespaces.contains(&workload.message.namespace);
                let wanted = near
                    || scope.named.contains(&workload.identity)
                    || needs.wants_endpoint(&key.name, &scope.namespaces);
                wanted.then(|| workload.as_peer.clone())
            }
            Kind::Service => {
                let (namespace, _) = key.name.split_once('/')?;
                let wanted = scope.namespaces.contains(namespace)
                    || needs.wants_service(&key.name, &scope.namespaces)
                    || self.redirects.is_of_address(&key.name);
                let service = wanted.then(|| self.objects.resource(key))??;
                let redirected = self.redirects.on(node, key, &service, &self.workloads);
                Some(redirected.unwrap_or(service))
            }
            Kind::Gateway => self.routing.resource(key),
            Kind::Route => needs
                .wants_route(&key.name, &scope.namespaces)
                .then(|| self.routing.resource(key))?,
            Kind::Component
            | Kind::Configuration
            | Kind::Subscription
            | Kind::Resiliency
            | Kind::HttpEndpoint => {
                let (namespace, _) = key.name.split_once('/')?;
                let apps = scope.apps.get(namespace)?;
                let scopes = self.objects.scopes(key)?;
                let meant = scopes.is_empty() || scopes.iter().any(|s| apps.contains(s));
                meant.then(|| self.objects.resource(key))?
            }
        }
    }
}
