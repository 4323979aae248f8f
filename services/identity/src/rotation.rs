//! What has to happen next to roots and issuers, decided from what is stored: so a process that
//! dies in the middle, or another replica, goes on where it was.
//!
//! A root goes through three states. *Prepared*: it is in the bundle, and signs nothing until every
//! connected member has said that it verifies by that bundle. *Active*: its issuer signs. *Retired*:
//! it stays in the bundle until nothing lives that depends on it. Members that were away meanwhile
//! know the old root alone: until it is dropped, chains hold the new issuer's key under it as well.

use crate::{
    authority::{AuthorityError, validity},
    db::{State, StoredIssuer, StoredRoot, StoredTrust},
};
use rustls_pki_types::CertificateDer;

/// How long a key for JWT-SVIDs is meant to live, seconds; at half of it the next one is made.
const JWT_KEY_LIFE: u64 = 60 * 24 * 3600;

/// The next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A new root is made and given to verifiers.
    Prepare,
    /// The prepared root of this id begins to sign.
    Activate(i64),
    /// A new issuer under the active root.
    Reissue,
    /// A key for JWT-SVIDs is made and given to verifiers.
    PrepareJwtKey,
    /// The prepared key of this id begins to sign.
    ActivateJwtKey(i64),
    /// An issuer, root or key is no longer needed; whether the bundle has it.
    Drop(i64, bool),
}

/// Where the rotation of the root stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// One root.
    None,
    /// A prepared one is on its way to the members.
    Distributing,
    /// Something still depends on a retired one.
    Retiring,
}

impl Phase {
    /// Of what is stored.
    pub fn of(trust: &StoredTrust) -> Self {
        let any = |state| trust.roots.iter().any(|r| r.state == state);
        if any(State::Prepared) {
            Self::Distributing
        } else if any(State::Retired) {
            Self::Retiring
        } else {
            Self::None
        }
    }

    /// As the protocol writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Distributing => "distributing",
            Self::Retiring => "retiring",
        }
    }
}

/// The next step at `now`; `acked` is the oldest bundle that a connected member verifies by, and
/// `own_roots` says that roots are made here and not by the operator.
pub fn next(trust: &StoredTrust, acked: u64, now: u64, own_roots: bool) -> Option<Step> {
    if let Some(prepared) = trust.roots.iter().find(|r| r.state == State::Prepared) {
        // Nothing else moves meanwhile: one thing at a time can be understood by who watches.
        return (acked >= trust.bundle_version).then_some(Step::Activate(prepared.id));
    }
    let root = trust.active_root()?;
    if own_roots && root.sealed_key.is_some() && is_due(&root.cert, now) {
        return Some(Step::Prepare);
    }
    let issuer_due = trust.active_issuer().is_none_or(|i| is_due(&i.cert, now));
    // An issuer ends with its root: a new one would be no younger.
    let would_help = !ends_together(trust, root);
    if issuer_due && root.sealed_key.is_some() && would_help {
        return Some(Step::Reissue);
    }
    if let Some(issuer) = trust.issuers.iter().find(|i| is_over(i, now)) {
        return Some(Step::Drop(issuer.id, false));
    }
    let unused = |root: &&StoredRoot| {
        let signs = trust.issuers.iter().any(|i| i.root_id == root.id);
        root.state == State::Retired && !signs && now > root.signed_until
    };
    if let Some(root) = trust.roots.iter().find(unused) {
        return Some(Step::Drop(root.id, true));
    }
    next_jwt_key(trust, acked, now)
}

