//! Backup and restore: the authority with its keys, under a passphrase. The audit record is exported
//! by itself; join tokens are left out, since one that was used after the backup would be good again.

use crate::{
    config::Config,
    core::{Core, Decision},
    db::{Audit, Db, Image},
    error::StartError,
    hierarchy::{ISSUER, ROOT},
    jwt,
    kek::Kek,
    refused::Refused,
};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    pbkdf2, rand,
};
use std::num::NonZeroU32;
use weft_rpc::Caller;
use zeroize::{Zeroize, Zeroizing};

/// What a backup starts with.
const HEADER: &[u8] = b"weft-identity-backup-v1\n";
const SALT: usize = 16;
/// OWASP's figure for PBKDF2 with HMAC-SHA-256.
const ITERATIONS: u32 = 600_000;
const MIN_PASSPHRASE: usize = 16;
const MAX_PASSPHRASE: usize = 1024;
/// Versions of the bundle that may have been published after the backup: members never go back.
const AHEAD: u64 = 1 << 20;
/// No certificate lives longer than this many seconds; what was signed after the backup is not in it.
const LONGEST: u64 = 30 * 24 * 3600;

/// Why a backup can not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Another file, or a damaged one.
    #[error("this is no backup of the identity service, or it is damaged")]
    Malformed,
    /// Not its passphrase, or a changed file.
    #[error("the passphrase is not the backup's, or the file was changed")]
    Passphrase,
    /// There is an authority already.
    #[error("database {0} holds an authority already; restore onto an empty one (another state folder)")]
    NotEmpty(String),
    /// The database or the key-encryption key.
    #[error(transparent)]
    Start(#[from] StartError),
}

fn derive(passphrase: &str, salt: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0u8; 32]);
    let iterations = NonZeroU32::new(ITERATIONS).unwrap_or(NonZeroU32::MIN);
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        iterations,
        salt,
        passphrase.as_bytes(),
        &mut key[..],
    );
    key
}

fn cipher(passphrase: &str, salt: &[u8]) -> Option<RandomizedNonceKey> {
    RandomizedNonceKey::new(&AES_256_GCM, &derive(passphrase, salt)[..]).ok()
}

/// Header, salt, nonce, ciphertext with tag.
fn encrypt(passphrase: &str, clear: &[u8]) -> Option<Vec<u8>> {
    let mut salt = [0u8; SALT];
    rand::fill(&mut salt).ok()?;
    let mut data = clear.to_vec();
    let nonce = cipher(passphrase, &salt)?
        .seal_in_place_append_tag(Aad::from(HEADER), &mut data)
        .ok()?;
    Some([HEADER, &salt, nonce.as_ref().as_slice(), &data].concat())
}

fn decrypt(passphrase: &str, backup: &[u8]) -> Result<Zeroizing<Vec<u8>>, RestoreError> {
    let rest = backup.strip_prefix(HEADER).ok_or(RestoreError::Malformed)?;
    let (salt, rest) = rest.split_at_checked(SALT).ok_or(RestoreError::Malformed)?;
    let (nonce, data) = rest.split_at_checked(NONCE_LEN).ok_or(RestoreError::Malformed)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| RestoreError::Malformed)?;
    let cipher = cipher(passphrase, salt).ok_or(RestoreError::Malformed)?;
    let mut data = Zeroizing::new(data.to_vec());
    let length = cipher
        .open_in_place(nonce, Aad::from(HEADER), &mut data)
        .map_err(|_| RestoreError::Passphrase)?
        .len();
    data.truncate(length);
    Ok(data)
}

