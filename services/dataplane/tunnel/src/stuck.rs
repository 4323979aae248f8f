//! How many streams of a connection wait for somebody to read.
//!
//! As many of them as there are streams' windows in the connection's have all of it between them:
//! another stream on that connection would wait for them, so it had better go elsewhere.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Counts the streams of one connection. Clones share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stuck(Arc<AtomicUsize>);

/// One that waits; until dropped.
#[derive(Debug)]
pub(crate) struct Waiting(Stuck);

impl Stuck {
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    pub fn wait(&self) -> Waiting {
        self.0.fetch_add(1, Ordering::AcqRel);
        Waiting(self.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}
