//! From a set and a connection to a verdict.

use crate::{
    DirectionPolicy, Entry, PolicySet, RequestFacts, RuleRef,
    fault::{Fault, made},
    index::Hit,
};
use std::{net::IpAddr, sync::Arc};
use weft_model::NumericIdentity;

/// Which way a connection goes, as the judged workload sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Somebody connects to it.
    Ingress,
    /// It connects to somebody.
    Egress,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerRef {
    /// Its security identity, by proof and not by address.
    pub identity: NumericIdentity,
    /// Its address, where it has one: needed for address ranges. While it is unknown, a range never
    /// allows, and a refused range always refuses.
    pub address: Option<IpAddr>,
}

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DenyReason {
    /// No entry allows it and the direction is in default deny (Cilium's drop reason 133).
    PolicyDenied,
    /// An entry refuses it (Cilium's drop reason 181).
    PolicyDeny,
    /// Of a request only: rules let the connection in for certain requests, and none of them means this one.
    /// The client is answered 403, or REFUSED by DNS.
    RequestDenied,
}

/// What becomes of a connection, and by which rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass; without a rule when no rule selects the workload in this direction.
    Allowed {
        /// The first rule that allows it.
        rule: Option<Arc<RuleRef>>,
        /// Every rule that allows it leaves the last word to the proxy, request by request
        /// ([`PolicySet::judge_request`]). Where nobody reads requests, it may not pass. Never of a request.
        redirect: bool,
        /// A rule that allows it demands that both ends are proven. Where they are not, it may not pass.
        auth: bool,
    },
    /// It may not.
    Denied {
        /// Whether by a rule or for lack of one.
        reason: DenyReason,
        /// The first rule that refuses it; of a request that no rule means, the first that could have allowed
        /// it.
        rule: Option<Arc<RuleRef>>,
    },
}

impl Verdict {
    /// Whether the connection may pass, on the conditions that it names.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed { .. })
    }

    /// The rule that decided, if one did.
    pub fn rule(&self) -> Option<&RuleRef> {
        match self {
            Self::Allowed { rule, .. } | Self::Denied { rule, .. } => rule.as_deref(),
        }
    }
}

/// Whether a node gave the number itself to an address range (scope bits 24 to 31 are 1). Sets do not
/// name such numbers; they are parts of `world`.
pub(crate) fn is_local(identity: NumericIdentity) -> bool {
    identity.0 >> 24 == 1
}

/// Whether an identity is outside the cluster: `world`, its two address families, and their parts.
pub(crate) fn is_outside(identity: NumericIdentity) -> bool {
    matches!(identity.0, 2 | 9 | 10) || is_local(identity)
}

impl PolicySet {
    /// Judges one connection. `protocol` is the IANA number; `port` is the port at the callee, for ICMP the
    /// message's type plus one, 0 for other protocols.
    pub fn judge(&self, direction: Direction, peer: PeerRef, protocol: u8, port: u16) -> Verdict {
        let (policy, index) = self.direction(direction);
        verdict(policy, index.find(peer, protocol, port))
    }

    /// Judges one HTTP request on a connection, which is what [`PolicySet::judge`] is asked about. What that
    /// refuses is refused; what it lets in without the proxy, no rule about requests narrows; of the rules
    /// about requests at the connection's peer and port one suffices.
    pub fn judge_request(
        &self,
        direction: Direction,
        peer: PeerRef,
        protocol: u8,
        port: u16,
        request: &RequestFacts<'_>,
    ) -> Verdict {
        self.judge_on(&self.on_connection(direction, peer, protocol, port), request)
    }

    /// Judges one question to a resolver: whether a workload may ask `peer` for `name`, which is in lower case and
    /// without the dot at the end. As [`PolicySet::judge_request`] judges requests.
    pub fn judge_query(&self, peer: PeerRef, protocol: u8, port: u16, name: &str) -> Verdict {
        let means = |entry: &Entry| entry.dns.iter().any(|rule| crate::is_meant(rule, name));
        let first = |asked: &[u32], entries: &[Entry]| {
            let entry = |at: &u32| entries.get(*at as usize);
            asked.iter().copied().find(|at| entry(at).is_some_and(means))
        };
        let connection = self.on_connection(Direction::Egress, peer, protocol, port);
        self.judge_each(&connection, first)
    }

