//! Policy sets as `weft.policy.v1` carries them.

use crate::{CidrPeer, DirectionPolicy, Entry, MAX_SELECTED_BY, Peers, PolicySet, Ports, RuleRef};
use ipnet::IpNet;
use std::sync::Arc;
use weft_model::NumericIdentity;
use weft_proto::weft::policy::v1 as pb;
use weft_resources::{Authentication, HttpRule, MAX_HEADERS, MAX_HTTP_RULES, MAX_NAME_RULES, NameRule};

/// Why a received set can not be used. The receiver refuses all of it: a set with a hole is open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy set {set:?}, {direction} entry {entry}: {problem}")]
pub struct WireError {
    set: String,
    direction: &'static str,
    entry: usize,
    problem: String,
}

impl From<&PolicySet> for pb::PolicySet {
    fn from(set: &PolicySet) -> Self {
        Self {
            id: set.id().to_owned(),
            ingress: Some(direction_to_wire(set.ingress())),
            egress: Some(direction_to_wire(set.egress())),
        }
    }
}

impl TryFrom<&pb::PolicySet> for PolicySet {
    type Error = WireError;

    fn try_from(set: &pb::PolicySet) -> Result<Self, WireError> {
        let direction = |policy: &Option<pb::DirectionPolicy>, name: &'static str| {
            let policy = policy.as_ref().ok_or_else(|| WireError {
                set: set.id.clone(),
                direction: name,
                entry: 0,
                problem: "the direction is missing".into(),
            })?;
            let mut entries = Vec::with_capacity(policy.entries.len());
            for (at, entry) in policy.entries.iter().enumerate() {
                entries.push(entry_from_wire(entry).map_err(|problem| WireError {
                    set: set.id.clone(),
                    direction: name,
                    entry: at,
                    problem,
                })?);
            }
            Ok(DirectionPolicy {
                default_deny: policy.default_deny,
                selected_by: policy
                    .selected_by
                    .iter()
                    .take(MAX_SELECTED_BY)
                    .map(|r| Arc::new(rule_from_wire(r)))
                    .collect(),
                entries,
            })
        };
        let ingress = direction(&set.ingress, "ingress")?;
        let egress = direction(&set.egress, "egress")?;
        let result = PolicySet::with_id(set.id.as_str().into(), ingress, egress);
        result.check_requests().map_err(|(direction, bad)| WireError {
            set: set.id.clone(),
            direction,
            entry: bad.entry,
            problem: bad.problem,
        })?;
        Ok(result)
    }
}

fn direction_to_wire(policy: &DirectionPolicy) -> pb::DirectionPolicy {
    pb::DirectionPolicy {
        default_deny: policy.default_deny,
        entries: policy.entries.iter().map(entry_to_wire).collect(),
        selected_by: policy.selected_by.iter().map(|r| rule_to_wire(r)).collect(),
    }
}

fn entry_to_wire(entry: &Entry) -> pb::PolicyEntry {
    let (port, end_port) = match entry.ports {
        Ports::Any => (0, 0),
        Ports::Range(first, last) if first == last => (first, 0),
        Ports::Range(first, last) => (first, last),
    };
    let cidrs = entry.peers.cidrs.iter().map(|c| pb::CidrPeer {
        cidr: c.cidr.to_string(),
        except: c.except.iter().map(IpNet::to_string).collect(),
    });
    pb::PolicyEntry {
        deny: entry.deny,
        any_peer: entry.peers.any,
        identities: entry.peers.identities.iter().map(|i| i.0).collect(),
        cidrs: cidrs.collect(),
        protocol: entry.protocol.map_or(0, u32::from),
        port: u32::from(port),
        end_port: u32::from(end_port),
        rule: Some(rule_to_wire(&entry.rule)),
        redirect: entry.redirect,
        authenticated: entry.auth == Authentication::Required,
        unauthenticated: entry.auth == Authentication::Disabled,
        http: entry.http.iter().map(request_to_wire).collect(),
        dns: entry.dns.iter().map(name_to_wire).collect(),
        names: entry.peers.names.iter().map(name_to_wire).collect(),
    }
}

fn name_to_wire(rule: &NameRule) -> pb::NameRule {
    use pb::name_rule::Rule;
    let rule = match rule {
        NameRule::Name(name) => Rule::Name(name.clone()),
        NameRule::Pattern(pattern) => Rule::Pattern(pattern.clone()),
    };
    pb::NameRule { rule: Some(rule) }
}

fn names_from_wire<C: FromIterator<NameRule>>(rules: &[pb::NameRule]) -> Result<C, String> {
    use pb::name_rule::Rule;
    if rules.len() > MAX_NAME_RULES {
        return Err(format!("{} names, at most {MAX_NAME_RULES}", rules.len()));
    }
    let one = |rule: &pb::NameRule| match &rule.rule {
        Some(Rule::Name(name)) => NameRule::new(name, false),
        Some(Rule::Pattern(pattern)) => NameRule::new(pattern, true),
        None => Err("a name of a kind that is not known".into()),
    };
    rules.iter().map(one).collect()
}

