//! JWT-SVIDs: the keys that sign them, and what a token says.
//!
//! Keys live in the database beside roots and issuers and go the same way ([`crate::rotation`]);
//! here they are made, opened and used.

use crate::{
    core::{Core, Decision},
    db::{Audit, NewJwtKey, Op, Recorded, State, StoredJwtKey},
    error::StartError,
    kek::Kek,
    reason::Reason,
    refused::Refused,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk, jwk::ThumbprintHash};
use serde::Serialize;
use weft_model::SpiffeId;
use weft_rpc::Caller;

/// Label that sealed keys are bound to.
pub const LABEL: &str = "jwt";
/// Audiences of a token, and their length.
const MAX_AUDIENCES: usize = 16;
const MAX_AUDIENCE: usize = 1024;

/// A key that signs.
pub struct Signer {
    id: i64,
    kid: String,
    key: EncodingKey,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

/// What a token says.
#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    aud: &'a [String],
    iat: u64,
    exp: u64,
    jti: &'a str,
}

/// A token that was given.
#[derive(Debug)]
pub struct Token {
    /// Compact serialization.
    pub text: String,
    /// Whose it is.
    pub id: SpiffeId,
    /// When it ends, in seconds since the Unix epoch.
    pub not_after: u64,
}

fn unusable(what: impl std::fmt::Display) -> StartError {
    StartError::JwtKey(what.to_string())
}

/// Makes a key.
pub fn new_key(state: State, kek: &Kek) -> Result<Op, StartError> {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(unusable)?;
    let private = zeroize::Zeroizing::new(pair.serialize_der());
    let key = EncodingKey::from_ec_der(&private);
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).map_err(unusable)?;
    jwk.common.key_id = Some(jwk.thumbprint(ThumbprintHash::SHA256).map_err(unusable)?);
    Ok(Op::AddJwtKey(NewJwtKey {
        state,
        jwk: serde_json::to_vec(&jwk).map_err(unusable)?,
        sealed_key: kek.seal(LABEL, &private)?,
    }))
}

/// The set of all keys' public halves: RFC 7517, JSON.
pub fn set(keys: &[StoredJwtKey]) -> Result<Vec<u8>, StartError> {
    let keys: Result<Vec<Jwk>, _> = keys.iter().map(|key| serde_json::from_slice(&key.jwk)).collect();
    let keys = keys.map_err(unusable)?;
    serde_json::to_vec(&jsonwebtoken::jwk::JwkSet { keys }).map_err(unusable)
}

impl Signer {
    /// Opens the stored key.
    pub fn open(stored: &StoredJwtKey, kek: &Kek) -> Result<Self, StartError> {
        let sealed = stored
            .sealed_key
            .as_ref()
            .ok_or(StartError::Incomplete("key for JWT-SVIDs"))?;
        let jwk: Jwk = serde_json::from_slice(&stored.jwk).map_err(unusable)?;
        Ok(Self {
            id: stored.id,
            kid: jwk.common.key_id.unwrap_or_default(),
            key: EncodingKey::from_ec_der(&kek.open_sealed(LABEL, sealed)?),
        })
    }

    fn sign(&self, claims: &Claims<'_>) -> Decision<String> {
        let header = Header {
            kid: Some(self.kid.clone()),
            ..Header::new(Algorithm::ES256)
        };
        encode(&header, claims, &self.key).map_err(|error| {
            tracing::error!(%error, "a token could not be signed");
            Refused::internal()
        })
    }
}

impl Core {
    /// A token for a workload of the calling node.
    pub async fn sign_jwt(&self, caller: &Caller, workload_id: &str, audience: &[String]) -> Decision<Token> {
        let shown: String = workload_id.chars().take(512).collect();
        let mut asked = self.asked("sign-jwt", caller, &shown);
        let checked = async {
            check_audience("audience", audience)?;
            let (id, _node) = self.check_hosted(caller, &mut asked, workload_id).await?;
            // A revoked identity gets no tokens either.
            self.may_begin(&id)?;
            Ok(id)
        }
        .await;
        let id = self.or_record(&asked, checked).await?;
        self.give_token(&asked, &id, audience).await
    }

    /// Signs a token and records it; when this returns, the record is on the disk.
    pub(crate) async fn give_token(
        &self,
        asked: &Audit,
        id: &SpiffeId,
        audience: &[String],
    ) -> Decision<Token> {
        let given = self.try_token_for(asked, id, audience).await;
        self.or_record(asked, given).await
    }

    async fn try_token_for(&self, asked: &Audit, id: &SpiffeId, audience: &[String]) -> Decision<Token> {
        let mut again = true;
        loop {
            let live = self.live.load_full();
            let signer = live.jwt.as_ref().ok_or_else(|| {
                Refused::unavailable(
                    Reason::JwtKeyNotReady,
                    "the key for JWT-SVIDs is being made; ask again in a second",
                )
            })?;
            let now = self.now();
            let serial = format!("{:032x}", rand::random::<u128>());
            let claims = Claims {
                sub: id.as_str(),
                aud: audience,
                iat: now,
                exp: now + self.settings.jwt_ttl_seconds,
                jti: &serial,
            };
            let text = signer.sign(&claims)?;
            let not_after = claims.exp;
            let entry = Audit {
                spiffe_id: id.to_string(),
                serial,
                not_after,
                time: now,
                ..asked.clone()
            };
            let recorded = Recorded {
                entry,
                issuer_id: signer.id,
            };
            match self.recorder.record(recorded).await {
                // Another replica dropped the key before this one heard of it.
                Err(refused) if again && refused.is_stale_issuer() => {
                    again = false;
                    Box::pin(self.refresh()).await?;
                }
                recorded => {
                    recorded?;
                    self.counts.issued(asked.action);
                    return Ok(Token {
                        text,
                        id: id.clone(),
                        not_after,
                    });
                }
            }
        }
    }
}

/// Whom tokens may be for, from this field of a request.
pub fn check_audience(field: &'static str, audience: &[String]) -> Decision<()> {
    let sound = (1..=MAX_AUDIENCES).contains(&audience.len())
        && audience.iter().all(|one| (1..=MAX_AUDIENCE).contains(&one.len()));
    sound.then_some(()).ok_or_else(|| {
        Refused::field(
            field,
            format!("{field} must have 1 to {MAX_AUDIENCES} entries of 1 to {MAX_AUDIENCE} bytes"),
        )
    })
}
