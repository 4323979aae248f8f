//! Whether a connection that passes must be proven, as Cilium reckons it.
//!
//! Entries that name the peer and entries for anybody are two sides. Of each, the narrowest entry counts,
//! by what it names of protocol and port; where it says nothing of proof, the next wider one that does
//! speaks for it. Between the sides the one by the proxy counts, else the narrower one, else the one that
//! names the peer; if what it says is not its own, the other one may still demand proof, unless only one
//! of the two goes by the proxy. An entry that says nothing and does without the proxy is none below one
//! by the proxy.

use crate::{
    Ports,
    fault::{Fault, made},
};
use weft_resources::Authentication;

/// What the entries of one width say on one side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// How many leading bits of protocol and port they name.
    pub(crate) length: u8,
    /// One of them goes by the proxy.
    pub(crate) proxied: bool,
    pub(crate) auth: Authentication,
    /// `auth` is what a wider one says.
    pub(crate) derived: bool,
}

impl Said {
    /// Of entries of the same width: whoever demands most.
    pub(crate) fn join(self, other: Self) -> Self {
        Self {
            length: self.length,
            proxied: self.proxied || other.proxied,
            auth: self.auth.max(other.auth),
            derived: self.derived && other.derived,
        }
    }

    fn is_own(self) -> bool {
        self.auth != Authentication::Unsaid && !self.derived
    }
}

/// One side, told from the widest entry to the narrowest.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Side(Option<Said>);

impl Side {
    pub(crate) fn add(&mut self, said: Said) {
        let own = said.is_own();
        let Some(wider) = self.0 else {
            let derived = !own;
            self.0 = Some(Said { derived, ..said });
            return;
        };
        if wider.proxied && !said.proxied && !own || made(Fault::WidestEntryCounts) {
            return;
        }
        let silent = said.auth == Authentication::Unsaid;
        self.0 = Some(Said {
            length: said.length,
            proxied: said.proxied || wider.proxied,
            auth: if silent { wider.auth } else { said.auth },
            derived: !own,
        });
    }

    /// What its narrowest entry comes to.
    pub(crate) fn narrowest(self) -> Option<Said> {
        self.0
    }
}

/// Of entries in any order.
pub(crate) fn side(mut all: Vec<Said>) -> Side {
    let mut side = Side::default();
    all.sort_unstable_by_key(|said| said.length);
    let mut all = all.into_iter().peekable();
    while let Some(mut said) = all.next() {
        while let Some(same) = all.next_if(|next| next.length == said.length) {
            said = said.join(same);
        }
        side.add(said);
    }
    side
}

/// What both sides come to.
pub(crate) fn demanded(named: Side, anybody: Side) -> bool {
    let is = |said: Said| said.auth == Authentication::Required;
    let (named, anybody) = match (named.0, anybody.0) {
        (Some(named), Some(anybody)) => (named, anybody),
        (one, other) => return one.or(other).is_some_and(is),
    };
    if made(Fault::ProofIsSticky) {
        return is(named) || is(anybody);
    }
    let alike = named.proxied == anybody.proxied || made(Fault::ProxyComesLast);
    let second = if alike {
        anybody.length > named.length
    } else {
        anybody.proxied
    };
    let (first, other) = if second {
        (anybody, named)
    } else {
        (named, anybody)
    };
    let joins = !first.is_own() && alike && !made(Fault::OthersProofIsForgotten);
    is(first) || joins && is(other)
}

/// How many leading bits of protocol and port an entry names, where it matches this port.
pub(crate) fn length(protocol: Option<u8>, ports: Ports, port: u16) -> u8 {
    match (protocol, ports) {
        (None, Ports::Any) => 0,
        (Some(_), Ports::Any) => 8,
        (_, Ports::Range(first, last)) => 8 + block(first, last, port),
    }
}

/// The leading bits of a port that make the widest block within a range.
pub(crate) fn block(first: u16, last: u16, port: u16) -> u8 {
    let within = |length: &u8| {
        let rest = u16::MAX.checked_shr(u32::from(*length)).unwrap_or(0);
        port & !rest >= first && port | rest <= last
    };
    (1..=16).find(within).unwrap_or(16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Authentication::{Disabled, Required, Unsaid};

    fn said(length: u8, auth: Authentication) -> Said {
        Said {
            length,
            auth,
            ..Said::default()
        }
    }

    fn ask(named: &[Said], anybody: &[Said]) -> bool {
        demanded(side(named.to_vec()), side(anybody.to_vec()))
    }

    #[test]
    fn what_is_narrower_releases_from_proof_and_demands_it() {
        let (wide, narrow) = (|auth| said(0, auth), |auth| said(24, auth));
        assert!(ask(&[wide(Required)], &[]));
        assert!(!ask(&[wide(Required), narrow(Disabled)], &[]));
        assert!(ask(&[wide(Disabled), narrow(Required)], &[]));
        // It says nothing: the wider one speaks for it.
        assert!(ask(&[wide(Required), narrow(Unsaid)], &[]));
        // Both about the same.
        assert!(ask(&[narrow(Required), narrow(Disabled)], &[]));
        // The peer by name counts more than anybody, at the same width.
        assert!(!ask(&[narrow(Disabled)], &[narrow(Required)]));
        assert!(ask(&[narrow(Unsaid)], &[narrow(Required)]));
        // What is derived does not hold against the other side.
        assert!(ask(&[wide(Disabled), narrow(Unsaid)], &[wide(Required)]));
        // A port counts more than a name.
        assert!(!ask(&[wide(Required)], &[narrow(Disabled)]));
    }

    #[test]
    fn what_goes_by_the_proxy_counts_first() {
        let proxied = |auth| Said {
            proxied: true,
            ..said(24, auth)
        };
        assert!(ask(&[said(24, Disabled)], &[proxied(Required)]));
        assert!(!ask(&[said(24, Required)], &[proxied(Unsaid)]));
        // Below one by the proxy, what says nothing is not there.
        let of = |length, auth| Said {
            length,
            ..proxied(auth)
        };
        assert!(!ask(&[of(16, Disabled), said(24, Unsaid)], &[of(12, Required)]));
        assert!(ask(&[of(16, Disabled), of(24, Unsaid)], &[of(12, Required)]));
    }

    #[test]
    fn blocks_of_ports_are_the_widest_within_the_range() {
        for (first, last, port, length) in [
            (80, 80, 80, 16),
            (80, 83, 82, 14),
            (80, 90, 90, 16),
            (80, 90, 88, 15),
            (80, 90, 81, 13),
            (1, 65_535, 1, 16),
            (1, 65_535, 40_000, 1),
        ] {
            assert_eq!(block(first, last, port), length, "{first}-{last} at {port}");
        }
    }
}
