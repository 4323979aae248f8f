//! How long to wait before something is tried again.

use super::api::Fault;
use std::time::Duration;

const SOONEST: Duration = Duration::from_millis(200);

/// How long to wait before the next try.
#[derive(Debug)]
pub(super) struct Backoff {
    failures: u32,
    longest: Duration,
}

impl Backoff {
    pub(super) fn new(longest: Duration) -> Self {
        Self { failures: 0, longest }
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Twice as long each time, and not for all at the same moment.
    pub(super) fn after(&mut self, fault: &Fault) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let wait = SOONEST.saturating_mul(1 << (self.failures - 1).min(16));
        let wait = wait.min(self.longest).mul_f64(rand::random_range(0.5..=1.0));
        match fault {
            Fault::Busy(Some(asked)) => wait.max(*asked),
            _ => wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_limit_differ_and_are_as_long_as_asked() {
        let away = Fault::Away("x".into());
        let longest = Duration::from_secs(30);
        let mut backoff = Backoff::new(longest);
        let waits: Vec<Duration> = (0..40).map(|_| backoff.after(&away)).collect();
        assert!(waits[0] <= SOONEST && waits[0] >= SOONEST / 2);
        assert!(waits.iter().all(|w| *w <= longest));
        let late = &waits[20..];
        assert!(late.iter().all(|w| *w >= longest / 2));
        assert!(late.iter().any(|w| *w != late[0]), "all wait alike");
        backoff.reset();
        assert!(backoff.after(&away) <= SOONEST);
        let asked = Duration::from_secs(7);
        assert_eq!(backoff.after(&Fault::Busy(Some(asked))), asked);
    }
}
