//! What a compiled policy is: entries in a fixed order, named by a hash of their content.

use crate::{
    index::Index,
    request::{BadRule, Requests},
};
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    sync::{Arc, OnceLock},
};
use weft_model::NumericIdentity;
use weft_resources::{Authentication, HttpRule, NameRule};

/// The rule that made an entry, for flows and for `explain`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleRef {
    /// Kind of the object: `CiliumNetworkPolicy`.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where in the object: `ingress[0].toPorts[1].ports[0]`.
    pub path: String,
}

impl std::fmt::Display for RuleRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}: {}", self.kind, self.namespace, self.name, self.path)
    }
}

/// A range of addresses outside the cluster, with holes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CidrPeer {
    /// The range; host bits are zero.
    pub cidr: IpNet,
    /// Parts of the range that are not meant.
    pub except: Vec<IpNet>,
}

/// Whom an entry is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peers {
    /// Everybody; the lists below are then without effect.
    pub any: bool,
    /// Identities, ascending.
    pub identities: Vec<NumericIdentity>,
    /// Address ranges. They match peers outside the cluster only.
    pub cidrs: Vec<CidrPeer>,
    /// Names in DNS. Their addresses are added to `cidrs` by [`PolicySet::bind`]; by themselves they match
    /// nobody.
    pub names: Vec<NameRule>,
}

impl Peers {
    /// Everybody.
    pub fn any() -> Self {
        Self {
            any: true,
            ..Self::default()
        }
    }

    /// Whether nobody can match.
    pub fn is_empty(&self) -> bool {
        !self.any && self.identities.is_empty() && self.cidrs.is_empty() && self.names.is_empty()
    }
}

/// Ports of one protocol, or of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ports {
    /// Any port, and protocols that have none.
    Any,
    /// First and last, inclusive. The first is not above the last.
    Range(u16, u16),
}

impl Ports {
    /// Whether `port` is among them.
    pub fn contains(self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Range(first, last) => (first..=last).contains(&port),
        }
    }
}

/// One line of a compiled policy. The order of fields is the canonical order of entries.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    /// Refuses what it matches; otherwise it allows.
    pub deny: bool,
    /// Where it comes from.
    pub rule: Arc<RuleRef>,
    /// IANA protocol number; `None` for any.
    pub protocol: Option<u8>,
    /// Ports. For ICMP (protocols 1 and 58) the message's type plus one stands for the port.
    pub ports: Ports,
    /// Allows by the proxy only, which judges each request. No effect when it refuses.
    pub redirect: bool,
    /// Allows with both ends proven only, or need not. No effect when it refuses.
    pub auth: Authentication,
    /// With `redirect`: the requests that it allows, any of them.
    pub http: Arc<[HttpRule]>,
    /// With `redirect`: the names that it allows to ask for in DNS, any of them.
    pub dns: Arc<[NameRule]>,
    /// Whom it is about; nobody when all of it is empty, which says that nobody it means is known.
    pub peers: Peers,
}

/// One direction of a compiled policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct DirectionPolicy {
    /// Whether what no entry allows is refused.
    pub default_deny: bool,
    /// The objects that brought default deny, for flows of what no rule allows: at most
    /// [`MAX_SELECTED_BY`] of them.
    pub selected_by: Vec<Arc<RuleRef>>,
    /// Entries; [`PolicySet::new`] brings them into canonical order.
    pub entries: Vec<Entry>,
}

/// More objects than this are not named as the ones that select a workload.
pub const MAX_SELECTED_BY: usize = 8;

/// The compiled policy of one or more workloads. Cheap to share behind an [`Arc`].
#[derive(Debug, Clone)]
pub struct PolicySet {
    id: Arc<str>,
    ingress: DirectionPolicy,
    egress: DirectionPolicy,
    ingress_index: Index,
    egress_index: Index,
    /// Coming in, going out. Compiled when first asked: who compiles sets for others judges no requests.
    requests: [OnceLock<Arc<Requests>>; 2],
}

impl PolicySet {
    /// Puts entries into canonical order and names the set by its content, provenance included: the
    /// same rules for the same identities give the same id, on every machine and in every run.
    pub fn new(mut ingress: DirectionPolicy, mut egress: DirectionPolicy) -> Self {
        for direction in [&mut ingress, &mut egress] {
            for entry in &mut direction.entries {
                normalise(&mut entry.peers);
            }
            direction.entries.sort_unstable();
            direction.entries.dedup();
            direction.selected_by.sort_unstable();
            direction.selected_by.dedup();
            direction.selected_by.truncate(MAX_SELECTED_BY);
        }
        let id = content_id(&ingress, &egress);
        Self::with_id(id.into(), ingress, egress)
    }

    /// For a set that got its id elsewhere: entries are taken in the order given.
    pub(crate) fn with_id(id: Arc<str>, ingress: DirectionPolicy, egress: DirectionPolicy) -> Self {
        let ingress_index = Index::new(&ingress.entries);
        let egress_index = Index::new(&egress.entries);
        Self {
            id,
            ingress,
            egress,
            ingress_index,
            egress_index,
            requests: Default::default(),
        }
    }

    /// The set that selects nothing: everything is allowed, by no rule.
    pub fn unrestricted() -> Self {
        Self::new(DirectionPolicy::default(), DirectionPolicy::default())
    }

