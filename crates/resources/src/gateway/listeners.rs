//! `Gateway`.

use super::{
    GROUP, refs,
    text::{bounded, hostname, items, port},
};
use crate::{
    fields::{Field, Object, Problems},
    selector::{LabelSelector, selector},
    tree::Value,
};
use std::collections::BTreeMap;
use weft_model::{check_dns_label, check_name};

/// Where requests enter the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// `gatewayClassName`.
    pub class: String,
    /// At least one; names are unique.
    pub listeners: Vec<Listener>,
    /// Addresses that it asks for; none: it is given one.
    pub addresses: Vec<GatewayAddress>,
    /// Labels for what is made for it.
    pub labels: BTreeMap<String, String>,
    /// Annotations for what is made for it.
    pub annotations: BTreeMap<String, String>,
    /// Whether it names parameters; none are known here.
    pub has_parameters: bool,
}

/// An address that a Gateway asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayAddress {
    /// `IPAddress`, `Hostname` or what somebody else knows.
    pub kind: String,
    /// Empty for any of the kind.
    pub value: String,
}

/// One port of a Gateway, for some hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its section's name.
    pub name: String,
    /// Absent for every host.
    pub hostname: Option<String>,
    /// Port.
    pub port: u16,
    /// `HTTP`, `HTTPS`, `TLS`, `TCP`, `UDP` or what somebody else knows.
    pub protocol: String,
    /// Whether it names certificates.
    pub has_certificates: bool,
    /// Whose routes may attach.
    pub namespaces: AllowedNamespaces,
    /// Which routes may attach; empty: all that its protocol can serve.
    pub kinds: Vec<RouteKind>,
}

/// The namespaces whose routes may attach to a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedNamespaces {
    /// Every one.
    All,
    /// The Gateway's own.
    Same,
    /// Those with these labels.
    Selector(LabelSelector),
}

/// A kind of routes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKind {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
}

