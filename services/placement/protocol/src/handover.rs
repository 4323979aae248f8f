//! Moves between two hosts that are both there: the owner stops its turns first.
//!
//! The owner's node is told which slots to hand over. It starts no more turns in them, gives those
//! that run [`DRAIN`](crate::DRAIN), and reports; only then the slot gets its new owner and epoch.
//! What is on its way is not saved: whoever restores the state plans anew and tells it anew.

use crate::{HANDOVER, HostInfo, Placement, SILENT, Settled, Table, Time, TypeKey};
use std::sync::Arc;

/// A slot on its way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Moving {
    /// Number of the host that is to have it.
    pub to: u32,
    /// Since when whoever renews has been told.
    pub told: Option<Time>,
    /// The owner's turns are over, surely.
    pub done: bool,
}

/// A slot that its owner is to hand over.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Handover {
    /// Which slot.
    pub slot: u32,
    /// Its epoch under the present owner.
    pub epoch: u64,
    /// Who is to have it: where calls that wait may go.
    pub to: Arc<HostInfo>,
}

impl Table {
    /// The slots that hosts of `node` are to hand over.
    pub fn handovers(&self, node: &str) -> impl Iterator<Item = Handover> {
        self.moving
            .iter()
            .filter(|(_, m)| !m.done)
            .filter_map(move |(slot, moving)| {
                let (owner, epoch) = self.owner(*slot);
                let mine = owner.is_some_and(|o| &*o.node == node);
                mine.then_some(Handover {
                    slot: *slot,
                    epoch,
                    to: self.member(moving.to)?.clone(),
                })
            })
    }

    /// How many slots are on their way.
    pub fn moving(&self) -> usize {
        self.moving.len()
    }
}

impl Placement {
    /// Says whether a node runs turns. One that does not is not asked before its slots move.
    pub fn set_drains(&mut self, node: &str, drains: bool) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.drains = drains;
        }
        self.replan();
    }

    /// Looks anew at what is on its way.
    pub(crate) fn replan(&mut self) {
        let moving = |(key, table): (&TypeKey, &mut Table)| {
            (table.moving() > 0).then(|| {
                table.touch();
                key.clone()
            })
        };
        let keys: Vec<_> = self.tables.iter_mut().filter_map(moving).collect();
        keys.iter().for_each(|key| self.touch(key));
    }

    /// What `settled` changed is written, and every answer to a renewal from now on comes behind it.
    pub fn told(&mut self, settled: &Settled) {
        for key in &settled.moving {
            let Some(table) = self.tables.get_mut(key) else {
                continue;
            };
            for moving in table.moving.values_mut() {
                moving.told.get_or_insert(self.now);
            }
        }
    }

    /// A node has stopped its turns in a slot. False if that is not, or no longer, of interest.
    pub fn drained(&mut self, node: &str, key: &TypeKey, slot: u32, epoch: u64) -> bool {
        let Some(table) = self.tables.get_mut(key) else {
            return false;
        };
        let (owner, current) = table.owner(slot);
        if current != epoch || owner.is_none_or(|o| &*o.node != node) {
            return false;
        }
        let Some(moving) = table.moving.get_mut(&slot) else {
            return false;
        };
        moving.done = true;
        table.touch();
        self.touch(key);
        true
    }

    /// Frees the slots whose owners have been silent about them for too long.
    pub(crate) fn overdue(&mut self) {
        let mut late = Vec::new();
        for (key, table) in &mut self.tables {
            let before = late.len();
            for moving in table.moving.values_mut() {
                if !moving.done && moving.told.is_some_and(|told| told + HANDOVER <= self.now) {
                    moving.done = true;
                    late.push(key.clone());
                }
            }
            if late.len() > before {
                table.touch();
            }
        }
        late.iter().for_each(|key| self.touch(key));
    }

    /// Nodes that have a lease but were not heard of lately: others send them no calls.
    pub fn silent(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes
            .iter()
            .filter(|(_, node)| node.heard + SILENT <= self.now)
            .map(|(name, _)| name)
    }

    /// Whether a node's host owns the slot under this epoch: what a reminder or timer needs to be taken.
    pub fn is_current(&self, node: &str, key: &TypeKey, slot: u32, epoch: u64) -> bool {
        self.tables.get(key).is_some_and(|table| {
            let (owner, current) = table.owner(slot);
            current == epoch && owner.is_some_and(|o| &*o.node == node)
        })
    }
}
