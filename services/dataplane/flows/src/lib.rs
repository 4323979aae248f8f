//! Flow events: every decision of the agent as one stream.
//!
//! Owns: the [`Flow`] value, the bounded [`FlowLog`] that keeps the last ones and feeds readers, and
//! what Hubble's API makes of them ([`hubble`]). What crosses the border is [`Flow`] (from whoever
//! decides) and Hubble's protobuf form (to whoever asks): ids, times and texts are only made when
//! someone reads a flow, never when it is recorded.

mod drops;
mod flow;
pub mod hubble;
mod log;
#[cfg(test)]
mod sample;

pub use flow::{
    Direction, Dns, DropReason, Flow, HttpVersion, Kind, MAX_AUTHORITY_BYTES, MAX_PATH_BYTES, MethodText,
    Packet, Party, Proof, ServiceName, Traffic, Verdict, Via, bounded_authority, bounded_path,
};
pub use log::{Counts, FlowLog, Item, Reader, Recorded, Seen};
