//! bpf(2) for programs at network interfaces (tcx, Linux 6.6).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::{LINK_CREATE, LinkInfo, OBJ_GET_INFO_BY_FD, PROG_QUERY, bpf, fd, info, owned};

const PROG_GET_FD_BY_ID: u32 = 13;
const PROG_TEST_RUN: u32 = 10;
/// `BPF_LINK_TYPE_TCX`.
const TCX_LINK: u32 = 11;
/// Before all others.
const F_BEFORE: u32 = 1 << 3;
/// More than any interface has: the kernel allows 64 in a hook.
const MAX_PROGRAMS: usize = 64;

/// Where at an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Hook {
    /// What comes in by it.
    Ingress = 46,
    /// What goes out.
    Egress = 47,
}

#[repr(C)]
struct TcxLink {
    program: u32,
    ifindex: u32,
    hook: u32,
    flags: u32,
    relative: u32,
    zero: u32,
    revision: u64,
}

/// Attaches before all other programs of the hook, which stay.
pub(crate) fn link_create(program: BorrowedFd<'_>, ifindex: u32, hook: Hook) -> io::Result<OwnedFd> {
    let mut attr = TcxLink {
        program: fd(program),
        ifindex,
        hook: hook as u32,
        flags: F_BEFORE,
        relative: 0,
        zero: 0,
        revision: 0,
    };
    owned(bpf(LINK_CREATE, &mut attr)?)
}

/// The interface and hook of a tcx link; interface 0 when that is gone.
pub(crate) fn link_target(link: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let info: LinkInfo = info(link)?;
    if info.kind != TCX_LINK {
        return Ok((0, 0));
    }
    // Two words where cgroup links have one number.
    let [a, b, c, d, e, f, g, h] = info.cgroup.to_ne_bytes();
    Ok((u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])))
}

/// The id of the program behind a link.
pub(crate) fn link_program(link: BorrowedFd<'_>) -> io::Result<u32> {
    info::<LinkInfo>(link).map(|info| info.program)
}

#[repr(C)]
#[derive(Default)]
struct TcxQuery {
    ifindex: u32,
    hook: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    zero: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// The ids of a hook's programs in the order in which they run.
pub(crate) fn programs(ifindex: u32, hook: Hook) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; MAX_PROGRAMS];
    let mut attr = TcxQuery {
        ifindex,
        hook: hook as u32,
        programs: ids.as_mut_ptr() as u64,
        count: MAX_PROGRAMS as u32,
        ..TcxQuery::default()
    };
    match bpf(PROG_QUERY, &mut attr) {
        Ok(_) => Ok(ids[..(attr.count as usize).min(MAX_PROGRAMS)].to_vec()),
        // Nothing was ever attached there.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct ProgramInfo {
    before: [u8; 64],
    name: [u8; 16],
}

#[repr(C)]
struct InfoOf {
    fd: u32,
    len: u32,
    info: u64,
}

#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// A program's tag: a digest of its instructions.
pub(crate) fn program_tag(id: u32) -> io::Result<u64> {
    let mut attr = ById {
        id,
        next: 0,
        flags: 0,
    };
    let program = owned(bpf(PROG_GET_FD_BY_ID, &mut attr)?)?;
    let info = program_info(std::os::fd::AsFd::as_fd(&program))?;
    let mut tag = [0; 8];
    // After the type and the id.
    tag.copy_from_slice(&info.before[8..16]);
    Ok(u64::from_be_bytes(tag))
}

/// A program's name, as far as the kernel keeps it.
pub(crate) fn program_name(id: u32) -> io::Result<String> {
    let mut attr = ById {
        id,
        next: 0,
        flags: 0,
    };
    let program = owned(bpf(PROG_GET_FD_BY_ID, &mut attr)?)?;
    let name = program_info(std::os::fd::AsFd::as_fd(&program))?.name;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut value = ProgramInfo {
        before: [0; 64],
        name: [0; 16],
    };
    let mut attr = InfoOf {
        fd: fd(program),
        len: size_of::<ProgramInfo>() as u32,
        info: (&raw mut value) as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(value)
}

#[repr(C)]
#[derive(Default)]
struct TestAttr {
    program: u32,
    answer: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    zero: u32,
}

/// `struct __sk_buff`, as far as a test may set it.
#[repr(C)]
struct Context {
    before: [u32; 9],
    ingress_ifindex: u32,
    ifindex: u32,
    after: [u32; 37],
}

/// Runs a program with a packet that nobody sent, `repeat` times. Answers what it returned and how
/// long one run took on average, in nanoseconds.
pub(crate) fn test_run(
    program: BorrowedFd<'_>,
    packet: &[u8],
    (ifindex, ingress_ifindex): (u32, u32),
    repeat: u32,
) -> io::Result<(i32, u32)> {
    let context = Context {
        before: [0; 9],
        ingress_ifindex,
        ifindex,
        after: [0; 37],
    };
    let mut attr = TestAttr {
        program: fd(program),
        size_in: u32::try_from(packet.len()).map_err(io::Error::other)?,
        data_in: packet.as_ptr() as u64,
        repeat,
        context_size_in: size_of::<Context>() as u32,
        context_in: (&raw const context) as u64,
        ..TestAttr::default()
    };
    bpf(PROG_TEST_RUN, &mut attr)?;
    Ok((attr.answer.cast_signed(), attr.duration))
}
