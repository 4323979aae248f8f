//! The epoch of the tables: what the programs remember of a connection holds while it stays the same.
//!
//! It goes up after each change, in memory that all writers share, so that nobody's addition is lost.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;
use crate::mapping::Mapping;
use crate::sys;

pub(crate) const NAME: &str = "epoch";
/// `BPF_MAP_TYPE_ARRAY`.
const KIND: u32 = 2;

/// See the module.
#[derive(Debug)]
pub(crate) struct Epoch(Mapping);

impl Epoch {
    /// Takes the descriptor of the map `epoch`.
    pub(crate) fn from_fd(fd: &OwnedFd) -> Result<Self, Error> {
        let mapped = || {
            let (kind, _) = sys::kind_and_size(fd.as_fd())?;
            if kind != KIND {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("map of type {kind}"),
                ));
            }
            // The kernel refuses to map an array that is not made for it.
            Mapping::new(fd.as_fd(), size_of::<u64>(), 0, true)
        };
        mapped().map(Self).map_err(|source| Error::Map {
            map: NAME,
            action: "share the memory of",
            source,
        })
    }

    /// Something that the programs look up has changed.
    pub(crate) fn next(&self) {
        // SAFETY: the map's first value, aligned to a page, and it lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.0.at(0).cast()) }.fetch_add(1, Ordering::SeqCst);
    }
}
