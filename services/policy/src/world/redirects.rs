//! Local redirects: a Service that one names has, on each node, the endpoints of that node that it
//! selects, and no others. What a node gets changes with its own workloads only.

use super::{Dirty, Key, Kind, Shared, workloads::Workloads};
use std::collections::BTreeMap;
use weft_model::Labels;
use weft_proto::weft::policy::v1 as pb;
use weft_resources::{LabelSelector, LocalRedirect, Operator};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Redirects {
    /// By the Service that is meant, as its key names it, then by the policy's name. The first counts.
    by_service: BTreeMap<String, BTreeMap<String, LocalRedirect>>,
    /// By policy: the Service that it is about.
    services: BTreeMap<(String, String), String>,
}

impl Redirects {
    /// Adds, replaces or removes a policy.
    pub(super) fn set(&mut self, policy: (&str, &str), redirect: Option<LocalRedirect>, dirty: &mut Dirty) {
        let name = (policy.0.to_owned(), policy.1.to_owned());
        if let Some(service) = self.services.remove(&name) {
            if let Some(all) = self.by_service.get_mut(&service) {
                all.remove(policy.1);
                if all.is_empty() {
                    self.by_service.remove(&service);
                }
            }
            dirty.keys.insert(Key::new(Kind::Service, service));
        }
        // As in Cilium: nobody redirects the Services of another namespace.
        if let Some(redirect) = redirect.filter(|r| r.namespace == policy.0) {
            let service = format!("{}/{}", redirect.namespace, redirect.service);
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

    /// The Service as a node gets it, when it is redirected.
    pub(super) fn on(
        &self,
        node: &str,
        key: &Key,
        service: &Shared,
        workloads: &Workloads,
    ) -> Option<Shared> {
        let redirect = self.by_service.get(&key.name)?.values().next()?;
        let Some(pb::resource::Body::Service(service)) = &service.body else {
            return None;
        };
        let selected = workloads.of_node(node).filter(|workload| {
            workload.message.namespace == redirect.namespace
                && workloads
                    .labels(workload.identity)
                    .is_some_and(|labels| selects(&redirect.backends, labels))
        });
        let endpoints = selected.map(|w| w.message.id.clone()).collect();
        let ports = service.ports.iter().filter_map(|port| {
            let meant = redirect.ports.iter().find(|p| {
                (redirect.ports.len() == 1 || p.name == port.name) && u32::from(p.protocol) == port.protocol
            });
            Some(pb::ServicePort {
                target_port: meant?.port.into(),
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
