//! Address ranges as identities: what the kernel's address cache says of peers outside the cluster.
//!
//! The kernel answers "who is this address" by the longest prefix that matches, so a range becomes a
//! number of this node alone. Every range and every exception of every set in use is such a prefix: then
//! each number stands for addresses that all rules treat alike, and [`crate::Image`] needs numbers only.

use crate::{
    CidrPeer, PolicySet,
    fault::{Fault, made},
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};
use weft_model::NumericIdentity;

/// The first number of a range, and the last: Cilium's scope of node-local identities.
const FIRST: u32 = 0x0100_0001;
const LAST: u32 = 0x01FF_FFFF;

/// The sets in use name more ranges than may have numbers. The set that was to be added is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "policies on this node name {prefixes} address ranges, at most {max} are possible; name wider ranges"
)]
pub struct TooManyPrefixes {
    /// As many as there would be.
    pub prefixes: usize,
    /// As many as there may be.
    pub max: usize,
}

/// By family, then by first address, then from wide to narrow: what lies in a range follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct NetKey {
    v6: bool,
    first: u128,
    length: u8,
}

impl NetKey {
    fn new(net: IpNet) -> Self {
        let (v6, first) = bits(net.network());
        let length = net.prefix_len();
        Self { v6, first, length }
    }

    fn net(self) -> IpNet {
        let address: IpAddr = if self.v6 {
            std::net::Ipv6Addr::from_bits(self.first).into()
        } else {
            std::net::Ipv4Addr::from_bits(self.first as u32).into()
        };
        IpNet::new_assert(address, self.length)
    }
}

fn bits(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(a) => (false, a.to_bits().into()),
        IpAddr::V6(a) => (true, a.to_bits()),
    }
}

#[derive(Debug, Clone)]
struct Held {
    identity: NumericIdentity,
    uses: u32,
}

/// The numbers that this node gave to address ranges. A range keeps its number for as long as a set uses
/// it, and a number is not given again until all others were.
#[derive(Debug, Clone)]
pub struct CidrIdentities {
    nets: BTreeMap<NetKey, Held>,
    numbers: HashMap<NumericIdentity, NetKey>,
    next: u32,
    max: usize,
}

