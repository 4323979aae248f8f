//! Objects as they are shown: as written, with what a cluster would have filled in, and with their
//! status as the Gateway API words it.

use super::{
    Routing,
    conditions::{Condition, Truth, line, time},
    gateway::{self, GatewayState, asked_for},
    ingress,
};
use crate::world::{Key, Kind, Name, ObjectKey, World, node::Standing};
use serde_json::{Map, Value, json};
use weft_resources::{
    Kind as Of,
    gateway::{Listener, ParentRef},
};

fn list(conditions: &[Condition], generation: u64) -> Value {
    conditions.iter().map(|c| c.json(generation)).collect()
}

fn reference(parent: &ParentRef) -> Value {
    let mut json = json!({"group": parent.group, "kind": parent.kind, "name": parent.name});
    let namespace = parent.namespace.as_ref().map(|n| json!(n));
    let section = parent.section.as_ref().map(|s| json!(s));
    for (name, value) in [
        ("namespace", namespace),
        ("sectionName", section),
        ("port", parent.port.map(|p| json!(p))),
    ] {
        if let Some(value) = value {
            json[name] = value;
        }
    }
    json
}

impl Routing {
    fn route_status(&self, key: &ObjectKey, generation: u64) -> Value {
        let parents = self.routes.get(key).into_iter().flat_map(|r| &r.parents);
        let parents = parents.map(|parent| {
            json!({
                "parentRef": reference(&parent.reference),
                "controllerName": parent.controller,
                "conditions": list(&parent.conditions, generation),
            })
        });
        json!({"parents": parents.collect::<Vec<_>>()})
    }

    /// Routes that are accepted at a listener.
    fn attached(&self, name: &Name, listener: &Listener) -> usize {
        let routes = self.by_gateway.get(name).into_iter().flatten();
        let attached = |key: &&ObjectKey| self.attached_at(key, name).any(|at| at.name == listener.name);
        routes.filter(attached).count()
    }

    fn gateway_status(&self, name: &Name, generation: u64, addresses: &[std::net::IpAddr]) -> Option<Value> {
        let state = self.gateways.get(name)?;
        let mut conditions = state.conditions.clone();
        conditions.extend(state.programmed.clone());
        if state.controller.is_none() {
            return Some(json!({"conditions": list(&conditions, generation)}));
        }
        let listeners = state.listeners().map(|(listener, found)| {
            let mut conditions = found.conditions.clone();
            conditions.extend(state.programmed.clone().map(|whole| {
                if found.served {
                    listener_programmed(whole)
                } else {
                    let since = found.conditions.first().map_or(whole.since, |c| c.since);
                    let no = Condition::no("Programmed", "Invalid", "listener can not be served");
                    Condition { since, ..no }
                }
            }));
            let kinds = found
                .kinds
                .iter()
                .map(|k| json!({"group": k.group, "kind": k.kind}));
            json!({
                "name": listener.name,
                "supportedKinds": kinds.collect::<Vec<_>>(),
                "attachedRoutes": self.attached(name, listener),
                "conditions": list(&conditions, generation),
            })
        });
        let addresses = addresses
            .iter()
            .filter(|_| state.is_accepted())
            .map(|a| json!({"type": "IPAddress", "value": a.to_string()}));
        Some(json!({
            "addresses": addresses.collect::<Vec<_>>(),
            "conditions": list(&conditions, generation),
            "listeners": listeners.collect::<Vec<_>>(),
        }))
    }
}

/// A listener that is served is as far as its Gateway.
fn listener_programmed(whole: Condition) -> Condition {
    let reason = match whole.reason {
        "Programmed" | "Invalid" => whole.reason,
        _ => "Pending",
    };
    Condition { reason, ..whole }
}

