//! The filter flags. Their order counts: `--not` turns the next one around. Flags of the same kind add
//! up; a flag for either end (`--pod`) makes two filters, one of which must match.

use clap::{Arg, ArgAction, ArgMatches, Command, Error, FromArgMatches, error::ErrorKind};
use weft_flows::hubble::names;
use weft_model::NumericIdentity;
use weft_proto::hubble::flow::{
    DropReason, EventTypeFilter, FlowFilter, HttpHeader, IpVersion, NetworkInterface, TcpFlags,
    TrafficDirection, Verdict, Workload,
};

/// Name, short name, value and help of each flag, as Hubble's command line has them. Those without a
/// value's name are switches.
const FLAGS: &[(&str, Option<char>, &str, &str)] = &[
    ("not", None, "", "Leave out what the next filter matches"),
    (
        "verdict",
        None,
        "VERDICT",
        "FORWARDED, DROPPED, AUDIT, REDIRECTED, ERROR, TRACED or TRANSLATED",
    ),
    (
        "type",
        Some('t'),
        "TYPE[:SUBTYPE]",
        "drop, l7, policy-verdict or trace[:to-endpoint, …]",
    ),
    (
        "protocol",
        None,
        "NAME",
        "tcp, udp, sctp, icmp, icmpv4, icmpv6, http or dns",
    ),
    (
        "drop-reason-desc",
        None,
        "REASON",
        "POLICY_DENIED, AUTH_REQUIRED, …",
    ),
    ("traffic-direction", None, "DIRECTION", "ingress or egress"),
    (
        "from-pod",
        None,
        "[NAMESPACE/]POD",
        "From pods whose name begins so; namespace default if none is given",
    ),
    ("to-pod", None, "[NAMESPACE/]POD", "To pods whose name begins so"),
    (
        "pod",
        None,
        "[NAMESPACE/]POD",
        "From or to pods whose name begins so",
    ),
    ("from-namespace", None, "NAMESPACE", "From a namespace"),
    ("to-namespace", None, "NAMESPACE", "To a namespace"),
    ("namespace", Some('n'), "NAMESPACE", "From or to a namespace"),
    ("from-all-namespaces", None, "", "From any namespace"),
    ("to-all-namespaces", None, "", "To any namespace"),
    ("all-namespaces", Some('A'), "", "From or to any namespace"),
    (
        "from-workload",
        None,
        "[KIND/]NAME",
        "From a workload (an app-id: App/cart)",
    ),
    ("to-workload", None, "[KIND/]NAME", "To a workload"),
    ("workload", None, "[KIND/]NAME", "From or to a workload"),
    (
        "from-label",
        None,
        "SELECTOR",
        "From labels: app=cart, reserved:world, 'app in (a,b)'",
    ),
    ("to-label", None, "SELECTOR", "To labels"),
    ("label", Some('l'), "SELECTOR", "From or to labels"),
    (
        "from-identity",
        None,
        "ID",
        "From an identity, by number or reserved name",
    ),
    ("to-identity", None, "ID", "To an identity"),
    ("identity", None, "ID", "From or to an identity"),
    (
        "from-service",
        None,
        "[NAMESPACE/]SERVICE",
        "From Services whose name begins so",
    ),
    (
        "to-service",
        None,
        "[NAMESPACE/]SERVICE",
        "To Services whose name begins so",
    ),
    (
        "service",
        None,
        "[NAMESPACE/]SERVICE",
        "From or to Services whose name begins so",
    ),
    (
        "from-fqdn",
        None,
        "NAME",
        "From a DNS name; * stands for any characters",
    ),
    ("to-fqdn", None, "NAME", "To a DNS name"),
    ("fqdn", None, "NAME", "From or to a DNS name"),
    ("from-ip", None, "IP", "From an address or CIDR"),
    ("to-ip", None, "IP", "To an address or CIDR"),
    ("ip", None, "IP", "From or to an address or CIDR"),
    ("snat-ip", None, "IP", "From an address after translation"),
    ("from-port", None, "PORT", "From a port"),
    ("to-port", None, "PORT", "To a port"),
    ("port", None, "PORT", "From or to a port"),
    ("from-cluster", None, "NAME", "From a cluster"),
    ("to-cluster", None, "NAME", "To a cluster"),
    ("cluster", None, "NAME", "From or to a cluster"),
    ("ipv4", Some('4'), "", "IPv4 only"),
    ("ipv6", Some('6'), "", "IPv6 only"),
    ("ip-version", None, "VERSION", "v4, v6 or none"),
    ("tcp-flags", None, "FLAGS", "All of these: SYN,ACK"),
    ("http-status", None, "CODE", "404, or all that begin so: 4+"),
    ("http-method", None, "METHOD", "GET, POST, …"),
    ("http-path", None, "REGEX", "A regular expression for the path"),
    ("http-url", None, "REGEX", "A regular expression for the URL"),
    ("http-header", None, "NAME:VALUE", "A header"),
    ("node-name", None, "NAME", "Seen by nodes: k8s*, cluster/node"),
    ("node-label", None, "SELECTOR", "Seen by nodes with labels"),
    ("interface", None, "NAME", "Seen at a network interface"),
    ("trace-id", None, "ID", "Of a W3C trace"),
    ("ip-trace-id", None, "ID", "Of an IP trace"),
    ("uuid", None, "UUID", "This one"),
    ("encrypted", None, "", "What travelled encrypted"),
    ("unencrypted", None, "", "What did not"),
    (
        "cel-expression",
        None,
        "EXPRESSION",
        "Not supported by Weft's agents",
    ),
];

