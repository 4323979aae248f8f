//! A few sockets per workload, kept ready so that a request to an app does not wait for the node.
//!
//! Only workloads that are there have a shelf: what arrives for one that is gone is closed, since
//! a socket would keep its namespace alive.

use crate::Family;
use parking_lot::Mutex;
use std::{collections::HashMap, os::fd::OwnedFd};

/// How many are asked for at once, and at most kept per workload and family.
pub(crate) const BATCH: usize = 8;
/// Below this a new batch is asked for.
const LOW: usize = 2;

#[derive(Debug, Default)]
struct Shelf {
    sockets: Vec<OwnedFd>,
    refilling: bool,
}

/// What [`Pool::take`] found.
#[derive(Debug)]
pub(crate) enum Taken {
    /// A socket; ask for more when `refill`.
    Socket { socket: OwnedFd, refill: bool },
    /// The shelf is empty.
    Empty,
    /// There is no such workload.
    Unknown,
}

#[derive(Debug, Default)]
pub(crate) struct Pool {
    shelves: Mutex<HashMap<String, [Shelf; 2]>>,
}

fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

impl Pool {
    pub(crate) fn add(&self, workload: &str) {
        self.shelves.lock().entry(workload.to_owned()).or_default();
    }

    pub(crate) fn remove(&self, workload: &str) {
        // The sockets are closed after the lock is released.
        let _closed = self.shelves.lock().remove(workload);
    }

    pub(crate) fn clear(&self) {
        let _closed = std::mem::take(&mut *self.shelves.lock());
    }

    pub(crate) fn take(&self, workload: &str, family: Family) -> Taken {
        let mut shelves = self.shelves.lock();
        let Some(shelf) = shelves.get_mut(workload).map(|s| &mut s[index(family)]) else {
            return Taken::Unknown;
        };
        let Some(socket) = shelf.sockets.pop() else {
            return Taken::Empty;
        };
        let refill = shelf.sockets.len() < LOW && !shelf.refilling;
        shelf.refilling |= refill;
        Taken::Socket { socket, refill }
    }

    /// Puts sockets on the shelf; what is too many is closed.
    pub(crate) fn put(&self, workload: &str, family: Family, sockets: Vec<OwnedFd>) {
        let mut left = sockets;
        let mut shelves = self.shelves.lock();
        if let Some(shelf) = shelves.get_mut(workload).map(|s| &mut s[index(family)]) {
            let room = BATCH.saturating_sub(shelf.sockets.len()).min(left.len());
            shelf.sockets.extend(left.drain(..room));
        }
        drop(shelves);
        drop(left);
    }

    pub(crate) fn refilled(&self, workload: &str, family: Family) {
        if let Some(shelves) = self.shelves.lock().get_mut(workload) {
            shelves[index(family)].refilling = false;
        }
    }
}
