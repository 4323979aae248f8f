//! Every kind of rule for every kind of packet, both ways.

use weft_bpf::{Direction, Entry, RangeKey, Verdict};

use crate::packet::{Packet, SYN, TCP};
use crate::rig::{
    ALLOW, DENY, DENY_IN, DENY_OUT, Family, IDENTITY, OTHER, OTHER_IFINDEX, POD, RANGES, REMOTE_IDENTITY,
    Rig, SET, families, key,
};

const BOTH: u32 = DENY_IN | DENY_OUT;
const DIRECTIONS: [Direction; 2] = [Direction::In, Direction::Out];

/// The openings of each protocol: the packet, its protocol's number and the port it is judged by.
fn openings(family: Family, direction: Direction, port: u16) -> Vec<(Packet, u8, u16)> {
    let (from, to) = match direction {
        Direction::In => (family.remote, family.pod),
        Direction::Out => (family.pod, family.remote),
    };
    let (echo, icmp) = if from.is_ipv4() { (8, 1) } else { (128, 58) };
    vec![
        (Packet::tcp((from, 40000), (to, port), SYN), 6, port),
        (Packet::udp((from, 40000), (to, port)), 17, port),
        (Packet::icmp(from, to, echo, port, &[]), icmp, u16::from(echo) + 1),
    ]
}

fn all(mut judge: impl FnMut(Direction, Packet, u8, u16)) {
    // Each has a port of its own, so that no connection of before is met.
    let mut port = 1000;
    for direction in DIRECTIONS {
        for family in families() {
            for at in 0..3 {
                port += 1;
                let (packet, protocol, judged) = openings(family, direction, port).swap_remove(at);
                judge(direction, packet, protocol, judged);
            }
        }
    }
}

#[test]
fn without_a_policy_all_passes_and_each_connection_is_told_once() {
    let mut rig = Rig::new();
    all(|direction, packet, _, _| {
        assert!(rig.passes(direction, &packet), "{packet:?}");
        let told = rig.told();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].verdict, told[0].kind), (Verdict::Forwarded, 5));
        assert!(rig.passes(direction, &packet));
        assert_eq!(rig.told(), []);
    });
}

#[test]
fn default_deny_refuses_and_each_shape_of_rule_allows() {
    let mut rig = Rig::new();
    rig.set(BOTH);
    all(|direction, packet, protocol, port| {
        assert!(!rig.passes(direction, &packet), "{packet:?}");
        assert_eq!(rig.reason(), 133);
        for key in shapes(direction, protocol, port) {
            rig.rule(key, ALLOW);
            assert!(rig.passes(direction, &packet), "{key:?} {packet:?}");
            rig.no_rule(key);
            assert!(!rig.passes(direction, &packet), "{key:?} {packet:?}");
        }
        // Not for the other way, not for others, not for other ports.
        let other = if direction == Direction::In {
            Direction::Out
        } else {
            Direction::In
        };
        for key in [
            key(other, REMOTE_IDENTITY, protocol, port),
            key(direction, REMOTE_IDENTITY + 1, protocol, port),
            key(direction, REMOTE_IDENTITY, protocol, port + 1),
            key(direction, REMOTE_IDENTITY, protocol + 1, 0),
        ] {
            rig.rule(key, ALLOW);
            assert!(!rig.passes(direction, &packet), "{key:?} {packet:?}");
            rig.no_rule(key);
        }
    });
}

fn shapes(direction: Direction, protocol: u8, port: u16) -> [weft_bpf::PolicyKey; 6] {
    [
        key(direction, REMOTE_IDENTITY, protocol, port),
        key(direction, REMOTE_IDENTITY, protocol, 0),
        key(direction, REMOTE_IDENTITY, 0, 0),
        key(direction, 0, protocol, port),
        key(direction, 0, protocol, 0),
        key(direction, 0, 0, 0),
    ]
}

