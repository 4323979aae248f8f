//! The keys of an issuer of JWTs, as new as they have to be: looked at again after a while and when a
//! token names a key that is not known, never more often than the bounds here, and kept when the
//! source is away.

use super::fetch::{FetchError, Place};
use crate::{core::Decision, reason::Reason, refused::Refused};
use arc_swap::ArcSwapOption;
use jsonwebtoken::{
    AlgorithmFamily, DecodingKey,
    jwk::{AlgorithmParameters, Jwk, PublicKeyUse},
};
use serde::Deserialize;
use std::{sync::Arc, time::Duration};
use tokio::sync::Mutex;
use weft_tls::Clock;

/// A set of keys takes some kilobytes.
const MAX_BYTES: usize = 256 * 1024;
const MAX_KEYS: usize = 100;
/// A token with an unknown key makes the set be looked at again at most so often, seconds.
const UNKNOWN: u64 = 10;
/// After a failure, the next try is so far away: doubled each time.
const FIRST_PAUSE: u64 = 1;
const LONGEST_PAUSE: u64 = 300;

/// A key that verifies.
pub(super) struct Key {
    kid: Option<String>,
    /// The one algorithm it is for, where its owner says so.
    algorithm: Option<String>,
    pub family: AlgorithmFamily,
    pub key: DecodingKey,
}

/// One state of the issuer's keys.
struct Set {
    keys: Vec<Arc<Key>>,
    fetched_at: u64,
}

/// When the source may be asked again, in seconds since the Unix epoch.
#[derive(Default)]
struct Tries {
    last: Option<u64>,
    failures: u32,
}

/// The keys, and where they come from.
pub(super) struct Keys {
    place: Place,
    refresh: u64,
    timeout: Duration,
    clock: Clock,
    held: ArcSwapOption<Set>,
    tries: Mutex<Tries>,
}

/// Why a document is no set of keys.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("it is no JWK set (RFC 7517): {0}")]
    Json(serde_json::Error),
    #[error("it has {0} keys, at most {MAX_KEYS} are read")]
    TooMany(usize),
    #[error("none of its keys can verify a token: RSA, P-256, P-384 or Ed25519 are needed")]
    NoKey,
}

/// Reads a set; keys that are for something else are passed over.
fn read(document: &[u8]) -> Result<Vec<Arc<Key>>, SetError> {
    #[derive(Deserialize)]
    struct Document {
        keys: Vec<serde_json::Value>,
    }
    let document: Document = serde_json::from_slice(document).map_err(SetError::Json)?;
    if document.keys.len() > MAX_KEYS {
        return Err(SetError::TooMany(document.keys.len()));
    }
    let keys: Vec<_> = document.keys.iter().filter_map(key).map(Arc::new).collect();
    if keys.is_empty() {
        return Err(SetError::NoKey);
    }
    Ok(keys)
}

fn key(value: &serde_json::Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
    if matches!(
        jwk.common.public_key_use,
        Some(PublicKeyUse::Encryption | PublicKeyUse::Other(_))
    ) {
        return None;
    }
    let family = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => AlgorithmFamily::Rsa,
        AlgorithmParameters::EllipticCurve(_) => AlgorithmFamily::Ec,
        AlgorithmParameters::OctetKeyPair(_) => AlgorithmFamily::Ed,
        // A shared secret verifies nothing, and must never be used as one.
        _ => return None,
    };
    Some(Key {
        algorithm: value.get("alg").and_then(|alg| alg.as_str()).map(Into::into),
        family,
        key: DecodingKey::from_jwk(&jwk).ok()?,
        kid: jwk.common.key_id,
    })
}

/// Whether the next try is due; a clock that was set back does not put it off for ever.
fn due(at: u64, now: u64) -> bool {
    now >= at || at - now > LONGEST_PAUSE.max(UNKNOWN)
}

impl Tries {
    fn after_failures(&self) -> u64 {
        let pause = FIRST_PAUSE << self.failures.saturating_sub(1).min(16);
        match (self.last, self.failures) {
            (None, _) | (_, 0) => 0,
            (Some(last), _) => last + pause.min(LONGEST_PAUSE),
        }
    }

    fn for_unknown(&self) -> u64 {
        self.last
            .map_or(0, |last| (last + UNKNOWN).max(self.after_failures()))
    }
}

impl Keys {
    pub fn new(place: Place, refresh: u64, timeout: Duration, clock: Clock) -> Self {
        Self {
            place,
            refresh,
            timeout,
            clock,
            held: ArcSwapOption::empty(),
            tries: Mutex::default(),
        }
    }

    /// The keys that a token with this header may be signed with.
    pub async fn find(
        &self,
        kid: Option<&str>,
        algorithm: &str,
        family: AlgorithmFamily,
    ) -> Decision<Arc<Key>> {
        self.keep_fresh().await;
        if let Some(key) = self.known(kid, algorithm, family)? {
            return Ok(key);
        }
        {
            // Whoever waited here finds what the one before it has fetched.
            let mut tries = self.tries.lock().await;
            if let Some(key) = self.known(kid, algorithm, family)? {
                return Ok(key);
            }
            if due(tries.for_unknown(), self.clock.unix_seconds()) {
                self.fetch(&mut tries).await;
            }
        }
        if let Some(key) = self.known(kid, algorithm, family)? {
            return Ok(key);
        }
        if self.held.load().is_none() {
            return Err(Refused::unavailable(
                Reason::AttestorAway,
                "the keys of the tokens' issuer have not been read yet; the identity service's log says why",
            ));
        }
        let shown: String = kid.unwrap_or_default().chars().take(80).collect();
        let reason = format!(
            "the token is signed with {algorithm} and key {shown:?}, which the issuer's set does not have"
        );
        Err(Refused::denied(Reason::TokenKey, reason))
    }

