//! The certificate authority of the mesh: who may be called what, and for how long.
//!
//! Owns: roots and issuers and their rotation, join tokens, members and what nodes may host, the
//! audit record, all in one database. What crosses the border is `weft.identity.v1` over mTLS
//! (port 7301) and, for operators on the same machine, over the local socket. Who runs where is
//! not decided here: that is read from the policy service's registry.

mod acks;
mod admin;
mod api;
mod attest;
mod audit;
mod authority;
mod backup;
mod bootstrap;
mod config;
mod connections;
mod core;
mod counts;
mod csr;
mod db;
mod error;
mod follow;
mod grants;
mod hierarchy;
mod jwt;
mod kek;
mod members;
mod memory;
mod nodes;
mod own;
mod pattern;
mod reason;
mod record;
mod recorder;
mod refused;
mod registry;
mod replica;
mod revocation;
mod roles;
mod rotation;
mod sentry;
mod serve;
mod supplied;
mod tokens;
mod upkeep;

pub use attest::{AttestationConfig, FetchError, JwtAlgorithm, JwtConfig, KubernetesConfig, NodeAgent};
pub use authority::{Authority, AuthorityError, Issued, KeyType, Made, Maker, Order};
pub use backup::{RestoreError, restore};
pub use config::{CaConfig, Config, ConfigError, LimitsConfig};
pub use csr::{CsrError, public_key};
pub use error::StartError;
pub use memory::keep_in_one_place;
pub use pattern::HostPattern;
pub use reason::{DOMAIN, Reason};
pub use refused::Refused;
pub use registry::{Registry, RegistryError};
pub use roles::ROLES;
pub use serve::{Env, Handle, serve, serve_with, start, start_with};
pub use tokens::Kind;
