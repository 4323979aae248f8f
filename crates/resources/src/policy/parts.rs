//! Parts of rules: address ranges, entities, ports.

use super::{CidrRange, CidrRule, Entity, Port, PortRule, http, http::Rules};
use crate::{
    fields::{Field, Problems},
    selector::selector,
    tree::Value,
};
use ipnet::IpNet;
use std::net::IpAddr;
use weft_model::check_name;

/// Cilium's bound on `ports` and `fields`.
pub(super) const MAX_PORTS: usize = 40;

pub(super) fn entity(field: &Field<'_>, problems: &mut Problems) -> Option<Entity> {
    let text = field.text(problems)?;
    let found = Entity::NAMES
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, entity)| *entity);
    if found.is_none() {
        let names = Entity::NAMES.map(|(name, _)| name).join(", ");
        field.fail(problems, format_args!("unknown entity {text:?}; one of {names}"));
    }
    found
}

/// A CIDR, or an address as a range of one.
pub(super) fn net(field: &Field<'_>, text: &str, problems: &mut Problems) -> Option<IpNet> {
    let net = text
        .parse::<IpNet>()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    if net.is_none() {
        field.fail(problems, format_args!("{text:?} is no CIDR such as 10.0.0.0/8"));
    }
    let mapped =
        |n: &IpNet| matches!(n, IpNet::V6(n) if n.prefix_len() >= 96 && n.addr().to_ipv4_mapped().is_some());
    if net.as_ref().is_some_and(mapped) {
        field.fail(problems, format_args!("{text:?}: write IPv4 as IPv4"));
    }
    net.map(|n| n.trunc())
}

/// A whole range.
pub(super) fn cidr(field: &Field<'_>, problems: &mut Problems) -> Option<CidrRule> {
    let text = field.text(problems)?;
    let cidr = net(field, &text, problems)?;
    Some(CidrRule {
        range: CidrRange::Net(cidr),
        except: Vec::new(),
    })
}

pub(super) fn cidr_set(field: &Field<'_>, problems: &mut Problems) -> Option<CidrRule> {
    let mut object = field.object(problems)?;
    let all = ["cidr", "cidrGroupRef", "cidrGroupSelector"].map(|name| object.take(name));
    if all.iter().flatten().count() != 1 {
        field.fail(
            problems,
            "must have one of cidr, cidrGroupRef and cidrGroupSelector",
        );
    }
    let [cidr, group, groups] = all;
    let cidr = cidr.and_then(|f| f.text(problems).and_then(|t| net(&f, &t, problems)));
    let group = group.and_then(|f| f.checked(problems, check_name));
    let groups = groups.and_then(|f| selector(&f, problems));
    let mut except = Vec::new();
    for f in object
        .take("except")
        .and_then(|f| f.list(problems))
        .unwrap_or_default()
    {
        let Some(hole) = f.text(problems).and_then(|t| net(&f, &t, problems)) else {
            continue;
        };
        if cidr.is_some_and(|c| !c.contains(&hole)) {
            f.fail(
                problems,
                format_args!("{hole} is not inside of the range it is an exception of"),
            );
        }
        except.push(hole);
    }
    object.finish(problems);
    let range = cidr.map(CidrRange::Net).or(group.map(CidrRange::Group));
    Some(CidrRule {
        range: range.or(groups.map(CidrRange::Groups))?,
        except,
    })
}

