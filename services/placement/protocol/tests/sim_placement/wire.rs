//! Messages, and the pipes they go through: in order, each with its delay, stuck while a link is cut.

use std::collections::{BTreeMap, VecDeque};
use weft_placement_protocol::{Delta, HostInfo, Registration, Reminder, Snapshot, Time, TypeKey};

#[derive(Debug)]
pub enum ToService {
    Hello {
        hosts: Vec<Registration>,
        held: BTreeMap<TypeKey, u64>,
        sent: Time,
    },
    Up(Registration),
    Down(String),
    /// When it was sent, by the node's clock: it comes back with the answer.
    Renew(Time),
    Drained {
        key: TypeKey,
        slot: u32,
        epoch: u64,
    },
    Remind {
        row: Reminder,
        epoch: u64,
    },
    Fired {
        id: String,
        due: Time,
    },
}

#[derive(Debug)]
pub enum ToNode {
    Welcome,
    Table(TypeKey, Snapshot),
    Delta(TypeKey, Delta),
    Gone(TypeKey),
    Drain {
        key: TypeKey,
        slot: u32,
        epoch: u64,
        to: std::sync::Arc<HostInfo>,
    },
    Resume {
        key: TypeKey,
        slot: u32,
        epoch: u64,
    },
    Silent(Vec<String>),
    Renewed(Time),
    Reminded(String),
    Fire(Reminder),
    /// The service ends the stream.
    End,
}

/// One direction of a stream.
#[derive(Debug)]
pub struct Pipe<T> {
    queue: VecDeque<(u64, T)>,
}

impl<T> Pipe<T> {
    pub fn new() -> Self {
        Self {
            queue: VecDeque::new(),
        }
    }

    pub fn send(&mut self, at: u64, message: T) {
        let after = self.queue.back().map_or(0, |(t, _)| *t);
        self.queue.push_back((at.max(after), message));
    }

    pub fn receive(&mut self, now: u64, cut: bool) -> Option<T> {
        let due = !cut && self.queue.front().is_some_and(|(at, _)| *at <= now);
        due.then(|| self.queue.pop_front().map(|(_, m)| m)).flatten()
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }
}

/// A stream of one node to one replica, as the two ends see it.
#[derive(Debug)]
pub struct Stream {
    pub number: u64,
    pub replica: usize,
    /// The start of the replica that it goes to.
    pub start: u64,
    pub up: Pipe<ToService>,
    pub down: Pipe<ToNode>,
}
