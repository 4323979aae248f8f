//! How flows read on a terminal: Hubble's layouts, character by character.

use super::{
    json::{JsonError, to_json},
    names,
};
use std::fmt::Write;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use weft_model::NumericIdentity;
use weft_proto::hubble::{
    flow::{self as pb, Flow, LostEvent},
    observer::{GetFlowsResponse, get_flows_response::ResponseTypes},
    relay::{NodeState, NodeStatusEvent},
};

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// A line per flow.
    Compact,
    /// Each flow as lines of `KEY: VALUE`.
    Dict,
    /// Each message as a JSON object on one line.
    Json,
    /// Columns, printed at the end.
    Table,
}

/// How times are written; always in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimeFormat {
    /// `Jan _2 15:04:05.000`
    #[default]
    StampMilli,
    /// `2006-01-02`
    Day,
    /// `2006-01-02T15Z`
    Hour,
    /// `2006-01-02T15:04Z`
    Minute,
    /// `2006-01-02T15:04:05Z`
    Second,
    /// With so many digits of a second, without zeros at their end.
    Fraction(u8),
    /// `Mon, 02 Jan 2006 15:04:05 +0000`
    Rfc1123,
}

/// Writes flows in one layout.
#[derive(Debug)]
pub struct Printer {
    layout: Layout,
    /// Before each flow, the node that saw it.
    pub node_name: bool,
    /// Behind what policy said, the objects that said so.
    pub policy_names: bool,
    /// Names in place of addresses.
    pub translate: bool,
    /// With colours (not in tables).
    pub color: bool,
    /// How times are written.
    pub time: TimeFormat,
    /// Something was written before.
    begun: bool,
    rows: Vec<Vec<String>>,
}

/// What a message becomes, and where it is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// On the standard output.
    Out(String),
    /// On the standard error output.
    Err(String),
    /// Nothing, or at the end.
    None,
}

const SEPARATOR: &str = "------------\n";
const RED: u8 = 31;
const GREEN: u8 = 32;
const YELLOW: u8 = 33;
const MAGENTA: u8 = 35;
const CYAN: u8 = 36;

