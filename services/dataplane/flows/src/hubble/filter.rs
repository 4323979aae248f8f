//! What filters mean: within one, each field that is given must match, by one of its values; of
//! several filters one must.

use super::{
    CLUSTER, glob, names,
    selector::{Selector, SelectorError},
};
use ipnet::IpNet;
use regex::{Regex, RegexBuilder};
use std::net::IpAddr;
use weft_proto::hubble::flow::{self as pb, Flow, FlowFilter};

/// Filters of one list.
const MAX_FILTERS: usize = 64;
/// Values of one filter, all fields together.
const MAX_VALUES: usize = 1024;
/// Longest value.
const MAX_VALUE_BYTES: usize = 4096;
/// What one regular expression may take of memory, compiled; and all of a request's together are
/// bounded by [`MAX_EXPRESSIONS`].
const EXPRESSION_BYTES: usize = 256 * 1024;
/// Regular expressions of one list of filters.
const MAX_EXPRESSIONS: usize = 64;

/// Why filters can not be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FilterError {
    /// Beyond a bound.
    #[error("filters: {0}")]
    TooMuch(String),
    /// A value that means nothing.
    #[error("{field}: {value:?} {what}")]
    Value {
        /// The filter's field.
        field: &'static str,
        /// As it was given.
        value: String,
        /// What is wrong with it.
        what: String,
    },
    /// A label selector.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// HTTP is asked for of events that have none.
    #[error("{0} requires the event type filter to only match 'l7' events")]
    NotL7(&'static str),
    /// What is not evaluated here.
    #[error("filters by CEL expressions are not supported; use the other fields")]
    Cel,
}

type Condition = Box<dyn Fn(&Flow) -> bool + Send + Sync>;

/// What one request lets through.
#[derive(Default)]
pub struct Filters {
    allow: Vec<Vec<Condition>>,
    deny: Vec<Vec<Condition>>,
}

impl std::fmt::Debug for Filters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Filters({} allow, {} deny)", self.allow.len(), self.deny.len())
    }
}

impl Filters {
    /// Everything that one of `allow` matches (all without any), and none of `deny`.
    pub fn new(allow: &[FlowFilter], deny: &[FlowFilter]) -> Result<Self, FilterError> {
        Ok(Self {
            allow: compile_all(allow)?,
            deny: compile_all(deny)?,
        })
    }

    /// Whether `flow` is let through.
    pub fn pass(&self, flow: &Flow) -> bool {
        let one = |filters: &[Vec<Condition>]| filters.iter().any(|f| f.iter().all(|holds| holds(flow)));
        (self.allow.is_empty() || one(&self.allow)) && !one(&self.deny)
    }
}

fn compile_all(filters: &[FlowFilter]) -> Result<Vec<Vec<Condition>>, FilterError> {
    if filters.len() > MAX_FILTERS {
        return Err(FilterError::TooMuch(format!("at most {MAX_FILTERS} of a list")));
    }
    let mut expressions = 0;
    filters.iter().map(|f| compile(f, &mut expressions)).collect()
}

fn compile(filter: &FlowFilter, expressions: &mut usize) -> Result<Vec<Condition>, FilterError> {
    check_bounds(filter, expressions)?;
    if filter
        .experimental
        .as_ref()
        .is_some_and(|e| !e.cel_expression.is_empty())
    {
        return Err(FilterError::Cel);
    }
    let mut all = Conditions(Vec::new());
    identity(filter, &mut all)?;
    ends(filter, &mut all)?;
    layers(filter, &mut all)?;
    http(filter, &mut all)?;
    Ok(all.0)
}

