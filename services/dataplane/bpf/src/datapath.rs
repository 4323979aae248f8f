//! The tables that say who is who and what is allowed, opened together.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::addresses::Addresses;
use crate::conntrack::Conntrack;
use crate::endpoints::Endpoints;
use crate::epoch::{self, Epoch};
use crate::error::Error;
use crate::events::Events;
use crate::interfaces::{Interfaces, Sources};
use crate::kernel::Kernel;
use crate::policy::{Policy, Sets};
use crate::services::Services;

/// What a node's agent writes: who is who, and what is allowed. One writer at a time.
#[derive(Debug)]
pub struct Datapath {
    /// What is enforced for whom.
    pub endpoints: Endpoints,
    /// Who has which address.
    pub addresses: Addresses,
    /// How policy sets are read.
    pub sets: Sets,
    /// Their entries.
    pub policy: Policy,
}

impl Datapath {
    /// The descriptors that [`Datapath::from_fds`] takes, by the maps' names.
    pub const MAPS: [&str; 7] = [
        epoch::NAME,
        "endpoints",
        "addresses",
        "sets",
        "policy",
        "range_allow",
        "range_deny",
    ];

    /// Takes its maps out of descriptors that were handed over by name; the others stay. Needs no
    /// capability.
    pub fn from_fds(fds: &mut HashMap<String, OwnedFd>) -> Result<Self, Error> {
        Self::open(|map| fds.remove(map).ok_or(Error::NoMap { map }))
    }

    fn open(mut fd: impl FnMut(&'static str) -> Result<OwnedFd, Error>) -> Result<Self, Error> {
        let epoch = Arc::new(Epoch::from_fd(&fd(epoch::NAME)?)?);
        Ok(Self {
            endpoints: Endpoints::from_fd(fd("endpoints")?, &epoch)?,
            addresses: Addresses::from_fd(fd("addresses")?, &epoch)?,
            sets: Sets::from_fd(fd("sets")?, &epoch)?,
            policy: Policy::from_fds(fd("policy")?, fd("range_allow")?, fd("range_deny")?)?,
        })
    }
}

impl Services {
    /// The descriptors that [`Services::from_named_fds`] takes, by the maps' names.
    pub const MAPS: [&str; 3] = ["services", "backends", "members"];

    /// Like [`Services::from_fds`], out of descriptors that were handed over by name.
    pub fn from_named_fds(fds: &mut HashMap<String, OwnedFd>) -> Result<Self, Error> {
        let mut take = |map| fds.remove(map).ok_or(Error::NoMap { map });
        Self::from_fds(take("services")?, take("backends")?, take("members")?)
    }
}

impl Kernel {
    /// The tables of policy, for a node that writes them itself.
    pub fn datapath(&self) -> Result<Datapath, Error> {
        Datapath::open(|map| self.map_fd(map))
    }

    /// The reading end of what the programs tell. There must be one at a time.
    pub fn events(&self) -> Result<Events, Error> {
        Events::from_fd(self.map_fd("events")?)
    }

    /// The connections that the programs know.
    pub fn conntrack(&self) -> Result<Conntrack, Error> {
        Conntrack::from_fd(self.map_fd("conntrack")?, &self.epoch()?)
    }

    /// Which interface leads to which pod.
    pub fn interfaces(&self) -> Result<Interfaces, Error> {
        Interfaces::from_fd(self.map_fd("interfaces")?, &self.epoch()?)
    }

    /// Which addresses endpoints may send from.
    pub fn sources(&self) -> Result<Sources, Error> {
        Sources::from_fd(self.map_fd("endpoint_addresses")?, &self.epoch()?)
    }

    pub(crate) fn epoch(&self) -> Result<Arc<Epoch>, Error> {
        Ok(Arc::new(Epoch::from_fd(&self.map_fd(epoch::NAME)?)?))
    }

    /// A descriptor of a map, to be handed to another process: of one that it only reads, read-only.
    pub fn share_map(&self, name: &str, read_only: bool) -> Result<OwnedFd, Error> {
        self.open_map(name, read_only)
    }
}
