//! The file of the last good state: with it an agent that starts while the control plane is down
//! serves what it served before.
//!
//! Owns the file's form: a magic line, SHA-256 of the rest, the rest (one protobuf message). It is
//! written beside and renamed, so it is whole or the old one; what can not be read is refused.

use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

const MAGIC: &[u8; 8] = b"WEFTST1\n";
const SUM: usize = 32;
/// A file above this is not read, a state above this not written.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// Why a state file can not be used.
#[derive(Debug, thiserror::Error)]
pub enum PersistError {
    /// The file system said no.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Cut, changed, or of another kind.
    #[error("{path} is damaged ({what}); it is ignored, the next update writes it anew", path = path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// Over the bound.
    #[error("{path} would be {bytes} bytes, over the bound of {MAX_BYTES}", path = path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// How large.
        bytes: u64,
    },
}

/// Writes `content` so that a crash at any moment leaves the old file or the new one.
pub fn write(path: &Path, content: &[u8]) -> Result<(), PersistError> {
    put(path, content)?
        .sync_all()
        .map_err(|source| PersistError::Io {
            action: "sync",
            path: path.into(),
            source,
        })?;
    replace(path)?;
    if let Some(folder) = path.parent().and_then(|p| File::open(p).ok()) {
        // The name itself must reach the disk; where a folder can not be synced, nothing is lost
        // but the newest state.
        let _ = folder.sync_all();
    }
    Ok(())
}

/// The same, but when the machine itself stops within seconds the file may be gone or damaged, which
/// [`read`] tells: for what can be had again. Waiting for the disk costs more than all else of a start.
pub fn write_soon(path: &Path, content: &[u8]) -> Result<(), PersistError> {
    put(path, content)?;
    replace(path)
}

fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn replace(path: &Path) -> Result<(), PersistError> {
    fs::rename(beside(path), path).map_err(|source| PersistError::Io {
        action: "replace",
        path: path.into(),
        source,
    })
}

fn put(path: &Path, content: &[u8]) -> Result<File, PersistError> {
    let bytes = content.len() as u64;
    if bytes > MAX_BYTES {
        return Err(PersistError::TooLarge {
            path: path.into(),
            bytes,
        });
    }
    let fail = |action| {
        move |source| PersistError::Io {
            action,
            path: path.into(),
            source,
        }
    };
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(beside(path))
        .map_err(fail("create"))?;
    let parts: [&[u8]; 3] = [MAGIC, &Sha256::digest(content), content];
    for part in parts {
        file.write_all(part).map_err(fail("write"))?;
    }
    Ok(file)
}

/// Reads what [`write`] wrote; `None` when there is no file.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, PersistError> {
    let fail = |source| PersistError::Io {
        action: "read",
        path: path.into(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail(e)),
    };
    let damaged = |what| PersistError::Damaged {
        path: path.into(),
        what,
    };
    let mut all = Vec::new();
    let most = MAX_BYTES + (MAGIC.len() + SUM) as u64;
    file.take(most + 1).read_to_end(&mut all).map_err(fail)?;
    if all.len() as u64 > most {
        return Err(damaged("too large"));
    }
    decode(&all)
        .map(|content| Some(content.to_vec()))
        .map_err(damaged)
}

fn decode(all: &[u8]) -> Result<&[u8], &'static str> {
    let rest = all
        .strip_prefix(MAGIC.as_slice())
        .ok_or("no state file of this version")?;
    let (sum, content) = rest.split_at_checked(SUM).ok_or("cut short")?;
    if Sha256::digest(content)[..] != *sum {
        return Err("checksum differs");
    }
    Ok(content)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_written_is_read_and_only_by_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert!(read(&path).unwrap().is_none());
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
        write_soon(&path, b"three").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"three");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_changed_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        write(&path, b"something").unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(read(&path).is_err(), "byte {at} changed unseen");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(read(&path).is_err(), "cut at {at} unseen");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            let mut headed = MAGIC.to_vec();
            headed.extend(bytes);
            let _ = decode(&headed);
        }
    }
}
