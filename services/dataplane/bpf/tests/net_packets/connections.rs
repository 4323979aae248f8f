//! Answers, errors, changes of policy, and what happens when there are too many connections.

use weft_bpf::{Address, Build, Direction, Hooked, Options, Verdict};

use crate::packet::{ACK, FIN, ICMP, ICMPV6, Packet, RST, SYN, TCP, UDP};
use crate::rig::{
    ALLOW, DENY, DENY_IN, DENY_OUT, Family, IFINDEX, OTHER_IFINDEX, POD, REMOTE_IDENTITY, Rig, UPLINK,
    families, key,
};

const BOTH: u32 = DENY_IN | DENY_OUT;

fn other(direction: Direction) -> Direction {
    match direction {
        Direction::In => Direction::Out,
        Direction::Out => Direction::In,
    }
}

/// An opening of each protocol that has answers, and what it is judged by.
fn openings(family: Family, direction: Direction) -> [(Packet, u8, u16); 3] {
    let (from, to) = match direction {
        Direction::In => (family.remote, family.pod),
        Direction::Out => (family.pod, family.remote),
    };
    let (echo, icmp) = if from.is_ipv4() { (8, ICMP) } else { (128, ICMPV6) };
    [
        (Packet::tcp((from, 40000), (to, 80), SYN), TCP, 80),
        (Packet::udp((from, 40000), (to, 53)), UDP, 53),
        (Packet::icmp(from, to, echo, 99, &[]), icmp, u16::from(echo) + 1),
    ]
}

fn each(mut check: impl FnMut(&mut Rig, Direction, Packet, u8, u16)) {
    let mut rig = Rig::new();
    rig.set(BOTH);
    for direction in [Direction::In, Direction::Out] {
        for family in families() {
            for (packet, protocol, port) in openings(family, direction) {
                check(&mut rig, direction, packet, protocol, port);
                rig.kernel.conntrack().unwrap().forget_endpoint(POD).unwrap();
            }
        }
    }
}

#[test]
fn an_answer_passes_only_with_its_opening() {
    each(|rig, direction, packet, protocol, port| {
        let (back, answer) = (other(direction), packet.answer(SYN | ACK));
        assert!(!rig.passes(back, &answer), "nothing was asked: {answer:?}");
        let rule = key(direction, REMOTE_IDENTITY, protocol, port);
        rig.rule(rule, ALLOW);
        assert!(!rig.passes(back, &answer), "still nothing was");
        assert!(rig.passes(direction, &packet));
        assert!(rig.passes(back, &answer), "{answer:?}");
        // Not from another address or port.
        let mut stranger = answer.clone();
        stranger.payload[if protocol == TCP || protocol == UDP { 3 } else { 5 }] ^= 1;
        assert!(!rig.passes(back, &stranger), "{stranger:?}");
        rig.datapath.policy.remove(rule).unwrap();
    });
}

#[test]
fn a_change_of_policy_reaches_open_connections_both_ways() {
    each(|rig, direction, packet, protocol, port| {
        let (back, answer) = (other(direction), packet.answer(ACK));
        let mut next = packet.clone();
        if protocol == TCP {
            next.payload[13] = ACK;
        }
        let rule = key(direction, REMOTE_IDENTITY, protocol, port);
        rig.rule(rule, ALLOW);
        assert!(rig.passes(direction, &packet) && rig.passes(back, &answer));

        // What the other end may open is all the same.
        rig.rule(key(back, 0, 0, 0), ALLOW);
        rig.rule(rule, DENY);
        rig.set(BOTH);
        for _ in 0..2 {
            assert!(!rig.passes(back, &answer), "{answer:?}");
            assert_eq!(rig.reason(), 181);
            assert!(!rig.passes(direction, &next), "{next:?}");
        }
        rig.rule(rule, ALLOW);
        rig.set(BOTH);
        assert!(rig.passes(back, &answer) && rig.passes(direction, &next));
        rig.told();

        rig.datapath.policy.remove(rule).unwrap();
        rig.datapath.policy.remove(key(back, 0, 0, 0)).unwrap();
    });
}

