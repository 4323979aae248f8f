//! The objects that were read, in the form in which nodes get them.

use super::{
    Dirty, Key, Kind, Shared, World,
    addresses::{Addresses, Name},
    workloads::Workloads,
};
use crate::store::Write;
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};
use weft_model::Labels;
use weft_policy_engine::{Backed, Group, PolicyObject};
use weft_proto::weft::policy::v1 as pb;
use weft_resources::{Body, Meta, Resource, Service, TargetPort};

/// What names an object among all that were read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectKey {
    pub kind: weft_resources::Kind,
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub(crate) fn of(resource: &Resource) -> Self {
        let Meta { namespace, name, .. } = &resource.meta;
        Self {
            kind: resource.kind(),
            namespace: namespace.clone(),
            name: name.clone(),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    /// By namespace and name: what manifests say, then what was made.
    services: BTreeMap<String, BTreeMap<String, Service>>,
    /// Those of manifests.
    written: BTreeSet<Name>,
    /// Those that were made for Gateways. One of a manifest with the same name counts instead.
    made: BTreeMap<Name, Service>,
    built: BTreeMap<Key, Shared>,
    scopes: BTreeMap<Key, Vec<String>>,
    addresses: Addresses,
}

impl Objects {
    pub(crate) fn resource(&self, key: &Key) -> Option<Shared> {
        self.built.get(key).cloned()
    }

    pub(crate) fn scopes(&self, key: &Key) -> Option<&Vec<String>> {
        self.scopes.get(key)
    }

    pub(crate) fn services_of(&self, namespace: &str) -> impl Iterator<Item = Key> {
        let names = self.services.get(namespace).into_iter().flat_map(BTreeMap::keys);
        names.map(move |name| Key::new(Kind::Service, format!("{namespace}/{name}")))
    }

    /// The Service that is reached by an address.
    pub(super) fn service_at(&self, address: IpAddr) -> Option<(&str, &str)> {
        let all = self.services.iter();
        let mut all = all.flat_map(|(namespace, names)| names.keys().map(move |name| (namespace, name)));
        let has = |(namespace, name): &(&String, &String)| {
            let addresses = self.addresses.of(&((*namespace).clone(), (*name).clone()));
            addresses.contains(&address)
        };
        all.find(has).map(|(namespace, name)| (&**namespace, &**name))
    }

    /// Dapr's objects of a namespace.
    pub(crate) fn dapr_of(&self, namespace: &str) -> impl Iterator<Item = Key> {
        let start = format!("{namespace}/");
        let of_kind = move |kind| {
            let start = start.clone();
            let from = Key::new(kind, start.clone());
            self.built
                .range(from..)
                .take_while(move |(k, _)| k.kind == kind && k.name.starts_with(&start))
                .map(|(k, _)| k.clone())
        };
        of_kind(Kind::Component)
            .chain(of_kind(Kind::Configuration))
            .chain(of_kind(Kind::Subscription))
            .chain(of_kind(Kind::Resiliency))
            .chain(of_kind(Kind::HttpEndpoint))
    }

    fn put(&mut self, key: Key, resource: Option<Shared>, dirty: &mut Dirty) {
        let old = match resource.clone() {
            Some(new) => self.built.insert(key.clone(), new),
            None => self.built.remove(&key),
        };
        if old != resource {
            dirty.keys.insert(key);
        }
    }

    pub(super) fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.get(namespace)?.get(name)
    }

    /// Whether a Service is one that was made.
    pub(super) fn is_made(&self, name: &Name) -> bool {
        self.made.contains_key(name) && !self.written.contains(name)
    }

    /// Services that were made.
    pub(super) fn made(&self) -> impl Iterator<Item = &Name> {
        self.made.keys().filter(|name| !self.written.contains(name))
    }

    pub(super) fn addresses_of(&self, name: &Name) -> &[IpAddr] {
        self.addresses.of(name)
    }

    /// Takes what a manifest says.
    fn set_written(
        &mut self,
        name: Name,
        service: Option<Service>,
        workloads: &Workloads,
        dirty: &mut Dirty,
    ) {
        let service = match service {
            Some(service) => {
                self.written.insert(name.clone());
                Some(service)
            }
            None => {
                self.written.remove(&name);
                self.made.get(&name).cloned()
            }
        };
        self.set_service((&name.0, &name.1), service, workloads, dirty);
    }

    /// Takes what a Gateway needs. Returns whether anything changed by it.
    pub(super) fn set_made(
        &mut self,
        name: &Name,
        service: Option<Service>,
        workloads: &Workloads,
        dirty: &mut Dirty,
    ) -> bool {
        if self.made.get(name) == service.as_ref() {
            return false;
        }
        match service.clone() {
            Some(service) => self.made.insert(name.clone(), service),
            None => self.made.remove(name),
        };
        if self.written.contains(name) {
            return false;
        }
        self.set_service((&name.0, &name.1), service, workloads, dirty);
        true
    }

    fn set_service(
        &mut self,
        meta: (&str, &str),
        service: Option<Service>,
        workloads: &Workloads,
        dirty: &mut Dirty,
    ) {
        let (namespace, name) = meta;
        let freed_for = self
            .addresses
            .assign(&(namespace.to_owned(), name.to_owned()), service.as_ref());
        match service {
            Some(service) => {
                self.services
                    .entry(namespace.to_owned())
                    .or_default()
                    .insert(name.to_owned(), service);
            }
            None => {
                if let Some(all) = self.services.get_mut(namespace) {
                    all.remove(name);
                }
            }
        }
        self.build_service(namespace, name, workloads, dirty);
        for (namespace, name) in freed_for {
            let service = self
                .services
                .get(&namespace)
                .and_then(|all| all.get(&name))
                .cloned();
            // The one that comes first by name has it now; the others go on waiting.
            self.addresses
                .assign(&(namespace.clone(), name.clone()), service.as_ref());
            self.build_service(&namespace, &name, workloads, dirty);
        }
    }

    fn build_service(&mut self, namespace: &str, name: &str, workloads: &Workloads, dirty: &mut Dirty) {
        let key = Key::new(Kind::Service, format!("{namespace}/{name}"));
        let resource = self
            .services
            .get(namespace)
            .and_then(|all| all.get(name))
            .map(|service| {
                let matching = workloads
                    .in_namespace(namespace)
                    .filter_map(|id| workloads.get(id))
                    .filter(|w| selects(name, service, &w.message))
                    .map(|w| w.message.id.clone());
                let addresses = self.addresses.of(&(namespace.to_owned(), name.to_owned()));
                let body = to_wire(namespace, name, service, addresses, matching.collect());
                key.clone().with(pb::resource::Body::Service(body)).1
            });
        self.put(key, resource, dirty);
    }

    /// Services that select the workload as it was or as it is are built again.
    pub(crate) fn workload_changed(
        &mut self,
        old: Option<&pb::Workload>,
        new: Option<&pb::Workload>,
        workloads: &Workloads,
        dirty: &mut Dirty,
    ) {
        let mut touched = Vec::new();
        for message in old.into_iter().chain(new) {
            let all = self.services.get(&message.namespace).into_iter().flatten();
            let matching = all.filter(|(name, service)| selects(name, service, message));
            touched.extend(matching.map(|(name, _)| (message.namespace.clone(), name.clone())));
        }
        touched.sort_unstable();
        touched.dedup();
        for (namespace, name) in touched {
            self.build_service(&namespace, &name, workloads, dirty);
        }
    }
}

