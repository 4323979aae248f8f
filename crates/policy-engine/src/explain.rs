//! Why a verdict is what it is: every rule that speaks of a connection, not only the first.
//!
//! Reads the entries from top to bottom, beside the index that judges: fit for a question of an operator,
//! not for each packet.

use crate::{
    CidrPeer, Direction, Entry, PeerRef, PolicySet, Ports, RequestFacts, Verdict,
    index::WITH_PORTS,
    judge::{is_local, is_outside},
};
use weft_model::NumericIdentity;

/// An entry that speaks of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Spoken<'s> {
    /// What it says.
    pub entry: &'s Entry,
    /// Of one with rules about requests: whether they mean the request; absent when none was asked about.
    pub means_request: Option<bool>,
}

/// See [`PolicySet::explain`].
#[derive(Debug, Clone)]
pub struct Explanation<'s> {
    /// Of the request where one was asked about, else of the connection.
    pub verdict: Verdict,
    /// Every entry that speaks of the connection: those that refuse first, then in canonical order.
    pub spoken: Vec<Spoken<'s>>,
}

impl PolicySet {
    /// Judges a connection, or a request on it, and names every rule that has a part in it.
    pub fn explain(
        &self,
        direction: Direction,
        peer: PeerRef,
        protocol: u8,
        port: u16,
        request: Option<&RequestFacts<'_>>,
    ) -> Explanation<'_> {
        let verdict = match request {
            Some(request) => self.judge_request(direction, peer, protocol, port, request),
            None => self.judge(direction, peer, protocol, port),
        };
        let requests = self.requests(direction);
        let entries = self.direction(direction).0.entries.iter().enumerate();
        let mut spoken: Vec<Spoken<'_>> = entries
            .filter(|(_, entry)| entry.covers(peer, protocol, port))
            .map(|(at, entry)| Spoken {
                entry,
                means_request: request
                    .filter(|_| entry.redirect && !entry.deny)
                    .map(|request| requests.names(u32::try_from(at).unwrap_or(u32::MAX), request)),
            })
            .collect();
        spoken.sort_by_key(|s| !s.entry.deny);
        Explanation { verdict, spoken }
    }
}

impl Entry {
    /// Whether it speaks of a connection.
    fn covers(&self, peer: PeerRef, protocol: u8, port: u16) -> bool {
        let how = match self.protocol {
            Some(own) => own == protocol,
            None => self.ports == Ports::Any || WITH_PORTS.contains(&protocol),
        };
        how && self.ports.contains(port) && self.is_about(peer)
    }

    fn is_about(&self, peer: PeerRef) -> bool {
        let named = |identity| self.peers.identities.binary_search(&identity).is_ok();
        let outside = is_outside(peer.identity);
        let in_range = |c: &CidrPeer| match peer.address.map(|a| a.to_canonical()) {
            // As long as the address is not known, what is refused is refused.
            None => self.deny,
            Some(a) => c.cidr.contains(&a) && !c.except.iter().any(|hole| hole.contains(&a)),
        };
        self.peers.any
            || named(peer.identity)
            || is_local(peer.identity) && named(NumericIdentity::WORLD)
            || outside && self.peers.cidrs.iter().any(in_range)
    }
}
