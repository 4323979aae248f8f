//! Where the service's time comes from: a process's monotonic clock, or a test's hand.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::sync::watch;
use weft_placement_protocol::Time;

/// A monotonic clock that leases are counted by. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<Source>);

enum Source {
    Monotonic(tokio::time::Instant),
    Manual(watch::Sender<Manual>),
}

#[derive(Debug, Clone, Copy, Default)]
struct Manual {
    now: Duration,
    /// The latest time that somebody waits for.
    awaited: Duration,
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({:?})", self.now())
    }
}

impl Clock {
    /// The machine's clock, from zero on.
    pub fn monotonic() -> Self {
        Self(Arc::new(Source::Monotonic(tokio::time::Instant::now())))
    }

    /// A clock that moves by [`Clock::advance`] only.
    pub fn manual() -> Self {
        Self(Arc::new(Source::Manual(watch::Sender::new(Manual::default()))))
    }

    /// The present time.
    pub fn now(&self) -> Time {
        Time::since_start(match &*self.0 {
            Source::Monotonic(start) => start.elapsed(),
            Source::Manual(state) => state.borrow().now,
        })
    }

    /// Ends `after` from now. Cancellation-safe.
    pub(crate) fn sleep(&self, after: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        match &*self.0 {
            Source::Monotonic(_) => Box::pin(tokio::time::sleep(after)),
            Source::Manual(state) => {
                let mut seen = state.subscribe();
                let until = seen.borrow_and_update().now + after;
                state.send_modify(|s| s.awaited = until);
                Box::pin(async move { drop(seen.wait_for(|s| s.now >= until).await) })
            }
        }
    }

    /// Moves a manual clock on, tick by tick: each time the service has looked at the clock and
    /// waits for the next. Does nothing to a monotonic clock.
    pub async fn advance(&self, by: Duration) {
        let Source::Manual(state) = &*self.0 else { return };
        let mut seen = state.subscribe();
        let end = seen.borrow().now + by;
        loop {
            // Someone waits for a time still to come: it has done what was due.
            let Ok(state_now) = seen.wait_for(|s| s.awaited > s.now).await.map(|s| *s) else {
                return;
            };
            if state_now.now >= end {
                return;
            }
            state.send_modify(|s| s.now = s.awaited.min(end));
        }
    }
}
