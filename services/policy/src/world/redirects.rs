//! Local redirects: a Service that one names has, on each node, the endpoints of that node that it
//! selects, and no others. For an address that is no Service's one is made. What a node gets changes with its
//! own workloads only.

use super::{Dirty, Key, Kind, Shared, World, addresses::Name, workloads::Workloads};
use std::collections::{BTreeMap, BTreeSet};
use weft_model::Labels;
use weft_proto::weft::policy::v1 as pb;
use weft_resources::{
    LabelSelector, LocalRedirect, Operator, RedirectFrontend, Service, ServicePort, TargetPort,
};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Redirects {
    /// By the Service that is meant, as its key names it, then by the policy's name. The first counts.
    by_service: BTreeMap<String, BTreeMap<String, LocalRedirect>>,
    /// By policy: the Service that it is about.
    services: BTreeMap<(String, String), String>,
    /// Services that were made for addresses, by their keys' names.
    made: BTreeSet<String>,
}

/// The Service that is made for a policy about an address, as Cilium calls it.
fn made_name(policy: &str) -> String {
    format!("{policy}-local-redirect")
}

/// The Service for an address: where its ports lead is said for each node.
fn made(frontend: &RedirectFrontend) -> Option<Service> {
    let RedirectFrontend::Address { ip, ports } = frontend else {
        return None;
    };
    let ports = ports.iter().map(|port| ServicePort {
        name: port.name.clone(),
        port: port.port,
        target: TargetPort::Number(port.port),
        protocol: port.protocol,
        app_protocol: String::new(),
    });
    Some(Service {
        selector: BTreeMap::default(),
        cluster_ips: vec![*ip],
        headless: false,
        ports: ports.collect(),
        shared: None,
    })
}

impl World {
    pub(super) fn set_redirect(&mut self, policy: (&str, &str), redirect: Option<LocalRedirect>) {
        let name: Name = (policy.0.to_owned(), made_name(policy.1));
        let service = redirect.as_ref().and_then(|r| made(&r.frontend));
        let of_address = service.is_some();
        self.redirects.set(policy, redirect, of_address, &mut self.dirty);
        let (workloads, dirty) = (&self.workloads, &mut self.dirty);
        if self.objects.set_made(&name, service, workloads, dirty) {
            self.routing.service_changed(&name);
        }
    }
}

impl Redirects {
    /// Adds, replaces or removes a policy.
    fn set(
        &mut self,
        policy: (&str, &str),
        redirect: Option<LocalRedirect>,
        of_address: bool,
        dirty: &mut Dirty,
    ) {
        let name = (policy.0.to_owned(), policy.1.to_owned());
        if let Some(service) = self.services.remove(&name) {
            if let Some(all) = self.by_service.get_mut(&service) {
                all.remove(policy.1);
                if all.is_empty() {
                    self.by_service.remove(&service);
                }
            }
            self.made.remove(&service);
            dirty.keys.insert(Key::new(Kind::Service, service));
        }
        let service = redirect.as_ref().and_then(|redirect| match &redirect.frontend {
            // As in Cilium: nobody redirects the Services of another namespace.
            RedirectFrontend::Service { namespace, name } => {
                (namespace == policy.0).then(|| format!("{namespace}/{name}"))
            }
            RedirectFrontend::Address { .. } => Some(format!("{}/{}", policy.0, made_name(policy.1))),
        });
        if let (Some(redirect), Some(service)) = (redirect, service) {
            if of_address {
                self.made.insert(service.clone());
            }
            dirty.keys.insert(Key::new(Kind::Service, service.clone()));
            self.services.insert(name, service.clone());
            let all = self.by_service.entry(service).or_default();
            all.insert(policy.1.to_owned(), redirect);
        }
    }

    /// A workload of a namespace came, changed or went: nodes may get other endpoints for these.
    pub(super) fn workload_changed(&self, namespace: &str, dirty: &mut Dirty) {
        let about = self.services.iter().filter(|((own, _), _)| own == namespace);
        let keys = about.map(|(_, service)| Key::new(Kind::Service, service.clone()));
        dirty.keys.extend(keys);
    }

    /// Services that were made for addresses: every node has them, or who is there would reach what the
    /// address is beside them.
    pub(super) fn of_addresses(&self) -> impl Iterator<Item = &String> {
        self.made.iter()
    }

    /// Whether a Service was made for an address.
    pub(super) fn is_of_address(&self, service: &str) -> bool {
        self.made.contains(service)
    }

    /// The Service as a node gets it, when it is redirected.
    pub(super) fn on(
        &self,
        node: &str,
        key: &Key,
        service: &Shared,
        workloads: &Workloads,
    ) -> Option<Shared> {
        let redirect = self.by_service.get(&key.name)?.values().next()?;
        // Endpoints are of the policy's namespace, which is the Service's.
        let (namespace, _) = key.name.split_once('/')?;
        let Some(pb::resource::Body::Service(service)) = &service.body else {
            return None;
        };
        let selected = workloads.of_node(node).filter(|workload| {
            workload.message.namespace == namespace
                && workloads
                    .labels(workload.identity)
                    .is_some_and(|labels| selects(&redirect.backends, labels))
        });
        let endpoints = selected.map(|w| w.message.id.clone()).collect();
        let ports = service.ports.iter().filter_map(|port| {
            // 0 is TCP on the wire.
            let protocol = u8::try_from(port.protocol).ok()?;
            Some(pb::ServicePort {
                target_port: redirect
                    .target(&port.name, if protocol == 0 { 6 } else { protocol })?
                    .into(),
                ..port.clone()
            })
        });
        let service = pb::Service {
            ports: ports.collect(),
            endpoints,
            ..service.clone()
        };
        Some(key.clone().with(pb::resource::Body::Service(service)).1)
    }
}

/// Labels here are Kubernetes', with or without saying so.
fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.requirements.iter().all(|requirement| {
        let key = &requirement.key;
        let value = match key.source.as_deref() {
            None | Some("k8s") => labels.get(&format!("k8s:{}", key.name)),
            Some(source) => labels.get(&format!("{source}:{}", key.name)),
        };
        let listed = value.is_some_and(|v| requirement.values.iter().any(|w| w == v));
        match requirement.operator {
            Operator::In => listed,
            Operator::NotIn => !listed,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    })
}
