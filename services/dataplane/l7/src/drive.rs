//! Who drives a connection to a peer: reads what came, writes what is to go.
//!
//! Whoever waits for the answer does. A task of its own would be woken for each request and wake the
//! waiting one for each answer: two turns of the scheduler that nothing needs. Only a connection whose
//! request may go on longer than anybody waits (a long upload, a WebSocket) gets a task.

use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::task::{Context, Waker};

/// The driver of one connection.
pub(crate) struct Driver(State);

enum State {
    /// The lock is never taken; it makes the future one that may be shared.
    Here(Mutex<BoxFuture<'static, ()>>),
    /// It has a task of its own.
    Away,
    Ended,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.0 {
            State::Here(_) => "here",
            State::Away => "away",
            State::Ended => "ended",
        })
    }
}

impl Driver {
    pub fn new(driver: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(State::Here(Mutex::new(Box::pin(driver))))
    }

    /// Reads and writes what can be, then polls what waits for it: with a waker of its own only where
    /// a task drives. Here the driver's waker suffices: nothing comes about but by driving.
    pub fn poll<T>(&mut self, cx: &mut Context<'_>, wait: impl FnOnce(&mut Context<'_>) -> T) -> T {
        if matches!(self.0, State::Away) {
            return wait(cx);
        }
        self.drive(cx);
        wait(&mut Context::from_waker(Waker::noop()))
    }

    /// Reads and writes what can be.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        if let State::Here(driver) = &mut self.0
            && driver.get_mut().as_mut().poll(cx).is_ready()
        {
            self.0 = State::Ended;
        }
    }

    /// From now on a task drives it.
    pub fn send_away(&mut self) {
        if let State::Here(driver) = std::mem::replace(&mut self.0, State::Away) {
            tokio::spawn(driver.into_inner());
        }
    }
}