#[test]
fn an_address_that_becomes_somebody_elses_is_judged_anew() {
    each(|rig, direction, packet, protocol, port| {
        let rule = key(direction, REMOTE_IDENTITY, protocol, port);
        rig.rule(rule, ALLOW);
        let (back, answer) = (other(direction), packet.answer(ACK));
        assert!(rig.passes(direction, &packet) && rig.passes(back, &answer));
        let family = families()[usize::from(packet.from.is_ipv6())];
        let before = rig.datapath.addresses.find(family.remote).unwrap().unwrap();
        let now = Address {
            identity: 4711,
            ..before
        };
        rig.datapath.addresses.set(family.remote.into(), now).unwrap();
        assert!(!rig.passes(back, &answer), "{answer:?}");
        rig.datapath.addresses.set(family.remote.into(), before).unwrap();
        assert!(rig.passes(back, &answer), "{answer:?}");
        rig.datapath.policy.remove(rule).unwrap();
    });
}

#[test]
fn an_error_passes_with_the_connection_it_tells_of() {
    each(|rig, direction, packet, protocol, port| {
        let family = families()[usize::from(packet.from.is_ipv6())];
        let v4 = packet.from.is_ipv4();
        let rule = key(direction, REMOTE_IDENTITY, protocol, port);
        // A router tells the opener that its packet was too big; or the pod's kernel tells it that
        // nobody is at the port.
        let (back, from, to) = match direction {
            Direction::In => (Direction::Out, family.pod, family.remote),
            Direction::Out => (Direction::In, family.world, family.pod),
        };
        let error = |told: &Packet| Packet::icmp(from, to, if v4 { 3 } else { 1 }, 0, &told.ip());
        assert!(!rig.passes(back, &error(&packet)), "nothing was sent");
        rig.rule(rule, ALLOW);
        assert!(rig.passes(direction, &packet));
        assert!(rig.passes(back, &error(&packet)), "{packet:?}");
        let mut stranger = packet.clone();
        stranger.payload[if protocol == TCP || protocol == UDP { 1 } else { 5 }] ^= 1;
        assert!(!rig.passes(back, &error(&stranger)), "{stranger:?}");
        // Errors only: an echo with the same inside is an echo.
        let echo = Packet::icmp(from, to, if v4 { 8 } else { 128 }, 0, &packet.ip());
        assert!(!rig.passes(back, &echo));
        rig.datapath.policy.remove(rule).unwrap();
    });
}

#[test]
fn a_connection_that_was_forgotten_is_known_again_by_its_openers_packets() {
    let rig = Rig::new();
    rig.set(BOTH);
    rig.rule(key(Direction::In, 0, TCP, 80), ALLOW);
    for family in families() {
        let (client, server) = ((family.remote, 40000), (family.pod, 80));
        let data = Packet::tcp(client, server, ACK);
        assert!(!rig.passes(Direction::Out, &data.answer(ACK)));
        assert!(rig.passes(Direction::In, &data));
        assert!(rig.passes(Direction::Out, &data.answer(ACK)));
        // What ends or answers one opens none.
        let client = (family.remote, 40001);
        for flags in [RST, RST | ACK, SYN | ACK] {
            let packet = Packet::tcp(client, server, flags);
            assert!(rig.passes(Direction::In, &packet));
            assert!(!rig.passes(Direction::Out, &packet.answer(ACK)), "{flags}");
        }
    }
}

