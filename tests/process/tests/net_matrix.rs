//! What a policy says is what comes through: between pods, processes and hosts outside, both ways, for
//! TCP, UDP and ICMP in both families, through the finished processes and the kernel. Each refusal has
//! a twin that differs in one thing and is let through, and the flow says why. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};
use weft_demo::{
    command::output,
    stage::{Seat, Stage, StageOptions, Target},
};
use weft_process_tests::{SOON, binary};
use weft_testnet::Node;

/// One target's time. Drops are silent, so that each refusal takes all of it; all targets are asked at once.
const PATIENCE: Duration = Duration::from_millis(1200);

/// What each port stands for, and who gets through.
struct Case {
    port: u16,
    what: &'static str,
    /// A workload with the label.
    workload: Verdict,
    /// A host that no mesh knows.
    outside: Verdict,
}

impl Case {
    fn of(&self, who: Who) -> Verdict {
        match who {
            Who::Workload => self.workload,
            Who::Outside => self.outside,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Workload,
    Outside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// By the rule with this word in its text.
    Let(&'static str),
    /// With this reason, and this word in the rule's text.
    Drop(&'static str, &'static str),
}

const NOT_ALLOWED: Verdict = Verdict::Drop("POLICY_DENIED", "");
const DENIED: Verdict = Verdict::Drop("POLICY_DENY", "matrix");
const UNPROVEN: Verdict = Verdict::Drop("AUTH_REQUIRED", "matrix");
const LET: Verdict = Verdict::Let("matrix");

const fn case(port: u16, what: &'static str, workload: Verdict, outside: Verdict) -> Case {
    Case {
        port,
        what,
        workload,
        outside,
    }
}

/// By their offset from the direction's first port.
const CASES: &[Case] = &[
    case(1, "labels", LET, NOT_ALLOWED),
    case(2, "deny beats allow", DENIED, LET),
    case(3, "entity world", NOT_ALLOWED, LET),
    case(4, "entity cluster", LET, NOT_ALLOWED),
    case(5, "CIDR with an exception", NOT_ALLOWED, NOT_ALLOWED),
    case(6, "CIDR without the exception", NOT_ALLOWED, LET),
    case(7, "no rule", NOT_ALLOWED, NOT_ALLOWED),
    case(8, "labels and authentication", LET, NOT_ALLOWED),
    case(9, "authentication of anybody", LET, UNPROVEN),
    case(10, "below the range", NOT_ALLOWED, NOT_ALLOWED),
    case(11, "first of the range", LET, LET),
    case(13, "last of the range", LET, LET),
    case(14, "above the range", NOT_ALLOWED, NOT_ALLOWED),
];
const INGRESS: u16 = 2000;
const EGRESS: u16 = 3000;

/// One direction's rules; `Endpoints`, `Entities`, `CIDRSet` are prefixed by from or to.
fn rules(way: &str, first: u16, outside: &[IpAddr]) -> String {
    let key = if way == "ingress" { "from" } else { "to" };
    let ports = |port: u16| format!("toPorts: [{{ports: [{{port: \"{}\"}}]}}]", first + port);
    let cidrs = |except: bool| {
        let each = outside.iter().map(|a| {
            let (net, own) = match a {
                IpAddr::V4(_) => ("172.30.0.0/16", 32),
                IpAddr::V6(_) => ("fd00:30::/64", 128),
            };
            if except {
                format!("{{cidr: \"{net}\", except: [\"{a}/{own}\"]}}")
            } else {
                format!("{{cidr: \"{net}\"}}")
            }
        });
        each.collect::<Vec<_>>().join(", ")
    };
    format!(
        "  {way}:
    - {key}Endpoints: [{{matchLabels: {{role: peer}}}}]
      {p1}
    - {key}Entities: [all]
      {p2}
    - {key}Entities: [world]
      {p3}
    - {key}Entities: [cluster]
      {p4}
    - {key}CIDRSet: [{except}]
      {p5}
    - {key}CIDRSet: [{plain}]
      {p6}
    - {key}Endpoints: [{{matchLabels: {{role: peer}}}}]
      authentication: {{mode: required}}
      {p8}
    - {key}Entities: [all]
      authentication: {{mode: required}}
      {p9}
    - {key}Entities: [all]
      toPorts: [{{ports: [{{port: \"{low}\", endPort: {high}}}]}}]
    - {key}Endpoints: [{{matchLabels: {{role: peer}}}}]
      icmps: [{{fields: [{{family: IPv4, type: 8}}, {{family: IPv6, type: 128}}]}}]
  {way}Deny:
    - {key}Endpoints: [{{matchLabels: {{role: peer}}}}]
      {p2}
",
        p1 = ports(1),
        p2 = ports(2),
        p3 = ports(3),
        p4 = ports(4),
        p5 = ports(5),
        p6 = ports(6),
        p8 = ports(8),
        p9 = ports(9),
        except = cidrs(true),
        plain = cidrs(false),
        low = first + 11,
        high = first + 13,
    )
}

/// Somebody who asks or is asked.
struct Party {
    name: &'static str,
    seat: Seat,
    addresses: [IpAddr; 2],
    inside: bool,
    /// A process shares the node's address: an echo is the node's.
    pings: bool,
}

struct Scene {
    stage: Stage,
    /// Whom the policy selects.
    subjects: Vec<Party>,
    peers: Vec<Party>,
    _serving: Vec<weft_testnet::Process>,
}

async fn scene() -> Scene {
    let bin_dir = binary("weft-node").parent().unwrap().to_owned();
    let options = StageOptions {
        bin_dir,
        python: None,
    };
    let mut stage = Stage::new(&options).unwrap();
    for name in ["identity", "policy", "placement"] {
        stage.start_service(name).await.unwrap();
    }
    stage.start_node("n1", &["default/*"]).await.unwrap();
    let host = stage.testnet().node("outside").unwrap();
    let node = stage.node("n1").unwrap().net.clone();
    let both = |node: &Node| [IpAddr::from(node.v4()), node.v6().into()];
    stage
        .apply(
            "matrix.yaml",
            &format!(
                "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: matrix, namespace: default}}\n\
                 spec:\n  endpointSelector: {{matchLabels: {{role: subject}}}}\n{}{}",
                rules("ingress", INGRESS, &both(&host)),
                rules("egress", EGRESS, &both(&host)),
            ),
        )
        .unwrap();
    let mut scene = Scene {
        subjects: Vec::new(),
        peers: Vec::new(),
        _serving: Vec::new(),
        stage,
    };
    for (name, role) in [("subject-pod", "subject"), ("peer-pod", "peer")] {
        scene
            .stage
            .place_labelled("n1", name, &[("role", role)])
            .await
            .unwrap();
        let party = Party {
            name,
            seat: scene.stage.seat(name).unwrap(),
            addresses: scene.stage.pod(name).unwrap().net.addresses(),
            inside: true,
            pings: true,
        };
        scene.add(party, role == "subject").await;
    }
    for (name, role) in [("subject-process", "subject"), ("peer-process", "peer")] {
        let seat = scene
            .stage
            .place_process("n1", name, &[("role", role)])
            .await
            .unwrap();
        let party = Party {
            name,
            seat,
            addresses: both(&node),
            inside: true,
            pings: false,
        };
        scene.add(party, role == "subject").await;
    }
    let party = Party {
        name: "outside",
        seat: scene.stage.seat_outside(&host).unwrap(),
        addresses: both(&host),
        inside: false,
        pings: true,
    };
    scene.add(party, false).await;
    scene
}

/// What the subject's policy takes the peer for: also a process, whose address is the node's.
fn who(peer: &Party) -> Who {
    if peer.inside { Who::Workload } else { Who::Outside }
}

impl Scene {
    /// Serves at all ports that its role is asked at.
    async fn add(&mut self, party: Party, subject: bool) {
        let first = if subject { INGRESS } else { EGRESS };
        // Subject and peer processes share the node's addresses, not their ports.
        let addresses: Vec<SocketAddr> = party
            .addresses
            .iter()
            .flat_map(|a| CASES.iter().map(|c| SocketAddr::new(*a, first + c.port)))
            .collect();
        let serving = self.stage.serve_echo(&party.seat, party.name, &addresses);
        self._serving.push(serving.await.unwrap());
        let to = if subject {
            &mut self.subjects
        } else {
            &mut self.peers
        };
        to.push(party);
    }

    /// Asks from one to the other at all ports by TCP and UDP, and pings; answers with what was not as
    /// it should be.
    async fn judge(&self, from: &Party, to: &Party, first: u16, peer: Who) -> Vec<String> {
        let mut asked: Vec<(Target, &str, Verdict)> = Vec::new();
        for address in to.addresses {
            for case in CASES {
                let verdict = case.of(peer);
                let at = SocketAddr::new(address, first + case.port);
                asked.push((Target::Tcp(at), case.what, verdict));
                asked.push((Target::Udp(at), case.what, verdict));
            }
            if from.pings && to.pings {
                let verdict = if peer == Who::Workload { LET } else { NOT_ALLOWED };
                asked.push((Target::Icmp(address), "echo", verdict));
            }
        }
        let targets: Vec<Target> = asked.iter().map(|(t, ..)| *t).collect();
        let answers = self.stage.ask_echo(&from.seat, PATIENCE, &targets).await.unwrap();
        let wrong = asked
            .iter()
            .zip(&answers)
            .filter_map(|((target, what, verdict), answer)| {
                let wanted = matches!(verdict, Verdict::Let(_));
                (answer.is_ok() != wanted).then(|| {
                    format!(
                        "{} -> {} {target} ({what}): {answer:?}, {verdict:?}",
                        from.name, to.name
                    )
                })
            });
        wrong.collect()
    }

    /// All pairs, both ways; until all is as it should be, or for too long.
    async fn settled(&self) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let mut wrong = Vec::new();
            for subject in &self.subjects {
                for peer in &self.peers {
                    wrong.extend(self.judge(peer, subject, INGRESS, who(peer)).await);
                    wrong.extend(self.judge(subject, peer, EGRESS, who(peer)).await);
                }
            }
            if wrong.is_empty() || begun.elapsed() > SOON {
                return wrong;
            }
        }
    }

    /// The kernel's flows on the node, by direction, parties and port.
    async fn flows(&self) -> Vec<Value> {
        let mut observe = self.stage.weft(&self.stage.node("n1").unwrap().run_dir);
        observe.args(["observe", "--all", "-o", "json"]);
        let text = output(observe).await.unwrap();
        let lines = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        lines.map(|response| told(&response["flow"])).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_says_is_what_comes_through() {
    let scene = scene().await;
    let wrong = scene.settled().await;
    assert!(wrong.is_empty(), "{} wrong: {wrong:#?}", wrong.len());

    // And each is told, with its reason and its rule.
    let flows = scene.flows().await;
    let mut missing = Vec::new();
    for subject in &scene.subjects {
        for peer in &scene.peers {
            for (direction, first) in [("ingress", INGRESS), ("egress", EGRESS)] {
                for case in CASES {
                    let verdict = case.of(who(peer));
                    let (from, to) = match direction {
                        "ingress" => (peer, subject),
                        _ => (subject, peer),
                    };
                    let is = |party: &Party, flow: &Value| {
                        flow["app_id"] == party.name
                            || !party.inside
                                && party
                                    .addresses
                                    .iter()
                                    .any(|a| flow["address"] == a.to_string().as_str())
                    };
                    let told = flows.iter().any(|f| {
                        f["direction"] == direction
                            && is(from, &f["source"])
                            && is(to, &f["destination"])
                            && f["destination"]["port"] == first + case.port
                            && says(f, verdict)
                    });
                    if !told {
                        missing.push(format!(
                            "{} -> {} {direction} {} ({}): {verdict:?}",
                            from.name,
                            to.name,
                            first + case.port,
                            case.what
                        ));
                    }
                }
            }
        }
    }
    let sample: BTreeMap<String, &Value> = flows.iter().map(|f| (f["verdict"].to_string(), f)).collect();
    assert!(missing.is_empty(), "no flow tells {missing:#?}; {sample:#?}");
}

/// What is looked at here, in one place each.
fn told(flow: &Value) -> Value {
    let end = |name: &str| {
        let ports = flow["l4"].as_object().and_then(|l4| l4.values().next());
        json!({
            "app_id": flow["weft"][name]["app_id"],
            "address": flow["IP"][name],
            "port": ports.map(|p| p[format!("{name}_port")].clone()),
        })
    };
    json!({
        "direction": flow["traffic_direction"].as_str().map(str::to_lowercase),
        "verdict": flow["verdict"],
        "source": end("source"),
        "destination": end("destination"),
        "rule": flow["weft"]["rule"],
        "drop_reason": flow["weft"]["drop_reason"],
    })
}

fn says(flow: &Value, verdict: Verdict) -> bool {
    let has = |key: &str, word: &str| flow[key].as_str().is_some_and(|text| text.contains(word));
    match verdict {
        Verdict::Let(rule) => flow["verdict"] == "FORWARDED" && has("rule", rule),
        Verdict::Drop(reason, rule) => {
            flow["verdict"] == "DROPPED"
                && flow["drop_reason"] == reason
                && (rule.is_empty() || has("rule", rule))
        }
    }
}

/// A pod that speaks from another's address, or answers for it, does not get through; with its own it does.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_from_anothers_address() {
    let scene = scene().await;
    let wrong = scene.settled().await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    let stage = &scene.stage;
    let (peer, subject) = (&scene.peers[0], &scene.subjects[0]);
    let pod = stage.pod("subject-pod").unwrap().net.namespace().clone();
    let stolen = peer.addresses[0];
    pod.ip(&format!("address add {stolen}/32 dev lo\n")).unwrap();
    let target = SocketAddr::new(scene.peers[2].addresses[0], EGRESS + 6);
    let own = stage
        .ask_echo(
            &subject.seat,
            PATIENCE,
            &[Target::Tcp(target), Target::Udp(target)],
        )
        .await
        .unwrap();
    assert!(own.iter().all(weft_demo::stage::Answer::is_ok), "{own:?}");
    let link = stage.pod("subject-pod").unwrap().net.link().name().to_owned();
    pod.ip(&format!(
        "route replace {}/32 dev {link} src {stolen}\n",
        target.ip()
    ))
    .unwrap();
    let forged = stage
        .ask_echo(
            &subject.seat,
            PATIENCE,
            &[Target::Tcp(target), Target::Udp(target)],
        )
        .await
        .unwrap();
    assert!(!forged.iter().any(weft_demo::stage::Answer::is_ok), "{forged:?}");
    let flows = scene.flows().await;
    let told = flows.iter().any(|f| {
        f["drop_reason"] == "INVALID_SOURCE_IP"
            && f["verdict"] == "DROPPED"
            && f["source"]["app_id"] == "subject-pod"
    });
    assert!(told, "{:#?}", flows.last());
}
