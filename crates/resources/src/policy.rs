//! `cilium.io/v2` CiliumNetworkPolicy: the L3 and L4 part.
//!
//! The difference between a list that is absent and one that is empty is kept ([`Option`]): an absent
//! list of peers with ports means every peer, an empty one means none.

use crate::{
    fields::{Field, Object, Problems},
    selector::{LabelSelector, selector},
};
use ipnet::IpNet;
use std::net::IpAddr;

/// Cilium's bound on `ports` and `fields`.
const MAX_PORTS: usize = 40;

/// All rules of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// `spec`, then `specs`.
    pub rules: Vec<PolicyRule>,
}

/// One `spec`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// The workloads it is about, within the object's namespace.
    pub endpoint_selector: LabelSelector,
    /// Who may come in.
    pub ingress: Vec<PeerRule>,
    /// Who may not, whatever else allows it.
    pub ingress_deny: Vec<PeerRule>,
    /// Where they may go.
    pub egress: Vec<PeerRule>,
    /// Where they may not, whatever else allows it.
    pub egress_deny: Vec<PeerRule>,
    /// `enableDefaultDeny.ingress`; absent: if there is an ingress section.
    pub default_deny_ingress: Option<bool>,
    /// `enableDefaultDeny.egress`; absent: if there is an egress section.
    pub default_deny_egress: Option<bool>,
}

/// One element of `ingress`, `egress`, `ingressDeny` or `egressDeny`. At most one of `endpoints`,
/// `entities` and `cidrs` has elements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerRule {
    /// Where it stands in the object: `ingress[0]`, `specs[1].egressDeny[2]`.
    pub path: String,
    /// `fromEndpoints`, `toEndpoints`.
    pub endpoints: Option<Vec<LabelSelector>>,
    /// `fromEntities`, `toEntities`.
    pub entities: Option<Vec<Entity>>,
    /// `fromCIDR` and `fromCIDRSet`, `toCIDR` and `toCIDRSet`.
    pub cidrs: Option<Vec<CidrRule>>,
    /// `toPorts`, flattened; absent when no port is named: every port.
    pub ports: Option<Vec<PortRule>>,
}

/// A range of addresses with holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CidrRule {
    /// The range; host bits are zero.
    pub cidr: IpNet,
    /// What of it is not meant.
    pub except: Vec<IpNet>,
}

/// One element of `toPorts[].ports`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRule {
    /// Within the rule: `toPorts[0].ports[1]`.
    pub path: String,
    /// IANA number; absent for `ANY`.
    pub protocol: Option<u8>,
    /// First port; 0 for every port.
    pub first: u16,
    /// Last port, inclusive.
    pub last: u16,
}

/// A group of peers that has a name of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Entity {
    All,
    World,
    WorldIpv4,
    WorldIpv6,
    Cluster,
    Host,
    RemoteNode,
    Init,
    Ingress,
    Unmanaged,
    Health,
    KubeApiserver,
    None,
}

