//! How many connections whom: so that neither strangers nor one peer can take all there are.
//!
//! Before the handshake nothing is known but the address; after it, the identity. Callers with a
//! role in Weft have places of their own, so workloads and callers without a certificate can not
//! keep them out.

use crate::Caller;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};
use weft_model::Principal;

/// Handshakes that run at once.
const HANDSHAKES: usize = 1024;
/// Of these, from one address.
const HANDSHAKES_PER_ADDRESS: usize = 256;
/// Open connections of callers with a role.
const MEMBERS: usize = 4096;
/// Of these, of one identity.
const PER_MEMBER: usize = 128;
/// Open connections of workloads and of callers without a certificate.
const STRANGERS: usize = 512;
/// Of these, of one identity, or one address where there is none.
const PER_STRANGER: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Handshakes,
    HandshakesOf(IpAddr),
    Members,
    Member(String),
    Strangers,
    Stranger(String),
    StrangerAt(IpAddr),
}

/// Counts of one listener. Clones share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(Arc<Mutex<HashMap<Key, usize>>>);

/// A place that is given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    gate: Gate,
    keys: [Key; 2],
}

impl Gate {
    fn enter(&self, keys: [(Key, usize); 2]) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if keys
            .iter()
            .any(|(key, limit)| counts.get(key).copied().unwrap_or(0) >= *limit)
        {
            return None;
        }
        let keys = keys.map(|(key, _)| key);
        for key in &keys {
            *counts.entry(key.clone()).or_default() += 1;
        }
        Some(Place {
            gate: self.clone(),
            keys,
        })
    }

    /// A place to shake hands in; none when there are too many, of all or from that address.
    pub fn handshake(&self, from: IpAddr) -> Option<Place> {
        self.enter([
            (Key::Handshakes, HANDSHAKES),
            (Key::HandshakesOf(block(from)), HANDSHAKES_PER_ADDRESS),
        ])
    }

    /// A place for the open connection of a caller that is now known.
    pub fn connection(&self, caller: &Caller, from: IpAddr) -> Option<Place> {
        let own = match caller.spiffe_id().map(|id| (id.principal(), id)) {
            Some((Principal::Service(_) | Principal::Node(_) | Principal::Admin(_), id)) => {
                return self.enter([(Key::Members, MEMBERS), (Key::Member(id.to_string()), PER_MEMBER)]);
            }
            Some((_, id)) => Key::Stranger(id.to_string()),
            None => Key::StrangerAt(block(from)),
        };
        self.enter([(Key::Strangers, STRANGERS), (own, PER_STRANGER)])
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.gate.0.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &self.keys {
            if let Some(count) = counts.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(key);
                }
            }
        }
    }
}

/// What one host can choose among freely: an IPv4 address, or an IPv6 network of 64 bits.
pub(crate) fn block(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX)).into(),
        four => four,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_tls::PeerIdentity;

    fn peer(path: &str) -> Caller {
        Caller::Tls(PeerIdentity {
            id: format!("spiffe://td{path}").parse().unwrap(),
            serial: "1".into(),
            node: None,
            not_before: 0,
            not_after: 1,
        })
    }

    fn fill(enter: impl Fn(usize) -> Option<Place>) -> Vec<Place> {
        (0..100_000).map_while(enter).collect()
    }

    #[test]
    fn one_address_leaves_room_for_others_to_shake_hands() {
        let gate = Gate::default();
        let flood = fill(|_| gate.handshake([10, 0, 0, 1].into()));
        assert_eq!(flood.len(), HANDSHAKES_PER_ADDRESS);
        assert!(gate.handshake([10, 0, 0, 2].into()).is_some());
        drop(flood);
        assert!(gate.handshake([10, 0, 0, 1].into()).is_some());
        // Addresses of one IPv6 network are one, and a mapped IPv4 address is that address.
        let flood = fill(|i| gate.handshake(Ipv6Addr::from_bits(0xfd00 << 112 | i as u128).into()));
        assert_eq!(flood.len(), HANDSHAKES_PER_ADDRESS);
        assert_eq!(
            block("::ffff:10.0.0.1".parse().unwrap()),
            IpAddr::from([10, 0, 0, 1])
        );
    }

    #[test]
    fn strangers_can_not_keep_members_out() {
        let gate = Gate::default();
        let here = IpAddr::from([10, 0, 0, 1]);
        let one = fill(|_| gate.connection(&peer("/ns/default/cart"), here));
        assert_eq!(one.len(), PER_STRANGER);
        let anonymous = fill(|_| gate.connection(&Caller::Anonymous, here));
        assert_eq!(anonymous.len(), PER_STRANGER);
        let all = fill(|i| gate.connection(&peer(&format!("/ns/default/app-{i}")), here));
        assert_eq!(all.len(), STRANGERS - 2 * PER_STRANGER);
        assert!(gate.connection(&peer("/ns/default/late"), here).is_none());

        // Members: each its own share, from the same address.
        let one = fill(|_| gate.connection(&peer("/weft/node/n1"), here));
        assert_eq!(one.len(), PER_MEMBER);
        assert!(gate.connection(&peer("/weft/node/n2"), here).is_some());
    }

    #[test]
    fn what_is_over_leaves_nothing_behind() {
        let gate = Gate::default();
        let here = IpAddr::from([10, 0, 0, 1]);
        drop((
            gate.handshake(here),
            gate.connection(&peer("/weft/node/n1"), here),
        ));
        assert!(gate.0.lock().unwrap().is_empty());
    }
}
