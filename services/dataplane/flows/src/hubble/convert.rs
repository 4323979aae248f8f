//! From what was recorded to what Hubble's clients read. One record may be several of their events:
//! a request and its answer; what policy said of a packet and what became of it.

use super::layers::{ip, layer4, summary, tcp, tcp_flags};
use crate::{Direction, DropReason, Flow, Kind, Party, Recorded, Verdict, Via, hubble::names};
use std::{sync::Arc, time::SystemTime};
use weft_model::NumericIdentity;
use weft_proto::hubble::flow as pb;

/// What the mesh knows of the ends of a flow. Asked when a flow is read, from any number of readers.
pub trait Directory: Send + Sync {
    /// Labels of an identity, `source:key=value`, sorted; none when it is not known (any more).
    fn labels(&self, identity: NumericIdentity) -> Vec<String>;
    /// The number of a workload on this node; 0 for others.
    fn endpoint(&self, party: &Party) -> u32;
}

/// Whoever makes events of what one agent recorded.
#[derive(Clone)]
pub struct Observer {
    node: Arc<str>,
    run: u64,
    directory: Arc<dyn Directory>,
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// Kind of a workload whose name is a Dapr app-id's.
const APP: &str = "App";
/// Bits of an event's id that say which one of its record it is.
const PART_BITS: u32 = 2;

impl Observer {
    /// Of the node's agent; `run` tells this run's flows from those of the run before.
    pub fn new(node: Arc<str>, run: u64, directory: Arc<dyn Directory>) -> Self {
        Self { node, run, directory }
    }

    /// The node whose flows these are.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The events of one record, in their order; at least one.
    pub fn events(&self, recorded: &Recorded) -> Vec<pb::Flow> {
        let flow = &recorded.flow;
        let base = self.common(flow);
        let mut events = match flow.kind {
            Kind::Invoke
            | Kind::Http
            | Kind::State
            | Kind::Publish
            | Kind::Deliver
            | Kind::Binding
            | Kind::Secret
            | Kind::Configuration
            | Kind::Lock => request(flow, base),
            Kind::Connection | Kind::Closed => vec![connection(flow, base)],
            Kind::Packet => packet(flow, base),
            Kind::Dns => question(flow, base),
        };
        for (part, event) in events.iter_mut().enumerate() {
            event.uuid = self.uuid(recorded.sequence, part as u64);
        }
        events
    }

    /// The same event has the same id whoever reads it: version 8 (RFC 9562), of the run and the number.
    fn uuid(&self, sequence: u64, part: u64) -> String {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.run.to_be_bytes());
        bytes[8..].copy_from_slice(&(sequence << PART_BITS | part).to_be_bytes());
        uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
    }

    fn common(&self, flow: &Flow) -> pb::Flow {
        let (source, destination) = match &flow.packet {
            Some(packet) => (Some(packet.source), Some(packet.destination)),
            None => (flow.source.address, flow.destination.address),
        };
        let mut event = pb::Flow {
            time: Some(flow.time.into()),
            verdict: verdict(flow.verdict).into(),
            ip: Some(ip(source, destination, flow.via == Some(Via::Tunnel))),
            l4: Some(layer4(flow)),
            source: Some(self.endpoint(&flow.source)),
            destination: Some(self.endpoint(&flow.destination)),
            node_name: self.node.to_string(),
            destination_service: flow.service.as_ref().map(|s| pb::Service {
                name: s.name.to_string(),
                namespace: s.namespace.to_string(),
            }),
            traffic_direction: match flow.direction {
                Direction::Egress => pb::TrafficDirection::Egress,
                Direction::Ingress => pb::TrafficDirection::Ingress,
            }
            .into(),
            is_reply: Some(flow.packet.is_some_and(|p| p.reply)),
            trace_context: (flow.trace_id != [0; 16]).then(|| pb::TraceContext {
                parent: Some(pb::TraceParent {
                    trace_id: hex::encode(flow.trace_id),
                }),
            }),
            auth_type: if flow.auth || reason_number(flow.drop_reason) == AUTH_REQUIRED {
                pb::AuthType::Spire.into()
            } else {
                pb::AuthType::Disabled.into()
            },
            emitter: Some(pb::Emitter {
                name: "Weft".into(),
                version: weft_model::VERSION.into(),
            }),
            weft: Some(own(flow)),
            ..Default::default()
        };
        if matches!(flow.verdict, Verdict::Dropped) {
            set_reason(&mut event, reason_number(flow.drop_reason));
        }
        name_policies(&mut event, flow);
        event
    }

