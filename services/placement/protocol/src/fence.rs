//! What a store keeps per slot, so that whoever was replaced can not write any more.
//!
//! Compared and raised inside the store's own transaction, together with what is written. A store
//! that has no transactions can not do that and is no store for actors.

/// The epoch that a slot was last claimed under; 0 before the first claim.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(u64);

/// A write or a claim under an epoch that does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fenced {
    /// Somebody has claimed the slot since.
    #[error("epoch {got} is over: the slot was claimed under epoch {claimed}")]
    Over {
        /// The epoch of the write.
        got: u64,
        /// The epoch of the claim.
        claimed: u64,
    },
    /// The writer has not claimed the slot.
    #[error("epoch {got} was not claimed yet: the slot's last claim is of epoch {claimed}")]
    NotClaimed {
        /// The epoch of the write.
        got: u64,
        /// The epoch of the claim.
        claimed: u64,
    },
}

impl Fence {
    /// As it was stored.
    pub fn new(epoch: u64) -> Self {
        Self(epoch)
    }

    /// What is to be stored.
    pub fn epoch(self) -> u64 {
        self.0
    }

    /// The owner of `epoch` is about to run its first turn: from now on nobody of an older epoch writes.
    /// What the owner reads after that is the last that was written before.
    pub fn claim(&mut self, epoch: u64) -> Result<(), Fenced> {
        if epoch < self.0 {
            return Err(Fenced::Over {
                got: epoch,
                claimed: self.0,
            });
        }
        self.0 = epoch;
        Ok(())
    }

    /// Whether a write under `epoch` counts. Only a claim raises the fence: a first write that did so too
    /// could rest on what was read before an older owner's last write.
    pub fn admit(self, epoch: u64) -> Result<(), Fenced> {
        let (got, claimed) = (epoch, self.0);
        match epoch.cmp(&self.0) {
            std::cmp::Ordering::Less => Err(Fenced::Over { got, claimed }),
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(Fenced::NotClaimed { got, claimed }),
        }
    }
}
