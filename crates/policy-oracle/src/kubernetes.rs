//! NetworkPolicy of Kubernetes.

use crate::{
    Direction, Peer, Said, Traffic, Way, bits, callee, contains, is_named, list, names_peer, port,
    selector::{conditions, holds},
};
use serde_json::Value;
use weft_model::Labels;

pub(crate) fn ask(
    object: &Value,
    subject: &Labels,
    direction: Direction,
    peer: &Peer,
    traffic: Traffic,
) -> Said {
    let own = object["metadata"]["namespace"].as_str().unwrap_or("default");
    let spec = &object["spec"];
    let about = subject.namespace() == Some(own) && selects(&spec["podSelector"], subject);
    let types = list(&spec["policyTypes"]);
    let (name, section, side) = match direction {
        Direction::Ingress => ("Ingress", "ingress", "from"),
        Direction::Egress => ("Egress", "egress", "to"),
    };
    // Policies are about ingress when they do not say what they are about, and about egress if they have
    // rules for it.
    let of_type = match direction {
        _ if !types.is_empty() => types.iter().any(|t| t == name),
        Direction::Ingress => true,
        Direction::Egress => !list(&spec["egress"]).is_empty(),
    };
    if !about || !of_type {
        return Said::default();
    }
    let called = callee(direction, subject, peer);
    let ways = |rule: &Value| -> Vec<Way> {
        let (peers, ports) = (list(&rule[side]), list(&rule["ports"]));
        if !peers.is_empty() && !peers.iter().any(|p| is_peer(p, own, peer)) {
            return Vec::new();
        }
        let way = |anybody, bits| Way {
            http: None,
            dns: None,
            proof: None,
            anybody,
            bits,
        };
        let anybody = peers.is_empty();
        if ports.is_empty() {
            return vec![way(anybody, 0)];
        }
        let meant = ports.iter().filter_map(|p| {
            let bits = port_of(p, traffic, called)?;
            Some(way(anybody && !names_peer(direction, &p["port"]), bits))
        });
        meant.collect()
    };
    Said {
        selects: true,
        denies: false,
        allows: list(&spec[section]).iter().flat_map(ways).collect(),
    }
}

/// Labels of pods have no source here; all of them are Kubernetes'.
fn selects(selector: &Value, labels: &Labels) -> bool {
    conditions(selector).iter().all(|(key, operator, values)| {
        let key = format!("k8s:{key}");
        holds(&(key.as_str(), *operator, values.clone()), labels)
    })
}

fn is_peer(rule: &Value, own: &str, peer: &Peer) -> bool {
    match (rule.get("ipBlock"), peer) {
        (Some(block), Peer::Outside(address)) => {
            let hole = |hole: &Value| contains(hole, *address);
            contains(&block["cidr"], *address) && !list(&block["except"]).iter().any(hole)
        }
        (None, Peer::Workload(labels)) => {
            let namespace = labels.namespace().unwrap_or_default();
            let there = match rule.get("namespaceSelector") {
                None => namespace == own,
                Some(selector) => {
                    let own = labels.iter().filter_map(|(key, value)| {
                        let key = key.strip_prefix("k8s:io.cilium.k8s.namespace.labels.")?;
                        Some((format!("k8s:{key}"), value.to_owned()))
                    });
                    selects(selector, &own.collect())
                }
            };
            there
                && rule
                    .get("podSelector")
                    .is_none_or(|selector| selects(selector, labels))
        }
        _ => false,
    }
}

/// How precisely a port is meant, if it is.
fn port_of(rule: &Value, traffic: Traffic, called: Option<&Labels>) -> Option<u8> {
    let protocol = match rule["protocol"].as_str() {
        None | Some("TCP") => 6,
        Some("UDP") => 17,
        Some(_) => 132,
    };
    if let Some(named) = is_named(&rule["port"], Some(protocol), traffic, called) {
        return named.then_some(24);
    }
    let (first, end) = (port(&rule["port"]), port(&rule["endPort"]));
    let last = if end == 0 { first } else { end };
    if traffic.protocol != protocol {
        None
    } else if first == 0 {
        Some(8)
    } else {
        (first..=last)
            .contains(&traffic.number)
            .then(|| bits(first, last, traffic.number))
    }
}
