//! Whether both ends must be proven, as Cilium has it: rules become keys of a map, and what the map answers
//! decides.
//!
//! A key is {the peer or anybody, protocol and port as far as they are named}. What says nothing of proof
//! takes over what the next less precise key of the same peer says, if any does.

use crate::Way;

/// One key: all ways of the same precision.
struct Key {
    bits: u8,
    proxy: bool,
    said: Option<bool>,
}

fn keys(ways: &[&Way], anybody: bool) -> Vec<Key> {
    let mut keys: Vec<Key> = Vec::new();
    // The most precise first.
    for bits in (0..=24).rev() {
        let here = || ways.iter().filter(|w| w.anybody == anybody && w.bits == bits);
        if here().next().is_some() {
            keys.push(Key {
                bits,
                proxy: here().any(|way| way.is_by_proxy()),
                // Who demands it is heard before who does not.
                said: here().filter_map(|way| way.proof).max(),
            });
        }
    }
    keys
}

/// What a lookup of one peer finds: by the proxy, how precise, what the key itself says, what it says or
/// took over.
fn lookup(keys: &[Key]) -> Option<(bool, u8, Option<bool>, bool)> {
    let at = (0..keys.len()).find(|at| {
        let covered = keys[at + 1..].iter().any(|key| key.proxy);
        // What goes by the proxy comes before what does not; only a word of its own keeps such a key.
        keys[*at].proxy || keys[*at].said.is_some() || !covered
    })?;
    let proxy = keys[at..].iter().any(|key| key.proxy);
    let said = keys[at..].iter().find_map(|key| key.said);
    Some((proxy, keys[at].bits, keys[at].said, said.unwrap_or(false)))
}

pub(crate) fn is_needed(ways: &[&Way]) -> bool {
    let [named, anybody] = [false, true].map(|anybody| lookup(&keys(ways, anybody)));
    let (named, anybody) = match (named, anybody) {
        (Some(named), Some(anybody)) => (named, anybody),
        (Some(one), None) | (None, Some(one)) => return one.3,
        (None, None) => return false,
    };
    // The proxy first, then precision, then the peer by name.
    if named.0 != anybody.0 {
        return if named.0 { named.3 } else { anybody.3 };
    }
    let (first, other) = if anybody.1 > named.1 {
        (anybody, named)
    } else {
        (named, anybody)
    };
    first.2.unwrap_or(first.3 || other.3)
}
