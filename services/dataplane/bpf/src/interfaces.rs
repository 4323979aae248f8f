//! What the node says of its pods: which interface leads to whom, and from which addresses each may
//! send. What is not said here is not forwarded.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::addresses::{address, octets};
use crate::epoch::Epoch;
use crate::error::Error;
use crate::layout::packet::RawSource;
use crate::table::Table;

/// Interfaces by index.
#[derive(Debug)]
pub struct Interfaces {
    table: Table<u32, u32>,
}

impl Interfaces {
    /// Takes the descriptor of the map `interfaces`.
    pub(crate) fn from_fd(fd: OwnedFd, epoch: &Arc<Epoch>) -> Result<Self, Error> {
        Ok(Self {
            table: Table::remembered(fd, "interfaces", epoch)?,
        })
    }

    /// From now on the interface leads to this endpoint.
    pub fn set(&self, ifindex: u32, endpoint: u32) -> Result<(), Error> {
        self.table.set(&ifindex, &endpoint)
    }

    /// From now on nothing passes the interface that has the programs. Returns whether it was there.
    pub fn remove(&self, ifindex: u32) -> Result<bool, Error> {
        self.table.remove(&ifindex)
    }

    /// All of them, an earlier process's too.
    pub fn list(&self) -> Result<Vec<(u32, u32)>, Error> {
        self.table.list()
    }
}

/// Which addresses endpoints may send from.
#[derive(Debug)]
pub struct Sources {
    table: Table<RawSource, u32>,
}

fn raw(endpoint: u32, address: IpAddr) -> RawSource {
    RawSource {
        endpoint,
        zero: 0,
        addr: octets(address),
    }
}

impl Sources {
    /// Takes the descriptor of the map `endpoint_addresses`.
    pub(crate) fn from_fd(fd: OwnedFd, epoch: &Arc<Epoch>) -> Result<Self, Error> {
        Ok(Self {
            table: Table::remembered(fd, "endpoint_addresses", epoch)?,
        })
    }

    /// From now on the endpoint may send from this address.
    pub fn add(&self, endpoint: u32, address: IpAddr) -> Result<(), Error> {
        self.table.set(&raw(endpoint, address), &1)
    }

    /// It may not any more. Returns whether it might.
    pub fn remove(&self, endpoint: u32, address: IpAddr) -> Result<bool, Error> {
        self.table.remove(&raw(endpoint, address))
    }

    /// All of them, by endpoint.
    pub fn list(&self) -> Result<Vec<(u32, IpAddr)>, Error> {
        let all = self.table.list()?.into_iter();
        Ok(all.map(|(key, _)| (key.endpoint, address(key.addr))).collect())
    }
}
