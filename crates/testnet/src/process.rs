//! Starting a program in a namespace and a cgroup, as a user without rights, and seeing to its end.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, setgid, setgroups, sethostname, setuid};

use crate::error::{Error, at};

/// Who a program runs as, and where.
#[derive(Debug, Clone, Default)]
pub struct Spawn {
    user: Option<(u32, u32)>,
    cgroup: Option<PathBuf>,
    hostname: Option<OsString>,
}

impl Spawn {
    /// As root, in the network's own cgroup.
    pub fn root() -> Self {
        Self::default()
    }

    /// As `nobody`, without capabilities and without a way to get any.
    pub fn nobody() -> Self {
        Self::user(65534, 65534)
    }

    /// As this user and group, likewise.
    pub fn user(uid: u32, gid: u32) -> Self {
        Self {
            user: Some((uid, gid)),
            ..Self::default()
        }
    }

    /// In this cgroup, made if it isn't there.
    #[must_use]
    pub fn cgroup(mut self, cgroup: impl Into<PathBuf>) -> Self {
        self.cgroup = Some(cgroup.into());
        self
    }

    /// With a host name of its own, as a container has.
    #[must_use]
    pub fn hostname(mut self, name: impl Into<OsString>) -> Self {
        self.hostname = Some(name.into());
        self
    }
}

/// A started program; killed and reaped on drop.
#[derive(Debug)]
pub struct Process(Child);

impl Deref for Process {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn spawn(
    mut command: Command,
    namespace: Option<BorrowedFd<'_>>,
    spawn: &Spawn,
    default_cgroup: &Path,
) -> Result<Process, Error> {
    let cgroup = spawn.cgroup.as_deref().unwrap_or(default_cgroup);
    fs::create_dir_all(cgroup).map_err(at("make", cgroup))?;
    let procs = cgroup.join("cgroup.procs");
    let procs = File::options()
        .write(true)
        .open(&procs)
        .map_err(at("open", &procs))?;
    if let Some(name) = spawn.hostname.clone() {
        // SAFETY: the closure runs between fork and exec, and only makes system calls.
        unsafe {
            command.pre_exec(move || {
                unshare(CloneFlags::CLONE_NEWUTS)?;
                Ok(sethostname(&name)?)
            });
        }
    }
    enter_before_exec(&mut command, namespace, Some(&procs), spawn.user);
    let child = command
        .spawn()
        .map_err(at("start", Path::new(command.get_program())))?;
    Ok(Process(child))
}

/// Makes `command` enter the cgroup and the namespace and give up its rights before it runs. The
/// descriptors must stay open until it is started.
pub(crate) fn enter_before_exec(
    command: &mut Command,
    namespace: Option<BorrowedFd<'_>>,
    cgroup_procs: Option<&File>,
    user: Option<(u32, u32)>,
) {
    let namespace = namespace.map(|fd| fd.as_raw_fd());
    let cgroup_procs = cgroup_procs.map(|file| file.as_raw_fd());
    // SAFETY: the closure runs between fork and exec and only makes system calls: no allocation,
    // no locks.
    unsafe {
        command.pre_exec(move || enter(namespace, cgroup_procs, user));
    }
}

fn enter(namespace: Option<RawFd>, cgroup_procs: Option<RawFd>, user: Option<(u32, u32)>) -> io::Result<()> {
    if let Some(fd) = cgroup_procs {
        // SAFETY: inherited by fork and open there; ManuallyDrop leaves closing to exec.
        let mut file = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
        // 0 is whoever writes.
        file.write_all(b"0")?;
    }
    if let Some(fd) = namespace {
        // SAFETY: as above.
        setns(unsafe { BorrowedFd::borrow_raw(fd) }, CloneFlags::CLONE_NEWNET)?;
    }
    if let Some((uid, gid)) = user {
        setgroups(&[])?;
        setgid(Gid::from_raw(gid))?;
        // From root to another user this drops every capability as well.
        setuid(Uid::from_raw(uid))?;
        // SAFETY: plain integers.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
