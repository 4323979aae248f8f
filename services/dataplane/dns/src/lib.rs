//! Questions of workloads to resolvers, where policy speaks of names.
//!
//! Owns: reading questions and answers ([`message`]), asking the resolver in a workload's place ([`upstream`]),
//! and what the answers said: which addresses names have, for how long ([`Names`]). Who may ask what is not
//! decided here, and nobody is let through anywhere: what is known of names goes to whoever binds policies to
//! addresses.

#[cfg(test)]
mod fuzz;
mod kept;
pub mod message;
mod names;
pub mod upstream;

pub use names::{Learned, Limits, Names};