impl World {
    /// Whether all nodes that are there have a Gateway.
    fn programmed(&self, name: &Name, state: &GatewayState) -> Condition {
        let no = |reason, message: String| Condition::no("Programmed", reason, message);
        let Some(spec) = state.spec().filter(|_| state.controller.is_some()) else {
            let text = "Waiting for controller";
            return Condition::new("Programmed", Truth::Unknown, "Pending", text);
        };
        if !state.is_accepted() {
            return no("Invalid", "Gateway is not accepted".into());
        }
        let service = (name.0.clone(), gateway::service_name(&name.1));
        if !self.objects.is_made(&service) {
            let text = format!(
                "Service {}/{} is in a manifest; it must be left to the Gateway",
                service.0, service.1
            );
            return no("AddressNotAssigned", text);
        }
        let addresses = self.objects.addresses_of(&service);
        if let Some(wanted) = asked_for(spec).find(|a| !addresses.contains(a)) {
            return no(
                "AddressNotUsable",
                format!("{wanted} is another Service's address"),
            );
        }
        if addresses.is_empty() {
            let text = "no address is left; configure a larger --service-cidr".to_owned();
            return no("AddressNotAssigned", text);
        }
        let keys = [
            Key::new(Kind::Service, format!("{}/{}", service.0, service.1)),
            Key::new(Kind::Gateway, format!("{}/{}", name.0, name.1)),
        ];
        let (mut there, mut waiting) = (0, Vec::new());
        for (node, (state, _)) in &self.nodes {
            let standing = keys.iter().map(|key| state.standing(key)).min();
            match standing {
                Some(Standing::Has) => there += 1,
                Some(Standing::Waiting) => waiting.push(format!("node {node} has not confirmed it")),
                Some(Standing::Refused) => waiting.push(format!("node {node} refused it")),
                // It goes on with what it has, and is told before it counts as back.
                Some(Standing::Away) | None => {}
            }
        }
        if !waiting.is_empty() {
            return no("Pending", line(&waiting));
        }
        if there == 0 {
            return no("Pending", "no node is connected".into());
        }
        let nodes = if there == 1 { "node" } else { "nodes" };
        Condition::yes(
            "Programmed",
            "Programmed",
            format!("{there} {nodes} confirmed it"),
        )
    }

    /// Looks how far nodes are with the Gateways. Returns whether anything changed.
    pub(crate) fn note_programmed(&mut self) -> bool {
        let mut changed = false;
        let found: Vec<(Name, Condition)> = self
            .routing
            .gateways
            .iter()
            .map(|(name, state)| (name.clone(), self.programmed(name, state)))
            .collect();
        for (name, mut condition) in found {
            if let Some(state) = self.routing.gateways.get_mut(&name) {
                condition.since = match &state.programmed {
                    Some(old) if old.status == condition.status => old.since,
                    _ => self.now,
                };
                changed |= state.programmed.as_ref() != Some(&condition);
                state.programmed = Some(condition);
            }
        }
        changed
    }

    /// An object with its status, as JSON.
    pub(crate) fn show(&self, key: &ObjectKey) -> Option<Value> {
        let name = (key.namespace.clone(), key.name.clone());
        let (mut json, created, generation) = match self.seen.object(key) {
            Some(resource) => {
                let json: Value = serde_json::from_str(&resource.json).ok()?;
                (json, self.seen.created(key), self.seen.generation(key))
            }
            None => match self.routing.ingress_service(&name) {
                Some(json) => (json, self.routing.first_ingress(), 0),
                None => {
                    let (json, owner) = self.made_service(&name)?;
                    (json, self.seen.created(&owner), 0)
                }
            },
        };
        json["apiVersion"] = key.kind.api_version().into();
        let metadata = json["metadata"].as_object_mut()?;
        if !key.kind.is_of_cluster() {
            metadata.insert("namespace".into(), key.namespace.clone().into());
        }
        metadata.insert("creationTimestamp".into(), time(created).into());
        if generation > 0 {
            metadata.insert("generation".into(), generation.into());
        }
        if key.kind == Of::Service {
            self.show_addresses(&name, &mut json);
        }
        if let Some(status) = self.status(key, &name, generation) {
            json["status"] = status;
        }
        Some(json)
    }

    pub(super) fn status(&self, key: &ObjectKey, name: &Name, generation: u64) -> Option<Value> {
        match key.kind {
            Of::GatewayClass => {
                let class = gateway::class(&key.name, self.routing.classes.get(&key.name));
                let mut condition = gateway::class_condition(class);
                // It was so from the beginning: what decides it is in the object alone.
                condition.since = self.seen.changed(key);
                Some(json!({"conditions": [condition.json(generation)]}))
            }
            Of::Gateway => {
                let service = (name.0.clone(), gateway::service_name(&name.1));
                let addresses = self.objects.addresses_of(&service);
                let made = self.objects.is_made(&service);
                self.routing
                    .gateway_status(name, generation, if made { addresses } else { &[] })
            }
            Of::HttpRoute | Of::GrpcRoute | Of::TlsRoute => {
                Some(self.routing.route_status(key, generation))
            }
            Of::BackendTlsPolicy => {
                let since = self.seen.changed(key);
                self.routing.backend_tls_status(name, generation, since)
            }
            Of::Ingress => {
                let shared = ingress::service();
                let made = self.objects.is_made(&shared);
                let addresses = if made { self.objects.addresses_of(&shared) } else { &[] };
                self.routing.ingress_status(name, addresses)
            }
            Of::CiliumEnvoyConfig | Of::CiliumClusterwideEnvoyConfig => Some(self.refused(
                key,
                generation,
                "Envoy's own configuration is not served by this version; use HTTPRoutes, GRPCRoutes or an Ingress",
            )),
            Of::Resiliency => Some(self.refused(
                key,
                generation,
                "sent to nodes, whose runtime of this version does not act on it: nothing is retried, timed out or cut off by it",
            )),
            Of::HttpEndpoint => Some(self.refused(
                key,
                generation,
                "sent to nodes, whose runtime of this version can not be asked to invoke it",
            )),
            Of::CiliumNetworkPolicy | Of::CiliumClusterwideNetworkPolicy => {
                let mut valid = Condition::yes("Valid", "Valid", "Policy validation succeeded");
                valid.since = self.seen.changed(key);
                Some(json!({"conditions": [valid.json(generation)]}))
            }
            Of::Namespace => Some(json!({"phase": "Active"})),
            _ => None,
        }
    }

