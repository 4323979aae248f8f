//! Runs whose inputs follow from one number. `bolero` takes a seed for its first input only; the ones
//! after it are another run's with every run, so that a change could be refused for what it did not touch.

use crate::{Input, Mutants};
use bolero::{
    ValueGenerator,
    bolero_engine::{Seed, rng::Recommended},
    generator::bolero_generator::driver::{Options, Rng},
};
use rand::{RngCore, SeedableRng};
use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

/// `WEFT_FUZZ_SEED`, when it is set.
///
/// # Panics
/// When it is no number: the run would not be the one that was asked for.
pub fn seed() -> Option<u64> {
    let text = std::env::var("WEFT_FUZZ_SEED").ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("WEFT_FUZZ_SEED={text}: not a number")),
    )
}

/// How long a run is, and what its inputs follow from.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    seed: u64,
    most: usize,
    time: Duration,
}

impl Run {
    /// For as long as bolero would: `BOLERO_RANDOM_TEST_TIME_MS`, or a second.
    pub fn timed(seed: u64) -> Self {
        let ms = std::env::var("BOLERO_RANDOM_TEST_TIME_MS").ok();
        let ms = ms.and_then(|text| text.parse().ok()).unwrap_or(1000);
        Self {
            seed,
            most: usize::MAX,
            time: Duration::from_millis(ms),
        }
    }

    /// For so many inputs.
    pub fn counted(seed: u64, most: usize) -> Self {
        Self {
            seed,
            most,
            time: Duration::MAX,
        }
    }

    /// Tries inputs; returns how many.
    ///
    /// # Panics
    /// With the property's own panic, after the failing input was printed with bolero's seed for it.
    pub fn over(self, mutants: &Mutants, property: impl Fn(&Input)) -> usize {
        let mut seeds = Recommended::seed_from_u64(self.seed);
        let begun = Instant::now();
        let mut tried = 0;
        while tried < self.most && begun.elapsed() < self.time {
            let mut bytes = [0; size_of::<Seed>()];
            seeds.fill_bytes(&mut bytes);
            let mut driver = Rng::new(Recommended::from_seed(bytes), &Options::default());
            tried += 1;
            let Some(input) = mutants.generate(&mut driver) else {
                continue;
            };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| property(&input))) {
                let seed = Seed::from_le_bytes(bytes);
                eprintln!("input {tried} fails: {input:?}\nBOLERO_RANDOM_SEED={seed} begins by it");
                resume_unwind(panic);
            }
        }
        // As bolero's own line has it, for `cargo xtask fuzz`.
        println!("seed {} | rng inputs: {tried} | ", self.seed);
        tried
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Corpus;
    use std::cell::RefCell;

    fn inputs(seed: u64) -> Vec<Input> {
        let seen = RefCell::new(Vec::new());
        let mutants = Corpus::of(["length=3;abc"]).mutants();
        Run::counted(seed, 200).over(&mutants, |input| seen.borrow_mut().push(input.clone()));
        seen.into_inner()
    }

    #[test]
    fn the_same_seed_is_the_same_run_and_another_is_not() {
        assert!(inputs(1).len() > 150);
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
    }

    #[test]
    fn a_fault_ends_the_run_with_its_own_words() {
        let mutants = Corpus::of(["length=3;abc"]).mutants();
        let run = || Run::counted(1, 20_000).over(&mutants, |i| assert!(i.0.len() < 13, "too long"));
        let panic = catch_unwind(run).expect_err("a mutant is longer");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"too long"));
    }
}