    fn endpoint(&self, party: &Party) -> pb::Endpoint {
        let reserved = party.identity.reserved_name();
        let workloads = if party.app_id.is_empty() {
            Vec::new()
        } else {
            vec![pb::Workload {
                name: party.app_id.to_string(),
                kind: APP.into(),
            }]
        };
        let named = party.workload.starts_with("reserved:");
        let pod_name = match (named, party.workload.is_empty()) {
            (true, _) => String::new(),
            // Known by its certificate, and not yet by the registry.
            (false, true) => party.app_id.to_string(),
            (false, false) => party.workload.to_string(),
        };
        pb::Endpoint {
            id: self.directory.endpoint(party),
            identity: party.identity.0,
            namespace: party.namespace.to_string(),
            labels: match reserved {
                Some(name) => vec![format!("reserved:{name}")],
                None => self.directory.labels(party.identity),
            },
            pod_name,
            workloads,
            cluster_name: super::CLUSTER.into(),
        }
    }
}

const POLICY_DENIED: u8 = 133;
const AUTH_REQUIRED: u8 = 189;

/// Hubble's number of a reason; 0 for what has none there.
fn reason_number(reason: Option<DropReason>) -> u8 {
    match reason {
        None | Some(DropReason::UpstreamFailed | DropReason::Unreachable) => 0,
        Some(DropReason::PolicyDenied) => POLICY_DENIED,
        Some(DropReason::AuthRequired) => AUTH_REQUIRED,
        Some(DropReason::NoEndpoint | DropReason::NoRoute) => 158,
        Some(DropReason::Overloaded) => 198,
        Some(DropReason::UnknownCaller) => 172,
        Some(DropReason::PeerMismatch) => 171,
        Some(DropReason::Kernel(number)) => number,
    }
}

fn set_reason(event: &mut pb::Flow, number: u8) {
    event.drop_reason = number.into();
    // A number without a name is told by the older field alone.
    let known = pb::DropReason::try_from(i32::from(number));
    event.drop_reason_desc = known.unwrap_or(pb::DropReason::Unknown).into();
}

fn verdict(verdict: Verdict) -> pb::Verdict {
    match verdict {
        Verdict::Forwarded => pb::Verdict::Forwarded,
        Verdict::Audit => pb::Verdict::Audit,
        Verdict::Dropped => pb::Verdict::Dropped,
        Verdict::Error => pb::Verdict::Error,
    }
}

/// A request, and its answer unless it was refused.
fn request(flow: &Flow, base: pb::Flow) -> Vec<pb::Flow> {
    let url = url(flow);
    let version = flow.version.as_str();
    let line = format!("{} {url}", flow.method.as_str());
    let http = |code: u16| pb::Http {
        code: code.into(),
        method: flow.method.as_str().into(),
        url: url.clone(),
        protocol: version.into(),
        headers: Vec::new(),
    };
    let seven = |event: pb::Flow, kind: pb::L7FlowType, latency_ns: u64, code: u16| pb::Flow {
        r#type: pb::FlowType::L7.into(),
        event_type: Some(event_type(names::L7, 0)),
        l7: Some(pb::Layer7 {
            r#type: kind.into(),
            latency_ns,
            record: Some(pb::layer7::Record::Http(http(code))),
        }),
        ..event
    };
    let latency = u64::try_from(flow.latency.as_nanos()).unwrap_or(u64::MAX);
    let answered = flow.status != 0 && flow.verdict != Verdict::Dropped;
    let mut asked = seven(base.clone(), pb::L7FlowType::Request, 0, 0);
    asked.summary = format!("{version} {line}");
    if !answered {
        return vec![asked];
    }
    if flow.verdict == Verdict::Error {
        // It was let through; that it failed is told by the answer.
        asked.verdict = pb::Verdict::Forwarded.into();
    }
    let mut answer = seven(base, pb::L7FlowType::Response, latency, flow.status);
    answer.summary = format!("{version} {} {}ms ({line})", flow.status, latency / 1_000_000);
    answer.time = Some(
        flow.time
            .checked_add(flow.latency)
            .unwrap_or(SystemTime::now())
            .into(),
    );
    turn(&mut answer);
    vec![asked, answer]
}