fn request_to_wire(rule: &HttpRule) -> pb::HttpRule {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let header = |(name, value): &(String, Option<String>)| pb::HttpHeader {
        name: name.clone(),
        value: value.clone(),
    };
    pb::HttpRule {
        path: text(&rule.path),
        method: text(&rule.method),
        host: text(&rule.host),
        headers: rule.headers.iter().map(header).collect(),
    }
}

fn request_from_wire(rule: &pb::HttpRule) -> Result<HttpRule, String> {
    let text = |part: &str| Some(part.to_owned()).filter(|p| !p.is_empty());
    if rule.headers.len() > MAX_HEADERS {
        let found = rule.headers.len();
        return Err(format!("{found} headers in a rule, at most {MAX_HEADERS}"));
    }
    let header = |header: &pb::HttpHeader| (header.name.to_ascii_lowercase(), header.value.clone());
    Ok(HttpRule {
        path: text(&rule.path),
        method: text(&rule.method),
        host: text(&rule.host),
        headers: rule.headers.iter().map(header).collect(),
    })
}

/// The rule in its wire form, for flows and explanations.
pub fn rule_to_wire(rule: &RuleRef) -> pb::RuleRef {
    pb::RuleRef {
        kind: rule.kind.clone(),
        namespace: rule.namespace.clone(),
        name: rule.name.clone(),
        path: rule.path.clone(),
    }
}

fn rule_from_wire(rule: &pb::RuleRef) -> RuleRef {
    RuleRef {
        kind: rule.kind.clone(),
        namespace: rule.namespace.clone(),
        name: rule.name.clone(),
        path: rule.path.clone(),
    }
}

fn entry_from_wire(entry: &pb::PolicyEntry) -> Result<Entry, String> {
    let number = |what: &str, n: u32, most: u32| {
        if n > most {
            Err(format!("{what} {n} is above {most}"))
        } else {
            Ok(n)
        }
    };
    let protocol = number("protocol", entry.protocol, 255)? as u8;
    let first = number("port", entry.port, 65_535)? as u16;
    let last = number("end_port", entry.end_port, 65_535)? as u16;
    let ports = match (first, last) {
        (0, 0) => Ports::Any,
        (0, _) => return Err("end_port without port".into()),
        (_, 0) => Ports::Range(first, first),
        _ if last < first => return Err(format!("end_port {last} is below port {first}")),
        _ => Ports::Range(first, last),
    };
    let net = |text: &str| {
        let net: IpNet = text.parse().map_err(|e| format!("CIDR {text:?}: {e}"))?;
        // The kernel keeps IPv4 there: it would mean something else than elsewhere.
        let mapped =
            matches!(net, IpNet::V6(n) if n.prefix_len() >= 96 && n.addr().to_ipv4_mapped().is_some());
        if mapped {
            return Err(format!("CIDR {text:?}: write IPv4 as IPv4"));
        }
        Ok(net.trunc())
    };
    let mut cidrs = Vec::with_capacity(entry.cidrs.len());
    for cidr in &entry.cidrs {
        let except = cidr
            .except
            .iter()
            .map(|e| net(e))
            .collect::<Result<Vec<_>, _>>()?;
        cidrs.push(CidrPeer {
            cidr: net(&cidr.cidr)?,
            except,
        });
    }
    if entry.http.len() > MAX_HTTP_RULES {
        let found = entry.http.len();
        return Err(format!("{found} rules about requests, at most {MAX_HTTP_RULES}"));
    }
    if !(entry.redirect || entry.http.is_empty() && entry.dns.is_empty()) {
        return Err("rules about requests without redirect".into());
    }
    let http = entry.http.iter().map(request_from_wire);
    let http = http.collect::<Result<Arc<[_]>, _>>()?;
    let rule = rule_from_wire(entry.rule.as_ref().unwrap_or(&pb::RuleRef::default()));
    Ok(Entry {
        deny: entry.deny,
        rule: Arc::new(rule),
        protocol: (protocol != 0).then_some(protocol),
        ports,
        redirect: entry.redirect,
        auth: match (entry.authenticated, entry.unauthenticated) {
            (true, _) => Authentication::Required,
            (false, true) => Authentication::Disabled,
            (false, false) => Authentication::Unsaid,
        },
        http,
        dns: names_from_wire(&entry.dns)?,
        peers: Peers {
            any: entry.any_peer,
            identities: entry.identities.iter().map(|i| NumericIdentity(*i)).collect(),
            cidrs,
            names: names_from_wire(&entry.names)?,
        },
    })
}
