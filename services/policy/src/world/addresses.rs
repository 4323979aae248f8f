//! The virtual addresses of Services: as their manifests say, else given from the configured ranges.
//!
//! Where the search for a free address begins is a function of the Service's name, so that it gets
//! the same one again also when the database is lost. No address is given twice.

use crate::store::Write;
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use weft_resources::Service;

/// Namespace and name.
pub(crate) type Name = (String, String);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    ranges: Vec<IpNet>,
    holders: BTreeMap<IpAddr, Name>,
    /// Those that no manifest names, kept across restarts.
    given: BTreeMap<Name, BTreeSet<IpAddr>>,
    of: BTreeMap<Name, Vec<IpAddr>>,
    /// Services whose manifest names an address that is another one's.
    waiting: BTreeMap<IpAddr, BTreeSet<Name>>,
    writes: Vec<Write>,
}

impl Addresses {
    pub(super) fn of(&self, name: &Name) -> &[IpAddr] {
        self.of.get(name).map_or(&[], Vec::as_slice)
    }

    pub(super) fn set_ranges(&mut self, ranges: Vec<IpNet>) {
        self.ranges = ranges;
    }

    /// An address that was given before a restart; not when it is of no range any more.
    pub(super) fn restore(&mut self, name: Name, address: IpAddr) {
        let inside = self.ranges.iter().any(|r| r.contains(&address));
        if inside && !self.holders.contains_key(&address) {
            self.holders.insert(address, name.clone());
            self.given.entry(name).or_default().insert(address);
        } else {
            self.writes.push(Write::RemoveServiceAddress { address });
        }
    }

    /// Takes back what was given to Services that are not there after a restart.
    pub(super) fn sweep(&mut self, there: impl Fn(&Name) -> bool) {
        let gone: Vec<Name> = self.given.keys().filter(|n| !there(n)).cloned().collect();
        for name in gone {
            self.assign(&name, None);
        }
    }

    /// What changed of the addresses that were given, to be stored.
    pub(super) fn take_writes(&mut self) -> Vec<Write> {
        std::mem::take(&mut self.writes)
    }

    /// Works out a Service's addresses anew. Returns the Services that can have an address now that
    /// it let go of.
    pub(super) fn assign(&mut self, name: &Name, service: Option<&Service>) -> BTreeSet<Name> {
        let old = self.of.remove(name).unwrap_or_default();
        let given = self.given.remove(name).unwrap_or_default();
        self.waiting.retain(|_, names| {
            names.remove(name);
            !names.is_empty()
        });
        for address in old.iter().chain(&given) {
            if self.holders.get(address) == Some(name) {
                self.holders.remove(address);
            }
        }
        let named = service.map_or(&[][..], |s| &s.cluster_ips);
        let mut addresses = Vec::new();
        for address in named {
            if let Some(holder) = self.holders.get(address) {
                tracing::error!(
                    service = format!("{}/{}", name.0, name.1),
                    %address,
                    holder = format!("{}/{}", holder.0, holder.1),
                    "the address is another Service's; give one of them another spec.clusterIP"
                );
                self.waiting.entry(*address).or_default().insert(name.clone());
            } else {
                self.holders.insert(*address, name.clone());
                addresses.push(*address);
            }
        }
        let mut kept = BTreeSet::new();
        if service.is_some_and(|s| s.cluster_ips.is_empty() && !s.headless && !s.ports.is_empty()) {
            for range in &self.ranges {
                let before = given.iter().find(|a| range.contains(*a)).copied();
                let free = before.filter(|a| !self.holders.contains_key(a));
                let Some(address) = free.or_else(|| {
                    let start = hash(&name.0, &name.1);
                    search(range, start, self.holders.len(), |a| self.holders.contains_key(a))
                }) else {
                    tracing::error!(
                        service = format!("{}/{}", name.0, name.1),
                        %range,
                        "no address is left; configure a larger --service-cidr"
                    );
                    continue;
                };
                self.holders.insert(address, name.clone());
                addresses.push(address);
                kept.insert(address);
            }
        }
        for address in kept.difference(&given) {
            self.writes.push(Write::ServiceAddress {
                address: *address,
                namespace: name.0.clone(),
                name: name.1.clone(),
            });
        }
        for address in given.difference(&kept) {
            self.writes
                .push(Write::RemoveServiceAddress { address: *address });
        }
        let free = |a: &&IpAddr| !self.holders.contains_key(*a);
        let freed: Vec<IpAddr> = old.iter().chain(&given).filter(free).copied().collect();
        if !addresses.is_empty() {
            self.of.insert(name.clone(), addresses);
        }
        if !kept.is_empty() {
            self.given.insert(name.clone(), kept);
        }
        let waiting = freed.iter().filter_map(|a| self.waiting.get(a)).flatten();
        waiting.cloned().collect()
    }
}

/// The first free address after the place that `hash` means in the range. The first and the last one,
/// which some networks treat as their own, are left out. At most `count` addresses are taken.
pub(super) fn search(
    range: &IpNet,
    hash: u64,
    count: usize,
    is_taken: impl Fn(&IpAddr) -> bool,
) -> Option<IpAddr> {
    let bits = range.max_prefix_len() - range.prefix_len();
    let inside = (1u64.checked_shl(bits.into()).unwrap_or(u64::MAX)).checked_sub(2)?;
    if inside == 0 {
        return None;
    }
    let start = hash % inside;
    // So many addresses are taken at most, so the search ends.
    let tries = inside.min(count as u64 + 1);
    (0..tries)
        .map(|i| nth(range, 1 + (start + i) % inside))
        .find(|a| !is_taken(a))
}

