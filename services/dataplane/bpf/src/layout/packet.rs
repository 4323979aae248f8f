//! The structs of `packet_types.bpf.h` as Rust sees them.

use crate::sys::Plain;

/// `struct weft_source`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct RawSource {
    pub(crate) endpoint: u32,
    pub(crate) zero: u32,
    pub(crate) addr: [u8; 16],
}

/// `struct weft_prefix`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct RawPrefix {
    pub(crate) length: u32,
    pub(crate) addr: [u8; 16],
}

/// `struct weft_address`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct RawAddress {
    pub(crate) identity: u32,
    pub(crate) flags: u32,
    pub(crate) endpoint: u32,
    pub(crate) node: u32,
}

/// `struct weft_set`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct RawSet {
    pub(crate) shapes_in: u32,
    pub(crate) shapes_out: u32,
    pub(crate) flags: u32,
    pub(crate) generation: u32,
}

/// `struct weft_policy_key`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct RawPolicyKey {
    pub(crate) set: u32,
    pub(crate) identity: u32,
    pub(crate) port: u16,
    pub(crate) proto: u8,
    pub(crate) dir: u8,
}

/// `struct weft_range`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct RawRange {
    pub(crate) length: u32,
    pub(crate) set: u32,
    pub(crate) identity: u32,
    pub(crate) dir: u8,
    pub(crate) proto: u8,
    pub(crate) port: [u8; 2],
}

/// `struct weft_policy`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct RawPolicy {
    pub(crate) verdict: u8,
    pub(crate) flags: u8,
    pub(crate) length: u8,
    pub(crate) zero: u8,
    pub(crate) rule: u32,
}

/// `struct weft_connection_key`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct RawConnectionKey {
    pub(crate) local: [u8; 16],
    pub(crate) remote: [u8; 16],
    pub(crate) endpoint: u32,
    pub(crate) lport: u16,
    pub(crate) rport: u16,
    pub(crate) proto: u8,
    pub(crate) dir: u8,
    pub(crate) zero: u16,
}

/// `struct weft_connection`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct RawConnection {
    pub(crate) used: u64,
    pub(crate) expires: u64,
    pub(crate) generation: u32,
    pub(crate) identity: u32,
    pub(crate) rule: u32,
    pub(crate) peer: u32,
    pub(crate) proto_state: u8,
    pub(crate) flags: u8,
    pub(crate) zero: u16,
    pub(crate) epoch: u32,
}

/// `struct weft_event`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct RawEvent {
    pub(crate) time: u64,
    pub(crate) kind: u8,
    pub(crate) reason: u8,
    pub(crate) dir: u8,
    pub(crate) verdict: u8,
    pub(crate) endpoint: u32,
    pub(crate) peer: u32,
    pub(crate) src_identity: u32,
    pub(crate) dst_identity: u32,
    pub(crate) rule: u32,
    pub(crate) len: u32,
    pub(crate) ifindex: u32,
    pub(crate) saddr: [u8; 16],
    pub(crate) daddr: [u8; 16],
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    pub(crate) proto: u8,
    pub(crate) tcp_flags: u8,
    pub(crate) is_reply: u8,
    pub(crate) zero: u8,
}

// SAFETY: repr(C), integers only, no padding: the layout test compares size and offsets with C.
unsafe impl Plain for RawSource {}
// SAFETY: as above.
unsafe impl Plain for RawPrefix {}
// SAFETY: as above.
unsafe impl Plain for RawAddress {}
// SAFETY: as above.
unsafe impl Plain for RawSet {}
// SAFETY: as above.
unsafe impl Plain for RawPolicyKey {}
// SAFETY: as above.
unsafe impl Plain for RawRange {}
// SAFETY: as above.
unsafe impl Plain for RawPolicy {}
// SAFETY: as above.
unsafe impl Plain for RawConnectionKey {}
// SAFETY: as above.
unsafe impl Plain for RawConnection {}
// SAFETY: as above.
unsafe impl Plain for RawEvent {}
