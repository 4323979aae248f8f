//! From a set and the address ranges' numbers to an image.

use super::{
    DENY_IN, DENY_OUT, DIRECT_IN, DIRECT_OUT, Image, Key, RANGES_IN, RANGES_OUT, RangeKey, SHAPES, TooLarge,
    Value,
};
use crate::{
    CidrIdentities, DirectionPolicy, Entry, Peers, PolicySet, Ports, RuleRef,
    fault::{Fault, made},
    index::WITH_PORTS,
    proof::{self, Said},
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};
use weft_model::NumericIdentity;
use weft_resources::Authentication;

/// One port range of one {identity, direction, protocol}, before the blocks are cut.
struct Range {
    first: u16,
    last: u16,
    value: Value,
}

type Group = (u32, bool, u8);

struct Builder<'a> {
    image: Image,
    numbers: HashMap<Arc<RuleRef>, u32>,
    ranges: BTreeMap<Group, Vec<Range>>,
    /// Ranges not yet cut.
    waiting: usize,
    cidrs: &'a CidrIdentities,
    set: &'a PolicySet,
    max: usize,
    /// Some entry says something of proof: coming in, going out.
    says: [bool; 2],
}

impl Image {
    /// Expands a set whose ranges are held by `cidrs` to at most `max` entries.
    pub fn new(set: &PolicySet, cidrs: &CidrIdentities, max: usize) -> Result<Self, TooLarge> {
        let both = [(set.ingress(), false), (set.egress(), true)];
        let rules: BTreeSet<Arc<RuleRef>> = both
            .iter()
            .flat_map(|(policy, _)| &policy.entries)
            .map(|e| e.rule.clone())
            .collect();
        let rules: Vec<_> = rules.into_iter().collect();
        let numbers = rules.iter().cloned().zip(1..).collect();
        let image = Image {
            flags: flags(set),
            shapes: both.map(|(policy, _)| shapes(policy)),
            entries: HashMap::new(),
            allow: BTreeMap::new(),
            deny: BTreeMap::new(),
            rules,
        };
        let mut builder = Builder {
            image,
            numbers,
            ranges: BTreeMap::new(),
            waiting: 0,
            cidrs,
            set,
            max,
            says: both.map(|(policy, _)| policy.entries.iter().any(|e| e.auth != Authentication::Unsaid)),
        };
        for (policy, egress) in both {
            for entry in &policy.entries {
                builder.add(entry, egress)?;
            }
        }
        builder.finish()
    }
}

fn flags(set: &PolicySet) -> u32 {
    let of = |policy: &DirectionPolicy, [default, ranges, direct]: [u32; 3]| {
        let wide = |e: &Entry| matches!(e.ports, Ports::Range(first, last) if first != last);
        let mut flags = if policy.default_deny { default } else { 0 };
        if policy.entries.iter().any(wide) {
            flags |= ranges;
        }
        if !policy.entries.iter().any(|e| e.redirect && !e.deny) {
            flags |= direct;
        }
        flags
    };
    of(set.ingress(), [DENY_IN, RANGES_IN, DIRECT_IN]) | of(set.egress(), [DENY_OUT, RANGES_OUT, DIRECT_OUT])
}

fn shapes(policy: &DirectionPolicy) -> u32 {
    let of = |entry: &Entry| {
        let (protocol, port) = match (entry.protocol, entry.ports) {
            (protocol, Ports::Any) => (protocol.is_some(), false),
            // Ranges lie elsewhere, but for the single ports of some.
            (_, Ports::Range(first, last)) if first != last && entry.auth == Authentication::Unsaid => {
                return 0;
            }
            _ => (true, true),
        };
        let identity = !entry.peers.any;
        let same = SHAPES
            .iter()
            .find(|s| (s.identity, s.protocol, s.port) == (identity, protocol, port));
        same.filter(|s| s.protocol || !made(Fault::ShapeIsNotSaid))
            .map_or(0, |s| s.bit)
    };
    policy.entries.iter().fold(0, |bits, entry| bits | of(entry))
}