#[test]
fn the_same_ports_again_are_another_connection() {
    let mut rig = Rig::new();
    let [family, _] = families();
    let packet = |flags| Packet::tcp((family.pod, 40000), (family.remote, 80), flags);
    let lifetime = |rig: &Rig| {
        let [known] = rig
            .kernel
            .conntrack()
            .unwrap()
            .list()
            .unwrap()
            .try_into()
            .unwrap();
        known.expires - known.used
    };
    assert!(rig.passes(Direction::Out, &packet(SYN)));
    assert_eq!(rig.told().len(), 1);
    let new = lifetime(&rig);
    assert!(rig.passes(Direction::Out, &packet(SYN)), "sent again");
    assert_eq!(rig.told(), []);
    assert!(rig.passes(Direction::In, &packet(SYN).answer(SYN | ACK)));
    assert!(rig.passes(Direction::Out, &packet(FIN | ACK)));
    assert_ne!(lifetime(&rig), new);
    assert!(rig.passes(Direction::Out, &packet(SYN)));
    assert_eq!((rig.told().len(), lifetime(&rig)), (1, new));
}

#[test]
fn the_table_says_who_opened_what() {
    let rig = Rig::new();
    let [family, _] = families();
    let packet = Packet::tcp((family.pod, 40000), (family.remote, 80), SYN);
    assert!(rig.passes(Direction::Out, &packet));
    let table = rig.kernel.conntrack().unwrap();
    let [connection] = table.list().unwrap().try_into().unwrap();
    assert_eq!((connection.endpoint, connection.direction), (POD, Direction::Out));
    assert_eq!(connection.local, (family.pod, 40000).into());
    assert_eq!(connection.remote, (family.remote, 80).into());
    assert_eq!((connection.protocol, connection.identity), (TCP, REMOTE_IDENTITY));
    let half_open = connection.expires - connection.used;
    assert!(rig.passes(Direction::In, &packet.answer(SYN | ACK)));
    let answered = table.list().unwrap()[0];
    assert!(
        answered.expires - answered.used > half_open,
        "it is known for longer"
    );
    assert!(rig.passes(
        Direction::Out,
        &Packet::tcp((family.pod, 40000), (family.remote, 80), FIN | ACK)
    ));
    let closing = table.list().unwrap()[0];
    assert!(closing.expires < answered.expires, "and for shorter when it ends");
    assert_eq!(table.forget_peer(family.world).unwrap(), 0);
    assert_eq!(table.forget_peer(family.remote).unwrap(), 1);
    assert_eq!(table.list().unwrap(), []);
}

#[test]
fn with_too_many_connections_old_ones_close_and_new_ones_work() {
    const MANY: u16 = 3000;
    let rig = Rig::with(|options: &mut Options| options.max_connections = 512);
    rig.set(BOTH);
    rig.rule(key(Direction::In, 0, UDP, 53), ALLOW);
    let [family, _] = families();
    let packet = |port| Packet::udp((family.remote, port), (family.pod, 53));
    let mut answered = 0;
    for port in 0..MANY {
        assert!(rig.passes(Direction::In, &packet(1000 + port)));
        answered += u16::from(rig.passes(Direction::Out, &packet(1000 + port).answer(0)));
    }
    assert_eq!(answered, MANY, "each new one is known at once");
    let old = (0..MANY).filter(|port| rig.passes(Direction::Out, &packet(1000 + port).answer(0)));
    let old = old.count();
    assert!((1..=512).contains(&old), "{old} are still known");
    assert!(
        rig.passes(Direction::In, &packet(1000)),
        "the oldest may be opened anew"
    );
    assert!(rig.passes(Direction::Out, &packet(1000).answer(0)));
}

