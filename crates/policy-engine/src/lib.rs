//! Network policy: from rules and labels to verdicts, without I/O.
//!
//! Owns: what rules mean for a workload ([`compile()`]), what a compiled policy is ([`PolicySet`]), how it
//! judges ([`PolicySet::judge`]), its form on the wire ([`wire`]) and in the kernel ([`Image`]). The policy service compiles; nodes
//! judge with the same code, so a verdict does not depend on where it is asked for.
//!
//! The rules of judgement, the same in both directions:
//! 1. a deny entry that matches wins over everything;
//! 2. else an allow entry that matches lets the connection in: by the proxy only if all that match say so
//!    (rules add up), and with both ends proven if the narrowest that speaks of it says so (`proof`);
//! 3. else it is refused if some rule selects the workload in that direction (default deny), and
//!    allowed if none does.
//!
//! A request on a connection that passes by the proxy only ([`PolicySet::judge_request`]) is allowed by any of
//! these entries whose rules about requests mean it, and refused when none does. A question to a resolver is such
//! a request ([`PolicySet::judge_query`]).
//!
//! Peers by a name in DNS are those outside the cluster at its addresses, which change: a set names nobody so until
//! the node says which these are ([`PolicySet::bind`]).

mod cidr;
mod cluster;
mod compile;
#[cfg(test)]
mod differential_tests;
mod explain;
mod fault;
pub mod image;
mod index;
mod judge;
mod names;
mod paths;
mod proof;
mod request;
mod selector;
mod set;
pub mod wire;

pub use cidr::{CidrIdentities, TooManyPrefixes};
pub use cluster::{Backed, Cluster, Group, NamedPorts};
pub use compile::{PolicyObject, Subject, compile};
pub use explain::{Explanation, Spoken};
pub use image::Image;
pub use judge::{DenyReason, Direction, OnConnection, PeerRef, Verdict};
pub use names::is_meant;
pub use request::RequestFacts;
pub use set::{CidrPeer, DirectionPolicy, Entry, MAX_SELECTED_BY, Peers, PolicySet, Ports, RuleRef};
pub use weft_resources::{Authentication, NameRule};
