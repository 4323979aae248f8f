//! Any sequence of joins and leaves: balance, fewest moves, epochs, and copies that follow by deltas.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use weft_placement_protocol::{
    Limits, Placement, Registration, SlotCount, Snapshot, TableView, Time, TypeKey,
};

#[derive(Debug, Clone)]
enum Step {
    Up {
        host: u8,
        capacity: u32,
    },
    Down {
        host: u8,
    },
    Settle,
    /// The service starts anew from what it saved.
    Restart,
    /// The copy with this number catches up.
    Sync {
        copy: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<u8>(), 1u32..5).prop_map(|(host, capacity)| Step::Up { host: host % 24, capacity }),
        3 => any::<u8>().prop_map(|host| Step::Down { host: host % 24 }),
        4 => Just(Step::Settle),
        1 => Just(Step::Restart),
        3 => (0usize..3).prop_map(|copy| Step::Sync { copy }),
    ]
}

fn registration(host: u8, capacity: u32) -> Registration {
    Registration {
        id: format!("h{host}"),
        namespace: "default".into(),
        app_id: "cart".into(),
        actor_types: vec!["Cart".into()],
        capacity,
        leaving: false,
    }
}

fn key() -> TypeKey {
    TypeKey::new("default", "Cart")
}

/// Owner's name and epoch per slot.
fn facts(s: &Snapshot) -> Vec<(Arc<str>, u64)> {
    s.owners
        .iter()
        .zip(&s.epochs)
        .map(|(o, e)| (s.hosts[*o as usize - 1].id.clone(), *e))
        .collect()
}

fn check_balance(s: &Snapshot) -> Result<(), TestCaseError> {
    let total: u64 = s.hosts.iter().map(|h| u64::from(h.capacity)).sum();
    let mut counts = vec![0u64; s.hosts.len() + 1];
    s.owners.iter().for_each(|o| counts[*o as usize] += 1);
    prop_assert_eq!(counts[0], 0, "slots without owner");
    for (host, count) in s.hosts.iter().zip(&counts[1..]) {
        let share = s.owners.len() as u64 * u64::from(host.capacity);
        prop_assert!(
            (count * total).abs_diff(share) < total,
            "{} has {}, share {}/{}",
            host.id,
            count,
            share,
            total
        );
    }
    Ok(())
}

/// The least number of moves to any balanced assignment. Of a host's slots, as many can stay as
/// its share has whole slots; beyond that one more each, for as many hosts as are rounded up.
/// Hosts in `downs` left in between, so nothing they held can stay, even if they came back.
fn least_moves(before: &Snapshot, after: &Snapshot, downs: &BTreeSet<String>) -> usize {
    let slots = after.owners.len() as u64;
    let total: u64 = after.hosts.iter().map(|h| u64::from(h.capacity)).sum();
    let mut held: BTreeMap<&str, u64> = BTreeMap::new();
    for owner in &before.owners {
        *held.entry(&before.hosts[*owner as usize - 1].id).or_default() += 1;
    }
    let (mut stay, mut one_more, mut rounded_up) = (0, 0, slots);
    for host in &after.hosts {
        let exact = slots * u64::from(host.capacity);
        let held = if downs.contains(&*host.id) {
            0
        } else {
            held.get(&*host.id).copied().unwrap_or(0)
        };
        rounded_up -= exact / total;
        stay += held.min(exact / total);
        one_more += u64::from(!exact.is_multiple_of(total) && held > exact / total);
    }
    usize::try_from(slots - stay - one_more.min(rounded_up)).unwrap()
}

fn check_step(
    before: Option<&Snapshot>,
    after: Option<&Snapshot>,
    downs: &BTreeSet<String>,
    floor: &mut u64,
) -> Result<(), TestCaseError> {
    let Some(after) = after else { return Ok(()) };
    check_balance(after)?;
    if let Some(before) = before {
        prop_assert!(after.version > before.version);
        let mut moves = 0;
        for (slot, (b, a)) in facts(before).into_iter().zip(facts(after)).enumerate() {
            let moved = a.0 != b.0 || downs.contains(&*b.0);
            prop_assert_eq!(a.1, b.1 + u64::from(moved), "epoch of slot {}", slot);
            moves += usize::from(moved);
        }
        let least = least_moves(before, after, downs);
        prop_assert!(moves * 100 <= least * 105, "{} moves, {} would do", moves, least);
    } else {
        prop_assert!(after.epochs.iter().all(|e| *e > *floor), "an epoch came again");
    }
    *floor = (*floor).max(*after.epochs.iter().max().unwrap());
    Ok(())
}

