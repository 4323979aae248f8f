//! What the programs count, read through the map's descriptor alone.

use std::os::fd::{AsFd, OwnedFd};

use crate::error::Error;
use crate::layout::COUNTERS;
use crate::sys;

/// The counters of a node. Needs no capability.
#[derive(Debug)]
pub struct Counters {
    map: OwnedFd,
    cpus: usize,
}

impl Counters {
    /// Takes the descriptor of the map `counters`.
    pub fn from_fd(map: OwnedFd) -> Result<Self, Error> {
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| Error::Map {
            map: "counters",
            action: "read",
            source,
        })?;
        let counters = Self { map, cpus };
        counters.read(0)?;
        Ok(counters)
    }

    /// Events that found no room in the buffer, since the maps were made.
    pub fn events_lost(&self) -> Result<u64, Error> {
        let index = (0u32..).zip(COUNTERS).find(|(_, name)| *name == "events_lost");
        index.map_or(Ok(0), |(index, _)| self.read(index))
    }

    fn read(&self, index: u32) -> Result<u64, Error> {
        let mut values = vec![0; self.cpus];
        sys::per_cpu(self.map.as_fd(), index, &mut values).map_err(|source| Error::Map {
            map: "counters",
            action: "read",
            source,
        })?;
        Ok(values.iter().sum())
    }
}