/// The numbers of whom an entry is about; 0 for anybody.
fn expand(peers: &Peers, cidrs: &CidrIdentities) -> BTreeSet<u32> {
    if peers.any {
        return BTreeSet::from([0]);
    }
    let mut found: BTreeSet<u32> = peers.identities.iter().map(|id| id.0).collect();
    if peers.identities.contains(&NumericIdentity::WORLD) && !made(Fault::WorldIsWithoutRanges) {
        found.extend(cidrs.iter().map(|(_, id)| id.0));
    }
    for peer in &peers.cidrs {
        let meant = cidrs.within(peer.cidr);
        let in_hole = |net: &IpNet| peer.except.iter().any(|hole: &IpNet| hole.contains(net));
        let meant = meant.filter(|(net, _)| !in_hole(net) || made(Fault::HolesAreInTheImage));
        found.extend(meant.map(|(_, id)| id.0));
    }
    found
}

/// What two entries about the same say together.
fn join(a: Value, b: Value) -> Value {
    if made(Fault::FirstOfAKeyWins) {
        return a;
    }
    match (a.deny, b.deny) {
        (true, false) => a,
        (false, true) => b,
        _ => Value {
            deny: a.deny,
            redirect: a.redirect && b.redirect,
            proxied: a.proxied || b.proxied,
            auth: a.auth.max(b.auth),
            rule: a.rule.min(b.rule),
            ..a
        },
    }
}

