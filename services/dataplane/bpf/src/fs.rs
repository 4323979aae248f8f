//! The two file systems the loader stands on: cgroup v2, found and not assumed, and bpffs.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount, umount};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs};

use crate::error::Error;

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside version 1.
pub fn find_cgroup2() -> Result<PathBuf, Error> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    cgroup2_in(&mounts).ok_or(Error::NoCgroup2)
}

/// The first cgroup2 entry of a mounts table.
fn cgroup2_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (_device, target, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(unescape(target)))
    })
}

/// Blanks and backslashes are written as three octal digits there.
fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code.filter(u8::is_ascii) {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// The id by which the kernel's programs know a cgroup: the inode number of its folder.
pub fn cgroup_id(cgroup: &Path) -> Result<u64, Error> {
    let broken = |source| Error::Cgroup {
        path: cgroup.to_path_buf(),
        source,
    };
    let metadata = fs::metadata(cgroup).map_err(broken)?;
    let kind = statfs(cgroup)
        .map_err(|errno| broken(errno.into()))?
        .filesystem_type();
    if kind != CGROUP2_SUPER_MAGIC {
        return Err(broken(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a cgroup v2 folder",
        )));
    }
    Ok(metadata.ino())
}

/// How deep below the hierarchy's root a cgroup is; the root itself is at 0.
pub(crate) fn cgroup_level(cgroup: &Path) -> u32 {
    let is_cgroup =
        |folder: &&Path| statfs(*folder).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
    let folders = cgroup.ancestors().take_while(is_cgroup).count();
    u32::try_from(folders.saturating_sub(1)).unwrap_or(u32::MAX)
}

/// Whether `path`, or the nearest folder above it that exists, is on a bpf file system.
pub fn is_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find_map(|folder| statfs(folder).ok())
        .is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts a bpf file system at `path` unless one is there. Returns whether it did.
///
/// Whether a node may do this is its owner's decision; it needs `CAP_SYS_ADMIN`.
pub fn ensure_bpffs(path: &Path) -> Result<bool, Error> {
    if is_bpffs(path) {
        return Ok(false);
    }
    let failed = |source| Error::Mount {
        path: path.to_path_buf(),
        source,
    };
    fs::create_dir_all(path).map_err(failed)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700")).map_err(|errno| failed(errno.into()))?;
    Ok(true)
}

/// Where a node notes in its folder of sockets that it mounted a bpf file system: whoever clears up
/// after it must know whose that is.
const MOUNTED: &str = "mounted-bpffs";

/// Notes that `bpffs` was mounted for the node with this folder of sockets.
pub fn note_mount(bpffs: &Path, run_dir: &Path) -> io::Result<()> {
    fs::write(run_dir.join(MOUNTED), bpffs.as_os_str().as_encoded_bytes())
}

/// The bpf file system that a node mounted and has not unmounted.
pub fn mounted_by_weft(run_dir: &Path) -> Option<PathBuf> {
    let path = PathBuf::from(fs::read_to_string(run_dir.join(MOUNTED)).ok()?);
    (path.is_absolute() && is_bpffs(&path)).then_some(path)
}

/// Unmounts what [`note_mount`] noted, unless somebody else has pins there; says whether it did.
pub fn unmount_if_unused(bpffs: &Path, run_dir: &Path) -> Result<bool, Error> {
    let failed = |source| Error::Pin {
        path: bpffs.to_path_buf(),
        action: "unmount",
        source,
    };
    // The kernel puts two files into each bpf file system.
    let own = |entry: fs::DirEntry| entry.file_name() == "maps.debug" || entry.file_name() == "progs.debug";
    if !fs::read_dir(bpffs).map_err(failed)?.flatten().all(own) {
        return Ok(false);
    }
    umount(bpffs).map_err(|errno| failed(errno.into()))?;
    let _ = fs::remove_file(run_dir.join(MOUNTED));
    Ok(true)
}

/// The folder for a node's pins, `<bpffs>/weft/<node>`. bpffs allows no dots in names, node names
/// may have them and have no underscores: the one stands for the other.
pub fn pin_dir(bpffs: &Path, node: &str) -> PathBuf {
    bpffs.join("weft").join(node.replace('.', "_"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_hierarchy_is_found_by_its_kind() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_in(hybrid).unwrap(), Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(
            cgroup2_in("none /a\\040b\\134c cgroup2 rw 0 0").unwrap(),
            Path::new("/a b\\c")
        );
        assert_eq!(cgroup2_in("cgroup2 /x tmpfs rw 0 0"), None);
    }

    #[test]
    fn node_names_keep_apart() {
        let names = ["a.b", "a-b", "ab"].map(|name| pin_dir(Path::new("/b"), name));
        assert_eq!(names[0], Path::new("/b/weft/a_b"));
        assert!(names[0] != names[1] && names[1] != names[2]);
    }

    proptest! {
        #[test]
        fn any_table_is_read_without_panic(text in "(cgroup2|[ -~\\\\]|\n|é| ){0,200}") {
            let _ = cgroup2_in(&text);
        }
    }
}
