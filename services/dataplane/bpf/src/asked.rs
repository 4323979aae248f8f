//! Reading whom a question to a resolver was for, from where it comes. Needs the map's descriptor and nothing
//! else.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::error::Error;
use crate::layout::{RawAsked, RawAskedKey};
use crate::origin::place;
use crate::services::octets;
use crate::table::Table;

/// A question that the kernel sent to the agent's listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The resolver as the caller wrote it.
    pub resolver: SocketAddr,
    /// What was chosen in its place: a service's backend, or the same.
    pub target: SocketAddr,
    /// The caller's endpoint number.
    pub endpoint: u32,
}

/// The table of questions, as handed to the process that answers them.
#[derive(Debug)]
pub struct Questions {
    table: Table<RawAskedKey, RawAsked>,
}

impl Questions {
    /// Takes the descriptor of the map `asked`.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        Ok(Self {
            table: Table::from_fd(fd, "asked")?,
        })
    }

    /// Whom a question was for that comes from `source` in the namespace with this cookie (`SO_NETNS_COOKIE`).
    /// `None`: the kernel did not send it.
    pub fn find(&self, netns: u64, source: SocketAddr) -> Result<Option<Question>, Error> {
        let key = RawAskedKey {
            netns,
            saddr: octets(source),
            sport: source.port(),
            zero: [0; 3],
        };
        let found = self.table.get(&key)?;
        Ok(found.map(|raw| Question {
            resolver: place(raw.daddr, raw.dport),
            target: place(raw.target, raw.tport),
            endpoint: raw.index,
        }))
    }
}
