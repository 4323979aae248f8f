//! Compiled policies against an evaluator that answers each question from the rules themselves, with
//! nothing compiled, indexed or sorted. It shares the types of the rules with the engine and no code.
#![allow(clippy::unwrap_used)]

use proptest::{prelude::*, sample::select, strategy::ValueTree, test_runner::TestRunner};
use std::net::IpAddr;
use weft_model::{Labels, NumericIdentity};
use weft_policy_engine::{DenyReason, Direction, Identities, PeerRef, PolicyObject, Verdict, compile};
use weft_resources::{
    CidrRule, Entity, LabelKey, LabelSelector, Operator, PeerRule, PolicyRule, PortRule, Requirement,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    Allow,
    DefaultDeny,
    ExplicitDeny,
}

mod oracle {
    use super::*;

    fn has(labels: &Labels, key: &LabelKey, wanted: Option<&[String]>) -> bool {
        labels.iter().any(|(full, value)| {
            let (source, name) = full.split_once(':').unwrap();
            name == key.name
                && key.source.as_deref().is_none_or(|s| s == source)
                && wanted.is_none_or(|w| w.iter().any(|v| v == value))
        })
    }

    fn requirement(r: &Requirement, labels: &Labels) -> bool {
        match r.operator {
            Operator::Exists => has(labels, &r.key, None),
            Operator::DoesNotExist => !has(labels, &r.key, None),
            Operator::In => has(labels, &r.key, Some(&r.values)),
            Operator::NotIn => !has(labels, &r.key, Some(&r.values)),
        }
    }

    fn about_namespaces(r: &Requirement) -> bool {
        r.key.name == "io.kubernetes.pod.namespace" && r.key.source.as_deref().is_none_or(|s| s == "k8s")
    }

    fn subject(s: &LabelSelector, namespace: &str, labels: &Labels) -> bool {
        labels.namespace() == Some(namespace)
            && s.requirements.iter().all(|r| {
                about_namespaces(r) && r.operator == Operator::In && r.values.len() == 1
                    || requirement(r, labels)
            })
    }

    fn endpoint(s: &LabelSelector, namespace: &str, labels: &Labels) -> bool {
        let names_one = s
            .requirements
            .iter()
            .any(|r| about_namespaces(r) || r.key.source.as_deref() == Some("reserved"));
        s.requirements.iter().all(|r| requirement(r, labels))
            && (names_one || labels.namespace() == Some(namespace))
    }

    fn entity(e: Entity, peer: PeerRef) -> bool {
        let n = peer.identity.0;
        match e {
            Entity::All => true,
            Entity::None => false,
            Entity::World => [2, 9, 10].contains(&n),
            Entity::WorldIpv4 => n == 9 || n == 2 && peer.address.is_some_and(|a| a.is_ipv4()),
            Entity::WorldIpv6 => n == 10 || n == 2 && peer.address.is_some_and(|a| a.is_ipv6()),
            Entity::Cluster => n >= 256 || [1, 3, 4, 5, 6, 7, 8, 11].contains(&n),
            Entity::Host => n == 1,
            Entity::RemoteNode => n == 6,
            Entity::Init => n == 5,
            Entity::Ingress => n == 8,
            Entity::Unmanaged => n == 3,
            Entity::Health => n == 4,
            Entity::KubeApiserver => n == 7,
        }
    }

    fn peer(rule: &PeerRule, namespace: &str, peer: PeerRef, labels: Option<&Labels>) -> bool {
        let present = rule.endpoints.is_some() || rule.entities.is_some() || rule.cidrs.is_some();
        if !present {
            return rule.ports.is_some();
        }
        if rule.endpoints.as_ref().is_some_and(|l| l.is_empty())
            || rule.entities.as_ref().is_some_and(|l| l.is_empty())
            || rule.cidrs.as_ref().is_some_and(|l| l.is_empty())
        {
            return false;
        }
        let by_label =
            labels.is_some_and(|l| rule.endpoints.iter().flatten().any(|s| endpoint(s, namespace, l)));
        let by_entity = rule.entities.iter().flatten().any(|e| entity(*e, peer));
        let by_address = rule.cidrs.iter().flatten().any(|c| {
            let outside = [2, 9, 10].contains(&peer.identity.0);
            let inside = |a: IpAddr| c.cidr.contains(&a) && !c.except.iter().any(|e| e.contains(&a));
            outside && peer.address.is_some_and(inside)
        });
        by_label || by_entity || by_address
    }

