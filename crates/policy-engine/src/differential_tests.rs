//! Three readings of the same manifests: the oracle's, which is naive, the engine's and the image's. And a
//! reading of the tests: each of the known mistakes must be noticed.
#![allow(clippy::unwrap_used)]

use crate::{
    Backed, CidrIdentities, Cluster, DenyReason, Direction, Explanation, Group, Image, NameRule, NamedPorts,
    PeerRef, PolicyObject, RequestFacts, Subject, Verdict, compile,
    fault::{self, Fault},
};
use proptest::{collection::vec, prelude::*, strategy::ValueTree, test_runner::TestRunner};
use serde_json::Value;
use std::{cell::Cell, net::IpAddr, sync::LazyLock};
use weft_model::{Labels, NumericIdentity};
use weft_policy_oracle::{
    Answer, Direction as Way, Peer, Request, RequestAnswer,
    generate::{
        Question, RESERVED, named_ports, objects, question, resolved, subject, surroundings, workloads,
    },
};
use weft_resources::Body;

static SURROUNDINGS: LazyLock<Vec<Value>> = LazyLock::new(surroundings);
static CLUSTER: LazyLock<Cluster> = LazyLock::new(cluster);
static WORKLOADS: LazyLock<Vec<(NumericIdentity, Labels)>> = LazyLock::new(workloads);

/// Answers by kind: plainly allowed, by proxy, with proof, refused by a rule, refused by default.
#[derive(Debug, Default, Clone, Copy)]
struct Tally([u64; 5]);

impl Tally {
    fn add(&mut self, answer: Answer) {
        let kinds: &[usize] = match answer {
            Answer::Allow {
                proxy: true,
                proof: true,
            } => &[1, 2],
            Answer::Allow { proxy: true, .. } => &[1],
            Answer::Allow { proof: true, .. } => &[2],
            Answer::Allow { .. } => &[0],
            Answer::Deny => &[3],
            Answer::DefaultDeny => &[4],
        };
        kinds.iter().for_each(|kind| self.0[*kind] += 1);
    }
}

fn read(manifest: &Value) -> PolicyObject {
    let text = manifest.to_string();
    let mut all = weft_resources::parse("p.json", text.as_bytes())
        .unwrap_or_else(|problems| panic!("{problems:#?} in {manifest:#}"));
    let resource = all.remove(0);
    let kind = resource.kind().name().to_owned();
    let (Body::CiliumNetworkPolicy(policy)
    | Body::CiliumClusterwideNetworkPolicy(policy)
    | Body::NetworkPolicy(policy)) = resource.body
    else {
        panic!("{manifest:#} is no policy");
    };
    PolicyObject {
        kind,
        namespace: resource.meta.namespace,
        name: resource.meta.name,
        rules: policy.rules,
    }
}

fn ports(labels: &Labels) -> NamedPorts {
    let mut ports = NamedPorts::new();
    for (name, protocol, number) in named_ports(labels) {
        ports
            .entry(name.to_owned())
            .or_default()
            .insert((protocol, number));
    }
    ports
}

/// What is there beside policies, as the policy service would have read it.
fn cluster() -> Cluster {
    let mut cluster: Cluster = WORKLOADS.iter().cloned().collect();
    for (number, labels) in &*WORKLOADS {
        cluster.set_ports(*number, ports(labels));
    }
    for manifest in &*SURROUNDINGS {
        let text = manifest.to_string();
        let resource = weft_resources::parse("s.json", text.as_bytes())
            .unwrap()
            .remove(0);
        let labels = |source: &str| {
            let own = resource.meta.labels.iter();
            own.map(|(k, v)| (format!("{source}:{k}"), v.clone())).collect()
        };
        match &resource.body {
            Body::CiliumCidrGroup(group) => {
                let (labels, cidrs) = (labels("cidrgroup"), group.cidrs.clone());
                cluster.set_group(&resource.meta.name, Some(Group { labels, cidrs }));
            }
            Body::Service(service) => {
                let (labels, selector) = (labels("k8s"), service.selector.clone());
                let backed = Some(Backed { labels, selector });
                cluster.set_service(&resource.meta.namespace, &resource.meta.name, backed);
            }
            other => panic!("{other:?}"),
        }
    }
    cluster
}

/// As a node would say who that is. In the cluster everybody has an address that ranges name.
fn peer_ref(peer: &Peer) -> PeerRef {
    let (identity, address) = match peer {
        Peer::Workload(labels) => (
            WORKLOADS.iter().find(|(_, l)| l == labels).unwrap().0,
            "10.0.0.1".parse().unwrap(),
        ),
        Peer::Reserved(name) => {
            let (number, _) = RESERVED.iter().find(|(_, n)| n == name).unwrap();
            (NumericIdentity(*number), "10.1.2.3".parse().unwrap())
        }
        Peer::Unknown => (NumericIdentity::CLUSTER_UNKNOWN, "10.1.200.1".parse().unwrap()),
        Peer::Outside(address) => (NumericIdentity::WORLD, *address),
    };
    let address: Option<IpAddr> = Some(address);
    PeerRef { identity, address }
}