impl CidrIdentities {
    /// What the address cache holds for all of IPv4 while no set uses `0.0.0.0/0`. Addresses there are 16
    /// bytes with IPv4 below `::ffff:0:0/96`, which `::/0` would take in otherwise.
    pub const IPV4: (IpNet, NumericIdentity) = (
        IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0)),
        NumericIdentity::WORLD,
    );

    /// Gives numbers to at most `max` ranges.
    pub fn new(max: usize) -> Self {
        Self {
            nets: BTreeMap::new(),
            numbers: HashMap::new(),
            next: FIRST,
            max: max.min((LAST - FIRST) as usize),
        }
    }

    /// Takes over a number from before a restart. It is kept by nobody until a set is held that uses it.
    pub fn adopt(&mut self, net: IpNet, identity: NumericIdentity) {
        let key = NetKey::new(net);
        let usable = (FIRST..=LAST).contains(&identity.0)
            && !self.nets.contains_key(&key)
            && !self.numbers.contains_key(&identity);
        if usable && self.nets.len() < self.max {
            self.nets.insert(key, Held { identity, uses: 0 });
            self.numbers.insert(identity, key);
        }
    }

    /// The next number is above this one: from before a restart there are entries with it, and the range
    /// they mean is not known.
    pub fn skip(&mut self, identity: NumericIdentity) {
        if (self.next..LAST).contains(&identity.0) {
            self.next = identity.0 + 1;
        }
    }

    /// Counts a use of each range of `set`; answers those that are new. Before their addresses are written,
    /// every image with [`PolicySet::names_outside`] is to be built again and written. On failure nothing
    /// is held.
    pub fn hold(&mut self, set: &PolicySet) -> Result<Vec<(IpNet, NumericIdentity)>, TooManyPrefixes> {
        let wanted = prefixes(set);
        let missing = wanted.iter().filter(|k| !self.nets.contains_key(k)).count();
        if self.nets.len() + missing > self.max {
            return Err(TooManyPrefixes {
                prefixes: self.nets.len() + missing,
                max: self.max,
            });
        }
        let mut new = Vec::with_capacity(missing);
        for key in wanted {
            if let Some(held) = self.nets.get_mut(&key) {
                held.uses += 1;
                continue;
            }
            let identity = self.number();
            self.nets.insert(key, Held { identity, uses: 1 });
            self.numbers.insert(identity, key);
            new.push((key.net(), identity));
        }
        Ok(new)
    }

    /// Takes the use of each range of `set` back, once for each [`CidrIdentities::hold`]; answers those that
    /// nobody uses any more. Their addresses go first (all of IPv4 becomes [`CidrIdentities::IPV4`] again),
    /// then their entries in all images.
    pub fn release(&mut self, set: &PolicySet) -> Vec<(IpNet, NumericIdentity)> {
        for key in prefixes(set) {
            if let Some(held) = self.nets.get_mut(&key) {
                held.uses = held.uses.saturating_sub(1);
            }
        }
        self.sweep()
    }

    /// Drops what nobody uses, as adopted numbers may be once all sets are known; answers it.
    pub fn sweep(&mut self) -> Vec<(IpNet, NumericIdentity)> {
        let unused = |(key, held): (&NetKey, &Held)| (held.uses == 0).then_some((*key, held.identity));
        let gone: Vec<_> = self.nets.iter().filter_map(unused).collect();
        for (key, identity) in &gone {
            self.nets.remove(key);
            self.numbers.remove(identity);
        }
        gone.into_iter().map(|(key, id)| (key.net(), id)).collect()
    }

    /// All ranges and their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, NumericIdentity)> {
        self.nets.iter().map(|(key, held)| (key.net(), held.identity))
    }

    /// The range a number stands for, less the narrower ranges in it.
    pub fn net(&self, identity: NumericIdentity) -> Option<IpNet> {
        self.numbers.get(&identity).map(|key| key.net())
    }

    /// What the address cache answers for an address outside the cluster.
    pub fn of(&self, address: IpAddr) -> NumericIdentity {
        let address = address.to_canonical();
        let (v6, value) = bits(address);
        let width: u8 = if v6 { 128 } else { 32 };
        let lengths = (0..=width).rev();
        let found = lengths.filter_map(|length| {
            let host = u32::from(width - length);
            let first = value
                .checked_shr(host)
                .unwrap_or(0)
                .checked_shl(host)
                .unwrap_or(0);
            self.nets.get(&NetKey { v6, first, length })
        });
        let mut found = found.map(|held| held.identity);
        let found = if made(Fault::ShortestRangeWins) {
            found.next_back()
        } else {
            found.next()
        };
        found.unwrap_or(NumericIdentity::WORLD)
    }

    /// The numbers of the ranges that lie in `net`, itself included.
    pub(crate) fn within(&self, net: IpNet) -> impl Iterator<Item = (IpNet, NumericIdentity)> {
        let from = NetKey::new(net);
        let to = NetKey {
            first: bits(net.broadcast()).1,
            length: u8::MAX,
            ..from
        };
        let inside = self.nets.range(from..=to);
        inside.map(|(key, held)| (key.net(), held.identity))
    }

    fn number(&mut self) -> NumericIdentity {
        // `max` is below the number of numbers: one is free.
        loop {
            let identity = NumericIdentity(self.next);
            self.next = if self.next == LAST { FIRST } else { self.next + 1 };
            if !self.numbers.contains_key(&identity) {
                return identity;
            }
        }
    }
}

/// Every range and every exception of a set, once.
fn prefixes(set: &PolicySet) -> BTreeSet<NetKey> {
    let entries = set.ingress().entries.iter().chain(&set.egress().entries);
    let peers = entries.filter(|e| !e.peers.any).flat_map(|e| &e.peers.cidrs);
    let holes = |c: &CidrPeer| {
        if made(Fault::HolesHaveNoNumber) {
            0
        } else {
            c.except.len()
        }
    };
    let nets = peers.flat_map(|c| c.except.iter().take(holes(c)).chain([&c.cidr]));
    nets.map(|net| NetKey::new(*net)).collect()
}
