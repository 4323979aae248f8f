//! BPF programs of the node and their loader.
//!
//! The programs tell who opened a connection (`origin.bpf.h`), and take calls to a service to one of
//! its backends or to the agent (`socket.bpf.h`). This crate loads them at the node's cgroup, keeps them and their maps
//! pinned so that they outlive the process, and reads what they found. aya does the loading; none
//! of its types cross this border.
//!
//! - [`Kernel`]: load or adopt, register workloads, read counters. Needs root.
//! - [`Origins`]: read an accepted socket's caller. Needs the map's descriptor only.
//! - [`Endpoints`]: write what is enforced for whom. Needs the map's descriptor only.
//! - [`Questions`]: read whom a question to a resolver was for. Needs the map's descriptor only.
//! - [`Services`]: write which backends a service has. Needs the maps' descriptors only.
//! - [`Datapath`]: write who is who and what is allowed. Needs the maps' descriptors only.
//! - [`Events`]: read what became of packets. Needs the map's descriptor only.
//! - [`Closer`]: close the sockets to a backend that is gone. Needs root.
//! - [`probe`]: what is missing here, and how to get it.
//! - [`uninstall`]: take everything away.
//!
//! Two conditions are the caller's part. Listeners whose connections are to have records must be
//! made by a process inside the node's cgroup (`<root>/_node`): the kernel picks the programs for
//! an accepted socket by the cgroup in which its listener was made. And a workload must be
//! registered before its first process starts.

mod addresses;
mod asked;
mod close;
mod conntrack;
mod counters;
mod datapath;
mod diag;
mod endpoints;
mod epoch;
mod error;
mod events;
mod fs;
mod interfaces;
mod kernel;
mod layout;
mod links;
mod mapping;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod object_tests;
mod origin;
mod pins;
mod policy;
mod probe;
mod processes;
mod ring;
mod running;
mod services;
mod shared;
mod sockets;
mod sys;
mod table;
mod tcx;
mod trial;

pub use addresses::{Address, Addresses};
pub use asked::{Question, Questions};
pub use close::{Closer, Gone};
pub use conntrack::{Connection, Conntrack};
pub use counters::Counters;
pub use datapath::Datapath;
pub use diag::NamespaceSockets;
pub use endpoints::{Endpoint, Endpoints};
pub use error::Error;
pub use events::{Event, Events, Verdict};
pub use fs::{
    cgroup_id, ensure_bpffs, find_cgroup2, is_bpffs, mounted_by_weft, note_mount, pin_dir, unmount_if_unused,
};
pub use interfaces::{Interfaces, Sources};
pub use kernel::{Build, Counter, Kernel, MAX_WORKLOADS, Options, Workload};
pub use origin::{Origin, Origins};
pub use pins::uninstall;
pub use policy::{Direction, Entry, Policy, PolicyKey, RangeKey, Set, Sets};
pub use probe::{Capability, probe};
pub use running::Running;
pub use services::{Backend, Change, Frontend, Services, Transport};
pub use sockets::{OwnSockets, netns_cookie, netns_of};
pub use tcx::{Attached, Hooked, Neighbour, TestRun};
pub use trial::{Others, Trial, others, trials};

/// A kernel is shared between tasks.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Kernel>();
    shared::<Origins>();
    shared::<Services>();
    shared::<Closer>();
    shared::<Datapath>();
    shared::<Events>();
};
