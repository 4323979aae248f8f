//! Slots that move between hosts that are both there: who is asked, who may run turns meanwhile, and
//! what a store takes. One case each, with its twin.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use std::{collections::BTreeMap, time::Duration};
use weft_placement_protocol::{
    Closed, DRAIN, Fence, Fenced, Gate, HANDOVER, LEASE, LEASE_MARGIN, Limits, Placement, Registration,
    SILENT, SlotCount, Step, TableView, Time, TypeKey,
};

fn at(seconds: f64) -> Time {
    Time::since_start(Duration::from_secs_f64(seconds))
}

fn key() -> TypeKey {
    TypeKey::new("default", "Cart")
}

fn host(id: &str) -> Registration {
    Registration {
        id: id.into(),
        namespace: "default".into(),
        app_id: "cart".into(),
        actor_types: vec!["Cart".into()],
        capacity: 0,
        leaving: false,
    }
}

/// Nodes n1 and n2, which run turns; `a` on n1 owns all 64 slots.
fn two() -> Placement {
    let mut p = Placement::new(Limits::default(), SlotCount::new(64).unwrap(), 0, at(0.0));
    for node in ["n1", "n2"] {
        p.hello(node, if node == "n1" { vec![host("a")] } else { vec![] });
        p.set_drains(node, true);
    }
    p.settle();
    p
}

fn owned(p: &Placement, id: &str) -> usize {
    let table = &p.tables()[&key()];
    (0..64)
        .filter(|s| table.owner(*s).0.is_some_and(|o| *o.id == *id))
        .count()
}

fn drain_all(p: &mut Placement, node: &str) -> usize {
    let wanted: Vec<_> = p.tables()[&key()].handovers(node).collect();
    for h in &wanted {
        assert!(p.drained(node, &key(), h.slot, h.epoch));
    }
    p.settle();
    wanted.len()
}

fn pass(p: &mut Placement, from: f64, to: f64) {
    let mut now = from;
    while now < to {
        now += 0.5;
        p.tick(at(now));
        assert!(p.renew("n1") && p.renew("n2"));
    }
}

#[test]
fn a_slot_moves_when_its_owner_has_stopped() {
    let mut p = two();
    p.host_up("n2", host("b")).unwrap();
    let settled = p.settle();
    p.told(&settled);
    assert!(settled.moving.contains(&key()));
    assert_eq!(
        (owned(&p, "a"), owned(&p, "b")),
        (64, 0),
        "moved before anybody was asked"
    );
    let asked: Vec<_> = p.tables()[&key()].handovers("n1").collect();
    assert_eq!(asked.len(), 32);
    assert!(asked.iter().all(|h| *h.to.id == *"b" && h.epoch == 1));
    assert_eq!(p.tables()[&key()].handovers("n2").count(), 0);

    // Not by another node, not under another epoch.
    let first = asked[0].clone();
    assert!(!p.drained("n2", &key(), first.slot, first.epoch));
    assert!(!p.drained("n1", &key(), first.slot, first.epoch + 1));
    assert!(p.drained("n1", &key(), first.slot, first.epoch));
    p.settle();
    assert_eq!(owned(&p, "b"), 1);
    assert!(p.is_current("n2", &key(), first.slot, 2) && !p.is_current("n1", &key(), first.slot, 1));
    assert_eq!(drain_all(&mut p, "n1"), 31);
    assert_eq!((owned(&p, "a"), owned(&p, "b")), (32, 32));
}

#[test]
fn a_node_that_runs_no_turns_is_not_asked() {
    let mut p = two();
    p.set_drains("n1", false);
    p.host_up("n2", host("b")).unwrap();
    assert!(p.settle().moving.is_empty());
    assert_eq!((owned(&p, "a"), owned(&p, "b")), (32, 32));
}

#[test]
fn an_owner_that_says_nothing_loses_the_slot_when_its_turns_are_surely_over() {
    let mut p = two();
    p.host_up("n2", host("b")).unwrap();
    let settled = p.settle();
    // Not told yet: no time runs, however long the database can not be written.
    pass(&mut p, 0.0, 20.0);
    assert!(p.settle().types.is_empty());
    p.told(&settled);
    let bound = 20.0 + HANDOVER.as_secs_f64();
    pass(&mut p, 20.0, bound - 0.5);
    assert!(p.settle().types.is_empty());
    assert_eq!(owned(&p, "b"), 0);
    pass(&mut p, bound - 0.5, bound);
    p.settle();
    assert_eq!(owned(&p, "b"), 32);
}