impl Builder<'_> {
    fn add(&mut self, entry: &Entry, egress: bool) -> Result<(), TooLarge> {
        let value = Value {
            deny: entry.deny,
            redirect: entry.redirect,
            proxied: entry.redirect && !entry.deny,
            auth: if entry.deny {
                Authentication::Unsaid
            } else {
                entry.auth
            },
            rule: self.numbers.get(&entry.rule).copied().unwrap_or(0),
            ..Value::default()
        };
        let protocols: &[u8] = match (&entry.protocol, entry.ports) {
            (Some(protocol), _) => &[*protocol],
            (None, Ports::Range(..)) => &WITH_PORTS,
            (None, Ports::Any) => &[0],
        };
        for identity in expand(&entry.peers, self.cidrs) {
            for protocol in protocols {
                self.put(identity, egress, *protocol, entry.ports, value);
            }
            self.check()?;
        }
        Ok(())
    }

    fn put(&mut self, identity: u32, egress: bool, protocol: u8, ports: Ports, value: Value) {
        let port = match ports {
            Ports::Any => 0,
            Ports::Range(first, last) if first == last => first,
            Ports::Range(first, last) => {
                let group = self.ranges.entry((identity, egress, protocol)).or_default();
                group.push(Range { first, last, value });
                self.waiting += 1;
                // What it says of proof at a block of one port, it says as an entry for that port does.
                let single = blocks(first.into(), u32::from(last) + 1).into_iter();
                let single =
                    single.filter(|(_, length)| *length == 16 && value.auth != Authentication::Unsaid);
                for (port, _) in single {
                    self.put(identity, egress, protocol, Ports::Range(port, port), value);
                }
                return;
            }
        };
        let key = Key {
            identity,
            egress,
            protocol,
            port,
        };
        self.image
            .entries
            .entry(key)
            .and_modify(|old| *old = join(*old, value))
            .or_insert(value);
    }

    fn check(&self) -> Result<(), TooLarge> {
        let entries = self.image.len() + self.waiting;
        if entries > self.max {
            return Err(TooLarge {
                set: self.set.id().into(),
                entries,
                max: self.max,
            });
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Image, TooLarge> {
        for (group, ranges) in std::mem::take(&mut self.ranges) {
            self.waiting -= ranges.len();
            for deny in [false, true] {
                let of_kind: Vec<&Range> = ranges.iter().filter(|r| r.value.deny == deny).collect();
                self.cut(group, &of_kind, deny);
            }
            self.check()?;
        }
        Ok(self.image)
    }

    /// Cuts ranges that overlap where any of them begins or ends, and the parts into blocks.
    fn cut(&mut self, (identity, egress, protocol): Group, ranges: &[&Range], deny: bool) {
        let mut edges: BTreeSet<u32> = ranges.iter().map(|r| u32::from(r.first)).collect();
        edges.extend(ranges.iter().map(|r| u32::from(r.last) + 1));
        let says = self.says[usize::from(egress)] && !deny;
        if says {
            // How narrow a range is changes from block to block.
            let blocks = ranges
                .iter()
                .flat_map(|r| blocks(r.first.into(), u32::from(r.last) + 1));
            edges.extend(blocks.map(|(port, _)| u32::from(port)));
        }
        // Below one by the proxy that is for all ports, what says nothing is not there (`proof`).
        let below_proxy = [protocol, 0].into_iter().any(|protocol| {
            let port = 0;
            let wider = Key {
                identity,
                egress,
                protocol,
                port,
            };
            self.image.entries.get(&wider).is_some_and(|value| value.proxied)
        });
        let edges: Vec<u32> = edges.into_iter().collect();
        for pair in edges.windows(2) {
            let (first, end) = (pair[0], pair[1]);
            let over = |r: &&&Range| u32::from(r.first) <= first && end <= u32::from(r.last) + 1;
            let Some(mut value) = ranges.iter().filter(over).map(|r| r.value).reduce(join) else {
                continue;
            };
            if says {
                speak(&mut value, first as u16, ranges.iter().filter(over), below_proxy);
            }
            let table = if deny {
                &mut self.image.deny
            } else {
                &mut self.image.allow
            };
            for (port, length) in blocks(first, end) {
                table.insert(
                    RangeKey {
                        identity,
                        egress,
                        protocol,
                        port,
                        length,
                    },
                    value,
                );
            }
        }
    }
}

/// What ranges that overlap at a port come to, where proof is concerned. `below_proxy`: some wider entry goes
/// by the proxy.
fn speak<'r>(value: &mut Value, port: u16, ranges: impl Iterator<Item = &'r &'r Range>, below_proxy: bool) {
    let said = ranges.map(|r| Said {
        length: 8 + proof::block(r.first, r.last, port),
        proxied: r.value.proxied,
        auth: r.value.auth,
        derived: false,
    });
    let mut said: Vec<Said> = said.collect();
    let counts = |said: &Said| said.proxied || said.auth != Authentication::Unsaid;
    if below_proxy && said.iter().any(counts) {
        said.retain(counts);
    }
    if let Some(said) = proof::side(said).narrowest() {
        value.proxied = said.proxied;
        value.auth = said.auth;
        value.derived = said.derived && said.auth != Authentication::Unsaid;
        value.length = if made(Fault::BlocksHaveNoLength) {
            0
        } else {
            said.length
        };
    }
}

/// The fewest aligned blocks that make up the ports from `first` up to, and without, `end`.
fn blocks(first: u32, end: u32) -> Vec<(u16, u8)> {
    let mut found = Vec::new();
    let mut at = first;
    while at < end {
        // As large as its alignment and the rest allow; 65,536 ports at once would be no range but all.
        let aligned = at.trailing_zeros().min(15);
        let rest = (end - at) << u32::from(made(Fault::BlockIsTooLarge));
        let size = aligned.min(rest.ilog2());
        // Below 65,536 by `end`, and at most 16.
        found.push((at as u16, 16 - size as u8));
        at += 1 << size;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::blocks;

    #[test]
    fn blocks_are_the_range_and_nothing_else() {
        for (first, end) in [
            (0, 65_536),
            (1, 65_536),
            (80, 91),
            (1000, 1001),
            (65_535, 65_536),
            (3, 4097),
        ] {
            let mut at = first;
            for (port, length) in blocks(first, end) {
                assert_eq!(u32::from(port), at, "a hole or an overlap in {first}..{end}");
                assert!(port.trailing_zeros().min(16) + u32::from(length) >= 16);
                at += 1 << (16 - length);
            }
            assert_eq!(at, end);
        }
        assert_eq!(blocks(1, 65_536).len(), 16);
    }
}
