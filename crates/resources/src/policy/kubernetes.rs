//! `networking.k8s.io/v1` NetworkPolicy, in the terms of [`NetworkPolicy`].
//!
//! Selectors there are about Kubernetes' labels only, and about pods only: nodes and what is outside are
//! meant by address ranges and by rules without peers.

use super::{
    CidrRange, CidrRule, Entity, NetworkPolicy, PeerRule, PolicyRule, Port, PortRule,
    parts::{net, port_ref, protocol},
};
use crate::{
    fields::{Field, Object, Problems},
    selector::{LabelKey, LabelSelector, Operator, Requirement, selector},
};
use weft_model::NAMESPACE_LABELS_PREFIX;

/// The label that names a namespace among its own labels.
const NAME_OF_NAMESPACE: &str = "kubernetes.io/metadata.name";

pub(crate) fn read(object: &mut Object<'_>, problems: &mut Problems) -> Option<NetworkPolicy> {
    let mut spec = object.need("spec", problems)?.object(problems)?;
    // An absent one is an empty one here: every pod of the namespace.
    let endpoint_selector = match spec.take("podSelector") {
        Some(f) => pods(&f, problems)?,
        None => LabelSelector::default(),
    };
    let sections = ["ingress", "egress"].map(|name| spec.take(name));
    let mut types = None;
    for f in spec
        .take("policyTypes")
        .and_then(|f| f.list(problems))
        .unwrap_or_default()
    {
        let types: &mut [bool; 2] = types.get_or_insert_default();
        match f.text(problems).as_deref() {
            Some("Ingress") => types[0] = true,
            Some("Egress") => types[1] = true,
            Some(other) => f.fail(problems, format_args!("{other:?} is neither Ingress nor Egress")),
            None => {}
        }
    }
    spec.finish(problems);
    // Without policyTypes every policy is about ingress, and about egress if it says something of it.
    let types = types.unwrap_or([true, sections[1].as_ref().is_some_and(|f| !f.is_empty_list())]);
    let [ingress, egress] = sections;
    let mut ingress = section(ingress, ("ingress", "from"), problems);
    let mut egress = section(egress, ("egress", "to"), problems);
    // A section that policyTypes leaves out is without effect.
    for (rules, meant) in [(&mut ingress, types[0]), (&mut egress, types[1])] {
        if !meant {
            rules.clear();
        }
    }
    let rule = PolicyRule {
        endpoint_selector,
        ingress,
        ingress_deny: Vec::new(),
        egress,
        egress_deny: Vec::new(),
        default_deny_ingress: Some(types[0]),
        default_deny_egress: Some(types[1]),
    };
    Some(NetworkPolicy { rules: vec![rule] })
}

fn section(field: Option<Field<'_>>, (name, side): (&str, &str), problems: &mut Problems) -> Vec<PeerRule> {
    let items = field.and_then(|f| f.list(problems)).unwrap_or_default();
    let mut rules = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let path = format!("{name}[{i}]");
        let Some(mut object) = item.object(problems) else {
            continue;
        };
        let peers = object
            .take(side)
            .and_then(|f| f.list(problems))
            .unwrap_or_default();
        let ports = object.take("ports").and_then(|f| ports(&f, problems));
        object.finish(problems);
        // No list, and an empty list: everybody.
        if peers.is_empty() {
            rules.push(PeerRule {
                path,
                entities: Some(vec![Entity::All]),
                ports,
                ..PeerRule::default()
            });
            continue;
        }
        for (j, f) in peers.iter().enumerate() {
            let ports = ports.clone();
            let path = format!("{path}.{side}[{j}]");
            rules.extend(peer(f, path, problems).map(|rule| PeerRule { ports, ..rule }));
        }
    }
    rules
}

