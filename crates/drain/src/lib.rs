//! Graceful shutdown as a type: a [`Watcher`] is cloned into every task that must finish in order,
//! and [`Trigger::drain`] ends when the last clone is dropped or the deadline is over.
//!
//! Two signals: *drain* asks tasks to stop taking new work and to finish what they have; *force*,
//! after the deadline, asks them to stop where they are.

use std::time::Duration;
use tokio::sync::{mpsc, watch};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Running,
    Draining,
    Forced,
}

/// The owner's half: starts the drain and waits for it.
#[derive(Debug)]
pub struct Trigger {
    phase: watch::Sender<Phase>,
    done: mpsc::Receiver<()>,
}

/// A task's half. While a clone is held, the drain waits for it.
#[derive(Debug, Clone)]
pub struct Watcher {
    phase: watch::Receiver<Phase>,
    _held: mpsc::Sender<()>,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every watcher was dropped in time.
    Drained,
    /// The deadline passed; what was left got the force signal.
    Forced,
}

/// A connected pair.
pub fn channel() -> (Trigger, Watcher) {
    let (phase, watch) = watch::channel(Phase::Running);
    // Nothing is ever sent: the channel closes when the last watcher is dropped.
    let (held, done) = mpsc::channel(1);
    (
        Trigger { phase, done },
        Watcher {
            phase: watch,
            _held: held,
        },
    )
}

impl Trigger {
    /// Asks all watchers to finish and waits until they have, at most for `deadline`. Watchers
    /// that are left then get the force signal and one more second to act on it.
    pub async fn drain(mut self, deadline: Duration) -> Outcome {
        self.phase.send_replace(Phase::Draining);
        if tokio::time::timeout(deadline, self.done.recv()).await.is_ok() {
            return Outcome::Drained;
        }
        self.phase.send_replace(Phase::Forced);
        let _ = tokio::time::timeout(Duration::from_secs(1), self.done.recv()).await;
        Outcome::Forced
    }
}

impl Watcher {
    /// Resolves when the drain starts (or its trigger is gone). Cancellation-safe.
    pub async fn draining(&mut self) {
        let _ = self.phase.wait_for(|p| *p >= Phase::Draining).await;
    }

    /// Resolves when the deadline of the drain has passed. Cancellation-safe.
    pub async fn forced(&mut self) {
        let _ = self.phase.wait_for(|p| *p >= Phase::Forced).await;
    }

    /// Whether the drain has started.
    pub fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }

    /// Runs `work` to its end, or drops it at the force signal (`None`).
    pub async fn until_forced<T>(mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            out = work => Some(out),
            () = self.forced() => None,
        }
    }

    /// Runs `work` until it ends or the drain starts (`None`): for loops that hold no state
    /// which would have to be finished.
    pub async fn until_draining<T>(mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            out = work => Some(out),
            () = self.draining() => None,
        }
    }
}

/// SIGINT and SIGTERM, caught from [`Signals::listen`] on: neither ends the process any more and
/// none that comes between two calls of [`Signals::next`] is lost.
#[derive(Debug)]
pub struct Signals {
    int: tokio::signal::unix::Signal,
    term: tokio::signal::unix::Signal,
}

impl Signals {
    /// Starts catching. Call it before anything that a signal must not interrupt.
    pub fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
        })
    }

    /// Resolves at the next signal with its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.int.recv() => "SIGINT",
            _ = self.term.recv() => "SIGTERM",
        }
    }
}

/// Resolves at SIGINT or SIGTERM with the signal's name; catches them only from its first poll on.
pub async fn shutdown_signal() -> std::io::Result<&'static str> {
    Ok(Signals::listen()?.next().await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drain_waits_for_every_watcher() {
        let (trigger, watcher) = channel();
        let mut slow = watcher.clone();
        let task = tokio::spawn(async move {
            slow.draining().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        });
        drop(watcher);
        let start = tokio::time::Instant::now();
        assert_eq!(trigger.drain(Duration::from_secs(10)).await, Outcome::Drained);
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        assert!(task.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_is_forced() {
        let (trigger, watcher) = channel();
        let stuck = tokio::spawn(watcher.until_forced(std::future::pending::<()>()));
        assert_eq!(trigger.drain(Duration::from_secs(5)).await, Outcome::Forced);
        assert_eq!(stuck.await.ok(), Some(None));
    }
}