/// Keys for JWT-SVIDs go the way of roots: known to all before they sign, kept until no token needs
/// them.
fn next_jwt_key(trust: &StoredTrust, acked: u64, now: u64) -> Option<Step> {
    let of = |state| trust.jwt_keys.iter().find(move |k| k.state == state);
    if let Some(prepared) = of(State::Prepared) {
        // Where nothing signs yet, nobody is harmed by a token that a slow member can not read.
        let known = acked >= trust.bundle_version || of(State::Active).is_none();
        return known.then_some(Step::ActivateJwtKey(prepared.id));
    }
    if of(State::Active).is_none_or(|k| now >= k.created_at + JWT_KEY_LIFE / 2) {
        return Some(Step::PrepareJwtKey);
    }
    let retired = trust.jwt_keys.iter().filter(|k| k.state == State::Retired);
    let mut unused = retired.filter(|k| now > k.signed_until);
    unused.next().map(|key| Step::Drop(key.id, true))
}

fn is_over(issuer: &StoredIssuer, now: u64) -> bool {
    issuer.state == State::Retired && now > issuer.signed_until
}

fn ends_together(trust: &StoredTrust, root: &StoredRoot) -> bool {
    let end = |cert: &CertificateDer<'_>| life(cert).map(|(_, end)| end).ok();
    trust
        .active_issuer()
        .is_some_and(|i| end(&i.cert).is_some() && end(&i.cert) == end(&root.cert))
}

/// Beginning and end, whatever the clock says.
pub fn life(cert: &CertificateDer<'_>) -> Result<(u64, u64), AuthorityError> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(cert).map_err(|e| AuthorityError::Stored(e.to_string()))?;
    let seconds = |t: i64| u64::try_from(t).unwrap_or(0);
    let validity = parsed.validity();
    Ok((
        seconds(validity.not_before.timestamp()),
        seconds(validity.not_after.timestamp()),
    ))
}

/// Whether half of its life is over.
fn is_due(cert: &CertificateDer<'_>, now: u64) -> bool {
    life(cert).is_ok_and(|(begin, end)| now >= begin + end.saturating_sub(begin) / 2)
}

