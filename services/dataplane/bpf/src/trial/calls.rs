//! The bpf(2) commands of the trials, and asking who is attached where.

use std::{
    ffi::CStr,
    fmt, io,
    mem::size_of_val,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use crate::sys::{bpf, owned};

const MAP_CREATE: u32 = 0;
const PROG_LOAD: u32 = 5;
const PROG_GET_FD_BY_ID: u32 = 13;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const BTF_LOAD: u32 = 18;
const LINK_CREATE: u32 = 28;

/// As many programs at one hook as the kernel allows.
const MOST: usize = 64;

/// `enum bpf_prog_type`.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(super) enum ProgramKind {
    Classifier = 3,
    CgroupSkb = 8,
    Sock = 9,
    SockOps = 13,
    SockAddr = 18,
}

/// Where programs attach: `enum bpf_attach_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Hook {
    SkbIngress = 0,
    SkbEgress = 1,
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    PostBind4 = 12,
    PostBind6 = 13,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Getpeername4 = 29,
    Getpeername6 = 30,
    TcxIngress = 46,
    TcxEgress = 47,
}

impl Hook {
    /// At an interface, not at a cgroup.
    pub(super) fn is_tcx(self) -> bool {
        matches!(self, Self::TcxIngress | Self::TcxEgress)
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TcxIngress => f.write_str("tcx ingress"),
            Self::TcxEgress => f.write_str("tcx egress"),
            Self::SkbIngress => f.write_str("cgroup_skb ingress"),
            Self::SkbEgress => f.write_str("cgroup_skb egress"),
            other => write!(f, "{}", format!("{other:?}").to_lowercase()),
        }
    }
}

/// `enum bpf_map_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum MapKind {
    Hash = 1,
    Array = 2,
    PerCpuArray = 6,
    LruHash = 9,
    LpmTrie = 11,
    SocketStorage = 24,
    RingBuffer = 27,
}

#[repr(C)]
#[derive(Default)]
struct MapAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: u32,
    node: u32,
    name: [u8; 16],
    interface: u32,
    btf: u32,
    btf_key: u32,
    btf_value: u32,
}

pub(super) fn make_map(kind: MapKind) -> io::Result<OwnedFd> {
    const NO_PREALLOC: u32 = 1;
    let mut attr = MapAttr {
        kind: kind as u32,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        ..MapAttr::default()
    };
    match kind {
        MapKind::LpmTrie => (attr.key_size, attr.flags) = (8, NO_PREALLOC),
        MapKind::RingBuffer => {
            // One page, the smallest.
            (attr.key_size, attr.value_size, attr.max_entries) = (0, 0, 4096);
        }
        MapKind::SocketStorage => {
            let btf = integer_btf()?;
            (attr.max_entries, attr.flags) = (0, NO_PREALLOC);
            (attr.btf, attr.btf_key, attr.btf_value) = (raw(btf.as_fd()), 1, 1);
            return owned(bpf(MAP_CREATE, &mut attr)?);
        }
        _ => {}
    }
    owned(bpf(MAP_CREATE, &mut attr)?)
}

#[repr(C)]
#[derive(Default)]
struct BtfAttr {
    btf: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
}

/// Type information with one type, `int`: socket storage asks for some.
fn integer_btf() -> io::Result<OwnedFd> {
    const NAMES: &[u8] = b"\0int\0";
    let mut bytes = Vec::new();
    // Magic, version and flags, header's length; where types and names begin and how long they are.
    bytes.extend_from_slice(&0xeb9fu16.to_ne_bytes());
    bytes.extend_from_slice(&[1, 0]);
    for word in [24, 0, 16, 16, 5u32] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    // Its name's place, its kind, its size, and: signed, 32 bits.
    for word in [1, 1 << 24, 4, 1 << 24 | 32u32] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(NAMES);
    let mut attr = BtfAttr {
        btf: bytes.as_ptr() as u64,
        size: u32::try_from(bytes.len()).map_err(io::Error::other)?,
        ..BtfAttr::default()
    };
    owned(bpf(BTF_LOAD, &mut attr)?)
}