    fn port(rule: &PeerRule, protocol: u8, port: u16) -> bool {
        rule.ports.as_ref().is_none_or(|ports| {
            ports.iter().any(|p| {
                let all_ports = p.first == 0;
                match p.protocol {
                    Some(n) => n == protocol && (all_ports || p.first <= port && port <= p.last),
                    None => {
                        all_ports || [6, 17, 132].contains(&protocol) && p.first <= port && port <= p.last
                    }
                }
            })
        })
    }

    pub fn judge(
        objects: &[PolicyObject],
        subject_labels: &Labels,
        direction: Direction,
        who: (PeerRef, Option<&Labels>),
        protocol: u8,
        to: u16,
    ) -> Answer {
        let (mut closed, mut allowed, mut denied) = (false, false, false);
        for object in objects {
            for rule in &object.rules {
                if !subject(&rule.endpoint_selector, &object.namespace, subject_labels) {
                    continue;
                }
                let (allow, deny, explicit) = match direction {
                    Direction::Ingress => (&rule.ingress, &rule.ingress_deny, rule.default_deny_ingress),
                    Direction::Egress => (&rule.egress, &rule.egress_deny, rule.default_deny_egress),
                };
                closed |= explicit.unwrap_or(allow.len() + deny.len() > 0);
                let hit = |r: &PeerRule| peer(r, &object.namespace, who.0, who.1) && port(r, protocol, to);
                allowed |= allow.iter().any(hit);
                denied |= deny.iter().any(hit);
            }
        }
        match (denied, allowed, closed) {
            (true, _, _) => Answer::ExplicitDeny,
            (false, true, _) | (false, false, false) => Answer::Allow,
            (false, false, true) => Answer::DefaultDeny,
        }
    }
}

fn key() -> impl Strategy<Value = LabelKey> {
    select(vec![
        "app",
        "k8s:app",
        "any:tier",
        "k8s:tier",
        "other:app",
        "reserved:host",
        "reserved:world",
    ])
    .prop_map(LabelKey::parse)
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let operator = select(vec![
        Operator::In,
        Operator::In,
        Operator::NotIn,
        Operator::Exists,
        Operator::DoesNotExist,
    ]);
    let common = (
        key(),
        operator,
        proptest::sample::subsequence(vec!["x", "y"], 1..=2),
    )
        .prop_map(|(key, operator, v)| {
            let values = match operator {
                Operator::In | Operator::NotIn => v.into_iter().map(String::from).collect(),
                _ => Vec::new(),
            };
            Requirement {
                key,
                operator,
                values,
            }
        });
    let namespace = (any::<bool>(), select(vec!["a", "b"])).prop_map(|(prefixed, namespace)| Requirement {
        key: LabelKey::parse(if prefixed {
            "k8s:io.kubernetes.pod.namespace"
        } else {
            "io.kubernetes.pod.namespace"
        }),
        operator: Operator::In,
        values: vec![namespace.into()],
    });
    prop_oneof![6 => common, 1 => namespace]
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    prop::collection::vec(requirement(), 0..3).prop_map(|requirements| LabelSelector { requirements })
}

fn port() -> impl Strategy<Value = PortRule> {
    let ports = select(vec![(0, u16::MAX), (80, 80), (80, 90), (443, 443), (1, 65_535)]);
    (select(vec![None, Some(6), Some(17)]), ports).prop_map(|(protocol, (first, last))| PortRule {
        path: "toPorts[0].ports[0]".into(),
        protocol,
        first,
        last,
    })
}

fn cidr() -> impl Strategy<Value = CidrRule> {
    let except = proptest::sample::subsequence(vec!["10.1.0.0/16", "10.0.0.1/32"], 0..=2);
    (
        select(vec!["10.0.0.0/8", "0.0.0.0/0", "::/0", "10.1.0.0/16"]),
        except,
    )
        .prop_map(|(c, e)| CidrRule {
            cidr: c.parse().unwrap(),
            except: e.iter().map(|e| e.parse().unwrap()).collect(),
        })
}

