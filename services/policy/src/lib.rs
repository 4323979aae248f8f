//! What is desired, compiled, and streamed to each node as far as that node needs it.
//!
//! Owns: the resources that operators wrote, the registry of workloads, their numeric security identities,
//! and what each node was sent. What crosses the border is `weft.policy.v1` over mTLS (port 7303), a folder
//! of manifests or the API server of a Kubernetes cluster, and one database.
//!
//! How it fits: [`source`](self) reads the folder, or [`cluster`](self) the API server, and calls arrive by gRPC; both become events of one task,
//! the owner, which stores what must be stored, changes the world (pure, no I/O) and lets it send to each
//! node what of the change concerns it.

mod api;
mod applied;
mod cluster;
mod config;
mod files;
mod hosts;
mod listing;
mod metrics;
mod owner;
mod registrations;
mod roles;
mod serve;
mod source;
mod starts;
mod store;
mod world;

pub use cluster::ClusterError;
pub use config::{Config, Source, Token};
pub use hosts::{Hosts, HostsError};
pub use roles::ROLES;
pub use serve::{Handle, ServeError, serve, start};
