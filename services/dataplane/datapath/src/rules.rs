//! Numbers of rules: what an entry in the kernel, and so an event, says about which rule spoke.
//!
//! A number is a hash of the rule's text, so that a restart finds the kernel's entries right. A rule
//! keeps its name for a while after the last set that has it: events of it may still be on the way.

use parking_lot::RwLock;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};
use weft_policy_engine::RuleRef;

/// Names that are kept after their last set is gone.
const REMEMBERED: usize = 4096;

/// Names by number, for whoever reads events. Clones share.
#[derive(Debug, Clone, Default)]
pub struct RuleNames(Arc<RwLock<HashMap<u32, Arc<str>>>>);

impl RuleNames {
    /// The rule's text; none for 0 and for what is long gone.
    pub fn get(&self, number: u32) -> Option<Arc<str>> {
        self.0.read().get(&number).cloned()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    names: RuleNames,
    numbers: HashMap<Arc<str>, (u32, usize)>,
    unused: VecDeque<Arc<str>>,
}

/// FNV-1a, 32 bits, never 0: the same in every build.
pub(crate) fn hash(bytes: impl Iterator<Item = u8>) -> u32 {
    let hash = bytes.fold(0x811c_9dc5u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash.max(1)
}

impl Rules {
    pub(crate) fn names(&self) -> RuleNames {
        self.names.clone()
    }

    /// Counts a use of a rule; answers its number.
    pub(crate) fn hold(&mut self, rule: &RuleRef) -> u32 {
        let text: Arc<str> = rule.to_string().into();
        if let Some((number, uses)) = self.numbers.get_mut(&text) {
            *uses += 1;
            return *number;
        }
        let mut names = self.names.0.write();
        let mut number = hash(text.bytes());
        // Two texts with one hash are rare; the later one then has another number in this run.
        while names.contains_key(&number) {
            number = number.wrapping_add(1).max(1);
        }
        names.insert(number, text.clone());
        self.numbers.insert(text, (number, 1));
        number
    }

    /// The number of a rule that is held.
    pub(crate) fn number(&self, rule: &RuleRef) -> u32 {
        let found = self.numbers.get(rule.to_string().as_str());
        found.map_or(0, |(number, _)| *number)
    }

    /// Takes a use back.
    pub(crate) fn release(&mut self, rule: &RuleRef) {
        let text: Arc<str> = rule.to_string().into();
        let Some((_, uses)) = self.numbers.get_mut(&text) else {
            return;
        };
        *uses = uses.saturating_sub(1);
        if *uses > 0 {
            return;
        }
        self.unused.push_back(text);
        while self.unused.len() > REMEMBERED {
            let Some(oldest) = self.unused.pop_front() else {
                break;
            };
            if let Some((number, 0)) = self.numbers.get(&oldest) {
                self.names.0.write().remove(number);
                self.numbers.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(n: usize) -> RuleRef {
        RuleRef {
            kind: "CiliumNetworkPolicy".into(),
            namespace: "shop".into(),
            name: "cart".into(),
            path: format!("ingress[{n}]"),
        }
    }

    #[test]
    fn a_rule_has_one_number_in_every_run_and_a_name_for_a_while_after() {
        let (mut first, mut second) = (Rules::default(), Rules::default());
        second.hold(&rule(7));
        let number = first.hold(&rule(1));
        assert_eq!(first.hold(&rule(1)), number);
        assert_eq!(second.hold(&rule(1)), number);
        let names = first.names();
        first.release(&rule(1));
        first.release(&rule(1));
        assert!(names.get(number).is_some());
        for n in 2..=REMEMBERED + 1 {
            first.hold(&rule(n));
            first.release(&rule(n));
        }
        assert!(names.get(number).is_none(), "it was the oldest");
        assert_eq!(names.0.read().len(), REMEMBERED);
        assert_eq!(first.numbers.len(), REMEMBERED);
    }
}
