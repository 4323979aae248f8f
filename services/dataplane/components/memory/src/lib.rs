//! Components that live in the agent's memory and end with it.
//!
//! `state.in-memory` is one app's own: what it keeps is gone when the last of its workloads leaves the
//! node. `pubsub.in-memory` is one broker per namespace and component: apps of this node publish to
//! each other through it, those of other nodes do not; so with the locks of `lock.in-memory`. What
//! `configuration.in-memory` has is its manifest's. All are bounded.

mod broker;
mod configuration;
mod lock;
mod pubsub;
mod shared;
mod state;

pub use configuration::MemoryConfiguration;
pub use lock::MemoryLock;
pub use pubsub::MemoryPubSub;
pub use state::{MemoryState, StateLimits};