#[test]
fn what_is_on_its_way_to_a_host_that_leaves_stays() {
    let mut p = two();
    p.host_up("n2", host("b")).unwrap();
    p.settle();
    p.host_down("n2", "b");
    assert!(
        p.settle().moving.contains(&key()),
        "the owner is to be told that it may go on"
    );
    assert_eq!(p.tables()[&key()].moving(), 0);
    assert_eq!(owned(&p, "a"), 64);
    assert_eq!(p.tables()[&key()].owner(0).1, 1, "no slot moved, no epoch rises");
}

#[test]
fn a_host_that_leaves_hands_all_over_first() {
    let mut p = two();
    p.host_up("n2", host("b")).unwrap();
    p.settle();
    drain_all(&mut p, "n1");
    p.host_up(
        "n1",
        Registration {
            leaving: true,
            ..host("a")
        },
    )
    .unwrap();
    p.settle();
    assert_eq!(owned(&p, "a"), 32, "still there until they are drained");
    assert_eq!(drain_all(&mut p, "n1"), 32);
    assert_eq!((owned(&p, "a"), owned(&p, "b")), (0, 64));

    // The last one has nobody to give them to.
    p.host_up(
        "n2",
        Registration {
            leaving: true,
            ..host("b")
        },
    )
    .unwrap();
    p.settle();
    assert_eq!((owned(&p, "b"), p.tables()[&key()].moving()), (64, 0));
}

#[test]
fn others_hear_of_a_silent_node_long_before_its_lease_is_over() {
    let mut p = two();
    let silent = |p: &Placement| p.silent().map(|n| n.to_string()).collect::<Vec<_>>();
    let mut now = 0.0;
    while now < SILENT.as_secs_f64() {
        assert!(silent(&p).is_empty(), "at {now}");
        now += 0.5;
        assert!(p.tick(at(now)).is_empty());
        p.renew("n2");
    }
    assert_eq!(silent(&p), ["n1"]);
    assert_eq!(owned(&p, "a"), 64, "it still owns what it has");
    p.renew("n1");
    assert!(silent(&p).is_empty());
}

fn gate() -> (Gate, TableView) {
    let p = two();
    let view = TableView::new(p.tables()[&key()].snapshot().unwrap()).unwrap();
    let mut gate = Gate::new("n1");
    gate.welcome(LEASE - LEASE_MARGIN);
    (gate, view)
}

#[test]
fn a_turn_needs_lease_claim_and_a_slot_that_stays() {
    let (mut gate, view) = gate();
    let owner = view.slot(3).unwrap();
    // The welcome alone is no lease.
    assert_eq!(gate.begin(at(0.1), &key(), owner), Err(Closed::NoLease));
    gate.renewed(at(0.2), at(0.0));
    assert_eq!(gate.begin(at(0.2), &key(), owner), Err(Closed::NotClaimed(1)));
    gate.claimed(&key(), 3, 1);
    let turn = gate.begin(at(0.3), &key(), owner).unwrap();
    assert_eq!(gate.may_write(at(0.3), turn), Ok(1));

    gate.drain(at(1.0), &key(), 3, 1, "b");
    assert_eq!(
        gate.begin(at(1.0), &key(), owner),
        Err(Closed::Moving("b".into()))
    );
    assert!(gate.poll(at(1.0)).is_empty(), "a turn still runs");
    assert_eq!(gate.may_write(at(1.0), turn), Ok(1));
    let late = at(1.0 + DRAIN.as_secs_f64());
    assert_eq!(gate.may_write(late, turn), Err(Closed::Ended));
    let drained = Step::Drained {
        key: key(),
        slot: 3,
        epoch: 1,
    };
    assert_eq!(gate.poll(late), [Step::Cancel(turn), drained]);
    assert!(gate.poll(late).is_empty(), "said twice");

    gate.resume(&key(), 3, 1);
    assert!(gate.begin(late, &key(), owner).is_ok());
    assert_eq!(
        Gate::new("n2").begin(late, &key(), owner),
        Err(Closed::Elsewhere("n1".into()))
    );
}

