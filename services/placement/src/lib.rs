//! The placement service: which host owns which actors.
//!
//! Owns: the assignment of every actor type's slots to hosts, nodes' leases, and the database that
//! keeps both across restarts. What crosses the border is `weft.placement.v1` over mTLS; the rules
//! are in [`weft_placement_protocol`], timing and messages in `PROTOCOL.md`.

mod api;
mod clock;
mod config;
mod core;
mod metrics;
mod serve;
mod session;
mod store;

pub use api::ROLES;
pub use clock::Clock;
pub use config::{Config, ConfigError, Token};
pub use serve::{Handle, Options, ServeError, bind, serve, start};
pub use store::{DatabasePlace, StateError};