    /// Hash of the content: 32 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What may come in.
    pub fn ingress(&self) -> &DirectionPolicy {
        &self.ingress
    }

    /// What may go out.
    pub fn egress(&self) -> &DirectionPolicy {
        &self.egress
    }

    /// Whether it tells peers outside the cluster apart, so that its [`crate::Image`] depends on the address
    /// ranges of all sets.
    pub fn names_outside(&self) -> bool {
        let entries = self.ingress.entries.iter().chain(&self.egress.entries);
        let mut peers = entries.map(|e| &e.peers).filter(|p| !p.any);
        peers.any(|p| !p.cidrs.is_empty() || p.identities.contains(&NumericIdentity::WORLD))
    }

    pub(crate) fn direction(&self, direction: crate::Direction) -> (&DirectionPolicy, &Index) {
        match direction {
            crate::Direction::Ingress => (&self.ingress, &self.ingress_index),
            crate::Direction::Egress => (&self.egress, &self.egress_index),
        }
    }

    /// The rules about requests.
    pub(crate) fn requests(&self, direction: crate::Direction) -> &Requests {
        let compile = || Arc::new(Requests::compile(&self.direction(direction).0.entries).0);
        self.requests[usize::from(direction == crate::Direction::Egress)].get_or_init(compile)
    }

    /// Compiles the rules about requests now; answers the first that can not be, with its direction.
    pub(crate) fn check_requests(&self) -> Result<(), (&'static str, BadRule)> {
        let both = [(&self.ingress, "ingress"), (&self.egress, "egress")];
        for (slot, (policy, name)) in self.requests.iter().zip(both) {
            let (requests, bad) = Requests::compile(&policy.entries);
            if let Some(bad) = bad {
                return Err((name, bad));
            }
            slot.get_or_init(|| Arc::new(requests));
        }
        Ok(())
    }
}

impl PartialEq for PolicySet {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.ingress == other.ingress && self.egress == other.egress
    }
}

impl Eq for PolicySet {}

fn normalise(peers: &mut Peers) {
    if peers.any {
        peers.identities.clear();
        peers.cidrs.clear();
        peers.names.clear();
    }
    peers.names.sort_unstable();
    peers.names.dedup();
    peers.identities.sort_unstable();
    peers.identities.dedup();
    for cidr in &mut peers.cidrs {
        cidr.cidr = cidr.cidr.trunc();
        for except in &mut cidr.except {
            *except = except.trunc();
        }
        cidr.except.sort_unstable();
        cidr.except.dedup();
    }
    peers.cidrs.sort_unstable();
    peers.cidrs.dedup();
}

fn write_request(text: &mut String, rule: &HttpRule) {
    // Writing to a String can not fail.
    let mut part = |part: Option<&str>| match part {
        Some(part) => {
            let _ = write!(text, " {}:{part}", part.len());
        }
        None => text.push_str(" -"),
    };
    part(Some("http"));
    for expression in [&rule.method, &rule.path, &rule.host] {
        part(expression.as_deref());
    }
    for (name, value) in &rule.headers {
        part(Some(name));
        part(value.as_deref());
    }
}

/// SHA-256, cut to 128 bits, over an encoding in which every text carries its length: no two
/// different sets write the same bytes.
fn content_id(ingress: &DirectionPolicy, egress: &DirectionPolicy) -> String {
    let mut text = String::from("weft policy set 5\n");
    let name = |text: &mut String, rule: &RuleRef| {
        for part in [&rule.kind, &rule.namespace, &rule.name, &rule.path] {
            let _ = write!(text, "{}:{part} ", part.len());
        }
    };
    let write = |text: &mut String, direction: &DirectionPolicy| {
        // Writing to a String can not fail.
        let (objects, entries) = (direction.selected_by.len(), direction.entries.len());
        let _ = writeln!(text, "{} {objects} {entries}", direction.default_deny);
        for object in &direction.selected_by {
            name(text, object);
        }
        for e in &direction.entries {
            name(text, &e.rule);
            let (first, last) = match e.ports {
                Ports::Any => (0, 0),
                Ports::Range(first, last) => (first, last),
            };
            let any = e.ports == Ports::Any;
            let _ = write!(
                text,
                "{} {} {:?} {:?} {any} {first} {last} {}",
                e.deny, e.redirect, e.auth, e.protocol, e.peers.any
            );
            let _ = write!(text, " {}", e.peers.identities.len());
            for id in &e.peers.identities {
                let _ = write!(text, " {id}");
            }
            for cidr in &e.peers.cidrs {
                let _ = write!(text, " {} -{}", cidr.cidr, cidr.except.len());
                for except in &cidr.except {
                    let _ = write!(text, " {except}");
                }
            }
            for rule in &*e.http {
                write_request(text, rule);
            }
            for (kind, names) in [("dns", &*e.dns), ("names", &e.peers.names)] {
                for rule in names {
                    let (form, name) = match rule {
                        NameRule::Name(name) => ("name", name),
                        NameRule::Pattern(pattern) => ("pattern", pattern),
                    };
                    let _ = write!(text, " {kind} {form} {}:{name}", name.len());
                }
            }
            text.push('\n');
        }
    };
    write(&mut text, ingress);
    write(&mut text, egress);
    hex::encode(&Sha256::digest(text.as_bytes())[..16])
}
