//! Who gets how many slots, and which slots move for it.
//!
//! A host's exact share is `slots × capacity / total capacity`; it gets that rounded down or up,
//! so nobody is a full slot away from its share. Which hosts get the slot by rounding up is
//! chosen so that as few slots as possible move: first those that hold it already. Given the
//! rounding rule this is the least possible number of moves: a host only loses what is above its
//! quota, and any other choice of quotas would take away a slot that this one leaves in place.
//!
//! With equal capacities a change never moves a slot between two hosts that were there before
//! and after: when a host leaves, shares only rise, so nobody loses; when one joins, they only
//! fall, so nobody else gains. With unequal capacities single slots may have to move between
//! others to keep everyone within one slot of its share.

/// A host in the assignment: its number, and its share relative to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weighted {
    pub number: u32,
    pub capacity: u32,
}

/// The slots that have to change owner, each with its new owner's number; 0 for nobody.
///
/// `owners` holds per slot its owner's number, 0 for none. Numbers that are not among `hosts`
/// have left. `hosts` must be in ascending order of number.
pub(crate) fn rebalance(owners: &[u32], hosts: &[Weighted]) -> Vec<(u32, u32)> {
    if hosts.is_empty() {
        return (0u32..)
            .zip(owners)
            .filter(|(_, owner)| **owner != 0)
            .map(|(slot, _)| (slot, 0))
            .collect();
    }
    let place = |number: u32| hosts.binary_search_by_key(&number, |h| h.number).ok();
    let mut held = vec![0u32; hosts.len()];
    let mut last = (0, None);
    for &owner in owners {
        if owner != last.0 {
            last = (owner, place(owner));
        }
        if let Some(i) = last.1 {
            held[i] += 1;
        }
    }
    let quotas = quotas(owners.len() as u64, hosts, &held);

    let mut spare: Vec<u32> = held
        .iter()
        .zip(&quotas)
        .map(|(held, quota)| held.saturating_sub(*quota))
        .collect();
    let mut wanted: Vec<(usize, u32)> = quotas
        .iter()
        .zip(&held)
        .map(|(quota, held)| quota.saturating_sub(*held))
        .enumerate()
        .filter(|(_, n)| *n > 0)
        .collect();
    let mut moves = Vec::new();
    // Those that want some take turns, so that a leaving host's slots spread over all others.
    let mut turn = 0;
    last = (0, None);
    for (slot, &owner) in (0u32..).zip(owners) {
        if owner != last.0 {
            last = (owner, place(owner));
        }
        if let Some(i) = last.1 {
            if spare[i] == 0 {
                continue;
            }
            spare[i] -= 1;
        }
        // Quotas sum up to the number of slots, so there is one who wants for each that is free.
        if wanted.is_empty() {
            break;
        }
        turn %= wanted.len();
        let (taker, left) = &mut wanted[turn];
        moves.push((slot, hosts[*taker].number));
        *left -= 1;
        if *left == 0 {
            wanted.remove(turn);
        } else {
            turn += 1;
        }
    }
    moves
}

