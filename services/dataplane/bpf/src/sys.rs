//! The few commands of bpf(2) that the loader needs beside aya: links that are replaced in place,
//! and maps read with a socket's descriptor as key.
//!
//! Owns the layouts of `union bpf_attr` for these commands. Nothing here knows what the programs do.

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(crate) mod tcx;

const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

/// Only reading through the descriptor.
const F_RDONLY: u32 = 1 << 3;
/// Do not overwrite.
pub(crate) const NOEXIST: u64 = 1;

/// `enum bpf_attach_type`, as far as used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum AttachType {
    InetIngress = 0,
    InetEgress = 1,
    SockOps = 3,
    Inet4Connect = 10,
    Inet6Connect = 11,
    Inet4PostBind = 12,
    Inet6PostBind = 13,
    Udp4Sendmsg = 14,
    Udp6Sendmsg = 15,
    Udp4Recvmsg = 19,
    Udp6Recvmsg = 20,
    Inet4GetPeername = 29,
    Inet6GetPeername = 30,
}

/// Plain old data that may cross the border to the kernel.
///
/// # Safety
/// `repr(C)`, no padding, every bit pattern valid.
pub(crate) unsafe trait Plain: Copy + 'static {}

// SAFETY: integers have no padding and no invalid patterns.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}

/// A value at the beginning of bytes, if there are enough.
pub(crate) fn read<T: Plain>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: enough bytes, of which any pattern is valid; the read needs no alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

pub(crate) fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i64> {
    // SAFETY: `attr` is a live, fully initialised prefix of `union bpf_attr` and its size is given;
    // the kernel treats what is beyond it as zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

pub(crate) fn owned(result: i64) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(result).map_err(|_| io::Error::other("bpf(2) returned no descriptor"))?;
    // SAFETY: the kernel has just made this descriptor (close-on-exec) for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn fd(fd: BorrowedFd<'_>) -> u32 {
    // A borrowed descriptor is never negative.
    fd.as_raw_fd().cast_unsigned()
}

fn path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

#[repr(C)]
struct Object {
    pathname: u64,
    fd: u32,
    flags: u32,
}

pub(crate) fn pin(object: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
    let at = path(at)?;
    bpf(
        OBJ_PIN,
        &mut Object {
            pathname: at.as_ptr() as u64,
            fd: fd(object),
            flags: 0,
        },
    )
    .map(drop)
}

pub(crate) fn open_pin(at: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let at = path(at)?;
    let flags = if read_only { F_RDONLY } else { 0 };
    owned(bpf(
        OBJ_GET,
        &mut Object {
            pathname: at.as_ptr() as u64,
            fd: 0,
            flags,
        },
    )?)
}

#[repr(C)]
struct Info {
    fd: u32,
    len: u32,
    info: u64,
}

fn info<T: Default>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut value = T::default();
    let len = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    bpf(
        OBJ_GET_INFO_BY_FD,
        &mut Info {
            fd: fd(object),
            len,
            info: (&raw mut value) as u64,
        },
    )?;
    Ok(value)
}

#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    reserved: u32,
    cgroup: u64,
    attach_type: u32,
    reserved2: u32,
}

/// Where a cgroup link is attached; cgroup 0 when that cgroup is gone.
pub(crate) fn link_target(link: BorrowedFd<'_>) -> io::Result<(u64, u32)> {
    const CGROUP_LINK: u32 = 3;
    let info: LinkInfo = info(link)?;
    Ok(if info.kind == CGROUP_LINK {
        (info.cgroup, info.attach_type)
    } else {
        (0, 0)
    })
}

#[repr(C)]
struct LinkAttr {
    first: u32,
    second: u32,
    third: u32,
    fourth: u32,
}

/// Attaches beside whatever else is attached there; links are always many to a cgroup.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    kind: AttachType,
) -> io::Result<OwnedFd> {
    let mut attr = LinkAttr {
        first: fd(program),
        second: fd(cgroup),
        third: kind as u32,
        fourth: 0,
    };
    owned(bpf(LINK_CREATE, &mut attr)?)
}

