//! Who an address is, when several say something of it: a pod before a node, a node before a range.
//!
//! Owns the claims on each prefix of the address cache and which of them counts.

use crate::{
    facts::{Here, Node, There, Touched},
    tables::{AddressEntry, address},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};
use weft_model::NumericIdentity;

/// All of IPv4 and all of IPv6: always written, so that they can say "not known" when there is no
/// room for what should be known.
pub(crate) const EVERYWHERE: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

/// In the cluster, not known yet.
pub(crate) const UNKNOWN: AddressEntry = AddressEntry {
    identity: NumericIdentity::CLUSTER_UNKNOWN.0,
    flags: address::AGGREGATE,
    endpoint: 0,
    node: 0,
};

const WORLD: AddressEntry = AddressEntry {
    identity: NumericIdentity::WORLD.0,
    flags: 0,
    endpoint: 0,
    node: 0,
};

/// Whose word counts, the first most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    PodHere,
    PodThere,
    OwnNode,
    OtherNode,
    PodsOfNode,
    /// A range that a policy names. One that lies within the pods of a node says nothing of them:
    /// an address there that is not known is a workload that is not known yet.
    Range,
}

#[derive(Debug)]
struct Claim {
    rank: Rank,
    /// Of two of one rank the later one counts: an address that was given anew.
    since: Reverse<u64>,
    by: Arc<str>,
    entry: AddressEntry,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    all: HashMap<IpNet, Vec<Claim>>,
    pods_of_nodes: HashMap<IpNet, usize>,
    ranges: BTreeSet<IpNet>,
    clock: u64,
}

/// The one form of an address or a network: IPv4 as IPv4.
pub(crate) fn canonical(net: IpNet) -> IpNet {
    match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => Ipv4Net::new(v4, v6.prefix_len() - 96)
                .map_or(net, IpNet::V4)
                .trunc(),
            None => net.trunc(),
        },
        _ => net.trunc(),
    }
}

fn host(address: IpAddr) -> IpNet {
    address.to_canonical().into()
}

impl Claims {
    pub(crate) fn put(
        &mut self,
        net: IpNet,
        rank: Rank,
        by: &Arc<str>,
        entry: AddressEntry,
        touched: &mut Touched,
    ) {
        let net = canonical(net);
        self.clock += 1;
        let claims = self.all.entry(net).or_default();
        claims.retain(|c| c.rank != rank || c.by != *by);
        claims.push(Claim {
            rank,
            since: Reverse(self.clock),
            by: by.clone(),
            entry,
        });
        claims.sort_by_key(|c| (c.rank, c.since));
        touched.addresses.insert(net);
        match rank {
            Rank::PodsOfNode => {
                *self.pods_of_nodes.entry(net).or_default() += 1;
                self.touch_ranges_in(net, touched);
            }
            Rank::Range => {
                self.ranges.insert(net);
            }
            _ => {}
        }
    }

    pub(crate) fn remove(&mut self, net: IpNet, rank: Rank, by: &Arc<str>, touched: &mut Touched) {
        let net = canonical(net);
        let Some(claims) = self.all.get_mut(&net) else {
            return;
        };
        let before = claims.len();
        claims.retain(|c| c.rank != rank || c.by != *by);
        if claims.len() == before {
            return;
        }
        if claims.is_empty() {
            self.all.remove(&net);
        }
        touched.addresses.insert(net);
        match rank {
            Rank::PodsOfNode => {
                if let Some(count) = self.pods_of_nodes.get_mut(&net) {
                    *count -= 1;
                    if *count == 0 {
                        self.pods_of_nodes.remove(&net);
                    }
                }
                self.touch_ranges_in(net, touched);
            }
            Rank::Range => {
                self.ranges.remove(&net);
            }
            _ => {}
        }
    }

    fn touch_ranges_in(&self, net: IpNet, touched: &mut Touched) {
        let inside = self.ranges.iter().filter(|range| net.contains(*range));
        touched.addresses.extend(inside);
    }

    fn within_pods(&self, net: IpNet) -> bool {
        if self.pods_of_nodes.is_empty() {
            return false;
        }
        std::iter::successors(Some(net), IpNet::supernet).any(|wider| self.pods_of_nodes.contains_key(&wider))
    }

    /// What the address cache is to hold at a prefix.
    pub(crate) fn wanted(&self, net: IpNet) -> Option<AddressEntry> {
        let first = self.all.get(&net).and_then(|claims| claims.first());
        match first {
            Some(claim) if claim.rank != Rank::Range || !self.within_pods(net) => Some(claim.entry),
            _ => EVERYWHERE.contains(&net).then_some(WORLD),
        }
    }

    /// Everywhere, and the ranges that policies name.
    pub(crate) fn outside(&self) -> impl Iterator<Item = IpNet> {
        EVERYWHERE.into_iter().chain(self.ranges.iter().copied())
    }

    /// Whether what counts at a prefix is about the outside.
    pub(crate) fn is_outside(&self, net: IpNet) -> bool {
        let first = self.all.get(&net).and_then(|claims| claims.first());
        first.map_or(EVERYWHERE.contains(&net), |claim| {
            claim.rank == Rank::Range && (EVERYWHERE.contains(&net) || !self.within_pods(net))
        })
    }

