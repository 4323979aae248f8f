//! The identity service on real sockets, with real clients.
#![allow(clippy::unwrap_used, missing_docs)]

mod attest;
mod authority;
mod backup;
mod binary;
mod enrolling;
mod hierarchy;
mod jwt;
mod methods;
mod postgres;
mod replicas;
mod revocation;
mod rig;
mod rotation;
mod streams;
mod workloads;