fn nth(range: &IpNet, n: u64) -> IpAddr {
    match range {
        // A range of IPv4 has at most 2^32 addresses.
        IpNet::V4(net) => Ipv4Addr::from(u32::from(net.network()).wrapping_add(n as u32)).into(),
        IpNet::V6(net) => Ipv6Addr::from(u128::from(net.network()).wrapping_add(n.into())).into(),
    }
}

fn hash(namespace: &str, name: &str) -> u64 {
    fnv(namespace.bytes().chain([b'/']).chain(name.bytes()))
}

/// FNV-1a, 64 bits: the same in every build, which the standard library's does not promise.
pub(super) fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn service(cluster_ips: &[&str], headless: bool) -> Service {
        let yaml = "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {ports: [{port: 80}]}";
        let resource = weft_resources::parse("f", yaml.as_bytes()).unwrap().remove(0);
        let weft_resources::Body::Service(service) = resource.body else {
            panic!("{resource:?}")
        };
        Service {
            cluster_ips: cluster_ips.iter().map(|a| a.parse().unwrap()).collect(),
            headless,
            ..service
        }
    }

    fn name(n: &str) -> Name {
        ("shop".into(), n.into())
    }

    fn ranges(texts: &[&str]) -> Addresses {
        let mut addresses = Addresses::default();
        addresses.set_ranges(texts.iter().map(|t| t.parse().unwrap()).collect());
        addresses
    }

    #[test]
    fn a_service_gets_one_address_per_range_and_the_same_one_always() {
        let mut addresses = ranges(&["10.96.0.0/12", "fd00:10:96::/112"]);
        addresses.assign(&name("cart"), Some(&service(&[], false)));
        let got = addresses.of(&name("cart")).to_vec();
        assert_eq!(got.len(), 2, "{got:?}");
        assert!(got[0].is_ipv4() && got[1].is_ipv6());
        assert_eq!(addresses.take_writes().len(), 2);
        // Changed, but still there: nothing is stored anew.
        addresses.assign(&name("cart"), Some(&service(&[], false)));
        assert_eq!(addresses.of(&name("cart")), got);
        assert!(addresses.take_writes().is_empty());
        // Gone and back, with nothing stored in between.
        addresses.assign(&name("cart"), None);
        assert!(addresses.of(&name("cart")).is_empty() && addresses.holders.is_empty());
        let mut later = ranges(&["10.96.0.0/12", "fd00:10:96::/112"]);
        later.assign(&name("cart"), Some(&service(&[], false)));
        assert_eq!(later.of(&name("cart")), got);
        // Headless: none.
        later.assign(&name("cart"), Some(&service(&[], true)));
        assert!(later.of(&name("cart")).is_empty());
    }

    #[test]
    fn a_small_range_is_used_up_without_giving_any_twice() {
        let mut addresses = ranges(&["10.96.0.0/29"]);
        for n in 0..8 {
            addresses.assign(&name(&format!("s{n}")), Some(&service(&[], false)));
        }
        let all: BTreeSet<IpAddr> = addresses.of.values().flatten().copied().collect();
        assert_eq!(all.len(), 6, "{all:?}");
        assert_eq!(addresses.of.len(), 6);
        // Room again.
        let gone = addresses.of.keys().next().cloned().unwrap();
        let mut names = (0..8).map(|n| name(&format!("s{n}")));
        let without = names.find(|n| addresses.of(n).is_empty()).unwrap();
        addresses.assign(&gone, None);
        addresses.assign(&without, Some(&service(&[], false)));
        assert_eq!(addresses.of(&without).len(), 1);
    }

    #[test]
    fn an_address_of_another_is_had_when_that_one_lets_go() {
        let mut addresses = ranges(&[]);
        let fixed = service(&["10.0.0.1"], false);
        addresses.assign(&name("a"), Some(&fixed));
        addresses.assign(&name("b"), Some(&fixed));
        assert!(addresses.of(&name("b")).is_empty());
        let next = addresses.assign(&name("a"), None);
        assert_eq!(next, [name("b")].into());
        addresses.assign(&name("b"), Some(&fixed));
        assert_eq!(addresses.of(&name("b")).len(), 1);
    }

    #[test]
    fn what_was_stored_is_kept_unless_nobody_has_it() {
        let mut addresses = ranges(&["10.96.0.0/24"]);
        let kept: IpAddr = "10.96.0.77".parse().unwrap();
        addresses.restore(name("cart"), kept);
        addresses.restore(name("gone"), "10.96.0.78".parse().unwrap());
        addresses.restore(name("far"), "10.97.0.1".parse().unwrap());
        addresses.assign(&name("cart"), Some(&service(&[], false)));
        assert_eq!(addresses.of(&name("cart")), [kept]);
        addresses.sweep(|n| *n == name("cart"));
        assert_eq!(addresses.take_writes().len(), 2, "both others are removed");
        assert_eq!(addresses.holders.len(), 1);
    }
}
