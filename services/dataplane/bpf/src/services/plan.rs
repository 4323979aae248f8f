//! From one set of backends to another, as steps that are each safe to be read in between.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use super::Backend;

/// What the kernel holds of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) id: u32,
    pub(super) generation: u32,
    pub(super) capture: bool,
    pub(super) slots: Vec<Backend>,
}

/// One write to one map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    AddMember(SocketAddr),
    DropMember(SocketAddr),
    PutSlot(u32, Backend),
    DropSlot(u32),
    /// Count and generation.
    PutService {
        count: u32,
        generation: u32,
        capture: bool,
    },
    DropService,
}

/// The steps from `state` to these backends, the state after them, and the addresses that are
/// backends no more. `wanted` has no address twice.
pub(super) fn replace(
    state: &State,
    capture: bool,
    wanted: &[Backend],
) -> (Vec<Step>, State, Vec<SocketAddr>) {
    let mut missing: HashMap<SocketAddr, Backend> = wanted.iter().map(|b| (b.address, *b)).collect();
    let had: HashSet<SocketAddr> = state.slots.iter().map(|b| b.address).collect();
    let mut steps: Vec<Step> = wanted
        .iter()
        .filter(|b| !had.contains(&b.address))
        .map(|b| Step::AddMember(b.address))
        .collect();

    // Each slot keeps its backend if that is still wanted, once; the others are free.
    let mut slots: Vec<Option<Backend>> = state
        .slots
        .iter()
        .map(|backend| missing.remove(&backend.address))
        .collect();
    let mut new = wanted
        .iter()
        .filter(|b| missing.contains_key(&b.address))
        .copied();
    for slot in &mut slots {
        if slot.is_none() {
            *slot = new.next();
        }
    }
    slots.extend(new.map(Some));
    // What is still free is filled from the end.
    let mut at = 0;
    while at < slots.len() {
        match slots[at] {
            Some(_) => at += 1,
            None => {
                slots.swap_remove(at);
            }
        }
    }
    let slots: Vec<Backend> = slots.into_iter().flatten().collect();

    let numbered = slots.iter().zip(0u32..);
    steps.extend(
        numbered
            .filter(|(backend, at)| state.slots.get(*at as usize) != Some(backend))
            .map(|(backend, at)| Step::PutSlot(at, *backend)),
    );
    let kept: HashSet<SocketAddr> = wanted.iter().map(|b| b.address).collect();
    let mut removed: Vec<SocketAddr> = had.difference(&kept).copied().collect();
    removed.sort_unstable();
    steps.extend(removed.iter().map(|address| Step::DropMember(*address)));
    let after = State {
        id: state.id,
        generation: state.generation.wrapping_add(1),
        capture,
        slots,
    };
    let count = length(&after.slots);
    steps.push(Step::PutService {
        count,
        generation: after.generation,
        capture,
    });
    steps.extend((count..length(&state.slots)).map(Step::DropSlot));
    (steps, after, removed)
}

/// The steps that take a service away.
pub(super) fn remove(state: &State) -> Vec<Step> {
    let members: HashSet<SocketAddr> = state.slots.iter().map(|b| b.address).collect();
    let mut steps = vec![Step::DropService];
    steps.extend(members.into_iter().map(Step::DropMember));
    steps.extend((0..length(&state.slots)).map(Step::DropSlot));
    steps
}

