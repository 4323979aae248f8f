//! Components that live in the agent's memory and end with it.
//!
//! `state.in-memory` is one app's own: what it keeps is gone when the last of its workloads leaves the
//! node. `pubsub.in-memory` is one broker per namespace and component: apps of this node publish to
//! each other through it, those of other nodes do not. Both are bounded.

mod broker;
mod pubsub;
mod state;

pub use pubsub::MemoryPubSub;
pub use state::{MemoryState, StateLimits};
