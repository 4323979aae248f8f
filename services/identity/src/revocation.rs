//! What is revoked: an identity, or one certificate. Stored with the authority, so that it is told
//! to members on the stream that tells them the roots.

use crate::{
    core::{Core, Decision},
    db::{Audit, Op, Revocation, Target},
    reason::Reason,
    refused::Refused,
};
use std::{collections::BTreeMap, sync::Arc};
use weft_model::{Principal, SpiffeId};
use weft_proto::weft::identity::v1 as pb;
use weft_rpc::Caller;
use weft_tls::Revoked;

/// No certificate lives longer than this many seconds, see `ttl_seconds` in the configuration.
const LONGEST: u64 = 30 * 24 * 3600;
/// More would not fit into a message to the members.
const MAX_REVOCATIONS: usize = 10_000;
const MAX_REASON: usize = 512;

/// All that is revoked, by what it meets.
pub type Revocations = Arc<BTreeMap<String, Revocation>>;

/// As handshakes ask it.
pub fn verifiers_view(revocations: &BTreeMap<String, Revocation>) -> Revoked {
    let mut revoked = Revoked::new();
    for it in revocations.values() {
        weft_enroll::add_revocation(&mut revoked, &it.target.text(), it.valid_from);
    }
    revoked
}

/// What a member has to be told that was told `before`; everything when that is nothing.
pub fn change(before: Option<&Revocations>, now: &Revocations) -> Option<pb::Revocations> {
    if before.is_some_and(|before| Arc::ptr_eq(before, now)) {
        return None;
    }
    let told = |it: &Revocation| pb::Revocation {
        target: it.target.text(),
        valid_from: it.valid_from,
        ..Default::default()
    };
    let is_new = |(key, it): &(&String, &Revocation)| {
        let same = before.and_then(|b| b.get(*key));
        same.is_none_or(|b| b.valid_from != it.valid_from)
    };
    let removed = before
        .iter()
        .flat_map(|b| b.keys())
        .filter(|k| !now.contains_key(*k));
    Some(pb::Revocations {
        snapshot: before.is_none(),
        upserts: now.iter().filter(is_new).map(|(_, it)| told(it)).collect(),
        removed: removed.cloned().collect(),
    })
}

/// What an operator wrote.
fn parse(text: &str) -> Decision<Target> {
    if text.starts_with("spiffe://") {
        let id: SpiffeId = text
            .parse()
            .map_err(|e| Refused::field("target", format!("{e}")))?;
        return Ok(Target::Identity(id));
    }
    let serial: String = text.chars().filter(|c| *c != ':').collect();
    let serial = serial.to_ascii_lowercase();
    let sound = (2..=40).contains(&serial.len()) && serial.bytes().all(|c| c.is_ascii_hexdigit());
    sound.then_some(Target::Serial(serial)).ok_or_else(|| {
        let shown: String = text.chars().take(80).collect();
        Refused::field(
            "target",
            format!("{shown:?} is neither a SPIFFE ID nor the serial number of a certificate"),
        )
    })
}

impl Core {
    /// What is revoked, as handshakes ask it.
    pub fn revoked(&self) -> Revoked {
        verifiers_view(&self.live.load().revocations)
    }

    /// Refuses a caller whose certificate was revoked after it connected.
    pub fn check_caller(&self, caller: &Caller) -> Decision<()> {
        match caller {
            Caller::Tls(peer) if self.revoked_now.load().contains(peer) => {
                let text = format!("the certificate of {} is revoked", peer.id);
                Err(Refused::denied(Reason::CallerRevoked, text).about("certificate", &peer.serial))
            }
            _ => Ok(()),
        }
    }

    /// When certificates of an identity may begin; refused while it is revoked.
    pub(crate) fn may_begin(&self, id: &SpiffeId) -> Decision<u64> {
        let live = self.live.load();
        let revoked = live.revocations.get(id.as_str());
        match revoked {
            Some(it) if it.valid_from == u64::MAX => {
                let text = format!(
                    "{id} is revoked: {}; `weft identity reinstate {id}` lets it have certificates again",
                    it.reason
                );
                Err(Refused::denied(Reason::IdentityRevoked, text).about("identity", id.as_str()))
            }
            Some(it) => Ok(it.valid_from),
            None => Ok(0),
        }
    }

    /// Revokes an identity or a serial.
    pub async fn revoke(&self, caller: &Caller, target: &str, reason: &str) -> Decision<()> {
        let asked = self.asked("revoke", caller, target);
        let done = async {
            let revocation = self.check_revocation(target, reason).await?;
            self.set_revocation(&asked, revocation, reason).await
        };
        let done = done.await;
        self.or_record(&asked, done).await
    }

