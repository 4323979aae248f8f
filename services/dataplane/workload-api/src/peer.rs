//! The process at the other end of a unix socket, and the cgroups it is in.

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt},
};
use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

/// How deep below the root of the hierarchy a workload's cgroup may lie; as the kernel programs
/// have it.
const MAX_LEVEL: usize = 32;

/// Why nothing can be said of the other end.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The kernel does not say who connected.
    #[error("the kernel does not name the process that connected (SO_PEERPIDFD, Linux 6.5): {0}")]
    Unnamed(io::Error),
    /// It ended, perhaps while its cgroup was read.
    #[error("the process that connected has ended")]
    Ended,
    /// It is in a place that can not be seen from here.
    #[error(
        "the process that connected is in another PID namespace or hidden (is /proc mounted with hidepid?)"
    )]
    Hidden,
    /// Its cgroup can not be read.
    #[error("the cgroup of the process that connected cannot be read: {0}")]
    Cgroup(io::Error),
}

/// A process that connected. The descriptor stands for that process even after its number is used
/// again.
#[derive(Debug)]
pub struct Peer {
    pidfd: OwnedFd,
}

impl Peer {
    /// Who connected `stream`.
    pub fn of(stream: &impl AsFd) -> Result<Self, PeerError> {
        let pidfd = getsockopt(stream, sockopt::PeerPidfd).map_err(|errno| match errno {
            // The kernel has no descriptor for a process that is gone.
            nix::errno::Errno::ESRCH | nix::errno::Errno::ENODATA | nix::errno::Errno::EINVAL => {
                PeerError::Ended
            }
            other => PeerError::Unnamed(other.into()),
        })?;
        Ok(Self { pidfd })
    }

    /// The ids of the cgroups the process is in, the innermost first. `cgroup2` is where the
    /// hierarchy is mounted.
    pub fn cgroups(&self, cgroup2: &Path) -> Result<Vec<u64>, PeerError> {
        let pid = self.pid()?;
        let table = fs::read_to_string(format!("/proc/{pid}/cgroup"));
        let ids = match table {
            Ok(table) => ids(&table, cgroup2),
            Err(error) => Err(error),
        };
        // Only now it is sure that all this was about that process and not about one that got its
        // number meanwhile.
        if !self.is_alive()? {
            return Err(PeerError::Ended);
        }
        ids.map_err(PeerError::Cgroup)
    }

    /// Whether the process still runs.
    pub fn is_alive(&self) -> Result<bool, PeerError> {
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        // Readable once it has ended.
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(ready) => Ok(ready == 0),
            Err(errno) => Err(PeerError::Unnamed(errno.into())),
        }
    }

    fn pid(&self) -> Result<u32, PeerError> {
        let path = format!("/proc/self/fdinfo/{}", self.pidfd.as_raw_fd());
        let info = fs::read_to_string(path).map_err(PeerError::Unnamed)?;
        match pid_in(&info) {
            // -1 when it has ended, 0 when it has no number in this namespace.
            Some(pid) if pid > 0 => Ok(pid.unsigned_abs()),
            Some(0) => Err(PeerError::Hidden),
            _ => Err(PeerError::Ended),
        }
    }
}

fn pid_in(info: &str) -> Option<i32> {
    let line = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    line.trim().parse().ok()
}

/// The cgroup v2 line of `/proc/<pid>/cgroup` is `0::<path>`.
fn path_in(table: &str) -> Option<&str> {
    table.lines().find_map(|line| line.strip_prefix("0::"))
}

fn ids(table: &str, cgroup2: &Path) -> io::Result<Vec<u64>> {
    let path = path_in(table)
        .and_then(|path| beneath(path, cgroup2))
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "it is in no cgroup of version 2 below ours",
            )
        })?;
    let folders = path.ancestors().take_while(|folder| folder.starts_with(cgroup2));
    folders
        .take(MAX_LEVEL)
        .map(|folder| Ok(fs::metadata(folder)?.ino()))
        .collect()
}

/// A path of the table under the mount. One that leads out of it (`/../x`: a process outside our
/// cgroup namespace) names nothing here.
fn beneath(path: &str, cgroup2: &Path) -> Option<PathBuf> {
    let relative = Path::new(path.strip_prefix('/')?);
    relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
        .then(|| cgroup2.join(relative))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{
        os::unix::net::{UnixListener, UnixStream},
        process::Command,
    };

    fn pair() -> (UnixStream, UnixStream, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        (client, listener.accept().unwrap().0, dir)
    }

    /// The hierarchy's place on this machine; the library gets it from its caller.
    fn cgroup2() -> PathBuf {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts
            .lines()
            .find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        line.unwrap().split(' ').nth(1).unwrap().into()
    }

    #[test]
    fn a_process_is_found_with_its_cgroups_from_the_inside_out() {
        let (_client, server, _dir) = pair();
        let peer = Peer::of(&server).unwrap();
        assert!(peer.is_alive().unwrap());
        let found = peer.cgroups(&cgroup2()).unwrap();
        let table = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = beneath(path_in(&table).unwrap(), &cgroup2()).unwrap();
        assert_eq!(found.first(), Some(&fs::metadata(own).unwrap().ino()));
        assert_eq!(found.last(), Some(&fs::metadata(cgroup2()).unwrap().ino()));
    }

    #[test]
    fn a_process_that_ended_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let mut child = Command::new("python3")
            .arg("-c")
            .arg("import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdin.read()")
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (server, _) = listener.accept().unwrap();
        let peer = Peer::of(&server).unwrap();
        // The twin: as long as it lives, it is somebody.
        assert!(!peer.cgroups(&cgroup2()).unwrap().is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!peer.is_alive().unwrap());
        assert!(matches!(peer.cgroups(&cgroup2()), Err(PeerError::Ended)));
    }

    #[test]
    fn paths_that_lead_out_name_nothing() {
        let root = Path::new("/sys/fs/cgroup");
        assert_eq!(beneath("/a/b", root).unwrap(), root.join("a/b"));
        assert_eq!(beneath("/", root).unwrap(), root);
        for path in ["/../a", "/a/../../b", "a", ""] {
            assert_eq!(beneath(path, root), None, "{path}");
        }
        assert_eq!(path_in("12:cpu:/x\n0::/weft/n1\n"), Some("/weft/n1"));
        assert_eq!(path_in("12:cpu:/x\n"), None);
    }

    #[test]
    fn the_number_of_a_process_is_read_from_its_descriptor() {
        assert_eq!(pid_in("pos:\t0\nPid:\t42\nNSpid:\t42\n"), Some(42));
        assert_eq!(pid_in("Pid:\t-1\n"), Some(-1));
        assert_eq!(pid_in("pos:\t0\n"), None);
    }

    proptest! {
        #[test]
        fn any_table_is_read(text in "(0::|Pid:|[ -~]|\n|/|\\.\\.){0,60}") {
            let _ = pid_in(&text);
            if let Some(path) = path_in(&text).and_then(|path| beneath(path, Path::new("/c"))) {
                prop_assert!(path.starts_with("/c"));
            }
        }
    }
}
