//! What network policies say, read sentence by sentence from the manifests for each single question.
//!
//! For tests only. Nothing is compiled, indexed or kept, and no code is shared with what parses, compiles
//! or enforces policies: where this and the engine (or the kernel) disagree, one of them is wrong. It
//! takes manifests that are legal; of others it says nothing useful. Groups of addresses, Services and what names
//! resolve to ([`generate::resolved`]) are looked up among them; which port a workload calls by which name says [`generate::named_ports`].
//!
//! [`generate`] makes up manifests and questions about them.

mod cilium;
pub mod generate;
mod kubernetes;
mod names;
mod proof;
mod request;
mod selector;

use serde_json::Value;
use std::net::IpAddr;
use weft_model::Labels;

/// Which way a connection goes, as the workload sees it whose policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Somebody connects to it.
    Ingress,
    /// It connects to somebody.
    Egress,
}

/// The other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A workload of the cluster, by its labels.
    Workload(Labels),
    /// A peer with a name of its own in the cluster: `host`, `remote-node`, `health`, …
    Reserved(&'static str),
    /// In the cluster; more is not known yet.
    Unknown,
    /// Outside the cluster, at an address.
    Outside(IpAddr),
}

/// What is sent: the first packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// IANA protocol number.
    pub protocol: u8,
    /// The port at the callee; for ICMP the message's type.
    pub number: u16,
}

