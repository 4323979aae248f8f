//! What changed since the kernel's tables were last written: names only, the rest is read when it
//! is needed, so that what changes twice is written once.

use parking_lot::{Mutex, MutexGuard};
use std::{collections::BTreeSet, sync::Arc};
use tokio::sync::Notify;

/// More names than this are forgotten, and everything is compared instead.
const MAX_NAMES: usize = 100_000;

/// The journal. Clones share. Nothing is kept until somebody reads it.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    pages: Arc<Mutex<Pages>>,
    written: Arc<Notify>,
}

/// What changed.
#[derive(Debug, Default)]
pub struct Pages {
    read: bool,
    /// Perhaps everything.
    pub all: bool,
    /// Kinds and names of what the policy service sent.
    pub resources: BTreeSet<(String, String)>,
    /// Ids of workloads of this node, by what is known of them here.
    pub here: BTreeSet<String>,
}

impl Pages {
    /// Perhaps everything changed.
    pub fn all(&mut self) {
        if self.read {
            *self = Self {
                read: true,
                all: true,
                ..Self::default()
            };
        }
    }

    /// A resource came, changed or went.
    pub fn resource(&mut self, kind: &str, name: &str) {
        // What identities stand for is no matter of the kernel's.
        let wanted = matches!(kind, "endpoint" | "policy-set" | "node" | "service");
        if self.read && !self.all && wanted {
            self.resources.insert((kind.to_owned(), name.to_owned()));
            self.bound();
        }
    }

    fn bound(&mut self) {
        if self.resources.len() + self.here.len() > MAX_NAMES {
            self.all();
        }
    }
}

impl Journal {
    /// For several changes at once; [`Journal::notify`] follows.
    pub fn write(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock()
    }

    /// Tells the reader.
    pub fn notify(&self) {
        self.written.notify_one();
    }

    /// A workload of this node came, changed or went.
    pub fn here(&self, id: &str) {
        let mut pages = self.pages.lock();
        if pages.read && !pages.all {
            pages.here.insert(id.to_owned());
            pages.bound();
        }
        drop(pages);
        self.notify();
    }

    /// From now on it is read: everything is new.
    pub fn open(&self) {
        let mut pages = self.pages.lock();
        pages.read = true;
        pages.all();
        drop(pages);
        self.notify();
    }

    /// Takes what there is.
    pub fn take(&self) -> Pages {
        let mut pages = self.pages.lock();
        let read = pages.read;
        let taken = std::mem::take(&mut *pages);
        pages.read = read;
        taken
    }

    /// Until there is something.
    pub async fn written(&self) {
        self.written.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_kept_until_it_is_read_and_a_flood_becomes_everything() {
        let journal = Journal::default();
        journal.here("a");
        journal.write().resource("endpoint", "b");
        let taken = journal.take();
        assert!(!taken.all && taken.here.is_empty() && taken.resources.is_empty());
        journal.open();
        assert!(journal.take().all);
        journal.here("a");
        journal.write().resource("identity", "300");
        journal.write().resource("endpoint", "b");
        let taken = journal.take();
        assert_eq!(
            (taken.here.len(), taken.resources.len(), taken.all),
            (1, 1, false)
        );
        for n in 0..=MAX_NAMES {
            journal.write().resource("endpoint", &n.to_string());
        }
        let taken = journal.take();
        assert!(taken.all && taken.resources.is_empty());
    }
}
