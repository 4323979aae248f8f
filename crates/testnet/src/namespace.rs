//! A network namespace, held by a descriptor and a bind mount, and running things in it.
//!
//! Entering is a matter of one thread: closures run on a thread of their own, commands enter
//! between fork and exec. Unlike `ip netns exec` this leaves the mounts alone, so cgroup2 and bpffs
//! stay in sight.

use std::fs::File;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::{fs, thread};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::error::{Error, at, io};
use crate::process::{self, Process, Spawn};

/// A network namespace. Cheap to clone; the last clone and the network's end let it go.
#[derive(Debug, Clone)]
pub struct Namespace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    path: PathBuf,
    fd: File,
    /// For processes that are given no cgroup.
    cgroup: PathBuf,
}

impl Namespace {
    /// A new one, with its loopback up, mounted at `path`.
    pub(crate) fn create(name: &str, path: PathBuf, cgroup: PathBuf) -> Result<Self, Error> {
        File::create_new(&path).map_err(at("make", &path))?;
        let fd = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let own = "/proc/thread-self/ns/net";
            mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            // Addresses are ours to give: none waits for duplicates of itself.
            for family in ["all", "default"] {
                let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{family}/accept_dad"), "0");
            }
            File::open(own)
        })
        .map_err(io("make the namespace", name))?;
        let namespace = Self {
            inner: Arc::new(Inner {
                name: name.to_string(),
                path,
                fd,
                cgroup,
            }),
        };
        namespace.ip("link set lo up\n")?;
        Ok(namespace)
    }

    /// Its name within the network.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Where it is mounted: `nsenter --net=<path>` enters it by hand.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Runs `f` inside, on a thread of its own, and hands back what it returns. Sockets made by it
    /// keep the namespace wherever they go. A panic of `f` goes on here.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_thread(|| {
            setns(&self.inner.fd, CloneFlags::CLONE_NEWNET)?;
            Ok(f())
        })
        .map_err(io("enter the namespace", self.name()))
    }

    /// Starts a command inside, as `spawn` says. It is killed when the [`Process`] or the network
    /// is dropped, whichever comes first.
    pub fn spawn(&self, command: Command, spawn: &Spawn) -> Result<Process, Error> {
        process::spawn(command, Some(self.inner.fd.as_fd()), spawn, &self.inner.cgroup)
    }

    /// A listener inside.
    pub fn listen(&self, address: impl ToSocketAddrs + Send) -> Result<TcpListener, Error> {
        self.run(|| TcpListener::bind(address))?
            .map_err(io("listen in", self.name()))
    }

    /// A connection from inside.
    pub fn connect(&self, address: impl ToSocketAddrs + Send) -> Result<TcpStream, Error> {
        self.run(|| TcpStream::connect(address))?
            .map_err(io("connect from", self.name()))
    }

    /// Writes a file below `/proc/sys/net` as this namespace sees it.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<(), Error> {
        let path = Path::new("/proc/sys/net").join(key);
        self.run(|| fs::write(&path, value))?.map_err(at("write", &path))
    }

    /// Gives lines to `ip -batch` inside: `link add …`, `route add …`.
    pub fn ip(&self, script: &str) -> Result<(), Error> {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        process::enter_before_exec(&mut command, Some(self.inner.fd.as_fd()), None, None);
        let mut child = command.spawn().map_err(Error::NoIp)?;
        if let Some(mut input) = child.stdin.take() {
            // It may be gone already; its own words tell more than a broken pipe.
            let _ = input.write_all(script.as_bytes());
        }
        let output = child.wait_with_output().map_err(Error::NoIp)?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_string();
        Err(Error::Ip {
            namespace: self.name().to_string(),
            script: script.to_string(),
            message,
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.fd.as_fd()
    }
}

/// A namespace belongs to a thread, and this one ends with the closure.
fn on_thread<T: Send>(f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, f)?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