/// A question to a resolver, and its answer unless it was refused. Names end with a dot, as Cilium writes them.
fn question(flow: &Flow, base: pb::Flow) -> Vec<pb::Flow> {
    let Some(dns) = flow.dns.as_deref() else {
        return Vec::new();
    };
    let record = pb::Dns {
        query: format!("{}.", dns.query),
        observation_source: "proxy".into(),
        qtypes: vec![dns.kind.clone()],
        ..Default::default()
    };
    let seven = |event: pb::Flow, kind: pb::L7FlowType, latency_ns: u64, record: pb::Dns| pb::Flow {
        r#type: pb::FlowType::L7.into(),
        event_type: Some(event_type(names::L7, 0)),
        l7: Some(pb::Layer7 {
            r#type: kind.into(),
            latency_ns,
            record: Some(pb::layer7::Record::Dns(record)),
        }),
        ..event
    };
    let mut asked = seven(base.clone(), pb::L7FlowType::Request, 0, record.clone());
    asked.summary = format!("DNS Query {} {}", record.query, dns.kind);
    if !dns.answered {
        return vec![asked];
    }
    let latency = u64::try_from(flow.latency.as_nanos()).unwrap_or(u64::MAX);
    let ips: Vec<String> = dns.addresses.iter().map(ToString::to_string).collect();
    let said = match dns.code {
        0 => format!("\"{}\"", ips.join(",")),
        code => format!("RCode: {}", code_name(code)),
    };
    let ttl = if dns.code == 0 {
        format!(" TTL: {}", dns.ttl)
    } else {
        String::new()
    };
    let cnames: Vec<String> = dns.aliases.iter().map(|name| format!("{name}.")).collect();
    let aliases = match cnames.is_empty() {
        true => String::new(),
        false => format!(" (CNAMEs: \"{}\")", cnames.join(",")),
    };
    let summary = format!(
        "DNS Answer {said}{ttl}{aliases} (Proxy {} {})",
        record.query, dns.kind
    );
    let record = pb::Dns {
        ips,
        ttl: dns.ttl,
        cnames,
        rcode: dns.code.into(),
        rrtypes: dns.kinds.clone(),
        ..record
    };
    let mut answer = seven(base, pb::L7FlowType::Response, latency, record);
    answer.summary = summary;
    let time = flow.time.checked_add(flow.latency);
    answer.time = Some(time.unwrap_or(SystemTime::now()).into());
    turn(&mut answer);
    vec![asked, answer]
}

/// A response code as RFC 1035 and 2136 name it, in Hubble's words.
fn code_name(code: u16) -> String {
    let name = match code {
        1 => "Format Error",
        2 => "Server Failure",
        3 => "Non-Existent Domain",
        4 => "Not Implemented",
        5 => "Query Refused",
        _ => return code.to_string(),
    };
    name.to_owned()
}

