//! Who had a pod's address last, for the start of whoever gets it next: a node that still takes it for
//! the former's must hear of the change before the new one speaks.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
};

/// Addresses that are remembered. A removal that so many others followed was taken long ago.
const MAX_ADDRESSES: usize = 16_384;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Former {
    /// With the number of the leaving, to tell an old place in the queue from the present one.
    by_address: BTreeMap<IpAddr, (u64, String)>,
    order: VecDeque<(u64, IpAddr)>,
    last: u64,
}

impl Former {
    /// A workload left an address.
    pub(super) fn left(&mut self, address: IpAddr, id: &str) {
        self.last += 1;
        self.by_address.insert(address, (self.last, id.to_owned()));
        self.order.push_back((self.last, address));
        while self.order.len() > MAX_ADDRESSES {
            if let Some((number, address)) = self.order.pop_front()
                && self.by_address.get(&address).is_some_and(|(n, _)| *n == number)
            {
                self.by_address.remove(&address);
            }
        }
    }

    /// The id of the workload that left it last.
    pub(super) fn of(&self, address: IpAddr) -> Option<&str> {
        self.by_address.get(&address).map(|(_, id)| id.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn the_last_one_is_remembered_and_the_oldest_forgotten() {
        let mut former = Former::default();
        let address = |n: usize| IpAddr::from(Ipv4Addr::from(n as u32));
        former.left(address(1), "a");
        former.left(address(2), "b");
        former.left(address(1), "c");
        assert_eq!(former.of(address(1)), Some("c"));
        for n in 3..MAX_ADDRESSES {
            former.left(address(n), "d");
        }
        // The first place of 1 is lost, and not its present one.
        former.left(address(MAX_ADDRESSES), "e");
        former.left(address(MAX_ADDRESSES + 1), "f");
        assert_eq!((former.of(address(1)), former.of(address(2))), (Some("c"), None));
        former.left(address(MAX_ADDRESSES + 2), "g");
        assert_eq!(former.of(address(1)), None);
        assert_eq!(
            (former.by_address.len(), former.order.len()),
            (MAX_ADDRESSES, MAX_ADDRESSES)
        );
    }
}