fn sync(copy: &mut Option<TableView>, p: &Placement) -> Result<(), TestCaseError> {
    let Some(table) = p.tables().get(&key()) else {
        return Ok(());
    };
    let Some(snapshot) = table.snapshot() else {
        *copy = None;
        return Ok(());
    };
    let whole = TableView::new(snapshot.clone()).unwrap();
    let next = match copy
        .as_ref()
        .and_then(|c| table.delta(c.version()).map(|d| (c, d)))
    {
        Some((c, delta)) => {
            prop_assert!(delta.moves.len() <= table.slots().len() / 2);
            c.apply(&delta).unwrap()
        }
        None => whole.clone(),
    };
    prop_assert_eq!(next.version(), whole.version());
    let names = |v: &TableView| {
        let mut all: Vec<_> = v.hosts().map(|h| (**h).clone()).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    };
    prop_assert_eq!(names(&next), names(&whole));
    for slot in 0..table.slots().get() {
        prop_assert_eq!(next.slot(slot), whole.slot(slot));
    }
    *copy = Some(next);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_history_keeps_the_rules(steps in prop::collection::vec(step(), 1..80), equal in any::<bool>()) {
        let slots = SlotCount::new(64).unwrap();
        let now = Time::default();
        let mut p = Placement::new(Limits::default(), slots, 5, now);
        p.hello("n", vec![]);
        let mut copies: [Option<TableView>; 3] = Default::default();
        let mut before: Option<Snapshot> = None;
        let mut floor = 5;
        let mut downs = BTreeSet::new();
        for step in steps {
            match step {
                Step::Up { host, capacity } => {
                    p.host_up("n", registration(host, if equal { 1 } else { capacity })).unwrap();
                    continue;
                }
                Step::Down { host } => {
                    p.host_down("n", &format!("h{host}"));
                    downs.insert(format!("h{host}"));
                    continue;
                }
                Step::Sync { .. } | Step::Settle => {}
                Step::Restart => {
                    p.settle();
                    let saved = p.saved();
                    let untouched = p.tables().get(&key()).and_then(|t| t.snapshot());
                    p = Placement::restore(Limits::default(), slots, 5, now, saved);
                    p.hello("n", p.saved().hosts.iter().map(|h| registration(
                        h.info.id[1..].parse().unwrap(), h.info.capacity)).collect());
                    prop_assert!(p.settle().is_empty(), "a restart moved something");
                    prop_assert_eq!(p.tables().get(&key()).and_then(|t| t.snapshot()), untouched);
                }
            }
            p.settle();
            let after = p.tables().get(&key()).and_then(|t| t.snapshot());
            if after != before {
                check_step(before.as_ref(), after.as_ref(), &downs, &mut floor)?;
                before = after;
            }
            downs.clear();
            if let Step::Sync { copy } = step {
                sync(&mut copies[copy], &p)?;
            }
        }
    }

    #[test]
    fn a_killed_hosts_ids_move_and_nobody_elses(n in 2u8..60, killed in any::<prop::sample::Index>(), salt in any::<u64>()) {
        let mut p = Placement::new(Limits::default(), SlotCount::default(), 0, Time::default());
        p.hello("n", (0..n).map(|h| registration(h, 0)).collect());
        p.settle();
        let before = TableView::new(p.tables()[&key()].snapshot().unwrap()).unwrap();
        let killed = format!("h{}", killed.index(n.into()));
        p.host_down("n", &killed);
        p.settle();
        let after = before.apply(&p.tables()[&key()].delta(before.version()).unwrap());
        // Even of two hosts the killed one had half of the slots, so it was a delta.
        let after = after.unwrap();
        let mut moved = 0;
        for i in 0..10_000 {
            let id = format!("actor-{salt}-{i}");
            let (b, a) = (before.lookup(&id).unwrap(), after.lookup(&id).unwrap());
            if *b.host.id == *killed {
                prop_assert!(*a.host.id != *killed && a.epoch == b.epoch + 1);
                moved += 1;
            } else {
                prop_assert_eq!(a, b);
            }
        }
        // 10,000 ids over n hosts: the killed one had its share of them.
        prop_assert!(moved > 5_000 / usize::from(n), "{} ids moved of {} hosts", moved, n);
    }

    #[test]
    fn a_copy_refuses_what_does_not_fit(
        owners in prop::collection::vec(0u32..4, 0..20),
        epochs in prop::collection::vec(any::<u64>(), 0..20),
        ids in prop::collection::vec(0u8..4, 0..4),
        moves in prop::collection::vec((0u32..20, prop::option::of(0u8..5), any::<u64>()), 0..6),
        (from, version) in (0u64..3, 0u64..3),
    ) {
        use weft_placement_protocol::{Delta, HostInfo, Move};
        let host = |i: &u8| Arc::new(HostInfo {
            id: format!("h{i}").into(), namespace: "d".into(), app_id: "a".into(), node: "n".into(), capacity: 1,
        });
        let hosts: Vec<_> = ids.iter().map(host).collect();
        let whole = Snapshot { version: 1, slots: SlotCount::new(16).unwrap(), hosts: hosts.clone(), owners, epochs };
        let good = Snapshot {
            owners: vec![u32::from(!hosts.is_empty()); 16], epochs: vec![7; 16], ..whole.clone()
        };
        // Whatever is taken is sound; whatever is not leaves the copy as it was.
        for start in [whole, good] {
            let Ok(view) = TableView::new(start) else { continue };
            let delta = Delta {
                from, version,
                hosts_up: hosts.iter().take(1).cloned().collect(),
                hosts_down: vec!["h1".into()],
                moves: moves.iter().map(|(slot, owner, epoch)| Move {
                    slot: *slot, owner: owner.map(|o| format!("h{o}").into()), epoch: *epoch,
                }).collect(),
            };
            if let Ok(next) = view.apply(&delta) {
                prop_assert_eq!(from, 1);
                for slot in 0..16 {
                    prop_assert!(next.epoch(slot) >= view.epoch(slot));
                    if let Some(owner) = next.slot(slot) {
                        prop_assert!(next.hosts().any(|h| h == owner.host));
                    }
                }
            }
        }
    }
}

