//! The table of one actor type as the server keeps it: who owns each slot, and what changed when.
//!
//! Nothing here remembers nodes. Every slot and host carries the version in which it last
//! changed, so the difference from any version a node holds can be read off, however long that
//! node was away, in memory that does not grow with the number of changes.

use crate::{
    HostInfo, SlotCount,
    assign::{Weighted, rebalance},
    handover::Moving,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// Names of hosts that left are kept for deltas up to this many; who is further behind gets a snapshot.
const MAX_GONE: usize = 1024;

/// All of one type's table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Snapshot {
    /// Version of the table.
    pub version: u64,
    /// How many slots there are, for the type's lifetime.
    pub slots: SlotCount,
    /// The hosts.
    pub hosts: Vec<Arc<HostInfo>>,
    /// Per slot the index of its owner in `hosts` plus one; 0 for no owner.
    pub owners: Vec<u32>,
    /// Per slot its epoch.
    pub epochs: Vec<u64>,
}

/// One slot's change of owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Move {
    /// Which slot.
    pub slot: u32,
    /// [`HostInfo::id`] of the new owner; none if nobody is left.
    pub owner: Option<Arc<str>>,
    /// Epoch under the new owner.
    pub epoch: u64,
}

/// What changed between two versions of one type's table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Delta {
    /// Applies to this version only.
    pub from: u64,
    /// Version after it.
    pub version: u64,
    /// Hosts that are new or changed.
    pub hosts_up: Vec<Arc<HostInfo>>,
    /// Hosts that left.
    pub hosts_down: Vec<Arc<str>>,
    /// Slots with a new owner.
    pub moves: Vec<Move>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Member {
    host: Arc<HostInfo>,
    changed: u64,
    /// Keeps what it has until somebody else can have it, and gets nothing more.
    leaving: bool,
}

/// What a settle changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    /// The version has risen.
    pub version: bool,
    /// Other slots than before are to be handed over, or to others.
    pub moving: bool,
}

/// Who owns the slots of one actor type.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Table {
    slots: SlotCount,
    version: u64,
    /// No slot has an epoch above this while the slots are not kept (no hosts).
    floor: u64,
    members: BTreeMap<u32, Member>,
    /// Host numbers; empty when there are no hosts.
    owners: Vec<u32>,
    epochs: Vec<u64>,
    changed: Vec<u64>,
    gone: VecDeque<(u64, Arc<str>)>,
    /// Deltas from before this version can not be made: names of hosts that left are forgotten.
    oldest: u64,
    touched: bool,
    /// Slots whose owner is there and has to stop its turns first.
    pub(crate) moving: BTreeMap<u32, Moving>,
}

impl Table {
    /// Without hosts. The first owner of any slot gets an epoch above `floor`.
    pub fn new(slots: SlotCount, floor: u64) -> Self {
        Self {
            slots,
            version: 0,
            floor,
            members: BTreeMap::new(),
            owners: Vec::new(),
            epochs: Vec::new(),
            changed: Vec::new(),
            gone: VecDeque::new(),
            oldest: 0,
            touched: false,
            moving: BTreeMap::new(),
        }
    }

    /// As it was saved. Owners that are not among `members` count as none, under the same epoch.
    pub(crate) fn restore(
        slots: SlotCount,
        version: u64,
        floor: u64,
        members: impl IntoIterator<Item = (u32, Arc<HostInfo>)>,
        saved: &[(u32, u64)],
    ) -> Self {
        let mut table = Self::new(slots, floor);
        table.version = version;
        // What left before is not known any more.
        table.oldest = version;
        table.members = members
            .into_iter()
            .map(|(n, host)| {
                (
                    n,
                    Member {
                        host,
                        changed: version,
                        // Its node says so again if it is.
                        leaving: false,
                    },
                )
            })
            .collect();
        if !table.members.is_empty() || !saved.is_empty() {
            table.owners = vec![0; slots.len()];
            table.epochs = vec![floor; slots.len()];
            table.changed = vec![version; slots.len()];
            for (slot, (owner, epoch)) in saved.iter().enumerate().take(slots.len()) {
                table.owners[slot] = if table.members.contains_key(owner) {
                    *owner
                } else {
                    0
                };
                table.epochs[slot] = (*epoch).max(floor);
            }
            table.touched = true;
        }
        table
    }

    pub(crate) fn join(&mut self, number: u32, host: Arc<HostInfo>, leaving: bool) {
        let changed = match self.members.get(&number) {
            // Nobody else has to know that it is to leave.
            Some(known) if known.host == host => known.changed,
            _ => self.version + 1,
        };
        self.members.insert(
            number,
            Member {
                host,
                changed,
                leaving,
            },
        );
        self.touched = true;
    }

    pub(crate) fn leave(&mut self, number: u32) {
        if let Some(member) = self.members.remove(&number) {
            self.gone.push_back((self.version + 1, member.host.id.clone()));
            if self.gone.len() > MAX_GONE {
                self.oldest = self.gone.pop_front().map_or(self.oldest, |(version, _)| version);
            }
            self.touched = true;
        }
    }