/// The table gives up the least used, so it takes one that does not to see what becomes of a connection
/// that can not be written down.
#[test]
fn a_connection_that_cannot_be_written_down_is_refused_and_told() {
    let object = crate::compile::compile(
        &crate::builds::sources(),
        &[(
            "packet_maps.bpf.h",
            "__uint(type, BPF_MAP_TYPE_LRU_HASH);\n\t__uint(max_entries, 131072);",
            "__uint(type, BPF_MAP_TYPE_HASH);\n\t__uint(max_entries, 131072);",
        )],
    );
    let build = Build {
        object: &object,
        layout: Build::own().layout,
    };
    let mut rig = Rig::built(build, |options| options.max_connections = 2);
    for family in families() {
        for direction in [Direction::In, Direction::Out] {
            let (from, to) = match direction {
                Direction::In => (family.remote, family.pod),
                Direction::Out => (family.pod, family.remote),
            };
            let opening = |port| Packet::tcp((from, port), (to, 80), SYN);
            let counted = rig.count("conntrack_full");
            assert!(rig.passes(direction, &opening(1)) && rig.passes(direction, &opening(2)));
            rig.told();
            assert!(!rig.passes(direction, &opening(3)));
            let [event] = rig.told().try_into().unwrap();
            assert_eq!((event.reason, event.verdict), (155, Verdict::Dropped));
            assert_eq!(rig.count("conntrack_full"), counted + 1);
            // Those that are written down go on, and with room it passes.
            let answer = opening(1).answer(SYN | ACK);
            assert!(rig.passes(other(direction), &answer));
            assert_eq!(rig.kernel.conntrack().unwrap().forget_endpoint(POD).unwrap(), 2);
            assert!(rig.passes(direction, &opening(3)));
            assert_eq!(rig.kernel.conntrack().unwrap().forget_endpoint(POD).unwrap(), 1);
        }
    }
}

#[test]
fn events_that_find_no_room_are_counted() {
    let mut rig = Rig::with(|options| options.event_bytes = 4096);
    rig.set(BOTH);
    let [family, _] = families();
    let packet = Packet::udp((family.remote, 1), (family.pod, 53));
    for _ in 0..100 {
        assert!(!rig.passes(Direction::In, &packet));
    }
    let told = rig.told().len() as u64;
    assert!((10..100).contains(&told), "{told}");
    assert_eq!(told + rig.count("events_lost"), 100);
    assert_eq!(rig.count("packets_dropped"), 100);
    assert!(!rig.passes(Direction::In, &packet));
    assert_eq!(rig.told().len(), 1, "there is room again");
}

/// A packet in the middle of a connection passes without being looked at; that ends with each change of
/// what it hangs on.
#[test]
fn what_lets_a_packet_pass_at_once_ends_with_each_change() {
    let rig = Rig::new();
    rig.set(BOTH);
    for family in families() {
        for (direction, protocol) in [Direction::In, Direction::Out]
            .into_iter()
            .flat_map(|d| [(d, TCP), (d, UDP)])
        {
            let (from, to) = match direction {
                Direction::In => (family.remote, family.pod),
                Direction::Out => (family.pod, family.remote),
            };
            let rule = key(direction, REMOTE_IDENTITY, protocol, 80);
            rig.rule(rule, ALLOW);
            let packet = |flags| match protocol {
                TCP => Packet::tcp((from, 40000), (to, 80), flags),
                _ => Packet::udp((from, 40000), (to, 80)),
            };
            let (opening, middle, back) = (packet(SYN), packet(ACK), other(direction));
            assert!(rig.passes(direction, &opening));
            assert!(rig.passes(back, &opening.answer(SYN | ACK)));
            let both = |passes: bool| {
                // Twice: the first one that is looked at lets the next pass.
                for _ in 0..2 {
                    assert_eq!(rig.passes(direction, &middle), passes, "{middle:?}");
                    assert_eq!(rig.passes(back, &middle.answer(ACK)), passes, "{middle:?}");
                }
            };
            both(true);
            // The address is somebody else's, and again its own.
            let address = rig.datapath.addresses.find(family.remote).unwrap().unwrap();
            let of_another = Address {
                identity: 4711,
                ..address
            };
            rig.datapath
                .addresses
                .set(family.remote.into(), of_another)
                .unwrap();
            both(false);
            rig.datapath.addresses.set(family.remote.into(), address).unwrap();
            both(true);
            // What is enforced.
            rig.rule(rule, DENY);
            both(false);
            rig.rule(rule, ALLOW);
            both(true);
            rig.datapath.endpoints.remove(POD).unwrap();
            both(false);
            rig.endpoint(|_| {});
            both(true);
            // Where it is; and what it may send from, which says nothing of what it gets.
            let (interfaces, sources) = (rig.kernel.interfaces().unwrap(), rig.kernel.sources().unwrap());
            interfaces.remove(IFINDEX).unwrap();
            both(false);
            interfaces.set(IFINDEX, POD).unwrap();
            both(true);
            sources.remove(POD, family.pod).unwrap();
            let (gets, sends) = match direction {
                Direction::In => (middle.clone(), middle.answer(ACK)),
                Direction::Out => (middle.answer(ACK), middle.clone()),
            };
            for _ in 0..2 {
                assert!(rig.passes(Direction::In, &gets));
                assert!(!rig.passes(Direction::Out, &sends));
            }
            sources.add(POD, family.pod).unwrap();
            both(true);
            // And the connection itself.
            assert_eq!(rig.kernel.conntrack().unwrap().forget_endpoint(POD).unwrap(), 1);
            assert!(!rig.passes(back, &middle.answer(ACK)));
            rig.no_rule(rule);
            assert!(!rig.passes(direction, &middle));
        }
    }
}

