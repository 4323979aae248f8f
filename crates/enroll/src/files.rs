//! The folder of a member: `svid.pem` (key, then chain), `bundle.pem` and `revoked`, 0600 in a 0700
//! folder, each replaced as a whole, so that a crash leaves the old one or the new one.

use crate::{EnrollError, revoked::RevocationList};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::Instant;
use weft_model::TrustDomain;
use weft_tls::{Bundle, Svid};
use zeroize::Zeroizing;

const CERTIFICATE: &str = "CERTIFICATE";
/// Not DER but JSON; the armour keeps it apart from the rest.
const JWKS: &str = "JSON WEB KEY SET";
const PRIVATE_KEY: &str = "PRIVATE KEY";
const VERSION_HEADER: &str = "Bundle-Version";
/// A key, three certificates; a bundle of some roots.
const MAX_FILE: u64 = 256 * 1024;
/// Some hundred bytes for each.
const MAX_REVOKED: u64 = 32 * 1024 * 1024;

/// The folder. Several processes may hold it while one takes over from another: each file is
/// complete in itself and replaced as a whole, and any of them is good for the same member.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

/// Held while a process looks whether it has to join: a token is good for one join only.
#[derive(Debug)]
pub(crate) struct StartLock {
    _file: File,
}

/// What a member holds between starts.
pub(crate) struct Held {
    pub svid: Svid,
    pub bundle: Bundle,
    pub revoked: RevocationList,
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> EnrollError {
    move |source| EnrollError::File {
        path: path.to_path_buf(),
        source,
    }
}

fn damaged(path: &Path, reason: &dyn std::fmt::Display) -> EnrollError {
    EnrollError::Damaged {
        path: path.to_path_buf(),
        reason: reason.to_string(),
    }
}

impl Folder {
    /// Makes the folder if it is not there.
    pub fn open(path: &Path) -> Result<Self, EnrollError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(file_error(path))?;
        Ok(Self {
            path: path.to_path_buf(),
        })
    }

    /// Waits for another process that starts with this folder.
    pub async fn lock(&self, patience: Duration) -> Result<StartLock, EnrollError> {
        let path = self.path.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(file_error(&path))?;
        let deadline = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(StartLock { _file: file }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(TryLockError::WouldBlock) => return Err(EnrollError::InUse(self.path.clone())),
                Err(TryLockError::Error(e)) => return Err(file_error(&path)(e)),
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn svid_path(&self) -> PathBuf {
        self.path.join("svid.pem")
    }

    fn bundle_path(&self) -> PathBuf {
        self.path.join("bundle.pem")
    }

    fn revoked_path(&self) -> PathBuf {
        self.path.join("revoked")
    }

    /// What was stored; `None` on first start.
    pub fn load(&self, trust_domain: &TrustDomain) -> Result<Option<Held>, EnrollError> {
        let (svid_path, bundle_path) = (self.svid_path(), self.bundle_path());
        let Some(text) = read(&svid_path)? else {
            return Ok(None);
        };
        let svid = parse_svid(&text).map_err(|e| damaged(&svid_path, &e))?;
        // Written before the certificate: if that is there, this is.
        let text = read(&bundle_path)?.ok_or_else(|| damaged(&bundle_path, &"it is missing"))?;
        let bundle = parse_bundle(&text, trust_domain).map_err(|e| damaged(&bundle_path, &e))?;
        let path = self.revoked_path();
        let text = read_up_to(&path, MAX_REVOKED)?.unwrap_or_default();
        let revoked = RevocationList::from_text(&text).map_err(|e| damaged(&path, &e))?;
        Ok(Some(Held {
            svid,
            bundle,
            revoked,
        }))
    }

    /// Stores key and chain.
    pub fn store_svid(
        &self,
        key: &PrivateKeyDer<'_>,
        chain: &[CertificateDer<'_>],
    ) -> Result<(), EnrollError> {
        let mut text = Zeroizing::new(String::new());
        // The key's PEM block is wiped with the text it is appended to.
        text.push_str(&Zeroizing::new(encode(PRIVATE_KEY, key.secret_der())));
        for certificate in chain {
            text.push_str(&encode(CERTIFICATE, certificate));
        }
        let path = self.svid_path();
        replace(&path, text.as_bytes()).map_err(file_error(&path))
    }

    /// Stores what is revoked.
    pub fn store_revoked(&self, revoked: &RevocationList) -> Result<(), EnrollError> {
        let path = self.revoked_path();
        replace(&path, revoked.to_text().as_bytes()).map_err(file_error(&path))
    }

    /// Stores the roots.
    pub fn store_bundle(&self, bundle: &Bundle) -> Result<(), EnrollError> {
        let mut text = format!("{VERSION_HEADER}: {}\n", bundle.version);
        for root in &bundle.roots {
            text.push_str(&encode(CERTIFICATE, root));
        }
        if !bundle.jwks.is_empty() {
            text.push_str(&encode(JWKS, &bundle.jwks));
        }
        let path = self.bundle_path();
        replace(&path, text.as_bytes()).map_err(file_error(&path))
    }
}

fn encode(tag: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(tag, der), config)
}

fn read(path: &Path) -> Result<Option<Zeroizing<String>>, EnrollError> {
    read_up_to(path, MAX_FILE)
}

fn read_up_to(path: &Path, limit: u64) -> Result<Option<Zeroizing<String>>, EnrollError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(file_error(path)(e)),
    };
    let mut text = Zeroizing::new(String::new());
    file.take(limit)
        .read_to_string(&mut text)
        .map_err(file_error(path))?;
    Ok(Some(text))
}

