//! Answers, errors, changes of policy, and what happens when there are too many connections.

use weft_bpf::{Address, Direction, Options};

use crate::packet::{ACK, FIN, ICMP, ICMPV6, Packet, RST, SYN, TCP, UDP};
use crate::rig::{ALLOW, DENY, DENY_IN, DENY_OUT, Family, POD, REMOTE_IDENTITY, Rig, families, key};

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
