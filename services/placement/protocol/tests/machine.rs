//! Leases, refusals, restarts: one case each, with its twin.
#![allow(clippy::unwrap_used)]

use std::time::Duration;
use weft_placement_protocol::{
    LEASE, Limits, Placement, Refusal, Registration, SlotCount, TableView, Time, TypeKey,
};

fn at(seconds: f64) -> Time {
    Time::since_start(Duration::from_secs_f64(seconds))
}

fn slots() -> SlotCount {
    SlotCount::new(64).unwrap()
}

fn empty() -> Placement {
    Placement::new(Limits::default(), slots(), 1000, at(0.0))
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

fn key() -> TypeKey {
    TypeKey::new("default", "Cart")
}

fn owners(placement: &Placement) -> Vec<Option<String>> {
    let table = &placement.tables()[&key()];
    (0..64)
        .map(|slot| table.owner(slot).0.map(|h| h.id.to_string()))
        .collect()
}

/// Time as a server sees it: in small steps.
fn pass(placement: &mut Placement, from: f64, to: f64, renewing: &[&str]) -> Vec<String> {
    let mut expired = Vec::new();
    let mut now = from;
    while now < to {
        now += 0.5;
        expired.extend(placement.tick(at(now)).iter().map(|n| n.to_string()));
        renewing.iter().for_each(|n| assert!(placement.renew(n)));
    }
    expired
}

#[test]
fn a_lease_that_is_not_renewed_frees_the_nodes_hosts_only() {
    let mut p = empty();
    assert!(p.hello("n1", vec![host("a")]).is_empty());
    assert!(p.hello("n2", vec![host("b")]).is_empty());
    p.settle();
    let before = owners(&p);
    assert!(before.contains(&Some("a".into())) && before.contains(&Some("b".into())));

    assert_eq!(pass(&mut p, 0.0, LEASE.as_secs_f64() - 0.5, &["n2"]), [""; 0]);
    assert!(p.settle().is_empty());
    assert_eq!(owners(&p), before, "slots moved before the lease was over");

    assert_eq!(
        pass(&mut p, LEASE.as_secs_f64() - 0.5, LEASE.as_secs_f64(), &["n2"]),
        ["n1"]
    );
    let settled = p.settle();
    assert_eq!(settled.types.into_iter().collect::<Vec<_>>(), [key()]);
    assert!(owners(&p).iter().all(|o| o.as_deref() == Some("b")));
    // Whoever lost the lease has to start over.
    assert!(!p.renew("n1"));
    assert_eq!(p.host_up("n1", host("a")), Err(Refusal::NoLease("n1".into())));
}

#[test]
fn a_pause_of_the_server_itself_takes_no_lease() {
    let mut p = empty();
    p.hello("n1", vec![host("a")]);
    p.settle();
    assert!(
        p.tick(at(60.0)).is_empty(),
        "the server slept; the node's renewals wait in its sockets"
    );
    assert!(p.renew("n1"));
    // The same silence while the server looks is the end of the lease.
    assert_eq!(pass(&mut p, 60.0, 60.0 + LEASE.as_secs_f64(), &[]), ["n1"]);
}

#[test]
fn an_apps_death_frees_at_once_and_only_by_its_own_node() {
    let mut p = empty();
    p.hello("n1", vec![host("a")]);
    p.hello("n2", vec![host("b")]);
    p.settle();
    assert!(!p.host_down("n2", "a"), "a node took down another's host");
    assert!(p.settle().is_empty());
    assert!(p.host_down("n1", "a"));
    p.settle();
    assert!(owners(&p).iter().all(|o| o.as_deref() == Some("b")));
}

#[test]
fn a_hosts_id_belongs_to_the_node_that_registered_it() {
    let mut p = empty();
    p.hello("n1", vec![host("a")]);
    let refused = p.hello("n2", vec![host("a"), host("b")]);
    assert_eq!(
        refused,
        [(
            "a".into(),
            Refusal::OtherNode {
                id: "a".into(),
                node: "n1".into()
            }
        )]
    );
    p.host_down("n1", "a");
    assert_eq!(p.host_up("n2", host("a")), Ok(()));
}

#[test]
fn a_hello_replaces_what_the_node_had() {
    let mut p = empty();
    p.hello("n1", vec![host("a"), host("b")]);
    p.settle();
    p.hello("n1", vec![host("b")]);
    p.settle();
    assert!(owners(&p).iter().all(|o| o.as_deref() == Some("b")));
    assert_eq!(p.host_count(), 1);
    // The same again changes nothing.
    p.hello("n1", vec![host("b")]);
    assert!(p.settle().is_empty());
}

#[test]
fn bad_registrations_are_refused_and_change_nothing() {
    let limits = Limits {
        hosts_per_node: 2,
        types_per_host: 2,
        types: 3,
        capacity: 10,
        name_bytes: 20,
    };
    let mut p = Placement::new(limits, slots(), 0, at(0.0));
    p.hello("n1", vec![host("a")]);
    p.settle();
    let bad = |f: fn(&mut Registration)| {
        let mut h = host("b");
        f(&mut h);
        h
    };
    for bad in [
        bad(|h| h.id.clear()),
        bad(|h| h.id = "x".repeat(21)),
        bad(|h| h.namespace = "a/b".into()),
        bad(|h| h.app_id = "a\n".into()),
        bad(|h| h.actor_types = vec![String::new()]),
        bad(|h| h.actor_types = vec!["1".into(), "2".into(), "3".into()]),
        bad(|h| h.capacity = 11),
    ] {
        assert!(p.host_up("n1", bad.clone()).is_err(), "{bad:?} was taken");
    }
    assert!(p.settle().is_empty());
    assert_eq!(p.host_up("n1", host("b")), Ok(()));
    assert_eq!(p.host_up("n1", host("c")), Err(Refusal::Hosts(2)));
    p.host_down("n1", "b");
    let two_more = bad(|h| h.actor_types = vec!["1".into(), "2".into()]);
    assert_eq!(p.host_up("n1", two_more), Ok(()));
    let another = Registration {
        actor_types: vec!["3".into()],
        ..host("a")
    };
    assert_eq!(p.host_up("n1", another), Err(Refusal::Types(3)));
}

#[test]
fn namespaces_do_not_touch_each_other() {
    let mut p = empty();
    p.hello("n1", vec![host("a")]);
    p.settle();
    let before = p.tables()[&key()].snapshot();
    p.host_up(
        "n1",
        Registration {
            namespace: "other".into(),
            ..host("b")
        },
    )
    .unwrap();
    let settled = p.settle();
    assert_eq!(
        settled.types.into_iter().collect::<Vec<_>>(),
        [TypeKey::new("other", "Cart")]
    );
    assert_eq!(p.tables()[&key()].snapshot(), before);
}

#[test]
fn a_restart_keeps_owners_and_epochs_and_waits_a_lease_for_the_nodes() {
    let mut p = empty();
    p.hello("n1", vec![host("a"), host("c")]);
    p.hello("n2", vec![host("b")]);
    p.settle();
    p.host_down("n1", "c");
    p.settle();
    let before = p.tables()[&key()].snapshot().unwrap();

    let mut p = Placement::restore(Limits::default(), slots(), 1000, at(0.0), p.saved());
    assert!(p.settle().is_empty());
    assert_eq!(p.tables()[&key()].snapshot().unwrap(), before);
    p.hello("n1", vec![host("a")]);
    assert!(p.settle().is_empty());
    // One node comes back, the other does not.
    assert_eq!(pass(&mut p, 0.0, LEASE.as_secs_f64(), &["n1"]), ["n2"]);
    p.settle();
    let after = p.tables()[&key()].snapshot().unwrap();
    assert_eq!(after.version, before.version + 1);
    for slot in 0..64 {
        let moved = before.hosts[before.owners[slot] as usize - 1].id.as_ref() == "b";
        assert_eq!(after.epochs[slot], before.epochs[slot] + u64::from(moved));
    }
}

#[test]
fn epochs_go_on_after_a_type_had_no_host_for_a_while() {
    let mut p = empty();
    p.hello("n1", vec![host("a")]);
    p.settle();
    p.host_up("n1", host("b")).unwrap();
    p.settle();
    let highest = *p.tables()[&key()]
        .snapshot()
        .unwrap()
        .epochs
        .iter()
        .max()
        .unwrap();
    assert_eq!(highest, 1002);
    p.hello("n1", vec![]);
    p.settle();
    assert!(p.tables()[&key()].snapshot().is_none());
    let mut p = Placement::restore(Limits::default(), slots(), 1000, at(0.0), p.saved());
    p.hello("n1", vec![host("a")]);
    p.settle();
    let view = TableView::new(p.tables()[&key()].snapshot().unwrap()).unwrap();
    assert!((0..64).all(|slot| view.slot(slot).unwrap().epoch > highest));
}
