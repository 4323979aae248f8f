//! Who may say to be whom: addresses, ARP, neighbour discovery.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_bpf::Direction;

use crate::packet::{Packet, SYN, arp, frame};
use crate::rig::{IFINDEX, OTHER_IFINDEX, POD, Rig, UPLINK, families};

#[test]
fn a_pod_sends_from_its_own_addresses_only() {
    let mut rig = Rig::new();
    for family in families() {
        let packet = |from| Packet::tcp((from, 40000), (family.remote, 80), SYN);
        assert!(rig.passes(Direction::Out, &packet(family.pod)));
        for from in [family.other, family.host, family.world, family.remote] {
            assert!(!rig.passes(Direction::Out, &packet(from)), "{from}");
            assert_eq!(rig.reason(), 132);
        }
        rig.kernel.sources().unwrap().add(POD, family.world).unwrap();
        assert!(rig.passes(Direction::Out, &packet(family.world)));
        assert!(rig.kernel.sources().unwrap().remove(POD, family.world).unwrap());
        assert!(!rig.passes(Direction::Out, &packet(family.world)));
    }
}

#[test]
fn nobody_on_the_network_speaks_as_a_pod_of_this_node() {
    let mut rig = Rig::new();
    for family in families() {
        let packet = Packet::tcp((family.other, 40000), (family.pod, 80), SYN);
        assert!(rig.passes_by(Direction::In, &packet, OTHER_IFINDEX));
        for ingress in [0, IFINDEX, 99] {
            assert!(!rig.passes_by(Direction::In, &packet, ingress), "by {ingress}");
            assert_eq!(rig.reason(), 132);
        }
        let remote = Packet::tcp((family.remote, 40000), (family.pod, 80), SYN);
        assert!(rig.passes_by(Direction::In, &remote, 99));
    }
    let looped = Packet::tcp((Ipv4Addr::LOCALHOST.into(), 40000), (families()[0].pod, 80), SYN);
    assert!(!rig.passes(Direction::In, &looped));
}

#[test]
fn an_interface_of_nobody_lets_nothing_pass() {
    let mut rig = Rig::new();
    rig.kernel.interfaces().unwrap().remove(IFINDEX).unwrap();
    for family in families() {
        for (direction, from, to) in [
            (Direction::In, family.remote, family.pod),
            (Direction::Out, family.pod, family.remote),
        ] {
            assert!(!rig.passes(direction, &Packet::udp((from, 1), (to, 2))));
        }
    }
    assert_eq!(rig.told(), []);
    assert_eq!(rig.count("endpoint_unknown"), 4);
}

#[test]
fn ipv4_addresses_do_not_come_as_ipv6() {
    let mut rig = Rig::new();
    let [four, six] = families();
    let IpAddr::V4(pod) = four.pod else { panic!() };
    let mapped = IpAddr::V6(pod.to_ipv6_mapped());
    for (direction, packet) in [
        (Direction::Out, Packet::udp((mapped, 1), (six.remote, 2))),
        (Direction::Out, Packet::udp((six.pod, 1), (mapped, 2))),
        (Direction::In, Packet::udp((mapped, 1), (six.pod, 2))),
    ] {
        assert!(!rig.passes(direction, &packet), "{packet:?}");
        assert_eq!(rig.reason(), 132);
    }
}

#[test]
fn arp_tells_of_own_addresses_only() {
    let mut rig = Rig::new();
    let v4 = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(_) => panic!(),
    };
    let [family, _] = families();
    let (pod, other, gateway) = (v4(family.pod), v4(family.other), v4(family.host));
    for operation in [1, 2] {
        assert!(rig.frame_passes(Direction::Out, &arp(operation, pod, gateway), UPLINK));
        for spoofed in [other, gateway] {
            assert!(!rig.frame_passes(Direction::Out, &arp(operation, spoofed, other), UPLINK));
            assert_eq!(rig.reason(), 132);
        }
        assert!(rig.frame_passes(Direction::In, &arp(operation, gateway, pod), UPLINK));
    }
    let unspecified = Ipv4Addr::UNSPECIFIED;
    assert!(
        rig.frame_passes(Direction::Out, &arp(1, unspecified, pod), UPLINK),
        "a probe"
    );
    assert!(
        !rig.frame_passes(Direction::Out, &arp(2, unspecified, pod), UPLINK),
        "no claim"
    );
    let mut other_hardware = arp(1, pod, gateway);
    other_hardware[15] = 6;
    assert!(!rig.frame_passes(Direction::Out, &other_hardware, UPLINK));
    assert!(!rig.frame_passes(Direction::Out, &arp(1, pod, gateway)[..40], UPLINK));
}

#[test]
fn neighbour_discovery_claims_own_addresses_only() {
    let mut rig = Rig::new();
    rig.set(crate::rig::DENY_IN | crate::rig::DENY_OUT);
    let [_, family] = families();
    let octets = |ip: IpAddr| match ip {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(_) => panic!(),
    };
    let unspecified = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let message = |kind, from, target: IpAddr, hop_limit| {
        let mut packet = Packet::icmp(from, family.host, kind, 0, &octets(target));
        packet.hop_limit = hop_limit;
        packet
    };
    let (pod, other) = (family.pod, family.other);
    for (kind, from, target, hop_limit, passes) in [
        (135, pod, other, 255, true),
        (135, other, pod, 255, false),
        (135, unspecified, pod, 255, true),
        (135, unspecified, other, 255, false),
        (136, pod, pod, 255, true),
        (136, pod, other, 255, false),
        (136, other, pod, 255, false),
        (133, pod, other, 255, true),
        (133, other, other, 255, false),
        (134, pod, pod, 255, false),
        (137, pod, pod, 255, false),
        (143, pod, other, 1, true),
        (143, other, other, 1, false),
        (143, pod, other, 64, false),
        // From beyond a router it is ICMP like any other, which the policy refuses.
        (135, pod, other, 64, false),
        (136, pod, pod, 254, false),
    ] {
        let packet = message(kind, from, target, hop_limit);
        assert_eq!(rig.passes(Direction::Out, &packet), passes, "{packet:?}");
        rig.told();
    }
    let mut incoming = message(135, family.host, pod, 255);
    incoming.to = pod;
    assert!(rig.passes(Direction::In, &incoming));
    incoming.hop_limit = 64;
    assert!(!rig.passes(Direction::In, &incoming));
}

#[test]
fn other_links_and_tags_are_refused_with_their_reason() {
    let mut rig = Rig::new();
    for direction in [Direction::In, Direction::Out] {
        for (kind, reason) in [
            (0x8100, 182),
            (0x88a8, 182),
            (0x8847, 166),
            (0x88cc, 166),
            (0x0600, 166),
        ] {
            assert!(
                !rig.frame_passes(direction, &frame(kind, &[0; 46]), UPLINK),
                "{kind:x}"
            );
            assert_eq!(rig.reason(), reason, "{kind:x}");
        }
    }
}
