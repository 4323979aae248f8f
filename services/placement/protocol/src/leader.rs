//! Which replica of the service leads: one row of the database, compared and swapped.
//!
//! The row holds no time. A follower counts on its own clock how long the row stays the same; the
//! leader counts on its own from before it sent the last swap that succeeded. So no two clocks are
//! compared, only their speeds matter. Whatever a replica believes, its writes carry the term, and
//! the database compares that in the same transaction.

use crate::Time;
use std::time::Duration;

/// How long a row has to stay the same before somebody else may take it.
pub const LEADER_LEASE: Duration = Duration::from_millis(1200);
/// How much earlier the leader itself stops.
pub const LEADER_MARGIN: Duration = Duration::from_millis(200);
/// Between two swaps of the leader, and between two looks of a follower.
pub const LEADER_BEAT: Duration = Duration::from_millis(250);
/// A question to the database that has no answer for this long is asked anew.
const ANSWER: Duration = Duration::from_millis(300);

/// The row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct LeaderRow {
    /// Who leads; 0 for nobody.
    pub holder: u64,
    /// Rises with each change of the leader: what the leader's writes carry.
    pub term: u64,
    /// Rises with each sign of life.
    pub beat: u64,
}

/// What a replica asks of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ask {
    /// The row as it is.
    Read,
    /// Replace the row if it is still so.
    Swap {
        /// What it has to be.
        from: LeaderRow,
        /// What it becomes.
        to: LeaderRow,
    },
}

/// One replica's part.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Candidate {
    id: u64,
    /// The row as last seen, and since when.
    seen: Option<(LeaderRow, Time)>,
    /// What was asked, and when.
    asked: Option<(Ask, Time)>,
    next: Time,
    /// The term it leads, and until when it may think so.
    leads: Option<(u64, Time)>,
}

impl Candidate {
    /// A replica that knows nothing. `id` is unique among replicas and starts, and not 0.
    pub fn new(id: u64, now: Time) -> Self {
        Self {
            id,
            seen: None,
            asked: None,
            next: now,
            leads: None,
        }
    }

    /// The term that this replica leads. To be asked before each thing that only the leader does.
    pub fn leads(&self, now: Time) -> Option<u64> {
        self.leads.filter(|(_, until)| now < *until).map(|(term, _)| term)
    }

    /// Gives up what it knows as the leader; it may become the leader again, of another term.
    pub fn step_down(&mut self) {
        self.leads = None;
    }

    /// What to ask the database now, if anything. To be called often.
    pub fn poll(&mut self, now: Time) -> Option<Ask> {
        if self.asked.is_some_and(|(_, at)| now.since(at) < ANSWER) || now < self.next {
            return None;
        }
        self.next = now + LEADER_BEAT;
        let ask = match self.seen {
            // An unanswered swap may have happened: what it left is seen first.
            _ if self.asked.is_some() => Ask::Read,
            None => Ask::Read,
            // A term is led once: what the last time left on its way to the database has another.
            Some((row, _)) if row.holder == self.id => Ask::Swap {
                from: row,
                to: LeaderRow {
                    term: row.term + u64::from(self.leads(now) != Some(row.term)),
                    beat: row.beat + 1,
                    ..row
                },
            },
            Some((row, since)) if row.holder == 0 || now.since(since) >= LEADER_LEASE => Ask::Swap {
                from: row,
                to: LeaderRow {
                    holder: self.id,
                    term: row.term + 1,
                    beat: row.beat + 1,
                },
            },
            Some(_) => Ask::Read,
        };
        self.asked = Some((ask, now));
        Some(ask)
    }

    /// The database answers the last question: the row as it is now.
    pub fn answer(&mut self, now: Time, row: LeaderRow) {
        let Some((ask, at)) = self.asked.take() else {
            return;
        };
        if self.seen.is_none_or(|(seen, _)| seen != row) {
            self.seen = Some((row, now));
        }
        match ask {
            Ask::Swap { from, to } if to == row => {
                let goes_on = from.term != to.term || self.leads(now) == Some(to.term);
                self.leads = goes_on.then_some((row.term, at + (LEADER_LEASE - LEADER_MARGIN)));
            }
            // Somebody else's row: whatever it believed is over.
            _ if row.holder != self.id => self.leads = None,
            // After a swap whose answer was lost: no time is to be lost.
            _ => self.next = now,
        }
    }

    /// The database gave no answer to the last question, or an error.
    pub fn failed(&mut self) {
        if let Some((Ask::Swap { .. }, _)) = self.asked.take() {
            self.seen = None;
        }
    }

    /// The swap with which the leader gives its place up, so that the next one need not wait.
    pub fn give_up(&mut self) -> Option<Ask> {
        let (row, _) = self.seen.filter(|(row, _)| row.holder == self.id)?;
        self.leads = None;
        self.seen = None;
        Some(Ask::Swap {
            from: row,
            to: LeaderRow {
                holder: 0,
                beat: row.beat + 1,
                ..row
            },
        })
    }
}