pub(super) fn to_ports(
    field: &Field<'_>,
    ingress: bool,
    deny: bool,
    problems: &mut Problems,
) -> Option<Vec<PortRule>> {
    let items = field.list(problems)?;
    let mut ports = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let Some(mut object) = item.object(problems) else {
            continue;
        };
        let rules = object.take("rules");
        if deny && let Some(f) = &rules {
            f.fail(problems, "a deny rule can have no L7 rules");
        }
        let rules = rules
            .map(|f| http::read(&f, ingress, problems))
            .unwrap_or_default();
        object.unsupported(
            &["terminatingTLS", "originatingTLS", "serverNames", "listener"],
            problems,
        );
        let Some(list) = object.need("ports", problems) else {
            continue;
        };
        let elements = list.list(problems).unwrap_or_default();
        if elements.is_empty() {
            list.fail(
                problems,
                "names no port and would match nothing; leave toPorts out to mean every port",
            );
        }
        if elements.len() > MAX_PORTS {
            list.fail(
                problems,
                format_args!("has {} ports, at most {MAX_PORTS} are allowed", elements.len()),
            );
        }
        for (j, f) in elements.iter().enumerate() {
            ports.extend(port(f, format!("toPorts[{i}].ports[{j}]"), &rules, problems));
        }
        object.finish(problems);
    }
    // `toPorts: []` is the same as none: it does not narrow the rule.
    (!items.is_empty()).then_some(ports)
}

/// A port by number, 0 for every one, or by name: one of IANA's form, as Kubernetes allows them.
pub(super) fn port_ref(field: &Field<'_>, problems: &mut Problems) -> Option<Port> {
    let Value::Text(name) = &field.node.value else {
        return field.port(problems).map(one);
    };
    if !name.bytes().any(|b| b.is_ascii_alphabetic()) {
        return field.port(problems).map(one);
    }
    let sound = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    // Cilium compares names without case.
    let name = name.to_ascii_lowercase();
    let edges = name.starts_with('-') || name.ends_with('-') || name.contains("--");
    if name.len() > 15 || edges || !name.bytes().all(sound) {
        field.fail(
            problems,
            format_args!("{name:?} is no name of a port: at most 15 of a-z, 0-9 and single - inside"),
        );
        return None;
    }
    Some(Port::Named(name))
}

fn one(number: u16) -> Port {
    match number {
        0 => Port::Any,
        number => Port::Range(number, number),
    }
}

fn port(field: &Field<'_>, path: String, rules: &Rules, problems: &mut Problems) -> Option<PortRule> {
    let mut object = field.object(problems)?;
    let first = object
        .take("port")
        .map_or(Some(Port::Any), |f| port_ref(&f, problems));
    let end = object.take("endPort").map_or(Some(0), |f| f.port(problems));
    let protocol = match object.take("protocol") {
        None => Some(None),
        Some(f) => protocol(&f, problems),
    };
    object.finish(problems);
    let (first, end, protocol) = (first?, end?, protocol?);
    let port = match first {
        first if end == 0 => first,
        Port::Range(first, _) if first <= end => Port::Range(first, end),
        _ => {
            field.fail(
                problems,
                format_args!("endPort {end} must not be below port, and port must be given as a number"),
            );
            return None;
        }
    };
    if port != Port::Any && matches!(protocol, Some(2 | 112)) {
        field.fail(problems, "this protocol has no ports; use port \"0\"");
        return None;
    }
    if rules.http.is_some() && (port == Port::Any || protocol != Some(6)) {
        field.fail(problems, "rules for requests need a port and protocol: TCP");
        return None;
    }
    // Cilium takes others too; a resolver elsewhere could not be told from what speaks something else.
    if rules.dns.is_some() && (port != Port::Range(53, 53) || !matches!(protocol, None | Some(6 | 17))) {
        field.fail(
            problems,
            "rules for DNS need port \"53\" without endPort and protocol: UDP, TCP or ANY",
        );
        return None;
    }
    Some(PortRule {
        path,
        protocol,
        port,
        http: rules.http.clone(),
        dns: rules.dns.clone(),
    })
}

pub(super) fn protocol(field: &Field<'_>, problems: &mut Problems) -> Option<Option<u8>> {
    let text = field.text(problems)?;
    match text.to_ascii_uppercase().as_str() {
        "ANY" | "" => Some(None),
        "TCP" => Some(Some(6)),
        "UDP" => Some(Some(17)),
        "SCTP" => Some(Some(132)),
        "IGMP" => Some(Some(2)),
        "VRRP" => Some(Some(112)),
        _ => {
            field.fail(
                problems,
                format_args!("{text:?} is none of TCP, UDP, SCTP, VRRP, IGMP, ANY"),
            );
            None
        }
    }
}