/// Writes beside, syncs, renames: readers see the old file or the new one.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let aside = path.with_extension(format!("new-{}", std::process::id()));
    // One left by a crash may have other permissions.
    match fs::remove_file(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn parse_svid(text: &str) -> Result<Svid, String> {
    let (mut key, mut chain) = (None, Vec::new());
    for block in pem::parse_many(text).map_err(|e| e.to_string())? {
        match block.tag() {
            PRIVATE_KEY => key = Some(PrivatePkcs8KeyDer::from(block.into_contents())),
            CERTIFICATE => chain.push(CertificateDer::from(block.into_contents())),
            other => return Err(format!("a PEM block {other:?}")),
        }
    }
    let key = key.ok_or("no private key")?;
    Svid::new(chain, &key.into()).map_err(|e| e.to_string())
}

fn parse_bundle(text: &str, trust_domain: &TrustDomain) -> Result<Bundle, String> {
    let version = text
        .lines()
        .next()
        .and_then(|line| {
            line.strip_prefix(VERSION_HEADER)?
                .strip_prefix(": ")?
                .parse()
                .ok()
        })
        .ok_or("no version")?;
    let blocks = pem::parse_many(text).map_err(|e| e.to_string())?;
    let jwks = blocks.iter().find(|b| b.tag() == JWKS);
    let jwks = jwks.map_or_else(Vec::new, |b| b.contents().to_vec());
    let roots = blocks
        .into_iter()
        .filter(|b| b.tag() == CERTIFICATE)
        .map(|b| b.into_contents().into());
    let roots: Vec<_> = roots.collect();
    if roots.is_empty() {
        return Err("no root certificate".into());
    }
    Ok(Bundle {
        trust_domain: trust_domain.clone(),
        version,
        roots,
        jwks,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn bundles_are_read_back_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(&dir.path().join("a/b")).unwrap();
        let td = TrustDomain::default();
        let bundle = Bundle {
            trust_domain: td.clone(),
            version: 7,
            roots: vec![vec![1, 2, 3].into(), vec![4; 500].into()],
            jwks: br#"{"keys":[]}"#.to_vec(),
        };
        folder.store_bundle(&bundle).unwrap();
        let text = read(&folder.bundle_path()).unwrap().unwrap();
        assert_eq!(parse_bundle(&text, &td).unwrap(), bundle);
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(folder.path()), mode(&folder.bundle_path())), (0o700, 0o600));
    }

    #[tokio::test]
    async fn one_process_starts_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (
            Folder::open(dir.path()).unwrap(),
            Folder::open(dir.path()).unwrap(),
        );
        let held = first.lock(Duration::ZERO).await.unwrap();
        let patience = Duration::from_millis(50);
        assert!(matches!(second.lock(patience).await, Err(EnrollError::InUse(_))));
        let waits = tokio::spawn(async move { second.lock(Duration::from_secs(20)).await });
        drop(held);
        waits.await.unwrap().unwrap();
    }

    proptest! {
        #[test]
        fn any_file_is_read_without_panic(text in "\\PC{0,200}", tail in "[A-Za-z0-9+/=\n-]{0,200}") {
            for text in [text, format!("Bundle-Version: 1\n-----BEGIN CERTIFICATE-----\n{tail}"), tail] {
                prop_assert!(parse_svid(&text).is_err());
                let _ = parse_bundle(&text, &TrustDomain::default());
            }
        }
    }
}