/// An object's labels, with a source.
fn labels_of(meta: &Meta, source: &str) -> Labels {
    let own = meta.labels.iter();
    own.map(|(key, value)| (format!("{source}:{key}"), value.clone()))
        .collect()
}

/// A Service without selector selects nothing but the shared endpoints that were made for it: other
/// endpoints are somebody else's business.
fn selects(name: &str, service: &Service, workload: &pb::Workload) -> bool {
    if service.selector.is_empty() {
        return workload
            .shared
            .as_ref()
            .is_some_and(|shared| shared.service == name);
    }
    service
        .selector
        .iter()
        .all(|(k, v)| workload.labels.get(k) == Some(v))
}

fn to_wire(
    namespace: &str,
    name: &str,
    service: &Service,
    addresses: &[IpAddr],
    endpoints: Vec<String>,
) -> pb::Service {
    let ports = service.ports.iter().map(|port| pb::ServicePort {
        name: port.name.clone(),
        port: port.port.into(),
        target_port: match &port.target {
            TargetPort::Number(number) => u32::from(*number),
            // A workload has one app port, so a name can only mean that one.
            TargetPort::Named(_) => 0,
        },
        protocol: port.protocol.into(),
        app_protocol: port.app_protocol.clone(),
    });
    pb::Service {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        cluster_ips: addresses.iter().map(ToString::to_string).collect(),
        ports: ports.collect(),
        endpoints,
    }
}

