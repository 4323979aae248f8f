//! From actor id to slot: fixed for ever, since two nodes that disagree would run one actor twice.

use std::fmt;
use twox_hash::XxHash3_64;

/// How many slots an actor type has unless configured otherwise.
pub const DEFAULT_SLOTS: SlotCount = SlotCount { bits: 12 };

/// A number of slots: a power of two between 2 and 65,536.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotCount {
    bits: u8,
}

/// Why a number can not be a number of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} slots: must be a power of two from 2 to 65536")]
pub struct SlotCountError(pub u32);

impl SlotCount {
    /// Checks and wraps.
    pub fn new(slots: u32) -> Result<Self, SlotCountError> {
        if !slots.is_power_of_two() || !(2..=65_536).contains(&slots) {
            return Err(SlotCountError(slots));
        }
        // At most 16.
        Ok(Self {
            bits: slots.trailing_zeros() as u8,
        })
    }

    /// The number.
    pub fn get(self) -> u32 {
        1 << self.bits
    }

    /// The number, to index with.
    pub fn len(self) -> usize {
        1 << self.bits
    }

    /// Never: there are at least two.
    pub fn is_empty(self) -> bool {
        false
    }

    /// The slot of an actor id: the upper bits of its xxh3-64 with seed 0. Bit-stable on every
    /// machine and in every version.
    pub fn slot_of(self, actor_id: &str) -> u32 {
        (XxHash3_64::oneshot(actor_id.as_bytes()) >> (64 - u32::from(self.bits))) as u32
    }
}

impl Default for SlotCount {
    fn default() -> Self {
        DEFAULT_SLOTS
    }
}

impl fmt::Display for SlotCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}
