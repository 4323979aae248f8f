//! What it takes to make one image of another.

use super::{Image, Key, RangeKey, Value};
use std::collections::{BTreeMap, HashSet};
use weft_resources::Authentication;

/// One write: a value, or none to remove the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// To the policy map.
    Entry(Key, Option<Value>),
    /// To the ranges that are allowed.
    Allow(RangeKey, Option<Value>),
    /// To the ranges that are refused.
    Deny(RangeKey, Option<Value>),
}

impl Step {
    fn value(&self) -> Option<Value> {
        match self {
            Self::Entry(_, value) | Self::Allow(_, value) | Self::Deny(_, value) => *value,
        }
    }
}

/// How one version of a set differs from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Not in the kernel.
    None,
    /// Identities came or went, whole: the set can be changed in place. `add` goes before the new
    /// identities' addresses are written, `remove` after those of the old ones are gone. The order within
    /// each is such that no peer is ever let in by half of what is said about it.
    Identities {
        /// Refusals first, then what demands proof, then the rest.
        add: Vec<Step>,
        /// The other way round. The steps' values are `None`.
        remove: Vec<Step>,
    },
    /// Something else changed, or identities of a set in which proof depends on what goes by the proxy: a new
    /// set is to be written, and endpoints moved to it.
    Rules,
}

impl Image {
    /// The steps that write all of it, for a set that nobody uses yet.
    pub fn steps(&self) -> impl Iterator<Item = Step> {
        let entries = self.entries.iter().map(|(k, v)| Step::Entry(*k, Some(*v)));
        let allow = self.allow.iter().map(|(k, v)| Step::Allow(*k, Some(*v)));
        let deny = self.deny.iter().map(|(k, v)| Step::Deny(*k, Some(*v)));
        deny.chain(entries).chain(allow)
    }

    /// From this version to `new`.
    pub fn diff(&self, new: &Self) -> Change {
        if (self.flags, self.shapes) != (new.flags, new.shapes) || self.rules != new.rules {
            return Change::Rules;
        }
        let (Some(mut add), Some(mut remove)) = (self.lacks(new), new.lacks(self)) else {
            return Change::Rules;
        };
        if add.is_empty() && remove.is_empty() {
            return Change::None;
        }
        if self.has_proof_by_proxy() || new.has_proof_by_proxy() {
            return Change::Rules;
        }
        add.sort_by_key(caution);
        remove.sort_by_key(caution);
        remove.reverse();
        let gone = remove.into_iter().map(|step| match step {
            Step::Entry(key, _) => Step::Entry(key, None),
            Step::Allow(key, _) => Step::Allow(key, None),
            Step::Deny(key, _) => Step::Deny(key, None),
        });
        Change::Identities {
            add,
            remove: gone.collect(),
        }
    }

    /// What `other` says of identities that this one says nothing of; nothing when they disagree about an
    /// identity that both know.
    fn lacks(&self, other: &Self) -> Option<Vec<Step>> {
        let known = self.identities();
        let mut steps = Vec::new();
        for (key, value) in &other.entries {
            match self.entries.get(key) {
                Some(same) if same == value => {}
                None if !known.contains(&key.identity) => steps.push(Step::Entry(*key, Some(*value))),
                _ => return None,
            }
        }
        let mut ranges = |of: [&BTreeMap<RangeKey, Value>; 2], step: fn(RangeKey, Option<Value>) -> Step| {
            for (key, value) in of[1] {
                match of[0].get(key) {
                    Some(same) if same == value => {}
                    None if !known.contains(&key.identity) => steps.push(step(*key, Some(*value))),
                    _ => return None,
                }
            }
            Some(())
        };
        ranges([&self.allow, &other.allow], Step::Allow)?;
        ranges([&self.deny, &other.deny], Step::Deny)?;
        Some(steps)
    }

    /// Where some entries go by the proxy and some demand proof, whether one counts hangs on the others, and
    /// no order of steps is safe for all.
    fn has_proof_by_proxy(&self) -> bool {
        let values = || self.entries.values().chain(self.allow.values());
        values().any(|v| v.proxied) && values().any(|v| v.auth == Authentication::Required)
    }

    /// Whom any entry names. Anybody (0) always counts as known: entries about it are rules.
    fn identities(&self) -> HashSet<u32> {
        let ranges = self.allow.keys().chain(self.deny.keys()).map(|k| k.identity);
        let entries = self.entries.keys().map(|k| k.identity);
        ranges.chain(entries).chain([0]).collect()
    }
}

/// What must be there first.
fn caution(step: &Step) -> u8 {
    match step.value() {
        Some(value) if value.deny => 0,
        Some(value) if value.auth == Authentication::Required => 1,
        _ => 2,
    }
}
