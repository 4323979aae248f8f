//! A map by its name: what goes wrong is said with it, and a full one is told apart. Of those whose
//! content the programs remember with connections, each change begins a new epoch.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::epoch::Epoch;
use crate::error::Error;
use crate::sockets::typed;
use crate::sys::{Map, Plain};

/// See the module.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    name: &'static str,
    map: Map<K, V>,
    epoch: Option<Arc<Epoch>>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    pub(crate) fn from_fd(fd: OwnedFd, name: &'static str) -> Result<Self, Error> {
        Ok(Self {
            name,
            map: typed(fd, name)?,
            epoch: None,
        })
    }

    /// The same for a table that the programs remember.
    pub(crate) fn remembered(fd: OwnedFd, name: &'static str, epoch: &Arc<Epoch>) -> Result<Self, Error> {
        Ok(Self {
            epoch: Some(epoch.clone()),
            ..Self::from_fd(fd, name)?
        })
    }

    /// After whatever was attempted: what failed may have been done.
    fn changed(&self) {
        if let Some(epoch) = &self.epoch {
            epoch.next();
        }
    }

    /// Makes or replaces an entry, in one step.
    pub(crate) fn set(&self, key: &K, value: &V) -> Result<(), Error> {
        let written = self.map.update(key, value, 0);
        self.changed();
        written.map_err(|source| {
            // Hash tables and tries say it differently.
            match source.raw_os_error() {
                Some(libc::E2BIG | libc::ENOSPC) => Error::Full {
                    map: self.name,
                    max: self.map.max_entries(),
                },
                _ => self.failed("add to", source),
            }
        })
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, Error> {
        self.map.lookup(key).map_err(|source| self.failed("read", source))
    }

    /// Returns whether there was one.
    pub(crate) fn remove(&self, key: &K) -> Result<bool, Error> {
        let removed = self.map.delete(key);
        self.changed();
        removed.map_err(|source| self.failed("remove from", source))
    }

    /// What it holds at about this moment.
    pub(crate) fn list(&self) -> Result<Vec<(K, V)>, Error> {
        let mut found = Vec::new();
        for key in self.map.keys().map_err(|source| self.failed("read", source))? {
            if let Some(value) = self.get(&key)? {
                found.push((key, value));
            }
        }
        Ok(found)
    }

    /// How many entries it can hold.
    pub(crate) fn max_entries(&self) -> u32 {
        self.map.max_entries()
    }

    fn failed(&self, action: &'static str, source: io::Error) -> Error {
        Error::Map {
            map: self.name,
            action,
            source,
        }
    }
}
