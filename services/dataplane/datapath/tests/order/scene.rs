//! A small cluster as one node sees it: rules by class of peer, workloads that come and go.

use crate::kernel::{Fate, Probe, TCP};
use ipnet::IpNet;
use proptest::prelude::*;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};
use weft_datapath::{Governed, Here, Node, There, Update};
use weft_model::NumericIdentity;
use weft_policy_engine::{
    CidrPeer, Direction, DirectionPolicy, Entry, PeerRef, Peers, PolicySet, Ports, RuleRef,
};

/// Identities; one is of class `number % 3`.
const IDENTITIES: std::ops::Range<u32> = 300..306;
const POLICIES: usize = 2;
/// Endpoints of this node by number, and the workloads of the other node.
const HERE: std::ops::Range<u32> = 1..4;
const THERE: usize = 3;
/// Addresses that workloads may have; the last ones are outside the pods' range.
const ADDRESSES: [&str; 6] = [
    "10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.9.0.1", "10.9.0.2",
];
const OUTSIDE: [&str; 3] = ["10.1.0.99", "10.9.1.1", "192.0.2.1"];
const PODS: &str = "10.1.0.0/16";
const RANGES: [&str; 4] = ["10.0.0.0/8", "10.9.0.0/16", "10.1.0.0/24", "0.0.0.0/0"];
const PORTS: [u16; 2] = [80, 443];

#[derive(Debug, Clone, PartialEq)]
pub enum Who {
    Class(u32),
    Range(usize, Option<usize>),
    World,
    Cluster,
    Anybody,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub deny: bool,
    pub who: Who,
    pub port: Option<usize>,
    pub egress: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub default_deny: [bool; 2],
    pub rules: Vec<Rule>,
}

/// The cluster at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    pub policies: [Policy; POLICIES],
    /// Identity, policy, address.
    pub here: BTreeMap<u32, (u32, usize, usize)>,
    /// Identity, address.
    pub there: BTreeMap<usize, (u32, usize)>,
    /// Identities that policies know beside those that somebody has.
    pub lingering: Vec<u32>,
    pub pods_known: bool,
}

fn rule() -> impl Strategy<Value = Rule> {
    let who = prop_oneof![
        4 => (0..3u32).prop_map(Who::Class),
        3 => (0..RANGES.len(), prop::option::of(0..RANGES.len())).prop_map(|(r, e)| Who::Range(r, e)),
        1 => Just(Who::World),
        1 => Just(Who::Cluster),
        1 => Just(Who::Anybody),
    ];
    (
        any::<bool>(),
        who,
        prop::option::of(0..PORTS.len()),
        any::<bool>(),
    )
        .prop_map(|(deny, who, port, egress)| Rule {
            deny,
            who,
            port,
            egress,
        })
}

fn policy() -> impl Strategy<Value = Policy> {
    (any::<[bool; 2]>(), prop::collection::vec(rule(), 0..4))
        .prop_map(|(default_deny, rules)| Policy { default_deny, rules })
}

pub fn scene() -> impl Strategy<Value = Scene> {
    let identity = || IDENTITIES;
    (
        [policy(), policy()],
        prop::collection::btree_map(HERE, (identity(), 0..POLICIES, 0..ADDRESSES.len()), 0..4),
        prop::collection::btree_map(0..THERE, (identity(), 0..ADDRESSES.len()), 0..4),
        prop::collection::vec(identity(), 0..3),
        prop::bool::weighted(0.8),
    )
        .prop_map(|(policies, here, there, lingering, pods_known)| {
            Scene {
                policies,
                here,
                there,
                lingering,
                pods_known,
            }
            .settled()
        })
}

/// One or more things that change at once.
#[derive(Debug, Clone)]
pub enum Change {
    Policy(usize, Policy),
    Here(u32, Option<(u32, usize, usize)>),
    There(usize, Option<(u32, usize)>),
    Lingering(Vec<u32>),
    Pods(bool),
    /// The planner is started anew on what the kernel holds.
    Restart,
}

