//! Gateways and routes: who is attached where, what backends their references mean, and what nodes get
//! of it. No I/O.
//!
//! An object that changed makes stale only what refers to it: routes their parents and backends, and
//! those whose references a grant permits. Each gateway and each route is one resource on the wire.

mod attach;
mod backend_tls;
mod backends;
mod conditions;
mod gateway;
mod ingress;
mod needs;
mod status;
mod wire;
mod written;

use super::{Dirty, Key, Kind, Name, ObjectKey, Shared, World, resources::Objects};
use attach::{AtListener, Parent};
use backend_tls::BackendTlsPolicies;
use backends::Resolver;
use gateway::GatewayState;
#[cfg(test)]
pub(super) use gateway::service_name;
use ingress::Ingresses;
pub(super) use needs::Needs;
use needs::Wanted;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use weft_model::TrustDomain;
use weft_proto::weft::policy::v1 as pb;
use weft_resources::{
    Body, GatewayClass, Grant, Resource, Route, Service,
    gateway::{BackendTarget, ParentRef},
};
pub(crate) use written::Written;

type Index<K> = BTreeMap<K, BTreeSet<ObjectKey>>;
type Labels = BTreeMap<String, String>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Routing {
    classes: BTreeMap<String, GatewayClass>,
    namespaces: BTreeMap<String, Labels>,
    /// By the namespace that they are of.
    grants: BTreeMap<String, BTreeMap<String, Grant>>,
    gateways: BTreeMap<Name, GatewayState>,
    routes: BTreeMap<ObjectKey, RouteState>,
    by_gateway: Index<Name>,
    by_service: Index<Name>,
    /// Routes with references into another namespace.
    by_target: Index<String>,
    stale_gateways: BTreeSet<Name>,
    stale_routes: BTreeSet<ObjectKey>,
    built: BTreeMap<Key, Shared>,
    backend_tls: BackendTlsPolicies,
    ingresses: Ingresses,
    pub needs: Needs,
}

#[derive(Debug)]
struct RouteState {
    resource: Arc<Resource>,
    created: u64,
    /// As they were judged last.
    parents: Vec<Parent>,
}

fn route_of(resource: &Resource) -> Option<&Route> {
    match &resource.body {
        Body::HttpRoute(route) | Body::GrpcRoute(route) | Body::TlsRoute(route) => Some(route),
        _ => None,
    }
}

fn is_gateway(parent: &ParentRef) -> bool {
    parent.group == weft_resources::gateway::GROUP && parent.kind == "Gateway"
}

fn is_service(group: &str, kind: &str) -> bool {
    group.is_empty() && kind == "Service"
}

fn name_in(own: &str, namespace: Option<&String>, name: &str) -> Name {
    (namespace.map_or(own, String::as_str).to_owned(), name.to_owned())
}

/// All references to backends, mirrors among them.
fn targets(route: &Route) -> impl Iterator<Item = &BackendTarget> {
    route.rules.iter().flat_map(|rule| {
        let backends = rule.backends.iter();
        let filters = std::iter::once(&rule.filters).chain(backends.clone().map(|b| &b.filters));
        let mirrors = filters.flat_map(|f| f.mirrors.iter().map(|m| &m.target));
        backends.map(|b| &b.target).chain(mirrors)
    })
}

fn put<K: Ord>(index: &mut Index<K>, at: K, key: &ObjectKey, there: bool) {
    if there {
        index.entry(at).or_default().insert(key.clone());
    } else if let Some(keys) = index.get_mut(&at) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(&at);
        }
    }
}

fn wire_name(key: &ObjectKey) -> String {
    format!("{}/{}/{}", key.kind, key.namespace, key.name)
}

impl Routing {
    pub(super) fn resource(&self, key: &Key) -> Option<Shared> {
        self.built.get(key).cloned()
    }

    pub(super) fn gateways(&self) -> impl Iterator<Item = Key> {
        let of_kind = self.built.keys().filter(|key| key.kind == Kind::Gateway);
        of_kind.cloned()
    }

    /// A Service came, changed or went.
    pub(super) fn service_changed(&mut self, name: &Name) {
        let routes = self.by_service.get(name).into_iter().flatten();
        self.stale_routes.extend(routes.cloned());
        self.ingresses.service_changed(name);
    }

    fn index(&mut self, key: &ObjectKey, resource: &Resource, there: bool) {
        let Some(route) = route_of(resource) else { return };
        let own = key.namespace.as_str();
        for parent in &route.parents {
            let name = name_in(own, parent.namespace.as_ref(), &parent.name);
            if is_gateway(parent) {
                put(&mut self.by_gateway, name, key, there);
            } else if is_service(&parent.group, &parent.kind) {
                put(&mut self.by_service, name, key, there);
            }
        }
        for target in targets(route).filter(|t| is_service(&t.group, &t.kind)) {
            let name = name_in(own, target.namespace.as_ref(), &target.name);
            if name.0 != own {
                put(&mut self.by_target, name.0.clone(), key, there);
            }
            put(&mut self.by_service, name, key, there);
        }
    }

