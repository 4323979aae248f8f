//! Policy sets and their entries, as the programs judge by them.
//!
//! A set's entries are there before the set is, and the set before an endpoint names it; they go in
//! the reverse order. An entry is replaced in one step, so a reader has the old or the new.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::epoch::Epoch;
use crate::error::Error;
use crate::layout::packet::{RawPolicy, RawPolicyKey, RawRange, RawSet};
use crate::table::Table;

const ALLOW: u8 = 1;
const DENY: u8 = 2;
const REDIRECT: u8 = 1;
const AUTH: u8 = 2;
const FREE: u8 = 4;
const DERIVED: u8 = 8;
const PROXIED: u8 = 16;
/// Of a range's key, all before the port.
const RANGE_BITS: u32 = 80;

/// Which way a connection goes, as seen from the endpoint that is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the endpoint.
    In,
    /// From the endpoint.
    Out,
}

impl Direction {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::In => 0,
            Self::Out => 1,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::In, Self::Out]
            .into_iter()
            .find(|known| known.number() == number)
    }
}

/// How a set is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Set {
    /// The kinds of keys in use, coming in, as bits: peer, protocol and port 1; peer and protocol 2;
    /// peer 4; protocol and port 8; protocol 16; none 32.
    pub shapes_in: u32,
    /// The same, going out.
    pub shapes_out: u32,
    /// What no entry allows is refused, coming in (1) and going out (2); ranges are to be asked,
    /// coming in (8) and going out (16); no entry wants the proxy, coming in (32) and going out (64).
    pub flags: u32,
    /// Never the same for two sets or two contents: connections are judged anew when it is another.
    pub generation: u32,
}

/// The sets by number.
#[derive(Debug)]
pub struct Sets {
    table: Table<u32, RawSet>,
}

impl Sets {
    /// Takes the descriptor of the map `sets`. Needs no capability.
    pub(crate) fn from_fd(fd: OwnedFd, epoch: &Arc<Epoch>) -> Result<Self, Error> {
        Ok(Self {
            table: Table::remembered(fd, "sets", epoch)?,
        })
    }

    /// Makes or changes a set.
    pub fn set(&self, number: u32, set: Set) -> Result<(), Error> {
        let raw = RawSet {
            shapes_in: set.shapes_in,
            shapes_out: set.shapes_out,
            flags: set.flags,
            generation: set.generation,
        };
        self.table.set(&number, &raw)
    }

    /// Removes a set: endpoints that still name it are closed. Returns whether it was there.
    pub fn remove(&self, number: u32) -> Result<bool, Error> {
        self.table.remove(&number)
    }

    /// All of them.
    pub fn list(&self) -> Result<Vec<(u32, Set)>, Error> {
        let read = |(number, raw): (u32, RawSet)| {
            let set = Set {
                shapes_in: raw.shapes_in,
                shapes_out: raw.shapes_out,
                flags: raw.flags,
                generation: raw.generation,
            };
            (number, set)
        };
        Ok(self.table.list()?.into_iter().map(read).collect())
    }

    /// How many sets there may be.
    pub fn max_entries(&self) -> u32 {
        self.table.max_entries()
    }
}

/// What an entry is about. What is 0 means any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// The set's number.
    pub set: u32,
    /// The peer's identity.
    pub identity: u32,
    /// Which way.
    pub direction: Direction,
    /// The protocol's number in IP.
    pub protocol: u8,
    /// The server's port; for ICMP the message's type plus one.
    pub port: u16,
}

/// A block of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeKey {
    /// The set's number.
    pub set: u32,
    /// The peer's identity; 0 for any.
    pub identity: u32,
    /// Which way.
    pub direction: Direction,
    /// The protocol's number in IP.
    pub protocol: u8,
    /// The first port.
    pub port: u16,
    /// How many leading bits of the port count, at most 16.
    pub length: u8,
}

/// What an entry says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Entry {
    /// It refuses; else it allows, and the others say how.
    pub deny: bool,
    /// Only through the proxy.
    pub redirect: bool,
    /// Only between ends that are proven.
    pub auth: bool,
    /// Also between others, whatever a wider entry says.
    pub free: bool,
    /// Which of these two is what a wider block of ports says.
    pub derived: bool,
    /// One of its rules is about requests.
    pub proxied: bool,
    /// Of a block of ports: how many bits of protocol and port the narrowest of its rules names.
    pub length: u8,
    /// What events call the rule; 0 for none.
    pub rule: u32,
}

impl From<Entry> for RawPolicy {
    fn from(entry: Entry) -> Self {
        let flags = [
            (entry.redirect, REDIRECT),
            (entry.auth, AUTH),
            (entry.free, FREE),
            (entry.derived, DERIVED),
            (entry.proxied, PROXIED),
        ];
        let flags = flags.into_iter().filter(|(is, _)| *is);
        Self {
            verdict: if entry.deny { DENY } else { ALLOW },
            flags: flags.fold(0, |all, (_, flag)| all | flag),
            length: entry.length,
            zero: 0,
            rule: entry.rule,
        }
    }
}

impl From<RawPolicy> for Entry {
    fn from(raw: RawPolicy) -> Self {
        Self {
            deny: raw.verdict != ALLOW,
            redirect: raw.flags & REDIRECT != 0,
            auth: raw.flags & AUTH != 0,
            free: raw.flags & FREE != 0,
            derived: raw.flags & DERIVED != 0,
            proxied: raw.flags & PROXIED != 0,
            length: raw.length,
            rule: raw.rule,
        }
    }
}

