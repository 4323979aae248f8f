//! How many whom: so that one address or one node can not take all the places of a listener.

use parking_lot::Mutex;
use std::{collections::HashMap, hash::Hash, sync::Arc};

/// Counts per key. Clones share.
#[derive(Debug)]
pub(crate) struct Shares<K>(Arc<Mutex<HashMap<K, usize>>>);

impl<K> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// One of a key's places; given back when dropped.
#[derive(Debug)]
pub(crate) struct Share<K: Hash + Eq> {
    of: Shares<K>,
    key: K,
}

impl<K: Hash + Eq + Clone> Shares<K> {
    /// None when `key` has `most` already.
    pub fn take(&self, key: K, most: usize) -> Option<Share<K>> {
        let mut counts = self.0.lock();
        let count = counts.entry(key.clone()).or_default();
        // It was there before when it is not zero, so nothing is left behind.
        if *count >= most {
            return None;
        }
        *count += 1;
        let of = self.clone();
        Some(Share { of, key })
    }
}

impl<K: Hash + Eq> Drop for Share<K> {
    fn drop(&mut self) {
        let mut counts = self.of.0.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_and_what_is_over_leaves_nothing() {
        let shares = Shares::default();
        let held: Vec<_> = (0..5).map_while(|_| shares.take("a", 3)).collect();
        assert_eq!(held.len(), 3);
        assert!(shares.take("b", 3).is_some());
        drop(held);
        assert!(shares.take("a", 3).is_some());
        assert!(shares.0.lock().is_empty());
    }
}
