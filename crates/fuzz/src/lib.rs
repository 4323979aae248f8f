//! Fuzz targets for parsers of bytes from outside: inputs that are nearly right.
//!
//! Random bytes hardly get past the first check of a parser. A target has a corpus of real inputs
//! instead, and what is tried are mutants of them: bits, lengths and tokens changed, pieces of two
//! put together. [`target!`] runs a property over the corpus and over mutants, through `bolero`:
//! for a second under `cargo test`, for as long as `cargo xtask fuzz` says, and with `cargo bolero`
//! under a fuzzer that follows coverage. [`finds!`] shows that a target notices a fault.
//!
//! A failure prints the input, as small as it could be made, and `BOLERO_RANDOM_SEED=…`, with which the
//! same test begins by that input. Targets are tests whose names begin with `fuzz_`.
//!
//! Inputs differ from run to run, unless `WEFT_FUZZ_SEED=<number>` is set: then the nth input of a target
//! is the same in every run and on every machine, as continuous integration wants it.

mod mutant;
mod seeded;

pub use bolero;
pub use mutant::{Input, Mutants};
pub use seeded::{Run, seed};

use std::{panic::AssertUnwindSafe, path::Path};

/// Real inputs, and words that the format is made of.
#[derive(Debug, Clone, Default)]
pub struct Corpus {
    seeds: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
}

impl Corpus {
    /// The files of a folder; it must be there and hold some.
    ///
    /// # Panics
    /// When it can not be read or is empty: a target without its corpus would test next to nothing.
    pub fn read(folder: &Path) -> Self {
        let list = std::fs::read_dir(folder);
        let list = list.unwrap_or_else(|e| panic!("corpus {}: {e}", folder.display()));
        let mut files: Vec<_> = list.filter_map(|e| Some(e.ok()?.path())).collect();
        // The same seed is the same input on every machine.
        files.sort();
        let seeds: Vec<Vec<u8>> = files.iter().filter_map(|f| std::fs::read(f).ok()).collect();
        assert!(!seeds.is_empty(), "corpus {} is empty", folder.display());
        Self {
            seeds,
            words: Vec::new(),
        }
    }

    /// Inputs that a test makes itself.
    pub fn of<T: Into<Vec<u8>>>(inputs: impl IntoIterator<Item = T>) -> Self {
        Self {
            seeds: inputs.into_iter().map(Into::into).collect(),
            words: Vec::new(),
        }
    }

    /// More inputs.
    pub fn and<T: Into<Vec<u8>>>(mut self, inputs: impl IntoIterator<Item = T>) -> Self {
        self.seeds.extend(inputs.into_iter().map(Into::into));
        self
    }

    /// Words to be put in here and there.
    pub fn words<T: Into<Vec<u8>>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        self.words.extend(words.into_iter().map(Into::into));
        self
    }

    /// The inputs as they are.
    pub fn seeds(&self) -> &[Vec<u8>] {
        &self.seeds
    }

    /// What makes mutants of them.
    pub fn mutants(&self) -> Mutants {
        Mutants::of(self.seeds.clone(), self.words.clone())
    }
}

/// A property that a panic does not leave half-done; targets assert on their input alone.
#[doc(hidden)]
#[derive(Debug)]
pub struct Property<F>(AssertUnwindSafe<F>);

impl<F: Fn(&[u8])> Property<F> {
    /// Wraps it.
    pub fn new(property: F) -> Self {
        Self(AssertUnwindSafe(property))
    }

    /// Asserts it of one input.
    pub fn assert(&self, input: &[u8]) {
        (self.0.0)(input);
    }
}

/// Runs a property, a closure that panics on a fault, over a [`Corpus`] and its mutants.
#[macro_export]
macro_rules! target {
    ($corpus:expr, $property:expr) => {{
        let corpus: $crate::Corpus = $corpus;
        let property = $crate::Property::new($property);
        for seed in corpus.seeds() {
            property.assert(seed);
        }
        match $crate::seed() {
            Some(seed) => {
                $crate::Run::timed(seed).over(&corpus.mutants(), |input| property.assert(&input.0));
            }
            None => $crate::bolero::check!()
                .with_generator(corpus.mutants())
                .for_each(|input: &$crate::Input| property.assert(&input.0)),
        }
    }};
}

/// Whether a target notices: true when the property fails on a mutant. At most so many are tried.
#[macro_export]
macro_rules! finds {
    ($tries:expr, $corpus:expr, $property:expr) => {{
        let corpus: $crate::Corpus = $corpus;
        let property = $crate::Property::new($property);
        let run = || match $crate::seed() {
            Some(seed) => {
                $crate::Run::counted(seed, $tries).over(&corpus.mutants(), |input| property.assert(&input.0));
            }
            None => $crate::bolero::check!()
                .with_generator(corpus.mutants())
                .with_iterations($tries)
                .with_shrink_time(::std::time::Duration::ZERO)
                .for_each(|input: &$crate::Input| property.assert(&input.0)),
        };
        ::std::panic::catch_unwind(::std::panic::AssertUnwindSafe(run)).is_err()
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus() -> Corpus {
        Corpus::of(["length=3;abc", "length=5;hello"]).words(["length=", ";"])
    }

    /// A parser with a fault: it believes the length that it is told.
    fn parse(input: &[u8]) -> Option<&[u8]> {
        let text = std::str::from_utf8(input).ok()?;
        let (length, rest) = text.strip_prefix("length=")?.split_once(';')?;
        let length: usize = length.parse().ok()?;
        Some(&rest.as_bytes()[..length])
    }

    #[test]
    fn a_fault_is_found() {
        assert!(finds!(20_000, corpus(), |input| assert_ne!(
            parse(input),
            Some(&b"never"[..])
        )));
    }

    #[test]
    fn without_one_nothing_is() {
        let sound = |input: &[u8]| assert!(input.len() < 1 << 20);
        assert!(!finds!(2000, corpus(), sound));
        target!(corpus(), sound);
    }

    #[test]
    #[should_panic(expected = "corpus /nowhere")]
    fn a_target_without_its_corpus_fails() {
        Corpus::read(Path::new("/nowhere"));
    }
}