pub fn changes() -> impl Strategy<Value = Vec<Change>> {
    let here = (IDENTITIES, 0..POLICIES, 0..ADDRESSES.len());
    let one = prop_oneof![
        3 => (0..POLICIES, policy()).prop_map(|(n, p)| Change::Policy(n, p)),
        4 => (HERE, prop::option::weighted(0.7, here)).prop_map(|(n, h)| Change::Here(n, h)),
        4 => (0..THERE, prop::option::weighted(0.7, (IDENTITIES, 0..ADDRESSES.len())))
            .prop_map(|(n, t)| Change::There(n, t)),
        2 => prop::collection::vec(IDENTITIES, 0..3).prop_map(Change::Lingering),
        1 => any::<bool>().prop_map(Change::Pods),
        1 => Just(Change::Restart),
    ];
    prop::collection::vec(one, 1..4)
}

impl Scene {
    /// Nobody has an address that somebody else has.
    fn settled(mut self) -> Self {
        let mut taken = Vec::new();
        self.here.retain(|_, (_, _, a)| {
            let free = !taken.contains(a);
            taken.push(*a);
            free
        });
        self.there.retain(|_, (_, a)| {
            let free = !taken.contains(a);
            taken.push(*a);
            free
        });
        self
    }

    pub fn with(&self, changes: &[Change]) -> Self {
        let mut next = self.clone();
        for change in changes {
            match change.clone() {
                Change::Policy(n, policy) => next.policies[n] = policy,
                Change::Here(n, None) => drop(next.here.remove(&n)),
                Change::Here(n, Some(h)) => drop(next.here.insert(n, h)),
                Change::There(n, None) => drop(next.there.remove(&n)),
                Change::There(n, Some(t)) => drop(next.there.insert(n, t)),
                Change::Lingering(all) => next.lingering = all,
                Change::Pods(known) => next.pods_known = known,
                Change::Restart => {}
            }
        }
        next.settled()
    }

    fn known(&self, identity: u32) -> bool {
        self.lingering.contains(&identity)
            || self.here.values().any(|h| h.0 == identity)
            || self.there.values().any(|t| t.0 == identity)
    }

    /// A policy as the policy service compiles it: for the identities that it knows.
    pub fn compiled(&self, policy: usize) -> PolicySet {
        compile(policy, &self.policies[policy], |identity| self.known(identity))
    }

    pub fn address(&self, at: usize) -> IpAddr {
        ADDRESSES[at].parse().unwrap()
    }

    /// Who has an address.
    pub fn who(&self, address: IpAddr) -> NumericIdentity {
        let of_here = self
            .here
            .values()
            .find(|h| self.address(h.2) == address)
            .map(|h| h.0);
        let of_there = self
            .there
            .values()
            .find(|t| self.address(t.1) == address)
            .map(|t| t.0);
        match of_here.or(of_there) {
            Some(identity) => NumericIdentity(identity),
            None if self.pods_known && PODS.parse::<IpNet>().unwrap().contains(&address) => {
                NumericIdentity::CLUSTER_UNKNOWN
            }
            None => NumericIdentity::WORLD,
        }
    }

    pub fn update(&self, complete: bool, before: Option<&Self>) -> Update {
        let mut update = Update {
            complete,
            ..Update::default()
        };
        let id = |n: &dyn std::fmt::Display| -> Arc<str> { n.to_string().into() };
        for n in 0..POLICIES {
            let set = self.compiled(n);
            let old = before.map(|b| b.compiled(n)).filter(|old| old.id() != set.id());
            update.sets.push((set.id().into(), Some(Arc::new(set))));
            if let Some(old) = old.filter(|o| (0..POLICIES).all(|n| self.compiled(n).id() != o.id())) {
                update.sets.push((old.id().into(), None));
            }
        }
        for (n, (identity, policy, address)) in &self.here {
            let here = Here {
                number: *n,
                pod: true,
                addresses: vec![self.address(*address)],
                app_port: 80,
                proven: true,
                capture: false,
                audit: false,
                governed: Some(Governed {
                    identity: NumericIdentity(*identity),
                    set: self.compiled(*policy).id().into(),
                }),
            };
            update.here.push((id(&format!("here-{n}")), Some(here)));
        }
        for (n, (identity, address)) in &self.there {
            let there = There {
                node: "n2".into(),
                pod: true,
                addresses: vec![self.address(*address)],
                app_port: 80,
                identity: NumericIdentity(*identity),
                shared: false,
            };
            update.there.push((id(&format!("there-{n}")), Some(there)));
        }
        let node = Node {
            own: false,
            addresses: Vec::new(),
            pod_cidrs: if self.pods_known {
                vec![PODS.parse().unwrap()]
            } else {
                Vec::new()
            },
            shared_cidrs: Vec::new(),
        };
        update.nodes.push(("n2".into(), Some(node)));
        if let Some(before) = before.filter(|_| !complete) {
            let gone = before.here.keys().filter(|n| !self.here.contains_key(n));
            update.here.extend(gone.map(|n| (id(&format!("here-{n}")), None)));
            let gone = before.there.keys().filter(|n| !self.there.contains_key(n));
            update
                .there
                .extend(gone.map(|n| (id(&format!("there-{n}")), None)));
        }
        update
    }