impl Printer {
    /// With names for addresses, without colours.
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            node_name: false,
            policy_names: false,
            translate: true,
            color: false,
            time: TimeFormat::default(),
            begun: false,
            rows: Vec::new(),
        }
    }

    /// One message of an answer.
    pub fn write(&mut self, response: &GetFlowsResponse) -> Result<Text, JsonError> {
        let Some(kind) = &response.response_types else {
            return Ok(Text::None);
        };
        if let ResponseTypes::NodeStatus(status) = kind {
            return self.status(response, status);
        }
        if self.layout == Layout::Json {
            let line = to_json("observer.GetFlowsResponse", response)?;
            return Ok(Text::Out(line + "\n"));
        }
        let text = match kind {
            ResponseTypes::Flow(flow) => self.flow(flow),
            ResponseTypes::LostEvents(lost) => self.lost(lost),
            ResponseTypes::NodeStatus(_) => String::new(),
        };
        self.begun = true;
        Ok(if text.is_empty() {
            Text::None
        } else {
            Text::Out(text)
        })
    }

    /// What is written at the end: the table.
    pub fn finish(self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let mut header = vec!["TIMESTAMP", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"];
        if self.node_name {
            header.insert(1, "NODE");
        }
        table(&header, &self.rows)
    }

    fn flow(&mut self, flow: &Flow) -> String {
        let (source, destination) = self.hosts(flow);
        let time = self.time.text(flow.time);
        let kind = flow_type(flow);
        let (verdict, color) = self.verdict(flow);
        let verdict = self.paint(color, &verdict);
        let summary = summary(flow);
        let node = plain(&flow.node_name);
        match self.layout {
            Layout::Compact => {
                let of = |end: &Option<pb::Endpoint>| self.identity(end.as_ref().map_or(0, |e| e.identity));
                let mut from = (source, of(&flow.source));
                let mut to = (destination, of(&flow.destination));
                let arrow = match flow.is_reply {
                    None => "<>",
                    Some(false) => "->",
                    Some(true) => {
                        std::mem::swap(&mut from, &mut to);
                        "<-"
                    }
                };
                let node = if self.node_name {
                    format!(" [{node}]")
                } else {
                    String::new()
                };
                format!(
                    "{time}{node}: {} {} {arrow} {} {} {kind} {verdict} ({summary})\n",
                    from.0, from.1, to.0, to.1
                )
            }
            Layout::Dict => {
                let mut text = if self.begun {
                    SEPARATOR.to_owned()
                } else {
                    String::new()
                };
                let _ = writeln!(text, "  TIMESTAMP: {time}");
                if self.node_name {
                    let _ = writeln!(text, "       NODE: {node}");
                }
                let _ = write!(
                    text,
                    "     SOURCE: {source}\nDESTINATION: {destination}\n       TYPE: {kind}\n    VERDICT: \
                     {verdict}\n    SUMMARY: {summary}\n"
                );
                text
            }
            Layout::Table => {
                let mut row = vec![time, source, destination, kind, verdict, summary];
                if self.node_name {
                    row.insert(1, node);
                }
                self.rows.push(row);
                String::new()
            }
            Layout::Json => String::new(),
        }
    }

    fn lost(&mut self, lost: &LostEvent) -> String {
        let source = lost.source().as_str_name();
        let (cpu, count) = (lost.cpu.unwrap_or_default(), lost.num_events_lost);
        match self.layout {
            Layout::Compact => format!("EVENTS LOST: {source} CPU({cpu}) {count}\n"),
            Layout::Dict => {
                let separator = if self.begun { SEPARATOR } else { "" };
                let node = if self.node_name { "       NODE: \n" } else { "" };
                format!(
                    "{separator}  TIMESTAMP: \n{node}     SOURCE: {source}\n       TYPE: EVENTS LOST\n    \
                     VERDICT: \n    SUMMARY: CPU({cpu}) - {count}\n"
                )
            }
            Layout::Table => {
                let text = format!("CPU({cpu}) - {count}");
                let mut row = ["", source, "", "EVENTS LOST", "", &text]
                    .map(str::to_owned)
                    .to_vec();
                if self.node_name {
                    row.insert(1, String::new());
                }
                self.rows.push(row);
                String::new()
            }
            Layout::Json => String::new(),
        }
    }

    /// How a server that asks others stands with them: only what is wrong is told.
    fn status(&mut self, response: &GetFlowsResponse, status: &NodeStatusEvent) -> Result<Text, JsonError> {
        let what = match status.state_change() {
            NodeState::NodeError => format!("Error {:?} on", status.message),
            NodeState::NodeUnavailable => String::new(),
            _ => return Ok(Text::None),
        };
        if self.layout == Layout::Json {
            return Ok(Text::Err(to_json("observer.GetFlowsResponse", response)? + "\n"));
        }
        let (count, names) = (status.node_names.len(), plain(&cut(&status.node_names)));
        let text = if what.is_empty() {
            format!("{count} nodes are unavailable: {names}")
        } else {
            format!("{} {count} nodes: {names}", plain(&what))
        };
        let time = self.time.text(response.time);
        Ok(Text::Err(format!(
            "{time} [{}]: {text}\n",
            plain(&response.node_name)
        )))
    }

    fn hosts(&self, flow: &Flow) -> (String, String) {
        let Some(ip) = &flow.ip else {
            let ethernet = flow.ethernet.as_ref();
            let side = |text: Option<&String>| text.map(|t| self.paint(CYAN, &plain(t))).unwrap_or_default();
            return (
                side(ethernet.map(|e| &e.source)),
                side(ethernet.map(|e| &e.destination)),
            );
        };
        let (from, to) = ports(flow);
        (
            self.host(
                &ip.source,
                from,
                flow.source.as_ref(),
                flow.source_service.as_ref(),
                &flow.source_names,
            ),
            self.host(
                &ip.destination,
                to,
                flow.destination.as_ref(),
                flow.destination_service.as_ref(),
                &flow.destination_names,
            ),
        )
    }

    fn host(
        &self,
        ip: &str,
        port: Option<u32>,
        end: Option<&pb::Endpoint>,
        service: Option<&pb::Service>,
        names: &[String],
    ) -> String {
        let join = |namespace: &str, name: &str| match namespace {
            "" => name.to_owned(),
            namespace => format!("{namespace}/{name}"),
        };
        let mut host = ip.to_owned();
        if self.translate {
            let pod = end.filter(|e| !e.pod_name.is_empty());
            if let Some(pod) = pod {
                // As Hubble does it, where a Service is known its namespace is shown.
                host = join(service.map_or(&pod.namespace, |s| &s.namespace), &pod.pod_name);
            } else if let Some(service) = service.filter(|s| !s.name.is_empty()) {
                host = join(&service.namespace, &service.name);
            } else if !names.is_empty() {
                host = names.join(",");
            }
        }
        let host = plain(&host);
        match port.filter(|p| *p != 0) {
            Some(port) => {
                let port = self.paint(YELLOW, &port.to_string());
                let host = if host.contains(':') {
                    format!("[{host}]")
                } else {
                    host
                };
                self.paint(CYAN, &format!("{host}:{port}"))
            }
            None => self.paint(CYAN, &host),
        }
    }

    fn identity(&self, number: u32) -> String {
        let text = match NumericIdentity(number).reserved_name() {
            Some(name) => format!("({name})"),
            None => format!("(ID:{number})"),
        };
        self.paint(MAGENTA, &text)
    }

    fn verdict(&self, flow: &Flow) -> (String, u8) {
        let is_policy = flow.event_type.is_some_and(|e| e.r#type == names::POLICY_VERDICT);
        let by = |egress: &[pb::Policy], ingress: &[pb::Policy]| match flow.traffic_direction() {
            _ if !self.policy_names => String::new(),
            pb::TrafficDirection::Egress => policy_names(egress),
            pb::TrafficDirection::Ingress => policy_names(ingress),
            pb::TrafficDirection::Unknown => String::new(),
        };
        let own = || match pb::Verdict::try_from(flow.verdict) {
            Ok(verdict) => verdict.as_str_name().to_owned(),
            Err(_) => flow.verdict.to_string(),
        };
        match flow.verdict() {
            pb::Verdict::Forwarded | pb::Verdict::Redirected if is_policy => {
                let by = by(&flow.egress_allowed_by, &flow.ingress_allowed_by);
                (format!("ALLOWED{by}"), GREEN)
            }
            pb::Verdict::Forwarded | pb::Verdict::Redirected => (own(), GREEN),
            pb::Verdict::Dropped | pb::Verdict::Error if is_policy => (
                format!("DENIED{}", by(&flow.egress_denied_by, &flow.ingress_denied_by)),
                RED,
            ),
            pb::Verdict::Dropped | pb::Verdict::Error => (own(), RED),
            pb::Verdict::Audit if is_policy => ("AUDITED".into(), YELLOW),
            pb::Verdict::Audit | pb::Verdict::Traced | pb::Verdict::Translated => (own(), YELLOW),
            pb::Verdict::Unknown => (own(), 0),
        }
    }

    /// `text` in a colour, which goes on behind what is painted inside.
    fn paint(&self, color: u8, text: &str) -> String {
        if !self.color || self.layout == Layout::Table || color == 0 {
            return text.to_owned();
        }
        format!("\x1b[{color}m{text}\x1b[0m")
    }
}

fn policy_names(policies: &[pb::Policy]) -> String {
    let named = policies
        .iter()
        .filter(|p| !p.kind.is_empty() && !p.name.is_empty());
    let named: Vec<String> = named.map(|p| format!("{} ({})", p.name, p.kind)).collect();
    if named.is_empty() {
        return String::new();
    }
    plain(&format!(" BY {}", named.join(", ")))
}

fn ports(flow: &Flow) -> (Option<u32>, Option<u32>) {
    use pb::layer4::Protocol as P;
    match flow.l4.as_ref().and_then(|l| l.protocol.as_ref()) {
        Some(P::Tcp(l4)) => (Some(l4.source_port), Some(l4.destination_port)),
        Some(P::Udp(l4)) => (Some(l4.source_port), Some(l4.destination_port)),
        Some(P::Sctp(l4)) => (Some(l4.source_port), Some(l4.destination_port)),
        Some(P::IcmPv4(_) | P::IcmPv6(_)) | None => (None, None),
    }
}

/// What stands in the TYPE column.
pub fn flow_type(flow: &Flow) -> String {
    if let Some(seven) = &flow.l7 {
        let kind = match seven.r#type() {
            pb::L7FlowType::Request => "request",
            pb::L7FlowType::Response => "response",
            pb::L7FlowType::Sample => "sample",
            pb::L7FlowType::UnknownL7Type => "unknown_l7_type",
        };
        return match &seven.record {
            Some(pb::layer7::Record::Http(_)) => format!("http-{kind}"),
            Some(pb::layer7::Record::Dns(dns)) => format!("dns-{kind} {}", plain(&dns.observation_source)),
            None => format!("l7-{kind}"),
        };
    }
    let event = flow.event_type.unwrap_or_default();
    match event.r#type {
        names::TRACE => names::trace_point(event.sub_type),
        names::DROP => names::drop_text(event.sub_type),
        names::POLICY_VERDICT => format!(
            "policy-verdict:{} {}",
            names::match_text(flow.policy_match_type),
            flow.traffic_direction().as_str_name()
        ),
        _ => "UNKNOWN".into(),
    }
}

