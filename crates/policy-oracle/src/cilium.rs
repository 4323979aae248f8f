//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy.

use crate::{
    Direction, Peer, Said, Traffic, Way, bits, callee, contains, is_named, list, names, names_peer, port,
    selector::{conditions, holds},
};
use serde_json::Value;
use std::net::IpAddr;
use weft_model::Labels;

/// The namespace an object is of; none for one of the cluster.
fn namespace(object: &Value) -> Option<&str> {
    let of_cluster = object["kind"] == "CiliumClusterwideNetworkPolicy";
    let named = object["metadata"]["namespace"].as_str();
    (!of_cluster).then(|| named.unwrap_or("default"))
}

/// A key that says something about the namespace of a pod.
fn names_namespace(key: &str) -> bool {
    matches!(
        key,
        "io.kubernetes.pod.namespace" | "any:io.kubernetes.pod.namespace" | "k8s:io.kubernetes.pod.namespace"
    )
}

pub(crate) fn ask(
    object: &Value,
    all: &[Value],
    subject: &Labels,
    direction: Direction,
    peer: &Peer,
    traffic: Traffic,
) -> Said {
    let mut said = Said::default();
    let called = callee(direction, subject, peer);
    let namespace = namespace(object);
    let specs = object.get("spec").into_iter().chain(list(&object["specs"]));
    for spec in specs.filter(|spec| is_about(&spec["endpointSelector"], namespace, subject)) {
        let (allow, deny, side) = match direction {
            Direction::Ingress => ("ingress", "ingressDeny", "from"),
            Direction::Egress => ("egress", "egressDeny", "to"),
        };
        // Default deny for a direction: some selecting rule has a section in it, unless it says otherwise.
        let has_section = !list(&spec[allow]).is_empty() || !list(&spec[deny]).is_empty();
        said.selects |= spec["enableDefaultDeny"][allow].as_bool().unwrap_or(has_section);
        let is_meant = |rule: &&Value| is_peer(rule, all, side, namespace, peer);
        for rule in list(&spec[deny]).iter().filter(is_meant) {
            said.denies |= !ways(rule, direction, traffic, called).is_empty();
        }
        for rule in list(&spec[allow]).iter().filter(is_meant) {
            let proof = match rule["authentication"]["mode"].as_str() {
                Some("required") => Some(true),
                Some("disabled") => Some(false),
                _ => None,
            };
            let anybody = names_anybody(rule, side);
            let ways = ways(rule, direction, traffic, called).into_iter();
            said.allows.extend(ways.map(|way| Way {
                proof,
                anybody: anybody && way.anybody,
                ..way
            }));
        }
    }
    said
}

/// The workloads of its own namespace, whatever namespace the selector asks for; of all for one of the
/// cluster.
fn is_about(selector: &Value, namespace: Option<&str>, subject: &Labels) -> bool {
    let replaced = |c: &(&str, &str, Vec<&str>)| {
        namespace.is_some() && names_namespace(c.0) && c.1 == "In" && c.2.len() == 1
    };
    namespace.is_none_or(|own| subject.namespace() == Some(own))
        && conditions(selector)
            .iter()
            .all(|c| replaced(c) || holds(c, subject))
}

/// Whether a rule is for everybody: it names nobody, or all.
fn names_anybody(rule: &Value, side: &str) -> bool {
    let suffixes = ["Endpoints", "Entities", "CIDR", "CIDRSet", "Services", "FQDNs"];
    let named = |suffix: &&str| rule.get(format!("{side}{suffix}")).is_some_and(|v| !v.is_null());
    let all = list(&rule[format!("{side}Entities")]).iter().any(|e| e == "all");
    all || !suffixes.iter().any(named)
}

