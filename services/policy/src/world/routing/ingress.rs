//! Ingresses: all of them together are one gateway of the mesh, as Cilium's shared load balancer is: the
//! Service `cilium-ingress` with port 80, which is open on every node too. What an Ingress says of a host
//! is a route there.

use super::{Key, Kind, Name, Routing, backend_tls::BackendTlsPolicies, needs::Wanted};
use crate::world::{Dirty, resources::Objects};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};
use weft_model::TrustDomain;
use weft_proto::weft::policy::v1 as pb;
use weft_resources::{
    Body, Ingress, Resource, Service, ServicePort, TargetPort,
    gateway::{IngressBackend, IngressPort, PathMatch},
};

/// Where Cilium has it.
const NAMESPACE: &str = "kube-system";
const SERVICE: &str = "cilium-ingress";
const LISTENER: &str = "http";
const PORT: u16 = 80;
/// Rules that a node takes in one route.
const MAX_RULES: usize = 64;

#[derive(Debug)]
struct State {
    resource: Arc<Resource>,
    created: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ingresses {
    /// Those of our classes.
    objects: BTreeMap<Name, State>,
    by_service: BTreeMap<Name, BTreeSet<Name>>,
    /// What nodes have of each.
    routes: BTreeMap<Name, BTreeSet<Key>>,
    stale: BTreeSet<Name>,
    is_served: bool,
}

/// The Service that all share.
pub(super) fn service() -> Name {
    (NAMESPACE.to_owned(), SERVICE.to_owned())
}

fn ours(resource: &Resource) -> Option<&Ingress> {
    match &resource.body {
        Body::Ingress(ingress) => Some(ingress).filter(|ingress| ingress.is_ours),
        _ => None,
    }
}

fn backends(ingress: &Ingress) -> impl Iterator<Item = &IngressBackend> {
    let paths = ingress.rules.iter().flat_map(|rule| &rule.paths);
    paths.map(|path| &path.backend).chain(&ingress.default)
}

impl Ingresses {
    pub(super) fn set(&mut self, name: Name, resource: Option<&Arc<Resource>>, created: u64) {
        if let Some(old) = self.objects.remove(&name) {
            for backend in ours(&old.resource).into_iter().flat_map(backends) {
                let of = (name.0.clone(), backend.service.clone());
                if let Some(names) = self.by_service.get_mut(&of) {
                    names.remove(&name);
                    if names.is_empty() {
                        self.by_service.remove(&of);
                    }
                }
            }
        }
        if let Some((resource, ingress)) = resource.and_then(|r| Some((r, ours(r)?))) {
            for backend in backends(ingress) {
                let of = (name.0.clone(), backend.service.clone());
                self.by_service.entry(of).or_default().insert(name.clone());
            }
            let resource = resource.clone();
            self.objects.insert(name.clone(), State { resource, created });
        }
        self.stale.insert(name);
    }