    /// Whether questions to a resolver at `peer` are judged name by name.
    pub fn judges_queries(&self, peer: PeerRef, protocol: u8, port: u16) -> bool {
        let (policy, index) = self.direction(Direction::Egress);
        let redirected = matches!(
            verdict(policy, index.find(peer, protocol, port)),
            Verdict::Allowed { redirect: true, .. }
        );
        let entry = |at: &u32| policy.entries.get(*at as usize);
        let asked = || index.find_requests(peer, protocol, port);
        redirected
            && asked()
                .iter()
                .filter_map(entry)
                .any(|entry| !entry.dns.is_empty())
    }

    /// What all requests on a connection have in common, for [`PolicySet::judge_on`].
    pub fn on_connection(
        &self,
        direction: Direction,
        peer: PeerRef,
        protocol: u8,
        port: u16,
    ) -> OnConnection {
        let (policy, index) = self.direction(direction);
        let hit = index.find(peer, protocol, port);
        let whole = verdict(policy, hit);
        let asked = match whole {
            Verdict::Allowed { redirect, .. } if redirect || made(Fault::RequestRulesNarrow) => {
                index.find_requests(peer, protocol, port)
            }
            _ => Vec::new(),
        };
        OnConnection {
            direction,
            direct: hit.direct(),
            whole,
            asked,
        }
    }

    /// Judges one request on a connection that this set was asked about.
    pub fn judge_on(&self, connection: &OnConnection, request: &RequestFacts<'_>) -> Verdict {
        let requests = self.requests(connection.direction);
        self.judge_each(connection, |asked, _| requests.first(asked, request))
    }

    /// `first`: of entries that ask about requests, by their position, the first that means this one.
    fn judge_each(
        &self,
        connection: &OnConnection,
        first: impl FnOnce(&[u32], &[Entry]) -> Option<u32>,
    ) -> Verdict {
        let Verdict::Allowed { redirect, auth, .. } = connection.whole else {
            return connection.whole.clone();
        };
        let (policy, _) = self.direction(connection.direction);
        let rule = |at: usize| policy.entries.get(at).map(|e| e.rule.clone());
        let allowed = |at: Option<usize>| Verdict::Allowed {
            rule: at.and_then(rule),
            redirect: false,
            auth,
        };
        let asked = &connection.asked;
        if !redirect && asked.is_empty() {
            return allowed(connection.direct);
        }
        match first(asked, &policy.entries) {
            Some(at) => allowed(Some(at as usize)),
            None if made(Fault::UnknownRequestsPass) => allowed(None),
            None => Verdict::Denied {
                reason: DenyReason::RequestDenied,
                rule: asked.first().and_then(|at| rule(*at as usize)),
            },
        }
    }
}

/// What a set says of all requests on one connection. Of the set that it was asked of only.
#[derive(Debug, Clone)]
pub struct OnConnection {
    direction: Direction,
    whole: Verdict,
    /// The first entry that lets it in without the proxy.
    direct: Option<usize>,
    /// The entries that let it in for some requests, ascending.
    asked: Vec<u32>,
}

fn verdict(policy: &DirectionPolicy, hit: Hit) -> Verdict {
    let rule = |at: usize| policy.entries.get(at).map(|e| e.rule.clone());
    if let Some(at) = hit
        .deny()
        .filter(|_| hit.allow().is_none() || !made(Fault::AllowBeatsDeny))
    {
        return Verdict::Denied {
            reason: DenyReason::PolicyDeny,
            rule: rule(at),
        };
    }
    if let Some(at) = hit.allow() {
        return Verdict::Allowed {
            rule: rule(at),
            redirect: hit.redirect(),
            auth: hit.auth(),
        };
    }
    if policy.default_deny {
        return Verdict::Denied {
            reason: DenyReason::PolicyDenied,
            rule: None,
        };
    }
    Verdict::Allowed {
        rule: None,
        redirect: false,
        auth: false,
    }
}
