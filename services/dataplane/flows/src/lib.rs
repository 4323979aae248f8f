//! Flow events: every decision of the agent as one stream.
//!
//! Owns: the [`Flow`] value, the bounded [`FlowLog`] that keeps the last ones and feeds followers,
//! the filters of `weft.dataplane.v1.Flows/Observe`, and how a flow reads on a terminal. What
//! crosses the border is [`Flow`] (from whoever decides) and the protobuf form (to whoever asks):
//! ids, times and texts are only made when someone reads a flow, never when it is recorded.

mod convert;
mod drops;
mod filter;
mod flow;
mod format;
mod log;

pub use filter::Filter;
pub use flow::{
    Direction, DropReason, Flow, Kind, MAX_PATH_BYTES, MethodText, Packet, Party, Proof, Traffic, Verdict,
    Via, bounded_path,
};
pub use format::{compact, json};
pub use log::{Counts, FlowLog, Follower, Item, Recorded};