    /// Gives the slots to the hosts that are there now: at once those whose owner has left or whose
    /// node runs no turns (`drains` says which do), the others when the owner has stopped its turns.
    pub(crate) fn settle(&mut self, drains: impl Fn(&HostInfo) -> bool) -> Change {
        let mut change = Change {
            version: false,
            moving: false,
        };
        if !std::mem::take(&mut self.touched) {
            return change;
        }
        let next = self.version + 1;
        if self.owners.is_empty() {
            self.owners = vec![0; self.slots.len()];
            self.epochs = vec![self.floor; self.slots.len()];
            self.changed = vec![next; self.slots.len()];
        }
        let plan = self.plan();
        let (mut last, mut waits) = (0, false);
        for slot in 0..self.slots.get() {
            let place = slot as usize;
            let (owner, to) = (self.owners[place], plan[place]);
            if owner == to {
                change.moving |= self.moving.remove(&slot).is_some();
                continue;
            }
            if owner != last {
                waits = self.members.get(&owner).is_some_and(|m| drains(&m.host));
                last = owner;
            }
            if owner != 0 && waits {
                // Who leaves and has no successor keeps the slot until it is gone.
                if to == 0 {
                    change.moving |= self.moving.remove(&slot).is_some();
                    continue;
                }
                let before = self.moving.get(&slot).copied();
                if before.is_none_or(|m| !m.done) {
                    let moving = Moving {
                        to,
                        ..before.unwrap_or_default()
                    };
                    change.moving |= before != Some(moving);
                    self.moving.insert(slot, moving);
                    continue;
                }
            }
            change.moving |= self.moving.remove(&slot).is_some();
            self.owners[place] = to;
            self.epochs[place] += 1;
            self.changed[place] = next;
            change.version = true;
        }
        change.version |= self.members.values().any(|m| m.changed == next)
            || self.gone.back().is_some_and(|(version, _)| *version == next);
        if !change.version {
            return change;
        }
        self.version = next;
        if self.members.is_empty() {
            // A type without hosts costs nothing but its highest epoch.
            self.floor = self.epochs.iter().copied().max().unwrap_or(self.floor);
            (self.owners, self.epochs, self.changed) = Default::default();
            self.gone.clear();
            self.oldest = next;
        }
        change
    }

    /// Per slot who is to own it in the end. What is on its way already stays so.
    fn plan(&self) -> Vec<u32> {
        let hosts: Vec<Weighted> = self
            .members
            .iter()
            .filter(|(_, m)| !m.leaving)
            .map(|(number, m)| Weighted {
                number: *number,
                capacity: m.host.capacity,
            })
            .collect();
        let mut plan = self.owners.clone();
        for (slot, moving) in &self.moving {
            if self.members.get(&moving.to).is_some_and(|m| !m.leaving) {
                plan[*slot as usize] = moving.to;
            }
        }
        for (slot, to) in rebalance(&plan, &hosts) {
            plan[slot as usize] = to;
        }
        plan
    }

    pub(crate) fn touch(&mut self) {
        self.touched = true;
    }

    pub(crate) fn member(&self, number: u32) -> Option<&Arc<HostInfo>> {
        self.members.get(&number).map(|m| &m.host)
    }

    /// Number of slots.
    pub fn slots(&self) -> SlotCount {
        self.slots
    }

    /// Version of the table: rises by one with each change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The epoch that every slot has while there are no hosts.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// Whether no host is left.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The hosts.
    pub fn hosts(&self) -> impl ExactSizeIterator<Item = &Arc<HostInfo>> {
        self.members.values().map(|m| &m.host)
    }

    /// Owner and epoch of a slot.
    pub fn owner(&self, slot: u32) -> (Option<&Arc<HostInfo>>, u64) {
        let number = self.owners.get(slot as usize).copied().unwrap_or(0);
        let epoch = self.epochs.get(slot as usize).copied().unwrap_or(self.floor);
        (self.members.get(&number).map(|m| &m.host), epoch)
    }

    /// How many slots each host owns.
    pub fn shares(&self) -> Vec<(&Arc<HostInfo>, u32)> {
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        for owner in &self.owners {
            *counts.entry(*owner).or_default() += 1;
        }
        self.members
            .iter()
            .map(|(n, m)| (&m.host, counts.get(n).copied().unwrap_or(0)))
            .collect()
    }

    /// Per slot the owner's number (0 for none), its epoch, and the version it last changed in:
    /// what is saved. Empty without hosts.
    pub fn slots_raw(&self) -> impl ExactSizeIterator<Item = (u32, u64, u64)> {
        self.owners
            .iter()
            .zip(&self.epochs)
            .zip(&self.changed)
            .map(|((o, e), c)| (*o, *e, *c))
    }

    /// All of it; `None` without hosts.
    pub fn snapshot(&self) -> Option<Snapshot> {
        if self.members.is_empty() {
            return None;
        }
        let places: BTreeMap<u32, u32> = self.members.keys().copied().zip(1..).collect();
        Some(Snapshot {
            version: self.version,
            slots: self.slots,
            hosts: self.hosts().cloned().collect(),
            owners: self
                .owners
                .iter()
                .map(|n| places.get(n).copied().unwrap_or(0))
                .collect(),
            epochs: self.epochs.clone(),
        })
    }

    /// What changed since `from`; `None` when a snapshot is needed: there are no hosts, `from` is
    /// too old, or most slots moved.
    pub fn delta(&self, from: u64) -> Option<Delta> {
        if self.members.is_empty() || from > self.version || from < self.oldest {
            return None;
        }
        let moved = || {
            (0u32..)
                .zip(&self.changed)
                .filter(|(_, version)| **version > from)
        };
        if moved().count() > self.slots.len() / 2 {
            return None;
        }
        let present = |id: &Arc<str>| self.members.values().any(|m| m.host.id == *id);
        Some(Delta {
            from,
            version: self.version,
            hosts_up: self
                .members
                .values()
                .filter(|m| m.changed > from)
                .map(|m| m.host.clone())
                .collect(),
            hosts_down: self
                .gone
                .iter()
                .filter(|(version, id)| *version > from && !present(id))
                .map(|(_, id)| id.clone())
                .collect(),
            moves: moved()
                .map(|(slot, _)| {
                    let (owner, epoch) = self.owner(slot);
                    Move {
                        slot,
                        owner: owner.map(|h| h.id.clone()),
                        epoch,
                    }
                })
                .collect(),
        })
    }
}