fn answer(verdict: &Verdict) -> Answer {
    match *verdict {
        Verdict::Allowed { redirect, auth, .. } => Answer::Allow {
            proxy: redirect,
            proof: auth,
        },
        Verdict::Denied {
            reason: DenyReason::PolicyDeny,
            ..
        } => Answer::Deny,
        Verdict::Denied { .. } => Answer::DefaultDeny,
    }
}

/// As a node knows them that saw these names resolved.
fn addresses(resolved: &Value, rule: &NameRule) -> Vec<IpAddr> {
    let names = resolved["names"].as_object().unwrap().iter();
    let names = names.filter(|(name, _)| crate::is_meant(rule, name));
    let texts = names.flat_map(|(_, addresses)| addresses.as_array().unwrap());
    texts
        .map(|text| text.as_str().unwrap().parse().unwrap())
        .collect()
}

/// What the rules that are named add up to.
fn explained(told: &Explanation<'_>) -> Answer {
    let allows: Vec<_> = told.spoken.iter().filter(|s| !s.entry.deny).collect();
    match told.verdict {
        _ if allows.len() < told.spoken.len() => Answer::Deny,
        Verdict::Denied { .. } if allows.is_empty() => Answer::DefaultDeny,
        _ => Answer::Allow {
            proxy: !allows.is_empty() && allows.iter().all(|s| s.entry.redirect),
            // Which of them counts is not told by one of them.
            proof: matches!(told.verdict, Verdict::Allowed { auth: true, .. }),
        },
    }
}

/// Requests by answer: on connections nobody looks into, allowed by a rule, refused by rules that mean others,
/// on connections that are refused by a rule, by default.
#[derive(Debug, Default, Clone, Copy)]
struct RequestTally([u64; 5]);

impl RequestTally {
    fn add(&mut self, answer: RequestAnswer) {
        let kind = match answer {
            RequestAnswer::Unread => 0,
            RequestAnswer::Allow => 1,
            RequestAnswer::Refuse => 2,
            RequestAnswer::Deny => 3,
            RequestAnswer::DefaultDeny => 4,
        };
        self.0[kind] += 1;
    }
}

/// The engine's answer, told apart by whether somebody looks into the connection.
fn request_answer(read: bool, verdict: &Verdict) -> RequestAnswer {
    match *verdict {
        Verdict::Allowed { .. } if read => RequestAnswer::Allow,
        Verdict::Allowed { .. } => RequestAnswer::Unread,
        Verdict::Denied { reason, .. } => match reason {
            DenyReason::PolicyDeny => RequestAnswer::Deny,
            DenyReason::PolicyDenied => RequestAnswer::DefaultDeny,
            DenyReason::RequestDenied => RequestAnswer::Refuse,
        },
    }
}

fn headers(request: &Request) -> http::HeaderMap {
    let pairs = request.headers.iter();
    pairs
        .map(|(n, v)| {
            (
                n.parse::<http::HeaderName>().unwrap(),
                http::HeaderValue::from_static(v),
            )
        })
        .fold(http::HeaderMap::new(), |mut map, (name, value)| {
            map.append(name, value);
            map
        })
}

/// Asks all three; about requests, the two that judge them.
fn compare(scenario: &Scenario) -> Result<(Tally, RequestTally, RequestTally), String> {
    let Scenario {
        manifests,
        resolved,
        subject,
        questions,
    } = scenario;
    let objects: Vec<PolicyObject> = manifests.iter().map(read).collect();
    let labels = &WORKLOADS[*subject].1;
    let ports = ports(labels);
    let set = compile(
        &objects,
        Subject {
            labels,
            ports: &ports,
        },
        &CLUSTER,
    )
    .bind(|rule| addresses(resolved, rule));
    // Another's ranges split this one's.
    let other = compile(&objects, &WORKLOADS[0].1, &CLUSTER).bind(|rule| addresses(resolved, rule));
    let manifests = &[&**manifests, &*SURROUNDINGS, std::slice::from_ref(resolved)].concat();
    let mut cidrs = CidrIdentities::new(1000);
    for set in [&other, &set] {
        cidrs.hold(set).unwrap();
    }
    let image = Image::new(&set, &cidrs, 100_000).unwrap();
    let (mut tally, mut requests, mut queries) =
        (Tally::default(), RequestTally::default(), RequestTally::default());
    for question in questions {
        let Question {
            direction,
            peer,
            traffic,
            request,
            name,
        } = question;
        let by_proxy = |direction, who, port| {
            let facts = RequestFacts {
                method: request.method,
                path: request.path,
                host: request.host,
                headers: &headers(request),
            };
            set.judge_request(direction, who, traffic.protocol, port, &facts)
        };
        let way = *direction;
        let expected = weft_policy_oracle::judge(manifests, labels, *direction, peer, *traffic);
        let direction = match direction {
            Way::Ingress => Direction::Ingress,
            Way::Egress => Direction::Egress,
        };
        // A message's type stands for a port.
        let port = match traffic.protocol {
            1 | 58 => traffic.number + 1,
            _ => traffic.number,
        };
        let who = peer_ref(peer);
        let by_engine = set.judge(direction, who, traffic.protocol, port);
        let asked = match peer {
            Peer::Outside(address) => cidrs.of(*address),
            _ => who.identity,
        };
        let by_image = image.judge(direction, asked, traffic.protocol, port);
        if answer(&by_engine) != expected {
            return Err(format!(
                "engine: {by_engine:?}, oracle: {expected:?}, {question:?}"
            ));
        }
        let told = set.explain(direction, who, traffic.protocol, port, None);
        if explained(&told) != expected {
            return Err(format!("explained: {told:?}, oracle: {expected:?}, {question:?}"));
        }
        if by_image != by_engine {
            return Err(format!(
                "image: {by_image:?}, engine: {by_engine:?}, {question:?}"
            ));
        }
        tally.add(expected);
        let read = matches!(by_engine, Verdict::Allowed { redirect: true, .. });
        if way == Way::Egress && traffic.number == 53 {
            let expected = weft_policy_oracle::judge_query(manifests, labels, peer, *traffic, name);
            let found = set.judge_query(who, traffic.protocol, port, name);
            if request_answer(read, &found) != expected {
                return Err(format!("engine: {found:?}, oracle: {expected:?}, {question:?}"));
            }
            queries.add(expected);
        }
        if traffic.protocol != 6 {
            continue;
        }
        let expected = weft_policy_oracle::judge_request(manifests, labels, way, peer, *traffic, request);
        let found = by_proxy(direction, who, port);
        if request_answer(read, &found) != expected {
            return Err(format!("engine: {found:?}, oracle: {expected:?}, {question:?}"));
        }
        requests.add(expected);
    }
    Ok((tally, requests, queries))
}

