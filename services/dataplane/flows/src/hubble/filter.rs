//! What filters mean: within one, each field that is given must match, by one of its values; of
//! several filters one must.

mod bounds;
mod values;

use super::{
    CLUSTER, glob, names,
    selector::{Selector, SelectorError},
};
use bounds::check_bounds;
use std::net::IpAddr;
use values::{Named, expression, host_pattern, network, node_pattern, port, protocol, status};
use weft_proto::hubble::flow::{self as pb, Flow, FlowFilter};

/// Filters of one list.
const MAX_FILTERS: usize = 64;

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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "filter_tests.rs"]
mod tests;