/// Whether a rule names this peer.
fn is_peer(rule: &Value, all: &[Value], side: &str, namespace: Option<&str>, peer: &Peer) -> bool {
    let field = |suffix: &str| rule.get(format!("{side}{suffix}")).filter(|v| !v.is_null());
    let (endpoints, entities) = (field("Endpoints"), field("Entities"));
    let (cidrs, sets) = (field("CIDR"), field("CIDRSet"));
    let services = field("Services").filter(|_| side == "to");
    let by_name = field("FQDNs").filter(|_| side == "to");
    // Nobody named, with ports: everybody. Nobody named and no ports: nobody.
    let peers = [endpoints, entities, cidrs, sets, services, by_name];
    if peers.iter().all(Option::is_none) {
        return !list(&rule["toPorts"]).is_empty() || !list(&rule["icmps"]).is_empty();
    }
    // A list that is there and empty: nobody. Both ways to write ranges make one list.
    let empty = |value: Option<&Value>| value.is_some_and(|v| list(v).is_empty());
    let ranges = [cidrs, sets].into_iter().flatten().flat_map(list).count();
    if empty(endpoints)
        || empty(entities)
        || empty(services)
        || empty(by_name)
        || (cidrs.is_some() || sets.is_some()) && ranges == 0
    {
        return false;
    }
    let any = |value: Option<&Value>, meant: &dyn Fn(&Value) -> bool| {
        value.is_some_and(|v| list(v).iter().any(meant))
    };
    any(endpoints, &|selector| is_selected(selector, namespace, peer))
        || any(entities, &|entity| {
            is_entity(entity.as_str().unwrap_or_default(), peer)
        })
        || any(cidrs, &|range| {
            is_outside_at(peer, |address| contains(range, address))
        })
        || any(sets, &|set| {
            is_outside_at(peer, |address| {
                let hole = |hole: &Value| contains(hole, address);
                ranges_of(set, all).iter().any(|range| contains(range, address))
                    && !list(&set["except"]).iter().any(hole)
            })
        })
        || any(services, &|service| is_behind(service, all, peer))
        || any(by_name, &|rule| {
            is_outside_at(peer, |address| names::is_at(rule, all, address))
        })
}

/// The ranges that an element of a set means: its own, or those of the groups it names.
fn ranges_of(set: &Value, all: &[Value]) -> Vec<Value> {
    if let Some(own) = set.get("cidr") {
        return vec![own.clone()];
    }
    let is_meant = |group: &&Value| {
        let by_name = set["cidrGroupRef"]
            .as_str()
            .is_some_and(|name| group["metadata"]["name"] == name);
        let selector = &set["cidrGroupSelector"];
        group["kind"] == "CiliumCIDRGroup"
            && (by_name || selector.is_object() && has_labels(selector, &group["metadata"]["labels"]))
    };
    let groups = all.iter().filter(is_meant);
    groups
        .flat_map(|group| list(&group["spec"]["externalCIDRs"]).to_vec())
        .collect()
}

/// Whether an object's labels are as a selector wants them.
fn has_labels(selector: &Value, labels: &Value) -> bool {
    let labels: Labels = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| {
            (
                format!("k8s:{key}"),
                value.as_str().unwrap_or_default().to_owned(),
            )
        })
        .collect();
    conditions(selector).iter().all(|c| holds(c, &labels))
}

/// Whether a workload is behind a Service that is meant.
fn is_behind(wanted: &Value, all: &[Value], peer: &Peer) -> bool {
    let Peer::Workload(labels) = peer else {
        return false;
    };
    let named = &wanted["k8sService"];
    let labelled = &wanted["k8sServiceSelector"];
    let here = |namespace: &Value, service: &Value| {
        namespace.is_null() || *namespace == service["metadata"]["namespace"]
    };
    all.iter()
        .filter(|object| object["kind"] == "Service")
        .any(|service| {
            let is_meant = if named.is_object() {
                here(&named["namespace"], service) && named["serviceName"] == service["metadata"]["name"]
            } else {
                here(&labelled["namespace"], service)
                    && has_labels(&labelled["selector"], &service["metadata"]["labels"])
            };
            let selector = service["spec"]["selector"].as_object();
            is_meant
                && labels.namespace() == service["metadata"]["namespace"].as_str()
                && selector.is_some_and(|s| {
                    // Without a selector it is for somebody else to say who is behind it.
                    !s.is_empty()
                        && s.iter()
                            .all(|(key, value)| labels.get(&format!("k8s:{key}")) == value.as_str())
                })
        })
}

/// Addresses mean peers outside the cluster only.
fn is_outside_at(peer: &Peer, meant: impl Fn(IpAddr) -> bool) -> bool {
    matches!(peer, Peer::Outside(address) if meant(*address))
}

