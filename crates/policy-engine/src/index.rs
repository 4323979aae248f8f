//! The fast path: which entries match, by at most six hash probes however many entries there are.
//!
//! Entries about identities are keyed {peer, protocol, port}, each part possibly a wildcard. A port
//! without a protocol stands for TCP, UDP and SCTP, so a probe needs three shapes of {protocol, port}
//! and two of peer. Port ranges and address ranges lie beside: ranges of a {peer, protocol} are
//! scanned, address ranges are probed once per prefix length in use.

use crate::{
    CidrPeer, Entry, Peers, Ports,
    fault::{Fault, made},
    judge::{PeerRef, is_local, is_outside},
    proof::{self, Said},
};
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    net::IpAddr,
};
use weft_model::NumericIdentity;
use weft_resources::Authentication;

/// Protocols that have ports, for entries that name a port of any protocol.
pub(crate) const WITH_PORTS: [u8; 3] = [6, 17, 132];

const NONE: u32 = u32::MAX;

/// First matching entry of each kind, by position in the canonical order, and what those that allow say of
/// the proxy and of proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hit {
    deny: u32,
    allow: u32,
    /// The first of them that does without the proxy.
    direct: u32,
    /// One of them goes by the proxy.
    proxied: bool,
    /// What most is said of proof; from [`Index::find`] on, what it comes to.
    auth: Authentication,
}

/// An entry as the tables hold it.
#[derive(Debug, Clone, Copy)]
struct Line {
    position: u32,
    deny: bool,
    direct: bool,
    auth: Authentication,
}

/// A line that no key says.
#[derive(Debug, Clone, Copy)]
struct Found {
    line: Line,
    anybody: bool,
    protocol: Option<u8>,
    ports: Ports,
}

impl Line {
    fn asks_requests(self) -> bool {
        !self.deny && !self.direct
    }
}

impl Default for Hit {
    fn default() -> Self {
        Self {
            deny: NONE,
            allow: NONE,
            direct: NONE,
            proxied: false,
            auth: Authentication::Unsaid,
        }
    }
}

impl Hit {
    fn add(&mut self, line: Line) {
        if line.deny {
            self.deny = self.deny.min(line.position);
            return;
        }
        self.allow = self.allow.min(line.position);
        if line.direct {
            self.direct = self.direct.min(line.position);
        }
        self.proxied |= !line.direct;
        self.auth = self.auth.max(line.auth);
    }

    fn join(&mut self, other: &Self) {
        self.deny = self.deny.min(other.deny);
        self.allow = self.allow.min(other.allow);
        self.direct = self.direct.min(other.direct);
    }

    pub(crate) fn deny(self) -> Option<usize> {
        (self.deny != NONE).then_some(self.deny as usize)
    }

    pub(crate) fn allow(self) -> Option<usize> {
        (self.allow != NONE).then_some(self.allow as usize)
    }

    pub(crate) fn redirect(self) -> bool {
        self.direct == NONE
    }

    pub(crate) fn direct(self) -> Option<usize> {
        (self.direct != NONE).then_some(self.direct as usize)
    }

    pub(crate) fn auth(self) -> bool {
        self.auth == Authentication::Required
    }
}

#[derive(Debug, Clone)]
struct RangeEntry {
    first: u16,
    last: u16,
    line: Line,
}

#[derive(Debug, Clone)]
struct CidrEntry {
    peer: CidrPeer,
    protocol: Option<u8>,
    ports: Ports,
    line: Line,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    exact: HashMap<u64, Hit, Mixing>,
    /// The entries among `exact` whose rules about requests are to be asked, by position.
    requests: HashMap<u64, Vec<u32>, Mixing>,
    ranges: HashMap<u64, Vec<RangeEntry>, Mixing>,
    cidrs: HashMap<IpAddr, Vec<CidrEntry>>,
    /// Prefix lengths that occur among `cidrs`: IPv4, IPv6.
    lengths: [Vec<u8>; 2],
    /// Some entry demands proof.
    demands: bool,
}

