//! Who the kernel says has connected.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;

use weft_bpf::{Kernel, Options, Workload};
use weft_testnet::Spawn;

use crate::actor::Actor;
use crate::rig::{Rig, V4, V6, listening};

#[test]
fn a_process_is_known_by_its_workloads_cgroup_in_both_families() {
    let rig = Rig::new();
    let (cart, cart_id) = rig.workload("cart", 1);
    let (shop, shop_id) = rig.workload("shop", 2);
    let (cart, shop) = (rig.process(&cart), rig.process(&shop));
    let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();

    let (v4, v4_address) = rig.listener();
    let (v6, v6_address) = listening(rig.keeper.listen((V6, 0).into(), 16));
    // One that takes both families, as most servers open it.
    let (dual, dual_address) = listening(rig.keeper.listen("[::]:0".parse().unwrap(), 16));
    let cases = [
        (&v4, v4_address),
        (&v4, SocketAddr::new(mapped.into(), v4_address.port())),
        (&v6, v6_address),
        (&dual, SocketAddr::new(V4.into(), dual_address.port())),
        (&dual, SocketAddr::new(V6.into(), dual_address.port())),
        (&dual, SocketAddr::new(mapped.into(), dual_address.port())),
    ];
    let mut sockets = Vec::new();
    for (listener, to) in cases {
        for (caller, id, index) in [(&cart, cart_id, 1), (&shop, shop_id, 2), (&cart, cart_id, 1)] {
            let (_, from) = caller.connect(to);
            let origin = rig.accept(listener, from).unwrap();
            assert_eq!((origin.cgroup_id, origin.workload_index), (id, index), "{to}");
            assert_eq!(
                origin.destination,
                SocketAddr::new(to.ip().to_canonical(), to.port())
            );
            sockets.push(origin.socket_cookie);
        }
    }
    let connections = sockets.len();
    sockets.sort_unstable();
    sockets.dedup();
    assert_eq!(
        sockets.len(),
        connections,
        "each connection has a record of its own"
    );
    assert_eq!((rig.count("published"), rig.count("delivered")), (18, 18));
}

#[test]
fn a_hidden_child_is_its_workload_also_in_a_cgroup_below() {
    let rig = Rig::new();
    let (cart, id) = rig.workload("cart", 1);
    let (listener, to) = rig.listener();

    let from = rig.process(&cart).connect_hidden(to);
    assert_eq!(rig.accept(&listener, from).unwrap().cgroup_id, id);

    // Far deeper than the programs look.
    let deep = (0..45).fold(cart.clone(), |path, _| path.join("x"));
    for below in [cart.join("a"), cart.join("a/b/c"), deep] {
        let caller = rig.process(&below);
        let (_, from) = caller.connect(to);
        assert_eq!(
            rig.accept(&listener, from).unwrap().cgroup_id,
            id,
            "{}",
            below.display()
        );
        let from = caller.connect_hidden(to);
        assert_eq!(
            rig.accept(&listener, from).unwrap().cgroup_id,
            id,
            "{}",
            below.display()
        );
    }

    // A workload within a workload is itself.
    let (inner, inner_id) = rig.workload("cart/inner", 2);
    let (_, from) = rig.process(&inner.join("y")).connect(to);
    assert_eq!(rig.accept(&listener, from).unwrap().cgroup_id, inner_id);
}

#[test]
fn who_is_no_workload_has_no_record() {
    let rig = Rig::new();
    let (cart, id) = rig.workload("cart", 1);
    let (other, _) = rig.cgroup("other");
    let (listener, to) = rig.listener();
    let cart = rig.process(&cart);

    let outsider = rig.outsider();
    let (_, from) = outsider.connect(to);
    assert_eq!(rig.accept(&listener, from), None, "outside the subtree");
    let from = outsider.connect_hidden(to);
    assert_eq!(rig.accept(&listener, from), None, "a hidden child outside");
    assert_eq!(rig.count("connect_unregistered"), 0);
    let (_, from) = rig.process(&other).connect(to);
    assert_eq!(
        rig.accept(&listener, from),
        None,
        "in the subtree, not registered"
    );
    assert_eq!(rig.count("connect_unregistered"), 1);
    assert_eq!(rig.count("accept_unknown"), 3);

    let (_, from) = cart.connect(to);
    assert_eq!(
        rig.accept(&listener, from).unwrap().cgroup_id,
        id,
        "the same by a workload"
    );
    assert!(rig.kernel.remove_workload(id).unwrap());
    let (_, from) = cart.connect(to);
    assert_eq!(
        rig.accept(&listener, from),
        None,
        "the same process once it is none any more"
    );
    assert!(!rig.kernel.remove_workload(id).unwrap());
}

