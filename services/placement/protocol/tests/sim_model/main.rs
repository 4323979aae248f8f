//! The machines of the crate in every order of events, within bounds: nothing random, nothing left out.
//!
//! The simulation goes far and sees some histories; this goes as far as its bounds and sees all of them.
#![allow(clippy::unwrap_used)]

mod leader;
mod moves;

use stateright::{Checker, Expectation, HasDiscoveries, Model};
use std::hash::Hash;

/// Looks at all states. Gives how many there were, and the property that was found broken.
fn look<M>(model: M) -> (usize, Option<String>)
where
    M: Model + Send + Sync + 'static,
    M::State: std::fmt::Debug + Clone + Hash + PartialEq + Send + Sync + 'static,
    M::Action: std::fmt::Debug + Clone + PartialEq + Send + Sync + 'static,
{
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .threads(2)
        .spawn_bfs()
        .join();
    let (mut broken, mut never) = (None, None);
    for property in checker.model().properties() {
        let found = checker.discovery(property.name).map(|path| path.into_actions());
        match (property.expectation, found) {
            (Expectation::Sometimes, None) => never = Some(format!("never: {}", property.name)),
            (Expectation::Sometimes, Some(_)) | (_, None) => {}
            (_, Some(actions)) => broken = Some(format!("{}: {actions:?}", property.name)),
        }
    }
    (checker.unique_state_count(), broken.or(never))
}

#[test]
fn one_owner_in_every_order_of_events() {
    for bounds in moves::Bounds::ALL {
        let (states, broken) = look(moves::Moves::new(bounds, None));
        println!("moves, {bounds:?}: {states} states");
        assert_eq!(broken, None);
        assert!(
            states > 10_000,
            "the bounds leave nothing to look at: {states} states"
        );
    }
}

#[test]
fn every_order_finds_what_is_missing() {
    for missing in moves::Missing::ALL {
        let found = look(moves::Moves::new(missing.bounds(), Some(missing))).1;
        println!("moves without {missing:?}: {found:?}");
        assert!(found.is_some(), "nothing noticed without {missing:?}");
    }
}

#[test]
fn one_leader_in_every_order_of_events() {
    let (states, broken) = look(leader::Leaders { missing: None });
    println!("leaders: {states} states");
    assert_eq!(broken, None);
    assert!(
        states > 10_000,
        "the bounds leave nothing to look at: {states} states"
    );
}

#[test]
fn every_order_finds_what_a_leader_misses() {
    for missing in leader::Missing::ALL {
        let found = look(leader::Leaders {
            missing: Some(missing),
        })
        .1;
        println!("leaders without {missing:?}: {found:?}");
        assert!(found.is_some(), "nothing noticed without {missing:?}");
    }
}
