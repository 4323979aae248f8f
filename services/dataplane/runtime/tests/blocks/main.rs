//! The building blocks as apps meet them: real sockets, real drivers.

#![allow(clippy::unwrap_used)]

#[path = "../world/mod.rs"]
mod world;

mod bindings;
mod errors;
mod grpc;
mod manifests;
mod publish;
mod stage;
mod state;
mod stores;
mod streaming;
