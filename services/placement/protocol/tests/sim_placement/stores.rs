//! The two databases: that of the placement service, and the apps' state store. Each does one thing
//! at a time, all of it or nothing. What is on the way to them or back may be late or get lost.

use crate::faults::Fault;
use std::collections::{BTreeMap, BTreeSet};
use weft_placement_protocol::{Ask, Fence, LeaderRow, Reminder, Saved, SavedHost, SavedTable, TypeKey};

/// What a leader writes at once.
#[derive(Debug, Clone, Default)]
pub struct Save {
    pub term: u64,
    /// Rises with each save of a leader.
    pub serial: u64,
    /// `None` removes.
    pub hosts: Vec<(String, Option<SavedHost>)>,
    pub tables: Vec<SavedTable>,
    pub reminders: Vec<(String, Option<Reminder>)>,
}

/// The placement service's database.
#[derive(Debug, Default)]
pub struct Database {
    pub row: LeaderRow,
    /// Term and serial of the last save.
    pub last: (u64, u64),
    pub hosts: BTreeMap<String, SavedHost>,
    pub tables: BTreeMap<TypeKey, SavedTable>,
    pub reminders: BTreeMap<String, Reminder>,
}

impl Database {
    pub fn ask(&mut self, ask: Ask, fault: Option<Fault>) -> LeaderRow {
        if let Ask::Swap { from, to } = ask
            && (self.row == from || fault == Some(Fault::LeaderWithoutCas))
        {
            self.row = to;
        }
        self.row
    }

    pub fn load(&self, term: u64) -> Option<(Saved, Vec<Reminder>)> {
        let saved = Saved {
            hosts: self.hosts.values().cloned().collect(),
            tables: self.tables.values().cloned().collect(),
        };
        (self.row.term == term).then(|| (saved, self.reminders.values().cloned().collect()))
    }

    pub fn save(&mut self, save: Save, fault: Option<Fault>) -> bool {
        let leads = save.term == self.row.term || fault == Some(Fault::TermNotCompared);
        // A save that was given up may still be on its way when the next one is through.
        let (term, serial) = self.last;
        let newer = save.term != term || save.serial > serial || fault == Some(Fault::SavesUnordered);
        if !(leads && newer) {
            return false;
        }
        self.last = (save.term, save.serial);
        for (id, host) in save.hosts {
            match host {
                Some(host) => drop(self.hosts.insert(id, host)),
                None => drop(self.hosts.remove(&id)),
            }
        }
        for table in save.tables {
            self.tables.insert(table.key.clone(), table);
        }
        for (id, row) in save.reminders {
            match row {
                Some(row) => drop(self.reminders.insert(id, row)),
                None => drop(self.reminders.remove(&id)),
            }
        }
        true
    }

    /// Owner's node and epoch of a slot, as committed.
    pub fn owner(&self, key: &TypeKey, slot: u32) -> Option<(&str, u64)> {
        let (number, epoch) = *self.tables.get(key)?.owners.get(slot as usize)?;
        let host = self.hosts.values().find(|h| h.number == number)?;
        Some((&host.info.node, epoch))
    }
}

/// An actor: its type, its slot, its id.
pub type Actor = (TypeKey, u32, u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Claim { epoch: u64 },
    Read,
    Write { epoch: u64, base: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Claimed(u64),
    Value(u64),
    Written(u64),
    Fenced,
    /// Somebody of the same epoch wrote in between.
    Conflict,
}

#[derive(Debug, Default, Clone, Copy)]
struct Row {
    value: u64,
    epoch: u64,
}

/// The apps' state store. It keeps its own record of what it took.
#[derive(Debug, Default)]
pub struct Store {
    fences: BTreeMap<(TypeKey, u32), Fence>,
    rows: BTreeMap<Actor, Row>,
    /// Per slot the epoch of the last write that was taken.
    last: BTreeMap<(TypeKey, u32), u64>,
    pub taken: u64,
    pub fenced: u64,
    pub epochs: BTreeSet<(TypeKey, u32, u64)>,
}

impl Store {
    pub fn apply(&mut self, actor: &Actor, op: Op, fault: Option<Fault>) -> Result<Answer, String> {
        let place = (actor.0.clone(), actor.1);
        let fence = self.fences.entry(place.clone()).or_default();
        match op {
            Op::Claim { epoch } => Ok(match fence.claim(epoch) {
                Ok(()) => Answer::Claimed(epoch),
                Err(_) => Answer::Fenced,
            }),
            Op::Read => Ok(Answer::Value(self.rows.get(actor).map_or(0, |r| r.value))),
            Op::Write { epoch, base } => {
                let admitted = match fault {
                    Some(Fault::FencingOff) => true,
                    Some(Fault::ClaimSkipped) => fence.claim(epoch).is_ok(),
                    _ => fence.admit(epoch).is_ok(),
                };
                if !admitted {
                    self.fenced += 1;
                    return Ok(Answer::Fenced);
                }
                let row = self.rows.entry(actor.clone()).or_default();
                if row.value != base {
                    if row.epoch != epoch {
                        return Err(format!(
                            "{actor:?}: a write under epoch {epoch} rests on value {base}, but {} was written under epoch {}",
                            row.value, row.epoch
                        ));
                    }
                    return Ok(Answer::Conflict);
                }
                let last = self.last.entry(place.clone()).or_default();
                if *last > epoch {
                    return Err(format!(
                        "{actor:?}: a write under epoch {epoch} was taken after one under {last}"
                    ));
                }
                *last = epoch;
                *row = Row {
                    value: base + 1,
                    epoch,
                };
                self.taken += 1;
                self.epochs.insert((place.0, place.1, epoch));
                Ok(Answer::Written(base + 1))
            }
        }
    }
}
