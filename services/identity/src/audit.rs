//! Limits what strangers can make the audit record grow by.

use parking_lot::Mutex;

/// Refused joins that are recorded one by one in each minute. Anybody who reaches the port can be
/// refused; without a limit they could push everything else out of the record.
const PER_MINUTE: u32 = 120;

/// Counts the refusals of callers without a certificate.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    minute: u64,
    recorded: u32,
    left_out: u64,
}

/// What to do with a refusal.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Record it; so many before it were not.
    Record {
        /// How many were left out since the last recorded one.
        left_out: u64,
    },
    /// Only count it.
    LeaveOut,
}

impl Gate {
    /// Asks for one refusal at this time.
    pub fn ask(&self, now: u64) -> Verdict {
        let mut state = self.state.lock();
        let minute = now / 60;
        if minute != state.minute {
            state.minute = minute;
            state.recorded = 0;
        }
        if state.recorded >= PER_MINUTE {
            state.left_out += 1;
            return Verdict::LeaveOut;
        }
        state.recorded += 1;
        Verdict::Record {
            left_out: std::mem::take(&mut state.left_out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_not_recorded() {
        let gate = Gate::default();
        for _ in 0..PER_MINUTE {
            assert_eq!(gate.ask(600), Verdict::Record { left_out: 0 });
        }
        for _ in 0..5 {
            assert_eq!(gate.ask(659), Verdict::LeaveOut);
        }
        assert_eq!(gate.ask(660), Verdict::Record { left_out: 5 });
        assert_eq!(gate.ask(660), Verdict::Record { left_out: 0 });
    }
}
