//! Network policy: from rules and labels to verdicts, without I/O.
//!
//! Owns: what rules mean for a workload ([`compile()`]), what a compiled policy is ([`PolicySet`]), how it
//! judges ([`PolicySet::judge`]) and its form on the wire ([`wire`]). The policy service compiles; nodes
//! judge with the same code, so a verdict does not depend on where it is asked for.
//!
//! The rules of judgement, the same in both directions:
//! 1. a deny entry that matches wins over everything;
//! 2. else an allow entry that matches lets the connection in;
//! 3. else it is refused if some rule selects the workload in that direction (default deny), and
//!    allowed if none does.

mod compile;
mod index;
mod judge;
mod selector;
mod set;
pub mod wire;

pub use compile::{Identities, PolicyObject, compile};
pub use judge::{DenyReason, Direction, PeerRef, Verdict};
pub use set::{CidrPeer, DirectionPolicy, Entry, Peers, PolicySet, Ports, RuleRef};