    /// What is said of an object that is read and without effect.
    fn refused(&self, key: &ObjectKey, generation: u64, text: &str) -> Value {
        let mut accepted = Condition::no("Accepted", "NotSupported", text);
        accepted.since = self.seen.changed(key);
        json!({"conditions": [accepted.json(generation)]})
    }

    /// A Service that no manifest has, with the Gateway it was made for.
    fn made_service(&self, name: &Name) -> Option<(Value, ObjectKey)> {
        let service = self.objects.service(&name.0, &name.1)?;
        let made_for = |gateway: &&Name| gateway.0 == name.0 && gateway::service_name(&gateway.1) == name.1;
        let gateway = self.routing.gateways.keys().find(made_for)?;
        let spec = self.routing.gateways.get(gateway)?.spec()?;
        let ports = service
            .ports
            .iter()
            .map(|p| json!({"name": p.name, "port": p.port, "protocol": "TCP", "targetPort": p.port}));
        let mut labels: Map<String, Value> = Map::new();
        labels.insert(
            "gateway.networking.k8s.io/gateway-name".into(),
            gateway.1.clone().into(),
        );
        labels.insert(
            "io.cilium.gateway/owning-gateway".into(),
            gateway.1.clone().into(),
        );
        let of_spec = |map: &std::collections::BTreeMap<String, String>| {
            let pairs = map.iter().map(|(k, v)| (k.clone(), Value::from(v.clone())));
            pairs.collect::<Map<_, _>>()
        };
        labels.extend(of_spec(&spec.labels));
        let mut metadata = json!({"name": name.1, "labels": labels});
        if !spec.annotations.is_empty() {
            metadata["annotations"] = of_spec(&spec.annotations).into();
        }
        let json = json!({
            "kind": "Service",
            "metadata": metadata,
            "spec": {"type": "ClusterIP", "ports": ports.collect::<Vec<_>>()},
        });
        let owner = ObjectKey {
            kind: Of::Gateway,
            namespace: gateway.0.clone(),
            name: gateway.1.clone(),
        };
        Some((json, owner))
    }

    fn show_addresses(&self, name: &Name, json: &mut Value) {
        let addresses = self.objects.addresses_of(name);
        if let (Some(first), Some(spec)) = (addresses.first(), json["spec"].as_object_mut()) {
            let all: Value = addresses.iter().map(|a| Value::from(a.to_string())).collect();
            spec.insert("clusterIP".into(), first.to_string().into());
            spec.insert("clusterIPs".into(), all);
        }
    }

    /// All objects in the order of kinds and names, from after a key on; Services that were made among
    /// them.
    pub(crate) fn objects_after(&self, after: Option<&ObjectKey>) -> impl Iterator<Item = ObjectKey> {
        let made = self.objects.made().map(|(namespace, name)| ObjectKey {
            kind: Of::Service,
            namespace: namespace.clone(),
            name: name.clone(),
        });
        let mut made = made.filter(move |key| after.is_none_or(|a| a < key)).peekable();
        let mut read = self.seen.after(after).map(|(key, _)| key.clone()).peekable();
        std::iter::from_fn(move || match (read.peek(), made.peek()) {
            (Some(one), Some(other)) if other < one => made.next(),
            (Some(_), _) => read.next(),
            (None, _) => made.next(),
        })
    }

    /// An object as its author wrote it.
    pub(crate) fn written_object(
        &self,
        key: &ObjectKey,
    ) -> Option<&std::sync::Arc<weft_resources::Resource>> {
        self.seen.object(key)
    }

    /// Where an object stands.
    pub(crate) fn origin(&self, key: &ObjectKey) -> String {
        self.seen
            .object(key)
            .map_or_else(String::new, |r| r.origin.to_string())
    }
}
