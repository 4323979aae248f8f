//! Which routes and Services nodes need beyond their own namespaces: a route that a node gets names
//! Services of anywhere, and these are sent with their endpoints and identities.
//!
//! Kept as counts, so that a change of one route costs what it names.

use crate::world::{Dirty, Key, Kind, resources::Objects, workloads::Workloads};
use std::collections::{BTreeMap, BTreeSet};
use weft_model::NumericIdentity;
use weft_proto::weft::policy::v1 as pb;

/// What one route or gateway asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Of every node.
    pub everywhere: bool,
    /// Of the nodes that know one of these namespaces.
    pub namespaces: BTreeSet<String>,
    /// `<namespace>/<name>`.
    pub services: BTreeSet<String>,
}

impl Wanted {
    /// Empty text for everywhere, which is no namespace's name.
    fn places(&self) -> impl Iterator<Item = &str> {
        let everywhere = self.everywhere.then_some("");
        everywhere
            .into_iter()
            .chain(self.namespaces.iter().map(String::as_str))
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::world) struct Needs {
    by_owner: BTreeMap<Key, Wanted>,
    /// By place: names of routes.
    routes: BTreeMap<String, BTreeSet<String>>,
    /// By place: Services with how many owners name them.
    services: BTreeMap<String, BTreeMap<String, usize>>,
    /// How many places each Service is needed in.
    needed: BTreeMap<String, usize>,
    /// Needed Services with their endpoints, as nodes were told.
    endpoints: BTreeMap<String, BTreeSet<String>>,
    by_endpoint: BTreeMap<String, (NumericIdentity, BTreeSet<String>)>,
    /// Services that became needed somewhere, or not needed.
    touched: BTreeSet<String>,
}

impl Needs {
    /// Takes what a route or gateway asks for now.
    pub(super) fn set(&mut self, owner: &Key, wanted: Wanted, dirty: &mut Dirty) {
        let old = self.by_owner.remove(owner).unwrap_or_default();
        if old == wanted {
            if wanted != Wanted::default() {
                self.by_owner.insert(owner.clone(), wanted);
            }
            return;
        }
        let route = owner.kind == Kind::Route;
        for place in wanted.places() {
            if route {
                let routes = self.routes.entry(place.to_owned()).or_default();
                if routes.insert(owner.name.clone()) {
                    dirty.keys.insert(owner.clone());
                }
            }
            for service in &wanted.services {
                self.add(place, service);
            }
        }
        for place in old.places() {
            if route && !wanted.places().any(|p| p == place) {
                if let Some(routes) = self.routes.get_mut(place) {
                    routes.remove(&owner.name);
                    if routes.is_empty() {
                        self.routes.remove(place);
                    }
                }
                dirty.keys.insert(owner.clone());
            }
            for service in &old.services {
                self.subtract(place, service);
            }
        }
        if wanted != Wanted::default() {
            self.by_owner.insert(owner.clone(), wanted);
        }
    }

    fn add(&mut self, place: &str, service: &str) {
        let services = self.services.entry(place.to_owned()).or_default();
        let count = services.entry(service.to_owned()).or_default();
        *count += 1;
        if *count == 1 {
            *self.needed.entry(service.to_owned()).or_default() += 1;
            self.touched.insert(service.to_owned());
        }
    }

    fn subtract(&mut self, place: &str, service: &str) {
        let Some(services) = self.services.get_mut(place) else {
            return;
        };
        let Some(count) = services.get_mut(service) else {
            return;
        };
        *count -= 1;
        if *count > 0 {
            return;
        }
        services.remove(service);
        if services.is_empty() {
            self.services.remove(place);
        }
        self.touched.insert(service.to_owned());
        if let Some(places) = self.needed.get_mut(service) {
            *places -= 1;
            if *places == 0 {
                self.needed.remove(service);
            }
        }
    }

