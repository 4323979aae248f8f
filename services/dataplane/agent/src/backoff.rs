//! Pauses between attempts: doubling, with jitter so that many nodes do not come back at once.

use std::time::Duration;

/// Pauses that grow from `first` to `most`.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `first`, stays at `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            next: first,
        }
    }

    /// For calls to control services: 200 ms to 15 s.
    pub fn upstream() -> Self {
        Self::new(Duration::from_millis(200), Duration::from_secs(15))
    }

    /// The next pause: between half of the present step and all of it.
    pub fn pause(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.most);
        jitter(step)
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Between half of `step` and all of it.
pub fn jitter(step: Duration) -> Duration {
    step.mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_bound_and_start_again() {
        let (first, most) = (Duration::from_millis(100), Duration::from_millis(1500));
        let mut backoff = Backoff::new(first, most);
        let steps = [100, 200, 400, 800, 1500, 1500].map(Duration::from_millis);
        for step in steps {
            let pause = backoff.pause();
            assert!(pause >= step / 2 && pause <= step, "{pause:?} for step {step:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= first);
    }
}