/// The key of {peer, protocol, port}: wildcards are values that the parts can not have.
fn key(peer: Option<NumericIdentity>, protocol: Option<u8>, port: Option<u16>) -> u64 {
    let peer = peer.map_or(0, |p| u64::from(p.0) << 1 | 1);
    let protocol = protocol.map_or(0, |p| u64::from(p) + 1);
    let port = port.map_or(0, |p| u64::from(p) + 1);
    // 33 bits, 9 bits and 17 bits.
    peer << 26 | protocol << 17 | port
}

impl Index {
    pub(crate) fn new(entries: &[Entry]) -> Self {
        let mut index = Self::default();
        for (position, entry) in entries.iter().enumerate() {
            // More entries than fit in 32 bits do not fit in memory.
            index.add(u32::try_from(position).unwrap_or(NONE - 1), entry);
        }
        for lengths in &mut index.lengths {
            lengths.sort_unstable();
            lengths.dedup();
        }
        index
    }

    fn add(&mut self, position: u32, entry: &Entry) {
        let peers = &entry.peers;
        self.demands |= entry.auth == Authentication::Required;
        let line = Line {
            position,
            deny: entry.deny,
            direct: !entry.redirect,
            auth: entry.auth,
        };
        let shapes: Vec<(Option<u8>, Ports)> = match (entry.protocol, entry.ports) {
            (None, Ports::Range(..)) => WITH_PORTS.iter().map(|p| (Some(*p), entry.ports)).collect(),
            shape => vec![shape],
        };
        for (protocol, ports) in shapes {
            for peer in keys(peers) {
                match ports {
                    Ports::Range(first, last) if first != last => {
                        let range = RangeEntry { first, last, line };
                        self.ranges
                            .entry(key(peer, protocol, None))
                            .or_default()
                            .push(range);
                    }
                    Ports::Range(port, _) => self.add_exact(key(peer, protocol, Some(port)), line),
                    Ports::Any => self.add_exact(key(peer, protocol, None), line),
                }
            }
            if peers.any {
                continue;
            }
            for peer in &peers.cidrs {
                let family = usize::from(peer.cidr.addr().is_ipv6());
                self.lengths[family].push(peer.cidr.prefix_len());
                let cidr = CidrEntry {
                    peer: peer.clone(),
                    protocol,
                    ports,
                    line,
                };
                self.cidrs.entry(peer.cidr.network()).or_default().push(cidr);
            }
        }
    }

    fn add_exact(&mut self, key: u64, line: Line) {
        self.exact.entry(key).or_default().add(line);
        if line.asks_requests() {
            self.requests.entry(key).or_default().push(line.position);
        }
    }

    pub(crate) fn find(&self, peer: PeerRef, protocol: u8, port: u16) -> Hit {
        let mut hit = Hit::default();
        for key in probes(peer, protocol, port) {
            if let Some(found) = self.exact.get(&key) {
                hit.join(found);
            }
        }
        let mut beside = Vec::new();
        self.beside(peer, protocol, port, |found| {
            hit.add(found.line);
            if self.demands && !found.line.deny {
                beside.push(found);
            }
        });
        let demanded = self.demands && self.demands_proof(peer, protocol, port, &beside);
        hit.auth = if demanded {
            Authentication::Required
        } else {
            Authentication::Unsaid
        };
        hit
    }

    /// With the lines that no key says.
    fn demands_proof(&self, peer: PeerRef, protocol: u8, port: u16, beside: &[Found]) -> bool {
        let side = |anybody: bool| {
            let who = (!anybody).then(|| who(peer));
            let widths = [
                (0, key(who, None, None)),
                (8, key(who, Some(protocol), None)),
                (24, key(who, Some(protocol), Some(port))),
            ];
            let exact = widths.into_iter().filter_map(|(length, key)| {
                let hit = self.exact.get(&key).filter(|hit| hit.allow != NONE)?;
                let (proxied, auth, derived) = (hit.proxied, hit.auth, false);
                Some(Said {
                    length,
                    proxied,
                    auth,
                    derived,
                })
            });
            let beside = beside.iter().filter(|found| found.anybody == anybody);
            let beside = beside.map(|found| Said {
                length: proof::length(found.protocol, found.ports, port),
                proxied: !found.line.direct,
                auth: found.line.auth,
                derived: false,
            });
            proof::side(exact.chain(beside).collect())
        };
        proof::demanded(side(false), side(true))
    }

