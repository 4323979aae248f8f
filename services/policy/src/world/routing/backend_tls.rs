//! BackendTLSPolicies: which Services are to be reached by TLS only. Nodes do not do that, so what goes
//! there is answered as for a backend that can not be reached, and never sent in clear.

use super::{Name, Routing, conditions::Condition, is_gateway, is_service, name_in};
use crate::world::ObjectKey;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use weft_resources::{BackendTls, Body, Resource, gateway::GROUP};

/// Ancestors that a status lists at most.
const MAX_ANCESTORS: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct BackendTlsPolicies {
    by_name: BTreeMap<Name, Arc<Resource>>,
    /// By Service: names of policies.
    by_service: BTreeMap<Name, BTreeSet<String>>,
}

fn policy(resource: &Resource) -> Option<&BackendTls> {
    match &resource.body {
        Body::BackendTlsPolicy(policy) => Some(policy),
        _ => None,
    }
}

fn services(namespace: &str, resource: &Resource) -> BTreeSet<Name> {
    let targets = policy(resource).into_iter().flat_map(|p| &p.targets);
    let targets = targets.filter(|t| is_service(&t.group, &t.kind));
    targets.map(|t| (namespace.to_owned(), t.name.clone())).collect()
}

impl BackendTlsPolicies {
    /// Takes a policy. Returns the Services that it is or was about.
    pub(super) fn set(
        &mut self,
        (namespace, name): (&str, &str),
        resource: Option<&Arc<Resource>>,
    ) -> BTreeSet<Name> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut touched = BTreeSet::new();
        if let Some(old) = self.by_name.remove(&key) {
            for service in services(namespace, &old) {
                if let Some(policies) = self.by_service.get_mut(&service) {
                    policies.remove(name);
                    if policies.is_empty() {
                        self.by_service.remove(&service);
                    }
                }
                touched.insert(service);
            }
        }
        if let Some(resource) = resource {
            for service in services(namespace, resource) {
                self.by_service
                    .entry(service.clone())
                    .or_default()
                    .insert(name.to_owned());
                touched.insert(service);
            }
            self.by_name.insert(key, resource.clone());
        }
        touched
    }

    /// The policy that demands TLS of a port, by the port's name.
    pub(super) fn demanded(&self, namespace: &str, service: &str, port: &str) -> Option<&str> {
        let of = (namespace.to_owned(), service.to_owned());
        let names = self.by_service.get(&of).into_iter().flatten();
        let demands = |name: &&String| {
            let resource = self.by_name.get(&(namespace.to_owned(), (*name).clone()));
            let targets = resource
                .and_then(|r| policy(r))
                .into_iter()
                .flat_map(|p| &p.targets);
            targets.into_iter().any(|t| {
                is_service(&t.group, &t.kind)
                    && t.name == service
                    && t.section.as_ref().is_none_or(|section| section == port)
            })
        };
        names.into_iter().find(demands).map(String::as_str)
    }
}

impl Routing {
    /// What is said of a policy at each Gateway of ours whose routes lead to its Services.
    pub(super) fn backend_tls_status(&self, name: &Name, generation: u64, since: u64) -> Option<Value> {
        let resource = self.backend_tls.by_name.get(name)?;
        let policy = policy(resource)?;
        let wrong = policy.targets.iter().find(|t| !is_service(&t.group, &t.kind));
        let accepted = match wrong {
            Some(target) => format!(
                "targetRefs: a {} of {:?} is no Service",
                target.kind, target.group
            ),
            None => "TLS to backends is not supported: what is routed there is answered with 500".to_owned(),
        };
        let mut conditions = vec![Condition::no("Accepted", "Invalid", accepted)];
        conditions.push(match policy.has_certificates {
            true => Condition::no(
                "ResolvedRefs",
                "InvalidCACertificateRef",
                "validation.caCertificateRefs: ConfigMaps are not read",
            ),
            false => Condition::yes("ResolvedRefs", "ResolvedRefs", "all references are known"),
        });
        let conditions: Vec<Value> = conditions
            .into_iter()
            .map(|condition| Condition { since, ..condition }.json(generation))
            .collect();
        let mut gateways: BTreeMap<Name, &'static str> = BTreeMap::new();
        for service in services(&name.0, resource) {
            for key in self.by_service.get(&service).into_iter().flatten() {
                gateways.extend(self.gateways_of(key));
            }
        }
        let ancestors = gateways
            .into_iter()
            .take(MAX_ANCESTORS)
            .map(|((namespace, name), controller)| {
                json!({
                    "ancestorRef": {"group": GROUP, "kind": "Gateway", "namespace": namespace, "name": name},
                    "controllerName": controller,
                    "conditions": conditions,
                })
            });
        Some(json!({"ancestors": ancestors.collect::<Vec<_>>()}))
    }

    /// The Gateways of ours that a route names.
    fn gateways_of<'r>(&'r self, key: &'r ObjectKey) -> impl Iterator<Item = (Name, &'static str)> + 'r {
        let parents = self.routes.get(key).into_iter().flat_map(|r| &r.parents);
        parents.filter(|p| is_gateway(&p.reference)).filter_map(|p| {
            let name = name_in(&key.namespace, p.reference.namespace.as_ref(), &p.reference.name);
            let there = self.gateways.get(&name)?.controller?;
            Some((name, there))
        })
    }
}
