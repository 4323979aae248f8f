//! The programs at packets, run by the kernel with packets that nobody sent. Needs root.
#![allow(clippy::unwrap_used)]

#[path = "net_packets/matrix.rs"]
mod matrix;
#[path = "net_packets/packet.rs"]
mod packet;
#[path = "net_packets/rig.rs"]
mod rig;
