//! Full tables: what does not fit has no record, is counted, and hurts nobody else.

use crate::rig::{Rig, V4, listening};

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