    /// Follows what changed of Services and endpoints, and marks what nodes may get or lose by it.
    pub(super) fn sync(&mut self, objects: &Objects, workloads: &Workloads, dirty: &mut Dirty) {
        let mut services = std::mem::take(&mut self.touched);
        for service in &services {
            dirty.keys.insert(Key::new(Kind::Service, service.clone()));
            for id in self.endpoints.get(service).into_iter().flatten() {
                self.mark(id, dirty);
            }
        }
        let changed = dirty.keys.iter().filter(|key| key.kind == Kind::Service);
        services.extend(changed.map(|key| key.name.clone()));
        for service in services {
            let old = self.endpoints.remove(&service).unwrap_or_default();
            let mut new = BTreeSet::new();
            if self.needed.contains_key(&service)
                && let Some(resource) = objects.resource(&Key::new(Kind::Service, service.clone()))
                && let Some(pb::resource::Body::Service(body)) = &resource.body
            {
                new.extend(body.endpoints.iter().cloned());
            }
            for id in old.difference(&new) {
                self.mark(id, dirty);
                if let Some((_, services)) = self.by_endpoint.get_mut(id) {
                    services.remove(&service);
                    if services.is_empty() {
                        self.by_endpoint.remove(id);
                    }
                }
            }
            for id in new.difference(&old) {
                let Some(workload) = workloads.get(id) else {
                    continue;
                };
                let entry = self.by_endpoint.entry(id.clone());
                let (_, services) = entry.or_insert_with(|| (workload.identity, BTreeSet::new()));
                services.insert(service.clone());
                self.mark(id, dirty);
            }
            if !new.is_empty() {
                self.endpoints.insert(service, new);
            }
        }
        // An endpoint may have got another identity.
        let ids: Vec<String> = dirty
            .keys
            .iter()
            .filter(|key| key.kind == Kind::Endpoint && self.by_endpoint.contains_key(&key.name))
            .map(|key| key.name.clone())
            .collect();
        for id in ids {
            self.mark(&id, dirty);
            if let (Some(workload), Some((identity, _))) = (workloads.get(&id), self.by_endpoint.get_mut(&id))
            {
                *identity = workload.identity;
            }
            self.mark(&id, dirty);
        }
    }

    fn mark(&self, id: &str, dirty: &mut Dirty) {
        if let Some((identity, _)) = self.by_endpoint.get(id) {
            dirty.keys.insert(Key::new(Kind::Endpoint, id));
            dirty.keys.insert(Key::new(Kind::Identity, identity.to_string()));
        }
    }

    /// Everywhere, then these namespaces.
    fn places(namespaces: &BTreeSet<String>) -> impl Iterator<Item = &str> {
        std::iter::once("").chain(namespaces.iter().map(String::as_str))
    }

    /// Whether a node that knows these namespaces needs a route.
    pub(in crate::world) fn wants_route(&self, name: &str, namespaces: &BTreeSet<String>) -> bool {
        Self::places(namespaces).any(|p| self.routes.get(p).is_some_and(|r| r.contains(name)))
    }

    /// Whether it needs a Service, whatever its namespace.
    pub(in crate::world) fn wants_service(&self, name: &str, namespaces: &BTreeSet<String>) -> bool {
        Self::places(namespaces).any(|p| self.services.get(p).is_some_and(|s| s.contains_key(name)))
    }

    /// Whether it needs an endpoint for such a Service.
    pub(in crate::world) fn wants_endpoint(&self, id: &str, namespaces: &BTreeSet<String>) -> bool {
        self.by_endpoint
            .get(id)
            .is_some_and(|(_, services)| services.iter().any(|s| self.wants_service(s, namespaces)))
    }

    /// All that it may need: routes, Services, endpoints and identities.
    pub(in crate::world) fn keys(&self, namespaces: &BTreeSet<String>) -> BTreeSet<Key> {
        let mut keys = BTreeSet::new();
        for place in Self::places(namespaces) {
            let routes = self.routes.get(place).into_iter().flatten();
            keys.extend(routes.map(|name| Key::new(Kind::Route, name.clone())));
            for service in self.services.get(place).into_iter().flat_map(BTreeMap::keys) {
                keys.insert(Key::new(Kind::Service, service.clone()));
                for id in self.endpoints.get(service).into_iter().flatten() {
                    keys.insert(Key::new(Kind::Endpoint, id.clone()));
                    if let Some((identity, _)) = self.by_endpoint.get(id) {
                        keys.insert(Key::new(Kind::Identity, identity.to_string()));
                    }
                }
            }
        }
        keys
    }
}