fn check_bounds(filter: &FlowFilter, expressions: &mut usize) -> Result<(), FilterError> {
    let f = filter;
    let texts = [
        &f.source_ip,
        &f.source_pod,
        &f.source_fqdn,
        &f.source_label,
        &f.source_service,
        &f.source_port,
        &f.source_ip_xlated,
        &f.source_cluster_name,
        &f.destination_ip,
        &f.destination_pod,
        &f.destination_fqdn,
        &f.destination_label,
        &f.destination_service,
        &f.destination_port,
        &f.destination_cluster_name,
        &f.http_status_code,
        &f.http_method,
        &f.http_path,
        &f.http_url,
        &f.protocol,
        &f.dns_query,
        &f.node_name,
        &f.node_labels,
        &f.trace_id,
        &f.uuid,
    ];
    let numbers = [
        f.verdict.len(),
        f.event_type.len(),
        f.reply.len(),
        f.source_identity.len(),
        f.destination_identity.len(),
        f.tcp_flags.len(),
        f.ip_version.len(),
        f.source_workload.len(),
        f.destination_workload.len(),
        f.traffic_direction.len(),
        f.http_header.len(),
        f.drop_reason_desc.len(),
        f.interface.len(),
        f.ip_trace_id.len(),
        f.encrypted.len(),
    ];
    let values = texts.iter().map(|t| t.len()).sum::<usize>() + numbers.iter().sum::<usize>();
    if values > MAX_VALUES {
        return Err(FilterError::TooMuch(format!(
            "at most {MAX_VALUES} values of a filter"
        )));
    }
    let words = f.source_workload.iter().chain(&f.destination_workload);
    let words = words.flat_map(|w| [&w.name, &w.kind]);
    let headers = f.http_header.iter().flat_map(|h| [&h.key, &h.value]);
    if texts
        .into_iter()
        .flatten()
        .chain(words)
        .chain(headers)
        .any(|t| t.len() > MAX_VALUE_BYTES)
    {
        return Err(FilterError::TooMuch(format!(
            "a value is longer than {MAX_VALUE_BYTES} bytes"
        )));
    }
    *expressions += f.http_path.len() + f.http_url.len() + f.dns_query.len();
    if *expressions > MAX_EXPRESSIONS {
        return Err(FilterError::TooMuch(format!(
            "at most {MAX_EXPRESSIONS} regular expressions of a list"
        )));
    }
    Ok(())
}

/// Conditions under construction.
struct Conditions(Vec<Condition>);

impl Conditions {
    /// Any of `values`; no condition without one.
    fn any<T, F>(&mut self, values: Vec<T>, holds: F)
    where
        T: Send + Sync + 'static,
        F: Fn(&Flow, &T) -> bool + Send + Sync + 'static,
    {
        if !values.is_empty() {
            self.0
                .push(Box::new(move |flow| values.iter().any(|v| holds(flow, v))));
        }
    }

    fn any_of<T, R, F>(
        &mut self,
        values: &[T],
        read: impl Fn(&T) -> Result<R, FilterError>,
        holds: F,
    ) -> Result<(), FilterError>
    where
        R: Send + Sync + 'static,
        F: Fn(&Flow, &R) -> bool + Send + Sync + 'static,
    {
        let values = values.iter().map(read).collect::<Result<_, _>>()?;
        self.any(values, holds);
        Ok(())
    }
}

