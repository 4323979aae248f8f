//! How an input is changed.

use bolero::{Driver, ValueGenerator};
use std::{
    fmt,
    ops::Bound::{Excluded, Included},
};

/// Changes to one input.
const MOST_CHANGES: usize = 6;
/// Bytes of a mutant.
const MOST_BYTES: usize = 16 * 1024;
/// Values at which lengths and counters go wrong.
const EDGES: [u8; 8] = [0x00, 0x01, 0x7f, 0x80, 0x81, 0x82, 0xfe, 0xff];

/// One mutant; shown as text where it is one.
#[derive(Clone, PartialEq, Eq)]
pub struct Input(
    /// The bytes.
    pub Vec<u8>,
);

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) => write!(f, "{text:?}"),
            Err(_) => self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

/// Makes mutants of a corpus.
#[derive(Debug, Clone)]
pub struct Mutants {
    seeds: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
}

impl Mutants {
    pub(crate) fn of(mut seeds: Vec<Vec<u8>>, words: Vec<Vec<u8>>) -> Self {
        if seeds.is_empty() {
            seeds.push(Vec::new());
        }
        Self { seeds, words }
    }

    fn change<D: Driver>(&self, driver: &mut D, input: &mut Vec<u8>) -> Option<()> {
        let at = below(driver, input.len() + 1)?;
        match below(driver, 10)? {
            0 if at < input.len() => input[at] ^= 1 << below(driver, 8)?,
            1 if at < input.len() => input[at] = driver.produce::<u8>()?,
            2 if at < input.len() => input[at] = EDGES[below(driver, EDGES.len())?],
            3 if at < input.len() => input[at] = input[at].wrapping_add(step(driver)?),
            4 => input.truncate(at),
            5 => drop(input.drain(at..(at + below(driver, 16)?).min(input.len()))),
            6 => {
                let byte = driver.produce::<u8>()?;
                let run = below(driver, 64)?;
                input.splice(at..at, std::iter::repeat_n(byte, run));
            }
            // A piece of it once more.
            7 => {
                let piece = input[at..(at + below(driver, 64)?).min(input.len())].to_vec();
                let to = below(driver, input.len() + 1)?;
                input.splice(to..to, piece);
            }
            8 if !self.words.is_empty() => {
                let word = self.words[below(driver, self.words.len())?].iter().copied();
                // In place of what is there, or before it.
                let end = if driver.produce::<bool>()? {
                    (at + word.len()).min(input.len())
                } else {
                    at
                };
                input.splice(at..end, word);
            }
            // The head of this one and the tail of another.
            _ => {
                let other = &self.seeds[below(driver, self.seeds.len())?];
                let from = below(driver, other.len() + 1)?;
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
        Some(())
    }
}

impl ValueGenerator for Mutants {
    type Output = Input;

    fn generate<D: Driver>(&self, driver: &mut D) -> Option<Input> {
        let mut input = self.seeds[below(driver, self.seeds.len())?].clone();
        for _ in 0..=below(driver, MOST_CHANGES)? {
            self.change(driver, &mut input)?;
        }
        input.truncate(MOST_BYTES);
        Some(Input(input))
    }
}

fn below<D: Driver>(driver: &mut D, end: usize) -> Option<usize> {
    driver.gen_usize(Included(&0), Excluded(&end.max(1)))
}

/// One up or down.
fn step<D: Driver>(driver: &mut D) -> Option<u8> {
    Some(if driver.produce::<bool>()? { 1 } else { u8::MAX })
}
