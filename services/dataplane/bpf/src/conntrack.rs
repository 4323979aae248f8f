//! The connections that the programs know.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::addresses::address;
use crate::epoch::Epoch;
use crate::error::Error;
use crate::layout::packet::{RawConnection, RawConnectionKey};
use crate::policy::Direction;
use crate::table::Table;

/// A connection as one endpoint sees it; between two endpoints of a node there are two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// The endpoint's number.
    pub endpoint: u32,
    /// The endpoint's address; the port is 0 where the protocol has none.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// The protocol's number in IP.
    pub protocol: u8,
    /// Who opened it.
    pub direction: Direction,
    /// The peer's identity when it was last judged.
    pub identity: u32,
    /// The generation of the set that it was last judged by.
    pub generation: u32,
    /// What the rule is called that decided.
    pub rule: u32,
    /// When it was last used, in nanoseconds of `CLOCK_MONOTONIC`.
    pub used: u64,
    /// From when on it is not known any more.
    pub expires: u64,
    /// It is the agents' own.
    pub tunnel: bool,
    /// Policy refused it when it was last judged.
    pub refused: bool,
    /// One end has ended it; the other may still send.
    pub closing: bool,
}

/// `WEFT_CONNECTION_*`.
const TUNNEL: u8 = 2;
const REFUSED: u8 = 4;
/// `WEFT_STATE_CLOSING`.
const CLOSING: u8 = 2;

fn connection(key: &RawConnectionKey, value: &RawConnection) -> Option<Connection> {
    Some(Connection {
        endpoint: key.endpoint,
        local: SocketAddr::new(address(key.local), key.lport),
        remote: SocketAddr::new(address(key.remote), key.rport),
        protocol: key.proto,
        direction: Direction::from_number(key.dir)?,
        identity: value.identity,
        generation: value.generation,
        rule: value.rule,
        used: value.used,
        expires: value.expires,
        tunnel: value.flags & TUNNEL != 0,
        refused: value.flags & REFUSED != 0,
        closing: value.proto_state == CLOSING,
    })
}

/// The table of connections.
#[derive(Debug)]
pub struct Conntrack {
    table: Table<RawConnectionKey, RawConnection>,
}

impl Conntrack {
    /// Takes the descriptor of the map `conntrack`.
    pub(crate) fn from_fd(fd: OwnedFd, epoch: &Arc<Epoch>) -> Result<Self, Error> {
        Ok(Self {
            table: Table::remembered(fd, "conntrack", epoch)?,
        })
    }

    /// The same, to read only.
    pub fn reading(fd: OwnedFd) -> Result<Self, Error> {
        Ok(Self {
            table: Table::from_fd(fd, "conntrack")?,
        })
    }

    /// What is in the table, also what has expired.
    pub fn list(&self) -> Result<Vec<Connection>, Error> {
        let all = self.table.list()?;
        Ok(all
            .iter()
            .filter_map(|(key, value)| connection(key, value))
            .collect())
    }

    /// Forgets the connections of an endpoint, as when its number is given up. Returns how many.
    pub fn forget_endpoint(&self, endpoint: u32) -> Result<usize, Error> {
        self.forget(|key| key.endpoint == endpoint)
    }

    /// Forgets the connections with an address, as when somebody else gets it. Returns how many.
    pub fn forget_peer(&self, peer: IpAddr) -> Result<usize, Error> {
        self.forget(|key| address(key.remote) == peer.to_canonical())
    }

    fn forget(&self, matches: impl Fn(&RawConnectionKey) -> bool) -> Result<usize, Error> {
        let mut forgotten = 0;
        for (key, _) in self.table.list()? {
            if matches(&key) && self.table.remove(&key)? {
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }
}