#[derive(Debug)]
struct Scenario {
    manifests: Vec<Value>,
    resolved: Value,
    subject: usize,
    questions: Vec<Question>,
}

fn scenario(questions: usize) -> impl Strategy<Value = Scenario> {
    let parts = (objects(), resolved(), subject(), vec(question(), questions));
    parts.prop_map(|(manifests, resolved, subject, questions)| Scenario {
        manifests,
        resolved,
        subject,
        questions,
    })
}

#[test]
fn engine_image_and_oracle_agree() {
    const SETS: u32 = 2_000;
    const QUESTIONS: usize = 84;
    let mut runner = TestRunner::new(ProptestConfig {
        cases: SETS,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let total = Cell::new((Tally::default(), RequestTally::default(), RequestTally::default()));
    runner
        .run(&scenario(QUESTIONS), |scenario| {
            let (tally, requests, queries) = compare(&scenario).map_err(TestCaseError::fail)?;
            let mut sum = total.get();
            sum.0.0.iter_mut().zip(tally.0).for_each(|(sum, n)| *sum += n);
            sum.1.0.iter_mut().zip(requests.0).for_each(|(sum, n)| *sum += n);
            sum.2.0.iter_mut().zip(queries.0).for_each(|(sum, n)| *sum += n);
            total.set(sum);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
    let (Tally(counts), RequestTally(requests), RequestTally(queries)) = total.get();
    let asked = u64::from(SETS) * QUESTIONS as u64;
    let names = [
        "allowed",
        "by the proxy",
        "with proof",
        "refused by a rule",
        "refused by default",
    ];
    let of_requests = [
        "requests nobody looks into",
        "requests allowed by a rule",
        "requests that no rule means",
        "requests to who is refused by a rule",
        "requests to who is refused by default",
    ];
    println!("names that nobody asks about, allowed, refused, of refused resolvers: {queries:?}");
    assert!(
        queries.iter().all(|n| *n >= 50),
        "too rare to be tested: {queries:?}"
    );
    let asked_requests: u64 = requests.iter().sum();
    assert!(asked_requests >= 100_000, "{asked_requests} requests");
    let connections = names.iter().zip(counts).map(|found| (found, asked));
    let requests = of_requests
        .iter()
        .zip(requests)
        .map(|found| (found, asked_requests));
    let all: Vec<_> = connections.chain(requests).collect();
    for ((name, count), asked) in &all {
        println!("{name}: {count} of {asked}, {} %", count * 100 / asked);
    }
    for ((name, count), asked) in &all {
        assert!(
            count * 20 >= *asked,
            "{name}: too rare to be tested, {count} of {asked}"
        );
    }
}

#[test]
fn each_known_mistake_is_noticed() {
    let mut runner = TestRunner::default();
    let strategy = scenario(60);
    let notices = |fault: Fault, runner: &mut TestRunner| {
        (1..=3_000).find(|_| {
            let scenario = strategy.new_tree(runner).unwrap().current();
            fault::making(fault, || compare(&scenario)).is_err()
        })
    };
    let mut unnoticed = Vec::new();
    for fault in fault::ALL {
        match notices(fault, &mut runner) {
            Some(sets) => println!("{fault:?}: noticed in set {sets}"),
            None => unnoticed.push(fault),
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}