#[test]
fn a_rule_that_refuses_wins_in_every_shape() {
    let mut rig = Rig::new();
    all(|direction, packet, protocol, port| {
        let shapes = shapes(direction, protocol, port);
        for key in shapes {
            rig.rule(key, ALLOW);
        }
        for key in shapes {
            rig.rule(key, DENY);
            assert!(!rig.passes(direction, &packet), "{key:?} {packet:?}");
            let told = rig.told();
            let last = told.last().unwrap();
            assert_eq!((last.reason, last.rule, last.kind), (181, 42, 1));
            rig.rule(key, ALLOW);
            assert!(rig.passes(direction, &packet), "{key:?} {packet:?}");
        }
        for key in shapes {
            rig.no_rule(key);
        }
    });
}

#[test]
fn ranges_allow_and_refuse_what_lies_in_them() {
    let mut rig = Rig::new();
    rig.set(BOTH | RANGES);
    let block = |direction, identity, port, length| RangeKey {
        set: SET,
        identity,
        direction,
        protocol: TCP,
        port,
        length,
    };
    for direction in DIRECTIONS {
        for family in families() {
            let opening = |port| openings(family, direction, port).swap_remove(0).0;
            for identity in [0, REMOTE_IDENTITY] {
                let wide = block(direction, identity, 8192, 3);
                let narrow = block(direction, identity, 8192 + 256, 12);
                rig.datapath.policy.set_range(wide, ALLOW).unwrap();
                for port in [8192, 9000, 16383] {
                    assert!(rig.passes(direction, &opening(port)), "{port}");
                }
                for port in [8191, 16384, 1] {
                    assert!(!rig.passes(direction, &opening(port)), "{port}");
                }
                rig.datapath.policy.set_range(narrow, DENY).unwrap();
                assert!(!rig.passes(direction, &opening(8192 + 257)));
                assert_eq!(rig.reason(), 181);
                assert!(rig.passes(direction, &opening(8192 + 300)));
                assert!(rig.datapath.policy.remove_range(wide, false).unwrap());
                assert!(rig.datapath.policy.remove_range(narrow, true).unwrap());
            }
        }
    }
}

#[test]
fn redirect_holds_only_if_nothing_allows_directly() {
    let mut rig = Rig::new();
    rig.set(BOTH);
    let redirect = Entry {
        redirect: true,
        ..ALLOW
    };
    all(|direction, packet, protocol, port| {
        let (narrow, wide) = (
            key(direction, REMOTE_IDENTITY, protocol, port),
            key(direction, 0, protocol, 0),
        );
        rig.rule(narrow, redirect);
        assert!(!rig.passes(direction, &packet), "{packet:?}");
        assert_eq!(rig.reason(), 180);
        rig.rule(wide, ALLOW);
        assert!(rig.passes(direction, &packet), "{packet:?}");
        rig.rule(wide, redirect);
        assert!(!rig.passes(direction, &packet), "{packet:?}");
        rig.no_rule(narrow);
        rig.no_rule(wide);
    });
}

#[test]
fn proof_is_demanded_of_both_ends_and_only_of_this_node() {
    let mut rig = Rig::new();
    rig.set(BOTH);
    let auth = Entry { auth: true, ..ALLOW };
    let svid = |rig: &Rig, pod: bool, other: bool| {
        rig.endpoint(|endpoint| endpoint.svid = pod);
        let mut endpoint = rig.other_endpoint();
        endpoint.svid = other;
        rig.datapath.endpoints.set(OTHER, endpoint).unwrap();
    };
    for direction in DIRECTIONS {
        for (family, port) in families().into_iter().zip([90, 91]) {
            let (from, to) = match direction {
                Direction::In => (family.other, family.pod),
                Direction::Out => (family.pod, family.other),
            };
            let packet = Packet::tcp((from, 40000), (to, port), SYN);
            rig.rule(key(direction, 0, TCP, port), auth);
            for (pod, other) in [(false, false), (true, false), (false, true)] {
                svid(&rig, pod, other);
                assert!(!rig.passes_by(direction, &packet, OTHER_IFINDEX));
                assert_eq!(rig.reason(), 189);
            }
            svid(&rig, true, true);
            assert!(rig.passes_by(direction, &packet, OTHER_IFINDEX));
            let reply = packet.answer(0x12);
            let back = if direction == Direction::In {
                Direction::Out
            } else {
                Direction::In
            };
            assert!(rig.passes_by(back, &reply, OTHER_IFINDEX));
            // The proof ends, and with it the connection: answers too.
            svid(&rig, true, false);
            assert!(!rig.passes_by(direction, &packet, OTHER_IFINDEX));
            assert!(!rig.passes_by(back, &reply, OTHER_IFINDEX));
            svid(&rig, true, true);
            // Another node's workload has none that this kernel saw.
            let remote = openings(family, direction, port).swap_remove(0).0;
            assert!(!rig.passes(direction, &remote));
            assert_eq!(rig.reason(), 189);
        }
    }
}

