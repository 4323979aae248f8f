//! `cilium.io/v2` CiliumLocalRedirectPolicy: whoever calls a Service, or an address that is no Service's,
//! reaches endpoints of his own node.

use crate::{
    fields::{Field, Object, Problems},
    selector::{LabelSelector, selector},
};
use std::net::IpAddr;
use weft_model::{check_dns_label, check_name};

/// Takes the place of what is called, on each node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalRedirect {
    /// What is called.
    pub frontend: RedirectFrontend,
    /// The endpoints, of the policy's namespace.
    pub backends: LabelSelector,
    /// Where they listen: one for all ports of the Service, or by the name of each.
    pub ports: Vec<RedirectPort>,
}

/// What is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectFrontend {
    /// A Service, at all its ports.
    Service {
        /// Its namespace; that of the policy, or it has no effect.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// An address that is no Service's.
    Address {
        /// The address.
        ip: IpAddr,
        /// The ports that are meant; others go where they went.
        ports: Vec<RedirectPort>,
    },
}

/// A port of what is called, or of the endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedirectPort {
    /// By which the two find each other; empty when it is the only one.
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
    let field = spec.need("redirectFrontend", problems);
    let frontend = field.as_ref().and_then(|f| read_frontend(f, problems));
    let backend = spec
        .need("redirectBackend", problems)
        .and_then(|f| read_backend(&f, problems));
    spec.finish(problems);
    let (frontend, (backends, ports)) = (frontend?, backend?);
    // As the endpoints' ports are found by: by name where there are several.
    if let (RedirectFrontend::Address { ports: called, .. }, Some(field)) = (&frontend, field)
        && let Some(port) = called.iter().find(|port| target(&ports, port).is_none())
    {
        let text = format_args!("no port of redirectBackend is for port {}", port.port);
        field.fail(problems, text);
        return None;
    }
    Some(LocalRedirect {
        frontend,
        backends,
        ports,
    })
}

/// The port of the endpoints that is for one of what is called.
fn target<'a>(ports: &'a [RedirectPort], called: &RedirectPort) -> Option<&'a RedirectPort> {
    let is_for = |port: &&RedirectPort| {
        (ports.len() == 1 || port.name == called.name) && port.protocol == called.protocol
    };
    ports.iter().find(is_for)
}

impl LocalRedirect {
    /// Where the endpoints listen for a port of what is called; `None`: it is not redirected.
    pub fn target(&self, name: &str, protocol: u8) -> Option<u16> {
        let called = RedirectPort {
            name: name.to_owned(),
            port: 0,
            protocol,
        };
        Some(target(&self.ports, &called)?.port)
    }
}

fn read_frontend(field: &Field<'_>, problems: &mut Problems) -> Option<RedirectFrontend> {
    let mut object = field.object(problems)?;
    let address = object.take("addressMatcher");
    let service = object.take("serviceMatcher");
    object.finish(problems);
    match (&address, &service) {
        (Some(_), Some(_)) => field.fail(
            problems,
            "addressMatcher and serviceMatcher can not stand together",
        ),
        (None, None) => field.fail(problems, "must have an addressMatcher or a serviceMatcher"),
        (Some(f), None) => return read_address(f, problems),
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
    Some(RedirectFrontend::Service {
        namespace: namespace?,
        name: name?,
    })
}

fn read_address(field: &Field<'_>, problems: &mut Problems) -> Option<RedirectFrontend> {
    let mut matcher = field.object(problems)?;
    let ip = matcher.need("ip", problems).and_then(|f| {
        f.checked(problems, |text| match text.parse::<IpAddr>() {
            Ok(ip) if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() => {
                Err("can not be redirected")
            }
            Ok(_) => Ok(()),
            Err(_) => Err("is no IP address"),
        })
    });
    let ports = matcher.need("toPorts", problems);
    matcher.finish(problems);
    let ports = read_ports(&ports?, problems)?;
    Some(RedirectFrontend::Address {
        ip: ip?.parse().ok()?,
        ports,
    })
}

fn read_backend(field: &Field<'_>, problems: &mut Problems) -> Option<(LabelSelector, Vec<RedirectPort>)> {
    let mut object = field.object(problems)?;
    let backends = object
        .need("localEndpointSelector", problems)
        .and_then(|f| selector(&f, problems));
    let list = object.need("toPorts", problems);
    object.finish(problems);
    let ports = read_ports(&list?, problems)?;
    Some((backends?, ports))
}

fn read_ports(list: &Field<'_>, problems: &mut Problems) -> Option<Vec<RedirectPort>> {
    let items = list.list(problems)?;
    if items.is_empty() {
        list.fail(problems, "must have an element");
    }
    let ports: Vec<RedirectPort> = items.iter().filter_map(|f| port(f, problems)).collect();
    for (i, port) in ports.iter().enumerate() {
        if ports.len() > 1 && (port.name.is_empty() || ports[..i].iter().any(|p| p.name == port.name)) {
            list.fail(problems, "each of several ports must have a name of its own");
            return None;
        }
    }
    Some(ports)
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
