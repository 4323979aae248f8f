//! The identity service on real sockets, with real clients.
#![allow(clippy::unwrap_used, missing_docs)]

mod enrolling;
#[allow(dead_code)]
mod rig;
