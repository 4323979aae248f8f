//! JWTs of another issuer. The subject is the SPIFFE ID that is asked for; everything else that a
//! token can be wrong in has its own reason.

use super::{config::JwtConfig, fetch::Place, jwks::Keys};
use crate::{
    core::Decision,
    db::{Db, TokenUse},
    error::StartError,
    reason::Reason,
    refused::Refused,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, Validation, errors::ErrorKind};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{str::FromStr, time::Duration};
use tonic::Code;
use weft_tls::Clock;

/// A token that is good for longer is no evidence of who asks now.
const MAX_LIFE: u64 = 24 * 3600;
/// Longer IDs of tokens are not remembered.
const MAX_JTI: usize = 256;

#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    /// Extensions that have to be understood; none are.
    #[serde(default)]
    crit: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
    #[serde(default)]
    aud: Option<Audience>,
    /// Some issuers write fractions.
    exp: f64,
    #[serde(default)]
    nbf: Option<f64>,
    #[serde(default)]
    iss: Option<String>,
    #[serde(default)]
    jti: Option<String>,
}

/// What a sound token says.
#[derive(Debug, PartialEq)]
pub(super) struct Shown {
    pub subject: String,
    /// If it is good for one key.
    pub once: Option<Once>,
}

/// A token that is good for one key: what it is remembered by, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Once {
    id: String,
    until: u64,
}

/// The issuer.
pub(super) struct Jwt {
    keys: Keys,
    audiences: Vec<String>,
    issuer: Option<String>,
    algorithms: Vec<Algorithm>,
    leeway: u64,
    single_use: bool,
    clock: Clock,
    db: Db,
}

impl std::fmt::Debug for Jwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwt")
            .field("audiences", &self.audiences)
            .finish_non_exhaustive()
    }
}

fn malformed(what: &str) -> Refused {
    Refused::denied(
        Reason::TokenMalformed,
        format!("the token is no signed JWT: {what}"),
    )
    .with_code(Code::InvalidArgument)
}

fn part<T: serde::de::DeserializeOwned>(text: &str, what: &str) -> Decision<T> {
    let bytes = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| malformed(&format!("its {what} is not base64url")))?;
    serde_json::from_slice(&bytes).map_err(|_| malformed(&format!("its {what} is not the JSON of one")))
}

impl Jwt {
    /// Reads the settings; the keys are read when the first token comes.
    pub fn new(settings: &JwtConfig, clock: Clock, db: Db) -> Result<Self, StartError> {
        let place = Place::new(&settings.jwks, settings.ca_file.as_ref())?;
        let timeout = Duration::from_secs(settings.timeout_seconds);
        Ok(Self {
            keys: Keys::new(place, settings.refresh_seconds, timeout, clock.clone()),
            audiences: settings.audiences.clone(),
            issuer: settings.issuer.clone(),
            algorithms: settings.algorithms.iter().map(|a| (*a).into()).collect(),
            leeway: settings.leeway_seconds,
            single_use: settings.single_use,
            clock,
            db,
        })
    }

    /// Checks everything but whom it names.
    pub async fn check(&self, token: &str, who: &mut String) -> Decision<Shown> {
        let header = header(token)?;
        let algorithm = Algorithm::from_str(&header.alg)
            .ok()
            .filter(|algorithm| self.algorithms.contains(algorithm));
        let Some(algorithm) = algorithm else {
            let shown: String = header.alg.chars().take(40).collect();
            let reason = format!(
                "the token is signed with {shown:?}, permitted are {:?}",
                self.algorithms
            );
            return Err(Refused::denied(Reason::TokenAlgorithm, reason));
        };
        let key = self
            .keys
            .find(header.kid.as_deref(), &header.alg, algorithm.family())
            .await?;
        // Only the signature is the library's: times are judged by the clock of this service.
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        let claims =
            jsonwebtoken::decode::<Claims>(token, &key.key, &validation).map_err(|e| match e.kind() {
                ErrorKind::Json(_) | ErrorKind::Utf8(_) | ErrorKind::Base64(_) => {
                    malformed("its claims are not sub, exp and what belongs to them")
                }
                _ => Refused::denied(
                    Reason::TokenInvalid,
                    "the token's signature does not fit the issuer's key",
                ),
            })?;
        self.judge(claims.claims, who)
    }

