//! The address cache: who has an address, by the longest prefix that holds it.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::epoch::Epoch;
use crate::error::Error;
use crate::layout::packet::{RawAddress, RawPrefix};
use crate::table::Table;

/// `WEFT_ADDRESS_*`.
const LOCAL: u32 = 1;
const TUNNEL: u32 = 2;
const HOST: u32 = 4;
const AGGREGATE: u32 = 8;
const AGENT: u32 = 16;

/// IPv4 lies below `::ffff:0:0/96`.
const V4_BITS: u32 = 96;

/// Who has an address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Address {
    /// Its security identity.
    pub identity: u32,
    /// An endpoint of this node; with `host`, this node itself.
    pub local: bool,
    /// A workload of another node, reached by the agents' tunnel.
    pub tunnel: bool,
    /// A node's own.
    pub host: bool,
    /// In the cluster, but whose it is is not known yet: endpoints under a policy refuse it without an
    /// event, so that it is tried again.
    pub aggregate: bool,
    /// The agents answer there, for those whose connections they take: no packet ever goes there.
    pub agent: bool,
    /// The endpoint's number if it is of this node, else 0.
    pub endpoint: u32,
    /// Which other node; a number that means nothing here.
    pub node: u32,
}

impl From<Address> for RawAddress {
    fn from(address: Address) -> Self {
        let flags = [
            (address.local, LOCAL),
            (address.tunnel, TUNNEL),
            (address.host, HOST),
            (address.aggregate, AGGREGATE),
            (address.agent, AGENT),
        ];
        Self {
            identity: address.identity,
            flags: flags.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum(),
            endpoint: address.endpoint,
            node: address.node,
        }
    }
}

impl From<RawAddress> for Address {
    fn from(raw: RawAddress) -> Self {
        Self {
            identity: raw.identity,
            local: raw.flags & LOCAL != 0,
            tunnel: raw.flags & TUNNEL != 0,
            host: raw.flags & HOST != 0,
            aggregate: raw.flags & AGGREGATE != 0,
            agent: raw.flags & AGENT != 0,
            endpoint: raw.endpoint,
            node: raw.node,
        }
    }
}

/// An address as the maps write it.
pub(crate) fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// An address of a map: IPv4-mapped as IPv4.
pub(crate) fn address(octets: [u8; 16]) -> IpAddr {
    IpAddr::from(octets).to_canonical()
}

fn raw(net: IpNet) -> RawPrefix {
    let net = net.trunc();
    let before = if net.addr().is_ipv4() { V4_BITS } else { 0 };
    RawPrefix {
        length: before + u32::from(net.prefix_len()),
        addr: octets(net.addr()),
    }
}

fn net(raw: RawPrefix) -> Option<IpNet> {
    let length = u8::try_from(raw.length).ok()?;
    match address(raw.addr) {
        IpAddr::V4(v4) if raw.length >= V4_BITS => {
            Ipv4Net::new(v4, length - V4_BITS as u8).ok().map(IpNet::V4)
        }
        _ => Ipv6Net::new(raw.addr.into(), length).ok().map(IpNet::V6),
    }
}

/// The address cache.
#[derive(Debug)]
pub struct Addresses {
    table: Table<RawPrefix, RawAddress>,
}

impl Addresses {
    /// Takes the descriptor of the map `addresses`. Needs no capability.
    pub(crate) fn from_fd(fd: OwnedFd, epoch: &Arc<Epoch>) -> Result<Self, Error> {
        Ok(Self {
            table: Table::remembered(fd, "addresses", epoch)?,
        })
    }

    /// Says who has these addresses.
    pub fn set(&self, net: IpNet, address: Address) -> Result<(), Error> {
        self.table.set(&raw(net), &address.into())
    }

    /// Leaves these addresses to the next wider prefix. Returns whether this one was there.
    pub fn remove(&self, net: IpNet) -> Result<bool, Error> {
        self.table.remove(&raw(net))
    }

    /// What the programs find for an address.
    pub fn find(&self, address: IpAddr) -> Result<Option<Address>, Error> {
        let key = RawPrefix {
            length: 128,
            addr: octets(address),
        };
        Ok(self.table.get(&key)?.map(Address::from))
    }

    /// All prefixes.
    pub fn list(&self) -> Result<Vec<(IpNet, Address)>, Error> {
        // A lookup of a shorter prefix finds the longest that holds it: itself.
        let all = self.table.list()?.into_iter();
        Ok(all
            .filter_map(|(key, value)| Some((net(key)?, value.into())))
            .collect())
    }

    /// How many prefixes there may be.
    pub fn max_entries(&self) -> u32 {
        self.table.max_entries()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_prefix_is_read_as_it_was_written(octets: [u8; 16], length in 0..=128u8, v4: bool) {
            let net = if v4 {
                let [a, b, c, d, ..] = octets;
                IpNet::new([a, b, c, d].into(), length % 33).unwrap()
            } else {
                IpNet::new(octets.into(), length).unwrap()
            };
            // ::ffff:0:0/96 and narrower are IPv4.
            prop_assert_eq!(super::net(raw(net)), Some(net.trunc()));
        }

        #[test]
        fn an_address_is_read_as_it_was_written(
            numbers: [u32; 3], local: bool, tunnel: bool, host: bool, aggregate: bool, agent: bool,
        ) {
            let [identity, endpoint, node] = numbers;
            let address = Address { identity, local, tunnel, host, aggregate, agent, endpoint, node };
            prop_assert_eq!(Address::from(RawAddress::from(address)), address);
        }

        #[test]
        fn any_key_is_read_without_panic(length: u32, addr: [u8; 16]) {
            let _ = super::net(RawPrefix { length, addr });
        }
    }
}