impl Entity {
    const NAMES: [(&'static str, Self); 13] = [
        ("all", Self::All),
        ("world", Self::World),
        ("world-ipv4", Self::WorldIpv4),
        ("world-ipv6", Self::WorldIpv6),
        ("cluster", Self::Cluster),
        ("host", Self::Host),
        ("remote-node", Self::RemoteNode),
        ("init", Self::Init),
        ("ingress", Self::Ingress),
        ("unmanaged", Self::Unmanaged),
        ("health", Self::Health),
        ("kube-apiserver", Self::KubeApiserver),
        ("none", Self::None),
    ];
}

pub(crate) fn read(object: &mut Object<'_>, problems: &mut Problems) -> Option<NetworkPolicy> {
    let mut rules = Vec::new();
    let (spec, specs) = (object.take("spec"), object.take("specs"));
    if spec.is_none() && specs.is_none() {
        problems.add(object.line, "spec", "is required (or specs)");
    }
    if let Some(field) = spec {
        rules.extend(rule(&field, "", problems));
    }
    for (i, field) in specs
        .and_then(|f| f.list(problems))
        .unwrap_or_default()
        .iter()
        .enumerate()
    {
        rules.extend(rule(field, &format!("specs[{i}]."), problems));
    }
    Some(NetworkPolicy { rules })
}

fn rule(field: &Field<'_>, prefix: &str, problems: &mut Problems) -> Option<PolicyRule> {
    let mut object = field.object(problems)?;
    object.unsupported(&["nodeSelector"], problems);
    let endpoint_selector = object
        .need("endpointSelector", problems)
        .and_then(|f| selector(&f, problems));
    let mut section = |name: &str, ingress: bool, deny: bool, problems: &mut Problems| {
        let items = object
            .take(name)
            .and_then(|f| f.list(problems))
            .unwrap_or_default();
        let read = |(i, f): (usize, &Field<'_>)| {
            peer_rule(f, format!("{prefix}{name}[{i}]"), ingress, deny, problems)
        };
        items.iter().enumerate().filter_map(read).collect::<Vec<_>>()
    };
    let ingress = section("ingress", true, false, problems);
    let ingress_deny = section("ingressDeny", true, true, problems);
    let egress = section("egress", false, false, problems);
    let egress_deny = section("egressDeny", false, true, problems);
    let (mut default_deny_ingress, mut default_deny_egress) = (None, None);
    if let Some(mut both) = object.take("enableDefaultDeny").and_then(|f| f.object(problems)) {
        default_deny_ingress = both.take("ingress").and_then(|f| f.boolean(problems));
        default_deny_egress = both.take("egress").and_then(|f| f.boolean(problems));
        both.finish(problems);
    }
    object.ignore(&["description", "labels", "log"]);
    object.finish(problems);
    Some(PolicyRule {
        endpoint_selector: endpoint_selector?,
        ingress,
        ingress_deny,
        egress,
        egress_deny,
        default_deny_ingress,
        default_deny_egress,
    })
}

fn peer_rule(
    field: &Field<'_>,
    path: String,
    ingress: bool,
    deny: bool,
    problems: &mut Problems,
) -> Option<PeerRule> {
    let mut object = field.object(problems)?;
    let side = if ingress { "from" } else { "to" };
    let name = |suffix: &str| format!("{side}{suffix}");
    let mut list =
        |suffix: &str, problems: &mut Problems| object.take(&name(suffix)).and_then(|f| f.list(problems));
    let lists = ["Endpoints", "Entities", "CIDR", "CIDRSet"].map(|suffix| (suffix, list(suffix, problems)));
    let filled: Vec<String> = lists
        .iter()
        .filter(|(_, list)| list.as_ref().is_some_and(|l| !l.is_empty()))
        .map(|(suffix, _)| name(suffix))
        .collect();
    if filled.len() > 1 {
        field.fail(
            problems,
            format_args!("combines {}; write one rule for each", filled.join(" and ")),
        );
    }
    let [endpoints, entities, plain, sets] = lists.map(|(_, list)| list);
    let endpoints = endpoints.map(|l| l.iter().filter_map(|f| selector(f, problems)).collect());
    let entities = entities.map(|l| l.iter().filter_map(|f| entity(f, problems)).collect());
    let mut cidrs = (plain.is_some() || sets.is_some()).then(Vec::new);
    for f in plain.into_iter().flatten() {
        let net = f.text(problems).and_then(|text| net(&f, &text, problems));
        cidrs.get_or_insert_default().extend(net.map(|cidr| CidrRule {
            cidr,
            except: Vec::new(),
        }));
    }
    for f in sets.into_iter().flatten() {
        cidrs.get_or_insert_default().extend(cidr_set(&f, problems));
    }
    let ports = object.take("toPorts").and_then(|f| to_ports(&f, deny, problems));
    if let Some(f) = object.take("authentication") {
        authentication(&f, problems);
    }
    object.unsupported(&["icmps"], problems);
    object.unsupported(&[&name("Nodes"), &name("Groups"), &name("Requires")], problems);
    if !ingress {
        object.unsupported(&["toServices", "toFQDNs"], problems);
    }
    object.finish(problems);
    Some(PeerRule {
        path,
        endpoints,
        entities,
        cidrs,
        ports,
    })
}

fn authentication(field: &Field<'_>, problems: &mut Problems) {
    let Some(mut object) = field.object(problems) else {
        return;
    };
    if let Some(mode) = object.need("mode", problems) {
        match mode.text(problems).as_deref() {
            Some("disabled") | None => {}
            Some(other) => mode.fail(problems, format_args!("mode {other} is not supported yet")),
        }
    }
    object.finish(problems);
}

fn entity(field: &Field<'_>, problems: &mut Problems) -> Option<Entity> {
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
fn net(field: &Field<'_>, text: &str, problems: &mut Problems) -> Option<IpNet> {
    let net = text
        .parse::<IpNet>()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    if net.is_none() {
        field.fail(problems, format_args!("{text:?} is no CIDR such as 10.0.0.0/8"));
    }
    net.map(|n| n.trunc())
}

fn cidr_set(field: &Field<'_>, problems: &mut Problems) -> Option<CidrRule> {
    let mut object = field.object(problems)?;
    object.unsupported(&["cidrGroupRef", "cidrGroupSelector"], problems);
    let cidr = object
        .need("cidr", problems)
        .and_then(|f| f.text(problems).and_then(|t| net(&f, &t, problems)));
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
    Some(CidrRule { cidr: cidr?, except })
}

fn to_ports(field: &Field<'_>, deny: bool, problems: &mut Problems) -> Option<Vec<PortRule>> {
    let items = field.list(problems)?;
    let mut ports = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let Some(mut object) = item.object(problems) else {
            continue;
        };
        if deny && let Some(f) = object.take("rules") {
            f.fail(problems, "a deny rule can have no L7 rules");
        }
        object.unsupported(
            &[
                "rules",
                "terminatingTLS",
                "originatingTLS",
                "serverNames",
                "listener",
            ],
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
            ports.extend(port(f, format!("toPorts[{i}].ports[{j}]"), problems));
        }
        object.finish(problems);
    }
    // `toPorts: []` is the same as none: it does not narrow the rule.
    (!items.is_empty()).then_some(ports)
}

fn port(field: &Field<'_>, path: String, problems: &mut Problems) -> Option<PortRule> {
    let mut object = field.object(problems)?;
    let first = object.take("port").map_or(Some(0), |f| f.port(problems));
    let end = object.take("endPort").map_or(Some(0), |f| f.port(problems));
    let protocol = match object.take("protocol") {
        None => Some(None),
        Some(f) => protocol(&f, problems),
    };
    object.finish(problems);
    let (first, end, protocol) = (first?, end?, protocol?);
    if end != 0 && (first == 0 || end < first) {
        field.fail(
            problems,
            format_args!("endPort {end} must not be below port, and port must be given"),
        );
        return None;
    }
    if first != 0 && matches!(protocol, Some(2 | 112)) {
        field.fail(problems, "this protocol has no ports; use port \"0\"");
        return None;
    }
    let last = if first == 0 { u16::MAX } else { end.max(first) };
    Some(PortRule {
        path,
        protocol,
        first,
        last,
    })
}

fn protocol(field: &Field<'_>, problems: &mut Problems) -> Option<Option<u8>> {
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
