//! Programs of somebody else at the hooks that Weft uses, for tests that show that they are left alone.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, at, io as failed};
use crate::topology::Link;

const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const LINK_CREATE: u32 = 28;

/// `BPF_PROG_TYPE_*`, `BPF_*` attach type, and what lets everything pass.
const TCX: (u32, u32, i32) = (3, 46, -1);
const CONNECT4: (u32, u32, i32) = (18, 10, 1);

/// A program, called `foreign`, that lets everything pass; detached when dropped, unless pinned.
#[derive(Debug)]
pub struct ForeignProgram(OwnedFd);

impl ForeignProgram {
    /// At connect4 of a cgroup.
    pub fn at_cgroup(cgroup: &Path) -> Result<Self, Error> {
        let folder = File::open(cgroup).map_err(at("open", cgroup))?;
        let target = folder.as_fd().as_raw_fd().cast_unsigned();
        attach(CONNECT4, target).map_err(at("attach a program at", cgroup))
    }

    /// At an interface's tcx ingress.
    pub fn at_interface(link: &Link) -> Result<Self, Error> {
        link.namespace()
            .run(|| attach(TCX, nix::net::if_::if_nametoindex(link.name())?))?
            .map_err(failed("attach a program at", link.name()))
    }

    /// Makes it outlive this value.
    pub fn pin(&self, path: &Path) -> Result<(), Error> {
        let mut name = path.as_os_str().as_bytes().to_vec();
        name.push(0);
        let mut attr = PinAttr {
            path: name.as_ptr() as u64,
            fd: self.0.as_raw_fd().cast_unsigned(),
            flags: 0,
        };
        bpf(OBJ_PIN, &mut attr).map_err(at("pin a program at", path))?;
        Ok(())
    }

    /// Whether it is still where it was attached: a detached link has no target.
    pub fn is_attached(&self) -> Result<bool, Error> {
        // `struct bpf_link_info`: type, id, program, padding, then a cgroup's id or an interface.
        let mut info = [0u32; 8];
        let mut attr = InfoAttr {
            fd: self.0.as_raw_fd().cast_unsigned(),
            len: size_of::<[u32; 8]>() as u32,
            info: info.as_mut_ptr() as u64,
        };
        bpf(OBJ_GET_INFO_BY_FD, &mut attr).map_err(failed("ask about", "a link"))?;
        Ok(info[4] != 0)
    }
}

#[repr(C)]
struct PinAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgramAttr {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log: [u32; 4],
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

fn attach((kind, hook, answer): (u32, u32, i32), target: u32) -> io::Result<ForeignProgram> {
    // `r0 = answer; exit`
    let mut code = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    code[0][4..].copy_from_slice(&answer.to_ne_bytes());
    let mut name = [0; 16];
    name[..7].copy_from_slice(b"foreign");
    let mut attr = ProgramAttr {
        kind,
        instructions: 2,
        code: code.as_ptr() as u64,
        license: c"Dual BSD/GPL".as_ptr() as u64,
        name,
        expected_attach_type: hook,
        ..ProgramAttr::default()
    };
    let program = owned(bpf(PROG_LOAD, &mut attr)?)?;
    let mut link = [0u32; 8];
    link[..3].copy_from_slice(&[program.as_raw_fd().cast_unsigned(), target, hook]);
    owned(bpf(LINK_CREATE, &mut link)?).map(ForeignProgram)
}

fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i64> {
    // SAFETY: a live, initialised prefix of `union bpf_attr` with its size; what is beyond counts as zero.
    match unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) } {
        done if done >= 0 => Ok(done),
        _ => Err(io::Error::last_os_error()),
    }
}

fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