fn peer(field: &Field<'_>, path: String, problems: &mut Problems) -> Option<PeerRule> {
    let mut object = field.object(problems)?;
    let [block, pod, namespace] =
        ["ipBlock", "podSelector", "namespaceSelector"].map(|name| object.take(name));
    object.finish(problems);
    match (block, pod, namespace) {
        (None, None, None) => {
            field.fail(
                problems,
                "names nobody: one of ipBlock, podSelector, namespaceSelector",
            );
            None
        }
        (Some(block), None, None) => Some(PeerRule {
            path,
            cidrs: Some(vec![range(&block, problems)?]),
            ..PeerRule::default()
        }),
        (Some(block), ..) => {
            block.fail(problems, "can not stand beside podSelector or namespaceSelector");
            None
        }
        (None, pod, namespace) => {
            let mut all = match pod {
                Some(f) => pods(&f, problems)?,
                None => LabelSelector::default(),
            };
            if let Some(f) = namespace {
                all.requirements.extend(namespaces(&f, problems)?);
            }
            Some(PeerRule {
                path,
                endpoints: Some(vec![all]),
                ..PeerRule::default()
            })
        }
    }
}

/// Keys here are Kubernetes' labels, whatever they look like.
fn pods(field: &Field<'_>, problems: &mut Problems) -> Option<LabelSelector> {
    let mut all = selector(field, problems)?;
    for requirement in &mut all.requirements {
        let LabelKey { source, name } = &mut requirement.key;
        if source.is_some() || name.contains(':') {
            field.fail(problems, "keys of labels have no colon");
            return None;
        }
        *source = Some("k8s".into());
    }
    Some(all)
}

/// Namespaces are known by their labels, their names among them. A requirement that pods have one keeps nodes
/// and the outside out, which `NotIn` would let in.
fn namespaces(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<Requirement>> {
    let namespace = || LabelKey {
        source: Some("k8s".into()),
        name: "io.kubernetes.pod.namespace".into(),
    };
    let mut all = vec![Requirement {
        key: namespace(),
        operator: Operator::Exists,
        values: Vec::new(),
    }];
    for requirement in selector(field, problems)?.requirements {
        let LabelKey { source, name } = &requirement.key;
        if source.is_some() || name.contains(':') {
            field.fail(problems, "keys of labels have no colon");
            return None;
        }
        let key = match &**name {
            // Also without an object that says so.
            NAME_OF_NAMESPACE => namespace(),
            name => LabelKey {
                source: Some("k8s".into()),
                name: format!("{NAMESPACE_LABELS_PREFIX}.{name}"),
            },
        };
        all.push(Requirement { key, ..requirement });
    }
    Some(all)
}

fn range(field: &Field<'_>, problems: &mut Problems) -> Option<CidrRule> {
    let mut object = field.object(problems)?;
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
        if cidr.is_some_and(|c| !c.contains(&hole) || c == hole) {
            f.fail(problems, format_args!("{hole} is not a part of the range"));
        }
        except.push(hole);
    }
    object.finish(problems);
    Some(CidrRule {
        range: CidrRange::Net(cidr?),
        except,
    })
}

fn ports(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<PortRule>> {
    let items = field.list(problems)?;
    let read = |(i, f): (usize, &Field<'_>)| port(f, format!("ports[{i}]"), problems);
    let ports: Vec<_> = items.iter().enumerate().filter_map(read).collect();
    // No list, and an empty list: every port.
    (!items.is_empty()).then_some(ports)
}

fn port(field: &Field<'_>, path: String, problems: &mut Problems) -> Option<PortRule> {
    let mut object = field.object(problems)?;
    let first = match object.take("port") {
        None => Some(None),
        Some(f) => port_ref(&f, problems).map(Some),
    };
    let end = object.take("endPort");
    let protocol = match object.take("protocol") {
        None => Some(Some(6)),
        Some(f) => protocol(&f, problems).inspect(|p| {
            if !matches!(p, Some(6 | 17 | 132)) {
                f.fail(problems, "is none of TCP, UDP, SCTP");
            }
        }),
    };
    object.finish(problems);
    let (first, protocol) = (first?, protocol?);
    if first == Some(Port::Any) {
        field.fail(
            problems,
            "port must be from 1 to 65535; leave it out to mean every port",
        );
        return None;
    }
    let port = match (first, end) {
        (first, None) => first.unwrap_or(Port::Any),
        (first, Some(f)) => match (first, f.port(problems)?) {
            (Some(Port::Range(first, _)), last) if first <= last => Port::Range(first, last),
            _ => {
                f.fail(
                    problems,
                    "must not be below port, and port must be given as a number",
                );
                return None;
            }
        },
    };
    Some(PortRule {
        path,
        protocol,
        port,
        http: None,
        dns: None,
    })
}