#[test]
fn two_copies_agree_on_ten_thousand_ids() {
    let mut p = Placement::new(Limits::default(), SlotCount::default(), 0, Time::default());
    p.hello("n", vec![registration(0, 0)]);
    p.settle();
    let mut followed = TableView::new(p.tables()[&key()].snapshot().unwrap()).unwrap();
    for host in 1..20 {
        p.host_up("n", registration(host, u32::from(host))).unwrap();
        p.settle();
        followed = match p.tables()[&key()].delta(followed.version()) {
            Some(delta) => followed.apply(&delta).unwrap(),
            None => TableView::new(p.tables()[&key()].snapshot().unwrap()).unwrap(),
        };
    }
    let fresh = TableView::new(p.tables()[&key()].snapshot().unwrap()).unwrap();
    let mut hosts = BTreeSet::new();
    for i in 0..10_000 {
        let id = format!("actor-{i}");
        let owner = fresh.lookup(&id).unwrap();
        assert_eq!(followed.lookup(&id), Some(owner));
        hosts.insert(owner.host.id.clone());
    }
    assert_eq!(hosts.len(), 20);
}

#[test]
fn time_is_only_what_is_passed_in() {
    let early = Time::since_start(Duration::from_secs(1));
    let late = early + Duration::from_secs(2);
    assert_eq!(late.since(early), Duration::from_secs(2));
    assert_eq!(early.since(late), Duration::ZERO);
}