/// Which flow, where and what was decided.
fn identity(f: &FlowFilter, all: &mut Conditions) -> Result<(), FilterError> {
    all.any(f.uuid.clone(), |flow, v| flow.uuid == *v);
    all.any(f.event_type.clone(), |flow, v| {
        flow.event_type.as_ref().is_some_and(|e| {
            (v.r#type == 0 || v.r#type == e.r#type) && (!v.match_sub_type || v.sub_type == e.sub_type)
        })
    });
    all.any(f.verdict.clone(), |flow, v| flow.verdict == *v);
    all.any(f.drop_reason_desc.clone(), |flow, v| flow.drop_reason_desc == *v);
    all.any(f.reply.clone(), |flow, v| flow.is_reply == Some(*v));
    all.any(f.traffic_direction.clone(), |flow, v| {
        flow.traffic_direction == *v
    });
    all.any(f.trace_id.clone(), |flow, v| {
        let parent = flow.trace_context.as_ref().and_then(|t| t.parent.as_ref());
        parent.is_some_and(|p| p.trace_id == *v)
    });
    all.any(f.ip_trace_id.clone(), |flow, v| {
        flow.ip_trace_id.as_ref().is_some_and(|t| t.trace_id == *v)
    });
    all.any(f.interface.clone(), |flow, v| {
        flow.interface
            .as_ref()
            .is_some_and(|i| (v.name.is_empty() || v.name == i.name) && (v.index == 0 || v.index == i.index))
    });
    all.any_of(
        &f.node_name,
        |v| node_pattern(v),
        |flow, (cluster, node)| {
            let (of, name) = flow
                .node_name
                .split_once('/')
                .unwrap_or((CLUSTER, &flow.node_name));
            !name.is_empty()
                && glob::matches(cluster, of, glob::of_name)
                && glob::matches(node, name, glob::of_name)
        },
    )?;
    all.any_of(
        &f.node_labels,
        |v| Ok(Selector::parse(v)?),
        |flow, v| v.matches(&flow.node_labels),
    )
}

/// Who and where to.
fn ends(f: &FlowFilter, all: &mut Conditions) -> Result<(), FilterError> {
    type End = fn(&Flow) -> Option<&pb::Endpoint>;
    let source: End = |flow| flow.source.as_ref();
    let destination: End = |flow| flow.destination.as_ref();
    let sides = [
        (
            source,
            &f.source_pod,
            &f.source_label,
            &f.source_identity,
            &f.source_workload,
            &f.source_cluster_name,
            "source_pod",
        ),
        (
            destination,
            &f.destination_pod,
            &f.destination_label,
            &f.destination_identity,
            &f.destination_workload,
            &f.destination_cluster_name,
            "destination_pod",
        ),
    ];
    for (end, pods, labels, identities, workloads, clusters, field) in sides {
        all.any_of(
            pods,
            |v| Named::read(field, v),
            move |flow, v| end(flow).is_some_and(|e| v.is(&e.namespace, &e.pod_name)),
        )?;
        all.any_of(
            labels,
            |v| Ok(Selector::parse(v)?),
            move |flow, v| v.matches(end(flow).map_or(&[], |e| &e.labels)),
        )?;
        all.any(identities.clone(), move |flow, v| {
            end(flow).map_or(0, |e| e.identity) == *v
        });
        all.any(workloads.clone(), move |flow, v| {
            end(flow).is_some_and(|e| {
                e.workloads.iter().any(|w| {
                    (v.name.is_empty() || v.name == w.name) && (v.kind.is_empty() || v.kind == w.kind)
                })
            })
        });
        all.any(clusters.clone(), move |flow, v| {
            end(flow).is_some_and(|e| e.cluster_name == *v)
        });
    }
    type Service = fn(&Flow) -> Option<&pb::Service>;
    let source: Service = |flow| flow.source_service.as_ref();
    let destination: Service = |flow| flow.destination_service.as_ref();
    for (service, wanted, field) in [
        (source, &f.source_service, "source_service"),
        (destination, &f.destination_service, "destination_service"),
    ] {
        all.any_of(
            wanted,
            |v| Named::read(field, v),
            move |flow, v| service(flow).is_some_and(|s| v.is(&s.namespace, &s.name)),
        )?;
    }
    type Names = fn(&Flow) -> &[String];
    let source: Names = |flow| &flow.source_names;
    let destination: Names = |flow| &flow.destination_names;
    for (known, wanted, field) in [
        (source, &f.source_fqdn, "source_fqdn"),
        (destination, &f.destination_fqdn, "destination_fqdn"),
    ] {
        all.any_of(
            wanted,
            |v| host_pattern(field, v),
            move |flow, v| {
                known(flow)
                    .iter()
                    .any(|name| glob::matches(v, name, glob::of_name))
            },
        )?;
    }
    Ok(())
}

/// Addresses, ports, protocols.
fn layers(f: &FlowFilter, all: &mut Conditions) -> Result<(), FilterError> {
    type Address = fn(&pb::Ip) -> &str;
    let source: Address = |ip| &ip.source;
    let destination: Address = |ip| &ip.destination;
    let translated: Address = |ip| &ip.source_xlated;
    for (address, wanted, field) in [
        (source, &f.source_ip, "source_ip"),
        (destination, &f.destination_ip, "destination_ip"),
        (translated, &f.source_ip_xlated, "source_ip_xlated"),
    ] {
        all.any_of(
            wanted,
            |v| network(field, v),
            move |flow, v| {
                let address = flow.ip.as_ref().and_then(|ip| address(ip).parse::<IpAddr>().ok());
                address.is_some_and(|a| v.contains(&a))
            },
        )?;
    }
    all.any(f.ip_version.clone(), |flow, v| {
        flow.ip.as_ref().map_or(0, |ip| ip.ip_version) == *v
    });
    all.any(f.encrypted.clone(), |flow, v| {
        flow.ip.as_ref().is_some_and(|ip| ip.encrypted) == *v
    });
    all.any_of(
        &f.source_port,
        |v| port("source_port", v),
        |flow, v| ports(flow).is_some_and(|(source, _)| source == *v),
    )?;
    all.any_of(
        &f.destination_port,
        |v| port("destination_port", v),
        |flow, v| ports(flow).is_some_and(|(_, destination)| destination == *v),
    )?;
    all.any_of(&f.protocol, |v| protocol(v), |flow, v| v.is(flow))?;
    all.any(f.tcp_flags.clone(), |flow, v| {
        let Some(pb::layer4::Protocol::Tcp(tcp)) = layer4(flow) else {
            return false;
        };
        let Some(has) = &tcp.flags else { return false };
        [
            (v.fin, has.fin),
            (v.syn, has.syn),
            (v.rst, has.rst),
            (v.psh, has.psh),
            (v.ack, has.ack),
            (v.urg, has.urg),
            (v.ece, has.ece),
            (v.cwr, has.cwr),
            (v.ns, has.ns),
        ]
        .iter()
        .all(|(wanted, is)| !wanted || *is)
    });
    Ok(())
}

fn http(f: &FlowFilter, all: &mut Conditions) -> Result<(), FilterError> {
    let other_events = !f.event_type.is_empty() && f.event_type.iter().all(|t| t.r#type != names::L7);
    for (field, is_asked) in [
        ("filtering by http status code", !f.http_status_code.is_empty()),
        ("filtering by http method", !f.http_method.is_empty()),
        ("filtering by http path", !f.http_path.is_empty()),
        ("filtering by http url", !f.http_url.is_empty()),
        ("filtering by http headers", !f.http_header.is_empty()),
    ] {
        if is_asked && other_events {
            return Err(FilterError::NotL7(field));
        }
    }
    all.any_of(
        &f.http_status_code,
        |v| status(v),
        |flow, (digits, is_whole)| {
            let Some(http) = http_of(flow).filter(|h| h.code != 0) else {
                return false;
            };
            let code = format!("{:03}", http.code);
            if *is_whole {
                code == *digits
            } else {
                code.starts_with(digits)
            }
        },
    )?;
    all.any(f.http_method.clone(), |flow, v| {
        http_of(flow).is_some_and(|h| h.method.eq_ignore_ascii_case(v))
    });
    all.any_of(
        &f.http_path,
        |v| expression("http_path", v),
        |flow, v| http_of(flow).is_some_and(|h| v.is_match(path_of(&h.url))),
    )?;
    all.any_of(
        &f.http_url,
        |v| expression("http_url", v),
        |flow, v| http_of(flow).is_some_and(|h| v.is_match(&h.url)),
    )?;
    all.any(f.http_header.clone(), |flow, v| {
        http_of(flow).is_some_and(|h| {
            h.headers
                .iter()
                .any(|is| is.key.eq_ignore_ascii_case(&v.key) && is.value == v.value)
        })
    });
    all.any_of(
        &f.dns_query,
        |v| expression("dns_query", v),
        |flow, v| {
            let record = flow.l7.as_ref().and_then(|l| l.record.as_ref());
            matches!(record, Some(pb::layer7::Record::Dns(dns)) if v.is_match(&dns.query))
        },
    )
}

fn http_of(flow: &Flow) -> Option<&pb::Http> {
    match flow.l7.as_ref()?.record.as_ref()? {
        pb::layer7::Record::Http(http) => Some(http),
        pb::layer7::Record::Dns(_) => None,
    }
}

/// The path of a URL, without its query.
fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = if url.starts_with('/') {
        url
    } else {
        rest.find('/').map_or("", |at| &rest[at..])
    };
    path.split(['?', '#']).next().unwrap_or_default()
}

fn layer4(flow: &Flow) -> Option<&pb::layer4::Protocol> {
    flow.l4.as_ref()?.protocol.as_ref()
}

fn ports(flow: &Flow) -> Option<(u32, u32)> {
    match layer4(flow)? {
        pb::layer4::Protocol::Tcp(l4) => Some((l4.source_port, l4.destination_port)),
        pb::layer4::Protocol::Udp(l4) => Some((l4.source_port, l4.destination_port)),
        pb::layer4::Protocol::Sctp(l4) => Some((l4.source_port, l4.destination_port)),
        pb::layer4::Protocol::IcmPv4(_) | pb::layer4::Protocol::IcmPv6(_) => None,
    }
}

fn wrong(field: &'static str, value: &str, what: impl Into<String>) -> FilterError {
    FilterError::Value {
        field,
        value: value.chars().take(64).collect(),
        what: what.into(),
    }
}

/// `[namespace/][start of a name]`.
struct Named {
    /// `None`: any.
    namespace: Option<String>,
    start: String,
}

impl Named {
    fn read(field: &'static str, text: &str) -> Result<Self, FilterError> {
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

    fn is(&self, namespace: &str, name: &str) -> bool {
        let there = !namespace.is_empty() || !name.is_empty();
        let wanted = self.namespace.as_ref().is_none_or(|wanted| wanted == namespace);
        there && wanted && name.starts_with(&self.start)
    }
}

fn node_pattern(text: &str) -> Result<(String, String), FilterError> {
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

fn host_pattern(field: &'static str, text: &str) -> Result<String, FilterError> {
    let pattern = text.trim();
    let pattern = pattern.strip_suffix('.').unwrap_or(pattern).to_ascii_lowercase();
    let fits = |c: char| glob::of_name(c) || c == '*';
    if pattern.is_empty() || pattern.ends_with('.') || !pattern.chars().all(fits) {
        return Err(wrong(field, text, "is no name or pattern of names"));
    }
    Ok(pattern)
}

fn network(field: &'static str, text: &str) -> Result<IpNet, FilterError> {
    if text.contains('/') {
        let network: Result<IpNet, _> = text.parse();
        return network.map_err(|_| wrong(field, text, "is no CIDR"));
    }
    let address: Result<IpAddr, _> = text.parse();
    address
        .map(|a| a.to_canonical().into())
        .map_err(|_| wrong(field, text, "is no IP address"))
}

fn port(field: &'static str, text: &str) -> Result<u32, FilterError> {
    let port: Result<u16, _> = text.parse();
    port.map(u32::from).map_err(|_| wrong(field, text, "is no port"))
}

/// "404" as a whole, "4+" and "40+" as the start.
fn status(text: &str) -> Result<(String, bool), FilterError> {
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
fn expression(field: &'static str, text: &str) -> Result<Regex, FilterError> {
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
enum Protocol {
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

fn protocol(text: &str) -> Result<Protocol, FilterError> {
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
    fn is(self, flow: &Flow) -> bool {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "filter_tests.rs"]
mod tests;
