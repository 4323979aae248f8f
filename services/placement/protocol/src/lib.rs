//! Placement of virtual actors as a pure state machine: no I/O, no clock of its own, no randomness.
//!
//! Owns: the hash from actor ids to slots ([`SlotCount::slot_of`]), the assignment of slots to hosts
//! ([`Table`]), nodes' leases and what they are to hand over ([`Placement`]), the copy of a table that
//! a node keeps ([`TableView`]), what a node may do with it ([`Gate`]), what a store compares
//! ([`Fence`]), who of several replicas leads ([`Candidate`]), and which reminders are due
//! ([`Reminders`]). What crosses the border are messages as values; time is passed in.
//!
//! Every (namespace, actor type) has a table of its own with its own version. Per slot an epoch
//! rises with each change of owner and never falls, so that whoever holds an older epoch can be
//! told apart from the owner.

mod assign;
mod fence;
mod gate;
mod handover;
mod leader;
mod lease;
mod machine;
mod reminders;
mod slots;
mod table;
mod types;
mod view;

pub use fence::{Fence, Fenced};
pub use gate::{Closed, Gate, Step};
pub use handover::Handover;
pub use leader::{Ask, Candidate, LEADER_BEAT, LEADER_LEASE, LEADER_MARGIN, LeaderRow};
pub use lease::{DRAIN, HANDOVER, LEASE, LEASE_MARGIN, PAUSE, RENEW, SILENT};
pub use machine::{Limits, Placement, Refusal, Saved, SavedHost, SavedTable, Settled, Share};
pub use reminders::{Done, REDELIVER, Reminder, Reminders};
pub use slots::{DEFAULT_SLOTS, SlotCount, SlotCountError};
pub use table::{Delta, Move, Snapshot, Table};
pub use types::{HostInfo, Registration, Time, TypeKey};
pub use view::{Owner, TableView, ViewError};
