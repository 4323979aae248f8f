//! The structs of `types.bpf.h` as Rust sees them. A test compares both through the object's BTF.

use crate::sys::Plain;

pub(crate) mod packet;

/// Goes up with every change of a map's key, value or meaning: maps of another number are not
/// adopted but made anew.
pub(crate) const LAYOUT: u32 = 4;

/// `WEFT_PASSING`.
pub(crate) const PASSING: u32 = 1024;

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
    pub(crate) target: [u8; 16],
    pub(crate) dport: u16,
    pub(crate) tport: u16,
    pub(crate) family: u16,
    pub(crate) flags: u16,
    pub(crate) index: u32,
    pub(crate) service: u32,
}

/// `WEFT_ORIGIN_*`.
pub(crate) const ORIGIN_CAPTURED: u16 = 1;
/// See above.
pub(crate) const ORIGIN_SERVICE: u16 = 2;
/// See above.
pub(crate) const ORIGIN_POD: u16 = 4;

/// `struct weft_endpoint`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RawEndpoint {
    pub(crate) identity: u32,
    pub(crate) set: u32,
    pub(crate) flags: u32,
    pub(crate) generation: u32,
}

/// `struct weft_tuple`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RawTuple {
    pub(crate) netns: u64,
    pub(crate) saddr: [u8; 16],
    pub(crate) daddr: [u8; 16],
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    pub(crate) zero: u32,
}

/// `struct weft_active`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RawActive {
    pub(crate) origin: RawOrigin,
    pub(crate) peer: [u8; 16],
    pub(crate) tuple: RawTuple,
    pub(crate) pport: u16,
    pub(crate) entries: u16,
    pub(crate) zero: u32,
}

/// `struct weft_connected`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RawConnected {
    pub(crate) service: [u8; 16],
    pub(crate) backend: [u8; 16],
    pub(crate) sport: u16,
    pub(crate) bport: u16,
    pub(crate) zero: u32,
}

/// `struct weft_asked_key`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RawAskedKey {
    pub(crate) netns: u64,
    pub(crate) saddr: [u8; 16],
    pub(crate) sport: u16,
    pub(crate) zero: [u16; 3],
}

/// `struct weft_asked`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RawAsked {
    pub(crate) daddr: [u8; 16],
    pub(crate) target: [u8; 16],
    pub(crate) dport: u16,
    pub(crate) tport: u16,
    pub(crate) index: u32,
}

/// `struct weft_process`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RawProcess {
    pub(crate) saddr: [u8; 16],
    pub(crate) daddr: [u8; 16],
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    pub(crate) proto: u8,
    pub(crate) zero: [u8; 3],
}

/// `struct weft_service_key`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RawServiceKey {
    pub(crate) addr: [u8; 16],
    pub(crate) port: u16,
    pub(crate) proto: u8,
    pub(crate) zero: u8,
}

/// `struct weft_service`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RawService {
    pub(crate) id: u32,
    pub(crate) count: u32,
    pub(crate) flags: u32,
    pub(crate) generation: u32,
}

/// `WEFT_SERVICE_CAPTURE`.
pub(crate) const SERVICE_CAPTURE: u32 = 1;

/// `struct weft_backend_key`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RawBackendKey {
    pub(crate) service: u32,
    pub(crate) slot: u32,
}

/// `struct weft_backend`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RawBackend {
    pub(crate) addr: [u8; 16],
    pub(crate) port: u16,
    pub(crate) flags: u16,
    pub(crate) endpoint: u32,
}

/// `struct weft_member`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RawMember {
    pub(crate) addr: [u8; 16],
    pub(crate) service: u32,
    pub(crate) port: u16,
    pub(crate) zero: u16,
}

// SAFETY: repr(C), integers only, no padding: the layout test compares size and offsets with C.
unsafe impl Plain for RawWorkload {}
// SAFETY: as above.
unsafe impl Plain for RawOrigin {}
// SAFETY: as above.
unsafe impl Plain for RawEndpoint {}
// SAFETY: as above.
unsafe impl Plain for RawActive {}
// SAFETY: as above.
unsafe impl Plain for RawConnected {}
// SAFETY: as above.
unsafe impl Plain for RawAskedKey {}
// SAFETY: as above.
unsafe impl Plain for RawAsked {}
// SAFETY: as above.
unsafe impl Plain for RawProcess {}
// SAFETY: as above.
unsafe impl Plain for RawServiceKey {}
// SAFETY: as above.
unsafe impl Plain for RawService {}
// SAFETY: as above.
unsafe impl Plain for RawBackendKey {}
// SAFETY: as above.
unsafe impl Plain for RawBackend {}
// SAFETY: as above.
unsafe impl Plain for RawMember {}

/// `enum weft_counter`: names in its order.
pub(crate) const COUNTERS: [&str; 22] = [
    "connect_unregistered",
    "published",
    "delivered",
    "abandoned",
    "pending_full",
    "share_used_up",
    "no_storage",
    "accept_unknown",
    "balanced",
    "captured",
    "no_backends",
    "backend_unusable",
    "udp_forgotten",
    "packets_dropped",
    "packets_audited",
    "endpoint_unknown",
    "peer_unknown",
    "set_missing",
    "conntrack_full",
    "events_lost",
    "redirect_closed",
    "tunnel_closed",
];