/// An answer goes the other way.
fn turn(event: &mut pb::Flow) {
    event.is_reply = Some(true);
    std::mem::swap(&mut event.source, &mut event.destination);
    std::mem::swap(&mut event.source_service, &mut event.destination_service);
    if let Some(ip) = &mut event.ip {
        std::mem::swap(&mut ip.source, &mut ip.destination);
    }
    match event.l4.as_mut().and_then(|l4| l4.protocol.as_mut()) {
        Some(pb::layer4::Protocol::Tcp(tcp)) => {
            std::mem::swap(&mut tcp.source_port, &mut tcp.destination_port)
        }
        Some(pb::layer4::Protocol::Udp(udp)) => {
            std::mem::swap(&mut udp.source_port, &mut udp.destination_port)
        }
        _ => {}
    }
    if let Some(weft) = &mut event.weft {
        std::mem::swap(&mut weft.source, &mut weft.destination);
    }
}

fn url(flow: &Flow) -> String {
    if !flow.authority.is_empty() {
        return format!("http://{}{}", flow.authority, flow.path);
    }
    let to = &flow.destination;
    let name = if to.app_id.is_empty() {
        &to.workload
    } else {
        &to.app_id
    };
    format!("http://{name}.{}{}", to.namespace, flow.path)
}

/// What the agent carries byte by byte: as its opening or last packet is seen by the kernel.
fn connection(flow: &Flow, base: pb::Flow) -> pb::Flow {
    let flags = match flow.kind {
        Kind::Closed => tcp_flags(0x11),
        _ => tcp_flags(0x02),
    };
    let l4 = tcp(flow.source_port.into(), flow.destination_port.into(), Some(flags));
    let event = pb::Flow { l4: Some(l4), ..base };
    let number = reason_number(flow.drop_reason);
    if flow.verdict == Verdict::Dropped || flow.verdict == Verdict::Error && number != 0 {
        return dropped(event, number);
    }
    match flow.direction {
        Direction::Egress => traced(event, pb::TraceObservationPoint::ToProxy),
        Direction::Ingress => traced(event, pb::TraceObservationPoint::ToEndpoint),
    }
}

fn packet(flow: &Flow, base: pb::Flow) -> Vec<pb::Flow> {
    let mut events = Vec::with_capacity(2);
    let number = reason_number(flow.drop_reason);
    if flow.verdict == Verdict::Audit || is_policy(number) || (number == 0 && flow.rule.is_some()) {
        let event = pb::Flow {
            r#type: pb::FlowType::L3L4.into(),
            event_type: Some(event_type(names::POLICY_VERDICT, 0)),
            policy_match_type: match_type(flow),
            summary: summary(base.l4.as_ref()),
            ..base.clone()
        };
        events.push(event);
    }
    if flow.verdict == Verdict::Dropped {
        events.push(dropped(base, number));
        return events;
    }
    let point = match flow.direction {
        Direction::Egress => pb::TraceObservationPoint::FromEndpoint,
        Direction::Ingress => pb::TraceObservationPoint::ToEndpoint,
    };
    let mut event = traced(base, point);
    if flow.verdict == Verdict::Audit {
        // What policy would say is told by its own event; the packet went on.
        event.verdict = pb::Verdict::Forwarded.into();
    }
    events.push(event);
    events
}

fn is_policy(number: u8) -> bool {
    matches!(number, POLICY_DENIED | 181 | AUTH_REQUIRED)
}

/// Which parts of a packet a rule looked at, as far as its place in its object tells.
fn match_type(flow: &Flow) -> u32 {
    match flow.rule.as_deref() {
        None => 0,
        Some(rule) if rule.starts_with(NO_RULE) => 0,
        Some(rule) if rule.contains("toPorts") => 2,
        Some(_) => 1,
    }
}

fn dropped(event: pb::Flow, number: u8) -> pb::Flow {
    pb::Flow {
        r#type: pb::FlowType::L3L4.into(),
        event_type: Some(event_type(names::DROP, number.into())),
        summary: summary(event.l4.as_ref()),
        ..event
    }
}

