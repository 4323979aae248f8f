//! What the kernel is given against the engine's own reading of the same set.
#![allow(clippy::unwrap_used)]

use proptest::{prelude::*, sample::select};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};
use weft_model::NumericIdentity;
use weft_policy_engine::{
    Authentication, CidrIdentities, CidrPeer, Direction, DirectionPolicy, Entry, Image, PeerRef, Peers,
    PolicySet, Ports, RuleRef, Verdict,
    image::{Change, RangeKey, Step, TooLarge, Value},
};

const IDENTITIES: [u32; 7] = [1, 2, 9, 11, 256, 257, 65_535];
const PORTS: [u16; 7] = [1, 79, 80, 81, 8080, 32_768, 65_535];
const ADDRESSES: [&str; 7] = [
    "10.0.0.1",
    "10.0.1.1",
    "10.9.0.1",
    "192.0.2.9",
    "2001:db8::1",
    "2001:db8:1::1",
    "::1:0:0:1",
];

fn net() -> impl Strategy<Value = &'static str> {
    select(vec![
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.0/24",
        "10.0.1.0/24",
        "10.0.0.1/32",
        "::/0",
        "2001:db8::/32",
        "2001:db8::/48",
    ])
}

fn peers() -> impl Strategy<Value = Peers> {
    let cidr = (net(), prop::collection::vec(net(), 0..3)).prop_map(|(c, e)| CidrPeer {
        cidr: c.parse().unwrap(),
        except: e.iter().map(|e| e.parse().unwrap()).collect(),
    });
    let ids = proptest::sample::subsequence(&IDENTITIES[..], 0..4);
    (prop::bool::weighted(0.2), ids, prop::collection::vec(cidr, 0..3)).prop_map(|(any, ids, cidrs)| Peers {
        any,
        identities: ids.into_iter().map(NumericIdentity).collect(),
        cidrs,
        names: Vec::new(),
    })
}

fn entry() -> impl Strategy<Value = Entry> {
    let ports = prop_oneof![
        1 => Just(Ports::Any),
        2 => (select(&PORTS[..]), select(&PORTS[..])).prop_map(|(a, b)| Ports::Range(a.min(b), a.max(b))),
        1 => select(&PORTS[..]).prop_map(|p| Ports::Range(p, p)),
    ];
    let protocol = select(vec![None, Some(6), Some(17), Some(1)]);
    let auth = prop_oneof![
        3 => Just(Authentication::Unsaid),
        1 => Just(Authentication::Disabled),
        1 => Just(Authentication::Required),
    ];
    let how = (prop::bool::weighted(0.25), any::<bool>(), auth);
    (how, 0..9u8, protocol, ports, peers()).prop_map(|((deny, redirect, auth), n, protocol, ports, peers)| {
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
            http: Default::default(),
            dns: Default::default(),
            auth: if deny { Authentication::Unsaid } else { auth },
            peers,
        }
    })
}

fn set() -> impl Strategy<Value = PolicySet> {
    let direction = || {
        (any::<bool>(), prop::collection::vec(entry(), 0..8)).prop_map(|(default_deny, entries)| {
            DirectionPolicy {
                default_deny,
                selected_by: Vec::new(),
                entries,
            }
        })
    };
    (direction(), direction()).prop_map(|(ingress, egress)| PolicySet::new(ingress, egress))
}

/// Who asks: in the cluster by its number, outside by its address.
fn peer() -> impl Strategy<Value = PeerRef> {
    let inside = select(vec![0u32, 1, 11, 256, 257, 65_535]).prop_map(|n| PeerRef {
        identity: NumericIdentity(n),
        address: None,
    });
    let outside = select(&ADDRESSES[..]).prop_map(|a| PeerRef {
        identity: NumericIdentity::WORLD,
        address: Some(a.parse::<IpAddr>().unwrap()),
    });
    prop_oneof![inside, outside]
}

