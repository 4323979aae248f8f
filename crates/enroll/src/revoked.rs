//! What is revoked, as a member is told it and keeps it between its starts: without the identity
//! service, what was revoked stays so.

use std::{collections::BTreeMap, fmt::Write as _};
use weft_model::{Principal, SpiffeId};
use weft_proto::weft::identity::v1::Revocations;
use weft_tls::Revoked;

/// More than the identity service has.
const MAX_REVOCATIONS: usize = 100_000;

/// By identity or serial: from when on certificates are good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RevocationList(BTreeMap<String, u64>);

/// Adds one revocation to what handshakes ask: of a SPIFFE ID (then certificates that begin before
/// `valid_from`; of a node, also those that it holds for workloads), or of a serial.
pub fn add_revocation(revoked: &mut Revoked, target: &str, valid_from: u64) {
    match target.parse::<SpiffeId>() {
        Ok(id) => {
            if let Principal::Node(name) = id.principal() {
                revoked.node(&name, valid_from);
            }
            revoked.identity(id, valid_from);
        }
        Err(_) => revoked.serial(target),
    }
}

impl RevocationList {
    /// Takes over a change.
    pub fn apply(&mut self, change: Revocations) -> Result<(), String> {
        if change.snapshot {
            self.0.clear();
        }
        for it in change.upserts {
            self.0.insert(it.target, it.valid_from);
        }
        for target in &change.removed {
            self.0.remove(target);
        }
        if self.0.len() > MAX_REVOCATIONS {
            return Err(format!("{} revocations, at most {MAX_REVOCATIONS}", self.0.len()));
        }
        Ok(())
    }

    /// As handshakes ask it.
    pub fn revoked(&self) -> Revoked {
        let mut revoked = Revoked::new();
        for (target, valid_from) in &self.0 {
            add_revocation(&mut revoked, target, *valid_from);
        }
        revoked
    }

    /// A line for each.
    pub fn to_text(&self) -> String {
        self.0
            .iter()
            .fold(String::new(), |mut text, (target, valid_from)| {
                // Writing to a string does not fail.
                let _ = writeln!(text, "{valid_from} {target}");
                text
            })
    }

    /// What [`RevocationList::to_text`] wrote.
    pub fn from_text(text: &str) -> Result<Self, String> {
        let line = |line: &str| {
            let (valid_from, target) = line.split_once(' ')?;
            Some((target.to_owned(), valid_from.parse().ok()?))
        };
        let read: Option<BTreeMap<_, _>> = text.lines().map(line).collect();
        read.map(Self).ok_or_else(|| "not a list of revocations".into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_proto::weft::identity::v1::Revocation;

    fn change(snapshot: bool, upserts: &[(&str, u64)], removed: &[&str]) -> Revocations {
        Revocations {
            snapshot,
            upserts: upserts
                .iter()
                .map(|(target, valid_from)| Revocation {
                    target: (*target).into(),
                    valid_from: *valid_from,
                    ..Default::default()
                })
                .collect(),
            removed: removed.iter().map(|r| (*r).into()).collect(),
        }
    }

    #[test]
    fn changes_add_up_and_are_read_back() {
        let node = "spiffe://cluster.local/weft/node/n1";
        let mut list = RevocationList::default();
        list.apply(change(true, &[("0a", 0), (node, u64::MAX)], &[]))
            .unwrap();
        list.apply(change(false, &[("0b", 0)], &["0a"])).unwrap();
        let mut expected = Revoked::new();
        expected.serial("0b");
        expected.identity(node.parse().unwrap(), u64::MAX);
        expected.node("n1", u64::MAX);
        assert_eq!(list.revoked(), expected);
        assert_eq!(RevocationList::from_text(&list.to_text()).unwrap(), list);
        list.apply(change(true, &[], &[])).unwrap();
        assert!(list.revoked().is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,100}") {
            if let Ok(list) = RevocationList::from_text(&text) {
                prop_assert_eq!(RevocationList::from_text(&list.to_text()).unwrap(), list);
            }
        }
    }
}