/// Whether the clock is inside of a certificate's life.
pub fn is_valid(cert: &CertificateDer<'_>, now: u64) -> bool {
    validity("issuer", cert, now).is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        authority::{KeyType, Maker},
        db::StoredJwtKey,
    };
    use std::time::Duration;
    use weft_model::TrustDomain;

    const NOW: u64 = 1_800_000_000;
    const ROOT: u64 = 100_000;
    const ISSUER: u64 = 10_000;

    fn next(trust: &StoredTrust, acked: u64, now: u64) -> Option<Step> {
        super::next(trust, acked, now, true)
    }

    fn trust() -> StoredTrust {
        let maker = Maker {
            trust_domain: TrustDomain::default(),
            key_type: KeyType::P256,
            root_lifetime: Duration::from_secs(ROOT),
            issuer_lifetime: Duration::from_secs(ISSUER),
        };
        let root = maker.root(NOW).unwrap();
        let issuer = maker.issuer(&root.cert, &root.key, NOW).unwrap();
        StoredTrust {
            trust_domain: String::new(),
            bundle_version: 7,
            generation: 1,
            newest_own: 0,
            renew_before: 0,
            roots: vec![StoredRoot {
                id: 1,
                state: State::Active,
                cert: root.cert,
                sealed_key: Some(vec![1]),
                signed_until: 0,
            }],
            issuers: vec![StoredIssuer {
                id: 2,
                state: State::Active,
                root_id: 1,
                cert: issuer.cert,
                cross: None,
                sealed_key: Some(vec![1]),
                signed_until: 0,
            }],
            revocations: Vec::new(),
            jwt_keys: vec![StoredJwtKey {
                id: 9,
                state: State::Active,
                jwk: Vec::new(),
                sealed_key: Some(vec![1]),
                created_at: NOW,
                signed_until: 0,
            }],
        }
    }

    #[test]
    fn a_key_for_tokens_signs_when_all_know_it_and_goes_when_no_token_needs_it() {
        let mut trust = trust();
        trust.jwt_keys.clear();
        assert_eq!(next(&trust, 0, NOW), Some(Step::PrepareJwtKey));
        let key = |id, state, created_at| StoredJwtKey {
            id,
            state,
            jwk: Vec::new(),
            sealed_key: None,
            created_at,
            signed_until: 0,
        };
        trust.jwt_keys = vec![key(9, State::Prepared, NOW)];
        assert_eq!(
            next(&trust, 0, NOW),
            Some(Step::ActivateJwtKey(9)),
            "nothing signs yet"
        );
        trust.jwt_keys = vec![key(9, State::Active, NOW - JWT_KEY_LIFE / 2 + 10)];
        assert_eq!(next(&trust, 7, NOW + 9), None);
        assert_eq!(next(&trust, 7, NOW + 10), Some(Step::PrepareJwtKey));
        trust.jwt_keys.push(key(10, State::Prepared, NOW));
        assert_eq!(next(&trust, 6, NOW + 10), None, "somebody does not know it yet");
        assert_eq!(next(&trust, 7, NOW + 10), Some(Step::ActivateJwtKey(10)));
        trust.jwt_keys[0].state = State::Retired;
        trust.jwt_keys[0].signed_until = NOW + 50;
        trust.jwt_keys[1].state = State::Active;
        assert_eq!(next(&trust, 7, NOW + 50), None, "a token lives");
        assert_eq!(next(&trust, 7, NOW + 51), Some(Step::Drop(9, true)));
    }

    #[test]
    fn half_a_life_is_when_the_next_one_is_made() {
        let trust = trust();
        assert_eq!(next(&trust, 7, NOW), None);
        assert_eq!(next(&trust, 7, NOW + ISSUER / 2 - 600), None);
        assert_eq!(next(&trust, 7, NOW + ISSUER / 2), Some(Step::Reissue));
        assert_eq!(next(&trust, 7, NOW + ROOT / 2), Some(Step::Prepare));
        assert_eq!(super::next(&trust, 7, NOW + ROOT / 2, false), Some(Step::Reissue));
        // What the operator keeps is not made here.
        let mut supplied = trust;
        supplied.roots[0].sealed_key = None;
        assert_eq!(next(&supplied, 7, NOW + ROOT / 2), None);
    }

    #[test]
    fn a_root_signs_when_all_know_it_and_goes_when_none_needs_it() {
        let mut trust = trust();
        let mut second = trust.roots[0].clone();
        (second.id, second.state) = (3, State::Prepared);
        trust.roots.push(second);
        assert_eq!(Phase::of(&trust), Phase::Distributing);
        assert_eq!(next(&trust, 6, NOW), None, "somebody does not know it yet");
        // Even if the issuer is due meanwhile.
        assert_eq!(next(&trust, 6, NOW + ISSUER), None);
        assert_eq!(next(&trust, 7, NOW), Some(Step::Activate(3)));

        let mut issuer = trust.issuers[0].clone();
        (issuer.id, issuer.root_id) = (4, 3);
        trust.issuers.push(issuer);
        trust.roots[0].state = State::Retired;
        trust.roots[1].state = State::Active;
        trust.issuers[0].state = State::Retired;
        trust.issuers[0].signed_until = NOW + 50;
        trust.roots[0].signed_until = NOW + 80;
        assert_eq!(Phase::of(&trust), Phase::Retiring);
        assert_eq!(next(&trust, 7, NOW + 50), None, "a certificate lives");
        assert_eq!(next(&trust, 7, NOW + 51), Some(Step::Drop(2, false)));
        trust.issuers.remove(0);
        assert_eq!(next(&trust, 7, NOW + 80), None, "a join token lives");
        assert_eq!(next(&trust, 7, NOW + 81), Some(Step::Drop(1, true)));
        trust.roots.remove(0);
        assert_eq!(
            (Phase::of(&trust), next(&trust, 7, NOW + 81)),
            (Phase::None, None)
        );
    }
}
