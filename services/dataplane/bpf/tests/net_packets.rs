//! The programs at packets: run by the kernel with packets that nobody sent, and at real interfaces
//! and sockets. Needs root.
#![allow(clippy::unwrap_used)]

#[path = "net_kernel/actor.rs"]
#[allow(dead_code)]
mod actor;
#[path = "net_packets/agents.rs"]
mod agents;
#[path = "net_packets/builds.rs"]
mod builds;
mod compile;
#[path = "net_packets/connections.rs"]
mod connections;
#[path = "net_packets/links.rs"]
mod links;
#[path = "net_packets/matrix.rs"]
mod matrix;
#[path = "net_packets/mixed.rs"]
mod mixed;
#[path = "net_packets/packet.rs"]
mod packet;
#[path = "net_packets/processes.rs"]
mod processes;
#[path = "net_packets/rig.rs"]
mod rig;
#[path = "net_packets/sources.rs"]
mod sources;
#[path = "net_kernel/talk.rs"]
#[allow(dead_code)]
mod talk;
#[path = "net_packets/wrong.rs"]
mod wrong;