#[repr(C)]
#[derive(Default)]
struct ProgramAttr {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

/// A program that lets everything pass: `r0 = 1; exit` (at tcx, -1 hands over to the next one).
pub(super) fn load(kind: ProgramKind, hook: Hook) -> io::Result<OwnedFd> {
    const LICENSE: &CStr = c"Dual BSD/GPL";
    let answer: i32 = if hook.is_tcx() { -1 } else { 1 };
    let mut move_answer = [0xb7, 0, 0, 0, 0, 0, 0, 0];
    move_answer[4..].copy_from_slice(&answer.to_ne_bytes());
    let code = [move_answer, [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let mut name = [0; 16];
    name[..11].copy_from_slice(b"weft_doctor");
    let mut attr = ProgramAttr {
        kind: kind as u32,
        instructions: 2,
        code: code.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        name,
        expected_attach_type: hook as u32,
        ..ProgramAttr::default()
    };
    owned(bpf(PROG_LOAD, &mut attr)?)
}

#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    revision: [u32; 3],
}

pub(super) fn link_interface(program: BorrowedFd<'_>, interface: u32, hook: Hook) -> io::Result<OwnedFd> {
    link(program, interface, hook)
}

pub(super) fn link_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    hook: Hook,
) -> io::Result<OwnedFd> {
    link(program, raw(cgroup), hook)
}

fn link(program: BorrowedFd<'_>, target: u32, hook: Hook) -> io::Result<OwnedFd> {
    let mut attr = LinkAttr {
        program: raw(program),
        target,
        attach_type: hook as u32,
        ..LinkAttr::default()
    };
    owned(bpf(LINK_CREATE, &mut attr)?)
}

/// What has a hook.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target<'a> {
    Interface(u32),
    Cgroup(BorrowedFd<'a>),
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    reserved: u32,
    attach_flags_of: u64,
    links: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The names of the programs at a hook, in order.
pub(super) fn attached_names(target: Target<'_>, hook: Hook) -> io::Result<Vec<String>> {
    let mut ids = [0u32; MOST];
    let mut attr = QueryAttr {
        target: match target {
            Target::Interface(index) => index,
            Target::Cgroup(folder) => raw(folder),
        },
        attach_type: hook as u32,
        ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(ids.len()).map_err(io::Error::other)?,
        ..QueryAttr::default()
    };
    match bpf(PROG_QUERY, &mut attr) {
        Ok(_) => {}
        // Nothing was ever attached at this interface.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    }
    let count = usize::try_from(attr.count).unwrap_or(MOST).min(MOST);
    // One that went away in between has no name any more.
    Ok(ids[..count].iter().filter_map(|id| name_of(*id).ok()).collect())
}

#[repr(C)]
#[derive(Default)]
struct ByIdAttr {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// `struct bpf_prog_info` up to the name.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    uid: u32,
    map_count: u32,
    maps: u64,
    name: [u8; 16],
}

fn name_of(id: u32) -> io::Result<String> {
    let mut by_id = ByIdAttr {
        id,
        ..ByIdAttr::default()
    };
    let program = owned(bpf(PROG_GET_FD_BY_ID, &mut by_id)?)?;
    let mut info = ProgramInfo::default();
    let mut attr = InfoAttr {
        fd: raw(program.as_fd()),
        len: u32::try_from(size_of_val(&info)).map_err(io::Error::other)?,
        info: (&raw mut info) as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr)?;
    let end = info.name.iter().position(|b| *b == 0).unwrap_or(info.name.len());
    Ok(match end {
        0 => format!("without a name (id {id})"),
        end => String::from_utf8_lossy(&info.name[..end]).into_owned(),
    })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // A borrowed descriptor is never negative.
    fd.as_raw_fd().cast_unsigned()
}
