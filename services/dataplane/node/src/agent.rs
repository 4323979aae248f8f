//! Starting the agent's process without any privilege.

use crate::{NodeError, user::AgentUser};
use nix::sys::resource::{Resource, getrlimit};
use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{fs::PermissionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::process::{Child, Command};
use weft_handoff::HANDOFF_FD_ENV;

/// Open files that the agent may have: three sockets for each of many connections.
const OPEN_FILES: u64 = 1 << 20;

/// How to start an agent.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) user: AgentUser,
    pub(crate) node: String,
    pub(crate) data_dir: PathBuf,
    /// The namespace to start in, unless it is this process's own.
    pub(crate) netns: Option<Arc<OwnedFd>>,
}

impl Program {
    /// Checks the path, makes the agent's folder, and the one beside it with apps' files.
    pub(crate) fn prepare(&self) -> Result<(), NodeError> {
        self.open()?;
        for path in [self.data_dir.clone(), self.data_dir.with_file_name("apps")] {
            let failed = |action| {
                let path = path.clone();
                move |source| NodeError::RunDir { action, path, source }
            };
            fs::create_dir_all(&path).map_err(failed("make"))?;
            std::os::unix::fs::chown(&path, Some(self.user.uid), Some(self.user.gid))
                .map_err(failed("give to the agent's user"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
                .map_err(failed("close to others"))?;
        }
        Ok(())
    }

    fn refuse(&self, detail: impl ToString) -> NodeError {
        NodeError::AgentBinary {
            path: self.path.clone(),
            detail: detail.to_string(),
        }
    }

    fn open(&self) -> Result<fs::File, NodeError> {
        let file = fs::File::open(&self.path).map_err(|e| self.refuse(e))?;
        let metadata = file.metadata().map_err(|e| self.refuse(e))?;
        if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
            return Err(self.refuse("it is not an executable file"));
        }
        Ok(file)
    }

    /// Starts it with one end of the hand-off. The program is opened by this process and started
    /// through the descriptor, so it may lie in a folder that only root can enter.
    pub(crate) fn start(&self, handoff: OwnedFd) -> Result<Child, NodeError> {
        let program = self.open()?;
        let exec = format!("/proc/self/fd/{}", program.as_raw_fd());
        let mut command = std::process::Command::new(&exec);
        command
            .arg0(&self.path)
            .args(&self.args)
            .env(HANDOFF_FD_ENV, handoff.as_raw_fd().to_string())
            .env("WEFT_NODE", &self.node)
            .env("WEFT_AGENT_DATA_DIR", &self.data_dir)
            .env("HOME", &self.data_dir)
            // An agent and the one that replaces it have the same ports of their own.
            .env(weft_telemetry::http::SHARE_PORTS_ENV, "1")
            // This process's own; the agent has others.
            .env_remove("WEFT_METRICS_LISTEN")
            .current_dir("/")
            .stdin(std::process::Stdio::null())
            // Ctrl-C at a terminal reaches this process, which then ends the agent in order.
            .process_group(0);
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(OPEN_FILES, |(_, hard)| hard.max(OPEN_FILES));
        let child = Unprivileged {
            handoff: handoff.as_raw_fd(),
            netns: self.netns.as_ref().map(|fd| fd.as_raw_fd()),
            uid: self.user.uid,
            gid: self.user.gid,
            limit,
        };
        // SAFETY: `become_it` makes system calls only: it allocates nothing and takes no lock, as
        // is needed between fork and exec of a process with threads.
        unsafe { command.pre_exec(move || child.become_it()) };
        Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| self.refuse(e))
    }
}

/// What the child needs to know before it becomes the agent.
struct Unprivileged {
    handoff: RawFd,
    netns: Option<RawFd>,
    uid: u32,
    gid: u32,
    limit: u64,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

impl Unprivileged {
    /// Gives up everything, in the child. Every failure keeps the agent from starting, except that
    /// of the limit, which only bounds how many connections it can have.
    fn become_it(&self) -> io::Result<()> {
        let check = |answer: i64| {
            if answer < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        };
        // SAFETY: plain system calls with integers and pointers to live local values.
        unsafe {
            let mut limit = libc::rlimit {
                rlim_cur: self.limit,
                rlim_max: self.limit,
            };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) < 0
                && libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0
            {
                limit.rlim_cur = limit.rlim_max;
                let _ = libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
            }
            if let Some(netns) = self.netns {
                check(libc::setns(netns, libc::CLONE_NEWNET).into())?;
            }
            // Nothing but the hand-off and the standard streams may pass.
            check(libc::syscall(
                libc::SYS_close_range,
                3u32,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            ))?;
            check(libc::fcntl(self.handoff, libc::F_SETFD, 0).into())?;

            check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0).into())?;
            for capability in 0..64 {
                // The first number that the kernel does not know ends the list.
                if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 {
                    let error = io::Error::last_os_error();
                    match error.raw_os_error() {
                        Some(libc::EINVAL) => break,
                        _ => return Err(error),
                    }
                }
            }
            check(libc::setgroups(0, std::ptr::null()).into())?;
            check(libc::setresgid(self.gid, self.gid, self.gid).into())?;
            check(libc::setresuid(self.uid, self.uid, self.uid).into())?;
            // _LINUX_CAPABILITY_VERSION_3, this thread; all three sets empty.
            let header = CapHeader {
                version: 0x2008_0522,
                pid: 0,
            };
            let none = [0u32; 6];
            check(libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()))?;
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
        }
        Ok(())
    }
}

/// The program beside this one.
pub(crate) fn beside_this() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|path| path.parent().map(|folder| folder.join("weft-agent")))
        .unwrap_or_else(|| Path::new("weft-agent").to_owned())
}
