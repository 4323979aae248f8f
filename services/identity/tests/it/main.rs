//! The identity service on real sockets, with real clients.
#![allow(clippy::unwrap_used, missing_docs)]

mod attest;
mod attest_bounds;
mod attest_jwt;
mod attest_kubernetes;
mod audit;
mod authority;
mod backup;
mod binary;
mod clocks;
mod cluster;
mod enrolling;
mod faults;
mod hierarchy;
mod issuer;
mod jwt;
mod limits;
mod methods;
#[path = "../../../../crates/store/tests/postgres/mod.rs"]
mod postgres;
mod reasons;
mod refusals;
mod replicas;
mod revocation;
mod rig;
mod rotation;
mod sentry;
mod streams;
mod turned_away;
mod workloads;
mod world;