fn peer_rule() -> impl Strategy<Value = PeerRule> {
    use Entity as E;
    let entities = select(vec![
        E::All,
        E::World,
        E::World,
        E::WorldIpv4,
        E::WorldIpv6,
        E::Cluster,
        E::Cluster,
        E::Host,
        E::RemoteNode,
        E::Init,
        E::Ingress,
        E::Unmanaged,
        E::Health,
        E::KubeApiserver,
        E::None,
    ]);
    let peers = prop_oneof![
        5 => prop::collection::vec(selector(), 0..3).prop_map(|l| (Some(l), None, None)),
        2 => prop::collection::vec(entities, 0..3).prop_map(|l| (None, Some(l), None)),
        2 => prop::collection::vec(cidr(), 0..3).prop_map(|l| (None, None, Some(l))),
        2 => Just((None, None, None)),
        // An empty list beside a filled one.
        1 => any::<bool>().prop_map(|cidr| (Some(vec![]), Some(vec![E::All]), cidr.then(Vec::new))),
    ];
    (peers, prop::option::of(prop::collection::vec(port(), 1..3))).prop_map(
        |((endpoints, entities, cidrs), ports)| PeerRule {
            path: "rule".into(),
            endpoints,
            entities,
            cidrs,
            ports,
        },
    )
}

fn object() -> impl Strategy<Value = PolicyObject> {
    let section = |weight| {
        prop_oneof![
            2 => Just(Vec::new()),
            weight => prop::collection::vec(peer_rule(), 1..4),
        ]
    };
    let default = || prop_oneof![6 => Just(None), 1 => any::<bool>().prop_map(Some)];
    let rule = (
        selector(),
        section(6),
        section(3),
        section(6),
        section(3),
        default(),
        default(),
    )
        .prop_map(
            |(endpoint_selector, ingress, ingress_deny, egress, egress_deny, i, e)| PolicyRule {
                endpoint_selector,
                ingress,
                ingress_deny,
                egress,
                egress_deny,
                default_deny_ingress: i,
                default_deny_egress: e,
            },
        );
    (select(vec!["a", "b"]), 0..4u8, prop::collection::vec(rule, 1..3)).prop_map(|(namespace, n, rules)| {
        PolicyObject {
            kind: "CiliumNetworkPolicy".into(),
            namespace: namespace.into(),
            name: format!("p{n}"),
            rules,
        }
    })
}

/// Every workload of two namespaces, two keys and two values (or none).
fn identities() -> Identities {
    let mut all = Vec::new();
    for namespace in ["a", "b"] {
        for app in [None, Some("x"), Some("y")] {
            for tier in [None, Some("x")] {
                let own = app
                    .map(|v| ("app", v))
                    .into_iter()
                    .chain(tier.map(|v| ("tier", v)));
                let number = NumericIdentity(256 + u32::try_from(all.len()).unwrap());
                all.push((number, Labels::for_workload(own, namespace, "", "")));
            }
        }
    }
    all.into_iter().collect()
}

fn reserved(number: u32) -> Option<Labels> {
    let name = match number {
        0 | 11 => return None,
        9 => "world-ipv4",
        10 => "world-ipv6",
        _ => NumericIdentity(number).reserved_name()?,
    };
    Some(
        [(format!("reserved:{name}"), String::new())]
            .into_iter()
            .collect(),
    )
}

fn questions(known: &Identities) -> Vec<(PeerRef, Option<Labels>)> {
    let mut peers: Vec<_> = known
        .iter()
        .map(|(id, labels)| {
            (
                PeerRef {
                    identity: id,
                    address: None,
                },
                Some(labels.clone()),
            )
        })
        .collect();
    for number in 0..=11 {
        for address in ["10.0.0.1", "10.1.2.3", "192.0.2.1", "2001:db8::1"] {
            let address: IpAddr = address.parse().unwrap();
            // The numbers of one address family have no addresses of the other.
            if number == 9 && address.is_ipv6() || number == 10 && address.is_ipv4() {
                continue;
            }
            let peer = PeerRef {
                identity: NumericIdentity(number),
                address: Some(address),
            };
            peers.push((peer, reserved(number)));
        }
    }
    peers
}

#[test]
fn the_engine_agrees_with_the_oracle() {
    let known = identities();
    let peers = questions(&known);
    let mut runner = TestRunner::default();
    let strategy = prop::collection::vec(object(), 1..4);
    let mut counts = [0u64; 3];
    for _ in 0..400 {
        let objects = strategy.new_tree(&mut runner).unwrap().current();
        for (_, subject) in known.iter() {
            let set = compile(&objects, subject, &known);
            for (peer, labels) in &peers {
                for direction in [Direction::Ingress, Direction::Egress] {
                    for (protocol, port) in [(6, 80), (6, 85), (17, 443), (132, 80), (1, 0)] {
                        let expected = oracle::judge(
                            &objects,
                            subject,
                            direction,
                            (*peer, labels.as_ref()),
                            protocol,
                            port,
                        );
                        let found = match set.judge(direction, *peer, protocol, port) {
                            Verdict::Allowed { .. } => Answer::Allow,
                            Verdict::Denied {
                                reason: DenyReason::PolicyDenied,
                                ..
                            } => Answer::DefaultDeny,
                            Verdict::Denied {
                                reason: DenyReason::PolicyDeny,
                                ..
                            } => Answer::ExplicitDeny,
                        };
                        assert_eq!(
                            found, expected,
                            "{direction:?} {peer:?} {labels:?} {protocol}/{port} of {subject}\n{objects:#?}"
                        );
                        counts[expected as usize] += 1;
                    }
                }
            }
        }
    }
    let total: u64 = counts.iter().sum();
    println!("of {total} questions: {counts:?} allowed, refused by default, refused by a rule");
    for count in counts {
        assert!(
            count * 20 >= total,
            "an answer is too rare to be tested: {counts:?}"
        );
    }
}

