//! Network namespaces: naming them, entering them, and what is made inside.
//!
//! A namespace belongs to a thread, so one thread of its own enters them, one job at a time, and
//! returns home after each: a thread that stayed would keep a pod's namespace alive.

use crate::NodeError;
use nix::sched::{CloneFlags, setns};
use std::{
    fmt, fs, io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};
use tokio::sync::{mpsc, oneshot};

/// Jobs that may wait.
const QUEUE: usize = 256;
/// `ioctl` of `linux/nsfs.h`: the `CLONE_*` flag of a namespace.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// How a namespace was named, which is also how one learns that it is gone.
#[derive(Debug)]
pub(crate) enum Place {
    /// A path that is unlinked when the namespace is deleted, as below `/run/netns`.
    Path(PathBuf),
    /// A process; the descriptor becomes readable when it exits.
    Process { pid: u32, pidfd: OwnedFd },
    /// The one this process started in.
    Own,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Process { pid, .. } => write!(f, "of process {pid}"),
            Self::Own => f.write_str("of the node"),
        }
    }
}

/// An open network namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    fd: OwnedFd,
    id: (u64, u64),
    pub(crate) place: Place,
}

impl Namespace {
    /// The namespace that this thread is in.
    pub(crate) fn own() -> Result<Self, NodeError> {
        Self::open(Path::new("/proc/thread-self/ns/net"), Place::Own)
    }

    /// By path. `/proc/<pid>/ns/net` is taken as the process it names.
    pub(crate) fn by_path(path: &Path) -> Result<Self, NodeError> {
        if !path.is_absolute() {
            return Err(refuse(
                path.display(),
                "give an absolute path, such as /run/netns/<name>",
            ));
        }
        match process_in(path) {
            Some(pid) => Self::by_pid(pid),
            None => Self::open(path, Place::Path(path.to_owned())),
        }
    }

    /// The one a process is in.
    pub(crate) fn by_pid(pid: u32) -> Result<Self, NodeError> {
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::ESRCH) => refuse(format!("of process {pid}"), "there is no such process (any more)"),
            _ => refuse(format!("of process {pid}"), source),
        };
        let pidfd = pidfd_open(pid).map_err(failed)?;
        let path = format!("/proc/{pid}/ns/net");
        let namespace = Self::open(Path::new(&path), Place::Process { pid, pidfd })?;
        // The number may have been given to another process between the two; the pidfd has not.
        if let Place::Process { pidfd, .. } = &namespace.place {
            pidfd_alive(pidfd).map_err(failed)?;
        }
        Ok(namespace)
    }

    fn open(path: &Path, place: Place) -> Result<Self, NodeError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => refuse(
                &place,
                "there is no such namespace; `ip netns list` shows those with a name",
            ),
            _ => refuse(&place, source),
        };
        // O_PATH first: opening whatever else is at the path could block or have effects.
        let handle = fs::File::options()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(path)
            .map_err(failed)?;
        let kind = nix::sys::statfs::fstatfs(&handle)
            .map_err(|e| failed(e.into()))?
            .filesystem_type();
        if kind != nix::sys::statfs::NSFS_MAGIC {
            return Err(refuse(&place, "this is not a namespace"));
        }
        let fd: OwnedFd = fs::File::open(format!("/proc/self/fd/{}", handle.as_raw_fd()))
            .map_err(failed)?
            .into();
        // SAFETY: this ioctl takes no argument and only answers with the kind of the namespace.
        let flag = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
        if flag != libc::CLONE_NEWNET {
            return Err(refuse(
                &place,
                "this is a namespace of another kind, not of the network",
            ));
        }
        let metadata = handle.metadata().map_err(failed)?;
        Ok(Self {
            fd,
            id: (metadata.dev(), metadata.ino()),
            place,
        })
    }

    pub(crate) fn try_clone_fd(&self) -> Result<OwnedFd, NodeError> {
        self.fd.try_clone().map_err(|e| refuse(&self.place, e))
    }

    /// Whether both are the same namespace.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// Whether the name still leads to this namespace. True for those known by a process.
    pub(crate) fn is_there(&self) -> bool {
        match &self.place {
            Place::Path(path) => fs::metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == self.id),
            Place::Process { .. } | Place::Own => true,
        }
    }
}

