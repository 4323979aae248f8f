//! A ring buffer's two shared memories, as its only reader sees them.
//!
//! The kernel gives out a page with the reader's position, which the reader writes, then a page with
//! the writers' position and the data, mapped twice in a row so that no record is in two parts.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::mapping::Mapping;
use crate::sys;

/// `BPF_MAP_TYPE_RINGBUF`.
const KIND: u32 = 27;
/// Bits of a record's first word: it is being written; it was given up.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
/// A record's length and its place, before it.
const HEADER: u64 = 8;

/// The reading end. There must be one per buffer.
#[derive(Debug)]
pub(crate) struct Ring {
    fd: OwnedFd,
    reader: Mapping,
    writers: Mapping,
    page: usize,
    size: u64,
    position: u64,
}

impl Ring {
    /// Fails with `InvalidData` when the map is no ring buffer.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let (kind, size) = sys::kind_and_size(fd.as_fd())?;
        if kind != KIND || !size.is_power_of_two() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("map of type {kind}"),
            ));
        }
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?
            .and_then(|page| usize::try_from(page).ok())
            .ok_or(io::ErrorKind::Unsupported)?;
        let reader = Mapping::new(fd.as_fd(), page, 0, true)?;
        let writers = Mapping::new(fd.as_fd(), page + 2 * size as usize, page, false)?;
        let mut ring = Self {
            fd,
            reader,
            writers,
            page,
            size: u64::from(size),
            position: 0,
        };
        ring.position = ring.reader_position().load(Ordering::Acquire);
        Ok(ring)
    }

    /// Goes on at the position that the kernel knows: another reader's, which has ended.
    pub(crate) fn resume(&mut self) {
        self.position = self.reader_position().load(Ordering::Acquire);
    }

    fn reader_position(&self) -> &AtomicU64 {
        // SAFETY: the page begins with the position, aligned, and lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.reader.at(0).cast()) }
    }

    fn writers_position(&self) -> u64 {
        let position = self.writers.at(0).cast::<u64>();
        // SAFETY: as above. The page is read-only, and an atomic load does not write.
        unsafe { &*position.cast::<AtomicU64>() }.load(Ordering::Acquire)
    }

    /// Takes the next record, if it is written already.
    pub(crate) fn next<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        while self.position < self.writers_position() {
            let place = self.page + (self.position & (self.size - 1)) as usize;
            // SAFETY: records begin at multiples of 8 inside of the data, which lives as long as `self`.
            let first = unsafe { &*self.writers.at(place).cast::<AtomicU32>() }.load(Ordering::Acquire);
            if first & BUSY != 0 {
                return None;
            }
            let length = u64::from(first & !(BUSY | DISCARDED));
            // The kernel lets no record be longer than the buffer.
            let length = length.min(self.size - HEADER);
            let end = self.position + (length + HEADER).next_multiple_of(8);
            if first & DISCARDED != 0 {
                self.advance(end);
                continue;
            }
            let start = self.writers.at(place + HEADER as usize);
            // SAFETY: inside of the data and its second mapping; the kernel does not write there again
            // before the position is past it.
            let value = read(unsafe { std::slice::from_raw_parts(start, length as usize) });
            self.advance(end);
            return Some(value);
        }
        None
    }

    fn advance(&mut self, to: u64) {
        self.position = to;
        self.reader_position().store(to, Ordering::Release);
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