#[test]
fn what_an_object_does_not_name_does_not_change_it() {
    let known = identities();
    let newcomer = Labels::for_workload([("app", "z"), ("tier", "z")], "a", "cart", "");
    let mut runner = TestRunner::default();
    let (mut named, mut unnamed) = (0, 0);
    for _ in 0..600 {
        let object = object().new_tree(&mut runner).unwrap().current();
        let mut more = known.clone();
        more.insert(NumericIdentity(900), newcomer.clone());
        for (_, subject) in known.iter() {
            let same = compile([&object], subject, &known) == compile([&object], subject, &more);
            assert!(same || object.names_peer(&newcomer), "{object:#?}");
            let selected = compile([&object], subject, &known) != compile([], subject, &known);
            assert!(!selected || object.selects(subject), "{object:#?}");
        }
        if object.names_peer(&newcomer) {
            named += 1
        } else {
            unnamed += 1
        }
    }
    assert!(named > 60 && unnamed > 60, "{named} {unnamed}");
}

#[test]
fn the_rule_that_decided_is_named() {
    let text = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: cart, namespace: a}
specs:
  - endpointSelector: {matchLabels: {app: x}}
    ingress:
      - fromEndpoints: [{matchLabels: {app: 'y'}}]
        toPorts: [{ports: [{port: '443'}]}, {ports: [{port: '80', protocol: TCP}]}]
    ingressDeny:
      - fromEntities: [world]
";
    let resources = weft_resources::parse("f.yaml", text.as_bytes()).unwrap();
    let weft_resources::Body::CiliumNetworkPolicy(policy) = &resources[0].body else {
        panic!()
    };
    let object = PolicyObject {
        kind: "CiliumNetworkPolicy".into(),
        namespace: "a".into(),
        name: "cart".into(),
        rules: policy.rules.clone(),
    };
    let known = identities();
    let find = |app: &str, namespace: &str| {
        let wanted = Labels::for_workload([("app", app)], namespace, "", "");
        known
            .iter()
            .find(|(_, l)| **l == wanted)
            .map(|(id, l)| (id, l.clone()))
            .unwrap()
    };
    let (x, y) = (find("x", "a"), find("y", "a"));
    let set = compile([&object], &x.1, &known);
    let at = |identity, port| {
        set.judge(
            Direction::Ingress,
            PeerRef {
                identity,
                address: None,
            },
            6,
            port,
        )
    };
    let path = |v: &Verdict| v.rule().map(|r| r.to_string());
    let allowed = at(y.0, 80);
    assert!(allowed.is_allowed());
    assert_eq!(
        path(&allowed).unwrap(),
        "CiliumNetworkPolicy/a/cart: specs[0].ingress[0].toPorts[1].ports[0]"
    );
    // The same peer of another namespace, and another port, are not meant.
    assert_eq!(
        at(find("y", "b").0, 80),
        Verdict::Denied {
            reason: DenyReason::PolicyDenied,
            rule: None
        }
    );
    assert_eq!(
        at(y.0, 81),
        Verdict::Denied {
            reason: DenyReason::PolicyDenied,
            rule: None
        }
    );
    let denied = at(NumericIdentity::WORLD, 80);
    assert!(matches!(
        denied,
        Verdict::Denied {
            reason: DenyReason::PolicyDeny,
            ..
        }
    ));
    assert_eq!(
        path(&denied).unwrap(),
        "CiliumNetworkPolicy/a/cart: specs[0].ingressDeny[0]"
    );
    // No section, no default deny.
    let out = set.judge(
        Direction::Egress,
        PeerRef {
            identity: y.0,
            address: None,
        },
        6,
        80,
    );
    assert_eq!(
        out,
        Verdict::Allowed {
            rule: None,
            redirect: false,
            auth: false
        }
    );
}