/// Goes through the keys of an image with what seals or opens them.
fn each_key(
    image: &mut Image,
    change: impl Fn(&'static str, &[u8]) -> Result<Vec<u8>, StartError>,
) -> Result<(), StartError> {
    for it in &mut image.authorities {
        if !it.key.is_empty() {
            let label = match it.kind.as_str() {
                "root" => ROOT,
                "jwt" => jwt::LABEL,
                _ => ISSUER,
            };
            let changed = change(label, &it.key)?;
            it.key.zeroize();
            it.key = changed;
        }
    }
    Ok(())
}

impl Core {
    /// Everything that is needed to go on elsewhere, encrypted.
    pub async fn backup(&self, caller: &Caller, passphrase: Zeroizing<String>) -> Decision<Vec<u8>> {
        let asked = self.asked("backup", caller, "");
        let made = self.try_backup(&asked, passphrase).await;
        self.or_record(&asked, made).await
    }

    async fn try_backup(&self, asked: &Audit, passphrase: Zeroizing<String>) -> Decision<Vec<u8>> {
        let sound = (MIN_PASSPHRASE..=MAX_PASSPHRASE).contains(&passphrase.len());
        sound.then_some(()).ok_or_else(|| {
            Refused::field(
                "passphrase",
                format!("the passphrase must have {MIN_PASSPHRASE} to {MAX_PASSPHRASE} bytes"),
            )
        })?;
        self.refresh().await?;
        let live = self.live.load_full();
        let mut image = self.db.image(&live.trust, self.now()).await?;
        let open = |label, sealed: &[u8]| Ok(self.kek.open_sealed(label, sealed)?.to_vec());
        each_key(&mut image, open)?;
        let clear = Zeroizing::new(serde_json::to_vec(&image).map_err(|_| Refused::internal())?);
        // The derivation takes some tenths of a second.
        let encrypted = tokio::task::spawn_blocking(move || encrypt(&passphrase, &clear));
        let backup = encrypted.await.ok().flatten().ok_or_else(Refused::internal)?;
        self.record_order(asked.clone()).await?;
        Ok(backup)
    }
}

/// Writes a backup into the empty database that the configuration names. The trust domain is the
/// backup's; it is answered.
pub async fn restore(
    config: &Config,
    backup: &[u8],
    passphrase: &str,
    now: u64,
) -> Result<String, RestoreError> {
    let clear = decrypt(passphrase, backup)?;
    let mut image: Image = serde_json::from_slice(&clear).map_err(|_| RestoreError::Malformed)?;
    let start = |e: weft_store::StoreError| RestoreError::Start(e.into());
    let db = match &config.database_url {
        Some(url) => Db::connect(url).await,
        None => Db::open(&config.database()).await,
    }
    .map_err(start)?;
    if db.trust().await.map_err(start)?.is_some() {
        return Err(RestoreError::NotEmpty(db.name()));
    }
    let source = config.kek_source().map_err(StartError::from)?;
    let kek = Kek::open(&source, true).await.map_err(StartError::from)?;
    each_key(&mut image, |label, key| Ok(kek.seal(label, key)?))?;
    image.bundle_version += AHEAD;
    for it in &mut image.authorities {
        it.signed_until = it.signed_until.max(now + LONGEST);
    }
    let restored = db.restore(&image, now).await.map_err(start)?;
    let name = db.name();
    db.close().await;
    if restored {
        Ok(image.trust_domain)
    } else {
        Err(RestoreError::NotEmpty(name))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_opens_with_its_passphrase_and_unchanged_only() {
        let sealed = encrypt("correct horse battery", b"secret").unwrap();
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert_eq!(
            decrypt("correct horse battery", &sealed).unwrap().as_slice(),
            b"secret"
        );
        assert!(matches!(
            decrypt("another passphrase", &sealed),
            Err(RestoreError::Passphrase)
        ));
        let mut changed = sealed.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(matches!(
            decrypt("correct horse battery", &changed),
            Err(RestoreError::Passphrase)
        ));
        for cut in [0, 10, HEADER.len() + 5, HEADER.len() + SALT + 3] {
            assert!(matches!(
                decrypt("correct horse battery", &sealed[..cut]),
                Err(RestoreError::Malformed)
            ));
        }
    }
}