impl World {
    /// Gives Services whose manifests name no address one of each of these ranges.
    pub(crate) fn give_addresses_of(&mut self, ranges: Vec<IpNet>) {
        self.objects.addresses.set_ranges(ranges);
    }

    pub(crate) fn restore_address(&mut self, name: Name, address: IpAddr) {
        self.objects.addresses.restore(name, address);
    }

    /// After a restart, once the objects are read: addresses of Services that are gone are free.
    pub(crate) fn sweep_addresses(&mut self) {
        self.judge_routing();
        let services = &self.objects.services;
        let there = |(namespace, name): &Name| services.get(namespace).is_some_and(|s| s.contains_key(name));
        self.objects.addresses.sweep(there);
    }

    /// Addresses given and taken back since the last call, to be stored.
    pub(crate) fn address_writes(&mut self) -> Vec<Write> {
        self.objects.addresses.take_writes()
    }

    /// Adds, replaces or removes an object.
    pub(crate) fn set_object(&mut self, key: &ObjectKey, resource: Option<&Arc<Resource>>) {
        self.seen.set(key, resource, self.now);
        let (namespace, name) = (key.namespace.as_str(), key.name.as_str());
        match key.kind {
            weft_resources::Kind::CiliumNetworkPolicy
            | weft_resources::Kind::CiliumClusterwideNetworkPolicy
            | weft_resources::Kind::NetworkPolicy => {
                let object = resource.and_then(|r| match &r.body {
                    Body::CiliumNetworkPolicy(policy)
                    | Body::CiliumClusterwideNetworkPolicy(policy)
                    | Body::NetworkPolicy(policy) => Some(PolicyObject {
                        kind: key.kind.name().to_owned(),
                        namespace: namespace.to_owned(),
                        name: name.to_owned(),
                        rules: policy.rules.clone(),
                    }),
                    _ => None,
                });
                self.policies.set_object(key, object, &self.workloads);
            }
            weft_resources::Kind::Service => {
                let service = resource.and_then(|r| match &r.body {
                    Body::Service(service) => Some(service.clone()),
                    _ => None,
                });
                let backed = service.as_ref().zip(resource).map(|(service, r)| Backed {
                    labels: labels_of(&r.meta, "k8s"),
                    selector: service.selector.clone(),
                });
                if self.workloads.known_mut().set_service(namespace, name, backed) {
                    self.policies.services_changed(&self.workloads);
                }
                let name = (key.namespace.clone(), key.name.clone());
                let asks = service.as_ref().and_then(|s| s.shared.as_ref());
                self.set_shared(name.clone(), asks.zip(resource.map(|r| &r.meta)));
                self.routing.service_changed(&name);
                self.objects
                    .set_written(name, service, &self.workloads, &mut self.dirty);
            }
            weft_resources::Kind::Namespace => {
                let labels = resource.map(|r| r.meta.labels.clone());
                self.set_namespace(name, labels);
                self.set_routing_object(key, resource);
            }
            weft_resources::Kind::CiliumCidrGroup => {
                let group = resource.and_then(|r| match &r.body {
                    Body::CiliumCidrGroup(group) => Some(Group {
                        labels: labels_of(&r.meta, "cidrgroup"),
                        cidrs: group.cidrs.clone(),
                    }),
                    _ => None,
                });
                self.workloads.known_mut().set_group(name, group);
                self.policies.groups_changed(&self.workloads);
            }
            weft_resources::Kind::Component
            | weft_resources::Kind::Configuration
            | weft_resources::Kind::Subscription
            | weft_resources::Kind::Resiliency
            | weft_resources::Kind::HttpEndpoint => {
                self.set_dapr_object(key, resource);
            }
            weft_resources::Kind::CiliumLocalRedirectPolicy => {
                let redirect = resource.and_then(|r| match &r.body {
                    Body::CiliumLocalRedirectPolicy(redirect) => Some(redirect.clone()),
                    _ => None,
                });
                self.set_redirect((namespace, name), redirect);
            }
            weft_resources::Kind::GatewayClass
            | weft_resources::Kind::Gateway
            | weft_resources::Kind::HttpRoute
            | weft_resources::Kind::GrpcRoute
            | weft_resources::Kind::TlsRoute
            | weft_resources::Kind::BackendTlsPolicy
            | weft_resources::Kind::Ingress
            | weft_resources::Kind::ReferenceGrant => self.set_routing_object(key, resource),
            // Nothing is done with them, which their status says.
            weft_resources::Kind::CiliumEnvoyConfig | weft_resources::Kind::CiliumClusterwideEnvoyConfig => {}
        }
    }