    fn set_route(&mut self, key: &ObjectKey, resource: Option<&Arc<Resource>>, created: u64) {
        let parents = match self.routes.remove(key) {
            Some(old) => {
                self.younger_are_stale(key, &old.resource);
                self.index(key, &old.resource, false);
                old.parents
            }
            None => Vec::new(),
        };
        if let Some(resource) = resource {
            self.index(key, resource, true);
            let state = RouteState {
                resource: resource.clone(),
                created,
                parents,
            };
            self.routes.insert(key.clone(), state);
        }
        self.stale_routes.insert(key.clone());
    }

    /// What decides between routes that want the same: the older first, then by name.
    fn rank<'k>(&self, key: &'k ObjectKey) -> (u64, &'k str, &'k str, weft_resources::Kind) {
        let created = self.routes.get(key).map_or(u64::MAX, |state| state.created);
        (created, &key.namespace, &key.name, key.kind)
    }

    /// Routes of the other kind at the same Gateways: what this one holds is not theirs. Only younger
    /// ones, so that this comes to an end.
    fn younger_are_stale(&mut self, key: &ObjectKey, resource: &Resource) {
        let Some(route) = route_of(resource) else { return };
        let mut stale = BTreeSet::new();
        for parent in route.parents.iter().filter(|p| is_gateway(p)) {
            let name = name_in(&key.namespace, parent.namespace.as_ref(), &parent.name);
            let others = self.by_gateway.get(&name).into_iter().flatten();
            let younger = |other: &&ObjectKey| other.kind != key.kind && self.rank(other) > self.rank(key);
            let gone = !self.routes.contains_key(key);
            stale.extend(
                others
                    .filter(|other| gone && other.kind != key.kind || younger(other))
                    .cloned(),
            );
        }
        self.stale_routes.extend(stale);
    }

    fn set_gateway(&mut self, name: Name, resource: Option<&Arc<Resource>>) {
        let old = self.gateways.remove(&name);
        if let Some(resource) = resource {
            let state = GatewayState::new(resource.clone(), old);
            self.gateways.insert(name.clone(), state);
        }
        self.stale_gateways.insert(name);
    }

    fn set_class(&mut self, name: &str, class: Option<GatewayClass>) {
        match class {
            Some(class) => self.classes.insert(name.to_owned(), class),
            None => self.classes.remove(name),
        };
        let of_class = self.gateways.iter().filter(|(_, g)| g.class() == Some(name));
        self.stale_gateways.extend(of_class.map(|(name, _)| name.clone()));
    }

    fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
        let inside = self.routes.keys().filter(|key| key.namespace == name);
        self.stale_routes.extend(inside.cloned());
    }

    fn set_grant(&mut self, namespace: &str, name: &str, grant: Option<Grant>) {
        let grants = self.grants.entry(namespace.to_owned()).or_default();
        match grant {
            Some(grant) => grants.insert(name.to_owned(), grant),
            None => grants.remove(name),
        };
        if grants.is_empty() {
            self.grants.remove(namespace);
        }
        let routes = self.by_target.get(namespace).into_iter().flatten();
        self.stale_routes.extend(routes.cloned());
    }

    fn build(&mut self, key: Key, body: Option<pb::resource::Body>, dirty: &mut Dirty) {
        let new = body.map(|body| key.clone().with(body).1);
        let old = match new.clone() {
            Some(new) => self.built.insert(key.clone(), new),
            None => self.built.remove(&key),
        };
        if old != new {
            dirty.keys.insert(key);
        }
    }

    /// Works out a gateway anew. Returns the Service that it needs.
    fn judge_gateway(
        &mut self,
        name: &Name,
        domain: &TrustDomain,
        now: u64,
        dirty: &mut Dirty,
    ) -> Option<Service> {
        let (mut wire, mut service) = (None, None);
        if let Some(state) = self.gateways.get_mut(name) {
            let class = state.class().unwrap_or_default();
            let class = gateway::class(class, self.classes.get(class));
            state.judge(class, now);
            wire = state.wire(name, domain);
            service = wire.as_ref().and_then(|_| state.service());
        }
        let mut wanted = Wanted::default();
        if service.is_some() {
            let made = format!("{}/{}", name.0, gateway::service_name(&name.1));
            (wanted.everywhere, wanted.services) = (true, [made].into());
        }
        let key = Key::new(Kind::Gateway, format!("{}/{}", name.0, name.1));
        self.needs.set(&key, wanted, dirty);
        self.build(key, wire.map(pb::resource::Body::Gateway), dirty);
        service
    }

    fn judge_route(&mut self, key: &ObjectKey, objects: &Objects, now: u64, dirty: &mut Dirty) {
        let wire_key = Key::new(Kind::Route, wire_name(key));
        let Some((state, route)) = self
            .routes
            .get(key)
            .and_then(|s| Some((s, route_of(&s.resource)?)))
        else {
            self.needs.set(&wire_key, Wanted::default(), dirty);
            return self.build(wire_key, None, dirty);
        };
        let mut resolver = Resolver::new(key, objects, &self.grants, &self.backend_tls);
        let rules = wire::rules(route, &mut resolver);
        let resolved = resolver.condition();
        let mut wanted = Wanted {
            services: resolver.services,
            ..Wanted::default()
        };
        let (mut parents, mut attachments) = (Vec::new(), Vec::new());
        for reference in &route.parents {
            let Some(found) = self.attach(key, route, reference, objects) else {
                continue;
            };
            for attachment in &found.attachments {
                match &attachment.parent {
                    Some(pb::attachment::Parent::Service(parent)) => {
                        let service = format!("{}/{}", parent.namespace, parent.name);
                        wanted.namespaces.insert(parent.namespace.clone());
                        wanted.services.insert(service);
                    }
                    _ => wanted.everywhere = true,
                }
            }
            attachments.extend(found.attachments);
            let old = state.parents.iter().find(|p| p.reference == *reference);
            let mut conditions = vec![found.accepted, resolved.clone()];
            conditions::carry(old.map_or(&[], |p| &p.conditions), &mut conditions, now);
            parents.push(Parent {
                reference: reference.clone(),
                controller: found.controller,
                listeners: found.listeners,
                conditions,
            });
        }
        if attachments.is_empty() {
            wanted = Wanted::default();
        }
        let wire = (!attachments.is_empty()).then(|| pb::Route {
            kind: key.kind.name().to_owned(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            created: state.created,
            attachments,
            rules,
        });
        let resource = state.resource.clone();
        let attached = |parents: &[Parent]| -> Vec<Vec<AtListener>> {
            parents.iter().map(|p| p.listeners.clone()).collect()
        };
        let moved = attached(&state.parents) != attached(&parents);
        if let Some(state) = self.routes.get_mut(key) {
            state.parents = parents;
        }
        if moved {
            self.younger_are_stale(key, &resource);
        }
        self.needs.set(&wire_key, wanted, dirty);
        self.build(wire_key, wire.map(pb::resource::Body::Route), dirty);
    }
}