/// The number with which the kernel asks.
fn asked(peer: PeerRef, cidrs: &CidrIdentities) -> NumericIdentity {
    match peer.address {
        Some(address) if peer.identity == NumericIdentity::WORLD => cidrs.of(address),
        _ => peer.identity,
    }
}

fn questions() -> impl Strategy<Value = Vec<(PeerRef, u8, u16)>> {
    let ports = vec![
        0u16, 1, 2, 78, 79, 80, 81, 82, 8079, 8080, 8081, 32_767, 32_768, 65_534, 65_535,
    ];
    prop::collection::vec((peer(), select(vec![1u8, 6, 17, 132, 47]), select(ports)), 40)
}

/// The tables as the kernel has them, with only the part that decides about one identity in view.
#[derive(Default, Clone)]
struct Tables {
    image: Option<Image>,
}

impl Tables {
    fn apply(&mut self, step: &Step) {
        let image = self.image.as_mut().unwrap();
        match *step {
            Step::Entry(key, Some(value)) => drop(image.entries.insert(key, value)),
            Step::Entry(key, None) => drop(image.entries.remove(&key)),
            Step::Allow(key, Some(value)) => drop(image.allow.insert(key, value)),
            Step::Allow(key, None) => drop(image.allow.remove(&key)),
            Step::Deny(key, Some(value)) => drop(image.deny.insert(key, value)),
            Step::Deny(key, None) => drop(image.deny.remove(&key)),
        }
    }
}

