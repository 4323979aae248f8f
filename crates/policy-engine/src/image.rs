//! A policy set as the kernel holds it: tables of plain numbers, and how they are read.
//!
//! What crosses the border are [`Image`]s; writing them is somebody else's work. [`Image::judge`] reads one
//! as the kernel does, probe by probe, so that tests compare three readings of a policy: the engine's, the
//! image's and the kernel's.

mod build;
mod diff;

pub use diff::{Change, Step};

use crate::{
    DenyReason, Direction, RuleRef, Verdict,
    fault::{Fault, made},
    proof::{self, Said, Side},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use weft_model::NumericIdentity;
use weft_resources::Authentication;

/// [`Image::flags`]: what no entry allows is refused, coming in.
pub const DENY_IN: u32 = 1;
/// [`Image::flags`]: what no entry allows is refused, going out.
pub const DENY_OUT: u32 = 2;
/// [`Image::flags`]: port ranges are to be asked for what comes in.
pub const RANGES_IN: u32 = 8;
/// [`Image::flags`]: port ranges are to be asked for what goes out.
pub const RANGES_OUT: u32 = 16;

/// [`Image::flags`]: no entry for what comes in goes by the proxy.
pub const DIRECT_IN: u32 = 32;
/// [`Image::flags`]: no entry for what goes out goes by the proxy.
pub const DIRECT_OUT: u32 = 64;

/// The shapes of keys, as bits of [`Image::shapes`]: who {the peer's identity, anybody} × how {protocol and
/// port, protocol, anything}.
pub const SHAPES: [Shape; 6] = [
    Shape::new(1, true, true, true),
    Shape::new(2, true, true, false),
    Shape::new(4, true, false, false),
    Shape::new(8, false, true, true),
    Shape::new(16, false, true, false),
    Shape::new(32, false, false, false),
];

/// One kind of key: which parts it names. The others are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Its bit in [`Image::shapes`].
    pub bit: u32,
    /// Names the peer's identity.
    pub identity: bool,
    /// Names the protocol.
    pub protocol: bool,
    /// Names the port.
    pub port: bool,
}

impl Shape {
    const fn new(bit: u32, identity: bool, protocol: bool, port: bool) -> Self {
        Self {
            bit,
            identity,
            protocol,
            port,
        }
    }

    /// How many bits of protocol and port it names.
    const fn length(self) -> u8 {
        match (self.protocol, self.port) {
            (false, _) => 0,
            (true, false) => 8,
            (true, true) => 24,
        }
    }
}

/// A key of the policy map, but for the number of the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// 0 for anybody.
    pub identity: u32,
    /// Going out of the workload, not coming in.
    pub egress: bool,
    /// IANA number; 0 for any.
    pub protocol: u8,
    /// 0 for any. For ICMP, the message's type plus one.
    pub port: u16,
}

/// A key of the range tables, but for the number of the set: a block of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RangeKey {
    /// 0 for anybody.
    pub identity: u32,
    /// Going out of the workload, not coming in.
    pub egress: bool,
    /// IANA number, never 0.
    pub protocol: u8,
    /// The first port; the bits after `length` are 0.
    pub port: u16,
    /// How many bits of the port count: 1 to 16.
    pub length: u8,
}

/// What an entry says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Value {
    /// Refuses; otherwise it allows, and the others say how.
    pub deny: bool,
    /// Only by the proxy.
    pub redirect: bool,
    /// By the proxy, says a rule; another one may do without.
    pub proxied: bool,
    /// Only with both ends proven, or also without, whatever a wider entry says.
    pub auth: Authentication,
    /// `auth` is what a wider block of ports says.
    pub derived: bool,
    /// Of blocks of ports where some entry of the direction says something of proof: how many leading bits of
    /// protocol and port the narrowest rule names.
    pub length: u8,
    /// Number of the rule: its place in [`Image::rules`], from 1.
    pub rule: u32,
}