    /// What the rules say of a probe, whatever is known of identities: `rules` of the endpoint's
    /// policy, `who` has the peer's address.
    pub fn truth(&self, rules: (usize, &Policy), who: NumericIdentity, probe: &Probe) -> Fate {
        let set = compile(rules.0, rules.1, |_| true);
        let peer = PeerRef {
            identity: who,
            address: Some(probe.peer),
        };
        if set.judge(probe.direction, peer, TCP, probe.port).is_allowed() {
            Fate::Passes
        } else {
            Fate::Dropped
        }
    }

    pub fn names_a_range_among_pods(&self) -> bool {
        let pods: IpNet = PODS.parse().unwrap();
        let inside = |at: usize| pods.contains(&RANGES[at].parse::<IpNet>().unwrap());
        let rules = self.policies.iter().flat_map(|p| &p.rules);
        self.pods_known
            && rules.into_iter().any(|rule| match rule.who {
                Who::Range(range, except) => inside(range) || except.is_some_and(inside),
                _ => false,
            })
    }

    pub fn rules_of(&self, endpoint: u32) -> Option<(usize, &Policy)> {
        let (_, policy, _) = self.here.get(&endpoint)?;
        Some((*policy, &self.policies[*policy]))
    }
}

fn compile(at: usize, policy: &Policy, known: impl Fn(u32) -> bool) -> PolicySet {
    let mut directions = policy.default_deny.map(|default_deny| DirectionPolicy {
        default_deny,
        ..DirectionPolicy::default()
    });
    for (n, rule) in policy.rules.iter().enumerate() {
        let mut peers = Peers::default();
        let mut classes = |class: Option<u32>| {
            let all = IDENTITIES.filter(|i| class.is_none_or(|c| i % 3 == c) && known(*i));
            peers.identities.extend(all.map(NumericIdentity));
        };
        match &rule.who {
            Who::Class(class) => classes(Some(*class)),
            Who::Cluster => {
                classes(None);
                peers.identities.push(NumericIdentity::CLUSTER_UNKNOWN);
            }
            Who::World => peers.identities.push(NumericIdentity::WORLD),
            Who::Anybody => peers.any = true,
            Who::Range(range, except) => {
                let cidr: IpNet = RANGES[*range].parse().unwrap();
                let hole = except.map(|e| RANGES[e].parse::<IpNet>().unwrap());
                let hole = hole.filter(|h| cidr.contains(h) && *h != cidr);
                peers.cidrs.push(CidrPeer {
                    cidr,
                    except: hole.into_iter().collect(),
                });
            }
        }
        let path = format!("rule[{n}]");
        let rule_ref = RuleRef {
            kind: "CiliumNetworkPolicy".into(),
            namespace: "default".into(),
            name: format!("p{at}"),
            path,
        };
        directions[usize::from(rule.egress)].entries.push(Entry {
            deny: rule.deny,
            rule: Arc::new(rule_ref),
            protocol: Some(TCP),
            ports: rule.port.map_or(Ports::Any, |p| Ports::Range(PORTS[p], PORTS[p])),
            redirect: false,
            http: Default::default(),
            dns: Default::default(),
            auth: Default::default(),
            peers,
        });
    }
    let [ingress, egress] = directions;
    PolicySet::new(ingress, egress)
}

/// Every probe worth asking.
pub fn probes() -> Vec<Probe> {
    let mut probes = Vec::new();
    for endpoint in HERE {
        for direction in [Direction::Ingress, Direction::Egress] {
            for peer in ADDRESSES.iter().chain(&OUTSIDE) {
                for port in PORTS {
                    let peer = peer.parse().unwrap();
                    probes.push(Probe {
                        endpoint,
                        direction,
                        peer,
                        port,
                    });
                }
            }
        }
    }
    probes
}
