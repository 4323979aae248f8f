//! The bounded log: a ring of the last flows, read by any number of followers.
//!
//! A writer takes the next number, locks that one slot for the time of a move, and wakes followers
//! only if there are some. A reader keeps its own position; when the ring has overtaken it, it
//! learns how many it lost. So a slow reader costs the writers nothing.

use crate::Flow;
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
use tokio::sync::Notify;

/// How many flows are kept when nothing else is asked for.
const DEFAULT_CAPACITY: usize = 4095;

/// A flow with its place in the log.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Rises by one with each flow of this agent's run.
    pub sequence: u64,
    /// The flow.
    pub flow: Flow,
}

/// What a reader gets.
#[derive(Debug, Clone)]
pub enum Item {
    /// A flow.
    Flow(Box<Recorded>),
    /// So many were overwritten before this reader came to them.
    Overwritten(u64),
    /// So many were lost before they could be recorded.
    Unrecorded(u64),
}

/// What is at a place of the log.
#[derive(Debug)]
pub enum Seen {
    /// The flow.
    Flow(Box<Recorded>),
    /// Nothing yet: its writer has the number and has not finished.
    NotYet,
    /// A later one.
    Overwritten,
}

/// How many flows there were, by verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Let through.
    pub forwarded: u64,
    /// Refused.
    pub dropped: u64,
    /// Failed on the way.
    pub error: u64,
    /// Let through though policy refuses it.
    pub audit: u64,
}

struct Shared {
    node: Arc<str>,
    /// Distinguishes this run's flows from those of the run before.
    run: u64,
    slots: Box<[Mutex<Option<Recorded>>]>,
    /// The number of the next flow.
    next: AtomicU64,
    followers: AtomicUsize,
    arrived: Notify,
    verdicts: [AtomicU64; 4],
    /// Events that were lost before they could be recorded.
    lost: AtomicU64,
    /// Flows that readers did not come to in time.
    overwritten: AtomicU64,
}

/// The log of one agent. Clones share.
#[derive(Clone)]
pub struct FlowLog(Arc<Shared>);

impl std::fmt::Debug for FlowLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowLog")
            .field("node", &self.0.node)
            .field("recorded", &self.recorded())
            .finish()
    }
}

impl FlowLog {
    /// Keeps the last 4095 flows of `node`.
    pub fn new(node: &str) -> Self {
        Self::with_capacity(node, DEFAULT_CAPACITY)
    }

    /// Keeps the last `capacity` (at least one) flows of `node`.
    pub fn with_capacity(node: &str, capacity: usize) -> Self {
        let slots = (0..capacity.max(1)).map(|_| Mutex::new(None)).collect();
        Self(Arc::new(Shared {
            node: node.into(),
            run: uuid::Uuid::new_v4().as_u64_pair().0,
            slots,
            next: AtomicU64::new(0),
            followers: AtomicUsize::new(0),
            arrived: Notify::new(),
            verdicts: Default::default(),
            lost: AtomicU64::new(0),
            overwritten: AtomicU64::new(0),
        }))
    }

    /// Adds a flow. Never waits for readers.
    pub fn record(&self, flow: Flow) {
        let log = &*self.0;
        log.verdicts[flow.verdict as usize].fetch_add(1, Ordering::Relaxed);
        let sequence = log.next.fetch_add(1, Ordering::AcqRel);
        let old = {
            let mut slot = log.slots[log.slot(sequence)].lock();
            // A writer that was overtaken by a whole round must not put an old flow over a new one.
            if slot.as_ref().is_some_and(|there| there.sequence > sequence) {
                return;
            }
            slot.replace(Recorded { sequence, flow })
        };
        drop(old);
        if log.followers.load(Ordering::Acquire) > 0 {
            log.arrived.notify_waiters();
        }
    }

    /// Events were lost before they could be recorded: whoever follows is told.
    pub fn record_lost(&self, count: u64) {
        self.0.lost.fetch_add(count, Ordering::AcqRel);
        if self.0.followers.load(Ordering::Acquire) > 0 {
            self.0.arrived.notify_waiters();
        }
    }

    /// How many events were lost before they could be recorded.
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Acquire)
    }

    /// The node whose flows these are.
    pub fn node(&self) -> &str {
        &self.0.node
    }

    /// Tells this run's flows from those of the run before.
    pub fn run(&self) -> u64 {
        self.0.run
    }

    /// How many flows are kept.
    pub fn capacity(&self) -> u64 {
        self.0.slots.len() as u64
    }

    /// How many flows readers did not come to in time, all readers together.
    pub fn overwritten(&self) -> u64 {
        self.0.overwritten.load(Ordering::Relaxed)
    }

    /// What is at a place.
    pub fn read(&self, sequence: u64) -> Seen {
        self.0.read(sequence)
    }

    /// Reads from a place on.
    pub fn reader(&self, from: u64) -> Reader {
        self.0.followers.fetch_add(1, Ordering::AcqRel);
        Reader {
            log: self.clone(),
            position: from,
            lost: self.lost(),
        }
    }

    /// How many flows were ever recorded.
    pub fn recorded(&self) -> u64 {
        self.0.next.load(Ordering::Acquire)
    }

    /// How many flows there were, by verdict.
    pub fn counts(&self) -> Counts {
        let [forwarded, audit, dropped, error] = &self.0.verdicts;
        Counts {
            forwarded: forwarded.load(Ordering::Relaxed),
            dropped: dropped.load(Ordering::Relaxed),
            error: error.load(Ordering::Relaxed),
            audit: audit.load(Ordering::Relaxed),
        }
    }

    /// The flows that are held, oldest first.
    pub fn past(&self) -> Vec<Recorded> {
        let end = self.recorded();
        let held = end.saturating_sub(self.capacity())..end;
        let held = held.filter_map(|sequence| match self.0.read(sequence) {
            Seen::Flow(recorded) => Some(*recorded),
            Seen::NotYet | Seen::Overwritten => None,
        });
        held.collect()
    }
}

