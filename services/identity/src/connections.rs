//! Bounds what connections that are refused can make the audit record grow by.
//!
//! Whoever reaches the port can have handshakes refused without end, and a member whose certificate
//! was revoked goes on trying. So a refusal is recorded when it is new; the same again is counted, and
//! told every ten minutes for as long as it goes on. Of new ones only so many of a minute are recorded.

use crate::db::Audit;
use parking_lot::Mutex;
use std::{collections::HashMap, net::IpAddr};

/// How long the same refusal is only counted.
const AGAIN: u64 = 600;
/// New refusals that are recorded one by one in each minute.
const PER_MINUTE: u32 = 30;
/// Refusals that are known at once.
const KNOWN: usize = 1024;

/// What makes two refusals the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The address.
    pub from: IpAddr,
    /// Why.
    pub reason: &'static str,
    /// Whom the certificate named that was shown.
    pub named: Box<str>,
}

#[derive(Debug)]
struct Seen {
    entry: Audit,
    /// When it was recorded last, and how often it came since.
    told_at: u64,
    since: u64,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<Key, Seen>,
    minute: u64,
    recorded: u32,
    /// Of this minute, and of those that are over.
    left_out: u64,
    left_out_before: u64,
}

/// What is to be recorded beside the new ones.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// What came again, and how often.
    pub again: Vec<(Audit, u64)>,
    /// How many were new and not recorded one by one.
    pub left_out: u64,
}

/// Counts refused connections.
#[derive(Debug, Default)]
pub struct Connections {
    state: Mutex<State>,
}

impl State {
    fn turn(&mut self, minute: u64) {
        if minute != self.minute {
            self.minute = minute;
            self.recorded = 0;
            self.left_out_before += std::mem::take(&mut self.left_out);
        }
    }
}

impl Connections {
    /// Whether this refusal is to be recorded now.
    pub fn ask(&self, key: Key, entry: &Audit) -> bool {
        let mut state = self.state.lock();
        state.turn(entry.time / 60);
        if let Some(seen) = state.known.get_mut(&key) {
            seen.since += 1;
            return false;
        }
        if state.recorded >= PER_MINUTE || state.known.len() >= KNOWN {
            state.left_out += 1;
            return false;
        }
        state.recorded += 1;
        let seen = Seen {
            entry: entry.clone(),
            told_at: entry.time,
            since: 0,
        };
        state.known.insert(key, seen);
        true
    }

    /// What came again during ten minutes, and what was left out in minutes that are over. Told once.
    pub fn due(&self, now: u64) -> Due {
        self.take(now, false)
    }

    /// All of it: nothing comes after.
    pub fn rest(&self, now: u64) -> Due {
        self.take(now, true)
    }

    fn take(&self, now: u64, all: bool) -> Due {
        let mut state = self.state.lock();
        state.turn(if all { u64::MAX } else { now / 60 });
        let mut due = Due {
            again: Vec::new(),
            left_out: std::mem::take(&mut state.left_out_before),
        };
        state.known.retain(|_, seen| {
            // A clock that was set back does not hold anything up for long.
            if !all && now.abs_diff(seen.told_at) < AGAIN {
                return true;
            }
            if seen.since == 0 {
                return false;
            }
            let count = std::mem::take(&mut seen.since);
            seen.told_at = now;
            seen.entry.time = now;
            due.again.push((seen.entry.clone(), count));
            true
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 6000;

    fn key(host: u32, reason: &'static str) -> Key {
        Key {
            from: std::net::Ipv4Addr::from_bits(host).into(),
            reason,
            named: "".into(),
        }
    }

    fn at(time: u64) -> Audit {
        Audit {
            time,
            ..Audit::default()
        }
    }

    fn recorded(connections: &Connections, hosts: std::ops::Range<u32>, time: u64) -> usize {
        hosts
            .filter(|host| connections.ask(key(*host, "EXPIRED"), &at(time)))
            .count()
    }

    #[test]
    fn the_same_again_is_told_from_time_to_time() {
        let connections = Connections::default();
        assert!(connections.ask(key(1, "EXPIRED"), &at(START)));
        for second in 1..=5 {
            assert!(!connections.ask(key(1, "EXPIRED"), &at(START + second)));
        }
        // Another reason, another address: new.
        assert!(connections.ask(key(1, "REVOKED"), &at(START)));
        assert!(connections.ask(key(2, "EXPIRED"), &at(START)));
        assert_eq!(connections.due(START + AGAIN - 1), Due::default());
        let later = START + AGAIN;
        let told = Due {
            again: vec![(at(later), 5)],
            left_out: 0,
        };
        assert_eq!(connections.due(later), told);
        assert_eq!(connections.due(later), Due::default(), "told once");
        // What did not come again is forgotten and new once more; what did is not.
        assert!(connections.ask(key(2, "EXPIRED"), &at(later)));
        assert!(!connections.ask(key(1, "EXPIRED"), &at(later)));
        let told = Due {
            again: vec![(at(later + 1), 1)],
            left_out: 0,
        };
        assert_eq!(connections.rest(later + 1), told);
    }

    #[test]
    fn however_many_come_few_are_recorded() {
        let connections = Connections::default();
        let most = PER_MINUTE as usize;
        assert_eq!(recorded(&connections, 0..100, START), most);
        assert_eq!(
            connections.due(START + 59),
            Due::default(),
            "the minute is not over"
        );
        assert_eq!(connections.due(START + 60).left_out, 100 - most as u64);
        assert_eq!(recorded(&connections, 100..200, START + 60), most);
        // For hours: what is kept stays small, and nothing goes uncounted.
        let (mut alone, mut counted) = (2 * most as u64, 0);
        for minute in 2..200 {
            let hosts = minute * 1000..(minute + 1) * 1000;
            let time = START + 60 * u64::from(minute);
            alone += recorded(&connections, hosts, time) as u64;
            counted += connections.due(time).left_out;
            assert!(connections.state.lock().known.len() <= KNOWN);
        }
        counted += connections.rest(START + 60 * 200).left_out;
        assert_eq!(alone + counted, 100 + 100 + 198_000 - (100 - most as u64));
        assert!(alone <= 200 * most as u64, "{alone}");
    }
}