    /// The entries that let the connection in for some requests, by position.
    pub(crate) fn find_requests(&self, peer: PeerRef, protocol: u8, port: u16) -> Vec<u32> {
        let mut found = Vec::new();
        if !self.requests.is_empty() {
            let here = probes(peer, protocol, port).filter_map(|key| self.requests.get(&key));
            found.extend(here.flatten());
        }
        self.beside(peer, protocol, port, |Found { line, .. }| {
            if line.asks_requests() {
                found.push(line.position);
            }
        });
        found.sort_unstable();
        found.dedup();
        found
    }

    /// What no key says: ranges of ports, ranges of addresses.
    fn beside(&self, peer: PeerRef, protocol: u8, port: u16, mut each: impl FnMut(Found)) {
        for who in [Some(who(peer)), None] {
            if self.ranges.is_empty() {
                break;
            }
            let key = key(who, Some(protocol), None);
            for range in self.ranges.get(&key).into_iter().flatten() {
                let last = range.last - u16::from(made(Fault::LastPortIsExcluded));
                if (range.first..=last).contains(&port) {
                    each(Found {
                        line: range.line,
                        anybody: who.is_none(),
                        protocol: Some(protocol),
                        ports: Ports::Range(range.first, range.last),
                    });
                }
            }
        }
        let outside = is_outside(peer.identity) || made(Fault::RangeMeansInsideToo);
        if outside && !self.cidrs.is_empty() {
            self.find_cidr(peer.address, protocol, port, each);
        }
    }

    fn find_cidr(&self, address: Option<IpAddr>, protocol: u8, port: u16, mut each: impl FnMut(Found)) {
        let found = |entry: &CidrEntry| Found {
            line: entry.line,
            anybody: false,
            protocol: entry.protocol,
            ports: entry.ports,
        };
        let fits = |e: &CidrEntry| e.protocol.is_none_or(|p| p == protocol) && e.ports.contains(port);
        let Some(address) = address.map(|a| a.to_canonical()) else {
            // Without an address nothing shows that a refused range is not meant: stay closed.
            for entry in self.cidrs.values().flatten().filter(|e| e.line.deny && fits(e)) {
                each(found(entry));
            }
            return;
        };
        for length in &self.lengths[usize::from(address.is_ipv6())] {
            let Ok(net) = ipnet::IpNet::new(address, *length) else {
                continue;
            };
            for entry in self.cidrs.get(&net.network()).into_iter().flatten() {
                let meant = entry.peer.cidr.prefix_len() == *length
                    && !entry.peer.except.iter().any(|e| e.contains(&address));
                if meant && fits(entry) {
                    each(found(entry));
                }
            }
        }
    }
}

/// Parts of the outside are the outside.
fn who(peer: PeerRef) -> NumericIdentity {
    if is_local(peer.identity) {
        NumericIdentity::WORLD
    } else {
        peer.identity
    }
}

/// The keys that a connection is looked up by.
fn probes(peer: PeerRef, protocol: u8, port: u16) -> impl Iterator<Item = u64> {
    let shapes = [(Some(protocol), Some(port)), (Some(protocol), None), (None, None)];
    let meant = move |shape: &(Option<u8>, _)| shape.0.is_some() || !made(Fault::WildcardIsNotProbed);
    [Some(who(peer)), None].into_iter().flat_map(move |who| {
        let shapes = shapes.into_iter().filter(meant);
        shapes.map(move |(protocol, port)| key(who, protocol, port))
    })
}

fn keys(peers: &Peers) -> Box<dyn Iterator<Item = Option<NumericIdentity>> + '_> {
    if peers.any {
        return Box::new(std::iter::once(None));
    }
    Box::new(peers.identities.iter().map(|i| Some(*i)))
}

type Mixing = BuildHasherDefault<Mixer>;

/// Spreads a packed key over the table: one multiplication and a fold. Keys come from policies that
/// were admitted, not from peers, so nobody gains by making them collide.
#[derive(Debug, Clone, Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
