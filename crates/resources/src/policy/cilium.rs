//! `cilium.io/v2` CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy.

use super::{
    Authentication, NetworkPolicy, PeerRule, PolicyRule, icmp, names,
    parts::{cidr, cidr_set, entity, to_ports},
    services,
};
use crate::{
    fields::{Field, Object, Problems},
    selector::selector,
};

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
    if let Some(f) = object.take("nodeSelector") {
        f.fail(
            problems,
            "is not supported: nodes themselves are not governed by policies here",
        );
    }
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
    let lists = ["Endpoints", "Entities", "CIDR", "CIDRSet", "Services"].map(|suffix| {
        // Who comes in comes from no Service.
        let there = (suffix != "Services" || !ingress).then(|| list(suffix, problems));
        (suffix, there.flatten())
    });
    // Nor by a name; and Cilium knows no names in what is refused.
    let by_name = (!ingress && !deny).then(|| object.take("toFQDNs")).flatten();
    let filled: Vec<String> = lists
        .iter()
        .filter(|(_, list)| list.as_ref().is_some_and(|l| !l.is_empty()))
        .map(|(suffix, _)| name(suffix))
        .chain(
            by_name
                .iter()
                .filter(|f| !f.is_empty_list())
                .map(|_| "toFQDNs".to_owned()),
        )
        .collect();
    if filled.len() > 1 {
        field.fail(
            problems,
            format_args!("combines {}; write one rule for each", filled.join(" and ")),
        );
    }
    let [endpoints, entities, plain, sets, services] = lists.map(|(_, list)| list);
    let endpoints = endpoints.map(|l| l.iter().filter_map(|f| selector(f, problems)).collect());
    let entities = entities.map(|l| l.iter().filter_map(|f| entity(f, problems)).collect());
    let mut cidrs = (plain.is_some() || sets.is_some()).then(Vec::new);
    for f in plain.into_iter().flatten() {
        cidrs.get_or_insert_default().extend(cidr(&f, problems));
    }
    for f in sets.into_iter().flatten() {
        cidrs.get_or_insert_default().extend(cidr_set(&f, problems));
    }
    let services = services.map(|l| l.iter().filter_map(|f| services::read(f, problems)).collect());
    let names = by_name.and_then(|f| names::read(&f, problems));
    let ports = object
        .take("toPorts")
        .and_then(|f| to_ports(&f, ingress, deny, problems));
    let icmps = object.take("icmps");
    if let Some(f) = icmps.as_ref().filter(|_| ports.is_some()) {
        f.fail(problems, "can not stand beside toPorts; write one rule for each");
    }
    let icmps = icmps.and_then(|f| icmp::read(&f, problems));
    let authentication = object.take("authentication").map(|f| {
        if deny {
            f.fail(problems, "a deny rule refuses whoever it is; leave it out");
        }
        authentication(&f, problems)
    });
    if let Some(f) = object.take(&name("Nodes")) {
        f.fail(
            problems,
            format_args!(
                "is not supported: all nodes share one identity here; write {}: [host, remote-node]",
                name("Entities")
            ),
        );
    }
    object.unsupported(&[&name("Groups"), &name("Requires")], problems);
    object.finish(problems);
    Some(PeerRule {
        path,
        endpoints,
        entities,
        cidrs,
        services,
        names,
        ports,
        icmps,
        authentication: authentication.unwrap_or_default(),
    })
}

/// Whether both ends must be proven.
fn authentication(field: &Field<'_>, problems: &mut Problems) -> Authentication {
    let mut said = Authentication::Unsaid;
    let Some(mut object) = field.object(problems) else {
        return said;
    };
    if let Some(mode) = object.need("mode", problems) {
        match mode.text(problems).as_deref() {
            Some("required") => said = Authentication::Required,
            Some("disabled") => said = Authentication::Disabled,
            None => {}
            Some(other) => mode.fail(
                problems,
                format_args!("mode {other:?} is neither required nor disabled"),
            ),
        }
    }
    object.finish(problems);
    said
}
