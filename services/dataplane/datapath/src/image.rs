//! Small operations on the engine's images and their steps.

use std::collections::{BTreeMap, HashMap, HashSet};
use weft_policy_engine::{
    Image,
    image::{Key, RangeKey, Step, Value},
};

/// An image with nothing in it.
pub(crate) fn empty_image() -> Image {
    Image {
        flags: 0,
        shapes: [0; 2],
        entries: HashMap::new(),
        allow: BTreeMap::new(),
        deny: BTreeMap::new(),
        rules: Vec::new(),
    }
}

/// What it writes; `None` when it removes.
pub(crate) fn value(step: &Step) -> Option<Value> {
    match step {
        Step::Entry(_, value) | Step::Allow(_, value) | Step::Deny(_, value) => *value,
    }
}

/// Takes away what it writes.
pub(crate) fn removed(step: &Step) -> Step {
    match step {
        Step::Entry(key, _) => Step::Entry(*key, None),
        Step::Allow(key, _) => Step::Allow(*key, None),
        Step::Deny(key, _) => Step::Deny(*key, None),
    }
}

/// Whom its entries are about.
pub(crate) fn identities(image: &Image) -> impl Iterator<Item = u32> {
    let ranges = image.allow.keys().chain(image.deny.keys()).map(|k| k.identity);
    image.entries.keys().map(|k| k.identity).chain(ranges)
}

/// Says of each second identity what the image says of the first; answers the steps, refusals first.
pub(crate) fn copy(image: &mut Image, copies: &[(u32, u32)]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (from, to) in copies {
        let of = |identity: &u32| identity == from;
        let entries = image.entries.iter().filter(|(key, _)| of(&key.identity));
        let entries = entries.map(|(key, value)| {
            let identity = *to;
            Step::Entry(Key { identity, ..*key }, Some(*value))
        });
        let ranges = |table: &BTreeMap<RangeKey, Value>, step: fn(RangeKey, Option<Value>) -> Step| {
            let found = table.iter().filter(|(key, _)| of(&key.identity));
            let found = found.map(|(key, value)| {
                step(
                    RangeKey {
                        identity: *to,
                        ..*key
                    },
                    Some(*value),
                )
            });
            found.collect::<Vec<_>>()
        };
        let start = steps.len();
        steps.extend(entries);
        steps.extend(ranges(&image.deny, Step::Deny));
        steps.extend(ranges(&image.allow, Step::Allow));
        for step in &steps[start..] {
            match *step {
                Step::Entry(key, Some(value)) => drop(image.entries.insert(key, value)),
                Step::Deny(key, Some(value)) => drop(image.deny.insert(key, value)),
                Step::Allow(key, Some(value)) => drop(image.allow.insert(key, value)),
                _ => {}
            }
        }
    }
    steps.sort_by_key(|s| !value(s).is_some_and(|v| v.deny));
    steps
}

/// Takes identities out of an image; answers the steps, allowances first.
pub(crate) fn forget(image: &mut Image, gone: &HashSet<u32>) -> Vec<Step> {
    let mut steps = Vec::new();
    image.allow.retain(|key, _| {
        let stays = !gone.contains(&key.identity);
        if !stays {
            steps.push(Step::Allow(*key, None));
        }
        stays
    });
    let mut refusals = Vec::new();
    image.entries.retain(|key, value| {
        let stays = !gone.contains(&key.identity);
        if !stays {
            let list = if value.deny { &mut refusals } else { &mut steps };
            list.push(Step::Entry(*key, None));
        }
        stays
    });
    image.deny.retain(|key, _| {
        let stays = !gone.contains(&key.identity);
        if !stays {
            refusals.push(Step::Deny(*key, None));
        }
        stays
    });
    steps.append(&mut refusals);
    steps
}