fn refuse(place: impl fmt::Display, detail: impl fmt::Display) -> NodeError {
    NodeError::Namespace {
        place: place.to_string(),
        detail: detail.to_string(),
    }
}

/// The process in `/proc/<pid>/ns/net`.
fn process_in(path: &Path) -> Option<u32> {
    let rest = path.to_str()?.strip_prefix("/proc/")?.strip_suffix("/ns/net")?;
    rest.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| rest.parse().ok())?
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and answers with a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
    let fd = i32::try_from(fd)
        .ok()
        .filter(|fd| *fd >= 0)
        .ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this descriptor for us; pidfds are close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pidfd_alive(pidfd: &OwnedFd) -> io::Result<()> {
    // SAFETY: signal 0 sends nothing; the descriptor is open and the info pointer may be null.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            0,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gets the thread's home.
type Job = Box<dyn FnOnce(&fs::File) + Send>;

/// The thread that enters namespaces. Clones share it; it ends with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct Entrance {
    jobs: mpsc::Sender<Job>,
}

impl Entrance {
    /// Starts the thread; its home is the namespace of the calling thread.
    pub(crate) fn start() -> Result<Self, NodeError> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        let home = fs::File::open("/proc/thread-self/ns/net").map_err(|e| refuse("of the node", e))?;
        std::thread::Builder::new()
            .name("weft-netns".into())
            .spawn(move || {
                while let Some(job) = queue.blocking_recv() {
                    job(&home);
                }
            })
            .map_err(|source| NodeError::Process {
                action: "start a thread",
                source,
            })?;
        Ok(Self { jobs })
    }

    /// Runs `work` inside `namespace`. Bounded: a job opens sockets and waits for nothing.
    pub(crate) async fn run<T, F>(&self, namespace: &Namespace, work: F) -> Result<T, NodeError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, NodeError> + Send + 'static,
    {
        let place = namespace.place.to_string();
        let fd = namespace.try_clone_fd()?;
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |home| {
            let _ = answer.send(inside(home, &fd, &place, work));
        });
        self.jobs.send(job).await.map_err(|_| NodeError::Stopped)?;
        answered.await.map_err(|_| NodeError::Stopped)?
    }
}

fn inside<T>(
    home: &fs::File,
    fd: &OwnedFd,
    place: &str,
    work: impl FnOnce() -> Result<T, NodeError>,
) -> Result<T, NodeError> {
    setns(fd.as_fd(), CloneFlags::CLONE_NEWNET)
        .map_err(|e| refuse(place, format!("cannot enter it: {e}")))?;
    let result = work();
    setns(home.as_fd(), CloneFlags::CLONE_NEWNET)
        .map_err(|e| refuse("of the node", format!("cannot return: {e}")))?;
    result
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_process_is_recognised_in_a_path() {
        assert_eq!(process_in(Path::new("/proc/42/ns/net")), Some(42));
        for other in [
            "/proc/self/ns/net",
            "/proc/42/ns/mnt",
            "/run/netns/42",
            "/proc/+4/ns/net",
            "/proc//ns/net",
        ] {
            assert_eq!(process_in(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn what_is_no_network_namespace_is_refused_with_words() {
        for (path, words) in [
            ("/run/netns/weft-not-there", "no such namespace"),
            ("/etc/hostname", "not a namespace"),
            ("/proc/thread-self/ns/mnt", "another kind"),
            ("relative", "absolute"),
            ("/proc/4194305/ns/net", "no such process"),
        ] {
            let error = Namespace::by_path(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let own = Namespace::by_pid(std::process::id()).unwrap();
        assert!(own.same(&Namespace::own().unwrap()));
    }

    proptest! {
        #[test]
        fn any_path_is_read_without_panic(path in "(/proc/|[0-9]{0,12}|/ns/net|\\PC){0,6}") {
            let _ = process_in(Path::new(&path));
        }
    }
}
