//! Which route a request takes, as the Gateway API defines it. No I/O, no clock, no randomness.
//!
//! Owns: what routes and rules are once they are read ([`spec`]), which of them a request meets
//! ([`RouteTable`]), and what a rule's filters do to a request line and to headers. What crosses the
//! border are [`spec::Route`]s in and [`Matched`] out; backends are named, never resolved here.
//!
//! A lookup costs the same however many rules there are, as long as their paths differ: hosts and
//! paths are found by hash, and only rules that share a path are tried one after the other.

mod header_edit;
mod hostname;
mod matching;
mod pick;
mod redirect;
mod rewrite;
pub mod spec;
mod table;

pub use hostname::{Hostname, HostnameError, host_of};
pub use matching::{Pattern, PatternError, TextMatch};
pub use pick::Pick;
pub use redirect::Arrival;
pub use table::{Asked, Matched, RouteTable, TooLarge};
