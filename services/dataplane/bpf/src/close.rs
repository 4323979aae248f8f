//! Closing the sockets whose service sent them to a backend that is one no more.
//!
//! A socket counts only if the programs translated it: they keep on the socket what it was given for
//! what, and that is compared. A connection that an app made to the same address itself stays.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::AddressFamily;

use crate::diag::{CONNECTED, Found, NamespaceSockets, Query, WITH_PEER};
use crate::error::Error;
use crate::layout::{ORIGIN_CAPTURED, ORIGIN_SERVICE, RawActive, RawConnected};
use crate::origin::place;
use crate::services::Transport;
use crate::sys::{self, Map};

/// A backend that some services have no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// The protocol.
    pub transport: Transport,
    /// The backend's address.
    pub backend: SocketAddr,
    /// The addresses of the services that had it. Empty: every service.
    pub services: HashSet<SocketAddr>,
}

/// Knows which sockets were sent where.
#[derive(Debug)]
pub struct Closer {
    /// On TCP sockets, told with them.
    pub(crate) connects: OwnedFd,
    /// Of UDP sockets, by their cookie.
    pub(crate) connected: Map<u64, RawConnected>,
}

impl Closer {
    /// Closes the namespace's sockets to a backend, TCP connections and connected UDP sockets, and
    /// returns how many there were. Their owners see an aborted connection. What no process holds any
    /// more is left to end by itself: its last bytes may still arrive.
    ///
    /// A connect(2) that was under way when the backend was removed may not be seen yet: call it
    /// again a little later.
    pub fn close(&self, sockets: &mut NamespaceSockets, gone: &Gone) -> Result<usize, Error> {
        let failed = |action| move |source| Error::Sockets { action, source };
        let (storage, states) = match gone.transport {
            Transport::Tcp => (Some(self.connects.as_fd()), WITH_PEER),
            Transport::Udp => (None, CONNECTED),
        };
        // IPv4 may be on sockets of either family.
        let families = match gone.backend {
            SocketAddr::V4(_) => &[AddressFamily::Inet, AddressFamily::Inet6][..],
            SocketAddr::V6(_) => &[AddressFamily::Inet6],
        };
        let mut closed = 0;
        for family in families {
            let query = Query {
                family: *family,
                protocol: gone.transport.number(),
                states,
                port: gone.backend.port(),
                storage,
            };
            for socket in sockets.list(&query).map_err(failed("list"))? {
                if self.is_meant(&socket, gone)? && sockets.close(&socket).map_err(failed("close"))? {
                    closed += 1;
                }
            }
        }
        Ok(closed)
    }

    fn is_meant(&self, socket: &Found, gone: &Gone) -> Result<bool, Error> {
        if socket.peer != gone.backend || !socket.held {
            return Ok(false);
        }
        let given = match gone.transport {
            Transport::Tcp => socket
                .value
                .as_deref()
                .and_then(sys::read::<RawActive>)
                .filter(|active| active.origin.flags & (ORIGIN_SERVICE | ORIGIN_CAPTURED) == ORIGIN_SERVICE)
                .map(|active| {
                    let service = place(active.origin.daddr, active.origin.dport);
                    (service, place(active.peer, active.pport))
                }),
            Transport::Udp => self
                .connected
                .lookup(&socket.cookie())
                .map_err(|source| Error::Map {
                    map: "connected",
                    action: "read",
                    source,
                })?
                .map(|given| {
                    let service = place(given.service, given.sport);
                    (service, place(given.backend, given.bport))
                }),
        };
        Ok(given.is_some_and(|(service, backend)| {
            backend == gone.backend && (gone.services.is_empty() || gone.services.contains(&service))
        }))
    }
}
