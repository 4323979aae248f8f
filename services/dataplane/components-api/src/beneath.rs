//! Files beneath a folder, and never outside it: each step of a path is opened by `openat2` with
//! RESOLVE_BENEATH, and symbolic links are not followed.
//!
//! These calls wait for the disk; run them where that is allowed.

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, renameat},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

/// A file that is read may have so many bytes.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// So many files are listed at most, so deep.
const MAX_LISTED: usize = 10_000;
const MAX_DEPTH: usize = 32;
/// Parts of a path.
const MAX_PARTS: usize = 64;

/// Why a path is none.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// It can not be one.
    #[error("{0}")]
    Path(&'static str),
    /// The system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for PathError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl PathError {
    /// Whether nothing is there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io(e) if e.kind() == io::ErrorKind::NotFound)
    }
}

/// A path's parts: `.` goes, `..` takes the part before it, and stops at the root.
pub fn parts(path: &str) -> Result<Vec<String>, PathError> {
    let mut parts: Vec<String> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part if part.contains('\0') => return Err(PathError::Path("a path has no NUL in it")),
            part if part.len() > 255 => return Err(PathError::Path("a name has at most 255 bytes")),
            part => parts.push(part.to_owned()),
        }
    }
    match parts.len() > MAX_PARTS {
        true => Err(PathError::Path("the path has too many parts")),
        false => Ok(parts),
    }
}

/// A folder.
#[derive(Debug)]
pub struct Folder(OwnedFd);

fn open(at: &OwnedFd, name: &str, flags: OFlag, mode: Mode) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .mode(mode)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(at, name, how)
}

fn is(stat: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind
}

impl Folder {
    /// At a path of the agent's own choice, made when it is not there.
    pub fn make(path: &Path) -> Result<Self, PathError> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(nix::fcntl::open(path, flags, Mode::empty())?))
    }

    fn step(&self, name: &str) -> Result<Self, PathError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        Ok(Self(open(&self.0, name, flags, Mode::empty())?))
    }

    /// A folder in it.
    pub fn enter(&self, parts: &[String]) -> Result<Self, PathError> {
        let mut at = Self(self.0.try_clone()?);
        for part in parts {
            at = at.step(part)?;
        }
        Ok(at)
    }

    /// A folder in it, made when it is not there.
    pub fn make_in(&self, parts: &[String]) -> Result<Self, PathError> {
        let mut at = Self(self.0.try_clone()?);
        for part in parts {
            match mkdirat(&at.0, part.as_str(), Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => return Err(e.into()),
            }
            at = at.step(part)?;
        }
        Ok(at)
    }

    /// Writes a file whole: who reads it meanwhile sees the one before.
    pub fn write(&self, name: &str, data: &[u8]) -> Result<(), PathError> {
        let beside = format!(".{}.part", uuid::Uuid::new_v4());
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let mut file = File::from(open(&self.0, &beside, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        let written = file.write_all(data).map_err(PathError::from).and_then(|()| {
            // A folder is not replaced by a file.
            match fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(there) if is(&there, SFlag::S_IFDIR) => return Err(Errno::EISDIR.into()),
                _ => {}
            }
            Ok(renameat(&self.0, beside.as_str(), &self.0, name)?)
        });
        if written.is_err() {
            let _ = unlinkat(&self.0, beside.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        written
    }

    /// Reads a file whole.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, PathError> {
        // Of a pipe or a device nobody is waited for.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        let file = open(&self.0, name, flags, Mode::empty())?;
        let stat = fstat(&file)?;
        if is(&stat, SFlag::S_IFDIR) {
            return Err(Errno::EISDIR.into());
        }
        if !is(&stat, SFlag::S_IFREG) {
            return Err(PathError::Path("it is no regular file"));
        }
        let mut data = Vec::new();
        File::from(file).take(MAX_FILE_BYTES + 1).read_to_end(&mut data)?;
        match data.len() as u64 > MAX_FILE_BYTES {
            true => Err(PathError::Path("it has more than 16 MiB")),
            false => Ok(data),
        }
    }

    /// Removes a file, or an empty folder.
    pub fn remove(&self, name: &str) -> Result<(), PathError> {
        match unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => Ok(unlinkat(&self.0, name, UnlinkatFlags::RemoveDir)?),
            done => Ok(done?),
        }
    }

    /// All files in it and below, by their paths from here, sorted.
    pub fn list(&self) -> Result<Vec<String>, PathError> {
        let mut found = Vec::new();
        self.collect("", 0, &mut found)?;
        found.sort_unstable();
        Ok(found)
    }

    fn collect(&self, prefix: &str, depth: usize, found: &mut Vec<String>) -> Result<(), PathError> {
        if depth > MAX_DEPTH {
            return Err(PathError::Path("folders are too deep to list"));
        }
        // By the descriptor: the path may have become another folder's.
        for entry in std::fs::read_dir(format!("/proc/self/fd/{}", self.0.as_raw_fd()))? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with('.') && name.ends_with(".part") {
                continue;
            }
            let path = format!("{prefix}{name}");
            if entry.file_type()?.is_dir() {
                self.step(&name)?.collect(&format!("{path}/"), depth + 1, found)?;
            } else {
                found.push(path);
            }
            if found.len() > MAX_LISTED {
                return Err(PathError::Path("more than 10000 files"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    fn path(text: &str) -> Vec<String> {
        parts(text).unwrap()
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        let folder = Folder::make(dir.path()).unwrap();
        symlink(outside.path(), dir.path().join("out")).unwrap();
        symlink(outside.path().join("secret"), dir.path().join("link")).unwrap();
        assert!(folder.enter(&path("out")).is_err());
        assert!(folder.make_in(&path("out/new")).is_err());
        assert!(folder.read("link").is_err());
        // What is written takes the link's place, not what it points to.
        folder.write("link", b"y").unwrap();
        assert_eq!(folder.read("link").unwrap(), b"y");
        assert_eq!(std::fs::read(outside.path().join("secret")).unwrap(), b"x");
        // Its twin: a file at the same place is read.
        folder.write("plain", b"z").unwrap();
        assert_eq!(folder.read("plain").unwrap(), b"z");
    }

    #[test]
    fn files_and_folders_are_made_listed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::make(&dir.path().join("a/b")).unwrap();
        folder.make_in(&path("x/y")).unwrap().write("f", b"1").unwrap();
        folder.write("g", b"2").unwrap();
        assert_eq!(folder.list().unwrap(), ["g", "x/y/f"]);
        assert!(folder.write("x", b"a folder is there").is_err());
        assert_eq!(folder.list().unwrap(), ["g", "x/y/f"], "nothing is left beside");
        assert!(folder.read("x").is_err() && folder.read("none").unwrap_err().is_not_found());
        folder.remove("g").unwrap();
        assert!(folder.remove("g").unwrap_err().is_not_found());
        assert!(folder.remove("x").is_err(), "not empty");
        let fifo = dir.path().join("a/b/fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        assert_eq!(
            folder.read("fifo").unwrap_err().to_string(),
            "it is no regular file"
        );
    }

    proptest! {
        /// Whatever is asked for, no part leads up or away.
        #[test]
        fn parts_stay_beneath(text in "[a./\0-]{0,40}") {
            if let Ok(parts) = parts(&text) {
                for part in parts {
                    prop_assert!(!part.is_empty() && part != "." && part != ".." && !part.contains('/'));
                }
            }
        }
    }
}
