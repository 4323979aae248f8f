//! The key-encryption key: a file that must be there, besides the database, for the authority's
//! private keys to be read. A copy or backup of the database alone gives nothing away.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand::fill,
};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// What the file starts with, so that another file is not taken for it.
const PREFIX: &str = "weft-kek-v1:";
const KEY_BYTES: usize = 32;

/// Why the key file or what it sealed can not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Not there, although the database holds keys.
    #[error(
        "key file {} is missing, and the keys in the database can not be read without it; put it \
         back from a backup, or move the database away to start a new authority",
        .0.display()
    )]
    Missing(PathBuf),
    /// Not readable, not writable.
    #[error("key file {} can not be used: {source}; it must belong to the user this runs as", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Open to others.
    #[error("key file {} may be read by others (mode {mode:o}); run `chmod 600 {}`", path.display(), path.display())]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Another file, or a damaged one.
    #[error("key file {} is damaged or another file; put it back from a backup", .0.display())]
    Malformed(PathBuf),
    /// The wrong key, or changed data.
    #[error("key file {} does not open the keys in the database; put back the one they were made with", .0.display())]
    WrongKey(PathBuf),
    /// The random generator or the cipher failed.
    #[error("sealing a key failed")]
    Seal,
}

/// The open key.
pub struct KeyFile {
    path: PathBuf,
    key: RandomizedNonceKey,
}

impl std::fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyFile")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl KeyFile {
    /// Reads the file. If it is not there, makes it when `may_create`.
    pub fn open(path: &Path, may_create: bool) -> Result<Self, KeyFileError> {
        let io_error = |source| KeyFileError::Io {
            path: path.to_path_buf(),
            source,
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => Zeroizing::new(text),
            Err(e) if e.kind() == io::ErrorKind::NotFound && may_create => create(path).map_err(io_error)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(KeyFileError::Missing(path.to_path_buf()));
            }
            Err(e) => return Err(io_error(e)),
        };
        let mode = fs::metadata(path).map_err(io_error)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyFileError::Permissions {
                path: path.to_path_buf(),
                mode,
            });
        }
        let malformed = || KeyFileError::Malformed(path.to_path_buf());
        let mut key = Zeroizing::new([0u8; KEY_BYTES]);
        let encoded = text.trim().strip_prefix(PREFIX).ok_or_else(malformed)?;
        hex::decode_to_slice(encoded, &mut key[..]).map_err(|_| malformed())?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &key[..]).map_err(|_| malformed())?;
        Ok(Self {
            path: path.to_path_buf(),
            key,
        })
    }

    /// Encrypts `secret`, bound to `label`: nonce, then ciphertext with tag.
    pub fn seal(&self, label: &str, secret: &[u8]) -> Result<Vec<u8>, KeyFileError> {
        let mut data = secret.to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(label.as_bytes()), &mut data)
            .map_err(|_| KeyFileError::Seal)?;
        Ok([nonce.as_ref().as_slice(), &data].concat())
    }

    /// Decrypts what [`KeyFile::seal`] made with the same label.
    pub fn open_sealed(&self, label: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
        let wrong = || KeyFileError::WrongKey(self.path.clone());
        let (nonce, data) = sealed.split_at_checked(NONCE_LEN).ok_or_else(wrong)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
        let mut data = Zeroizing::new(data.to_vec());
        let length = self
            .key
            .open_in_place(nonce, Aad::from(label.as_bytes()), &mut data)
            .map_err(|_| wrong())?
            .len();
        data.truncate(length);
        Ok(data)
    }
}

/// Makes the file with a fresh key. It is on the disk before anything is sealed with it.
fn create(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut key = Zeroizing::new([0u8; KEY_BYTES]);
    fill(&mut key[..]).map_err(|_| io::Error::other("no randomness"))?;
    let text = Zeroizing::new(format!(
        "{PREFIX}{}\n",
        Zeroizing::new(hex::encode(&key[..])).as_str()
    ));
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    // Written aside and moved in place, so that a crash never leaves half a key.
    let aside = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    fs::File::open(folder)?.sync_all()?;
    Ok(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn sealed_keys_open_with_the_same_file_and_label_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        let file = KeyFile::open(&path, true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let sealed = file.seal("root", b"secret").unwrap();
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert_ne!(
            sealed,
            file.seal("root", b"secret").unwrap(),
            "a nonce was used twice"
        );

        let again = KeyFile::open(&path, false).unwrap();
        assert_eq!(again.open_sealed("root", &sealed).unwrap().as_slice(), b"secret");
        assert!(again.open_sealed("issuer", &sealed).is_err());
        let other = KeyFile::open(&dir.path().join("other"), true).unwrap();
        assert!(matches!(
            other.open_sealed("root", &sealed),
            Err(KeyFileError::WrongKey(_))
        ));
        for cut in [0, 5, sealed.len() - 1] {
            assert!(again.open_sealed("root", &sealed[..cut]).is_err());
        }
    }

    #[test]
    fn a_missing_open_or_damaged_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        assert!(matches!(
            KeyFile::open(&path, false),
            Err(KeyFileError::Missing(_))
        ));
        KeyFile::open(&path, true).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = KeyFile::open(&path, false).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "something else").unwrap();
        assert!(matches!(
            KeyFile::open(&path, false),
            Err(KeyFileError::Malformed(_))
        ));
    }
}
