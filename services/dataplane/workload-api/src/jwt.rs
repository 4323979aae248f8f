//! Reading JWT-SVIDs, as the SPIFFE standard wants them read.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, jwk::JwkSet};
use serde_json::{Map, Value};
use weft_model::{SpiffeId, TrustDomain};

/// Longer tokens and key sets are refused unread: a token is a header's worth of text.
const MAX_TOKEN: usize = 16 * 1024;
const MAX_KEYS: usize = 64 * 1024;
/// Clocks of nodes may differ by this much, in seconds.
const SKEW: u64 = 10;
/// The standard's list.
const ALGORITHMS: &[Algorithm] = &[
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// Why a token is not good, or a key set can not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Not a key set.
    #[error("not a set of keys (RFC 7517): {0}")]
    Keys(String),
    /// Not a token.
    #[error("not a JWT-SVID: {0}")]
    Form(String),
    /// Signed by nobody who is trusted.
    #[error("no key of trust domain {trust_domain} has the id {kid:?}")]
    UnknownKey {
        /// As the token's header has it.
        kid: String,
        /// Ours.
        trust_domain: String,
    },
    /// The signature is not by that key.
    #[error("the signature is not good: {0}")]
    Signature(String),
    /// Its time is over.
    #[error("it expired {0} s ago")]
    Expired(u64),
    /// It is for somebody else.
    #[error("it is not for audience {0:?}")]
    Audience(String),
}

/// The keys that JWT-SVIDs of a trust domain are verified with.
#[derive(Debug, Clone)]
pub struct Jwks {
    json: Vec<u8>,
    set: JwkSet,
}

/// What a good token says.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims {
    /// Whose it is.
    pub subject: SpiffeId,
    /// Everything.
    pub all: Map<String, Value>,
}

impl Jwks {
    /// No keys: no token is good.
    pub fn empty() -> Self {
        Self {
            json: br#"{"keys":[]}"#.to_vec(),
            set: JwkSet { keys: Vec::new() },
        }
    }

    /// From the JSON form.
    pub fn parse(json: &[u8]) -> Result<Self, JwtError> {
        if json.len() > MAX_KEYS {
            return Err(JwtError::Keys(format!(
                "it has {} bytes, {MAX_KEYS} are allowed",
                json.len()
            )));
        }
        // First as any JSON: what workloads get must be readable in the parts that are not looked at here, too
        // (serde skips those unread), and serde would take a list for the object's fields in their order.
        let unreadable = |e: serde_json::Error| JwtError::Keys(e.to_string());
        let read: Value = serde_json::from_slice(json).map_err(unreadable)?;
        if !read.is_object() {
            return Err(JwtError::Keys("it is no JSON object".into()));
        }
        let set: JwkSet = serde_json::from_value(read).map_err(unreadable)?;
        if set.keys.iter().any(|key| key.common.key_id.is_none()) {
            return Err(JwtError::Keys("a key has no id (kid)".into()));
        }
        Ok(Self {
            json: json.to_vec(),
            set,
        })
    }

    /// The JSON form.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// Whether a token is good for an audience at a time (seconds since the Unix epoch).
    pub fn verify(
        &self,
        token: &str,
        audience: &str,
        trust_domain: &TrustDomain,
        now: u64,
    ) -> Result<Claims, JwtError> {
        let form = |what: &str| JwtError::Form(what.to_owned());
        if token.len() > MAX_TOKEN {
            return Err(form("too long"));
        }
        let header = decode_header(token).map_err(|e| JwtError::Form(e.to_string()))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(form("its algorithm is not one of the standard's"));
        }
        if has_extensions(token) {
            return Err(form("its header has extensions (crit) that are not known"));
        }
        if !matches!(header.typ.as_deref(), None | Some("JWT" | "JOSE")) {
            return Err(form("its header names another type"));
        }
        let kid = header.kid.unwrap_or_default();
        let unknown = || JwtError::UnknownKey {
            kid: kid.chars().take(100).collect(),
            trust_domain: trust_domain.to_string(),
        };
        let jwk = self.set.find(&kid).ok_or_else(unknown)?;
        let key = DecodingKey::from_jwk(jwk).map_err(|e| JwtError::Keys(e.to_string()))?;
        // Times and audience are looked at below, by the clock that everything else here goes by.
        let mut validation = Validation::new(header.alg);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let all: Map<String, Value> = decode(token, &key, &validation)
            .map_err(|e| JwtError::Signature(e.to_string()))?
            .claims;

