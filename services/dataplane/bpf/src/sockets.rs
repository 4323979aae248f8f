//! What the node does about sockets: pods by their namespace, its own sockets, the table of services
//! and the sockets whose backend is gone.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType};

use crate::close::Closer;
use crate::endpoints::Endpoints;
use crate::error::Error;
use crate::kernel::{Kernel, MAX_WORKLOADS};
use crate::layout::RawProcess;
use crate::services::{Services, Transport, octets};
use crate::sys::{self, Map};

/// `shares` holds cgroup ids and, told apart by this bit, cookies of namespaces.
const BY_NAMESPACE: u64 = 1 << 63;

impl Kernel {
    /// From now on, calls from this network namespace (`SO_NETNS_COOKIE`) are those of the pod with
    /// this endpoint number. Calling it again changes the number.
    pub fn add_namespace(&self, cookie: u64, endpoint: u32) -> Result<(), Error> {
        let failed = |map| {
            move |source: io::Error| match source.raw_os_error() {
                Some(libc::E2BIG) => Error::WorkloadsFull { max: MAX_WORKLOADS },
                _ => Error::Map {
                    map,
                    action: "add to",
                    source,
                },
            }
        };
        let share = cookie | BY_NAMESPACE;
        match self.shares.update(&share, &0, sys::NOEXIST) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed("shares"))?,
        }
        self.namespaces.update(&cookie, &endpoint, 0).map_err(|error| {
            let _ = self.shares.delete(&share);
            failed("namespaces")(error)
        })
    }

    /// Calls from this namespace are nobody's any more. Returns whether it was registered.
    pub fn remove_namespace(&self, cookie: u64) -> Result<bool, Error> {
        let failed = |map| {
            move |source| Error::Map {
                map,
                action: "remove from",
                source,
            }
        };
        let there = self.namespaces.delete(&cookie).map_err(failed("namespaces"))?;
        self.shares
            .delete(&(cookie | BY_NAMESPACE))
            .map_err(failed("shares"))?;
        Ok(there)
    }

    /// The registered namespaces with their endpoint numbers, an earlier process's too.
    pub fn namespaces(&self) -> Result<Vec<(u64, u32)>, Error> {
        let failed = |source| Error::Map {
            map: "namespaces",
            action: "read",
            source,
        };
        let mut found = Vec::new();
        for cookie in self.namespaces.keys().map_err(failed)? {
            if let Some(endpoint) = self.namespaces.lookup(&cookie).map_err(failed)? {
                found.push((cookie, endpoint));
            }
        }
        Ok(found)
    }

    /// What marks the node's own sockets.
    pub fn own_sockets(&self) -> Result<OwnSockets, Error> {
        Ok(OwnSockets {
            map: typed(self.map_fd("own")?, "own")?,
        })
    }

    /// The writer of the table of services. There must be one at a time.
    pub fn services(&self) -> Result<Services, Error> {
        Services::from_fds(
            self.map_fd("services")?,
            self.map_fd("backends")?,
            self.map_fd("members")?,
        )
    }

    /// The table of endpoints.
    pub fn endpoints(&self) -> Result<Endpoints, Error> {
        Endpoints::from_fd(self.map_fd("endpoints")?, &self.epoch()?)
    }

    /// The endpoint number of the process whose packets go from one address to another, if one's do.
    pub fn process(
        &self,
        transport: Transport,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<Option<u32>, Error> {
        let key = RawProcess {
            saddr: octets(from),
            daddr: octets(to),
            sport: from.port(),
            dport: to.port(),
            proto: transport.number(),
            zero: [0; 3],
        };
        self.processes.lookup(&key).map_err(|source| Error::Map {
            map: "processes",
            action: "read",
            source,
        })
    }

    /// What closes sockets of removed backends.
    pub fn closer(&self) -> Result<Closer, Error> {
        Ok(Closer {
            connects: self.map_fd("connects")?,
            connected: typed(self.map_fd("connected")?, "connected")?,
            services: typed(self.map_fd("services")?, "services")?,
            members: typed(self.map_fd("members")?, "members")?,
        })
    }

    pub(crate) fn map_fd(&self, name: &str) -> Result<OwnedFd, Error> {
        self.open_map(name, false)
    }

    pub(crate) fn open_map(&self, name: &str, read_only: bool) -> Result<OwnedFd, Error> {
        let path = self.maps.join(name);
        sys::open_pin(&path, read_only).map_err(|source| Error::Pin {
            path,
            action: "open",
            source,
        })
    }
}

/// Marks sockets that the node makes for the agent.
#[derive(Debug)]
pub struct OwnSockets {
    map: Map<i32, u32>,
}

impl OwnSockets {
    /// From now on the programs leave alone where this socket connects, whoever does it. The mark
    /// stays with the socket wherever it is passed, and nobody without the map can set it.
    pub fn mark(&self, socket: BorrowedFd<'_>) -> Result<(), Error> {
        self.map
            .update(&socket.as_raw_fd(), &1, 0)
            .map_err(|source| Error::Map {
                map: "own",
                action: "add to",
                source,
            })
    }
}

/// The cookie of the calling thread's network namespace: how the programs know it.
pub fn netns_cookie() -> io::Result<u64> {
    // Any socket will do, also where IP is not to be had.
    let socket = nix::sys::socket::socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    netns_of(&socket)
}

/// The cookie of the network namespace that a socket was made in.
pub fn netns_of(socket: &impl AsRawFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: a live integer and its length; the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Opens a map that was handed over.
pub(crate) fn typed<K: sys::Plain, V: sys::Plain>(
    fd: OwnedFd,
    map: &'static str,
) -> Result<Map<K, V>, Error> {
    Map::new(fd).map_err(|source| Error::Layout {
        map: map.into(),
        detail: source.to_string(),
    })
}