/// By labels. Pods of the policy's namespace (of any, for one of the cluster) unless the selector says
/// something about namespaces, or about peers that have none.
fn is_selected(selector: &Value, namespace: Option<&str>, peer: &Peer) -> bool {
    let labels = match peer {
        Peer::Workload(labels) => labels.clone(),
        Peer::Reserved(name) => labels_of(&[name]),
        Peer::Outside(IpAddr::V4(_)) => labels_of(&["world", "world-ipv4"]),
        Peer::Outside(IpAddr::V6(_)) => labels_of(&["world", "world-ipv6"]),
        Peer::Unknown => return false,
    };
    let conditions = conditions(selector);
    let elsewhere = conditions.iter().any(|(key, ..)| {
        names_namespace(key)
            || key
                .trim_start_matches("k8s:")
                .starts_with("io.cilium.k8s.namespace.labels")
            || key.starts_with("reserved:")
    });
    let here = match (namespace, labels.namespace()) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(own), Some(found)) => own == found,
    };
    (elsewhere || here) && conditions.iter().all(|c| holds(c, &labels))
}

fn labels_of(names: &[&str]) -> Labels {
    names
        .iter()
        .map(|name| (format!("reserved:{name}"), String::new()))
        .collect()
}

fn is_entity(entity: &str, peer: &Peer) -> bool {
    match (entity, peer) {
        ("all", _) => true,
        ("none", _) => false,
        ("world", peer) => matches!(peer, Peer::Outside(_)),
        ("world-ipv4", peer) => matches!(peer, Peer::Outside(IpAddr::V4(_))),
        ("world-ipv6", peer) => matches!(peer, Peer::Outside(IpAddr::V6(_))),
        ("cluster", peer) => !matches!(peer, Peer::Outside(_)),
        (entity, Peer::Reserved(name)) => entity == *name,
        _ => false,
    }
}

/// Each way in which a rule speaks of this traffic, by what it says of it alone.
fn ways(rule: &Value, direction: Direction, traffic: Traffic, called: Option<&Labels>) -> Vec<Way> {
    let way = |http, dns, bits| Way {
        http,
        dns,
        proof: None,
        anybody: true,
        bits,
    };
    let (ports, messages) = (list(&rule["toPorts"]), list(&rule["icmps"]));
    if ports.is_empty() && messages.is_empty() {
        return vec![way(None, None, 0)];
    }
    let mut ways = Vec::new();
    for group in ports {
        let rules = list(&group["rules"]["http"]);
        let http = (!rules.is_empty()).then(|| rules.to_vec());
        let rules = list(&group["rules"]["dns"]);
        let dns = (!rules.is_empty()).then(|| rules.to_vec());
        for port in list(&group["ports"]) {
            if let Some(bits) = port_of(port, traffic, called) {
                ways.push(Way {
                    anybody: !names_peer(direction, &port["port"]),
                    ..way(http.clone(), dns.clone(), bits)
                });
            }
        }
    }
    for group in messages {
        let meant = list(&group["fields"]).iter().filter(|m| is_message(m, traffic));
        ways.extend(meant.map(|_| way(None, None, 24)));
    }
    ways
}

/// How precisely a port is meant, if it is.
fn port_of(rule: &Value, traffic: Traffic, called: Option<&Labels>) -> Option<u8> {
    let number = match rule["protocol"].as_str() {
        None | Some("ANY") => None,
        Some("TCP") => Some(6),
        Some("UDP") => Some(17),
        Some("SCTP") => Some(132),
        Some("IGMP") => Some(2),
        Some(_) => Some(112),
    };
    if let Some(named) = is_named(&rule["port"], number, traffic, called) {
        return named.then_some(24);
    }
    let (first, end) = (port(&rule["port"]), port(&rule["endPort"]));
    // Port 0 is every port, and with any protocol also what has no ports.
    if first == 0 {
        let meant = number.is_none_or(|n| n == traffic.protocol);
        return meant.then_some(if number.is_some() { 8 } else { 0 });
    }
    let has_ports = [6, 17, 132].contains(&traffic.protocol);
    let last = if end == 0 { first } else { end };
    let meant =
        has_ports && number.is_none_or(|n| n == traffic.protocol) && (first..=last).contains(&traffic.number);
    meant.then(|| bits(first, last, traffic.number))
}

/// The few names of types that [`crate::generate`] makes use of.
fn is_message(field: &Value, traffic: Traffic) -> bool {
    let v6 = field["family"] == "IPv6";
    let kind = match field["type"].as_str() {
        Some("EchoRequest") if v6 => 128,
        Some("EchoRequest" | "Echo") => 8,
        Some("EchoReply") if v6 => 129,
        Some("EchoReply") => 0,
        _ => port(&field["type"]),
    };
    traffic.protocol == if v6 { 58 } else { 1 } && traffic.number == kind
}
