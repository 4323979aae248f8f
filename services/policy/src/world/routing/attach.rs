//! One route at one of its parents: whether it attaches, and where.

use super::{
    Routing,
    conditions::{Condition, line},
    gateway::{GatewayState, WEFT},
    is_gateway, is_service, name_in,
};
use crate::world::{ObjectKey, resources::Objects};
use std::collections::BTreeMap;
use weft_proto::weft::policy::v1 as pb;
use weft_resources::{
    LabelSelector, Operator, Route,
    gateway::{AllowedNamespaces, GROUP, Listener, ParentRef},
};
use weft_route::Hostname;

/// A parent of a route, as it was judged.
#[derive(Debug)]
pub(super) struct Parent {
    pub reference: ParentRef,
    pub controller: &'static str,
    /// The listeners that it is attached to.
    pub listeners: Vec<AtListener>,
    /// `Accepted` and `ResolvedRefs`.
    pub conditions: Vec<Condition>,
}

/// A listener that a route is attached to, and the hosts it serves there; none for every host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AtListener {
    pub name: String,
    pub hosts: Vec<Hostname>,
}

/// What came of a reference to a parent.
pub(super) struct Found {
    pub controller: &'static str,
    pub accepted: Condition,
    pub listeners: Vec<AtListener>,
    /// What of it nodes serve.
    pub attachments: Vec<pb::Attachment>,
}

fn refused(controller: &'static str, reason: &'static str, message: impl Into<String>) -> Found {
    Found {
        controller,
        accepted: Condition::no("Accepted", reason, message),
        listeners: Vec::new(),
        attachments: Vec::new(),
    }
}

fn attached(controller: &'static str, listeners: Vec<AtListener>, attachments: Vec<pb::Attachment>) -> Found {
    Found {
        controller,
        accepted: Condition::yes("Accepted", "Accepted", "route is attached"),
        listeners,
        attachments,
    }
}

impl Routing {
    /// Nothing for what is somebody else's to say.
    pub(super) fn attach(
        &self,
        key: &ObjectKey,
        route: &Route,
        reference: &ParentRef,
        objects: &Objects,
    ) -> Option<Found> {
        let name = name_in(&key.namespace, reference.namespace.as_ref(), &reference.name);
        let unsupported = |controller| {
            let wrong = !route.unsupported.is_empty();
            wrong.then(|| refused(controller, "UnsupportedValue", line(&route.unsupported)))
        };
        if is_service(&reference.group, &reference.kind) {
            return Some(unsupported(WEFT).unwrap_or_else(|| at_service(key, reference, &name, objects)));
        }
        if !is_gateway(reference) {
            let text = format!(
                "routes attach to a Gateway of {GROUP} or a Service of the core group, not to a {} of {:?}",
                reference.kind, reference.group
            );
            return Some(refused(WEFT, "NoMatchingParent", text));
        }
        let Some(gateway) = self.gateways.get(&name) else {
            let text = format!("there is no Gateway {}/{}", name.0, name.1);
            return Some(refused(WEFT, "NoMatchingParent", text));
        };
        let controller = gateway.controller?;
        Some(
            unsupported(controller)
                .unwrap_or_else(|| self.at_gateway(key, route, reference, gateway, controller)),
        )
    }

    fn at_gateway(
        &self,
        key: &ObjectKey,
        route: &Route,
        reference: &ParentRef,
        gateway: &GatewayState,
        controller: &'static str,
    ) -> Found {
        let meta = &gateway.resource.meta;
        let meant = |listener: &Listener| {
            reference.section.as_ref().is_none_or(|s| *s == listener.name)
                && reference.port.is_none_or(|p| p == listener.port)
        };
        let meant: Vec<_> = gateway.listeners().filter(|(l, _)| meant(l)).collect();
        if meant.is_empty() {
            let text = "no listener of the Gateway has this sectionName and port";
            return refused(controller, "NoMatchingParent", text);
        }
        let allowed: Vec<_> = meant
            .into_iter()
            .filter(|(listener, state)| {
                let kind =
                    |k: &weft_resources::gateway::RouteKind| k.group == GROUP && k.kind == key.kind.name();
                state.kinds.iter().any(kind) && self.allows(listener, &meta.namespace, &key.namespace)
            })
            .collect();
        if allowed.is_empty() {
            let text = format!(
                "no listener allows {}s of namespace {} (spec.listeners[].allowedRoutes)",
                key.kind, key.namespace
            );
            return refused(controller, "NotAllowedByListeners", text);
        }
        let own: Vec<Hostname> = route.hostnames.iter().filter_map(|h| h.parse().ok()).collect();
        let (mut listeners, mut attachments) = (Vec::new(), Vec::new());
        let mut older = None;
        for (listener, state) in allowed {
            let theirs = listener
                .hostname
                .as_ref()
                .and_then(|h| h.parse::<Hostname>().ok());
            let Some(hostnames) = Hostname::at_listener(&own, theirs.as_ref()) else {
                continue;
            };
            if let Some(other) = self.older_of_other_kind(key, gateway, listener, &hostnames) {
                older = Some(other);
                continue;
            }
            listeners.push(AtListener {
                name: listener.name.clone(),
                hosts: hostnames.clone(),
            });
            if !state.served || !gateway.is_accepted() {
                continue;
            }
            let parent = pb::ListenerParent {
                gateway_namespace: meta.namespace.clone(),
                gateway: meta.name.clone(),
                listener: listener.name.clone(),
            };
            attachments.push(pb::Attachment {
                parent: Some(pb::attachment::Parent::Listener(parent)),
                hostnames: hostnames.iter().map(ToString::to_string).collect(),
            });
        }
        if let Some(other) = older.filter(|_| listeners.is_empty()) {
            let text = format!(
                "{} {}/{} is older and has these hosts; HTTPRoutes and GRPCRoutes can not share any",
                other.kind, other.namespace, other.name
            );
            return refused(controller, "HostnameConflict", text);
        }
        if listeners.is_empty() {
            let text = "none of its hostnames is one of a listener's";
            return refused(controller, "NoMatchingListenerHostname", text);
        }
        attached(controller, listeners, attachments)
    }

