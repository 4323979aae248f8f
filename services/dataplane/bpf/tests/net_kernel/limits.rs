//! Full tables: what does not fit has no record, is counted, and hurts nobody else.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use weft_bpf::{Backend, Error, Frontend, Services, Transport};

use crate::rig::{Rig, V4, listening};
use crate::scene::service;

#[test]
fn a_full_table_means_no_record_and_is_counted() {
    let rig = Rig::with(|options| options.max_pending = 1);
    let (cart, id) = rig.workload("cart", 1);
    let (cart, outsider) = (rig.process(&cart), rig.outsider());
    let (full, blocked) = listening(rig.keeper.listen((V4, 0).into(), 0));
    let (_, filler) = outsider.connect(blocked);
    let (_, waiting) = cart.begin((V4, 0).into(), blocked);

    let (open, to) = rig.listener();
    let (_, from) = cart.connect(to);
    assert_eq!(rig.accept(&open, from), None);
    assert_eq!(rig.count("pending_full"), 1);

    // The one that had the room gets through, and then there is room again.
    assert_eq!(rig.accept(&full, filler), None);
    assert_eq!(rig.accept(&full, waiting).unwrap().cgroup_id, id);
    let (_, from) = cart.connect(to);
    assert_eq!(rig.accept(&open, from).unwrap().cgroup_id, id);
    assert_eq!(rig.count("pending_full"), 1);
}

#[test]
fn a_flood_takes_its_own_share_and_not_its_neighbours() {
    let rig = Rig::with(|options| options.max_pending_per_workload = 3);
    let (flood, flood_id) = rig.workload("flood", 1);
    let (calm, calm_id) = rig.workload("calm", 2);
    let (flood, calm, outsider) = (rig.process(&flood), rig.process(&calm), rig.outsider());
    let (_full, blocked) = listening(rig.keeper.listen((V4, 0).into(), 0));
    outsider.connect(blocked);
    let waiting: Vec<usize> = (0..10).map(|_| flood.begin((V4, 0).into(), blocked).0).collect();
    assert_eq!((rig.count("published"), rig.count("share_used_up")), (3, 7));

    let (open, to) = rig.listener();
    let (_, from) = flood.connect(to);
    assert_eq!(rig.accept(&open, from), None);
    let (_, from) = calm.connect(to);
    assert_eq!(rig.accept(&open, from).unwrap().cgroup_id, calm_id);

    for number in waiting {
        flood.close(number);
    }
    assert_eq!(rig.count("abandoned"), 3);
    // Over and over: what is given back is as much as was taken.
    for _ in 0..20 {
        let (_, from) = flood.connect(to);
        assert_eq!(rig.accept(&open, from).unwrap().cgroup_id, flood_id);
    }
}

#[test]
fn connections_that_leave_the_node_take_no_room() {
    let rig = Rig::new();
    let (cart, _) = rig.workload("cart", 1);
    let cart = rig.process(&cart);
    let pod = rig.node.pod("p").unwrap();
    let (listener, to) = listening(pod.namespace().listen((pod.v4(), 0)).unwrap());
    cart.connect(to);
    listener.accept().unwrap();
    assert_eq!(rig.count("published"), 0);
    // On the node's own address they do: it may be a listener of ours.
    let (listener, to) = listening(rig.keeper.listen((rig.node.v4(), 0).into(), 16));
    let (_, from) = cart.connect(to);
    assert!(rig.accept(&listener, from).is_some());
    assert_eq!(rig.count("published"), 1);
}

fn frontend(number: u8) -> Frontend {
    Frontend {
        address: service(number, false),
        transport: Transport::Tcp,
    }
}

fn backends(numbers: std::ops::Range<u8>) -> Vec<Backend> {
    numbers
        .map(|number| Backend {
            address: ([10, 1, 0, number], 80).into(),
            endpoint: 0,
        })
        .collect()
}

#[test]
fn a_full_table_of_backends_says_what_it_left_out() {
    let rig = Rig::with(|options| options.max_backends = 4);
    let mut services = rig.kernel.services().unwrap();
    let change = services.set(frontend(1), false, &backends(0..3)).unwrap();
    assert_eq!((change.removed.len(), change.left_out), (0, 0));
    let change = services.set(frontend(2), false, &backends(0..3)).unwrap();
    assert_eq!(change.left_out, 2, "there was room for one");
    // All of them replaced at once, with no room beside them.
    let change = services.set(frontend(1), false, &backends(10..13)).unwrap();
    assert_eq!((change.removed.len(), change.left_out), (3, 0));
    assert_eq!(services.remove(frontend(1)).unwrap().len(), 3);
    let change = services.set(frontend(2), false, &backends(0..3)).unwrap();
    assert_eq!((change.removed.len(), change.left_out), (0, 0), "now there is");
}

#[test]
fn a_full_table_of_services_and_a_backend_of_the_other_family_are_refused() {
    let rig = Rig::with(|options| options.max_services = 2);
    let mut services = rig.kernel.services().unwrap();
    for number in [1, 2] {
        assert_eq!(services.set(frontend(number), false, &[]).unwrap().left_out, 0);
    }
    let full = services.set(frontend(3), false, &[]).unwrap_err();
    assert!(matches!(full, Error::ServicesFull { max: 2 }), "{full}");
    // What is there may change all the same.
    assert_eq!(
        services.set(frontend(2), true, &backends(0..1)).unwrap().left_out,
        0
    );
    assert!(services.remove(frontend(1)).unwrap().is_empty());
    assert_eq!(services.set(frontend(3), false, &[]).unwrap().left_out, 0);

    let other = Backend {
        address: "[fd00::1]:80".parse().unwrap(),
        endpoint: 0,
    };
    let refused = services.set(frontend(2), true, &[other]).unwrap_err();
    assert!(
        refused.to_string().contains("other IP family") && matches!(refused, Error::BackendFamily { .. }),
        "{refused}"
    );
    let held: Vec<usize> = services.list().map(|(_, _, backends)| backends.len()).collect();
    assert_eq!(held, [1, 0], "nothing of it was written");
}

#[test]
fn the_next_writer_goes_on_where_the_last_one_was() {
    let rig = Rig::new();
    let mut first = rig.kernel.services().unwrap();
    let _ = first.set(frontend(1), true, &backends(0..5)).unwrap();
    let _ = first.set(frontend(2), false, &backends(3..4)).unwrap();
    let _ = first.set(frontend(1), true, &backends(1..4)).unwrap();
    let seen = |services: &Services| -> Vec<(Frontend, bool, BTreeSet<SocketAddr>)> {
        let listed = services.list();
        listed
            .map(|(frontend, capture, backends)| {
                (frontend, capture, backends.iter().map(|b| b.address).collect())
            })
            .collect()
    };
    let before = seen(&first);
    drop(first);
    let mut second = rig.kernel.services().unwrap();
    assert_eq!(seen(&second), before);
    let change = second.set(frontend(1), true, &backends(2..6)).unwrap();
    assert_eq!(change.removed, [backends(1..2)[0].address]);
    assert!(second.remove(frontend(9)).unwrap().is_empty());
    let third = rig.kernel.services().unwrap();
    assert_eq!(seen(&third), seen(&second));
}
