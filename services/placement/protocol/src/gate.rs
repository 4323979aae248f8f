//! The node's side: whether a turn may start, go on and write, and what has to stop.
//!
//! Owns the node's own view of its lease, the slots it is to hand over, and which turns run. Tables
//! are the caller's; time is passed in. A turn starts only if the table gives the slot to a host of
//! this node, the lease holds, nobody asked for the slot, and the store knows the epoch.

use crate::{DRAIN, Owner, TableView, Time, TypeKey};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Why a turn does not start here now, or may not write.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Closed {
    /// The slot belongs to another node's host.
    #[error("the actor lives on node {0}")]
    Elsewhere(Arc<str>),
    /// The node can not be sure to own anything.
    #[error("the node's lease is over: it has not heard from the placement service")]
    NoLease,
    /// The slot is on its way to another host.
    #[error("the actor is moving to host {0}")]
    Moving(Arc<str>),
    /// Epochs of this slot were not claimed in the store: do that, tell [`Gate::claimed`], try again.
    #[error("epoch {0} is not claimed in the state store yet")]
    NotClaimed(u64),
    /// The turn was ended: its time was over, or its slot has gone to others.
    #[error("the turn was ended before its app was done")]
    Ended,
}

/// What the caller has to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// Give up a turn: break its call to the app off, take no more of its writes.
    Cancel(u64),
    /// Tell the service that no turn runs in a slot any more.
    Drained {
        /// The type.
        key: TypeKey,
        /// The slot.
        slot: u32,
        /// The epoch under which it is given up.
        epoch: u64,
    },
}

/// No table has this epoch: a turn that has it never fits again.
const OVER: u64 = u64::MAX;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Turn {
    slot: (TypeKey, u32),
    epoch: u64,
    host: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Closing {
    epoch: u64,
    to: Arc<str>,
    deadline: Time,
    /// On the present stream.
    told: bool,
    reported: bool,
}

/// One node's gate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gate {
    node: Arc<str>,
    /// The service's lease less the margin.
    lease: Duration,
    until: Time,
    /// Everything that was known when the stream began has come.
    synced: bool,
    connected: bool,
    closing: BTreeMap<(TypeKey, u32), Closing>,
    claimed: BTreeMap<(TypeKey, u32), u64>,
    turns: BTreeMap<u64, Turn>,
    last: u64,
}

