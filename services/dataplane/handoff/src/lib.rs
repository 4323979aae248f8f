//! The hand-off between `weft-node` (privileged) and `weft-agent` (not): messages over a unix
//! `SOCK_SEQPACKET` socket, with file descriptors beside them.
//!
//! Owns: the framing ([`wire`]), the packet socket ([`socket`]), the agent's client
//! ([`AgentLink`]) and the node's end ([`NodeListener`], [`NodeLink`]). What crosses its border:
//! the messages of `weft.node.v1` and owned descriptors. It decides nothing: what a workload gets
//! is the node's business, what is done with a descriptor is the agent's.
//!
//! Both decoders take any bytes: a packet that is not understood ends the link, and every
//! descriptor that came with it is closed.

mod agent;
mod error;
#[cfg(test)]
mod fuzz;
mod incoming;
mod message;
mod node;
mod pool;
pub mod socket;
pub mod wire;

pub use agent::{AgentLink, Connected, Event, Events};
pub use error::HandoffError;
pub use incoming::{Hello, PlacedWorkload};
pub use message::{
    Family, GatewayPorts, GoneBackend, Listener, ListenerKind, MAX_BACKENDS, MAX_GATEWAY_PORTS, MAX_SOCKETS,
    Transport,
};
pub use node::{
    AgentRequest, Answer, HelloAnswer, NodeLink, NodeListener, NodeSender, Placed, Request, SharedListener,
};

/// Environment variable by which `weft-node` tells `weft-agent` the number of its descriptor.
pub const HANDOFF_FD_ENV: &str = "WEFT_HANDOFF_FD";
