//! Memory that the kernel shares: a map's, by its descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// Unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<libc::c_void>,
    length: usize,
}

// SAFETY: memory of the kernel that any thread may read; positions in it are atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(fd: BorrowedFd<'_>, length: usize, offset: usize, write: bool) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let rights = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
        let null = std::ptr::null_mut();
        // SAFETY: a new mapping at a place of the kernel's choice, where nothing else is.
        let start = unsafe { libc::mmap(null, length, rights, libc::MAP_SHARED, fd.as_raw_fd(), offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { start, length })
    }

    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.length);
        // SAFETY: callers stay below the length, which is that of one mapping.
        unsafe { self.start.cast::<u8>().add(offset) }.as_ptr()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nobody borrows from it any more. It cannot fail for a mapping
        // that exists, and there would be nothing to do about it.
        unsafe { libc::munmap(self.start.as_ptr(), self.length) };
    }
}
