//! The structs of `types.bpf.h` as Rust sees them. A test compares both through the object's BTF.

use crate::sys::Plain;

/// Goes up with every change of a map's key, value or meaning: maps of another number are not
/// adopted but made anew.
pub(crate) const LAYOUT: u32 = 1;

/// `struct weft_workload`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RawWorkload {
    pub(crate) index: u32,
    pub(crate) identity: u32,
}

/// `struct weft_origin`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RawOrigin {
    pub(crate) cgroup: u64,
    pub(crate) netns: u64,
    pub(crate) socket: u64,
    pub(crate) daddr: [u8; 16],
    pub(crate) dport: u16,
    pub(crate) family: u16,
    pub(crate) index: u32,
}

// SAFETY: repr(C), integers only, no padding: the layout test compares size and offsets with C.
unsafe impl Plain for RawWorkload {}
// SAFETY: as above.
unsafe impl Plain for RawOrigin {}

/// `enum weft_counter`: names in its order.
pub(crate) const COUNTERS: [&str; 8] = [
    "connect_unregistered",
    "published",
    "delivered",
    "abandoned",
    "pending_full",
    "share_used_up",
    "no_storage",
    "accept_unknown",
];
