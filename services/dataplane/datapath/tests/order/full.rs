//! What does not fit is closed and told; the rest goes on; room is used when there is some.

use crate::{
    kernel::{Fate, Kernel, Room},
    scene::{changes, probes, scene},
};
use proptest::prelude::*;
use weft_datapath::{Datapath, Limits};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn a_full_table_opens_nothing(
        first in scene(),
        steps in prop::collection::vec(changes(), 1..5),
        policies in 0..12usize,
        addresses in 2..8usize,
        endpoints in 1..3usize,
    ) {
        let kernel = Kernel::default();
        kernel.state.borrow_mut().room = Room {
            policies: Some(policies),
            addresses: Some(addresses),
            endpoints: Some(endpoints),
        };
        let mut datapath = Datapath::adopt(kernel.clone(), Limits::default()).unwrap();
        datapath.apply(first.update(true, None));
        let mut scene = first;
        for step in steps {
            let next = scene.with(&step);
            datapath.apply(next.update(false, Some(&scene)));
            scene = next;
            let state = kernel.state.borrow();
            for probe in probes() {
                let may_pass = scene.rules_of(probe.endpoint).is_some_and(|rules| {
                    // What is not written is not known, and what the rules say of that may pass too.
                    let unknown = weft_model::NumericIdentity::CLUSTER_UNKNOWN;
                    [scene.who(probe.peer), unknown]
                        .map(|who| scene.truth(rules, who, &probe))
                        .contains(&Fate::Passes)
                });
                let is = state.judge(&probe);
                prop_assert!(is != Fate::Passes || may_pass, "{:?} passes", probe);
            }
            let lacking = state.held.endpoints.len() < scene.here.len()
                || state.held.endpoints.values().any(|e| !state.held.sets.contains_key(&e.set));
            prop_assert!(!lacking || !datapath.problems().is_empty(), "closed, and nobody is told");
        }
        // Room again: nothing is left undone.
        kernel.state.borrow_mut().room = Room::default();
        datapath.retry();
        prop_assert_eq!(datapath.problems(), Vec::<String>::new());
        let counts = datapath.counts();
        let mut fresh = Datapath::adopt(Kernel::default(), Limits::default()).unwrap();
        fresh.apply(scene.update(true, None));
        let wanted = fresh.counts();
        prop_assert_eq!(
            (counts.endpoints, counts.addresses, counts.sets, counts.entries),
            (wanted.endpoints, wanted.addresses, wanted.sets, wanted.entries)
        );
    }
}