impl World {
    /// Takes an object that routing is about.
    pub(super) fn set_routing_object(&mut self, key: &ObjectKey, resource: Option<&Arc<Resource>>) {
        use weft_resources::Kind as Of;
        let routing = &mut self.routing;
        let body = resource.map(|r| &r.body);
        match key.kind {
            Of::GatewayClass => {
                let class = body.and_then(|b| match b {
                    Body::GatewayClass(class) => Some(class.clone()),
                    _ => None,
                });
                routing.set_class(&key.name, class);
            }
            Of::Gateway => routing.set_gateway((key.namespace.clone(), key.name.clone()), resource),
            Of::HttpRoute | Of::GrpcRoute | Of::TlsRoute => {
                routing.set_route(key, resource, self.seen.created(key));
            }
            Of::Ingress => {
                let name = (key.namespace.clone(), key.name.clone());
                routing.ingresses.set(name, resource, self.seen.created(key));
            }
            Of::BackendTlsPolicy => {
                for service in routing.backend_tls.set((&key.namespace, &key.name), resource) {
                    routing.service_changed(&service);
                }
            }
            Of::ReferenceGrant => {
                let grant = body.and_then(|b| match b {
                    Body::ReferenceGrant(grant) => Some(grant.clone()),
                    _ => None,
                });
                routing.set_grant(&key.namespace, &key.name, grant);
            }
            Of::Namespace => routing.set_namespace(&key.name, resource.map(|r| r.meta.labels.clone())),
            _ => {}
        }
    }

    /// Works out what became stale, and which Services nodes need because of it.
    pub(crate) fn judge_routing(&mut self) {
        let Self {
            routing,
            objects,
            workloads,
            dirty,
            ..
        } = self;
        while let Some(name) = routing.stale_gateways.pop_first() {
            let service = routing.judge_gateway(&name, &self.trust_domain, self.now, dirty);
            let made = (name.0.clone(), gateway::service_name(&name.1));
            if objects.set_made(&made, service, workloads, dirty) {
                routing.service_changed(&made);
            }
            let routes = routing.by_gateway.get(&name).into_iter().flatten();
            routing.stale_routes.extend(routes.cloned());
        }
        while let Some(key) = routing.stale_routes.pop_first() {
            routing.judge_route(&key, objects, self.now, dirty);
        }
        if let Some(service) = routing.judge_ingresses(&self.trust_domain, objects, dirty) {
            objects.set_made(&ingress::service(), service, workloads, dirty);
        }
        routing.needs.sync(objects, workloads, dirty);
    }
}