fn summary(flow: &Flow) -> String {
    let mut text = String::new();
    if let Some(trace) = flow.ip_trace_id.filter(|t| t.trace_id > 0) {
        let _ = write!(text, "IP Trace ID: {}; ", trace.trace_id);
    }
    text.push_str(&plain(&flow.summary));
    if flow.auth_type() != pb::AuthType::Disabled {
        let _ = write!(text, "; Auth: {}", flow.auth_type().as_str_name());
    }
    text
}

/// A text of an outsider as it may be printed: it moves no cursor and ends no line.
fn plain(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\x1b' => safe.push_str("^["),
            c if c.is_control() => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    safe
}

/// Names up to about fifty characters; how many more there are.
fn cut(names: &[String]) -> String {
    let (mut length, mut shown) = (0, 0);
    for name in names {
        length += name.len() + 2;
        if length > 50 && shown > 0 {
            break;
        }
        shown += 1;
    }
    let text = names[..shown].join(", ");
    match names.len() - shown {
        0 => text,
        more => format!("{text} (and {more} more)"),
    }
}

/// Lines up columns, three spaces between them.
fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|h| h.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let header: Vec<String> = header.iter().map(|h| (*h).to_owned()).collect();
    for row in std::iter::once(&header).chain(rows) {
        for (at, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if at + 1 < row.len() {
                let gap = widths[at] + 3 - cell.chars().count();
                text.extend(std::iter::repeat_n(' ', gap));
            }
        }
        text.push('\n');
    }
    text
}

