//! What one app may hold at once of bodies that were read.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Counted in pieces, so that a semaphore can count them.
const PIECE: usize = 1024;
/// Bytes of one app.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// See the module. Clones share.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_BYTES / PIECE)))
    }
}

/// A part of it, until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Budget {
    /// Waits for its turn to hold so many bytes.
    pub async fn hold(&self, bytes: usize) -> Share {
        let pieces = bytes.min(MAX_BYTES).div_ceil(PIECE);
        let pieces = u32::try_from(pieces).unwrap_or(u32::MAX);
        Share {
            // It is never closed.
            _permit: self.0.clone().acquire_many_owned(pieces).await.ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn more_than_the_bound_waits_for_what_is_given_back() {
        let budget = Budget::default();
        let first = budget.hold(MAX_BYTES - 10 * PIECE).await;
        let _small = budget.hold(1).await;
        assert!(budget.hold(10 * PIECE).now_or_never().is_none());
        drop(first);
        assert!(budget.hold(10 * PIECE).now_or_never().is_some());
        // More than there can ever be is as much as there can be.
        assert!(Budget::default().hold(usize::MAX).now_or_never().is_some());
    }
}