/// Flags of one line exclude each other.
const CONFLICTS: &[&[&str]] = &[
    &[
        "from-fqdn",
        "from-ip",
        "ip",
        "fqdn",
        "from-namespace",
        "namespace",
        "from-all-namespaces",
        "all-namespaces",
    ],
    &["from-fqdn", "from-ip", "ip", "fqdn", "from-pod", "pod"],
    &[
        "to-fqdn",
        "to-ip",
        "ip",
        "fqdn",
        "to-namespace",
        "namespace",
        "to-all-namespaces",
        "all-namespaces",
    ],
    &["to-fqdn", "to-ip", "ip", "fqdn", "to-pod", "pod"],
    &["to-pod", "namespace", "all-namespaces"],
    &["from-pod", "namespace", "all-namespaces"],
    &["to-service", "namespace", "all-namespaces"],
    &["from-service", "namespace", "all-namespaces"],
    &["label", "from-label"],
    &["label", "to-label"],
    &["service", "from-service"],
    &["service", "to-service"],
    &["port", "to-port"],
    &["port", "from-port"],
    &["identity", "to-identity"],
    &["identity", "from-identity"],
    &["workload", "to-workload"],
    &["workload", "from-workload"],
    &["encrypted", "unencrypted"],
];

/// What is to be shown, and what is not.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    allow: Tracker,
    deny: Tracker,
}

/// Filters under construction: a flow must match one of the two.
#[derive(Debug, Clone, Default)]
struct Tracker {
    ends: [FlowFilter; 2],
    used: Vec<&'static str>,
    namespaces: Vec<String>,
    from_namespaces: Vec<String>,
    to_namespaces: Vec<String>,
}

impl Filters {
    /// As they are sent.
    pub fn lists(&self) -> (Vec<FlowFilter>, Vec<FlowFilter>) {
        (self.allow.filters(), self.deny.filters())
    }