    pub(super) fn service_changed(&mut self, name: &Name) {
        self.stale
            .extend(self.by_service.get(name).into_iter().flatten().cloned());
    }
}

/// The backend as nodes know it; nothing where there is none, which is answered with 500.
fn target(
    namespace: &str,
    backend: &IngressBackend,
    (objects, tls): (&Objects, &BackendTlsPolicies),
) -> Option<pb::RouteBackendRef> {
    let service = objects.service(namespace, &backend.service)?;
    let port = service
        .ports
        .iter()
        .filter(|p| p.protocol == 6)
        .find(|p| match &backend.port {
            IngressPort::Number(number) => p.port == *number,
            IngressPort::Name(name) => p.name == *name,
        })?;
    // In clear is not what its author wants.
    if tls.demanded(namespace, &backend.service, &port.name).is_some() {
        return None;
    }
    Some(pb::RouteBackendRef {
        namespace: namespace.to_owned(),
        service: backend.service.clone(),
        port: port.port.into(),
    })
}

fn rule(path: &PathMatch, target: Option<pb::RouteBackendRef>) -> pb::RouteRule {
    use pb::route_match::Path;
    let path = match path {
        PathMatch::Exact(text) => Path::Exact(text.clone()),
        PathMatch::Prefix(text) => Path::Prefix(text.clone()),
        PathMatch::Pattern(text) | PathMatch::GrpcMethod(text) => Path::Pattern(text.clone()),
    };
    pb::RouteRule {
        matches: vec![pb::RouteMatch {
            path: Some(path),
            ..Default::default()
        }],
        backends: vec![pb::RouteBackend {
            target,
            weight: 1,
            filters: None,
        }],
        ..Default::default()
    }
}

/// The rules of each host; an empty one stands for every host.
fn by_host(
    name: &Name,
    ingress: &Ingress,
    known: (&Objects, &BackendTlsPolicies),
) -> BTreeMap<String, Vec<pb::RouteRule>> {
    let everything = PathMatch::Prefix("/".into());
    let mut hosts: BTreeMap<String, Vec<pb::RouteRule>> = BTreeMap::new();
    // Hosts whose rules leave something to the default.
    let mut open: BTreeSet<String> = BTreeSet::new();
    for one in &ingress.rules {
        let host = one.host.clone().unwrap_or_default();
        if !hosts.contains_key(&host) {
            open.insert(host.clone());
        }
        let rules = hosts.entry(host.clone()).or_default();
        for path in &one.paths {
            if path.path == everything {
                open.remove(&host);
            }
            rules.push(rule(&path.path, target(&name.0, &path.backend, known)));
        }
    }
    if let Some(default) = &ingress.default {
        if !hosts.contains_key("") {
            open.insert(String::new());
        }
        // A request for a host that has rules is not looked for among the rules of every host.
        for host in open {
            let rules = hosts.entry(host).or_default();
            rules.push(rule(&everything, target(&name.0, default, known)));
        }
    }
    hosts.retain(|_, rules| !rules.is_empty());
    hosts
}

impl Routing {
    /// Works out what became stale. Returns the Service that all share when it comes or goes.
    pub(super) fn judge_ingresses(
        &mut self,
        domain: &TrustDomain,
        objects: &Objects,
        dirty: &mut Dirty,
    ) -> Option<Option<Service>> {
        while let Some(name) = self.ingresses.stale.pop_first() {
            self.judge_ingress(&name, objects, dirty);
        }
        let wanted = !self.ingresses.objects.is_empty();
        if std::mem::replace(&mut self.ingresses.is_served, wanted) == wanted {
            return None;
        }
        let key = Key::new(Kind::Gateway, format!("{NAMESPACE}/{SERVICE}"));
        let gateway = wanted.then(|| {
            // Always a SPIFFE ID: the names are no one's choice.
            let id = domain.workload(NAMESPACE, SERVICE).map(|id| id.to_string());
            pb::Gateway {
                namespace: NAMESPACE.to_owned(),
                name: SERVICE.to_owned(),
                listeners: vec![pb::Listener {
                    name: LISTENER.to_owned(),
                    port: PORT.into(),
                    protocol: "HTTP".to_owned(),
                    hostname: String::new(),
                }],
                service: SERVICE.to_owned(),
                spiffe_id: id.unwrap_or_default(),
            }
        });
        let needed = match wanted {
            true => Wanted {
                everywhere: true,
                services: [format!("{NAMESPACE}/{SERVICE}")].into(),
                ..Wanted::default()
            },
            false => Wanted::default(),
        };
        self.needs.set(&key, needed, dirty);
        self.build(key, gateway.map(pb::resource::Body::Gateway), dirty);
        Some(wanted.then(|| Service {
            selector: Default::default(),
            cluster_ips: Vec::new(),
            headless: false,
            ports: vec![ServicePort {
                name: LISTENER.to_owned(),
                port: PORT,
                target: TargetPort::Number(PORT),
                protocol: 6,
                app_protocol: String::new(),
            }],
            shared: None,
        }))
    }

