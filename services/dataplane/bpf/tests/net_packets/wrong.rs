//! Packets that are not what they say: truncated, in pieces, with headers in between, random.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use weft_bpf::{Direction, Hooked};

use crate::packet::{ACK, Packet, SYN, TCP, UDP, frame};
use crate::rig::{ALLOW, DENY_IN, DENY_OUT, IFINDEX, Rig, UPLINK, families, key};

const DIRECTIONS: [Direction; 2] = [Direction::In, Direction::Out];

/// Both ends of an allowed exchange.
fn ends(family: crate::rig::Family, direction: Direction) -> (std::net::IpAddr, std::net::IpAddr) {
    match direction {
        Direction::In => (family.remote, family.pod),
        Direction::Out => (family.pod, family.remote),
    }
}

#[test]
fn a_header_that_is_cut_off_is_refused() {
    let mut rig = Rig::new();
    for direction in DIRECTIONS {
        for family in families() {
            let (from, to) = ends(family, direction);
            let echo = if from.is_ipv4() { 8 } else { 128 };
            for (packet, header) in [
                (Packet::tcp((from, 1), (to, 2), SYN), 20),
                (Packet::udp((from, 1), (to, 2)), 8),
                (Packet::icmp(from, to, echo, 1, &[]), 8),
            ] {
                let whole = packet.frame();
                assert!(rig.frame_passes(direction, &whole, UPLINK));
                let before = whole.len() - packet.payload.len();
                // The kernel runs nothing shorter than an IP header.
                for length in before..before + header {
                    assert!(
                        !rig.frame_passes(direction, &whole[..length], UPLINK),
                        "{length} {packet:?}"
                    );
                    rig.told();
                }
                // The same by the length that the IP header says.
                let mut short = packet.clone();
                short.payload.truncate(header - 1);
                let mut padded = short.frame();
                padded.resize(whole.len() + 20, 0);
                assert!(!rig.frame_passes(direction, &padded, UPLINK), "{packet:?}");
                assert_eq!(rig.reason(), 134);
            }
        }
    }
}

#[test]
fn wrong_versions_and_lengths_are_refused() {
    let mut rig = Rig::new();
    let [four, six] = families();
    let v4 = Packet::tcp((four.pod, 1), (four.remote, 2), SYN).frame();
    let v6 = Packet::tcp((six.pod, 1), (six.remote, 2), SYN).frame();
    let with = |frame: &[u8], at: usize, value: u8| {
        let mut frame = frame.to_vec();
        frame[at] = value;
        frame
    };
    for wrong in [
        with(&v4, 14, 0x65),
        with(&v4, 14, 0x44),
        with(&v4, 14, 0x4f),
        with(&v4, 17, 19),
        with(&v6, 14, 0x40),
        // A TCP header shorter than TCP's.
        with(&v4, 14 + 20 + 12, 4 << 4),
    ] {
        assert!(!rig.frame_passes(Direction::Out, &wrong, UPLINK), "{wrong:?}");
        assert_eq!(rig.reason(), 134);
    }
    assert!(rig.frame_passes(Direction::Out, &v4, UPLINK) && rig.frame_passes(Direction::Out, &v6, UPLINK));
}

#[test]
fn pieces_pass_with_their_first() {
    let mut rig = Rig::new();
    rig.set(DENY_IN | DENY_OUT);
    let [family, _] = families();
    for direction in DIRECTIONS {
        rig.rule(key(direction, 0, UDP, 53), ALLOW);
        let (from, to) = ends(family, direction);
        let piece = |port, id, fragment, payload: Option<Vec<u8>>| {
            let mut packet = Packet::udp((from, 40000), (to, port));
            (packet.id, packet.fragment) = (id, fragment);
            if let Some(payload) = payload {
                packet.payload = payload;
            }
            packet
        };
        let later = |id| piece(53, id, 100, Some(vec![0; 64]));
        assert!(!rig.passes(direction, &later(1)), "before the first");
        assert_eq!(rig.reason(), 175);
        assert!(rig.passes(direction, &piece(53, 1, 0x2000, None)));
        assert!(rig.passes(direction, &later(1)));
        assert!(!rig.passes(direction, &later(2)), "of another datagram");
        assert!(!rig.passes(direction, &piece(54, 3, 0x2000, None)), "not allowed");
        assert!(!rig.passes(direction, &later(3)), "nor its rest");
    }
}

/// An IPv6 packet with these extension headers, each {its number, its bytes but the first}.
fn extended(packet: &Packet, headers: &[(u8, Vec<u8>)]) -> Packet {
    let mut with = packet.clone();
    let mut next = packet.protocol;
    let mut payload = packet.payload.clone();
    for (number, rest) in headers.iter().rev() {
        let mut header = vec![next];
        header.extend_from_slice(rest);
        header.extend_from_slice(&payload);
        payload = header;
        next = *number;
    }
    with.protocol = next;
    with.payload = payload;
    with
}