/// Never more than the map's size, which is a `u32`.
fn length(slots: &[Backend]) -> u32 {
    u32::try_from(slots.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// The maps, as the programs read them.
    #[derive(Default)]
    struct Kernel {
        service: Option<(u32, u32)>,
        slots: BTreeMap<u32, Backend>,
        members: HashSet<SocketAddr>,
    }

    impl Kernel {
        fn take(&mut self, step: Step) {
            match step {
                Step::AddMember(address) => drop(self.members.insert(address)),
                Step::DropMember(address) => assert!(self.members.remove(&address)),
                Step::PutSlot(at, backend) => drop(self.slots.insert(at, backend)),
                Step::DropSlot(at) => assert!(self.slots.remove(&at).is_some()),
                Step::PutService {
                    count, generation, ..
                } => self.service = Some((count, generation)),
                Step::DropService => assert!(self.service.take().is_some()),
            }
        }

        /// What a connect may be given now.
        fn choices(&self) -> Vec<SocketAddr> {
            let count = self.service.map_or(0, |(count, _)| count);
            (0..count)
                .map(|slot| self.slots.get(&slot).expect("every slot below the count").address)
                .collect()
        }
    }

    fn backend(number: u8, endpoint: u32) -> Backend {
        Backend {
            address: SocketAddr::from(([10, 0, 0, number], 80)),
            endpoint,
        }
    }

    proptest! {
        #[test]
        fn no_reader_in_between_sees_what_it_must_not(
            sets in prop::collection::vec(prop::collection::btree_map(0u8..12, 0u32..3, 0..9), 1..8),
        ) {
            let mut kernel = Kernel::default();
            let mut state = State { id: 1, ..State::default() };
            let mut before: HashSet<SocketAddr> = HashSet::new();
            for set in sets {
                let wanted: Vec<Backend> = set.into_iter().map(|(n, e)| backend(n, e)).collect();
                let (steps, after, removed) = replace(&state, false, &wanted);
                let now: HashSet<SocketAddr> = wanted.iter().map(|b| b.address).collect();
                for step in steps {
                    kernel.take(step);
                    let (count, generation) = kernel.service.unwrap_or_default();
                    for choice in kernel.choices() {
                        prop_assert!(before.contains(&choice) || now.contains(&choice));
                        // A UDP socket that is given it now and asks later, is told the truth.
                        prop_assert!(kernel.members.contains(&choice) || generation != after.generation);
                    }
                    if generation == after.generation {
                        prop_assert_eq!(&kernel.members, &now);
                        prop_assert_eq!(count as usize, now.len());
                    }
                }
                let held: HashSet<SocketAddr> = kernel.choices().into_iter().collect();
                prop_assert_eq!(&held, &now);
                prop_assert_eq!(kernel.slots.len(), now.len(), "no slot is left over and none is double");
                let gone: HashSet<SocketAddr> = before.difference(&now).copied().collect();
                prop_assert_eq!(removed.into_iter().collect::<HashSet<_>>(), gone);
                (state, before) = (after, now);
            }
            for step in remove(&state) {
                kernel.take(step);
                prop_assert!(kernel.service.is_none());
            }
            prop_assert!(kernel.slots.is_empty() && kernel.members.is_empty());
        }

        #[test]
        fn a_backend_that_stays_keeps_its_slot_unless_it_must_move(
            size in 1u8..30, removed in any::<prop::sample::Index>(),
        ) {
            let all: Vec<Backend> = (0..size).map(|n| backend(n, 0)).collect();
            let (_, state, _) = replace(&State::default(), false, &all);
            let mut fewer = all.clone();
            fewer.remove(removed.index(all.len()));
            let (steps, _, gone) = replace(&state, false, &fewer);
            prop_assert_eq!(gone.len(), 1);
            // Cost follows change: one moved, one member and one slot less, one new count.
            prop_assert!(steps.len() <= 4, "{:?}", steps);
        }
    }

    #[test]
    fn what_was_left_double_by_a_writer_that_died_is_cleared() {
        let slots = vec![backend(1, 0), backend(2, 0), backend(2, 0)];
        let state = State {
            id: 1,
            slots,
            ..State::default()
        };
        let (steps, after, removed) = replace(&state, false, &[backend(1, 0), backend(2, 0)]);
        assert_eq!(after.slots, [backend(1, 0), backend(2, 0)]);
        assert_eq!(steps.last(), Some(&Step::DropSlot(2)));
        assert!(removed.is_empty());
    }
}
