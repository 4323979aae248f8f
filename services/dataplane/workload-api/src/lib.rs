//! SPIFFE's Workload API on a unix socket: the process at the other end gets the identity of the
//! workload it belongs to, and nobody shows anything for it.
//!
//! Owns: who is at the other end of a connection ([`peer`](Peer)), the five methods of the API
//! ([`serve`]), and how JWT-SVIDs are read ([`Jwks`]). What crosses the border: a listening socket,
//! a [`Source`] that knows the workloads and has their certificates, and the trust bundle. Keys that
//! are handed out here are the workload's own; tunnel certificates never come this way.
//!
//! The kernel says who: `SO_PEERPIDFD` names the process that connected, its cgroup names the
//! workload, and the process must still be alive after its cgroup was read, so that a number that
//! was used again is nobody's identity.

mod api;
mod authority;
mod jwt;
mod peer;
mod serve;
mod source;

pub use jwt::{Claims, Jwks, JwtError};
pub use peer::{Peer, PeerError};
pub use serve::{ServeError, serve};
pub use source::{Source, Workload, X509};
