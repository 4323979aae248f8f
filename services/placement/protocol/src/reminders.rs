//! Reminders that are due: a queue over what the database has.
//!
//! The database is the truth: a reminder is acknowledged after its row is committed, and its row goes
//! (or gets its next time) after the owner has run it. So an acknowledged one is run at least once,
//! whatever dies in between. What is here is made anew from the rows by whoever leads.

use crate::{Time, TypeKey};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// A reminder that was sent to its owner and not answered is sent again after this time.
pub const REDELIVER: Duration = Duration::from_secs(2);

/// A row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reminder {
    /// Names it within everything.
    pub id: Arc<str>,
    /// The actor's type.
    pub key: TypeKey,
    /// The actor's slot.
    pub slot: u32,
    /// When it is due.
    pub due: Time,
    /// Again and again after this long; once if there is none.
    pub period: Option<Duration>,
}

/// What its row becomes when it was run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Done {
    /// It goes.
    Remove,
    /// It is due again.
    Next(Time),
    /// There is no such reminder (any more), or it was run before.
    Unknown,
}

/// Those of one leader.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Reminders {
    rows: BTreeMap<Arc<str>, (Reminder, Time)>,
    queue: BTreeSet<(Time, Arc<str>)>,
}

impl Reminders {
    /// From all rows.
    pub fn restore(rows: impl IntoIterator<Item = Reminder>) -> Self {
        let mut all = Self::default();
        rows.into_iter().for_each(|row| all.put(row));
        all
    }

    /// A row was written.
    pub fn put(&mut self, row: Reminder) {
        self.remove(&row.id.clone());
        self.queue.insert((row.due, row.id.clone()));
        self.rows.insert(row.id.clone(), (row.clone(), row.due));
    }

    /// A row was removed.
    pub fn remove(&mut self, id: &str) {
        if let Some((row, next)) = self.rows.remove(id) {
            self.queue.remove(&(next, row.id));
        }
    }

    /// At most `limit` that are to be sent to their owners now; each is due again if nobody answers.
    pub fn due(&mut self, now: Time, limit: usize) -> Vec<Reminder> {
        let ready: Vec<_> = self
            .queue
            .iter()
            .take_while(|(at, _)| *at <= now)
            .take(limit)
            .cloned()
            .collect();
        let mut due = Vec::with_capacity(ready.len());
        for entry in ready {
            self.queue.remove(&entry);
            if let Some((row, next)) = self.rows.get_mut(&entry.1) {
                *next = now + REDELIVER;
                self.queue.insert((*next, entry.1));
                due.push(row.clone());
            }
        }
        due
    }

    /// The owner has run it, as it was due at `due`. To be written first, then [`Reminders::put`] or
    /// [`Reminders::remove`]. Times that were missed are not made up for.
    pub fn done(&self, id: &str, due: Time, now: Time) -> Done {
        match self.rows.get(id) {
            Some((row, _)) if row.due == due => match row.period {
                None => Done::Remove,
                Some(period) => {
                    let period = period.max(Duration::from_millis(1));
                    let missed = now.since(due).as_nanos() / period.as_nanos();
                    let steps = u32::try_from(missed + 1).unwrap_or(u32::MAX);
                    Done::Next(due + period.saturating_mul(steps))
                }
            },
            _ => Done::Unknown,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::since_start(Duration::from_secs(seconds))
    }

    fn row(id: &str, due: u64, period: Option<u64>) -> Reminder {
        Reminder {
            id: id.into(),
            key: TypeKey::new("default", "Cart"),
            slot: 1,
            due: at(due),
            period: period.map(Duration::from_secs),
        }
    }

    #[test]
    fn comes_again_until_it_was_run() {
        let mut all = Reminders::restore([row("a", 5, None), row("b", 7, None)]);
        assert!(all.due(at(4), 10).is_empty());
        assert_eq!(all.due(at(5), 10), [row("a", 5, None)]);
        assert!(all.due(at(6), 10).is_empty());
        assert_eq!(all.due(at(7), 1).len(), 1);
        assert_eq!(all.due(at(7), 10).len(), 1);
        assert_eq!(all.done("a", at(5), at(8)), Done::Remove);
        all.remove("a");
        assert_eq!(all.due(at(20), 10), [row("b", 7, None)]);
        assert_eq!(all.done("a", at(5), at(8)), Done::Unknown);
    }

    #[test]
    fn a_period_goes_on_from_when_it_was_due() {
        let mut all = Reminders::restore([row("a", 5, Some(10))]);
        assert_eq!(all.done("a", at(5), at(6)), Done::Next(at(15)));
        assert_eq!(all.done("a", at(5), at(37)), Done::Next(at(45)));
        all.put(row("a", 15, Some(10)));
        assert_eq!(all.done("a", at(5), at(16)), Done::Unknown, "run twice");
        assert_eq!(all.len(), 1);
        assert_eq!(all.due(at(15), 10).len(), 1);
    }
}
