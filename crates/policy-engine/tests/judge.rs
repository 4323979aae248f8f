//! The indexed judge against one that reads the entries from top to bottom.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};
use weft_model::NumericIdentity;
use weft_policy_engine::{
    Authentication, CidrPeer, DenyReason, Direction, DirectionPolicy, Entry, PeerRef, Peers, PolicySet,
    Ports, RuleRef, Verdict,
};
use weft_proto::weft::policy::v1 as pb;
use weft_resources::HttpRule;

/// Few values, so that entries overlap; with the edges of every type.
const IDENTITIES: [u32; 8] = [0, 2, 9, 11, 256, 257, 65_535, 0x0100_0001];
const PORTS: [u16; 6] = [1, 79, 80, 81, 8080, 65_535];
const ADDRESSES: [&str; 5] = [
    "10.0.0.1",
    "10.0.1.1",
    "192.0.2.9",
    "2001:db8::1",
    "::ffff:10.0.0.1",
];

fn unconditionally() -> Verdict {
    Verdict::Allowed {
        rule: None,
        redirect: false,
        auth: false,
    }
}

/// Of all entries that allow, for a peer by name and for anybody: how narrow, by proxy, what is said.
fn must_be_proven(allows: &[&Entry], port: u16) -> bool {
    type Side = Option<(bool, u32, bool, Authentication)>;
    let side = |anybody: bool| -> Side {
        let mut keys: BTreeMap<u32, (bool, Authentication)> = BTreeMap::new();
        for entry in allows.iter().filter(|e| e.peers.any == anybody) {
            let width = match (entry.protocol, entry.ports) {
                (None, Ports::Any) => 0,
                (Some(_), Ports::Any) => 8,
                (_, Ports::Range(first, last)) => {
                    let (first, last) = (u32::from(first), u32::from(last));
                    let block = |bits: u32| {
                        let start = u32::from(port) >> bits << bits;
                        start >= first && start + (1 << bits) - 1 <= last
                    };
                    24 - (0..16).rev().find(|bits| block(*bits)).unwrap()
                }
            };
            let key = keys.entry(width).or_insert((false, Authentication::Unsaid));
            *key = (key.0 || entry.redirect, key.1.max(entry.auth));
        }
        let by_proxy = |below: u32| keys.range(..below).any(|(_, key)| key.0);
        let counts = |(width, key): &(&u32, &(bool, Authentication))| {
            key.0 || key.1 != Authentication::Unsaid || !by_proxy(**width)
        };
        let (width, (proxied, own)) = keys.iter().rev().find(counts)?;
        let mut said = keys.range(..=width).rev().map(|(_, key)| key.1);
        let said = said.find(|said| *said != Authentication::Unsaid);
        let proxied = *proxied || by_proxy(*width);
        Some((
            proxied,
            *width,
            *own != Authentication::Unsaid,
            said.unwrap_or_default(),
        ))
    };
    let required = |side: Side| side.is_some_and(|s| s.3 == Authentication::Required);
    let (named, anybody) = (side(false), side(true));
    let (Some(n), Some(a)) = (named, anybody) else {
        return required(named) || required(anybody);
    };
    let (first, other) = if (a.0, a.1) > (n.0, n.1) {
        (anybody, named)
    } else {
        (named, anybody)
    };
    let own = first.is_some_and(|s| s.2);
    required(first) || !own && n.0 == a.0 && required(other)
}

