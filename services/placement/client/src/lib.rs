//! A node's side of placement: keeps one stream to the service for all of the node's apps, reports
//! their hosts, renews the lease, and keeps a copy of every table.
//!
//! Owns: reconnecting with backoff and jitter, what the node holds (so that it comes back with
//! deltas), and until when the node may take itself for an owner ([`Status::lease_until`]). What
//! crosses the border are [`Registration`]s in, and [`Tables`] and [`Status`] out. Lookups read a
//! shared snapshot and never wait. With the service away, tables stay as they were and the lease
//! runs out; whether a turn may still start is the caller's to ask.

mod held;
mod session;
mod status;
mod tables;
pub mod wire;

pub use session::{Client, Config, start};
pub use status::{Link, Status};
pub use tables::{Placed, Tables};
pub use weft_placement_protocol::{HostInfo, Registration, TypeKey};