    /// Of an HTTPRoute and a GRPCRoute that share a host at a listener only the older one attaches.
    fn older_of_other_kind(
        &self,
        key: &ObjectKey,
        gateway: &GatewayState,
        listener: &Listener,
        hosts: &[Hostname],
    ) -> Option<&ObjectKey> {
        let meta = &gateway.resource.meta;
        let name = (meta.namespace.clone(), meta.name.clone());
        let own = self.rank(key);
        let mut others = self.by_gateway.get(&name).into_iter().flatten();
        others.find(|other| {
            other.kind != key.kind
                && self.rank(other) < own
                && self
                    .attached_at(other, &name)
                    .any(|at| at.name == listener.name && share_a_host(&at.hosts, hosts))
        })
    }

    /// Where a route is attached at a Gateway.
    pub(super) fn attached_at<'r>(
        &'r self,
        key: &'r ObjectKey,
        gateway: &'r (String, String),
    ) -> impl Iterator<Item = &'r AtListener> {
        let parents = self.routes.get(key).into_iter().flat_map(|r| &r.parents);
        parents
            .filter(|p| is_gateway(&p.reference))
            .filter(move |p| {
                let reference = &p.reference;
                name_in(&key.namespace, reference.namespace.as_ref(), &reference.name) == *gateway
            })
            .flat_map(|p| &p.listeners)
    }

    fn allows(&self, listener: &Listener, own: &str, namespace: &str) -> bool {
        match &listener.namespaces {
            AllowedNamespaces::All => true,
            AllowedNamespaces::Same => own == namespace,
            AllowedNamespaces::Selector(selector) => {
                selects(selector, namespace, self.namespaces.get(namespace))
            }
        }
    }
}

/// Whether some host is one of both; none stands for every host.
fn share_a_host(one: &[Hostname], other: &[Hostname]) -> bool {
    one.is_empty() || other.is_empty() || one.iter().any(|a| other.iter().any(|b| a.at(b).is_some()))
}

/// Whether a namespace has the labels. What clusters give to each, its name, is there without an object.
fn selects(selector: &LabelSelector, name: &str, labels: Option<&BTreeMap<String, String>>) -> bool {
    selector.requirements.iter().all(|requirement| {
        let key = match &requirement.key.source {
            Some(source) => format!("{source}:{}", requirement.key.name),
            None => requirement.key.name.clone(),
        };
        let value = match key.as_str() {
            "kubernetes.io/metadata.name" => Some(name),
            key => labels.and_then(|l| l.get(key)).map(String::as_str),
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

/// A route of the mesh. What it says of hosts has no meaning here: the Service is what callers name.
fn at_service(
    key: &ObjectKey,
    reference: &ParentRef,
    (namespace, name): &(String, String),
    objects: &Objects,
) -> Found {
    if *namespace != key.namespace {
        let text = format!(
            "Service {namespace}/{name} is of another namespace; only routes of its own can change it for everybody"
        );
        return refused(WEFT, "NotAllowedByListeners", text);
    }
    let Some(service) = objects.service(namespace, name) else {
        let text = format!("there is no Service {namespace}/{name}");
        return refused(WEFT, "NoMatchingParent", text);
    };
    if service.headless {
        let text = format!("Service {namespace}/{name} is headless: calls to it do not pass a proxy");
        return refused(WEFT, "NoMatchingParent", text);
    }
    let meant = |port: &&weft_resources::ServicePort| {
        port.protocol == 6
            && reference.section.as_ref().is_none_or(|s| *s == port.name)
            && reference.port.is_none_or(|p| p == port.port)
    };
    let ports: Vec<u32> = service
        .ports
        .iter()
        .filter(meant)
        .map(|p| p.port.into())
        .collect();
    if ports.is_empty() {
        let text = format!("Service {namespace}/{name} has no TCP port of this sectionName and port");
        return refused(WEFT, "NoMatchingParent", text);
    }
    let all = reference.section.is_none() && reference.port.is_none();
    let ports = if all { vec![0] } else { ports };
    let attachments = ports.into_iter().map(|port| pb::Attachment {
        parent: Some(pb::attachment::Parent::Service(pb::ServiceParent {
            namespace: namespace.clone(),
            name: name.clone(),
            port,
        })),
        hostnames: Vec::new(),
    });
    attached(WEFT, Vec::new(), attachments.collect())
}
