//! What the API server has of the objects that get a status: written by those who follow it, read by
//! the one who writes statuses.

use super::object::Facts;
use crate::world::ObjectKey;
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::Notify;

/// See the module. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Observed {
    facts: Arc<Mutex<BTreeMap<ObjectKey, Facts>>>,
    /// Says that a status may have to be written.
    news: Arc<Notify>,
}

impl Observed {
    pub(super) fn new(news: Arc<Notify>) -> Self {
        Self {
            facts: Arc::default(),
            news,
        }
    }

    pub(super) fn set(&self, key: &ObjectKey, facts: Facts) {
        let old = self.facts.lock().insert(key.clone(), facts.clone());
        // Nobody waits for a new version alone.
        let known = old.is_some_and(|old| (old.status, old.rejected) == (facts.status, facts.rejected));
        if !known {
            self.news.notify_one();
        }
    }

    pub(super) fn remove(&self, key: &ObjectKey) {
        self.facts.lock().remove(key);
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Option<Facts> {
        self.facts.lock().get(key).cloned()
    }

    /// Objects that were not taken.
    pub(super) fn rejected(&self) -> Vec<ObjectKey> {
        let facts = self.facts.lock();
        let rejected = facts.iter().filter(|(_, f)| f.rejected.is_some());
        rejected.map(|(key, _)| key.clone()).collect()
    }

    pub(super) async fn news(&self) {
        self.news.notified().await;
    }
}
