//! `cilium.io/v2` CiliumLocalRedirectPolicy: whoever calls a Service reaches endpoints of his own node.

use crate::{
    fields::{Field, Object, Problems},
    selector::{LabelSelector, selector},
};
use weft_model::{check_dns_label, check_name};

/// Takes the place of a Service's endpoints on each node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalRedirect {
    /// The Service's namespace; that of the policy, or it has no effect.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// The endpoints, of the policy's namespace.
    pub backends: LabelSelector,
    /// Where they listen: one for all ports of the Service, or by the name of each.
    pub ports: Vec<RedirectPort>,
}

/// A port of the endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedirectPort {
    /// Of the Service's port that it is for; empty when it is the only one.
    pub name: String,
    /// Number.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
}

pub(crate) fn read(object: &mut Object<'_>, problems: &mut Problems) -> Option<LocalRedirect> {
    let mut spec = object.need("spec", problems)?.object(problems)?;
    spec.take("description").and_then(|f| f.text(problems));
    if let Some(f) = spec.take("skipRedirectFromBackend")
        && f.boolean(problems) == Some(true)
    {
        f.fail(problems, "is not supported yet");
    }
    let frontend = spec
        .need("redirectFrontend", problems)
        .and_then(|f| read_frontend(&f, problems));
    let backend = spec
        .need("redirectBackend", problems)
        .and_then(|f| read_backend(&f, problems));
    spec.finish(problems);
    let ((namespace, service), (backends, ports)) = (frontend?, backend?);
    Some(LocalRedirect {
        namespace,
        service,
        backends,
        ports,
    })
}

fn read_frontend(field: &Field<'_>, problems: &mut Problems) -> Option<(String, String)> {
    let mut object = field.object(problems)?;
    let address = object.take("addressMatcher");
    let service = object.take("serviceMatcher");
    object.finish(problems);
    match (&address, &service) {
        (Some(_), Some(_)) => field.fail(
            problems,
            "addressMatcher and serviceMatcher can not stand together",
        ),
        (None, None) => field.fail(problems, "must have a serviceMatcher"),
        (Some(f), None) => f.fail(problems, "is not supported yet; use serviceMatcher"),
        (None, Some(_)) => {}
    }
    let mut matcher = service.filter(|_| address.is_none())?.object(problems)?;
    let name = matcher
        .need("serviceName", problems)
        .and_then(|f| f.checked(problems, check_name));
    let namespace = matcher
        .need("namespace", problems)
        .and_then(|f| f.checked(problems, check_dns_label));
    if let Some(f) = matcher.take("toPorts")
        && f.list(problems).is_some_and(|items| !items.is_empty())
    {
        f.fail(
            problems,
            "is not supported yet; leave it out to redirect every port of the Service",
        );
    }
    matcher.finish(problems);
    Some((namespace?, name?))
}

fn read_backend(field: &Field<'_>, problems: &mut Problems) -> Option<(LabelSelector, Vec<RedirectPort>)> {
    let mut object = field.object(problems)?;
    let backends = object
        .need("localEndpointSelector", problems)
        .and_then(|f| selector(&f, problems));
    let list = object.need("toPorts", problems);
    object.finish(problems);
    let list = list?;
    let items = list.list(problems)?;
    if items.is_empty() {
        list.fail(problems, "must have an element");
    }
    let ports: Vec<RedirectPort> = items.iter().filter_map(|f| port(f, problems)).collect();
    for (i, port) in ports.iter().enumerate() {
        if ports.len() > 1 && (port.name.is_empty() || ports[..i].iter().any(|p| p.name == port.name)) {
            list.fail(problems, "each of several ports must have a name of its own");
            break;
        }
    }
    Some((backends?, ports))
}

fn port(field: &Field<'_>, problems: &mut Problems) -> Option<RedirectPort> {
    let mut object = field.object(problems)?;
    let port = object.need("port", problems).and_then(|f| {
        let port = f.port(problems)?;
        if port == 0 {
            f.fail(problems, "must be a port number from 1 to 65535");
        }
        Some(port)
    });
    let name = object
        .take("name")
        .and_then(|f| f.checked(problems, check_dns_label))
        .unwrap_or_default();
    let protocol = object.need("protocol", problems).and_then(|f| {
        let number = match f.text(problems)?.to_ascii_uppercase().as_str() {
            "TCP" => Some(6),
            "UDP" => Some(17),
            _ => None,
        };
        if number.is_none() {
            f.fail(problems, "must be TCP or UDP");
        }
        number
    });
    object.finish(problems);
    Some(RedirectPort {
        name,
        port: port?,
        protocol: protocol?,
    })
}
