//! Namespaces that this node hosts nothing in and yet needs to know: one of its workloads called an
//! app of theirs, or was called by one.
//!
//! Owns the set and its bound. The first call to such a namespace finds nobody; the policy service
//! is asked, and a later one finds who is there.

use parking_lot::Mutex;
use std::{collections::BTreeSet, sync::Arc};
use tokio::sync::watch;
use weft_model::check_dns_label;

/// An app that makes up names can not make the node ask for more.
const MAX_NAMESPACES: usize = 64;

/// The set. Clones share.
#[derive(Debug, Clone)]
pub struct Interest {
    wanted: Arc<Mutex<BTreeSet<String>>>,
    changed: watch::Sender<usize>,
}

impl Default for Interest {
    fn default() -> Self {
        Self {
            wanted: Arc::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Interest {
    /// Adds a namespace, unless it is none or the bound is reached.
    pub fn add(&self, namespace: &str) {
        let mut wanted = self.wanted.lock();
        if wanted.contains(namespace) || wanted.len() >= MAX_NAMESPACES || check_dns_label(namespace).is_err()
        {
            return;
        }
        wanted.insert(namespace.to_owned());
        self.changed.send_replace(wanted.len());
    }

    /// All of them.
    pub fn all(&self) -> Vec<String> {
        self.wanted.lock().iter().cloned().collect()
    }

    /// Notified after each that is added.
    pub fn subscribe(&self) -> watch::Receiver<usize> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_bounded() {
        let interest = Interest::default();
        interest.add("Not A Namespace");
        assert!(interest.all().is_empty());
        for n in 0..2 * MAX_NAMESPACES {
            interest.add(&format!("ns-{n}"));
        }
        assert_eq!(interest.all().len(), MAX_NAMESPACES);
    }
}
