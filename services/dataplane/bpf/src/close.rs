//! Closing the sockets whose service sent them to a backend that is one no more.
//!
//! A socket counts only if the programs translated it: they keep what it was given for what, and
//! that is compared. A connection that an app made to the same address itself stays.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::AddressFamily;

use crate::diag::{CONNECTED, Found, NamespaceSockets, Query, WITH_PEER};
use crate::error::Error;
use crate::layout::{
    ORIGIN_CAPTURED, ORIGIN_SERVICE, RawActive, RawConnected, RawMember, RawService, RawServiceKey,
};
use crate::origin::place;
use crate::services::{Frontend, Transport, raw_frontend, raw_member};
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
    /// A backend may have come back by now.
    pub(crate) services: Map<RawServiceKey, RawService>,
    pub(crate) members: Map<RawMember, u32>,
}

impl Closer {
    /// Closes the namespace's sockets to these backends, TCP connections and connected UDP sockets,
    /// and returns how many there were. Their owners see an aborted connection. What no process
    /// holds any more is left to end by itself: its last bytes may still arrive. What is a backend of
    /// the socket's service again, or still, keeps its sockets.
    ///
    /// A connect(2) that was under way when a backend was removed may not be seen yet: call it again
    /// a little later.
    pub fn close(&self, sockets: &mut NamespaceSockets, gone: &[Gone]) -> Result<usize, Error> {
        let mut closed = 0;
        for transport in [Transport::Tcp, Transport::Udp] {
            let mut meant: HashMap<SocketAddr, Vec<&Gone>> = HashMap::new();
            for gone in gone.iter().filter(|gone| gone.transport == transport) {
                meant.entry(gone.backend).or_default().push(gone);
            }
            if !meant.is_empty() {
                closed += self.close_all(sockets, transport, &meant)?;
            }
        }
        Ok(closed)
    }

    /// However many there are, each family's sockets are listed once.
    fn close_all(
        &self,
        sockets: &mut NamespaceSockets,
        transport: Transport,
        meant: &HashMap<SocketAddr, Vec<&Gone>>,
    ) -> Result<usize, Error> {
        let failed = |action| move |source| Error::Sockets { action, source };
        let (storage, states) = match transport {
            Transport::Tcp => (Some(self.connects.as_fd()), WITH_PEER),
            Transport::Udp => (None, CONNECTED),
        };
        let mut ports = meant.keys().map(SocketAddr::port);
        let first = ports.next().unwrap_or_default();
        let port = if ports.all(|port| port == first) { first } else { 0 };
        // IPv4 may be on sockets of either family.
        let families = if meant.keys().any(SocketAddr::is_ipv4) {
            &[AddressFamily::Inet, AddressFamily::Inet6][..]
        } else {
            &[AddressFamily::Inet6]
        };
        let mut closed = 0;
        for family in families {
            let query = Query {
                family: *family,
                protocol: transport.number(),
                states,
                port,
                storage,
            };
            for socket in sockets.list(&query).map_err(failed("list"))? {
                let Some(gone) = meant.get(&socket.peer).filter(|_| socket.held) else {
                    continue;
                };
                let Some(service) = self.service_of(&socket, transport)? else {
                    continue;
                };
                let is_meant = gone
                    .iter()
                    .any(|gone| gone.services.is_empty() || gone.services.contains(&service));
                if is_meant
                    && !self.has(service, transport, socket.peer)?
                    && sockets.close(&socket).map_err(failed("close"))?
                {
                    closed += 1;
                }
            }
        }
        Ok(closed)
    }

    /// Whether this is one of the service's backends now.
    fn has(&self, service: SocketAddr, transport: Transport, backend: SocketAddr) -> Result<bool, Error> {
        let failed = |map| {
            move |source| Error::Map {
                map,
                action: "read",
                source,
            }
        };
        let key = raw_frontend(Frontend {
            address: service,
            transport,
        });
        let Some(found) = self.services.lookup(&key).map_err(failed("services"))? else {
            return Ok(false);
        };
        let member = self.members.lookup(&raw_member(found.id, backend));
        Ok(member.map_err(failed("members"))?.is_some())
    }

    /// The service that sent this socket to its peer, if one did.
    fn service_of(&self, socket: &Found, transport: Transport) -> Result<Option<SocketAddr>, Error> {
        let given = match transport {
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
        Ok(given
            .filter(|(_, backend)| *backend == socket.peer)
            .map(|(service, _)| service))
    }
}