/// An HTTP request on a connection.
#[derive(Debug, Clone)]
pub struct Request {
    /// Method.
    pub method: &'static str,
    /// Path with its query.
    pub path: &'static str,
    /// Host, with its port if the client says it.
    pub host: &'static str,
    /// Headers, in order.
    pub headers: Vec<(&'static str, &'static str)>,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestAnswer {
    /// Its connection passes, and nobody looks into it.
    Unread,
    /// A rule allows this request.
    Allow,
    /// Its connection passes for other requests.
    Refuse,
    /// A rule refuses its connection.
    Deny,
    /// No rule allows its connection.
    DefaultDeny,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It passes.
    Allow {
        /// As far as the proxy lets it: no rule allows it without looking into it.
        proxy: bool,
        /// If both ends are proven: what says most precisely whom and what it allows demands so.
        proof: bool,
    },
    /// A rule refuses it.
    Deny,
    /// No rule allows it, and some rule selects the workload in that direction.
    DefaultDeny,
}

/// What one object says to one question.
#[derive(Debug, Default)]
struct Said {
    /// Closes the direction.
    selects: bool,
    /// A rule refuses it.
    denies: bool,
    /// Each way in which a rule allows it.
    allows: Vec<Way>,
}

#[derive(Debug)]
struct Way {
    /// By proxy, if one of these rules means the request.
    http: Option<Vec<Value>>,
    /// By proxy, if one of these rules means the name that is asked for.
    dns: Option<Vec<Value>>,
    /// What it says of proof, if anything: whether it is needed.
    proof: Option<bool>,
    /// It names nobody, but anybody.
    anybody: bool,
    /// How precisely it names what is sent: in bits, 8 for the protocol, 16 for a port, fewer for a block of
    /// ports, the largest one inside of its range.
    bits: u8,
}

impl Way {
    fn is_by_proxy(&self) -> bool {
        self.http.is_some() || self.dns.is_some()
    }
}

/// What all `objects` together say about one connection of `subject`.
pub fn judge(
    objects: &[Value],
    subject: &Labels,
    direction: Direction,
    peer: &Peer,
    traffic: Traffic,
) -> Answer {
    let all = ask(objects, subject, direction, peer, traffic);
    if all.iter().any(|said| said.denies) {
        return Answer::Deny;
    }
    let mut allows = all.iter().flat_map(|said| &said.allows).peekable();
    if allows.peek().is_some() {
        let allows: Vec<_> = allows.collect();
        return Answer::Allow {
            proxy: allows.iter().all(|way| way.is_by_proxy()),
            proof: proof::is_needed(&allows),
        };
    }
    if all.iter().any(|said| said.selects) {
        return Answer::DefaultDeny;
    }
    Answer::Allow {
        proxy: false,
        proof: false,
    }
}

/// What all `objects` together say about one request on a TCP connection.
pub fn judge_request(
    objects: &[Value],
    subject: &Labels,
    direction: Direction,
    peer: &Peer,
    traffic: Traffic,
    request: &Request,
) -> RequestAnswer {
    match judge(objects, subject, direction, peer, traffic) {
        Answer::Deny => return RequestAnswer::Deny,
        Answer::DefaultDeny => return RequestAnswer::DefaultDeny,
        Answer::Allow { proxy: false, .. } => return RequestAnswer::Unread,
        Answer::Allow { proxy: true, .. } => {}
    }
    let all = ask(objects, subject, direction, peer, traffic);
    let rules = all
        .iter()
        .flat_map(|said| &said.allows)
        .filter_map(|way| way.http.as_ref());
    if rules.flatten().any(|rule| request::is_meant(rule, request)) {
        RequestAnswer::Allow
    } else {
        RequestAnswer::Refuse
    }
}

/// What all `objects` together say about asking a resolver for a name.
pub fn judge_query(
    objects: &[Value],
    subject: &Labels,
    peer: &Peer,
    traffic: Traffic,
    name: &str,
) -> RequestAnswer {
    match judge(objects, subject, Direction::Egress, peer, traffic) {
        Answer::Deny => return RequestAnswer::Deny,
        Answer::DefaultDeny => return RequestAnswer::DefaultDeny,
        Answer::Allow { proxy: false, .. } => return RequestAnswer::Unread,
        Answer::Allow { proxy: true, .. } => {}
    }
    let all = ask(objects, subject, Direction::Egress, peer, traffic);
    let mut rules = all
        .iter()
        .flat_map(|said| &said.allows)
        .filter_map(|way| way.dns.as_ref())
        .flatten();
    if rules.any(|rule| names::is_meant(rule, name)) {
        RequestAnswer::Allow
    } else {
        RequestAnswer::Refuse
    }
}

fn ask(
    objects: &[Value],
    subject: &Labels,
    direction: Direction,
    peer: &Peer,
    traffic: Traffic,
) -> Vec<Said> {
    let one = |object: &Value| match object["kind"].as_str() {
        Some("NetworkPolicy") => kubernetes::ask(object, subject, direction, peer, traffic),
        Some("CiliumNetworkPolicy" | "CiliumClusterwideNetworkPolicy") => {
            cilium::ask(object, objects, subject, direction, peer, traffic)
        }
        _ => Said::default(),
    };
    objects.iter().map(one).collect()
}

/// A list's elements; none when it is absent.
fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Whether an address lies in a range, or is the address given in place of one.
fn contains(range: &Value, address: IpAddr) -> bool {
    let text = range.as_str().unwrap_or_default();
    match text.parse::<ipnet::IpNet>() {
        Ok(net) => net.contains(&address),
        Err(_) => text.parse() == Ok(address),
    }
}

/// Whether a port is meant by its name: whoever is called has one of this number that it calls so.
fn is_named(port: &Value, protocol: Option<u8>, traffic: Traffic, callee: Option<&Labels>) -> Option<bool> {
    let name = port.as_str().filter(|p| p.parse::<u16>().is_err())?;
    let named = callee.map(generate::named_ports).unwrap_or_default();
    Some(named.iter().any(|(own, own_protocol, number)| {
        *own == name
            && *own_protocol == traffic.protocol
            && *number == traffic.number
            && protocol.is_none_or(|wanted| wanted == traffic.protocol)
    }))
}

/// How precisely a range of ports names one of them.
fn bits(first: u16, last: u16, port: u16) -> u8 {
    let (first, last, mut block) = (u32::from(first), u32::from(last), 1u32);
    // As long as twice as many ports around it are all of them in the range.
    while block < 0x8000 {
        let larger = block * 2;
        let start = u32::from(port) / larger * larger;
        if start < first || start + larger - 1 > last {
            break;
        }
        block = larger;
    }
    // Eight bits of the protocol, and those that a block of this size leaves.
    24 - block.ilog2() as u8
}

/// Going out, a port by name is the peer's own port of that name: it names the peer.
fn names_peer(direction: Direction, port: &Value) -> bool {
    let by_name = port.as_str().is_some_and(|p| p.parse::<u16>().is_err());
    direction == Direction::Egress && by_name
}

/// Who is called.
fn callee<'a>(direction: Direction, subject: &'a Labels, peer: &'a Peer) -> Option<&'a Labels> {
    match (direction, peer) {
        (Direction::Ingress, _) => Some(subject),
        (Direction::Egress, Peer::Workload(labels)) => Some(labels),
        (Direction::Egress, _) => None,
    }
}

/// A port in digits or as a number; 0 when absent.
fn port(value: &Value) -> u16 {
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
    number.and_then(|n| n.try_into().ok()).unwrap_or(0)
}