impl TimeFormat {
    /// By the name that `--time-format` takes.
    pub fn by_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "stampmilli" => Self::StampMilli,
            "yearmonthday" => Self::Day,
            "yearmonthdayhour" => Self::Hour,
            "yearmonthdayhourminute" => Self::Minute,
            "rfc3339" => Self::Second,
            "rfc3339milli" => Self::Fraction(3),
            "rfc3339micro" => Self::Fraction(6),
            "rfc3339nano" => Self::Fraction(9),
            "rfc1123z" => Self::Rfc1123,
            _ => return None,
        })
    }

    /// A time; "N/A" where there is none.
    pub fn text(self, time: Option<prost_types::Timestamp>) -> String {
        let none = || "N/A".to_owned();
        let Some(time) = time else { return none() };
        let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
        let Ok(t) = OffsetDateTime::from_unix_timestamp_nanos(nanos) else {
            return none();
        };
        let month = |t: OffsetDateTime| t.month().to_string()[..3].to_owned();
        let (h, m, s, milli) = t.to_hms_milli();
        let date = format!("{:04}-{:02}-{:02}", t.year(), u8::from(t.month()), t.day());
        match self {
            Self::StampMilli => format!("{} {:>2} {h:02}:{m:02}:{s:02}.{milli:03}", month(t), t.day()),
            Self::Day => date,
            Self::Hour => format!("{date}T{h:02}Z"),
            Self::Minute => format!("{date}T{h:02}:{m:02}Z"),
            Self::Second => format!("{date}T{h:02}:{m:02}:{s:02}Z"),
            Self::Fraction(digits) => {
                let step = 10_u32.pow(9 - u32::from(digits.min(9)));
                let nanosecond = t.nanosecond() / step * step;
                let cut = t.replace_nanosecond(nanosecond).unwrap_or(t);
                cut.format(&Rfc3339).unwrap_or_else(|_| none())
            }
            Self::Rfc1123 => format!(
                "{}, {:02} {} {:04} {h:02}:{m:02}:{s:02} +0000",
                &t.weekday().to_string()[..3],
                t.day(),
                month(t),
                t.year()
            ),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "print_tests.rs"]
mod tests;