    /// Looks again when the keys are old. Whoever does it waits; the others go on with what is there.
    async fn keep_fresh(&self) {
        let now = self.clock.unix_seconds();
        let held = self.held.load_full();
        let old = held
            .as_ref()
            .is_none_or(|set| now.abs_diff(set.fetched_at) >= self.refresh);
        if !old {
            return;
        }
        let tries = match held {
            Some(_) => self.tries.try_lock().ok(),
            None => Some(self.tries.lock().await),
        };
        if let Some(mut tries) = tries {
            let done = self
                .held
                .load()
                .as_ref()
                .is_some_and(|set| now.abs_diff(set.fetched_at) < self.refresh);
            if !done && due(tries.after_failures(), now) {
                self.fetch(&mut tries).await;
            }
        }
    }

    /// One try. What is there stays when it fails.
    async fn fetch(&self, tries: &mut Tries) {
        let now = self.clock.unix_seconds();
        tries.last = Some(now);
        // Counted before it succeeds, so that a caller who goes away in the middle counts too.
        tries.failures = tries.failures.saturating_add(1);
        let got = self.place.get(MAX_BYTES, self.timeout).await;
        match got.map_err(SetError::from).and_then(|document| read(&document)) {
            Ok(keys) => {
                tries.failures = 0;
                tracing::debug!(place = %self.place, keys = keys.len(), "keys of the tokens' issuer read");
                self.held.store(Some(Arc::new(Set {
                    keys,
                    fetched_at: now,
                })));
            }
            Err(error) => {
                let kept = self.held.load().as_ref().map_or(0, |set| set.keys.len());
                tracing::warn!(%error, place = %self.place, kept, "keys of the tokens' issuer can not be read");
            }
        }
    }

    fn known(
        &self,
        kid: Option<&str>,
        algorithm: &str,
        family: AlgorithmFamily,
    ) -> Decision<Option<Arc<Key>>> {
        let held = self.held.load();
        let Some(set) = held.as_ref() else {
            return Ok(None);
        };
        let mut fit = set.keys.iter().filter(|key| {
            key.family == family
                && key.algorithm.as_deref().is_none_or(|alg| alg == algorithm)
                && kid.is_none_or(|kid| key.kid.as_deref() == Some(kid))
        });
        let first = fit.next();
        if kid.is_none() && fit.next().is_some() {
            let reason = "the token names no key (kid), and the issuer has several";
            return Err(Refused::denied(Reason::TokenKey, reason));
        }
        Ok(first.cloned())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn ec(kid: &str) -> serde_json::Value {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let key = jsonwebtoken::EncodingKey::from_ec_der(&pair.serialize_der());
        let mut jwk = Jwk::from_encoding_key(&key, jsonwebtoken::Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(kid.into());
        serde_json::to_value(jwk).unwrap()
    }

    fn set(keys: &[serde_json::Value]) -> Result<usize, SetError> {
        read(&serde_json::to_vec(&json!({ "keys": keys })).unwrap()).map(|keys| keys.len())
    }

    #[test]
    fn keys_for_something_else_are_passed_over() {
        let secret = json!({"kty": "oct", "k": "c2VjcmV0", "kid": "s"});
        let unknown = json!({"kty": "quantum", "kid": "q"});
        let mut encrypts = ec("e");
        encrypts["use"] = json!("enc");
        assert_eq!(
            set(&[ec("a"), secret.clone(), unknown, encrypts.clone()]).unwrap(),
            1
        );
        assert!(matches!(set(&[secret, encrypts]), Err(SetError::NoKey)));
        assert!(matches!(set(&[]), Err(SetError::NoKey)));
        assert!(matches!(read(b"{}"), Err(SetError::Json(_))));
        assert!(set(&vec![ec("a"); MAX_KEYS]).is_ok());
        assert!(matches!(
            set(&vec![ec("a"); MAX_KEYS + 1]),
            Err(SetError::TooMany(101))
        ));
    }

    #[test]
    fn tries_are_bounded_and_back_off() {
        let tries = |last, failures| Tries { last, failures };
        assert_eq!(tries(None, 0).for_unknown(), 0);
        assert_eq!(tries(Some(100), 0).for_unknown(), 110);
        assert_eq!(tries(Some(100), 0).after_failures(), 0);
        for (failures, pause) in [(1, 1), (2, 2), (5, 16), (9, 256), (10, 300), (40, 300)] {
            assert_eq!(tries(Some(100), failures).after_failures(), 100 + pause);
        }
        assert!(!due(110, 109) && due(110, 110));
        // Set back by an hour.
        assert!(due(7200, 3600));
    }

    proptest! {
        #[test]
        fn any_document_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in "\\{\"keys\":\\[\\{\\PC{0,60}\\}\\]\\}") {
            prop_assert!(read(&bytes).is_err());
            let _ = read(text.as_bytes());
        }
    }
}