    fn read(flags: &[(&'static str, String)]) -> Result<Self, String> {
        let mut filters = Self::default();
        let mut is_not = false;
        for (name, value) in flags {
            if *name == "not" {
                if std::mem::replace(&mut is_not, true) {
                    return Err("consecutive --not statements".into());
                }
                continue;
            }
            let tracker = if std::mem::take(&mut is_not) {
                &mut filters.deny
            } else {
                &mut filters.allow
            };
            tracker.set(name, value)?;
        }
        if is_not {
            return Err("trailing --not found in the arguments".into());
        }
        Ok(filters)
    }
}

impl Tracker {
    fn set(&mut self, name: &'static str, value: &str) -> Result<(), String> {
        if !self.used.contains(&name) {
            let groups = CONFLICTS.iter().filter(|group| group.contains(&name));
            let other = groups
                .flat_map(|g| g.iter())
                .find(|other| self.used.contains(other));
            if let Some(other) = other {
                return Err(format!("filters --{other} and --{name} cannot be combined"));
            }
            self.used.push(name);
        }
        let [left, right] = &mut self.ends;
        let text = value.to_owned();
        // A flag for either end: the source of one filter, the destination of the other.
        macro_rules! either {
            ($value:expr, $source:ident, $destination:ident) => {{
                left.$source.push($value);
                right.$destination.push($value);
            }};
        }
        macro_rules! both {
            ($field:ident, $value:expr) => {{
                left.$field.push($value);
                right.$field.push($value);
            }};
        }
        match name {
            "pod" => either!(text.clone(), source_pod, destination_pod),
            "from-pod" => both!(source_pod, text.clone()),
            "to-pod" => both!(destination_pod, text.clone()),
            "fqdn" => either!(text.clone(), source_fqdn, destination_fqdn),
            "from-fqdn" => both!(source_fqdn, text.clone()),
            "to-fqdn" => both!(destination_fqdn, text.clone()),
            "ip" => either!(text.clone(), source_ip, destination_ip),
            "from-ip" => both!(source_ip, text.clone()),
            "to-ip" => both!(destination_ip, text.clone()),
            "snat-ip" => both!(source_ip_xlated, text.clone()),
            "label" => either!(text.clone(), source_label, destination_label),
            "from-label" => both!(source_label, text.clone()),
            "to-label" => both!(destination_label, text.clone()),
            "service" => either!(text.clone(), source_service, destination_service),
            "from-service" => both!(source_service, text.clone()),
            "to-service" => both!(destination_service, text.clone()),
            "port" => either!(text.clone(), source_port, destination_port),
            "from-port" => both!(source_port, text.clone()),
            "to-port" => both!(destination_port, text.clone()),
            "cluster" => either!(text.clone(), source_cluster_name, destination_cluster_name),
            "from-cluster" => both!(source_cluster_name, text.clone()),
            "to-cluster" => both!(destination_cluster_name, text.clone()),
            "workload" => either!(workload(value), source_workload, destination_workload),
            "from-workload" => both!(source_workload, workload(value)),
            "to-workload" => both!(destination_workload, workload(value)),
            "identity" => {
                let number = identity(value)?;
                either!(number, source_identity, destination_identity);
            }
            "from-identity" => {
                let number = identity(value)?;
                both!(source_identity, number);
            }
            "to-identity" => {
                let number = identity(value)?;
                both!(destination_identity, number);
            }
            "namespace" => self.namespaces.push(text),
            "from-namespace" => self.from_namespaces.push(text),
            "to-namespace" => self.to_namespaces.push(text),
            "all-namespaces" => self.namespaces.push(String::new()),
            "from-all-namespaces" => self.from_namespaces.push(String::new()),
            "to-all-namespaces" => self.to_namespaces.push(String::new()),
            "ipv4" => both!(ip_version, IpVersion::IPv4.into()),
            "ipv6" => both!(ip_version, IpVersion::IPv6.into()),
            "ip-version" => {
                let version = match value.to_ascii_lowercase().as_str() {
                    "4" | "v4" | "ipv4" | "ip4" => IpVersion::IPv4,
                    "6" | "v6" | "ipv6" | "ip6" => IpVersion::IPv6,
                    "none" => IpVersion::IpNotUsed,
                    _ => return Err(format!("--ip-version {value}: it is v4, v6 or none")),
                };
                both!(ip_version, version.into());
            }
            "verdict" => {
                let verdict = Verdict::from_str_name(&value.to_ascii_uppercase());
                let verdict = verdict.ok_or_else(|| format!("invalid --verdict value: {value}"))?;
                both!(verdict, verdict.into());
            }
            "drop-reason-desc" => {
                let reason = DropReason::from_str_name(&value.to_ascii_uppercase());
                let reason = reason.ok_or_else(|| format!("invalid --drop-reason-desc value: {value}"))?;
                both!(drop_reason_desc, reason.into());
            }
            "traffic-direction" => {
                let direction = match value.to_ascii_lowercase().as_str() {
                    "ingress" => TrafficDirection::Ingress,
                    "egress" => TrafficDirection::Egress,
                    _ => {
                        return Err(format!(
                            "{value}: invalid traffic direction, expected ingress or egress"
                        ));
                    }
                };
                both!(traffic_direction, direction.into());
            }
            "type" => {
                let event = event_type(value)?;
                both!(event_type, event);
            }
            "tcp-flags" => {
                let flags = tcp_flags(value)?;
                both!(tcp_flags, flags);
            }
            "http-header" => {
                let (key, value) = value
                    .split_once(':')
                    .ok_or_else(|| format!("invalid http-header value {value:?}, expected name:value"))?;
                let header = HttpHeader {
                    key: key.into(),
                    value: value.into(),
                };
                both!(http_header, header.clone());
            }
            "ip-trace-id" => {
                let id = value.parse::<u64>().ok().filter(|id| *id > 0);
                let id = id.ok_or("invalid --ip-trace-id value; must be greater than 0")?;
                both!(ip_trace_id, id);
            }
            "interface" => {
                let name = || NetworkInterface {
                    index: 0,
                    name: value.to_owned(),
                };
                both!(interface, name());
            }
            "protocol" => both!(protocol, text.clone()),
            "http-status" => both!(http_status_code, text.clone()),
            "http-method" => both!(http_method, text.clone()),
            "http-path" => both!(http_path, text.clone()),
            "http-url" => both!(http_url, text.clone()),
            "node-name" => both!(node_name, text.clone()),
            "node-label" => both!(node_labels, text.clone()),
            "trace-id" => both!(trace_id, text.clone()),
            "uuid" => both!(uuid, text.clone()),
            "encrypted" => both!(encrypted, true),
            "unencrypted" => both!(encrypted, false),
            "cel-expression" => return Err("--cel-expression is not supported by Weft's agents".into()),
            other => return Err(format!("--{other} is no filter")),
        }
        self.check_namespaces()
    }

    /// A pod or Service that names its namespace must name one that is asked for.
    fn check_namespaces(&self) -> Result<(), String> {
        let [left, right] = &self.ends;
        for (wanted, names) in [
            (&self.namespaces, [&left.source_pod, &left.source_service]),
            (
                &self.namespaces,
                [&right.destination_pod, &right.destination_service],
            ),
            (&self.from_namespaces, [&left.source_pod, &left.source_service]),
            (
                &self.to_namespaces,
                [&left.destination_pod, &left.destination_service],
            ),
        ] {
            for name in names.into_iter().flatten() {
                let Some((namespace, _)) = name.split_once('/') else {
                    continue;
                };
                if let Some(other) = wanted.iter().find(|w| !namespace.is_empty() && *w != namespace) {
                    return Err(format!("namespace conflict: {other:?} does not contain {name:?}"));
                }
            }
        }
        Ok(())
    }

    fn filters(&self) -> Vec<FlowFilter> {
        let namespaces = [&self.namespaces, &self.from_namespaces, &self.to_namespaces];
        if self.used.is_empty() && namespaces.iter().all(|n| n.is_empty()) {
            return Vec::new();
        }
        let [mut left, mut right] = self.ends.clone();
        for filter in [&mut left, &mut right] {
            within(
                &self.to_namespaces,
                &mut filter.destination_pod,
                &mut filter.destination_service,
            );
            within(
                &self.from_namespaces,
                &mut filter.source_pod,
                &mut filter.source_service,
            );
        }
        within(&self.namespaces, &mut left.source_pod, &mut left.source_service);
        within(
            &self.namespaces,
            &mut right.destination_pod,
            &mut right.destination_service,
        );
        if left == right {
            vec![left]
        } else {
            vec![left, right]
        }
    }
}

/// Puts the namespaces before names that have none; without a name, all of the namespace are meant.
fn within(namespaces: &[String], pods: &mut Vec<String>, services: &mut Vec<String>) {
    if namespaces.is_empty() {
        return;
    }
    if pods.is_empty() && services.is_empty() {
        pods.push(String::new());
    }
    for names in [pods, services] {
        let with = |name: &String| -> Vec<String> {
            if name.contains('/') {
                return vec![name.clone()];
            }
            namespaces.iter().map(|n| format!("{n}/{name}")).collect()
        };
        *names = names.iter().flat_map(with).collect();
    }
}

fn workload(text: &str) -> Workload {
    let (kind, name) = text.split_once('/').unwrap_or(("", text));
    Workload {
        name: name.into(),
        kind: kind.into(),
    }
}

fn identity(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    // Reserved ones are below 256.
    let mut reserved = (0..256).map(NumericIdentity);
    let found = reserved.find(|i| i.reserved_name() == Some(text));
    found.map(|i| i.0).ok_or_else(|| {
        format!("invalid security identity {text:?}: it is a number or a reserved name (world)")
    })
}

fn event_type(text: &str) -> Result<EventTypeFilter, String> {
    let (name, sub) = match text.split_once(':') {
        Some((name, sub)) => (name, Some(sub)),
        None => (text, None),
    };
    let by_name = |list: &[(&str, i32)], name: &str| {
        let found = list
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| *number);
        found.or_else(|| name.parse::<u16>().ok().map(i32::from))
    };
    let number = by_name(&names::EVENT_TYPES, name);
    let number = number.ok_or_else(|| {
        let known: Vec<&str> = names::EVENT_TYPES.iter().map(|(name, _)| *name).collect();
        format!(
            "unknown event type {name:?}: it is one of {}, or a number",
            known.join(", ")
        )
    })?;
    let points: &[(&str, i32)] = if number == names::TRACE {
        &names::TRACE_POINTS
    } else {
        &[]
    };
    let sub_type =
        sub.map(|sub| by_name(points, sub).ok_or_else(|| format!("unknown event sub-type {sub:?}")));
    let sub_type = sub_type.transpose()?;
    Ok(EventTypeFilter {
        r#type: number,
        match_sub_type: sub_type.is_some(),
        sub_type: sub_type.unwrap_or(0),
    })
}

fn tcp_flags(text: &str) -> Result<TcpFlags, String> {
    let mut flags = TcpFlags::default();
    for flag in text.split(',') {
        let place = match flag.trim().to_ascii_uppercase().as_str() {
            "FIN" => &mut flags.fin,
            "SYN" => &mut flags.syn,
            "RST" => &mut flags.rst,
            "PSH" => &mut flags.psh,
            "ACK" => &mut flags.ack,
            "URG" => &mut flags.urg,
            "ECE" => &mut flags.ece,
            "CWR" => &mut flags.cwr,
            "NS" => &mut flags.ns,
            _ => return Err(format!("unknown tcp flag: {flag}")),
        };
        *place = true;
    }
    Ok(flags)
}

impl clap::Args for Filters {
    fn augment_args(command: Command) -> Command {
        FLAGS.iter().fold(command, |command, (name, short, value, help)| {
            let arg = Arg::new(*name)
                .long(*name)
                .help(*help)
                .help_heading("Filters")
                .action(ArgAction::Append);
            let arg = match short {
                Some(short) => arg.short(*short),
                None => arg,
            };
            command.arg(if value.is_empty() {
                // Each one has its place in the order, which counting would lose.
                arg.num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true")
                    .hide_possible_values(true)
                    .value_parser(["true"])
            } else {
                arg.value_name(*value)
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Filters {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut flags = Vec::new();
        for (name, ..) in FLAGS {
            let values = matches.get_many::<String>(name).unwrap_or_default();
            let places = matches.indices_of(name).unwrap_or_default();
            flags.extend(
                places
                    .zip(values)
                    .map(|(place, value)| (place, (*name, value.clone()))),
            );
        }
        flags.sort_by_key(|(place, _)| *place);
        let flags: Vec<(&'static str, String)> = flags.into_iter().map(|(_, flag)| flag).collect();
        Self::read(&flags).map_err(|e| Error::raw(ErrorKind::ValueValidation, format!("{e}\n")))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "filters_tests.rs"]
mod tests;
