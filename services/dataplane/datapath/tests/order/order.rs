//! Changes of all kinds, several at once, restarts in between.

use crate::{
    kernel::{Fate, Kernel, State},
    scene::{Change, Policy, Scene, changes, probes, scene},
};
use proptest::prelude::*;
use std::{cell::RefCell, rc::Rc};
use weft_datapath::{Datapath, Limits};
use weft_model::NumericIdentity;

/// What may become of each probe between two scenes: what the endpoint's rules, old or new, say of
/// whoever has the peer's address before or after.
fn may_be(old: &Scene, new: &Scene, probe: &crate::kernel::Probe) -> Vec<Fate> {
    let mut fates = Vec::new();
    let whos = [old.who(probe.peer), new.who(probe.peer)];
    for scene in [old, new] {
        let Some(rules) = scene.rules_of(probe.endpoint) else {
            fates.push(Fate::Closed);
            continue;
        };
        fates.extend(whos.map(|who| scene.truth(rules, who, probe)));
        if whos[0] != whos[1] {
            // In between it may be not known; that passes where a rule allows what is not known.
            let strict = Policy {
                default_deny: [true; 2],
                ..rules.1.clone()
            };
            fates.push(scene.truth((rules.0, &strict), NumericIdentity::CLUSTER_UNKNOWN, probe));
        }
    }
    let moved = old.here.get(&probe.endpoint) != new.here.get(&probe.endpoint);
    let unknown = whos.contains(&NumericIdentity::CLUSTER_UNKNOWN);
    if whos[0] != whos[1] || moved || unknown {
        // Not known yet, or not known any more.
        fates.push(Fate::Closed);
    }
    fates
}

fn agrees(scene: &Scene, state: &State) -> Result<(), String> {
    for probe in probes() {
        let is = state.judge(&probe);
        let should = match scene.rules_of(probe.endpoint) {
            None => Fate::Closed,
            Some(rules) => scene.truth(rules, scene.who(probe.peer), &probe),
        };
        // Not known: dropped without a word instead of with one.
        let unknown = scene.who(probe.peer) == NumericIdentity::CLUSTER_UNKNOWN;
        let same = is == should || ((unknown || should == Fate::Dropped) && is == Fate::Closed);
        if !same || (scene.rules_of(probe.endpoint).is_none() && is != Fate::Closed) {
            return Err(format!("{probe:?}: {is:?}, should be {should:?}"));
        }
    }
    Ok(())
}

fn run(first: Scene, steps: Vec<Vec<Change>>) -> Result<(), TestCaseError> {
    let kernel = Kernel::default();
    let mut datapath = Datapath::adopt(kernel.clone(), Limits::default()).unwrap();
    let outcome = datapath.apply(first.update(true, None));
    prop_assert!(outcome.problems.is_empty(), "{:?}", outcome);
    prop_assert_eq!(agrees(&first, &kernel.state.borrow()), Ok(()));
    let mut scene = first;
    for step in steps {
        let next = scene.with(&step);
        let wrong = Rc::new(RefCell::new(Vec::new()));
        {
            let wrong = wrong.clone();
            let all: Vec<_> = probes()
                .into_iter()
                .map(|p| (p, may_be(&scene, &next, &p)))
                .collect();
            kernel.watch(move |state, write| {
                for (probe, may) in &all {
                    let is = state.judge(probe);
                    let silent = is == Fate::Closed && may.contains(&Fate::Dropped);
                    if !may.contains(&is) && !silent {
                        wrong
                            .borrow_mut()
                            .push(format!("after {write:?}: {probe:?} {is:?}, may be {may:?}"));
                    }
                }
            });
        }
        let restart = step.iter().any(|c| matches!(c, Change::Restart));
        if restart {
            datapath = Datapath::adopt(kernel.clone(), Limits::default()).unwrap();
        }
        let outcome = datapath.apply(next.update(restart, Some(&scene)));
        kernel.watch(|_, _| {});
        prop_assert!(outcome.problems.is_empty(), "{:?}", outcome);
        let wrong = wrong.borrow();
        prop_assert!(wrong.is_empty(), "{} wrong, first: {}", wrong.len(), wrong[0]);
        prop_assert_eq!(agrees(&next, &kernel.state.borrow()), Ok(()));
        tidy(&next, &datapath, &kernel)?;
        scene = next;
    }
    // Nothing changed: nothing is written, by this planner and by the next one.
    let before = kernel.state.borrow().writes;
    datapath.apply(scene.update(true, None));
    prop_assert_eq!(kernel.state.borrow().writes, before);
    let wrong = Rc::new(RefCell::new(Vec::new()));
    {
        let (scene, wrong) = (scene.clone(), wrong.clone());
        kernel.watch(move |state, write| {
            if let Err(text) = agrees(&scene, state) {
                wrong.borrow_mut().push(format!("after {write:?}: {text}"));
            }
        });
    }
    let mut again = Datapath::adopt(kernel.clone(), Limits::default()).unwrap();
    again.apply(scene.update(true, None));
    prop_assert_eq!(&*wrong.borrow(), &Vec::<String>::new());
    // The number of a range among a node's pods is nowhere in the kernel: its policy is written anew.
    if !scene.names_a_range_among_pods() {
        prop_assert_eq!(kernel.state.borrow().writes, before);
    }
    Ok(())
}

/// Nothing is left of what was.
fn tidy(scene: &Scene, datapath: &Datapath<Kernel>, kernel: &Kernel) -> Result<(), TestCaseError> {
    let state = kernel.state.borrow();
    let counts = datapath.counts();
    prop_assert_eq!(state.held.endpoints.len(), scene.here.len());
    prop_assert_eq!(state.held.sets.len(), counts.sets);
    for number in state.held.policies.keys() {
        prop_assert!(state.held.sets.contains_key(number), "entries without a set");
    }
    let entries: usize = state.held.policies.values().map(|i| i.len()).sum();
    prop_assert_eq!(entries, counts.entries);
    prop_assert_eq!(state.held.addresses.len(), counts.addresses);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn no_write_shows_a_verdict_that_was_never_desired(
        first in scene(), steps in prop::collection::vec(changes(), 1..6),
    ) {
        run(first, steps)?;
    }
}
