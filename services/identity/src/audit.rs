//! Bounds what refusals can make the audit record grow by.
//!
//! Anybody who reaches the port can be refused, and a member that was taken over can ask as often as
//! its rate permits: without a bound they could push everything else out of the record, and fill the
//! disk. So many refusals of a minute are recorded one by one; of the rest, how many there were.

use parking_lot::Mutex;
use std::collections::HashMap;

/// Refusals that are recorded one by one in each minute: of each member, and of all others together.
pub const PER_MINUTE: u32 = 120;
/// Members that are counted apart. Beyond these they share a place, as strangers do.
const MEMBERS: usize = 8192;
/// How the record names those who have no place of their own.
const OTHERS: &str = "others";

/// Counts refusals.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    minute: u64,
    counts: HashMap<Box<str>, Count>,
    /// Of minutes that are over.
    left_out: HashMap<Box<str>, u64>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    recorded: u32,
    left_out: u64,
}

impl State {
    fn turn(&mut self, minute: u64) {
        if minute == self.minute {
            return;
        }
        self.minute = minute;
        for (who, count) in self.counts.drain() {
            if count.left_out > 0 {
                *self.left_out.entry(who).or_default() += count.left_out;
            }
        }
    }
}

impl Gate {
    /// Whether a refusal at this time is recorded by itself. `member` is the caller's name if it has a
    /// role in the mesh.
    pub fn ask(&self, member: Option<&str>, now: u64) -> bool {
        let mut state = self.state.lock();
        state.turn(now / 60);
        let room = state.counts.len() < MEMBERS;
        let who = member.filter(|who| room || state.counts.contains_key(*who));
        let count = state.counts.entry(who.unwrap_or(OTHERS).into()).or_default();
        if count.recorded < PER_MINUTE {
            count.recorded += 1;
            return true;
        }
        count.left_out += 1;
        false
    }

    /// Who was refused how often beyond that, in minutes that are over. Told once.
    pub fn left_out(&self, now: u64) -> Vec<(Box<str>, u64)> {
        let mut state = self.state.lock();
        state.turn(now / 60);
        state.left_out.drain().collect()
    }

    /// The same with the present minute: nothing comes after.
    pub fn rest(&self) -> Vec<(Box<str>, u64)> {
        let mut state = self.state.lock();
        state.turn(u64::MAX);
        state.left_out.drain().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(gate: &Gate, member: Option<&str>, now: u64, refusals: u32) -> usize {
        (0..refusals).filter(|_| gate.ask(member, now)).count()
    }

    #[test]
    fn a_flood_is_counted_and_not_recorded() {
        let gate = Gate::default();
        let most = PER_MINUTE as usize;
        assert_eq!(recorded(&gate, None, 600, PER_MINUTE), most);
        assert_eq!(gate.left_out(659), [], "nothing was left out");
        assert_eq!(recorded(&gate, None, 659, 5), 0);
        // Another's share is its own.
        assert_eq!(recorded(&gate, Some("n1"), 659, PER_MINUTE + 2), most);
        assert_eq!(gate.left_out(659), [], "the minute is not over");
        let mut told = gate.left_out(660);
        told.sort();
        assert_eq!(told, [("n1".into(), 2), (OTHERS.into(), 5)]);
        assert_eq!(gate.left_out(660), [], "told once");
        assert_eq!(recorded(&gate, None, 660, PER_MINUTE + 1), most);
        assert_eq!(gate.rest(), [(OTHERS.into(), 1)]);
    }

    #[test]
    fn however_many_members_there_are_little_is_kept() {
        let gate = Gate::default();
        for member in 0..2 * MEMBERS {
            gate.ask(Some(&member.to_string()), 60);
        }
        assert_eq!(gate.state.lock().counts.len(), MEMBERS + 1);
        // Those who came late share one place.
        let more = (MEMBERS - PER_MINUTE as usize) as u64;
        assert_eq!(gate.left_out(120), [(OTHERS.into(), more)]);
    }
}