#[test]
fn audit_tells_what_would_be_refused_and_lets_it_pass() {
    let mut rig = Rig::new();
    rig.set(BOTH);
    rig.endpoint(|endpoint| endpoint.audit = true);
    all(|direction, packet, _, _| {
        assert!(rig.passes(direction, &packet), "{packet:?}");
        let told = rig.told();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].verdict, told[0].reason), (Verdict::Audit, 133));
        let back = if direction == Direction::In {
            Direction::Out
        } else {
            Direction::In
        };
        assert!(rig.passes(back, &packet.answer(0x12)));
        rig.endpoint(|_| {});
        assert!(!rig.passes(direction, &packet), "audit has ended");
        assert!(!rig.passes(back, &packet.answer(0x12)), "for answers too");
        rig.told();
        rig.endpoint(|endpoint| endpoint.audit = true);
    });
    assert_eq!(rig.count("packets_audited"), 12);

    // Who is not known yet is refused without a word; under audit that is told, as nothing will come again.
    let unknown = families()[0].unknown;
    let packet = Packet::tcp((families()[0].pod, 40000), (unknown, 77), SYN);
    assert!(rig.passes(Direction::Out, &packet));
    let told = rig.told();
    assert_eq!((told[0].verdict, told[0].reason), (Verdict::Audit, 133));
    rig.endpoint(|_| {});
    assert!(!rig.passes(Direction::Out, &packet));
    assert_eq!(rig.told(), []);

    // Who sends is no matter of policy.
    rig.endpoint(|endpoint| endpoint.audit = true);
    let [family, _] = families();
    let forged = Packet::tcp((family.other, 40000), (family.remote, 78), SYN);
    assert!(!rig.passes(Direction::Out, &forged));
    assert_eq!(rig.reason(), 132);
}

#[test]
fn what_is_not_known_yet_is_refused_without_a_word() {
    let mut rig = Rig::new();
    let family = families()[0];
    let packet = |direction, to, port| match direction {
        Direction::In => Packet::tcp((to, 40000), (family.pod, port), SYN),
        Direction::Out => Packet::tcp((family.pod, 40000), (to, port), SYN),
    };
    for direction in DIRECTIONS {
        // An endpoint.
        rig.datapath.endpoints.remove(POD).unwrap();
        assert!(!rig.passes(direction, &packet(direction, family.remote, 1)));
        assert_eq!(rig.told(), []);
        rig.endpoint(|_| {});
        assert!(rig.passes(direction, &packet(direction, family.remote, 1)));
        rig.told();

        // A peer in the cluster, for one that has a policy.
        rig.set(BOTH);
        assert!(!rig.passes(direction, &packet(direction, family.unknown, 2)));
        assert_eq!(rig.told(), []);
        rig.rule(key(direction, 0, TCP, 2), ALLOW);
        assert!(rig.passes(direction, &packet(direction, family.unknown, 2)));
        rig.told();
        rig.set(0);
        assert!(!rig.passes(direction, &packet(direction, family.unknown, 3)));
        // One that has none.
        rig.datapath
            .sets
            .set(
                SET,
                weft_bpf::Set {
                    generation: 1,
                    ..weft_bpf::Set::default()
                },
            )
            .unwrap();
        assert!(rig.passes(direction, &packet(direction, family.unknown, 4)));
        rig.told();

        // A set.
        rig.datapath.sets.remove(SET).unwrap();
        assert!(!rig.passes(direction, &packet(direction, family.remote, 5)));
        assert_eq!(rig.reason(), 165);
        rig.set(0);
        assert!(rig.passes(direction, &packet(direction, family.remote, 5)));
        rig.told();
    }
    assert_eq!(rig.count("endpoint_unknown"), 2);
    assert_eq!(rig.count("peer_unknown"), 4);
    assert_eq!(rig.count("set_missing"), 2);
}

