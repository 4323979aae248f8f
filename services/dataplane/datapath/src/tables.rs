//! The kernel's tables as this crate writes them: plain entries, one write at a time.
//!
//! Everything the planner does goes through [`Tables`], so that tests put a model of the kernel in
//! its place.

use ipnet::IpNet;
use std::{collections::BTreeMap, net::SocketAddr};
use weft_bpf::{Backend, Frontend};
use weft_policy_engine::{Image, image::Step};

/// Flags of [`EndpointEntry`].
pub mod endpoint {
    /// Holds a valid certificate.
    pub const PROVEN: u32 = 1;
    /// What its policy refuses passes, and is told.
    pub const AUDIT: u32 = 2;
    /// Shares the node's addresses.
    pub const PROCESS: u32 = 4;
    /// Its capture listener is served.
    pub const CAPTURE: u32 = 8;
}

/// Flags of [`AddressEntry`].
pub mod address {
    /// Of this node.
    pub const LOCAL: u32 = 1;
    /// On another node, reached by tunnel.
    pub const TUNNEL: u32 = 2;
    /// A node's own.
    pub const HOST: u32 = 4;
    /// In the cluster, not known yet.
    pub const AGGREGATE: u32 = 8;
    /// The agents answer there: no packet ever goes there.
    pub const AGENT: u32 = 16;
}

/// An endpoint with this set is closed: no set has this number.
pub const CLOSED: u32 = 0;

/// What the kernel knows of an endpoint of this node. One that is absent is not known yet: what it
/// sends and gets is dropped without a word, so that it is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointEntry {
    /// Its security identity.
    pub identity: u32,
    /// The number of its policy set; [`CLOSED`] when its policy can not be used.
    pub set: u32,
    /// See [`endpoint`].
    pub flags: u32,
    /// Goes up when its identity changes.
    pub generation: u32,
}

/// Who an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressEntry {
    /// Its security identity.
    pub identity: u32,
    /// See [`address`].
    pub flags: u32,
    /// The endpoint's number, when it is of this node.
    pub endpoint: u32,
    /// Which other node; a hash of its name.
    pub node: u32,
}

/// How a policy set is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetEntry {
    /// The shapes of keys in use, coming in and going out.
    pub shapes: [u32; 2],
    /// As [`Image::flags`].
    pub flags: u32,
    /// Never the same for two contents or two sets: connections are judged anew when it changed.
    pub generation: u32,
}

/// One write. `None` removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// To the endpoints.
    Endpoint(u32, Option<EndpointEntry>),
    /// To the address cache.
    Address(IpNet, Option<AddressEntry>),
    /// To the sets.
    Set(u32, Option<SetEntry>),
    /// To the entries of a set.
    Policy(u32, Step),
}

/// Why a write did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The table has no room.
    #[error("the kernel's table {table} is full with {max} entries")]
    Full {
        /// Which one.
        table: &'static str,
        /// Its size.
        max: u32,
    },
    /// Anything else, for the operator.
    #[error("{0}")]
    Failed(String),
}

/// What the tables hold.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// Endpoints by number.
    pub endpoints: BTreeMap<u32, EndpointEntry>,
    /// The address cache.
    pub addresses: BTreeMap<IpNet, AddressEntry>,
    /// Sets by number.
    pub sets: BTreeMap<u32, SetEntry>,
    /// Entries by set; also of sets that are not there.
    pub policies: BTreeMap<u32, Image>,
}

/// The kernel's tables.
pub trait Tables {
    /// What they hold now.
    fn read(&mut self) -> Result<Held, WriteError>;

    /// Writes one entry. Removing what is not there succeeds.
    fn write(&mut self, write: &Write) -> Result<(), WriteError>;

    /// The services that the kernel knows.
    fn services(&self) -> Vec<Frontend>;

    /// Makes these a service's backends; answers those that are backends no more.
    fn set_service(
        &mut self,
        frontend: Frontend,
        capture: bool,
        backends: &[Backend],
    ) -> Result<Vec<SocketAddr>, WriteError>;

    /// Takes a service away; answers its backends.
    fn remove_service(&mut self, frontend: Frontend) -> Result<Vec<SocketAddr>, WriteError>;
}