#[test]
fn what_comes_after_extension_headers_is_judged() {
    let mut rig = Rig::new();
    rig.set(DENY_IN | DENY_OUT);
    let [_, family] = families();
    let options = || (60, vec![0; 7]);
    let hop = || (0, vec![1; 15]);
    for direction in DIRECTIONS {
        let (from, to) = ends(family, direction);
        let allowed = Packet::tcp((from, 40000), (to, 80), SYN);
        let refused = Packet::tcp((from, 40000), (to, 81), SYN);
        rig.rule(key(direction, 0, TCP, 80), ALLOW);
        let mut auth = vec![4];
        auth.resize(23, 0);
        for headers in [
            vec![options()],
            vec![hop(), options()],
            vec![(51, auth)],
            vec![options(); 7],
        ] {
            assert!(
                rig.passes(direction, &extended(&allowed, &headers)),
                "{headers:?}"
            );
            assert!(
                !rig.passes(direction, &extended(&refused, &headers)),
                "{headers:?}"
            );
            assert_eq!(rig.reason(), 133);
        }
        for headers in [
            // More than anybody needs; longer than the packet; on to somewhere else.
            vec![options(); 8],
            vec![(60, vec![200, 0, 0, 0, 0, 0, 0])],
            vec![(43, vec![0, 0, 1, 0, 0, 0, 0])],
        ] {
            assert!(
                !rig.passes(direction, &extended(&allowed, &headers)),
                "{headers:?}"
            );
            assert_eq!(rig.reason(), 156);
        }
        let fragment = |offset: u16, more: u16, id: u8| {
            let [a, b] = (offset << 3 | more).to_be_bytes();
            (44, vec![0, a, b, 0, 0, 0, id])
        };
        let later = |id| extended(&allowed, &[fragment(10, 0, id)]);
        assert!(!rig.passes(direction, &later(1)));
        assert_eq!(rig.reason(), 175);
        assert!(rig.passes(direction, &extended(&allowed, &[fragment(0, 1, 1)])));
        assert!(rig.passes(direction, &later(1)));
        assert!(!rig.passes(direction, &extended(&refused, &[fragment(0, 1, 2)])));
        assert!(!rig.passes(direction, &later(2)));
    }
}

/// A packet that is nearly right, so that the programs read on; or any bytes at all.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let packet = (
        any::<bool>(),
        any::<bool>(),
        0..4u8,
        any::<(u16, u16)>(),
        any::<u8>(),
    )
        .prop_map(|(v6, out, kind, ports, flags)| {
            let family = families()[usize::from(v6)];
            let direction = if out { Direction::Out } else { Direction::In };
            let (from, to) = ends(family, direction);
            let packet = match kind {
                0 => Packet::tcp((from, ports.0), (to, ports.1), flags),
                1 => Packet::udp((from, ports.0), (to, ports.1)),
                2 => Packet::icmp(from, to, flags, ports.0, &[0x45; 60]),
                _ => Packet::new(from, to, flags, vec![0; 40]),
            };
            packet.frame()
        });
    let damaged = (
        packet,
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        any::<bool>(),
    )
        .prop_map(|(mut frame, changes, cut)| {
            for (at, value) in &changes {
                let at = at.index(frame.len());
                frame[at] = *value;
            }
            if let (true, Some((at, _))) = (cut, changes.first()) {
                let length = 34 + at.index(frame.len() - 34);
                frame.truncate(length);
            }
            frame
        });
    let random = (
        prop::sample::select(vec![0x0800u16, 0x86dd, 0x0806, 0x1234]),
        prop::collection::vec(any::<u8>(), 20..200),
    )
        .prop_map(|(kind, bytes)| frame(kind, &bytes));
    prop_oneof![3 => damaged, 1 => random]
}

/// Neighbour discovery and ARP are no policy's business.
fn is_discovery(frame: &[u8]) -> bool {
    let kind = u16::from_be_bytes([frame[12], frame[13]]);
    kind == 0x0806 || (kind == 0x86dd && frame.get(21) == Some(&255))
}

#[test]
fn nothing_passes_that_nothing_allows() {
    let rig = Rig::new();
    rig.set(DENY_IN | DENY_OUT);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(4000));
    let check = |frame: Vec<u8>| {
        for direction in DIRECTIONS {
            // The kernel itself refuses to run what is shorter than an IP header.
            let Ok(run) = rig
                .kernel
                .test_run(Hooked::Interface(direction), (IFINDEX, UPLINK), &frame, 1)
            else {
                continue;
            };
            prop_assert!(
                run.action == 2 || is_discovery(&frame),
                "{:?} passes {:?}",
                frame,
                direction
            );
        }
        Ok(())
    };
    runner.run(&nearly(), check).unwrap();
    assert_eq!(rig.kernel.conntrack().unwrap().list().unwrap(), []);
    // The same endpoint, with a rule: the way was open.
    rig.rule(key(Direction::Out, 0, 0, 0), ALLOW);
    let [family, _] = families();
    assert!(rig.passes(
        Direction::Out,
        &Packet::tcp((family.pod, 1), (family.remote, 2), ACK)
    ));
}