#[test]
fn strict_mode_lets_no_workload_of_another_node_be_reached_in_the_plain() {
    let mut rig = Rig::with(|options| options.strict = true);
    all(|direction, packet, _, _| {
        assert!(!rig.passes(direction, &packet), "{packet:?}");
        assert_eq!(rig.reason(), 195);
        // No matter of policy, so under audit as well.
        rig.endpoint(|endpoint| endpoint.audit = true);
        assert!(!rig.passes(direction, &packet), "{packet:?}");
        assert_eq!(rig.reason(), 195);
        rig.endpoint(|_| {});
        let mut world = packet.clone();
        let family = families()[usize::from(packet.from.is_ipv6())];
        match direction {
            Direction::In => world.from = family.world,
            Direction::Out => world.to = family.world,
        }
        assert!(rig.passes(direction, &world), "{world:?}");
    });
}

#[test]
fn tunnels_are_the_agents_business_alone() {
    let mut rig = Rig::new();
    rig.set(BOTH);
    for family in families() {
        for node in [family.host, family.node] {
            let packet = Packet::tcp((node, 40000), (family.pod, 15008), SYN);
            assert!(rig.passes(Direction::In, &packet), "from a node");
            assert!(rig.passes(Direction::Out, &packet.answer(0x12)), "its answer");
            let other = Packet::tcp((node, 40000), (family.pod, 15009), SYN);
            assert!(!rig.passes(Direction::In, &other), "another port");
        }
        let stranger = Packet::tcp((family.remote, 40000), (family.pod, 15008), SYN);
        assert!(!rig.passes(Direction::In, &stranger), "from a workload");
        rig.rule(key(Direction::Out, 0, 0, 0), ALLOW);
        for to in [family.other, family.remote, family.node, family.world] {
            let packet = Packet::tcp((family.pod, 40000), (to, 15008), SYN);
            assert!(!rig.passes(Direction::Out, &packet), "{to}");
            assert_eq!(rig.reason(), 170);
            let other = Packet::tcp((family.pod, 40000), (to, 15009), SYN);
            assert!(rig.passes(Direction::Out, &other), "{to}");
        }
        rig.no_rule(key(Direction::Out, 0, 0, 0));
    }
}

#[test]
fn an_event_says_all_there_is() {
    let mut rig = Rig::new();
    rig.rule(key(Direction::In, REMOTE_IDENTITY, TCP, 80), DENY);
    let [family, _] = families();
    let packet = Packet::tcp((family.remote, 40000), (family.pod, 80), SYN);
    assert!(!rig.passes(Direction::In, &packet));
    let told = rig.told();
    let [event] = told.as_slice() else {
        panic!("{told:?}")
    };
    assert_eq!(event.kind, 1);
    assert_eq!(
        (event.verdict, event.reason, event.rule),
        (Verdict::Dropped, 181, 42)
    );
    assert_eq!(
        (event.direction, event.endpoint, event.peer),
        (Direction::In, POD, 0)
    );
    assert_eq!(
        (event.source_identity, event.destination_identity),
        (REMOTE_IDENTITY, IDENTITY)
    );
    assert_eq!((event.source, event.source_port), (family.remote, 40000));
    assert_eq!((event.destination, event.destination_port), (family.pod, 80));
    assert_eq!((event.protocol, event.tcp_flags, event.reply), (TCP, SYN, false));
    assert_eq!((event.length, event.ifindex), (54, 1));
    assert!(event.time > 0);
}
