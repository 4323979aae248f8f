//! The real `weft-node` and `weft-agent` on networks of namespaces: who called whom, as the kernel
//! knows it. Needs root.
#![allow(clippy::unwrap_used)]

mod arrivals;
mod attribution;
mod before;
mod carrying;
#[path = "../common/control.rs"]
mod control;
#[path = "../common/flows.rs"]
mod flows;
mod ingress;
mod names;
mod openssl;
mod outside;
mod packets;
mod protocols;
mod redirects;
mod requests;
mod revocation;
mod rig;
mod rotation;
mod shared;
mod shared_api;
mod spiffe;
mod spiffe_crate;
mod upgrade;