impl Shared {
    fn slot(&self, sequence: u64) -> usize {
        (sequence % self.slots.len() as u64) as usize
    }

    fn read(&self, sequence: u64) -> Seen {
        match &*self.slots[self.slot(sequence)].lock() {
            Some(there) if there.sequence == sequence => Seen::Flow(Box::new(there.clone())),
            Some(there) if there.sequence > sequence => Seen::Overwritten,
            _ => Seen::NotYet,
        }
    }
}

/// Reads flows in their order, and as they come. Dropping it ends the reading.
#[derive(Debug)]
pub struct Reader {
    log: FlowLog,
    position: u64,
    /// As many were lost when it was last told.
    lost: u64,
}

impl Reader {
    /// Where it reads next.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next flow, or how many were lost. Cancellation-safe.
    pub async fn next(&mut self) -> Item {
        loop {
            let log = self.log.0.clone();
            // Registered before looking, so that a flow that comes in between wakes it.
            let arrived = log.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            if let Some(item) = self.try_next() {
                return item;
            }
            arrived.await;
        }
    }

    /// As [`Reader::next`], without waiting.
    pub fn try_next(&mut self) -> Option<Item> {
        let log = self.log.0.clone();
        let lost = log.lost.load(Ordering::Acquire);
        if lost > self.lost {
            return Some(Item::Unrecorded(lost - std::mem::replace(&mut self.lost, lost)));
        }
        let end = log.next.load(Ordering::Acquire);
        let oldest = end.saturating_sub(log.slots.len() as u64);
        if self.position < oldest {
            return Some(self.overtaken(oldest - self.position));
        }
        if self.position >= end {
            return None;
        }
        match log.read(self.position) {
            Seen::Flow(recorded) => {
                self.position += 1;
                Some(Item::Flow(recorded))
            }
            // Its writer notifies when it is there.
            Seen::NotYet => None,
            Seen::Overwritten => Some(self.overtaken(1)),
        }
    }

    fn overtaken(&mut self, by: u64) -> Item {
        self.position += by;
        self.log.0.overwritten.fetch_add(by, Ordering::Relaxed);
        Item::Overwritten(by)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.log.0.followers.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Verdict, sample::flow_of};

    fn statuses(past: &[Recorded]) -> Vec<u16> {
        past.iter().map(|r| r.flow.status).collect()
    }

    fn numbered(n: u16) -> Flow {
        Flow {
            status: n,
            ..flow_of("a", "b")
        }
    }

    #[test]
    fn the_ring_keeps_the_last_ones_in_order() {
        let log = FlowLog::with_capacity("n1", 4);
        (0..10).for_each(|n| log.record(numbered(n)));
        assert_eq!(statuses(&log.past()), [6, 7, 8, 9]);
        assert_eq!(log.counts().forwarded, 10);
    }

    #[test]
    fn each_verdict_is_counted_as_what_it_is() {
        let log = FlowLog::with_capacity("n1", 4);
        let verdicts = [
            Verdict::Forwarded,
            Verdict::Audit,
            Verdict::Dropped,
            Verdict::Error,
        ];
        for (n, verdict) in verdicts.into_iter().enumerate() {
            for _ in 0..=n {
                log.record(Flow {
                    verdict,
                    ..flow_of("a", "b")
                });
            }
        }
        let counts = log.counts();
        let counts = (counts.forwarded, counts.audit, counts.dropped, counts.error);
        assert_eq!(counts, (1, 2, 3, 4));
    }

    #[tokio::test]
    async fn a_follower_gets_each_flow_once_and_learns_what_it_lost() {
        let log = FlowLog::with_capacity("n1", 4);
        log.record(numbered(0));
        let mut follower = log.reader(log.recorded());
        log.record(numbered(1));
        assert!(matches!(follower.next().await, Item::Flow(r) if r.flow.status == 1));
        (2..12).for_each(|n| log.record(numbered(n)));
        // Ten came, four are held.
        assert!(matches!(follower.next().await, Item::Overwritten(6)));
        for want in 8..12 {
            assert!(matches!(follower.next().await, Item::Flow(r) if r.flow.status == want));
        }
        assert!(follower.try_next().is_none());
        assert_eq!(log.overwritten(), 6);
    }

    #[test]
    fn what_was_lost_before_is_told_once_and_only_to_who_follows_then() {
        let log = FlowLog::new("n1");
        log.record_lost(2);
        let mut follower = log.reader(log.recorded());
        log.record_lost(3);
        log.record(numbered(1));
        assert!(matches!(follower.try_next(), Some(Item::Unrecorded(3))));
        assert!(matches!(follower.try_next(), Some(Item::Flow(r)) if r.flow.status == 1));
        assert!(follower.try_next().is_none());
        assert_eq!(log.lost(), 5);
    }

    #[tokio::test]
    async fn a_waiting_follower_is_woken() {
        let log = FlowLog::new("n1");
        let mut follower = log.reader(log.recorded());
        let reader = tokio::spawn(async move { follower.next().await });
        tokio::task::yield_now().await;
        log.record(numbered(7));
        assert!(matches!(reader.await.unwrap(), Item::Flow(r) if r.flow.status == 7));
        assert_eq!(log.0.followers.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn writers_on_many_threads_lose_nothing_within_the_capacity() {
        let log = FlowLog::with_capacity("n1", 4000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|n| log.record(numbered(n))));
            }
        });
        let past = log.past();
        assert_eq!(past.len(), 4000);
        assert!(past.windows(2).all(|w| w[0].sequence + 1 == w[1].sequence));
    }
}