/// What passes at once costs a fraction of what is looked at: a stream is made of such packets.
#[test]
fn a_packet_in_the_middle_of_a_connection_costs_a_fraction() {
    let rig = Rig::new();
    let [family, _] = families();
    let nanoseconds = |packet: &Packet| {
        let hook = Hooked::Interface(Direction::In);
        let run = |_| {
            rig.kernel
                .test_run(hook, (IFINDEX, UPLINK), &packet.frame(), 20_000)
        };
        // The machine may have been busy with something else.
        (0..5).map(|n| run(n).unwrap().nanoseconds).min().unwrap()
    };
    let packet = |flags| Packet::tcp((family.remote, 40000), (family.pod, 80), flags);
    assert!(rig.passes(Direction::In, &packet(SYN)));
    assert!(rig.passes(Direction::Out, &packet(SYN).answer(SYN | ACK)));
    let (middle, opening) = (nanoseconds(&packet(ACK)), nanoseconds(&packet(SYN)));
    // With an option of IP it is looked at: all is looked up, and found as known.
    let mut looked_at = packet(ACK).frame();
    looked_at[14] = 0x46;
    looked_at[17] += 4;
    looked_at.splice(34..34, [1, 1, 1, 0]);
    let hook = Hooked::Interface(Direction::In);
    let run = |_| {
        rig.kernel
            .test_run(hook, (IFINDEX, UPLINK), &looked_at, 20_000)
            .unwrap()
    };
    let known = (0..5).map(|n| run(n).nanoseconds).min().unwrap();
    println!("in the middle {middle} ns, looked at {known} ns, opening {opening} ns");
    assert!(middle * 2 < known && middle * 2 < opening);
}

/// Whoever knows a connection's addresses and ports is not its peer: between pods of a node the interface
/// tells.
#[test]
fn a_packet_of_a_known_connection_comes_in_where_its_peer_is() {
    let mut rig = Rig::new();
    for family in families() {
        let opening = Packet::tcp((family.other, 40000), (family.pod, 80), SYN);
        let middle = Packet::tcp((family.other, 40000), (family.pod, 80), ACK);
        assert!(rig.passes_by(Direction::In, &opening, OTHER_IFINDEX));
        assert!(rig.passes(Direction::Out, &opening.answer(SYN | ACK)));
        for _ in 0..3 {
            assert!(rig.passes_by(Direction::In, &middle, OTHER_IFINDEX));
            for elsewhere in [UPLINK, IFINDEX] {
                assert!(!rig.passes_by(Direction::In, &middle, elsewhere), "{middle:?}");
                assert_eq!(rig.reason(), 132);
            }
        }
    }
}
