//! What the values of filters mean: names, networks, ports, statuses, expressions, protocols.

use super::{FilterError, layer4};
use crate::hubble::glob;
use ipnet::IpNet;
use regex::{Regex, RegexBuilder};
use std::net::IpAddr;
use weft_proto::hubble::flow::{self as pb, Flow};

/// What one regular expression may take of memory, compiled; and all of a request's together are
/// bounded by [`MAX_EXPRESSIONS`].
const EXPRESSION_BYTES: usize = 256 * 1024;

pub(super) fn wrong(field: &'static str, value: &str, what: impl Into<String>) -> FilterError {
    FilterError::Value {
        field,
        value: value.chars().take(64).collect(),
        what: what.into(),
    }
}

/// `[namespace/][start of a name]`.
pub(super) struct Named {
    /// `None`: any.
    namespace: Option<String>,
    start: String,
}

impl Named {
    pub(super) fn read(field: &'static str, text: &str) -> Result<Self, FilterError> {
        let (namespace, start) = match text.split_once('/') {
            Some(("", start)) => (None, start),
            Some((namespace, start)) => (Some(namespace), start),
            None if text.is_empty() => {
                return Err(wrong(field, text, "is none, must be [namespace/][<name>]"));
            }
            None => (Some("default"), text),
        };
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            start: start.to_owned(),
        })
    }

    pub(super) fn is(&self, namespace: &str, name: &str) -> bool {
        let there = !namespace.is_empty() || !name.is_empty();
        let wanted = self.namespace.as_ref().is_none_or(|wanted| wanted == namespace);
        there && wanted && name.starts_with(&self.start)
    }
}

pub(super) fn node_pattern(text: &str) -> Result<(String, String), FilterError> {
    let (cluster, node) = match text.split_once('/') {
        Some((_, rest)) if rest.contains('/') => {
            return Err(wrong("node_name", text, "has too many slashes"));
        }
        Some((cluster, node)) => (cluster, node),
        None => ("", text),
    };
    if text.is_empty() {
        return Err(wrong("node_name", text, "is empty"));
    }
    let read = |part: &str| match part {
        "" => Ok("*".to_owned()),
        part => host_pattern("node_name", part),
    };
    Ok((read(cluster)?, read(node)?))
}

pub(super) fn host_pattern(field: &'static str, text: &str) -> Result<String, FilterError> {
    let pattern = text.trim();
    let pattern = pattern.strip_suffix('.').unwrap_or(pattern).to_ascii_lowercase();
    let fits = |c: char| glob::of_name(c) || c == '*';
    if pattern.is_empty() || pattern.ends_with('.') || !pattern.chars().all(fits) {
        return Err(wrong(field, text, "is no name or pattern of names"));
    }
    Ok(pattern)
}

pub(super) fn network(field: &'static str, text: &str) -> Result<IpNet, FilterError> {
    if text.contains('/') {
        let network: Result<IpNet, _> = text.parse();
        return network.map_err(|_| wrong(field, text, "is no CIDR"));
    }
    let address: Result<IpAddr, _> = text.parse();
    address
        .map(|a| a.to_canonical().into())
        .map_err(|_| wrong(field, text, "is no IP address"))
}

pub(super) fn port(field: &'static str, text: &str) -> Result<u32, FilterError> {
    let port: Result<u16, _> = text.parse();
    port.map(u32::from).map_err(|_| wrong(field, text, "is no port"))
}

/// "404" as a whole, "4+" and "40+" as the start.
pub(super) fn status(text: &str) -> Result<(String, bool), FilterError> {
    let (digits, is_whole) = match text.strip_suffix('+') {
        Some(digits) => (digits, false),
        None => (text, true),
    };
    let first = digits.starts_with(|c: char| ('1'..='5').contains(&c));
    let length = if is_whole { 3..=3 } else { 1..=2 };
    if !first || !length.contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong(
            "http_status_code",
            text,
            "is no status code or prefix (\"404\", \"5+\")",
        ));
    }
    Ok((digits.to_owned(), is_whole))
}

/// The time it takes is proportional to the text, whatever the expression (RE2's kind).
pub(super) fn expression(field: &'static str, text: &str) -> Result<Regex, FilterError> {
    let compiled = RegexBuilder::new(text)
        .size_limit(EXPRESSION_BYTES)
        .dfa_size_limit(EXPRESSION_BYTES)
        .nest_limit(64)
        .build();
    compiled.map_err(|e| {
        let line = e.to_string().lines().last().unwrap_or_default().trim().to_owned();
        wrong(field, text, format!("is no usable regular expression: {line}"))
    })
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Icmp4,
    Icmp6,
    Http,
    Dns,
    /// Known to Hubble, and never seen here.
    Never,
}

pub(super) fn protocol(text: &str) -> Result<Protocol, FilterError> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        "icmp" => Protocol::Icmp,
        "icmpv4" => Protocol::Icmp4,
        "icmpv6" => Protocol::Icmp6,
        "http" => Protocol::Http,
        "dns" => Protocol::Dns,
        "kafka" | "vrrp" | "igmp" => Protocol::Never,
        _ => return Err(wrong("protocol", text, "is no protocol known here")),
    })
}

impl Protocol {
    pub(super) fn is(self, flow: &Flow) -> bool {
        use pb::layer4::Protocol as P;
        let four = layer4(flow);
        let seven = flow.l7.as_ref().and_then(|l| l.record.as_ref());
        match self {
            Self::Tcp => matches!(four, Some(P::Tcp(_))),
            Self::Udp => matches!(four, Some(P::Udp(_))),
            Self::Sctp => matches!(four, Some(P::Sctp(_))),
            Self::Icmp => matches!(four, Some(P::IcmPv4(_) | P::IcmPv6(_))),
            Self::Icmp4 => matches!(four, Some(P::IcmPv4(_))),
            Self::Icmp6 => matches!(four, Some(P::IcmPv6(_))),
            Self::Http => matches!(seven, Some(pb::layer7::Record::Http(_))),
            Self::Dns => matches!(seven, Some(pb::layer7::Record::Dns(_))),
            Self::Never => false,
        }
    }
}
