//! The key-encryption key: what must be there, besides the database, for the authority's private
//! keys to be read. A copy of the database alone gives nothing away. It is in a file, in an
//! environment variable, or what a command prints: the last is for keys that a KMS unwraps.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand::fill,
};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use zeroize::Zeroizing;

/// What the text starts with, so that something else is not taken for it.
const PREFIX: &str = "weft-kek-v1:";
const KEY_BYTES: usize = 32;
/// A KMS that takes longer is away.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KekSource {
    /// A file, made on first start.
    File(PathBuf),
    /// The environment variable of this name.
    Env(String),
    /// What this program prints, with its arguments.
    Command(Vec<String>),
}

impl std::fmt::Display for KekSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "key file {}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Command(words) => write!(f, "key command {:?}", words.join(" ")),
        }
    }
}

/// Why the key file or what it sealed can not be used.
#[derive(Debug, thiserror::Error)]
pub enum KekError {
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
    #[error(
        "{0} does not hold a key-encryption key (weft-kek-v1: and 64 hexadecimal digits); put back the right one"
    )]
    Malformed(KekSource),
    /// No such variable.
    #[error("{0} is not set, and the keys in the database can not be read without it")]
    NoVariable(KekSource),
    /// The command did not print a key.
    #[error("{from} failed: {cause}")]
    Command {
        /// The command.
        from: KekSource,
        /// What happened.
        cause: String,
    },
    /// The wrong key, or changed data.
    #[error("{0} does not open the keys in the database; put back the one they were made with")]
    WrongKey(KekSource),
    /// The random generator or the cipher failed.
    #[error("sealing a key failed")]
    Seal,
}

/// The open key.
pub struct Kek {
    from: KekSource,
    key: RandomizedNonceKey,
}

impl std::fmt::Debug for Kek {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kek")
            .field("from", &self.from)
            .finish_non_exhaustive()
    }
}

impl Kek {
    /// Reads the key. A file that is not there is made when `may_create`.
    pub async fn open(source: &KekSource, may_create: bool) -> Result<Self, KekError> {
        let text = match source {
            KekSource::File(path) => read_file(path, may_create)?,
            KekSource::Env(name) => {
                Zeroizing::new(std::env::var(name).map_err(|_| KekError::NoVariable(source.clone()))?)
            }
            KekSource::Command(words) => run(words).await.map_err(|cause| KekError::Command {
                from: source.clone(),
                cause,
            })?,
        };
        Self::parse(source, &text)
    }

    fn parse(source: &KekSource, text: &str) -> Result<Self, KekError> {
        let malformed = || KekError::Malformed(source.clone());
        let mut key = Zeroizing::new([0u8; KEY_BYTES]);
        let encoded = text.trim().strip_prefix(PREFIX).ok_or_else(malformed)?;
        hex::decode_to_slice(encoded, &mut key[..]).map_err(|_| malformed())?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &key[..]).map_err(|_| malformed())?;
        Ok(Self {
            from: source.clone(),
            key,
        })
    }

    /// Encrypts `secret`, bound to `label`: nonce, then ciphertext with tag.
    pub fn seal(&self, label: &str, secret: &[u8]) -> Result<Vec<u8>, KekError> {
        let mut data = secret.to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(label.as_bytes()), &mut data)
            .map_err(|_| KekError::Seal)?;
        Ok([nonce.as_ref().as_slice(), &data].concat())
    }

    /// Decrypts what [`Kek::seal`] made with the same label.
    pub fn open_sealed(&self, label: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, KekError> {
        let wrong = || KekError::WrongKey(self.from.clone());
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

fn read_file(path: &Path, may_create: bool) -> Result<Zeroizing<String>, KekError> {
    let io_error = |source| KekError::Io {
        path: path.to_path_buf(),
        source,
    };
    let text = match fs::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound && may_create => create(path).map_err(io_error)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(KekError::Missing(path.to_path_buf()));
        }
        Err(e) => return Err(io_error(e)),
    };
    let mode = fs::metadata(path).map_err(io_error)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KekError::Permissions {
            path: path.to_path_buf(),
            mode,
        });
    }
    Ok(text)
}

