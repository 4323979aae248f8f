//! One Gateway: whether it is ours, which of its listeners are served, and what nodes get of it.

use super::conditions::{Condition, Truth, carry, line};
use crate::world::{Name, addresses::fnv};
use std::{net::IpAddr, sync::Arc};
use weft_model::{TrustDomain, check_dns_label};
use weft_proto::weft::policy::v1 as pb;
use weft_resources::{
    Body, Gateway, GatewayClass, Resource, Service, ServicePort, TargetPort,
    gateway::{GROUP, Listener, RouteKind},
};

const CILIUM: &str = "io.cilium/gateway-controller";
/// The name under which conditions are written.
pub(super) const WEFT: &str = "weft.dev/gateway-controller";

/// Ports that every workload's and every node's own listeners have.
const OWN_PORTS: [u16; 2] = [15_001, 15_008];

/// Whose Gateways of a class are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Ours, under this controller's name.
    Ours(&'static str),
    /// It would be ours, and asks for parameters that nobody knows.
    Parameters(&'static str),
    /// Somebody else's, or nobody's.
    Other,
}

/// The classes `cilium` and `weft` are there without an object.
pub(super) fn class(name: &str, object: Option<&GatewayClass>) -> Class {
    let Some(object) = object else {
        return match name {
            "cilium" => Class::Ours(CILIUM),
            "weft" => Class::Ours(WEFT),
            _ => Class::Other,
        };
    };
    let Some(controller) = [CILIUM, WEFT].into_iter().find(|c| *c == object.controller) else {
        return Class::Other;
    };
    if object.has_parameters {
        Class::Parameters(controller)
    } else {
        Class::Ours(controller)
    }
}

/// What is said of a class; nothing of somebody else's.
pub(super) fn class_condition(class: Class) -> Condition {
    match class {
        Class::Ours(_) => Condition::yes("Accepted", "Accepted", "Gateways of this class are served"),
        Class::Parameters(_) => Condition::no(
            "Accepted",
            "InvalidParameters",
            "spec.parametersRef: no parameters are known; leave it out",
        ),
        Class::Other => waiting("Accepted"),
    }
}

/// What an object says that no controller has looked at.
fn waiting(kind: &'static str) -> Condition {
    Condition::new(kind, Truth::Unknown, "Pending", "Waiting for controller")
}

/// The Service that is made for a Gateway of this name. Where `cilium-gateway-<name>` would be no name
/// of a Service, a part of it and a digest.
pub(in crate::world) fn service_name(gateway: &str) -> String {
    let whole = format!("cilium-gateway-{gateway}");
    if check_dns_label(&whole).is_ok() {
        return whole;
    }
    let digest = fnv(gateway.bytes());
    let part: String = whole.replace('.', "-").chars().take(46).collect();
    format!("{}-{digest:016x}", part.trim_end_matches('-'))
}

/// A listener as it was judged.
#[derive(Debug)]
pub(super) struct ListenerState {
    /// Whether nodes serve it.
    pub served: bool,
    /// Kinds of routes that can attach.
    pub kinds: Vec<RouteKind>,
    /// All but `Programmed`.
    pub conditions: Vec<Condition>,
}

/// A Gateway with what was found out about it.
#[derive(Debug)]
pub(super) struct GatewayState {
    pub resource: Arc<Resource>,
    /// Who writes its conditions; absent when it is somebody else's.
    pub controller: Option<&'static str>,
    /// In the order of the object.
    pub listeners: Vec<ListenerState>,
    /// All but `Programmed`.
    pub conditions: Vec<Condition>,
    /// What was last said of `Programmed`.
    pub programmed: Option<Condition>,
}

impl GatewayState {
    pub(super) fn new(resource: Arc<Resource>, old: Option<Self>) -> Self {
        let old = old.filter(|old| old.listeners.len() == listeners(&resource).len());
        Self {
            resource,
            controller: None,
            conditions: Vec::new(),
            programmed: old.as_ref().and_then(|o| o.programmed.clone()),
            listeners: old.map(|o| o.listeners).unwrap_or_default(),
        }
    }

    pub(super) fn spec(&self) -> Option<&Gateway> {
        match &self.resource.body {
            Body::Gateway(gateway) => Some(gateway),
            _ => None,
        }
    }

    pub(super) fn class(&self) -> Option<&str> {
        self.spec().map(|spec| spec.class.as_str())
    }

    /// Listeners with what was found out about each.
    pub(super) fn listeners(&self) -> impl Iterator<Item = (&Listener, &ListenerState)> {
        listeners(&self.resource).iter().zip(&self.listeners)
    }

    pub(super) fn judge(&mut self, class: Class, now: u64) {
        let resource = self.resource.clone();
        let Body::Gateway(spec) = &resource.body else {
            return;
        };
        let mut conditions = Vec::new();
        let mut states = Vec::new();
        self.controller = None;
        if let Class::Ours(controller) = class {
            self.controller = Some(controller);
            states = spec
                .listeners
                .iter()
                .map(|l| listener(l, &spec.listeners))
                .collect();
            conditions.push(accepted(spec, &states));
        } else {
            conditions.push(match class {
                Class::Parameters(_) => Condition::new(
                    "Accepted",
                    Truth::Unknown,
                    "Pending",
                    format!("GatewayClass {} is not accepted", spec.class),
                ),
                _ => waiting("Accepted"),
            });
        }
        carry(&self.conditions, &mut conditions, now);
        for (at, state) in states.iter_mut().enumerate() {
            let old = self.listeners.get(at).map_or(&[][..], |l| &l.conditions);
            carry(old, &mut state.conditions, now);
        }
        (self.conditions, self.listeners) = (conditions, states);
    }

    pub(super) fn is_accepted(&self) -> bool {
        self.controller.is_some()
            && self
                .conditions
                .iter()
                .any(|c| c.kind == "Accepted" && c.is_true())
    }

    /// What nodes get; nothing when nothing of it is served.
    pub(super) fn wire(&self, (namespace, name): &Name, domain: &TrustDomain) -> Option<pb::Gateway> {
        if !self.is_accepted() {
            return None;
        }
        let service = service_name(name);
        let served = self.listeners().filter(|(_, state)| state.served);
        let listeners = served.map(|(listener, _)| pb::Listener {
            name: listener.name.clone(),
            port: listener.port.into(),
            protocol: listener.protocol.clone(),
            hostname: listener.hostname.clone().unwrap_or_default(),
        });
        Some(pb::Gateway {
            namespace: namespace.clone(),
            name: name.clone(),
            listeners: listeners.collect(),
            // A Service's name of a valid namespace always makes a SPIFFE ID.
            spiffe_id: domain.workload(namespace, &service).ok()?.to_string(),
            service,
        })
    }

    /// The Service made for it: no endpoints, a port for each port that is served.
    pub(super) fn service(&self) -> Option<Service> {
        let spec = self.spec()?;
        let mut ports: Vec<u16> = self
            .listeners()
            .filter(|(_, state)| state.served)
            .map(|(listener, _)| listener.port)
            .collect();
        ports.sort_unstable();
        ports.dedup();
        let ports = ports.into_iter().map(|port| ServicePort {
            name: format!("port-{port}"),
            port,
            target: TargetPort::Number(port),
            protocol: 6,
            app_protocol: String::new(),
        });
        Some(Service {
            selector: Default::default(),
            cluster_ips: asked_for(spec).collect(),
            headless: false,
            ports: ports.collect(),
            shared: None,
        })
    }
}

fn listeners(resource: &Resource) -> &[Listener] {
    match &resource.body {
        Body::Gateway(gateway) => &gateway.listeners,
        _ => &[],
    }
}

/// Addresses that the Gateway names.
pub(super) fn asked_for(spec: &Gateway) -> impl Iterator<Item = IpAddr> {
    spec.addresses.iter().filter_map(|a| a.value.parse().ok())
}

fn accepted(spec: &Gateway, states: &[ListenerState]) -> Condition {
    if spec.has_parameters {
        return Condition::no(
            "Accepted",
            "InvalidParameters",
            "spec.infrastructure.parametersRef: no parameters are known; leave it out",
        );
    }
    if let Some(address) = spec.addresses.iter().find(|a| a.kind != "IPAddress") {
        return Condition::no(
            "Accepted",
            "UnsupportedAddress",
            format!(
                "spec.addresses: type {} is not supported; use IPAddress",
                address.kind
            ),
        );
    }
    let bad: Vec<String> = spec
        .listeners
        .iter()
        .zip(states)
        .filter(|(_, state)| !state.served)
        .map(|(listener, _)| listener.name.clone())
        .collect();
    if bad.is_empty() {
        Condition::yes("Accepted", "Accepted", "Gateway is served")
    } else if bad.len() < states.len() {
        Condition::yes(
            "Accepted",
            "ListenersNotValid",
            format!("not served: {}", line(&bad)),
        )
    } else {
        Condition::no(
            "Accepted",
            "ListenersNotValid",
            "none of its listeners can be served",
        )
    }
}

fn listener(one: &Listener, all: &[Listener]) -> ListenerState {
    let http = matches!(one.protocol.as_str(), "HTTP" | "HTTPS");
    let possible: Vec<RouteKind> = ["HTTPRoute", "GRPCRoute"]
        .into_iter()
        .filter(|_| http)
        .map(|kind| RouteKind {
            group: GROUP.into(),
            kind: kind.into(),
        })
        .collect();
    let (kinds, unknown): (Vec<RouteKind>, Vec<RouteKind>) = if one.kinds.is_empty() {
        (possible, Vec::new())
    } else {
        one.kinds
            .iter()
            .cloned()
            .partition(|kind| possible.contains(kind))
    };
    let other = all
        .iter()
        .find(|l| l.port == one.port && l.protocol != one.protocol);
    let conflicted = match other {
        Some(other) => Condition::yes(
            "Conflicted",
            "ProtocolConflict",
            format!(
                "listener {} has port {} for {}, this one for {}",
                other.name, one.port, other.protocol, one.protocol
            ),
        ),
        None => Condition::no("Conflicted", "NoConflicts", "no conflict with another listener"),
    };
    let accepted = if one.protocol != "HTTP" {
        Condition::no(
            "Accepted",
            "UnsupportedProtocol",
            format!("protocol {} is not supported; use HTTP", one.protocol),
        )
    } else if OWN_PORTS.contains(&one.port) {
        Condition::no(
            "Accepted",
            "PortUnavailable",
            format!("port {} is the mesh's own", one.port),
        )
    } else if other.is_some() {
        Condition::no(
            "Accepted",
            "ProtocolConflict",
            "another listener has the port for another protocol",
        )
    } else {
        Condition::yes("Accepted", "Accepted", "listener is served")
    };
    let resolved = if !unknown.is_empty() {
        let names: Vec<String> = unknown.iter().map(|k| k.kind.clone()).collect();
        Condition::no(
            "ResolvedRefs",
            "InvalidRouteKinds",
            format!(
                "allowedRoutes.kinds: {} can not attach to {}",
                line(&names),
                one.protocol
            ),
        )
    } else if one.has_certificates {
        Condition::no(
            "ResolvedRefs",
            "InvalidCertificateRef",
            "tls.certificateRefs: Secrets are not read",
        )
    } else {
        Condition::yes("ResolvedRefs", "ResolvedRefs", "all references are known")
    };
    ListenerState {
        served: accepted.is_true() && !kinds.is_empty(),
        kinds,
        conditions: vec![accepted, conflicted, resolved],
    }
}