        let expires = all
            .get("exp")
            .and_then(seconds)
            .ok_or_else(|| form("it has no expiry (exp)"))?;
        if expires.saturating_add(SKEW) <= now {
            return Err(JwtError::Expired(now.saturating_sub(expires)));
        }
        if all
            .get("nbf")
            .and_then(seconds)
            .is_some_and(|from| from > now + SKEW)
        {
            return Err(form("it is not valid yet (nbf)"));
        }
        let named = match all.get("aud") {
            Some(Value::String(one)) => one == audience,
            Some(Value::Array(many)) => many.iter().any(|one| one.as_str() == Some(audience)),
            _ => return Err(form("it has no audience (aud)")),
        };
        if !named {
            return Err(JwtError::Audience(audience.chars().take(200).collect()));
        }
        let subject = all.get("sub").and_then(Value::as_str).unwrap_or_default();
        let subject: SpiffeId = subject
            .parse()
            .map_err(|_| form("its subject (sub) is no SPIFFE ID"))?;
        if subject.trust_domain() != *trust_domain {
            return Err(form("its subject (sub) is of another trust domain"));
        }
        Ok(Claims { subject, all })
    }
}

/// Whether its header names extensions that whoever reads it has to understand (RFC 7515, 4.1.11).
fn has_extensions(token: &str) -> bool {
    let header = token.split('.').next().unwrap_or_default();
    let header = URL_SAFE_NO_PAD.decode(header).unwrap_or_default();
    let header: Map<String, Value> = serde_json::from_slice(&header).unwrap_or_default();
    header.contains_key("crit")
}