#[test]
fn a_lease_that_had_a_gap_ends_the_turns_before_it() {
    let (mut gate, view) = gate();
    gate.renewed(at(0.1), at(0.0));
    gate.claimed(&key(), 3, 1);
    let turn = gate.begin(at(8.0), &key(), view.slot(3).unwrap()).unwrap();
    let mut without = gate.clone();
    // In time, and after it was over; nobody looked in between.
    without.renewed(at(8.9), at(8.5));
    assert_eq!(without.may_write(at(10.0), turn), Ok(1));
    gate.renewed(at(9.0), at(8.5));
    assert_eq!(gate.may_write(at(10.0), turn), Err(Closed::Ended));
}

#[test]
fn a_new_stream_forgets_what_the_service_does_not_repeat() {
    let (mut gate, view) = gate();
    gate.renewed(at(0.1), at(0.0));
    gate.claimed(&key(), 3, 1);
    gate.drain(at(1.0), &key(), 3, 1, "b");
    gate.welcome(LEASE - LEASE_MARGIN);
    let owner = view.slot(3).unwrap();
    assert_eq!(
        gate.begin(at(1.1), &key(), owner),
        Err(Closed::Moving("b".into())),
        "not synced yet"
    );
    gate.renewed(at(1.2), at(1.0));
    assert!(gate.begin(at(1.2), &key(), owner).is_ok());
}

#[test]
fn a_store_takes_what_was_claimed_last_and_nothing_else() {
    let mut fence = Fence::default();
    assert_eq!(fence.admit(5), Err(Fenced::NotClaimed { got: 5, claimed: 0 }));
    fence.claim(5).unwrap();
    assert_eq!(fence.admit(5), Ok(()));
    fence.claim(7).unwrap();
    assert_eq!(fence.admit(5), Err(Fenced::Over { got: 5, claimed: 7 }));
    assert_eq!(fence.claim(5), Err(Fenced::Over { got: 5, claimed: 7 }));
    assert_eq!(Fence::new(fence.epoch()).admit(7), Ok(()));
}

proptest! {
    /// However hosts come and go, once everybody has drained what was asked: balanced, by no more moves
    /// than 1.05 times the least, and nobody was asked for a slot that then stayed.
    #[test]
    fn drained_moves_are_as_few_as_any(steps in prop::collection::vec((0u8..12, 0u32..5, any::<bool>()), 1..40)) {
        let slots = SlotCount::new(64).unwrap();
        let mut p = Placement::new(Limits::default(), slots, 0, at(0.0));
        p.hello("n", vec![]);
        p.set_drains("n", true);
        let mut present: BTreeMap<u8, u32> = BTreeMap::new();
        for (id, capacity, up) in steps {
            let before: Vec<_> = (0..64).map(|s| p.tables().get(&key()).and_then(|t| t.owner(s).0.cloned())).collect();
            let name = format!("h{id}");
            if up {
                let host = Registration { capacity, ..host(&name) };
                p.host_up("n", host).unwrap();
                present.insert(id, capacity.max(1));
            } else {
                p.host_down("n", &name);
                present.remove(&id);
            }
            p.settle();
            let Some(table) = p.tables().get(&key()) else { continue };
            let wanted: Vec<_> = table.handovers("n").collect();
            for h in &wanted {
                prop_assert!(p.drained("n", &key(), h.slot, h.epoch));
            }
            p.settle();
            let table = &p.tables()[&key()];
            prop_assert_eq!(table.moving(), 0);
            if present.is_empty() {
                continue;
            }
            let total: u64 = present.values().map(|c| u64::from(*c)).sum();
            let mut least = 0;
            let mut rest = 64;
            let mut ups: Vec<(bool, u64)> = Vec::new();
            for (id, capacity) in &present {
                let name = format!("h{id}");
                let has = (0..64).filter(|s| table.owner(*s).0.is_some_and(|o| *o.id == *name)).count() as u64;
                prop_assert!((has * total).abs_diff(64 * u64::from(*capacity)) < total, "{} has {}", name, has);
                let held = before.iter().flatten().filter(|o| *o.id == *name).count() as u64;
                let exact = 64 * u64::from(*capacity);
                rest -= exact / total;
                least += held.min(exact / total);
                ups.push((!exact.is_multiple_of(total) && held > exact / total, exact));
            }
            let more = ups.iter().filter(|(more, _)| *more).count() as u64;
            let least = 64 - least - more.min(rest);
            let moved = (0..64u32).zip(&before).filter(|(s, b)| {
                let after = table.owner(*s).0;
                after.map(|o| &o.id) != b.as_ref().map(|o| &o.id)
            }).count() as u64;
            prop_assert!(moved * 100 <= least * 105, "{} moves, {} would do", moved, least);
        }
    }
}
