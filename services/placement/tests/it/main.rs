//! The service in this process, on real sockets with mTLS: what nodes see of it.
#![allow(clippy::unwrap_used, missing_docs)]

mod binary;
mod database;
mod leases;
mod mesh;
mod owners;
#[path = "../../../../crates/store/tests/postgres/mod.rs"]
mod postgres;
mod roles;
mod server;
mod streams;
