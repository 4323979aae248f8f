//! From what is desired to the kernel's maps.
//!
//! Owns the node's policy tables: which endpoint has which identity and policy, who an address is,
//! which backends a service has; and the order in which they change ([`Datapath`]). Facts come in
//! ([`Update`]), writes go out ([`Tables`]); what goes out of order, or twice, or not at all, is a
//! defect here and nowhere else.
//!
//! The cost of a change follows the change: an endpoint touches its own entries, a policy the
//! endpoints that it governs. What the kernel holds outlives the process: a start reads it, keeps
//! what is right and changes the rest in the same order as any other change.

mod claims;
mod datapath;
mod facts;
mod image;
mod kernel;
mod rules;
mod services;
mod sets;
pub mod tables;
mod writer;

pub use datapath::{Counts, Datapath, Outcome};
pub use facts::{Governed, Here, Node, Port, Service, There, Update};
pub use kernel::Kernel;
pub use rules::RuleNames;
pub use services::Removed;
pub use sets::Limits;
pub use tables::{Tables, WriteError};