/// A NumericDate may have a fraction.
fn seconds(value: &Value) -> Option<u64> {
    value
        .as_u64()
        // Saturates; negative and not-a-number become 0, long past.
        .or_else(|| value.as_f64().map(|float| float as u64))
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use jsonwebtoken::{EncodingKey, Header, encode, jwk::Jwk};
    use proptest::prelude::*;
    use serde_json::json;

    const NOW: u64 = 1_800_000_000;

    struct Signer {
        key: EncodingKey,
        kid: &'static str,
    }

    impl Signer {
        fn new(kid: &'static str) -> Self {
            let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
            Self {
                key: EncodingKey::from_ec_der(&pair.serialize_der()),
                kid,
            }
        }

        fn jwks(&self) -> Jwks {
            let mut jwk = Jwk::from_encoding_key(&self.key, Algorithm::ES256).unwrap();
            jwk.common.key_id = Some(self.kid.into());
            Jwks::parse(&serde_json::to_vec(&JwkSet { keys: vec![jwk] }).unwrap()).unwrap()
        }

        fn sign(&self, claims: &Value) -> String {
            let header = Header {
                kid: Some(self.kid.into()),
                ..Header::new(Algorithm::ES256)
            };
            encode(&header, claims, &self.key).unwrap()
        }
    }

    fn claims() -> Value {
        json!({ "sub": "spiffe://cluster.local/ns/default/cart", "aud": ["shop", "bank"], "exp": NOW + 60 })
    }

    fn with(field: &str, value: Value) -> Value {
        let mut claims = claims();
        claims[field] = value;
        claims
    }

    #[test]
    fn a_good_token_says_whose_it_is() {
        let signer = Signer::new("k1");
        let verify = |claims: &Value, audience: &str| {
            signer
                .jwks()
                .verify(&signer.sign(claims), audience, &TrustDomain::default(), NOW)
        };
        let good = verify(&claims(), "bank").unwrap();
        assert_eq!(good.subject.as_str(), "spiffe://cluster.local/ns/default/cart");
        assert_eq!(good.all["exp"], NOW + 60);
        assert!(verify(&with("aud", "shop".into()), "shop").is_ok());
        // Within the difference that clocks may have.
        assert!(verify(&with("exp", (NOW - 5).into()), "shop").is_ok());
        assert!(verify(&with("nbf", (NOW + 5).into()), "shop").is_ok());
    }

    #[test]
    fn each_thing_that_is_wrong_is_refused() {
        let signer = Signer::new("k1");
        let domain = TrustDomain::default();
        let verify = |claims: &Value| signer.jwks().verify(&signer.sign(claims), "shop", &domain, NOW);
        assert_eq!(
            verify(&with("exp", (NOW - 60).into())),
            Err(JwtError::Expired(60))
        );
        assert_eq!(
            verify(&with("aud", json!(["other"]))),
            Err(JwtError::Audience("shop".into()))
        );
        for (field, value) in [
            ("exp", Value::Null),
            ("exp", json!(-1.5)),
            ("aud", Value::Null),
            ("nbf", (NOW + 60).into()),
            ("sub", "cart".into()),
            ("sub", "spiffe://elsewhere/ns/default/cart".into()),
        ] {
            let refused = verify(&with(field, value.clone()));
            assert!(
                matches!(refused, Err(JwtError::Form(_) | JwtError::Expired(_))),
                "{field} {value}: {refused:?}"
            );
        }
    }

    #[test]
    fn another_key_or_none_is_refused() {
        let (signer, domain) = (Signer::new("k1"), TrustDomain::default());
        let token = signer.sign(&claims());
        let verify = |jwks: &Jwks| jwks.verify(&token, "shop", &domain, NOW);
        assert!(verify(&signer.jwks()).is_ok());
        assert!(matches!(
            verify(&Signer::new("k1").jwks()),
            Err(JwtError::Signature(_))
        ));
        assert!(matches!(
            verify(&Signer::new("k2").jwks()),
            Err(JwtError::UnknownKey { .. })
        ));
        assert!(matches!(verify(&Jwks::empty()), Err(JwtError::UnknownKey { .. })));
        // Signed with a secret that everybody has: the public key.
        let header = Header {
            kid: Some("k1".into()),
            ..Header::new(Algorithm::HS256)
        };
        let secret = EncodingKey::from_secret(signer.jwks().json());
        let forged = encode(&header, &claims(), &secret).unwrap();
        assert!(matches!(
            signer.jwks().verify(&forged, "shop", &domain, NOW),
            Err(JwtError::Form(_))
        ));
    }

    #[test]
    fn keys_without_id_and_large_sets_are_refused() {
        let signer = Signer::new("k1");
        let mut set: JwkSet = serde_json::from_slice(signer.jwks().json()).unwrap();
        set.keys[0].common.key_id = None;
        assert!(Jwks::parse(&serde_json::to_vec(&set).unwrap()).is_err());
        assert!(Jwks::parse(&vec![b' '; MAX_KEYS + 1]).is_err());
        assert!(Jwks::parse(Jwks::empty().json()).is_ok());
    }

    proptest! {
        #[test]
        fn any_token_and_any_key_set_are_read(token in "[ -~]{0,120}", parts in "[A-Za-z0-9_.-]{0,120}", json in "\\PC{0,80}") {
            let jwks = Jwks::empty();
            for token in [token, parts] {
                prop_assert!(jwks.verify(&token, "shop", &TrustDomain::default(), NOW).is_err());
            }
            let _ = Jwks::parse(json.as_bytes());
        }
    }
}