    fn judge(&self, claims: Claims, who: &mut String) -> Decision<Shown> {
        let shown = |text: &str| {
            text.chars()
                .filter(|c| !c.is_control())
                .take(256)
                .collect::<String>()
        };
        *who = match &claims.iss {
            Some(issuer) => format!("jwt:{} (issuer {})", shown(&claims.sub), shown(issuer)),
            None => format!("jwt:{}", shown(&claims.sub)),
        };
        let denied = |reason: Reason, text: String| Err(Refused::denied(reason, text));
        if self.issuer.is_some() && claims.iss != self.issuer {
            let text = format!("the token's issuer (iss) is {:?}", claims.iss.unwrap_or_default());
            return denied(Reason::TokenInvalid, text);
        }
        let meant = match &claims.aud {
            None => &[][..],
            Some(Audience::One(one)) => std::slice::from_ref(one),
            Some(Audience::Many(many)) => many,
        };
        if !meant.iter().any(|audience| self.audiences.contains(audience)) {
            let text = format!(
                "the token's audience (aud) is none of {}",
                self.audiences.join(", ")
            );
            return denied(Reason::TokenAudience, text);
        }
        let now = self.clock.unix_seconds();
        let ends = seconds(claims.exp)?;
        if now >= ends.saturating_add(self.leeway) {
            let text = format!("the token expired {} s ago", now - ends);
            return denied(Reason::TokenExpired, text);
        }
        if ends > now + MAX_LIFE {
            let text = format!(
                "the token is good for {} s more, at most {MAX_LIFE} are taken",
                ends - now
            );
            return denied(Reason::TokenInvalid, text);
        }
        if let Some(begins) = claims.nbf.map(seconds).transpose()?
            && now.saturating_add(self.leeway) < begins
        {
            let text = format!("the token is good only in {} s", begins - now);
            return denied(Reason::TokenNotYetValid, text);
        }
        let once = match claims.jti.filter(|jti| self.single_use && !jti.is_empty()) {
            Some(jti) if jti.len() > MAX_JTI => {
                return Err(malformed(&format!(
                    "its jti has {} bytes, at most {MAX_JTI}",
                    jti.len()
                )));
            }
            Some(jti) => {
                let mut digest = Sha256::new();
                digest.update(claims.iss.unwrap_or_default());
                digest.update([0]);
                digest.update(jti);
                Some(Once {
                    id: hex::encode(digest.finalize()),
                    until: ends + self.leeway,
                })
            }
            None => None,
        };
        Ok(Shown {
            subject: claims.sub,
            once,
        })
    }

    /// Remembers the token until it is over, in the database that all replicas share: whoever else
    /// shows it, with another key, gets nothing. The same request may be made again.
    pub async fn use_up(&self, once: &Once, key: &[u8]) -> Decision<()> {
        let key = hex::encode(Sha256::digest(key));
        let used = self
            .db
            .use_token_once(&once.id, &key, once.until, self.clock.unix_seconds())
            .await?;
        match used {
            TokenUse::First | TokenUse::SameKey => Ok(()),
            TokenUse::Replayed => Err(Refused::denied(
                Reason::TokenReplayed,
                "the token was used already, for another key; ask its issuer for a new one",
            )),
            TokenUse::Full => Err(Refused::unavailable(
                Reason::AttestorAway,
                "too many tokens with an ID (jti) have to be remembered; ask again later",
            )),
        }
    }
}

fn header(token: &str) -> Decision<Header> {
    let mut parts = token.split('.');
    let (Some(first), Some(_), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed("it does not have three parts"));
    };
    let header: Header = part(first, "header")?;
    if header.crit.is_some() {
        return Err(malformed("it has extensions (crit) that are not known"));
    }
    Ok(header)
}

/// Whole seconds of a time in a token.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn seconds(time: f64) -> Decision<u64> {
    // 2^53: what a number in JSON can say exactly.
    if time.is_finite() && (0.0..9_007_199_254_740_992.0).contains(&time) {
        Ok(time as u64)
    } else {
        Err(malformed("a time in it is none"))
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_that_are_none_are_refused() {
        assert_eq!(seconds(1_800_000_000.75), Ok(1_800_000_000));
        for bad in [-1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_panic(text in "\\PC{0,200}", parts in "[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}") {
            let _ = header(&text);
            let _ = header(&parts);
        }
    }
}
