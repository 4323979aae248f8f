//! A node's copy of one type's table: applies what the server sends and answers who owns an id.

use crate::{Delta, HostInfo, SlotCount, Snapshot};
use std::{collections::HashMap, sync::Arc};

/// Why a message does not fit the copy. The remedy is always to ask for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// A delta for another version.
    #[error("delta starts at version {from}, version {held} is held")]
    Version {
        /// Where the delta starts.
        from: u64,
        /// What is held.
        held: u64,
    },
    /// Lists of the wrong length.
    #[error("table of {slots} slots has {owners} owners and {epochs} epochs")]
    Length {
        /// Slots.
        slots: u32,
        /// Length of the list of owners.
        owners: usize,
        /// Length of the list of epochs.
        epochs: usize,
    },
    /// A slot beyond the table's end.
    #[error("slot {0} is beyond the end of the table")]
    Slot(u32),
    /// An owner that is not among the hosts.
    #[error("slot {0} belongs to a host that is not in the table")]
    UnknownOwner(u32),
    /// The same host twice.
    #[error("host {0} is listed twice")]
    DoubleHost(Arc<str>),
    /// An epoch below the one held.
    #[error("epoch of slot {slot} falls from {held} to {got}")]
    Epoch {
        /// Which slot.
        slot: u32,
        /// What is held.
        held: u64,
        /// What came.
        got: u64,
    },
}

/// Who owns an actor id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner<'a> {
    /// The id's slot.
    pub slot: u32,
    /// The slot's epoch: what fences the owner's writes.
    pub epoch: u64,
    /// The owner.
    pub host: &'a Arc<HostInfo>,
}

/// A copy of one type's table. Either all of a message is applied or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableView {
    slots: SlotCount,
    version: u64,
    /// Places of hosts that left stay free until another takes them: `owners` refers to places.
    hosts: Vec<Option<Arc<HostInfo>>>,
    /// Place plus one; 0 for no owner.
    owners: Vec<u32>,
    epochs: Vec<u64>,
}

impl TableView {
    /// From a whole table.
    pub fn new(snapshot: Snapshot) -> Result<Self, ViewError> {
        let Snapshot {
            version,
            slots,
            hosts,
            owners,
            epochs,
        } = snapshot;
        if owners.len() != slots.len() || epochs.len() != slots.len() {
            let (owners, epochs) = (owners.len(), epochs.len());
            return Err(ViewError::Length {
                slots: slots.get(),
                owners,
                epochs,
            });
        }
        if let Some((slot, _)) = (0..)
            .zip(&owners)
            .find(|(_, owner)| **owner as usize > hosts.len())
        {
            return Err(ViewError::UnknownOwner(slot));
        }
        let view = Self {
            slots,
            version,
            hosts: hosts.into_iter().map(Some).collect(),
            owners,
            epochs,
        };
        view.places()?;
        Ok(view)
    }

    /// Where each host is in `hosts`.
    fn places(&self) -> Result<HashMap<Arc<str>, usize>, ViewError> {
        let mut places = HashMap::with_capacity(self.hosts.len());
        for (place, host) in self.hosts.iter().enumerate() {
            let Some(host) = host else { continue };
            if places.insert(host.id.clone(), place).is_some() {
                return Err(ViewError::DoubleHost(host.id.clone()));
            }
        }
        Ok(places)
    }

    /// The copy after `delta`.
    pub fn apply(&self, delta: &Delta) -> Result<Self, ViewError> {
        if delta.from != self.version || delta.version < delta.from {
            return Err(ViewError::Version {
                from: delta.from,
                held: self.version,
            });
        }
        let mut next = self.clone();
        let mut places = next.places()?;
        for id in &delta.hosts_down {
            if let Some(place) = places.remove(id) {
                next.hosts[place] = None;
            }
        }
        // A place is taken again only by a later delta: until the moves below are done, slots may
        // still refer to the host that left it.
        for host in &delta.hosts_up {
            match places.get(&host.id) {
                Some(place) => next.hosts[*place] = Some(host.clone()),
                None => {
                    places.insert(host.id.clone(), next.hosts.len());
                    next.hosts.push(Some(host.clone()));
                }
            }
        }
        for change in &delta.moves {
            let slot = change.slot as usize;
            let held = *next.epochs.get(slot).ok_or(ViewError::Slot(change.slot))?;
            if change.epoch < held {
                return Err(ViewError::Epoch {
                    slot: change.slot,
                    held,
                    got: change.epoch,
                });
            }
            next.epochs[slot] = change.epoch;
            next.owners[slot] = match &change.owner {
                None => 0,
                // Places are fewer than messages have bytes.
                Some(id) => *places.get(id).ok_or(ViewError::UnknownOwner(change.slot))? as u32 + 1,
            };
        }
        next.version = delta.version;
        next.compact();
        let orphan = (0u32..)
            .zip(&next.owners)
            .find(|(_, o)| **o != 0 && next.host(**o).is_none());
        match orphan {
            Some((slot, _)) => Err(ViewError::UnknownOwner(slot)),
            None => Ok(next),
        }
    }

    /// Closes the gaps that hosts left behind, once there are more gaps than hosts.
    fn compact(&mut self) {
        let present = self.hosts.iter().flatten().count();
        if self.hosts.len() <= 2 * present + 8 {
            return;
        }
        let mut new_place = vec![0u32; self.hosts.len() + 1];
        let mut kept = Vec::with_capacity(present);
        for (place, host) in std::mem::take(&mut self.hosts).into_iter().enumerate() {
            if let Some(host) = host {
                kept.push(Some(host));
                new_place[place + 1] = kept.len() as u32;
            } else {
                // Beyond the end: found as an orphan if a slot still refers to it.
                new_place[place + 1] = u32::MAX;
            }
        }
        for owner in &mut self.owners {
            *owner = new_place[*owner as usize];
        }
        self.hosts = kept;
    }

    fn host(&self, place_plus_one: u32) -> Option<&Arc<HostInfo>> {
        self.hosts
            .get((place_plus_one as usize).checked_sub(1)?)?
            .as_ref()
    }

    /// The version held.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Number of slots.
    pub fn slots(&self) -> SlotCount {
        self.slots
    }

    /// The hosts.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<HostInfo>> {
        self.hosts.iter().flatten()
    }

    /// Who owns `actor_id`; `None` if nobody does. Costs the same however many hosts there are.
    pub fn lookup(&self, actor_id: &str) -> Option<Owner<'_>> {
        self.slot(self.slots.slot_of(actor_id))
    }

    /// Who owns `slot`.
    pub fn slot(&self, slot: u32) -> Option<Owner<'_>> {
        let host = self.host(*self.owners.get(slot as usize)?)?;
        Some(Owner {
            slot,
            epoch: *self.epochs.get(slot as usize)?,
            host,
        })
    }

    /// Epoch of `slot`, whoever owns it.
    pub fn epoch(&self, slot: u32) -> Option<u64> {
        self.epochs.get(slot as usize).copied()
    }
}