impl Gate {
    /// Closed until the service has answered.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.into(),
            lease: Duration::ZERO,
            until: Time::default(),
            synced: false,
            connected: false,
            closing: BTreeMap::new(),
            claimed: BTreeMap::new(),
            turns: BTreeMap::new(),
            last: 0,
        }
    }

    /// A new stream was welcomed. It gives no lease yet: what the node knows may be old. `lease` is the
    /// service's less the margin.
    pub fn welcome(&mut self, lease: Duration) {
        self.lease = lease;
        self.connected = true;
        self.synced = false;
        for closing in self.closing.values_mut() {
            closing.told = false;
            closing.reported = false;
        }
    }

    /// The stream is gone.
    pub fn disconnected(&mut self) {
        self.connected = false;
    }

    /// The service answers the hello or a renewal, after all that it knew then. The lease counts
    /// from before it was sent. Turns from before a gap in it are over, even if nobody looked in the gap:
    /// others may have run since.
    pub fn renewed(&mut self, now: Time, sent: Time) {
        if now >= self.until {
            self.turns.values_mut().for_each(|turn| turn.epoch = OVER);
        }
        if !std::mem::replace(&mut self.synced, true) {
            // What the service did not repeat, it does not want any more.
            self.closing.retain(|_, closing| closing.told);
        }
        self.until = self.until.max(sent + self.lease);
    }

    /// The service wants a slot: no more turns in it.
    pub fn drain(&mut self, now: Time, key: &TypeKey, slot: u32, epoch: u64, to: &str) {
        let place = (key.clone(), slot);
        let (deadline, reported) = match self.closing.get(&place) {
            Some(known) if known.epoch == epoch => (known.deadline, known.reported),
            _ => (now + DRAIN, false),
        };
        let closing = Closing {
            epoch,
            to: to.into(),
            deadline,
            told: true,
            reported,
        };
        self.closing.insert(place, closing);
    }

    /// The service does not want the slot any more.
    pub fn resume(&mut self, key: &TypeKey, slot: u32, epoch: u64) {
        let place = (key.clone(), slot);
        if self.closing.get(&place).is_some_and(|c| c.epoch == epoch) {
            self.closing.remove(&place);
        }
    }

    /// A type's table has changed; `None` when nobody hosts it. Turns whose slot went to others end
    /// with the next [`Gate::poll`].
    pub fn reconcile(&mut self, key: &TypeKey, view: Option<&TableView>) {
        let current = |slot: u32| view.and_then(|v| v.epoch(slot));
        self.closing
            .retain(|(k, slot), closing| k != key || current(*slot) == Some(closing.epoch));
        self.claimed
            .retain(|(k, slot), epoch| k != key || current(*slot) == Some(*epoch));
        let node = &self.node;
        for turn in self.turns.values_mut().filter(|t| t.slot.0 == *key) {
            let owner = view.and_then(|v| v.slot(turn.slot.1));
            let mine = owner.is_some_and(|o| o.epoch == turn.epoch && o.host.node == *node);
            if !mine {
                turn.epoch = OVER;
            }
        }
    }

    /// Until when the node may take itself for an owner.
    pub fn lease_until(&self) -> Time {
        self.until
    }

    /// The store has taken the claim of an epoch.
    pub fn claimed(&mut self, key: &TypeKey, slot: u32, epoch: u64) {
        self.claimed.insert((key.clone(), slot), epoch);
    }

    /// Whether a turn of an actor in `owner`'s slot could start, but for the claim.
    pub fn open(&self, now: Time, key: &TypeKey, owner: Owner<'_>) -> Result<(), Closed> {
        if owner.host.node != self.node {
            return Err(Closed::Elsewhere(owner.host.node.clone()));
        }
        if now >= self.until {
            return Err(Closed::NoLease);
        }
        match self.closing.get(&(key.clone(), owner.slot)) {
            Some(closing) if closing.epoch == owner.epoch => Err(Closed::Moving(closing.to.clone())),
            _ => Ok(()),
        }
    }

    /// Starts a turn. The number is for [`Gate::end`] and [`Gate::may_write`].
    pub fn begin(&mut self, now: Time, key: &TypeKey, owner: Owner<'_>) -> Result<u64, Closed> {
        self.open(now, key, owner)?;
        let place = (key.clone(), owner.slot);
        if self.claimed.get(&place) != Some(&owner.epoch) {
            return Err(Closed::NotClaimed(owner.epoch));
        }
        self.last += 1;
        let turn = Turn {
            slot: place,
            epoch: owner.epoch,
            host: owner.host.id.clone(),
        };
        self.turns.insert(self.last, turn);
        Ok(self.last)
    }

    /// The app is done with a turn, or it was given up.
    pub fn end(&mut self, turn: u64) {
        self.turns.remove(&turn);
    }

    /// The epoch that a turn's write carries. Asks for itself whether the turn's time is over: nobody
    /// may have looked since.
    pub fn may_write(&self, now: Time, turn: u64) -> Result<u64, Closed> {
        let turn = self.turns.get(&turn).ok_or(Closed::Ended)?;
        if now >= self.until {
            return Err(Closed::NoLease);
        }
        if self.is_over(now, turn) {
            return Err(Closed::Ended);
        }
        Ok(turn.epoch)
    }

    fn is_over(&self, now: Time, turn: &Turn) -> bool {
        let late = |c: &Closing| c.epoch == turn.epoch && now >= c.deadline;
        now >= self.until || turn.epoch == OVER || self.closing.get(&turn.slot).is_some_and(late)
    }

    /// An app of this node is gone, and its turns with it.
    pub fn host_down(&mut self, id: &str) {
        self.turns.retain(|_, turn| &*turn.host != id);
    }

    /// How many turns run.
    pub fn running(&self) -> usize {
        self.turns.len()
    }

    /// What is due. To be called at least ten times per second, and after each change.
    pub fn poll(&mut self, now: Time) -> Vec<Step> {
        let over = |turn: &Turn| self.is_over(now, turn);
        let ended: Vec<u64> = self
            .turns
            .iter()
            .filter(|(_, t)| over(t))
            .map(|(n, _)| *n)
            .collect();
        for turn in &ended {
            self.turns.remove(turn);
        }
        let mut steps: Vec<Step> = ended.into_iter().map(Step::Cancel).collect();
        if !self.connected {
            return steps;
        }
        for (place, closing) in &mut self.closing {
            if closing.told && !closing.reported && !self.turns.values().any(|t| t.slot == *place) {
                closing.reported = true;
                steps.push(Step::Drained {
                    key: place.0.clone(),
                    slot: place.1,
                    epoch: closing.epoch,
                });
            }
        }
        steps
    }
}