/// How many slots each host is to own: its share rounded down or up, `slots` in sum.
fn quotas(slots: u64, hosts: &[Weighted], held: &[u32]) -> Vec<u32> {
    let total: u64 = hosts.iter().map(|h| u64::from(h.capacity.max(1))).sum();
    let mut quotas = Vec::with_capacity(hosts.len());
    // Where rounding up is possible: whether the host holds that slot, the remainder, the place.
    let mut round_up = Vec::with_capacity(hosts.len());
    let mut rest = slots;
    for (i, host) in hosts.iter().enumerate() {
        let exact = slots * u64::from(host.capacity.max(1));
        let down = exact / total;
        rest -= down;
        if !exact.is_multiple_of(total) {
            round_up.push((u64::from(held[i]) > down, exact % total, i));
        }
        // Not more than `slots`, which fits.
        quotas.push(down as u32);
    }
    round_up.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2)));
    for (_, _, i) in round_up.into_iter().take(rest as usize) {
        quotas[i] += 1;
    }
    quotas
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn hosts(capacities: &[u32]) -> Vec<Weighted> {
        (1..)
            .zip(capacities)
            .map(|(number, &capacity)| Weighted { number, capacity })
            .collect()
    }

    fn apply(owners: &mut [u32], moves: &[(u32, u32)]) {
        for &(slot, owner) in moves {
            assert_ne!(owners[slot as usize], owner, "a move to the present owner");
            owners[slot as usize] = owner;
        }
    }

    fn balanced(owners: &[u32], hosts: &[Weighted]) -> Result<(), TestCaseError> {
        let total: u64 = hosts.iter().map(|h| u64::from(h.capacity)).sum();
        let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
        for owner in owners {
            *counts.entry(*owner).or_default() += 1;
        }
        for host in hosts {
            let has = counts.remove(&host.number).unwrap_or(0) * total;
            let share = owners.len() as u64 * u64::from(host.capacity);
            prop_assert!(
                has.abs_diff(share) < total,
                "{host:?} has {has}/{total}, share {share}/{total}"
            );
        }
        prop_assert!(counts.is_empty(), "slots of hosts that are not there: {counts:?}");
        Ok(())
    }

    /// The least number of moves by trying every distribution whose counts are shares rounded
    /// down or up. Knows nothing of the rules above.
    fn least(owners: &[u32], hosts: &[Weighted]) -> usize {
        fn search(left: &[(u64, u64, u64)], slots: u64) -> Option<u64> {
            let Some(((held, down, up), rest)) = left.split_first() else {
                return (slots == 0).then_some(0);
            };
            let mut best = None;
            for take in *down..=*up {
                if take > slots {
                    continue;
                }
                let kept = search(rest, slots - take).map(|kept| kept + take.min(*held));
                best = best.max(kept);
            }
            best
        }
        let total: u64 = hosts.iter().map(|h| u64::from(h.capacity)).sum();
        let ranges: Vec<_> = hosts
            .iter()
            .map(|h| {
                let held = owners.iter().filter(|o| **o == h.number).count() as u64;
                let exact = owners.len() as u64 * u64::from(h.capacity);
                (held, exact / total, exact.div_ceil(total))
            })
            .collect();
        owners.len() - usize::try_from(search(&ranges, owners.len() as u64).unwrap()).unwrap()
    }

    proptest! {
        #[test]
        fn any_state_becomes_balanced_by_the_fewest_moves(
            capacities in prop::collection::vec(1u32..20, 1..9),
            owners in prop::collection::vec(0u32..12, 32),
        ) {
            let hosts = hosts(&capacities);
            let mut owners = owners;
            let least = least(&owners, &hosts);
            let moves = rebalance(&owners, &hosts);
            prop_assert_eq!(moves.len(), least);
            apply(&mut owners, &moves);
            balanced(&owners, &hosts)?;
            prop_assert!(rebalance(&owners, &hosts).is_empty(), "a balanced state moved again");
        }

        #[test]
        fn with_equal_capacities_only_the_changed_host_moves(n in 1u32..300, gone in any::<prop::sample::Index>()) {
            let mut owners = vec![0; 4096];
            let mut all = hosts(&vec![7; n as usize]);
            let moves = rebalance(&owners, &all);
            apply(&mut owners, &moves);
            balanced(&owners, &all)?;

            let joined = Weighted { number: n + 1, capacity: 7 };
            all.push(joined);
            let moves = rebalance(&owners, &all);
            prop_assert!(moves.iter().all(|(_, to)| *to == joined.number));
            prop_assert!(moves.len() as u32 <= 4096u32.div_ceil(n + 1));
            apply(&mut owners, &moves);
            balanced(&owners, &all)?;

            let left = all.remove(gone.index(all.len()));
            let of_left = owners.iter().filter(|o| **o == left.number).count();
            let moves = rebalance(&owners, &all);
            prop_assert!(moves.iter().all(|(slot, _)| owners[*slot as usize] == left.number));
            prop_assert_eq!(moves.len(), of_left);
            apply(&mut owners, &moves);
            balanced(&owners, &all)?;
        }
    }

    #[test]
    fn without_hosts_nobody_owns() {
        assert_eq!(rebalance(&[1, 0, 2], &[]), [(0, 0), (2, 0)]);
    }
}
