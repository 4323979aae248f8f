//! The unprivileged process of a node: it joins proxy, tunnel, runtime APIs and flows, and keeps
//! the node's view of the mesh.
//!
//! Owns the assembly and the state of this node: which workloads run here, what the mesh looks
//! like from here, which certificates are held. Parsing of requests, tunnels and policy live in
//! crates of their own; privileged work is done by `weft-node`.

mod agent;
mod api;
mod backoff;
mod capture;
mod certificates;
mod channels;
mod components;
mod config;
mod dns;
mod egress;
mod endpoints;
mod error;
mod facts;
mod gateways;
pub mod harden;
mod host;
mod hubble;
mod interest;
mod journal;
mod kernel;
mod listen;
mod locals;
mod mesh;
mod metrics;
mod node;
mod packets;
mod persist;
mod placement;
mod places;
mod registry;
mod rootless;
mod seccomp;
pub mod selftest;
mod shared_api;
mod shared_apps;
mod subscription;
mod table;
mod turn;
mod upstream;
mod view;
mod whereto;
mod workload;
mod workload_api;

pub use agent::{Environment, Handle, start};
pub use api::ROLES;
pub use config::{AgentConfig, ExportConfig, Flags, SECRETS, Secret};
pub use error::AgentError;
pub use hubble::ROLES as HUBBLE_ROLES;
pub use persist::PersistError;