#[test]
fn a_listener_has_records_by_where_it_was_made_not_by_who_accepts() {
    let rig = Rig::new();
    let (cart, id) = rig.workload("cart", 1);
    let cart = rig.process(&cart);
    // The test itself, which accepts, is in no cgroup of the node.
    let (inside, to_inside) = rig.listener();
    let (_, from) = cart.connect(to_inside);
    assert_eq!(rig.accept(&inside, from).unwrap().cgroup_id, id);

    let (outside, to_outside) = listening(rig.outsider().listen((V4, 0).into(), 16));
    let (_, from) = cart.connect(to_outside);
    assert_eq!(rig.accept(&outside, from), None);
    assert_eq!((rig.count("published"), rig.count("delivered")), (2, 1));
}

#[test]
fn the_record_waits_in_the_backlog_with_its_connection() {
    let rig = Rig::new();
    let (cart, id) = rig.workload("cart", 1);
    let (listener, to) = rig.listener();
    let mut expected = Vec::new();
    {
        let (cart, outsider) = (rig.process(&cart), rig.outsider());
        for _ in 0..8 {
            let (number, from) = cart.connect(to);
            expected.push((from, Some(id)));
            cart.close(number);
            expected.push((outsider.connect(to).1, None));
        }
    }
    // Both processes are gone by now; nobody has accepted yet.
    for (from, id) in expected {
        assert_eq!(rig.accept(&listener, from).map(|origin| origin.cgroup_id), id);
    }
    assert_eq!(rig.count("abandoned"), 0);
}

#[test]
fn a_stale_record_is_not_taken_by_the_next_owner_of_its_addresses() {
    let rig = Rig::new();
    let (cart, id) = rig.workload("cart", 1);
    let (cart, outsider) = (rig.process(&cart), rig.outsider());
    // Room for one, which is taken: whoever comes now waits with an unanswered SYN.
    let (listener, to) = listening(rig.keeper.listen((V4, 0).into(), 0));
    let (_, filler) = outsider.connect(to);

    let (number, from) = cart.begin((V4, 0).into(), to);
    assert_eq!(rig.count("published"), 1);
    cart.close(number);
    assert_eq!(rig.count("abandoned"), 1, "the record went with the socket");

    assert_eq!(rig.accept(&listener, filler), None);
    let (number, again) = outsider.begin(from, to);
    assert_eq!(again, from);
    assert_eq!(
        rig.accept(&listener, from),
        None,
        "the same 4-tuple, by someone else"
    );

    outsider.close(number);
    let (_, again) = cart.begin((V4, 0).into(), to);
    assert_eq!(
        rig.accept(&listener, again).unwrap().cgroup_id,
        id,
        "its twin by the workload"
    );
}

#[test]
fn whoever_connects_is_the_caller_whoever_made_the_socket() {
    let rig = Rig::new();
    let (cart, _) = rig.workload("cart", 1);
    let (shop, shop_id) = rig.workload("shop", 2);
    let (other, _) = rig.cgroup("other");
    let (cart, shop, other) = (rig.process(&cart), rig.process(&shop), rig.process(&other));
    let outsider = rig.outsider();
    let (listener, to) = rig.listener();

    let (_, from) = shop.connect_with(cart.socket().as_fd(), to);
    assert_eq!(
        rig.accept(&listener, from).unwrap().cgroup_id,
        shop_id,
        "made by cart, connected by shop"
    );
    let (_, from) = outsider.connect_with(cart.socket().as_fd(), to);
    assert_eq!(
        rig.accept(&listener, from),
        None,
        "made by cart, connected from outside"
    );
    let (_, from) = shop.connect_with(outsider.socket().as_fd(), to);
    assert_eq!(
        rig.accept(&listener, from),
        None,
        "made outside: the programs do not see it"
    );

    // A socket that failed to connect keeps nothing for who has it next.
    let socket = cart.socket();
    let refused = cart.ask(&format!("with {V4}:1"), &[socket.as_fd()]).unwrap_err();
    assert!(refused.contains("refused"), "{refused}");
    let (_, from) = other.connect_with(socket.as_fd(), to);
    assert_eq!(rig.accept(&listener, from), None);
}