pub(crate) fn read(object: &mut Object<'_>, problems: &mut Problems) -> Option<Gateway> {
    let mut spec = object.need("spec", problems)?.object(problems)?;
    let class = spec
        .need("gatewayClassName", problems)
        .and_then(|f| refs::name(&f, problems));
    let list = spec.need("listeners", problems);
    let fields = items(list.clone(), 64, problems);
    if let Some(list) = list.filter(|_| fields.is_empty()) {
        list.fail(problems, "must have an element");
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for field in fields {
        let Some(new) = listener(&field, problems) else {
            continue;
        };
        if listeners.iter().any(|l| l.name == new.name) {
            field.fail(
                problems,
                format_args!("the name {:?} is another listener's", new.name),
            );
        }
        let same =
            |l: &Listener| (l.port, &l.protocol, &l.hostname) == (new.port, &new.protocol, &new.hostname);
        if listeners.iter().any(same) {
            field.fail(
                problems,
                "port, protocol and hostname are those of another listener",
            );
        }
        listeners.push(new);
    }
    let addresses = spec.take("addresses");
    let addresses: Vec<GatewayAddress> = items(addresses, 16, problems)
        .iter()
        .filter_map(|f| address(f, problems))
        .collect();
    let (mut labels, mut annotations, mut has_parameters) = Default::default();
    if let Some(mut infrastructure) = spec.take("infrastructure").and_then(|f| f.object(problems)) {
        let mut map = |name: &str, problems: &mut Problems| {
            let field = infrastructure.take(name);
            field.and_then(|f| f.text_map(problems)).unwrap_or_default()
        };
        labels = map("labels", problems);
        annotations = map("annotations", problems);
        let parameters = infrastructure.take("parametersRef");
        has_parameters = parameters.is_some();
        if let Some(mut reference) = parameters.and_then(|f| f.object(problems)) {
            for name in ["group", "kind", "name"] {
                reference.need(name, problems).and_then(|f| f.text(problems));
            }
            reference.finish(problems);
        }
        infrastructure.finish(problems);
    }
    spec.unsupported(
        &["allowedListeners", "backendTLS", "defaultScope", "tls"],
        problems,
    );
    spec.finish(problems);
    Some(Gateway {
        class: class?,
        listeners,
        addresses,
        labels,
        annotations,
        has_parameters,
    })
}

fn address(field: &Field<'_>, problems: &mut Problems) -> Option<GatewayAddress> {
    let mut object = field.object(problems)?;
    let kind = match object.take("type") {
        Some(f) => bounded(&f, 1..=253, problems)?,
        None => "IPAddress".into(),
    };
    let value = match object.take("value") {
        Some(f) => {
            let value = bounded(&f, 0..=253, problems)?;
            if kind == "IPAddress" && !value.is_empty() && value.parse::<std::net::IpAddr>().is_err() {
                f.fail(problems, format_args!("{value:?} is no IP address"));
            }
            value
        }
        None => String::new(),
    };
    object.finish(problems);
    Some(GatewayAddress { kind, value })
}

fn listener(field: &Field<'_>, problems: &mut Problems) -> Option<Listener> {
    let mut object = field.object(problems)?;
    let name = object
        .need("name", problems)
        .and_then(|f| f.checked(problems, check_name));
    let host = match object.take("hostname") {
        // As the schema: an empty one is none.
        Some(f) if matches!(&f.node.value, Value::Text(text) if text.is_empty()) => Some(None),
        Some(f) => hostname(&f, true, problems).map(Some),
        None => Some(None),
    };
    let port = object.need("port", problems).and_then(|f| port(&f, problems));
    let protocol = object
        .need("protocol", problems)
        .and_then(|f| bounded(&f, 1..=255, problems));
    let tls = object.take("tls");
    let (namespaces, kinds) = match object.take("allowedRoutes") {
        Some(f) => allowed_routes(&f, problems)?,
        None => (AllowedNamespaces::Same, Vec::new()),
    };
    object.finish(problems);
    let (protocol, host) = (protocol?, host?);
    let has_certificates = read_tls(field, tls, &protocol, problems)?;
    if matches!(protocol.as_str(), "TCP" | "UDP") && host.is_some() {
        field.fail(problems, format_args!("{protocol} has no hostname"));
    }
    Some(Listener {
        name: name?,
        hostname: host,
        port: port?,
        protocol,
        has_certificates,
        namespaces,
        kinds,
    })
}

/// Whether there are certificates.
fn read_tls(
    listener: &Field<'_>,
    field: Option<Field<'_>>,
    protocol: &str,
    problems: &mut Problems,
) -> Option<bool> {
    let Some(field) = field else {
        if protocol == "TLS" {
            listener.fail(problems, "tls.mode is required for protocol TLS");
        }
        return Some(false);
    };
    if matches!(protocol, "HTTP" | "TCP" | "UDP") {
        field.fail(problems, format_args!("{protocol} has no tls"));
    }
    let mut object = field.object(problems)?;
    let mode = match object.take("mode") {
        Some(f) => f.checked(problems, |text| match text {
            "Terminate" | "Passthrough" => Ok(()),
            _ => Err(format!("{text:?} is neither Terminate nor Passthrough")),
        })?,
        None => "Terminate".into(),
    };
    if protocol == "HTTPS" && mode != "Terminate" {
        field.fail(problems, "mode must be Terminate for protocol HTTPS");
    }
    let list = object.take("certificateRefs");
    let certificates = items(list, 64, problems);
    for f in &certificates {
        let Some(mut reference) = f.object(problems) else {
            continue;
        };
        reference.take("group").and_then(|f| refs::group(&f, problems));
        reference.take("kind").and_then(|f| refs::kind(&f, problems));
        reference
            .need("name", problems)
            .and_then(|f| refs::name(&f, problems));
        reference
            .take("namespace")
            .and_then(|f| f.checked(problems, check_dns_label));
        reference.finish(problems);
    }
    let options = object.take("options").and_then(|f| f.text_map(problems));
    if mode == "Terminate" && certificates.is_empty() && options.is_none_or(|o| o.is_empty()) {
        field.fail(problems, "names no certificateRefs, which mode Terminate needs");
    }
    object.unsupported(&["frontendValidation"], problems);
    object.finish(problems);
    Some(!certificates.is_empty())
}

fn allowed_routes(field: &Field<'_>, problems: &mut Problems) -> Option<(AllowedNamespaces, Vec<RouteKind>)> {
    let mut object = field.object(problems)?;
    let namespaces = match object.take("namespaces") {
        Some(f) => allowed_namespaces(&f, problems),
        None => Some(AllowedNamespaces::Same),
    };
    let mut kinds = Vec::new();
    let list = object.take("kinds");
    for f in items(list, 8, problems) {
        let Some(mut one) = f.object(problems) else {
            continue;
        };
        let group = match one.take("group") {
            Some(f) => refs::group(&f, problems),
            None => Some(GROUP.into()),
        };
        let kind = one.need("kind", problems).and_then(|f| refs::kind(&f, problems));
        one.finish(problems);
        if let (Some(group), Some(kind)) = (group, kind) {
            kinds.push(RouteKind { group, kind });
        }
    }
    object.finish(problems);
    Some((namespaces?, kinds))
}

fn allowed_namespaces(field: &Field<'_>, problems: &mut Problems) -> Option<AllowedNamespaces> {
    let mut object = field.object(problems)?;
    let from = match object.take("from") {
        Some(f) => f.checked(problems, |text| match text {
            "All" | "Same" | "Selector" => Ok(()),
            _ => Err(format!("{text:?} is none of All, Same, Selector")),
        })?,
        None => "Same".into(),
    };
    let labels = object.take("selector");
    object.finish(problems);
    Some(match (from.as_str(), labels) {
        ("All", _) => AllowedNamespaces::All,
        ("Selector", Some(f)) => AllowedNamespaces::Selector(selector(&f, problems)?),
        ("Selector", None) => {
            field.fail(problems, "selector is required with from: Selector");
            return None;
        }
        _ => AllowedNamespaces::Same,
    })
}