/// Puts another program in the place of the link's, atomically.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    bpf(
        LINK_UPDATE,
        &mut LinkAttr {
            first: fd(link),
            second: fd(program),
            third: 0,
            fourth: 0,
        },
    )
    .map(drop)
}

pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(LINK_DETACH, &mut fd(link)).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    reserved: u32,
}

/// How many programs are attached at `cgroup`; an error also when the kernel has no cgroup BPF.
pub(crate) fn attached(cgroup: BorrowedFd<'_>, kind: AttachType) -> io::Result<u32> {
    let mut attr = Query {
        target: fd(cgroup),
        attach_type: kind as u32,
        ..Query::default()
    };
    bpf(PROG_QUERY, &mut attr)?;
    Ok(attr.count)
}

#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// A map's type and how many entries, or bytes, it can hold.
pub(crate) fn kind_and_size(map: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let info: MapInfo = info(map)?;
    Ok((info.kind, info.max_entries))
}

#[repr(C)]
struct Element {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// An array's value per CPU, of 8 bytes each.
pub(crate) fn per_cpu(map: BorrowedFd<'_>, key: u32, values: &mut [u64]) -> io::Result<()> {
    let info: MapInfo = info(map)?;
    // BPF_MAP_TYPE_PERCPU_ARRAY. The kernel writes a value per possible CPU.
    if (info.kind, info.key_size, info.value_size) != (6, 4, 8) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut element = Element {
        map: fd(map),
        reserved: 0,
        key: (&raw const key) as u64,
        value: values.as_mut_ptr() as u64,
        flags: 0,
    };
    bpf(MAP_LOOKUP_ELEM, &mut element).map(drop)
}

/// A map whose key and value sizes were compared with `K` and `V` when it was opened, so that no
/// call can write past either.
#[derive(Debug)]
pub(crate) struct Map<K, V> {
    fd: OwnedFd,
    max_entries: u32,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// Fails with `InvalidData` when the map's sizes are not those of `K` and `V`.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let info: MapInfo = info(fd.as_fd())?;
        // Per-CPU maps hand out one value per CPU and are none of these.
        let per_cpu = matches!(info.kind, 5 | 6 | 10 | 21);
        if per_cpu || info.key_size as usize != size_of::<K>() || info.value_size as usize != size_of::<V>() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "map of type {} holds {} → {} bytes",
                    info.kind, info.key_size, info.value_size
                ),
            ));
        }
        Ok(Self {
            fd,
            max_entries: info.max_entries,
            types: PhantomData,
        })
    }

    /// How many entries it can hold.
    pub(crate) fn max_entries(&self) -> u32 {
        self.max_entries
    }

    fn element(&self, key: *const K, value: *const V, flags: u64) -> Element {
        Element {
            map: fd(self.fd.as_fd()),
            reserved: 0,
            key: key as u64,
            value: value as u64,
            flags,
        }
    }

    pub(crate) fn lookup(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        match bpf(MAP_LOOKUP_ELEM, &mut self.element(key, value.as_mut_ptr(), 0)) {
            // SAFETY: on success the kernel has written value_size bytes, which `new` compared with V.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn update(&self, key: &K, value: &V, flags: u64) -> io::Result<()> {
        bpf(MAP_UPDATE_ELEM, &mut self.element(key, value, flags)).map(drop)
    }

    /// False if there was none.
    pub(crate) fn delete(&self, key: &K) -> io::Result<bool> {
        match bpf(MAP_DELETE_ELEM, &mut self.element(key, std::ptr::null(), 0)) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The keys at about this moment, never more than the map can hold.
    pub(crate) fn keys(&self) -> io::Result<Vec<K>> {
        let mut keys: Vec<K> = Vec::new();
        while keys.len() < self.max_entries as usize {
            let mut next = MaybeUninit::<K>::uninit();
            let previous = keys.last().map_or(std::ptr::null(), std::ptr::from_ref);
            match bpf(
                MAP_GET_NEXT_KEY,
                &mut self.element(previous, next.as_mut_ptr().cast(), 0),
            ) {
                // SAFETY: on success the kernel has written key_size bytes, which `new` compared with K.
                Ok(_) => keys.push(unsafe { next.assume_init() }),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(keys)
    }
}
