//! Placement of virtual actors as a pure state machine: no I/O, no clock of its own, no randomness.
//!
//! Owns: the hash from actor ids to slots ([`SlotCount::slot_of`]), the assignment of slots to hosts
//! ([`Table`]), nodes' leases ([`Placement`]), and the copy of a table that a node keeps
//! ([`TableView`]). What crosses the border are [`Snapshot`]s and [`Delta`]s; time is passed in.
//!
//! Every (namespace, actor type) has a table of its own with its own version. Per slot an epoch
//! rises with each change of owner and never falls, so that whoever holds an older epoch can be
//! told apart from the owner.

mod assign;
mod lease;
mod machine;
mod slots;
mod table;
mod types;
mod view;

pub use lease::{LEASE, LEASE_MARGIN, PAUSE, RENEW};
pub use machine::{Limits, Placement, Refusal, Saved, SavedHost, SavedTable, Settled, Share};
pub use slots::{DEFAULT_SLOTS, SlotCount, SlotCountError};
pub use table::{Delta, Move, Snapshot, Table};
pub use types::{HostInfo, Registration, Time, TypeKey};
pub use view::{Owner, TableView, ViewError};
