//! Waiting for something, and beside it for what seldom comes about.

use parking_lot::Mutex;
use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// Notes that the seldom thing is to be looked at, and wakes the task.
struct Note {
    noted: AtomicBool,
    task: Mutex<Waker>,
}

impl Wake for Note {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.noted.swap(true, Ordering::AcqRel) {
            let task = self.task.lock().clone();
            task.wake();
        }
    }
}

/// Waits for `main`, unless `seldom` comes about before it. That is polled only when it has asked for it, so
/// that being woken for `main` costs nothing for timers and signals beside; `main` is polled again after it.
/// Both are where they are: taken by value each would have its room twice, with every idle connection.
pub async fn unless<M: Future, S: Future>(
    mut main: Pin<&mut M>,
    mut seldom: Pin<&mut S>,
) -> Result<M::Output, S::Output> {
    let note = Arc::new(Note {
        noted: AtomicBool::new(true),
        task: Mutex::new(Waker::noop().clone()),
    });
    let noting = Waker::from(note.clone());
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(output) = main.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            {
                let mut task = note.task.lock();
                if !task.will_wake(cx.waker()) {
                    task.clone_from(cx.waker());
                }
            }
            if !note.noted.swap(false, Ordering::AcqRel) {
                return Poll::Pending;
            }
            let mut noted = Context::from_waker(&noting);
            if let Poll::Ready(output) = seldom.as_mut().poll(&mut noted) {
                return Poll::Ready(Err(output));
            }
        }
    })
    .await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::{cell::Cell, pin::pin, time::Duration};
    use tokio::{sync::mpsc, time::sleep};

    #[tokio::test]
    async fn the_seldom_is_polled_only_when_it_asks_for_it() {
        let (give, mut take) = mpsc::unbounded_channel();
        let polls = Cell::new(0);
        let mut tick = pin!(async {
            sleep(Duration::from_millis(20)).await;
            sleep(Duration::from_secs(600)).await;
        });
        let seldom = poll_fn(|cx| {
            polls.set(polls.get() + 1);
            tick.as_mut().poll(cx)
        });
        let main = async { while take.recv().await.is_some_and(|n| n < 200) {} };
        let giving = async {
            for n in 0..=200 {
                give.send(n).unwrap();
                tokio::task::yield_now().await;
                if n == 100 {
                    sleep(Duration::from_millis(40)).await;
                }
            }
        };
        let (main, seldom) = (pin!(main), pin!(seldom));
        let (ended, ()) = tokio::join!(unless(main, seldom), giving);
        assert_eq!(ended, Ok(()));
        // At first, and when the first time was over.
        assert_eq!(polls.get(), 2);
    }

    #[tokio::test]
    async fn what_the_seldom_changes_the_other_sees() {
        let changed = Cell::new(false);
        let main = poll_fn(|_| match changed.get() {
            true => Poll::Ready("seen"),
            false => Poll::Pending,
        });
        let seldom = async {
            sleep(Duration::from_millis(5)).await;
            changed.set(true);
            std::future::pending::<()>().await;
        };
        assert_eq!(unless(pin!(main), pin!(seldom)).await, Ok("seen"));
        let never = std::future::pending::<()>();
        let soon = sleep(Duration::from_millis(5));
        assert_eq!(unless(pin!(never), pin!(soon)).await, Err(()));
    }
}