impl From<PolicyKey> for RawPolicyKey {
    fn from(key: PolicyKey) -> Self {
        Self {
            set: key.set,
            identity: key.identity,
            port: key.port,
            proto: key.protocol,
            dir: key.direction.number(),
        }
    }
}

fn policy_key(raw: RawPolicyKey) -> Option<PolicyKey> {
    Some(PolicyKey {
        set: raw.set,
        identity: raw.identity,
        direction: Direction::from_number(raw.dir)?,
        protocol: raw.proto,
        port: raw.port,
    })
}

impl From<RangeKey> for RawRange {
    fn from(key: RangeKey) -> Self {
        let length = key.length.min(16);
        let mask = u16::MAX.checked_shl(16 - u32::from(length)).unwrap_or(0);
        Self {
            length: RANGE_BITS + u32::from(length),
            set: key.set,
            identity: key.identity,
            dir: key.direction.number(),
            proto: key.protocol,
            port: (key.port & mask).to_be_bytes(),
        }
    }
}

fn range_key(raw: RawRange) -> Option<RangeKey> {
    Some(RangeKey {
        set: raw.set,
        identity: raw.identity,
        direction: Direction::from_number(raw.dir)?,
        protocol: raw.proto,
        port: u16::from_be_bytes(raw.port),
        length: u8::try_from(raw.length.checked_sub(RANGE_BITS)?).ok()?,
    })
}

/// The entries of all sets.
#[derive(Debug)]
pub struct Policy {
    entries: Table<RawPolicyKey, RawPolicy>,
    allow: Table<RawRange, RawPolicy>,
    deny: Table<RawRange, RawPolicy>,
}

impl Policy {
    /// Takes the descriptors of the maps `policy`, `range_allow` and `range_deny`. Needs no
    /// capability.
    pub fn from_fds(entries: OwnedFd, allow: OwnedFd, deny: OwnedFd) -> Result<Self, Error> {
        Ok(Self {
            entries: Table::from_fd(entries, "policy")?,
            allow: Table::from_fd(allow, "range_allow")?,
            deny: Table::from_fd(deny, "range_deny")?,
        })
    }

    /// Makes or replaces an entry.
    pub fn set(&self, key: PolicyKey, entry: Entry) -> Result<(), Error> {
        self.entries.set(&key.into(), &entry.into())
    }

    /// Returns whether it was there.
    pub fn remove(&self, key: PolicyKey) -> Result<bool, Error> {
        self.entries.remove(&key.into())
    }

    /// Makes or replaces a block of ports, among those that refuse or among those that allow.
    pub fn set_range(&self, key: RangeKey, entry: Entry) -> Result<(), Error> {
        self.ranges(entry.deny).set(&key.into(), &entry.into())
    }

    /// Removes a block from those that refuse or from those that allow. Returns whether it was there.
    pub fn remove_range(&self, key: RangeKey, deny: bool) -> Result<bool, Error> {
        self.ranges(deny).remove(&key.into())
    }

    fn ranges(&self, deny: bool) -> &Table<RawRange, RawPolicy> {
        if deny { &self.deny } else { &self.allow }
    }

    /// All entries of all sets.
    pub fn list(&self) -> Result<Vec<(PolicyKey, Entry)>, Error> {
        let all = self.entries.list()?.into_iter();
        Ok(all
            .filter_map(|(key, value)| Some((policy_key(key)?, value.into())))
            .collect())
    }

    /// All blocks of ports; [`Entry::deny`] tells in which of the two tables.
    pub fn list_ranges(&self) -> Result<Vec<(RangeKey, Entry)>, Error> {
        let all = self.allow.list()?.into_iter().chain(self.deny.list()?);
        Ok(all
            .filter_map(|(key, value)| Some((range_key(key)?, value.into())))
            .collect())
    }

    /// How many entries there may be; of blocks of ports a quarter.
    pub fn max_entries(&self) -> u32 {
        self.entries.max_entries()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_block_is_read_as_it_was_written(
            set: u32, identity: u32, out: bool, protocol: u8, port: u16, length in 0..=16u8,
        ) {
            let direction = if out { Direction::Out } else { Direction::In };
            let port = port & u16::MAX.checked_shl(16 - u32::from(length)).unwrap_or(0);
            let key = RangeKey { set, identity, direction, protocol, port, length };
            prop_assert_eq!(range_key(key.into()), Some(key));
        }

        #[test]
        fn an_entry_is_read_as_it_was_written(
            deny: bool, redirect: bool, flags: [bool; 4], length: u8, rule: u32,
        ) {
            let [auth, free, derived, proxied] = flags;
            let entry = Entry { deny, redirect, auth, free, derived, proxied, length, rule };
            prop_assert_eq!(Entry::from(RawPolicy::from(entry)), entry);
        }

        #[test]
        fn a_key_is_read_as_it_was_written(set: u32, identity: u32, out: bool, protocol: u8, port: u16) {
            let direction = if out { Direction::Out } else { Direction::In };
            let key = PolicyKey { set, identity, direction, protocol, port };
            prop_assert_eq!(policy_key(key.into()), Some(key));
        }
    }
}