    fn judge_ingress(&mut self, name: &Name, objects: &Objects, dirty: &mut Dirty) {
        let state = self.ingresses.objects.get(name);
        let ingress = state.and_then(|s| Some((s.created, ours(&s.resource)?)));
        let mut wanted = BTreeMap::new();
        if let Some((created, ingress)) = ingress {
            let mut number = 0;
            for (host, rules) in by_host(name, ingress, (objects, &self.backend_tls)) {
                for rules in rules.chunks(MAX_RULES) {
                    let key = Key::new(Kind::Route, format!("Ingress/{}/{}/{number}", name.0, name.1));
                    number += 1;
                    wanted.insert(key, Self::ingress_route(name, created, &host, rules));
                }
            }
        }
        let old = self.ingresses.routes.remove(name).unwrap_or_default();
        for key in old.iter().filter(|key| !wanted.contains_key(key)) {
            self.needs.set(key, Wanted::default(), dirty);
            self.build(key.clone(), None, dirty);
        }
        if !wanted.is_empty() {
            self.ingresses
                .routes
                .insert(name.clone(), wanted.keys().cloned().collect());
        }
        for (key, route) in wanted {
            let backends = route
                .rules
                .iter()
                .flat_map(|r| &r.backends)
                .filter_map(|b| b.target.as_ref());
            let needed = Wanted {
                everywhere: true,
                services: backends
                    .map(|b| format!("{}/{}", b.namespace, b.service))
                    .collect(),
                ..Wanted::default()
            };
            self.needs.set(&key, needed, dirty);
            self.build(key, Some(pb::resource::Body::Route(route)), dirty);
        }
    }

    fn ingress_route(name: &Name, created: u64, host: &str, rules: &[pb::RouteRule]) -> pb::Route {
        let parent = pb::ListenerParent {
            gateway_namespace: NAMESPACE.to_owned(),
            gateway: SERVICE.to_owned(),
            listener: LISTENER.to_owned(),
        };
        pb::Route {
            kind: "Ingress".to_owned(),
            namespace: name.0.clone(),
            name: name.1.clone(),
            created,
            attachments: vec![pb::Attachment {
                parent: Some(pb::attachment::Parent::Listener(parent)),
                hostnames: Some(host.to_owned())
                    .filter(|h| !h.is_empty())
                    .into_iter()
                    .collect(),
            }],
            rules: rules.to_vec(),
        }
    }

    /// Where an Ingress is reached; nothing of other classes.
    pub(super) fn ingress_status(&self, name: &Name, addresses: &[IpAddr]) -> Option<Value> {
        self.ingresses.objects.get(name)?;
        let ports = json!([{"port": PORT, "protocol": "TCP"}]);
        let all: Vec<Value> = addresses
            .iter()
            .map(|a| json!({"ip": a.to_string(), "ports": ports}))
            .collect();
        Some(json!({"loadBalancer": {"ingress": all}}))
    }

    /// The Service that all share, as it is shown.
    pub(super) fn ingress_service(&self, name: &Name) -> Option<Value> {
        let shown = self.ingresses.is_served && *name == service();
        shown.then(|| {
            json!({
                "kind": "Service",
                "metadata": {"name": SERVICE, "labels": {"cilium.io/ingress": "true"}},
                "spec": {
                    "type": "ClusterIP",
                    "ports": [{"name": LISTENER, "port": PORT, "protocol": "TCP", "targetPort": PORT}],
                },
            })
        })
    }

    /// The oldest of them, since when the shared Service is there.
    pub(super) fn first_ingress(&self) -> u64 {
        self.ingresses
            .objects
            .values()
            .map(|s| s.created)
            .min()
            .unwrap_or_default()
    }
}
