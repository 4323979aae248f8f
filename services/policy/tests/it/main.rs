//! The service as its callers meet it: over mTLS, with a folder of files and a database.
#![allow(clippy::unwrap_used)]

mod api_server;
mod cluster;
mod distribution;
mod explain;
mod files;
mod kinds;
mod names;
mod nodes;
mod orders;
#[path = "../../../../crates/store/tests/postgres/mod.rs"]
mod postgres;
mod process;
mod registry;
mod rig;
mod routes;
mod server;
mod shared;
mod starts;