    /// Every prefix that anybody says something of.
    pub(crate) fn nets(&self) -> impl Iterator<Item = IpNet> {
        self.all.keys().copied().chain(EVERYWHERE)
    }
}

/// What a workload of this node says of addresses.
pub(crate) fn of_here(here: &Here) -> Vec<(IpNet, Rank, AddressEntry)> {
    let Some(governed) = here.governed.as_ref().filter(|_| here.pod) else {
        return Vec::new();
    };
    let entry = AddressEntry {
        identity: governed.identity.0,
        flags: address::LOCAL,
        endpoint: here.number,
        node: 0,
    };
    let nets = here.addresses.iter().map(|a| host(*a));
    nets.map(|net| (net, Rank::PodHere, entry)).collect()
}

/// What a workload of another node says of addresses.
pub(crate) fn of_there(there: &There) -> Vec<(IpNet, Rank, AddressEntry)> {
    if !there.pod {
        return Vec::new();
    }
    let entry = AddressEntry {
        identity: there.identity.0,
        flags: match there.shared {
            true => address::AGENT,
            false => address::TUNNEL,
        },
        endpoint: 0,
        node: node_number(&there.node),
    };
    let nets = there.addresses.iter().map(|a| host(*a));
    nets.map(|net| (net, Rank::PodThere, entry)).collect()
}

/// What a node says of addresses.
pub(crate) fn of_node(name: &str, node: &Node) -> Vec<(IpNet, Rank, AddressEntry)> {
    let (rank, identity, flags, number) = if node.own {
        (
            Rank::OwnNode,
            NumericIdentity::HOST,
            address::HOST | address::LOCAL,
            0,
        )
    } else {
        let number = node_number(name);
        (
            Rank::OtherNode,
            NumericIdentity::REMOTE_NODE,
            address::HOST,
            number,
        )
    };
    let own = AddressEntry {
        identity: identity.0,
        flags,
        endpoint: 0,
        node: number,
    };
    let addresses = node.addresses.iter().map(|a| (host(*a), rank, own));
    let pods = AddressEntry {
        node: number,
        ..UNKNOWN
    };
    let ranges = node.pod_cidrs.iter().map(|net| (*net, Rank::PodsOfNode, pods));
    // Before an endpoint is known its address is nobody's, and not the outside's either.
    let shared = AddressEntry {
        flags: address::AGGREGATE | address::AGENT,
        ..UNKNOWN
    };
    let shared = node
        .shared_cidrs
        .iter()
        .map(move |net| (*net, Rank::PodsOfNode, shared));
    addresses.chain(ranges).chain(shared).collect()
}

/// The same number after every restart: FNV-1a.
fn node_number(name: &str) -> u32 {
    crate::rules::hash(name.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(identity: u32) -> AddressEntry {
        AddressEntry { identity, ..WORLD }
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a network")
    }

    #[test]
    fn a_pod_counts_more_than_a_node_and_the_later_pod_more_than_the_earlier() {
        let (mut claims, mut touched) = (Claims::default(), Touched::default());
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let address = net("10.0.0.1/32");
        claims.put(address, Rank::OtherNode, &a, entry(6), &mut touched);
        claims.put(address, Rank::PodThere, &a, entry(300), &mut touched);
        assert_eq!(claims.wanted(address), Some(entry(300)));
        claims.put(address, Rank::PodThere, &b, entry(301), &mut touched);
        assert_eq!(claims.wanted(address), Some(entry(301)));
        // The one that had the address before goes at last: the new one is not touched by that.
        claims.remove(address, Rank::PodThere, &a, &mut touched);
        assert_eq!(claims.wanted(address), Some(entry(301)));
        claims.remove(address, Rank::PodThere, &b, &mut touched);
        assert_eq!(claims.wanted(address), Some(entry(6)));
        claims.remove(address, Rank::OtherNode, &a, &mut touched);
        assert_eq!(claims.wanted(address), None);
        assert!(claims.all.is_empty());
    }

    #[test]
    fn a_range_of_a_policy_says_nothing_of_a_nodes_pods() {
        let (mut claims, mut touched) = (Claims::default(), Touched::default());
        let by: Arc<str> = "n2".into();
        let inside = net("10.1.2.0/25");
        claims.put(inside, Rank::Range, &by, entry(0x0100_0001), &mut touched);
        claims.put(
            net("10.0.0.0/8"),
            Rank::Range,
            &by,
            entry(0x0100_0002),
            &mut touched,
        );
        assert_eq!(claims.wanted(inside), Some(entry(0x0100_0001)));
        touched = Touched::default();
        claims.put(net("10.1.0.0/16"), Rank::PodsOfNode, &by, UNKNOWN, &mut touched);
        assert!(touched.addresses.contains(&inside), "{touched:?}");
        assert_eq!(claims.wanted(inside), None);
        assert_eq!(claims.wanted(net("10.0.0.0/8")), Some(entry(0x0100_0002)));
        claims.remove(net("10.1.0.0/16"), Rank::PodsOfNode, &by, &mut touched);
        assert_eq!(claims.wanted(inside), Some(entry(0x0100_0001)));
    }

    #[test]
    fn ipv4_has_one_form() {
        assert_eq!(canonical(net("::ffff:10.1.2.3/120")), net("10.1.2.0/24"));
        assert_eq!(canonical(net("fd00::1/64")), net("fd00::/64"));
    }
}
