//! What the demo and the benchmarks play on, and the demo's story.
//!
//! [`stage`] starts every process of Weft on namespaces; [`story`] and [`rootless`] tell and check, after
//! [`trial`] has seen which of the two this machine can have;
//! [`load`] and [`report`] measure and print; [`client`] is load in a process of its own.

pub mod client;
pub mod command;
pub mod load;
pub mod report;
pub mod rootless;
pub mod stage;
pub mod story;
pub mod trial;