fn naive(policy: &DirectionPolicy, peer: PeerRef, protocol: u8, port: u16) -> Verdict {
    let local = (0x0100_0000..0x0200_0000).contains(&peer.identity.0);
    let outside = local || [2, 9, 10].contains(&peer.identity.0);
    let in_range = |c: &CidrPeer, deny: bool| match peer.address {
        _ if !outside => false,
        None => deny,
        Some(a) => {
            c.cidr.contains(&a.to_canonical()) && !c.except.iter().any(|e| e.contains(&a.to_canonical()))
        }
    };
    let matches = |e: &Entry| {
        let who = e.peers.any
            || e.peers.identities.contains(&peer.identity)
            || local && e.peers.identities.contains(&NumericIdentity::WORLD)
            || e.peers.cidrs.iter().any(|c| in_range(c, e.deny));
        let how = match e.protocol {
            Some(p) => p == protocol,
            None => e.ports == Ports::Any || [6, 17, 132].contains(&protocol),
        };
        who && how && e.ports.contains(port)
    };
    let first = |deny: bool| {
        policy
            .entries
            .iter()
            .find(|e| e.deny == deny && matches(e))
            .map(|e| e.rule.clone())
    };
    if let Some(rule) = first(true) {
        return Verdict::Denied {
            reason: DenyReason::PolicyDeny,
            rule: Some(rule),
        };
    }
    match first(false) {
        Some(rule) => Verdict::Allowed {
            rule: Some(rule),
            redirect: policy
                .entries
                .iter()
                .filter(|e| !e.deny && matches(e))
                .all(|e| e.redirect),
            auth: {
                let allows = policy.entries.iter().filter(|e| !e.deny && matches(e));
                must_be_proven(&allows.collect::<Vec<_>>(), port)
            },
        },
        None if policy.default_deny => Verdict::Denied {
            reason: DenyReason::PolicyDenied,
            rule: None,
        },
        None => unconditionally(),
    }
}

fn peers() -> impl Strategy<Value = Peers> {
    // Local numbers are bound by nodes and never in a set: a node's own belong to `world`.
    let ids = proptest::sample::subsequence(&IDENTITIES[..7], 0..4);
    let cidr = (
        proptest::sample::select(vec![
            "10.0.0.0/8",
            "10.0.0.0/24",
            "10.0.0.1/32",
            "0.0.0.0/0",
            "::/0",
            "2001:db8::/32",
        ]),
        proptest::sample::subsequence(vec!["10.0.1.0/24", "10.0.0.1/32", "2001:db8::/48"], 0..3),
    )
        .prop_map(|(c, e)| CidrPeer {
            cidr: c.parse().unwrap(),
            except: e.iter().map(|e| e.parse().unwrap()).collect(),
        });
    (prop::bool::weighted(0.2), ids, prop::collection::vec(cidr, 0..3)).prop_map(|(any, ids, cidrs)| Peers {
        any,
        identities: ids.into_iter().map(NumericIdentity).collect(),
        cidrs,
        names: Vec::new(),
    })
}

fn http() -> impl Strategy<Value = HttpRule> {
    let text =
        |all: Vec<&'static str>| prop::option::of(proptest::sample::select(all).prop_map(String::from));
    let header = (
        proptest::sample::select(vec!["x-a", "x-b"]).prop_map(String::from),
        text(vec!["", "a b"]),
    );
    (
        text(vec!["/", "/a.*"]),
        text(vec!["GET", "GET|POST"]),
        text(vec!["x"]),
        prop::collection::vec(header, 0..2),
    )
        .prop_map(|(path, method, host, headers)| HttpRule {
            path,
            method,
            host,
            headers,
        })
}

fn entry() -> impl Strategy<Value = Entry> {
    let ports = prop_oneof![
        Just(Ports::Any),
        (
            proptest::sample::select(&PORTS[..]),
            proptest::sample::select(&PORTS[..])
        )
            .prop_map(|(a, b)| Ports::Range(a.min(b), a.max(b))),
        proptest::sample::select(&PORTS[..]).prop_map(|p| Ports::Range(p, p)),
    ];
    let protocol = proptest::sample::select(vec![None, Some(6), Some(17), Some(1)]);
    let auth = prop_oneof![
        3 => Just(Authentication::Unsaid),
        1 => Just(Authentication::Disabled),
        1 => Just(Authentication::Required),
    ];
    let how = (any::<bool>(), auth, prop::collection::vec(http(), 0..3));
    (prop::bool::weighted(0.3), 0..9u8, protocol, ports, how, peers()).prop_map(
        |(deny, n, protocol, ports, (redirect, auth, http), peers)| {
            let rule = RuleRef {
                kind: "CiliumNetworkPolicy".into(),
                namespace: "default".into(),
                name: format!("p{n}"),
                path: format!("ingress[{n}]"),
            };
            Entry {
                deny,
                rule: Arc::new(rule),
                protocol,
                ports,
                redirect,
                http: http.into_iter().filter(|_| redirect).collect(),
                dns: Default::default(),
                auth,
                peers,
            }
        },
    )
}