fn traced(event: pb::Flow, point: pb::TraceObservationPoint) -> pb::Flow {
    let sub_type = match point {
        pb::TraceObservationPoint::ToEndpoint => 0,
        other => other.into(),
    };
    pb::Flow {
        r#type: pb::FlowType::L3L4.into(),
        event_type: Some(event_type(names::TRACE, sub_type)),
        trace_observation_point: point.into(),
        summary: summary(event.l4.as_ref()),
        ..event
    }
}

fn event_type(kind: i32, sub_type: i32) -> pb::CiliumEventType {
    pb::CiliumEventType {
        r#type: kind,
        sub_type,
    }
}

const NO_RULE: &str = "no rule of ";

fn name_policies(event: &mut pb::Flow, flow: &Flow) {
    let Some(rule) = flow.rule.as_deref() else { return };
    let policies = policies(rule);
    let allowed = matches!(flow.verdict, Verdict::Forwarded | Verdict::Error) && !rule.starts_with(NO_RULE);
    let asked = match flow.rule_of_callee {
        true => Direction::Ingress,
        false => flow.direction,
    };
    let field = match (asked, allowed) {
        (Direction::Egress, true) => &mut event.egress_allowed_by,
        (Direction::Ingress, true) => &mut event.ingress_allowed_by,
        (Direction::Egress, false) => &mut event.egress_denied_by,
        (Direction::Ingress, false) => &mut event.ingress_denied_by,
    };
    *field = policies;
}

/// The objects that a rule's text names: `Kind/namespace/name: place`, or several behind "no rule of".
/// A text that names none (why nobody was asked, say) has none.
fn policies(rule: &str) -> Vec<pb::Policy> {
    let rules = rule.strip_prefix(NO_RULE).unwrap_or(rule).split(", ");
    let mut found: Vec<pb::Policy> = Vec::new();
    for rule in rules {
        let Some((object, _)) = rule.split_once(": ") else {
            continue;
        };
        let mut parts = object.splitn(3, '/');
        let (Some(kind), Some(namespace), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if kind.is_empty() || name.is_empty() || !kind.chars().all(|c| c.is_ascii_alphanumeric()) {
            continue;
        }
        let mut labels = vec![
            format!("k8s:io.cilium.k8s.policy.derived-from={kind}"),
            format!("k8s:io.cilium.k8s.policy.name={name}"),
        ];
        if !namespace.is_empty() {
            labels.push(format!("k8s:io.cilium.k8s.policy.namespace={namespace}"));
        }
        let policy = pb::Policy {
            name: name.into(),
            namespace: namespace.into(),
            labels,
            revision: 0,
            kind: kind.into(),
        };
        if !found.contains(&policy) {
            found.push(policy);
        }
    }
    found
}

fn own(flow: &Flow) -> pb::Weft {
    let party = |party: &Party| pb::Party {
        app_id: party.app_id.to_string(),
        spiffe_id: party.spiffe_id.to_string(),
        node: party.node.to_string(),
    };
    pb::Weft {
        kind: flow.kind.as_str().into(),
        rule: flow.rule.as_deref().unwrap_or_default().into(),
        route: flow.route.as_deref().unwrap_or_default().into(),
        drop_reason: flow.drop_reason.map(|r| r.as_str().into()).unwrap_or_default(),
        via: flow.via.map(|v| v.as_str().into()).unwrap_or_default(),
        caller_proof: flow.caller_proof.map(|p| p.as_str().into()).unwrap_or_default(),
        source: Some(party(&flow.source)),
        destination: Some(party(&flow.destination)),
        bytes_sent: flow.traffic.map_or(0, |t| t.sent),
        bytes_received: flow.traffic.map_or(0, |t| t.received),
        duration_ns: match flow.kind {
            Kind::Closed => u64::try_from(flow.latency.as_nanos()).unwrap_or(u64::MAX),
            _ => 0,
        },
        forged: flow.forged.iter().map(|name| (*name).to_owned()).collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "convert_tests.rs"]
pub(crate) mod tests;