/// The set expands to more entries than may be written. It must be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "policy set {set} needs {entries} or more entries in the kernel, at most {max} are possible; \
     name fewer ports or wider ranges, or select fewer peers"
)]
pub struct TooLarge {
    /// The set.
    pub set: Arc<str>,
    /// As many as were counted.
    pub entries: usize,
    /// As many as there may be.
    pub max: usize,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Of the whole set: [`DENY_IN`], …
    pub flags: u32,
    /// Bits of the [`SHAPES`] that keys may have: coming in, going out. They depend on the rules alone, not
    /// on the identities known.
    pub shapes: [u32; 2],
    /// The policy map's part.
    pub entries: HashMap<Key, Value>,
    /// Port ranges that are allowed. Blocks of one {identity, direction, protocol} do not overlap.
    pub allow: BTreeMap<RangeKey, Value>,
    /// Port ranges that are refused. Likewise.
    pub deny: BTreeMap<RangeKey, Value>,
    /// Rules by number, less one.
    pub rules: Vec<Arc<RuleRef>>,
}

impl Image {
    /// As many entries as are to be written.
    pub fn len(&self) -> usize {
        self.entries.len() + self.allow.len() + self.deny.len()
    }

    /// Whether there is nothing to write but the set itself.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rule with a number that an event shows; none for 0, which is none's.
    pub fn rule(&self, number: u32) -> Option<&Arc<RuleRef>> {
        self.rules.get((number as usize).checked_sub(1)?)
    }

    /// What the kernel decides: every shape in use is probed; any refusal wins, else any allowance does, else
    /// the direction's default. Of several entries that allow, one without `redirect` suffices to pass
    /// directly; of proof the narrowest speak (`proof`). The lowest rule number is told.
    pub fn judge(&self, direction: Direction, peer: NumericIdentity, protocol: u8, port: u16) -> Verdict {
        let egress = direction == Direction::Egress;
        let (deny_by_default, ranges) = if egress {
            (DENY_OUT, RANGES_OUT)
        } else {
            (DENY_IN, RANGES_IN)
        };
        let shapes = self.shapes[usize::from(egress)];
        let mut found: Vec<&Value> = Vec::new();
        let mut sides = [Side::default(); 2];
        for (side, identity) in sides.iter_mut().zip([peer.0, 0]) {
            // From the widest to the narrowest.
            let mut add = |value: &Value, length| {
                if !value.deny {
                    side.add(Said {
                        length,
                        proxied: value.proxied,
                        auth: value.auth,
                        derived: value.derived,
                    });
                }
            };
            for shape in SHAPES.iter().rev().filter(|s| s.identity == (identity != 0)) {
                let asked = identity != 0 || !made(Fault::RangesOfAnybodyAreNotAsked);
                if shape.port && self.flags & ranges != 0 && asked {
                    let block = RangeKey {
                        identity,
                        egress,
                        protocol,
                        port,
                        length: 16,
                    };
                    for value in [longest(&self.deny, block), longest(&self.allow, block)] {
                        found.extend(value);
                        value.into_iter().for_each(|value| add(value, value.length));
                    }
                }
                let key = Key {
                    identity,
                    egress,
                    protocol: if shape.protocol { protocol } else { 0 },
                    port: if shape.port { port } else { 0 },
                };
                if let Some(value) = self.entries.get(&key).filter(|_| shapes & shape.bit != 0) {
                    found.push(value);
                    add(value, shape.length());
                }
            }
        }
        let rule = |deny: bool| {
            let number = found.iter().filter(|v| v.deny == deny).map(|v| v.rule).min();
            number.map(|n| self.rule(n).cloned())
        };
        if let Some(rule) = rule(true) {
            let reason = DenyReason::PolicyDeny;
            return Verdict::Denied { reason, rule };
        }
        if let Some(rule) = rule(false) {
            return Verdict::Allowed {
                rule,
                redirect: found.iter().all(|v| v.redirect)
                    || found.iter().any(|v| v.redirect) && made(Fault::OneRedirectSuffices),
                auth: proof::demanded(sides[0], sides[1]),
            };
        }
        if self.flags & deny_by_default != 0 {
            let reason = DenyReason::PolicyDenied;
            return Verdict::Denied { reason, rule: None };
        }
        Verdict::Allowed {
            rule: None,
            redirect: false,
            auth: false,
        }
    }
}

/// As an LPM trie answers.
fn longest(table: &BTreeMap<RangeKey, Value>, exact: RangeKey) -> Option<&Value> {
    (1..=16u8).rev().find_map(|length| {
        let port = exact.port & (u16::MAX << (16 - length));
        table.get(&RangeKey {
            port,
            length,
            ..exact
        })
    })
}