/// More than nothing and less than everything: how open a verdict is.
fn openness(verdict: &Verdict) -> u8 {
    match verdict {
        Verdict::Denied { .. } => 0,
        Verdict::Allowed { redirect, auth, .. } => 4 - 2 * u8::from(*auth) - u8::from(*redirect),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

    /// Also with ranges that other sets brought, which split this one's.
    #[test]
    fn an_image_says_what_its_set_says(sets in prop::collection::vec(set(), 1..3), asks in questions()) {
        let mut cidrs = CidrIdentities::new(1000);
        for set in &sets {
            cidrs.hold(set).unwrap();
        }
        let image = Image::new(&sets[0], &cidrs, 100_000).unwrap();
        for (peer, protocol, port) in asks {
            for direction in [Direction::Ingress, Direction::Egress] {
                prop_assert_eq!(
                    image.judge(direction, asked(peer, &cidrs), protocol, port),
                    sets[0].judge(direction, peer, protocol, port),
                    "{:?} {:?} {}/{} of {:#?}", direction, peer, protocol, port, sets[0]
                );
            }
        }
    }

    /// Identities that come and go change a set in place, and at no step is anybody let in by more than
    /// the old or the new version lets in.
    #[test]
    fn a_set_that_changes_in_place_is_never_more_open_than_before_and_after(
        set in set(),
        known in proptest::sample::subsequence(&IDENTITIES[..], 0..6),
        asks in questions(),
    ) {
        let cidrs = {
            let mut cidrs = CidrIdentities::new(1000);
            cidrs.hold(&set).unwrap();
            cidrs
        };
        let without = |policy: &DirectionPolicy| {
            let mut policy = policy.clone();
            for entry in &mut policy.entries {
                entry.peers.identities.retain(|id| !id.is_allocated() || known.contains(&id.0));
            }
            policy
        };
        let fewer = PolicySet::new(without(set.ingress()), without(set.egress()));
        let images = [&fewer, &set].map(|s| Image::new(s, &cidrs, 100_000).unwrap());
        for (old, new) in [(&images[0], &images[1]), (&images[1], &images[0])] {
            let (add, remove) = match old.diff(new) {
                Change::None => (Vec::new(), Vec::new()),
                Change::Identities { add, remove } => (add, remove),
                // Rules that are the same but for whom they name: dropping one makes other rules.
                Change::Rules => {
                    let values = |i: &Image| i.entries.values().chain(i.allow.values()).copied().collect::<Vec<_>>();
                    let by_proxy = |values: Vec<Value>| {
                        values.iter().any(|v| v.proxied)
                            && values.iter().any(|v| v.auth == Authentication::Required)
                    };
                    prop_assert!(old.rules != new.rules || by_proxy(values(old)) || by_proxy(values(new)));
                    continue;
                }
            };
            let mut tables = Tables { image: Some(old.clone()) };
            for step in add.iter().chain(&remove) {
                tables.apply(step);
                let image = tables.image.as_ref().unwrap();
                for (peer, protocol, port) in &asks {
                    let judge = |i: &Image| {
                        openness(&i.judge(Direction::Ingress, asked(*peer, &cidrs), *protocol, *port))
                    };
                    prop_assert!(judge(image) <= judge(old).max(judge(new)));
                }
            }
            prop_assert_eq!(tables.image.as_ref(), Some(new));
        }
    }

    #[test]
    fn ranges_keep_their_numbers_while_they_are_used(sets in prop::collection::vec(set(), 1..6), order in any::<u64>()) {
        let mut cidrs = CidrIdentities::new(1000);
        let mut seen: BTreeMap<String, NumericIdentity> = BTreeMap::new();
        let mut uses: HashMap<String, i32> = HashMap::new();
        let nets = |set: &PolicySet| {
            let mut one = CidrIdentities::new(1000);
            one.hold(set).unwrap().into_iter().map(|(net, _)| net.to_string()).collect::<Vec<_>>()
        };
        let mut held = Vec::new();
        for (i, set) in sets.iter().chain(&sets).enumerate() {
            let release = order >> i & 1 == 1 && !held.is_empty();
            if release {
                let gone: &PolicySet = held.swap_remove(order as usize % held.len());
                nets(gone).into_iter().for_each(|n| *uses.get_mut(&n).unwrap() -= 1);
                for (net, number) in cidrs.release(gone) {
                    prop_assert_eq!(uses[&net.to_string()], 0);
                    prop_assert_eq!(seen.remove(&net.to_string()), Some(number));
                }
            }
            nets(set).into_iter().for_each(|n| *uses.entry(n).or_default() += 1);
            for (net, number) in cidrs.hold(set).unwrap() {
                prop_assert_eq!(uses[&net.to_string()], 1);
                prop_assert!(!seen.values().any(|n| *n == number), "a number in use was given again");
                seen.insert(net.to_string(), number);
            }
            held.push(set);
            let now: BTreeMap<_, _> = cidrs.iter().map(|(net, id)| (net.to_string(), id)).collect();
            prop_assert_eq!(&now, &seen);
        }
    }
}

fn allow(peers: Peers, ports: Ports) -> PolicySet {
    let rule = RuleRef {
        kind: "CiliumNetworkPolicy".into(),
        namespace: "default".into(),
        name: "p".into(),
        path: "ingress[0]".into(),
    };
    let entry = Entry {
        deny: false,
        rule: Arc::new(rule),
        protocol: Some(6),
        ports,
        redirect: false,
        http: Default::default(),
        dns: Default::default(),
        auth: Authentication::Unsaid,
        peers,
    };
    let ingress = DirectionPolicy {
        default_deny: true,
        selected_by: Vec::new(),
        entries: vec![entry],
    };
    PolicySet::new(ingress, DirectionPolicy::default())
}

#[test]
fn what_is_too_large_is_refused_and_one_less_is_not() {
    let peers = Peers {
        identities: (256..266).map(NumericIdentity).collect(),
        ..Peers::default()
    };
    let cidrs = CidrIdentities::new(0);
    // 10 identities, ports 1 to 6: four blocks.
    let set = allow(peers, Ports::Range(1, 6));
    let image = Image::new(&set, &cidrs, 40).unwrap();
    assert_eq!(image.len(), 40);
    let Err(TooLarge { max, entries, .. }) = Image::new(&set, &cidrs, 39) else {
        panic!("39 entries are enough for 40");
    };
    assert_eq!(max, 39);
    assert!(entries > 39);
}

#[test]
fn too_many_ranges_hold_nothing() {
    let range = |text: &str| {
        let cidr = CidrPeer {
            cidr: text.parse().unwrap(),
            except: Vec::new(),
        };
        Peers {
            cidrs: vec![cidr],
            ..Peers::default()
        }
    };
    let mut two = range("10.0.0.0/8");
    two.cidrs[0].except.push("10.1.0.0/16".parse().unwrap());
    let mut cidrs = CidrIdentities::new(2);
    assert_eq!(
        cidrs.hold(&allow(range("10.0.0.0/8"), Ports::Any)).unwrap().len(),
        1
    );
    assert_eq!(cidrs.hold(&allow(two.clone(), Ports::Any)).unwrap().len(), 1);
    let refused = cidrs.hold(&allow(range("192.0.2.0/24"), Ports::Any)).unwrap_err();
    assert_eq!((refused.prefixes, refused.max), (3, 2));
    assert_eq!(cidrs.iter().count(), 2);
    // The range stays for the set that still names it.
    assert_eq!(cidrs.release(&allow(two, Ports::Any)).len(), 1);
    assert_eq!(
        cidrs.of("10.1.0.1".parse().unwrap()),
        NumericIdentity(0x0100_0001)
    );
}

#[test]
fn numbers_of_before_a_restart_go_on() {
    let cidr = CidrPeer {
        cidr: "10.0.0.0/8".parse().unwrap(),
        except: Vec::new(),
    };
    let peers = Peers {
        cidrs: vec![cidr],
        ..Peers::default()
    };
    let mut cidrs = CidrIdentities::new(10);
    cidrs.adopt("10.0.0.0/8".parse().unwrap(), NumericIdentity(0x0100_0007));
    cidrs.adopt("192.0.2.0/24".parse().unwrap(), NumericIdentity(0x0100_0001));
    // Neither a number of no range nor one that is taken.
    cidrs.adopt("192.0.3.0/24".parse().unwrap(), NumericIdentity(300));
    cidrs.adopt("192.0.4.0/24".parse().unwrap(), NumericIdentity(0x0100_0007));
    assert_eq!(cidrs.hold(&allow(peers, Ports::Any)).unwrap(), []);
    let gone = cidrs.sweep();
    assert_eq!(
        gone,
        [("192.0.2.0/24".parse().unwrap(), NumericIdentity(0x0100_0001))]
    );
    assert_eq!(
        cidrs.of("10.2.3.4".parse().unwrap()),
        NumericIdentity(0x0100_0007)
    );
    assert_eq!(
        cidrs.net(NumericIdentity(0x0100_0007)),
        Some("10.0.0.0/8".parse().unwrap())
    );
    assert_eq!(cidrs.of("192.0.2.1".parse().unwrap()), NumericIdentity::WORLD);
}

#[test]
fn another_rule_is_another_set() {
    let peers = |id| Peers {
        identities: vec![NumericIdentity(id)],
        ..Peers::default()
    };
    let cidrs = CidrIdentities::new(0);
    let image = |set| Image::new(&set, &cidrs, 100).unwrap();
    let old = image(allow(peers(300), Ports::Range(80, 80)));
    assert_eq!(old.diff(&old), Change::None);
    // The same identity may do something else.
    assert_eq!(
        old.diff(&image(allow(peers(300), Ports::Range(81, 81)))),
        Change::Rules
    );
    assert_eq!(
        old.diff(&image(allow(Peers::any(), Ports::Range(80, 80)))),
        Change::Rules
    );
    // Another identity may do the same.
    let Change::Identities { add, remove } = old.diff(&image(allow(peers(301), Ports::Range(80, 80)))) else {
        panic!("an identity came and one went");
    };
    assert_eq!((add.len(), remove.len()), (1, 1));
}

#[test]
fn a_block_stands_for_its_ports() {
    let image = Image::new(
        &allow(Peers::any(), Ports::Range(80, 83)),
        &CidrIdentities::new(0),
        100,
    )
    .unwrap();
    let block = RangeKey {
        identity: 0,
        egress: false,
        protocol: 6,
        port: 80,
        length: 14,
    };
    let value = Value {
        rule: 1,
        ..Value::default()
    };
    assert_eq!(image.allow, BTreeMap::from([(block, value)]));
    assert_eq!(image.rule(1).unwrap().name, "p");
    assert!(image.rule(0).is_none() && image.rule(2).is_none());
}

/// A range that says nothing lies within one that releases from proof, below an entry by the proxy that
/// demands it: the silent one is not there, so that the release counts.
#[test]
fn a_silent_range_below_the_proxy_hides_no_release() {
    let entry = |protocol, ports, redirect, auth| Entry {
        deny: false,
        rule: Arc::new(RuleRef {
            kind: "CiliumNetworkPolicy".into(),
            namespace: "default".into(),
            name: "p".into(),
            path: "ingress[0]".into(),
        }),
        protocol,
        ports,
        redirect,
        http: Default::default(),
        dns: Default::default(),
        auth,
        peers: Peers {
            any: false,
            identities: vec![NumericIdentity(256)].into_iter().collect(),
            cidrs: Vec::new(),
            names: Vec::new(),
        },
    };
    for proxied in [true, false] {
        let ingress = DirectionPolicy {
            default_deny: false,
            selected_by: Vec::new(),
            entries: vec![
                entry(None, Ports::Range(79, 8080), false, Authentication::Unsaid),
                entry(Some(17), Ports::Any, proxied, Authentication::Required),
                entry(Some(17), Ports::Range(1, 8080), false, Authentication::Disabled),
            ],
        };
        let set = PolicySet::new(ingress, DirectionPolicy::default());
        let image = Image::new(&set, &CidrIdentities::new(10), 1_000).unwrap();
        let peer = PeerRef {
            identity: NumericIdentity(256),
            address: None,
        };
        for (port, proven) in [(79, false), (8079, false), (8081, true)] {
            for verdict in [
                image.judge(Direction::Ingress, peer.identity, 17, port),
                set.judge(Direction::Ingress, peer, 17, port),
            ] {
                let Verdict::Allowed { auth, .. } = verdict else {
                    panic!("{verdict:?}")
                };
                assert_eq!(auth, proven, "{port}, proxied: {proxied}");
            }
        }
    }
}

/// Between the steps, the direct entry of the new identity would lift the proxy before the other one makes
/// its demand for proof count.
#[test]
fn where_proof_depends_on_the_proxy_no_set_changes_in_place() {
    let entry = |peer: Option<u32>, protocol, redirect, auth| Entry {
        deny: false,
        rule: Arc::new(RuleRef {
            kind: "CiliumNetworkPolicy".into(),
            namespace: "default".into(),
            name: "p".into(),
            path: "ingress[0]".into(),
        }),
        protocol,
        ports: Ports::Any,
        redirect,
        http: Default::default(),
        dns: Default::default(),
        auth,
        peers: Peers {
            any: peer.is_none(),
            identities: peer.into_iter().map(NumericIdentity).collect(),
            cidrs: Vec::new(),
            names: Vec::new(),
        },
    };
    let image = |identities: &[u32], auth| {
        let of = |n: &u32| {
            [
                entry(Some(*n), None, true, Authentication::Unsaid),
                entry(Some(*n), Some(1), false, auth),
            ]
        };
        let mut entries: Vec<Entry> = identities.iter().flat_map(of).collect();
        entries.push(entry(None, Some(1), true, Authentication::Unsaid));
        let ingress = DirectionPolicy {
            default_deny: false,
            selected_by: Vec::new(),
            entries,
        };
        let set = PolicySet::new(ingress, DirectionPolicy::default());
        Image::new(&set, &CidrIdentities::new(10), 1_000).unwrap()
    };
    for (auth, in_place) in [
        (Authentication::Required, false),
        (Authentication::Disabled, true),
    ] {
        let change = image(&[256], auth).diff(&image(&[256, 257], auth));
        assert_eq!(
            matches!(change, Change::Identities { .. }),
            in_place,
            "{change:?}"
        );
    }
}