/// What the command prints. Its own words on its error output go to ours.
async fn run(words: &[String]) -> Result<Zeroizing<String>, String> {
    let (program, arguments) = words.split_first().ok_or("it is empty")?;
    let child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(COMMAND_TIMEOUT, child)
        .await
        .map_err(|_| format!("no answer within {} s", COMMAND_TIMEOUT.as_secs()))?
        .map_err(|e| e.to_string())?;
    let printed = Zeroizing::new(output.stdout);
    if !output.status.success() {
        return Err(output.status.to_string());
    }
    std::str::from_utf8(&printed)
        .map(|text| Zeroizing::new(text.to_owned()))
        .map_err(|_| "it did not print text".into())
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

    fn in_file(path: &Path) -> KekSource {
        KekSource::File(path.to_path_buf())
    }

    #[tokio::test]
    async fn sealed_keys_open_with_the_same_key_and_label_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        let kek = Kek::open(&in_file(&path), true).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let sealed = kek.seal("root", b"secret").unwrap();
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert_ne!(
            sealed,
            kek.seal("root", b"secret").unwrap(),
            "a nonce was used twice"
        );

        let again = Kek::open(&in_file(&path), false).await.unwrap();
        assert_eq!(again.open_sealed("root", &sealed).unwrap().as_slice(), b"secret");
        assert!(again.open_sealed("issuer", &sealed).is_err());
        let other = in_file(&dir.path().join("other"));
        let other = Kek::open(&other, true).await.unwrap();
        assert!(matches!(
            other.open_sealed("root", &sealed),
            Err(KekError::WrongKey(_))
        ));
        for cut in [0, 5, sealed.len() - 1] {
            assert!(again.open_sealed("root", &sealed[..cut]).is_err());
        }
    }

    #[tokio::test]
    async fn a_missing_open_or_damaged_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        let source = in_file(&path);
        assert!(matches!(
            Kek::open(&source, false).await,
            Err(KekError::Missing(_))
        ));
        Kek::open(&source, true).await.unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Kek::open(&source, false).await.unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "something else").unwrap();
        assert!(matches!(
            Kek::open(&source, false).await,
            Err(KekError::Malformed(_))
        ));
    }

    #[tokio::test]
    async fn a_command_may_hold_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        let sealed = Kek::open(&in_file(&path), true)
            .await
            .unwrap()
            .seal("root", b"secret")
            .unwrap();
        let words = |words: &[&str]| KekSource::Command(words.iter().map(|w| (*w).to_owned()).collect());
        let by_command = Kek::open(&words(&["cat", path.to_str().unwrap()]), true)
            .await
            .unwrap();
        assert_eq!(
            by_command.open_sealed("root", &sealed).unwrap().as_slice(),
            b"secret"
        );
        for (command, cause) in [
            (&["false"][..], "exit status: 1"),
            (&["/nonexistent/kms"], "No such file"),
            (&["echo", "weft-kek-v1:00"], "does not hold a key"),
            (&[], "it is empty"),
        ] {
            let error = Kek::open(&words(command), true).await.unwrap_err().to_string();
            assert!(error.contains(cause), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[tokio::test]
    async fn a_variable_may_hold_the_key() {
        // Set for all of this crate's tests by cargo; it holds something else.
        let set = KekSource::Env("CARGO_PKG_NAME".into());
        assert!(matches!(Kek::open(&set, true).await, Err(KekError::Malformed(_))));
        let unset = KekSource::Env("WEFT_NO_SUCH_KEY".into());
        let error = Kek::open(&unset, true).await.unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("environment variable WEFT_NO_SUCH_KEY is not set")
        );
        let text = format!("{PREFIX}{}\n", "ab".repeat(KEY_BYTES));
        assert!(Kek::parse(&set, &text).is_ok());
    }
}
