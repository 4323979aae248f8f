//! Certificates that are good no more before they expire.
//!
//! Owns what a revocation matches. Who decides on one and how it gets here is the identity
//! service's; [`crate::Trust`] holds the list, handshakes ask it, and whoever keeps connections
//! open closes them when it changes.

use crate::PeerIdentity;
use std::collections::{HashMap, HashSet};
use weft_model::SpiffeId;

/// All that is revoked. Lists say the whole truth: a new one replaces the one before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revoked {
    serials: HashSet<Box<str>>,
    identities: HashMap<SpiffeId, u64>,
    nodes: HashMap<Box<str>, u64>,
}

impl Revoked {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// One certificate, by its serial number in hexadecimal (as [`PeerIdentity::serial`] has it;
    /// letter case and colons make no difference).
    pub fn serial(&mut self, serial: &str) {
        let serial: String = serial.chars().filter(|c| *c != ':').collect();
        self.serials.insert(serial.to_ascii_lowercase().into());
    }

    /// Every certificate of an identity whose validity begins before `valid_from` (seconds since
    /// the Unix epoch; `u64::MAX` for all that ever will be).
    pub fn identity(&mut self, id: SpiffeId, valid_from: u64) {
        later(self.identities.entry(id).or_default(), valid_from);
    }

    /// Every tunnel certificate that names a node as its holder, and begins before `valid_from`.
    pub fn node(&mut self, node: &str, valid_from: u64) {
        later(self.nodes.entry(node.into()).or_default(), valid_from);
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.serials.len() + self.identities.len() + self.nodes.len()
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a certificate is meant.
    pub fn contains(&self, peer: &PeerIdentity) -> bool {
        let begins_before = |limit: Option<&u64>| limit.is_some_and(|limit| peer.not_before < *limit);
        self.serials.contains(peer.serial.as_str())
            || begins_before(self.identities.get(&peer.id))
            || begins_before(peer.node.as_deref().and_then(|node| self.nodes.get(node)))
    }
}

fn later(at: &mut u64, valid_from: u64) {
    *at = valid_from.max(*at);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn peer(app: &str, serial: &str, node: Option<&str>, not_before: u64) -> PeerIdentity {
        PeerIdentity {
            id: format!("spiffe://cluster.local/ns/default/{app}")
                .parse()
                .unwrap(),
            serial: serial.into(),
            node: node.map(str::to_owned),
            not_before,
            not_after: 1000,
        }
    }

    #[test]
    fn each_entry_matches_what_it_names_and_nothing_else() {
        let mut revoked = Revoked::new();
        revoked.serial("0A:bc");
        revoked.identity(peer("cart", "", None, 0).id, 500);
        // An earlier limit does not take back what a later one revokes.
        revoked.identity(peer("cart", "", None, 0).id, 400);
        revoked.node("n2", u64::MAX);
        assert_eq!(revoked.len(), 3);
        let cases = [
            (peer("shop", "0abc", None, 900), true),
            (peer("shop", "0abd", None, 900), false),
            (peer("cart", "1", None, 499), true),
            (peer("cart", "1", None, 500), false),
            (peer("shop", "1", Some("n2"), 999), true),
            (peer("shop", "1", Some("n3"), 999), false),
            (peer("n2", "1", None, 0), false),
        ];
        for (peer, expected) in cases {
            assert_eq!(revoked.contains(&peer), expected, "{peer:?}");
        }
    }
}
