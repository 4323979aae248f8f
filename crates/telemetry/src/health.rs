//! Which parts of a process are ready.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;

type Parts = BTreeMap<&'static str, Result<(), String>>;

/// Named parts and whether each is ready. Clones share. A process is ready when all are.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<(Mutex<Parts>, Notify)>);

impl Health {
    /// Says that `part` exists and is not ready, with the reason that operators see.
    pub fn waiting(&self, part: &'static str, reason: impl Into<String>) {
        self.set(part, Err(reason.into()));
    }

    /// Says that `part` is ready.
    pub fn ready(&self, part: &'static str) {
        self.set(part, Ok(()));
    }

    fn set(&self, part: &'static str, state: Result<(), String>) {
        let (parts, changed) = &*self.0;
        parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(part, state);
        changed.notify_waiters();
    }

    /// Waits until there are parts and all of them are ready.
    pub async fn until_ready(&self) {
        loop {
            let changed = self.0.1.notified();
            tokio::pin!(changed);
            // Counts from here on, so that no change falls between the look and the wait.
            changed.as_mut().enable();
            let parts = self.parts();
            if !parts.is_empty() && parts.iter().all(|(_, state)| state.is_ok()) {
                return;
            }
            changed.await;
        }
    }

    /// All parts in order of their names.
    pub fn parts(&self) -> Vec<(&'static str, Result<(), String>)> {
        let parts = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().map(|(name, state)| (*name, state.clone())).collect()
    }

    /// Whether all parts are ready.
    pub fn is_ready(&self) -> bool {
        self.parts().iter().all(|(_, state)| state.is_ok())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::{pin::pin, task::Poll};

    #[tokio::test]
    async fn ready_is_when_all_parts_are() {
        let health = Health::default();
        let mut waiting = pin!(health.until_ready());
        assert!(
            polled(waiting.as_mut()).await.is_pending(),
            "nothing is there yet"
        );
        health.waiting("a", "x");
        health.ready("b");
        assert!(polled(waiting.as_mut()).await.is_pending(), "one waits");
        health.ready("a");
        assert!(polled(waiting.as_mut()).await.is_ready());
    }

    async fn polled<F: Future>(mut future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
    }
}
