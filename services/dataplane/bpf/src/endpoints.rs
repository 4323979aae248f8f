//! The table of endpoints: what is enforced for each.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::epoch::Epoch;
use crate::error::Error;
use crate::layout::RawEndpoint;
use crate::table::Table;

/// `WEFT_ENDPOINT_*`.
const HAS_SVID: u32 = 1;
const AUDIT: u32 = 2;
const PROCESS: u32 = 4;
const CAPTURE: u32 = 8;

/// What is enforced for a pod or a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Its security identity.
    pub identity: u32,
    /// The number of its policy set.
    pub set: u32,
    /// It holds a valid SVID, so a rule that asks for authentication may be satisfied.
    pub svid: bool,
    /// What policy forbids is told and lets pass.
    pub audit: bool,
    /// It is told apart by its cgroup and shares the node's addresses.
    pub process: bool,
    /// The agent listens for captured connections in its namespace.
    pub capture: bool,
    /// Goes up with each change of its policy.
    pub generation: u32,
}

impl From<Endpoint> for RawEndpoint {
    fn from(endpoint: Endpoint) -> Self {
        let flags = [
            (endpoint.svid, HAS_SVID),
            (endpoint.audit, AUDIT),
            (endpoint.process, PROCESS),
            (endpoint.capture, CAPTURE),
        ];
        Self {
            identity: endpoint.identity,
            set: endpoint.set,
            flags: flags.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum(),
            generation: endpoint.generation,
        }
    }
}

impl From<RawEndpoint> for Endpoint {
    fn from(raw: RawEndpoint) -> Self {
        Self {
            identity: raw.identity,
            set: raw.set,
            svid: raw.flags & HAS_SVID != 0,
            audit: raw.flags & AUDIT != 0,
            process: raw.flags & PROCESS != 0,
            capture: raw.flags & CAPTURE != 0,
            generation: raw.generation,
        }
    }
}

/// The table of endpoints by number.
#[derive(Debug)]
pub struct Endpoints {
    table: Table<u32, RawEndpoint>,
}

impl Endpoints {
    /// Takes the map's descriptor. Needs no capability.
    pub(crate) fn from_fd(fd: OwnedFd, epoch: &Arc<Epoch>) -> Result<Self, Error> {
        Ok(Self {
            table: Table::remembered(fd, "endpoints", epoch)?,
        })
    }

    /// From now on this is enforced, in one step. An endpoint that was never set is closed.
    pub fn set(&self, number: u32, endpoint: Endpoint) -> Result<(), Error> {
        self.table.set(&number, &endpoint.into())
    }

    /// Closes an endpoint. Returns whether it was there.
    pub fn remove(&self, number: u32) -> Result<bool, Error> {
        self.table.remove(&number)
    }

    /// All of them.
    pub fn list(&self) -> Result<Vec<(u32, Endpoint)>, Error> {
        let all = self.table.list()?.into_iter();
        Ok(all.map(|(number, raw)| (number, raw.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_endpoint_is_read_as_it_was_written(
            numbers in any::<[u32; 3]>(), svid: bool, audit: bool, process: bool, capture: bool,
        ) {
            let [identity, set, generation] = numbers;
            let endpoint = Endpoint { identity, set, svid, audit, process, capture, generation };
            prop_assert_eq!(Endpoint::from(RawEndpoint::from(endpoint)), endpoint);
        }
    }
}