#[test]
fn a_connection_that_begins_with_data_has_its_record() {
    let rig = Rig::new();
    rig.node.namespace().sysctl("ipv4/tcp_fastopen", "1543").unwrap();
    let (cart, id) = rig.workload("cart", 1);
    let (cart, outsider) = (rig.process(&cart), rig.outsider());
    let (listener, to) = rig.listener();
    for _ in 0..3 {
        let (_, from) = cart.connect_fast(to);
        assert_eq!(rig.accept(&listener, from).unwrap().cgroup_id, id);
        let (_, from) = outsider.connect_fast(to);
        assert_eq!(rig.accept(&listener, from), None);
    }
}

#[test]
fn a_reader_without_rights_reads_and_cannot_write() {
    let rig = Rig::new();
    let (cart, id) = rig.workload("cart", 1);
    let (cart, outsider) = (rig.process(&cart), rig.outsider());
    let (listener, to) = rig.listener();
    let reader = rig.outsider();
    let read = || {
        let map = rig.kernel.origins_map_fd().unwrap();
        reader.ask("read", &[map.as_fd(), listener.as_fd()]).unwrap().0
    };
    cart.connect(to);
    assert_eq!(read(), format!("Some({id})"));
    outsider.connect(to);
    assert_eq!(read(), "None");

    // Even as root: the descriptor is read-only.
    outsider.connect(to);
    let (stream, _) = listener.accept().unwrap();
    let map = rig.kernel.origins_map_fd().unwrap();
    for forger in [&reader, &rig.keeper] {
        let refused = forger.ask("forge", &[map.as_fd(), stream.as_fd()]).unwrap_err();
        assert!(refused.contains("not permitted"), "{refused}");
    }
    assert_eq!(rig.origins.read(&stream).unwrap(), None);
}

#[test]
fn the_same_addresses_in_another_namespace_are_another_connection() {
    let rig = Rig::new();
    let (cart, id) = rig.workload("cart", 1);
    let pod = rig.node.pod("p").unwrap();
    let inside = Actor::new(
        pod.namespace(),
        &Spawn::root().cgroup(rig.node.cgroup().join("_node")),
    );
    let (here, to) = listening(rig.keeper.listen((V4, 0).into(), 0));
    let there = inside.listen(to, 16);

    // In the node's namespace cart's SYN waits, its record with it.
    let outsider = rig.outsider();
    let (_, filler) = outsider.connect(to);
    let waiting = rig.process(&cart);
    let (_, from) = waiting.begin((V4, 0).into(), to);
    // In the pod's someone else has the same two addresses and ports.
    let stranger = Actor::new(pod.namespace(), &Spawn::nobody());
    let (_, twin) = stranger.begin(from, to);
    assert_eq!(twin, from);
    assert_eq!(rig.accept(&there, twin), None);
    // A workload's process in the pod's namespace is that workload there.
    let (_, own) = Actor::nobody(pod.namespace(), &cart).connect(to);
    let origin = rig.accept(&there, own).unwrap();
    assert_eq!(origin.cgroup_id, id);

    assert_eq!(rig.accept(&here, filler), None);
    let waited = rig.accept(&here, from).unwrap();
    assert_eq!(waited.cgroup_id, id, "its record is still its own");
    assert_ne!(waited.netns_cookie, origin.netns_cookie);
}

#[test]
fn two_nodes_on_one_kernel_do_not_see_each_other() {
    let rig = Rig::new();
    let other = rig.net.node("other").unwrap();
    fs::create_dir_all(other.cgroup()).unwrap();
    let pins = weft_bpf::pin_dir(&rig.net.bpffs().unwrap(), "other");
    let second = Kernel::load(&Options::new(other.cgroup(), pins)).unwrap();
    let there = other.cgroup().join("cart");
    fs::create_dir(&there).unwrap();
    second
        .add_workload(weft_bpf::cgroup_id(&there).unwrap(), Workload::default())
        .unwrap();

    let (cart, id) = rig.workload("cart", 1);
    let (listener, to) = rig.listener();
    let (_, from) = rig.process(&there).connect(to);
    assert_eq!(
        rig.accept(&listener, from),
        None,
        "the other node's workload is nobody here"
    );
    let (_, from) = rig.process(&cart).connect(to);
    assert_eq!(rig.accept(&listener, from).unwrap().cgroup_id, id);
    assert_eq!(crate::rig::count(&second, "delivered"), 0);
}