    async fn check_revocation(&self, target: &str, reason: &str) -> Decision<Revocation> {
        let target = parse(target)?;
        if reason.trim().is_empty() || reason.len() > MAX_REASON || reason.contains(char::is_control) {
            let text = format!(
                "a reason of 1 to {MAX_REASON} characters on one line is required, for the audit record"
            );
            return Err(Refused::field("reason", text));
        }
        if self.live.load().revocations.len() >= MAX_REVOCATIONS {
            let text =
                format!("{MAX_REVOCATIONS} revocations are in force; rotate the issuer or the root instead");
            return Err(Refused::precondition(Reason::RevocationsFull, text).about("revocations", "all"));
        }
        let now = self.now();
        let until = match &target {
            Target::Identity(id) => {
                self.check_revocable(id)?;
                u64::MAX
            }
            Target::Serial(serial) => {
                let ends = self.db.certificate_end(serial).await?;
                ends.unwrap_or(now + LONGEST)
            }
        };
        let valid_from = if matches!(target, Target::Identity(_)) {
            u64::MAX
        } else {
            0
        };
        Ok(Revocation {
            target,
            valid_from,
            reason: reason.trim().to_owned(),
            created_at: now,
            until,
        })
    }

    fn check_revocable(&self, id: &SpiffeId) -> Decision<()> {
        if id.trust_domain() != self.trust_domain {
            let text = format!("{id} is not of trust domain {}", self.trust_domain);
            return Err(Refused::field("target", text));
        }
        // Without it nobody could be told anything, also not that it is reinstated.
        if matches!(id.principal(), Principal::Service(name) if name == crate::core::OWN_NAME) {
            return Err(Refused::field(
                "target",
                "the identity service can not revoke itself; rotate the root, or revoke one serial",
            ));
        }
        Ok(())
    }

    /// Lets a revoked identity have certificates again.
    pub async fn reinstate(&self, caller: &Caller, id: &str) -> Decision<()> {
        let asked = self.asked("reinstate", caller, id);
        let done = self.try_reinstate(&asked, id).await;
        self.or_record(&asked, done).await
    }

    async fn try_reinstate(&self, asked: &Audit, id: &str) -> Decision<()> {
        let held = self.live.load().revocations.get(id).cloned();
        let held = held.filter(|it| it.valid_from == u64::MAX).ok_or_else(|| {
            let shown: String = id.chars().take(200).collect();
            let text = format!("{shown:?} is not revoked");
            Refused::missing(Reason::NotRevoked, text).about("identity", &shown)
        })?;
        let reason = held.reason.clone();
        // What it had before stays revoked until it has expired.
        let changed = Revocation {
            valid_from: self.now(),
            until: self.now() + LONGEST,
            ..held
        };
        self.set_revocation(asked, changed, &reason).await
    }

    async fn set_revocation(&self, asked: &Audit, revocation: Revocation, reason: &str) -> Decision<()> {
        // Recorded first: a revocation that is not recorded does not happen.
        let spiffe_id = format!("{} ({reason})", asked.spiffe_id);
        self.record_order(Audit {
            spiffe_id,
            ..asked.clone()
        })
        .await?;
        // Another change may come between.
        const TRIES: usize = 8;
        for _ in 0..TRIES {
            if self.change_now(&[Op::Revoke(revocation.clone())]).await? {
                tracing::warn!(target = revocation.target.text(), reason, "revoked");
                return Ok(());
            }
        }
        Err(Refused::unavailable(
            Reason::AuthorityBusy,
            "the authority is changed by others all the time; try again",
        ))
    }

    /// What is revoked, for operators.
    pub fn list_revocations(&self) -> Vec<Revocation> {
        self.live.load().revocations.values().cloned().collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn list(entries: &[(&str, u64)]) -> Revocations {
        let entry = |(target, valid_from): &(&str, u64)| {
            let it = Revocation {
                target: parse(target).unwrap(),
                valid_from: *valid_from,
                reason: "r".into(),
                created_at: 0,
                until: 0,
            };
            (it.target.text(), it)
        };
        Arc::new(entries.iter().map(entry).collect())
    }

    const CART: &str = "spiffe://cluster.local/ns/default/cart";

    #[test]
    fn only_changes_are_told() {
        let first = list(&[(CART, u64::MAX), ("0a0b", 0)]);
        let all = change(None, &first).unwrap();
        assert!(all.snapshot && all.upserts.len() == 2 && all.removed.is_empty());
        assert_eq!(change(Some(&first), &first), None);
        let second = list(&[(CART, 5), ("0c0d", 0)]);
        let delta = change(Some(&first), &second).unwrap();
        let told: Vec<_> = delta
            .upserts
            .iter()
            .map(|r| (r.target.as_str(), r.valid_from))
            .collect();
        assert_eq!(told, [("0c0d", 0), (CART, 5)]);
        assert_eq!((delta.snapshot, delta.removed), (false, vec!["0a0b".to_owned()]));
    }

    #[test]
    fn targets_are_read_strictly() {
        assert_eq!(parse("0A:0b").unwrap(), Target::Serial("0a0b".into()));
        assert_eq!(parse(CART).unwrap().text(), CART);
        for bad in ["", "x", "0a 0b", "spiffe://", "https://a/b", &"a".repeat(41)] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