    /// What was seen of an object before a restart.
    pub(crate) fn restore_object(&mut self, key: ObjectKey, created: u64, generation: u64, digest: u64) {
        self.seen.restore(key, created, generation, digest);
    }

    /// Forgets what was seen of objects that are gone. What changed is to be stored.
    pub(crate) fn seen_writes(&mut self) -> Vec<Write> {
        self.seen.sweep()
    }

    fn set_dapr_object(&mut self, key: &ObjectKey, resource: Option<&Arc<Resource>>) {
        let kind = match key.kind {
            weft_resources::Kind::Component => Kind::Component,
            weft_resources::Kind::Subscription => Kind::Subscription,
            weft_resources::Kind::Resiliency => Kind::Resiliency,
            weft_resources::Kind::HttpEndpoint => Kind::HttpEndpoint,
            _ => Kind::Configuration,
        };
        let wire_key = Key::new(kind, format!("{}/{}", key.namespace, key.name));
        let object = resource.and_then(|r| match &r.body {
            Body::Component(object)
            | Body::Configuration(object)
            | Body::Subscription(object)
            | Body::Resiliency(object)
            | Body::HttpEndpoint(object) => Some(object),
            _ => None,
        });
        let built = object.map(|object| {
            let body = pb::DaprResource {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                scopes: object.scopes.clone(),
                json: object.json.to_string().into_bytes(),
            };
            let body = match kind {
                Kind::Component => pb::resource::Body::Component(body),
                Kind::Subscription => pb::resource::Body::Subscription(body),
                Kind::Resiliency => pb::resource::Body::Resiliency(body),
                Kind::HttpEndpoint => pb::resource::Body::HttpEndpoint(body),
                _ => pb::resource::Body::Configuration(body),
            };
            wire_key.clone().with(body).1
        });
        match object {
            Some(object) => self
                .objects
                .scopes
                .insert(wire_key.clone(), object.scopes.clone()),
            None => self.objects.scopes.remove(&wire_key),
        };
        self.objects.put(wire_key, built, &mut self.dirty);
    }
}