fn direction() -> impl Strategy<Value = DirectionPolicy> {
    (any::<bool>(), prop::collection::vec(entry(), 0..8)).prop_map(|(default_deny, entries)| {
        DirectionPolicy {
            default_deny,
            selected_by: entries.iter().take(9).map(|e| e.rule.clone()).collect(),
            entries,
        }
    })
}

fn peer() -> impl Strategy<Value = PeerRef> {
    (
        proptest::sample::select(&IDENTITIES[..]),
        prop::option::of(proptest::sample::select(&ADDRESSES[..])),
    )
        .prop_map(|(identity, address)| PeerRef {
            identity: NumericIdentity(identity),
            address: address.map(|a| a.parse::<IpAddr>().unwrap()),
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

    #[test]
    fn the_index_agrees_with_reading_from_top_to_bottom(
        ingress in direction(),
        egress in direction(),
        peer in peer(),
        protocol in proptest::sample::select(vec![1u8, 6, 17, 132]),
        port in proptest::sample::select(vec![0u16, 1, 78, 79, 80, 81, 82, 8080, 65_535]),
    ) {
        let set = PolicySet::new(ingress, egress);
        prop_assert_eq!(
            set.judge(Direction::Ingress, peer, protocol, port),
            naive(set.ingress(), peer, protocol, port)
        );
        prop_assert_eq!(
            set.judge(Direction::Egress, peer, protocol, port),
            naive(set.egress(), peer, protocol, port)
        );
    }

    #[test]
    fn the_id_is_a_matter_of_content_alone(ingress in direction(), egress in direction(), seed in any::<u64>()) {
        let set = PolicySet::new(ingress.clone(), egress.clone());
        let mut shuffled = ingress.clone();
        let n = shuffled.entries.len().max(1);
        shuffled.entries.rotate_left(seed as usize % n);
        shuffled.entries.reverse();
        prop_assert_eq!(&PolicySet::new(shuffled, egress.clone()), &set);

        let mut flipped = ingress.clone();
        flipped.default_deny = !flipped.default_deny;
        let flipped = PolicySet::new(flipped, egress.clone());
        prop_assert_ne!(flipped.id(), set.id());
        if ingress != egress {
            let swapped = PolicySet::new(egress, ingress);
            prop_assert!(swapped.id() != set.id() || swapped == set);
        }
    }

    #[test]
    fn the_wire_carries_all_of_it(ingress in direction(), egress in direction()) {
        let set = PolicySet::new(ingress, egress);
        let wire = pb::PolicySet::from(&set);
        let back = PolicySet::try_from(&wire).unwrap();
        prop_assert_eq!(&back, &set);
        prop_assert_eq!(pb::PolicySet::from(&back), wire);
    }
}

#[test]
fn what_no_rule_selects_is_allowed_by_no_rule() {
    let anyone = PeerRef {
        identity: NumericIdentity::UNKNOWN,
        address: None,
    };
    let set = PolicySet::unrestricted();
    assert_eq!(set.judge(Direction::Ingress, anyone, 6, 80), unconditionally());
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    let entry = |protocol, port, end_port| pb::PolicySet {
        id: "x".into(),
        ingress: Some(pb::DirectionPolicy {
            default_deny: true,
            selected_by: Vec::new(),
            entries: vec![pb::PolicyEntry {
                protocol,
                port,
                end_port,
                any_peer: true,
                ..Default::default()
            }],
        }),
        egress: Some(pb::DirectionPolicy::default()),
    };
    assert!(PolicySet::try_from(&entry(6, 80, 0)).is_ok());
    for (protocol, port, end_port) in [
        (256, 80, 0),
        (6, 65_536, 0),
        (6, 80, 79),
        (6, 0, 80),
        (6, 80, 65_536),
    ] {
        assert!(
            PolicySet::try_from(&entry(protocol, port, end_port)).is_err(),
            "{protocol} {port} {end_port}"
        );
    }
    let half = pb::PolicySet {
        id: "x".into(),
        ..Default::default()
    };
    assert!(
        PolicySet::try_from(&half).is_err(),
        "a set without directions was taken"
    );
}
