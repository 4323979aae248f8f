//! Gives back to the system what the service does not need at the moment.
//!
//! Ten thousand certificates at a cold start leave the heap full of holes, of which the allocator gives
//! back by itself only what is at its end: with 12 MB in use it held 23. And of the program's own pages
//! the kernel maps many around each one that is used; those of the start, and of a burst, stay mapped
//! although nothing uses them. They are in the page cache when they are needed after all.

use std::{ffi::c_void, fs};

/// Has all threads allocate from one place. To be called before there are threads: each would get a
/// place of its own, with holes of its own.
pub fn keep_in_one_place() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number inside of the allocator, which has a lock of its own.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what the heap does not use: some milliseconds of work.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator locks what it looks at; what is in use stays where it is.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps the program's pages that are as they are in its files. Those that are used next come back from
/// the page cache.
pub(crate) fn unmap_program() {
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (from, to) in maps.lines().filter_map(unchanged) {
        // SAFETY: a private mapping of a file that the program only ever reads: what is dropped is read
        // from the file again. Nothing in it was relocated or written.
        unsafe {
            libc::madvise(from as *mut c_void, to - from, libc::MADV_DONTNEED);
        }
    }
}

/// The range of a mapping that is as it is in its file: code, or constants at the file's beginning.
/// Constants behind the code are left alone, since the loader has written addresses into them.
fn unchanged(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, rights, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let path = fields.nth(2)?;
    let constants = rights == "r--p" && offset.bytes().all(|digit| digit == b'0');
    if !path.starts_with('/') || !(rights == "r-xp" || constants) {
        return None;
    }
    let (from, to) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (from, to) = (number(from)?, number(to)?);
    (from < to).then_some((from, to))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nothing_was_written_to_is_unmapped() {
        let line = |text: &str| unchanged(text);
        let code = "55d0-55f0 r-xp 00626000 fe:00 612 /usr/bin/weft-identity";
        assert_eq!(line(code), Some((0x55d0, 0x55f0)));
        let constants = "1000-2000 r--p 00000000 fe:00 612 /usr/bin/weft-identity";
        assert_eq!(line(constants), Some((0x1000, 0x2000)));
        for other in [
            // With addresses that the loader wrote.
            "1000-2000 r--p 018ba000 fe:00 612 /usr/bin/weft-identity",
            "1000-2000 rw-p 00000000 fe:00 612 /usr/bin/weft-identity",
            "1000-2000 rw-s 00000000 fe:00 612 /var/lib/weft/identity/identity.db-shm",
            "1000-2000 r--s 00000000 fe:00 612 /etc/ld.so.cache",
            "1000-2000 r-xp 00000000 00:00 0 [vdso]",
            "1000-2000 r-xp 00000000 00:00 0",
            "2000-1000 r-xp 00000000 fe:00 612 /usr/bin/weft-identity",
            "",
        ] {
            assert_eq!(line(other), None, "{other}");
        }
    }

    fn from_files() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("RssFile:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn the_program_goes_on_with_less() {
        keep_in_one_place();
        let kept: Vec<Box<[u8; 1024]>> = (0..1000).map(|n| Box::new([n as u8; 1024])).collect();
        // Reads all of the program's code, as far as it is a page cache's.
        let exe = fs::read("/proc/self/exe").unwrap();
        drop(exe);
        let before = from_files();
        trim_heap();
        unmap_program();
        let after = from_files();
        assert!(after < before, "{before} kB before, {after} kB after");
        assert!(
            kept.iter()
                .enumerate()
                .all(|(n, page)| page.iter().all(|b| *b == n as u8))
        );
    }
}
