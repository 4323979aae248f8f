//! Who asks whom, on one node and outside; what comes through, and what is told of it.

use crate::cases::{AUDITED, CASES, EGRESS, INGRESS, LET, NOT_ALLOWED, Verdict, Who, rules};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};
use weft_demo::{
    command::output,
    stage::{Seat, Stage, StageOptions, Target, labelled},
};
use weft_process_tests::{SOON, binary};
use weft_proto::weft::dataplane::v1::WorkloadSpec;
use weft_testnet::Node;

/// One target's time. Drops are silent, so that each refusal takes all of it; all targets are asked at once.
pub const PATIENCE: Duration = Duration::from_millis(1200);

/// By which a workload's policy is under audit, or is not.
pub const AUDIT: &str = "weft.dev/policy-audit-mode";

/// Somebody who asks or is asked.
pub struct Party {
    pub name: &'static str,
    pub seat: Seat,
    pub addresses: [IpAddr; 2],
    pub inside: bool,
    /// A process shares the node's address: an echo is the node's.
    pub pings: bool,
    /// What its own policy refuses passes, and is told.
    pub audited: bool,
}

impl Party {
    /// What the subject's policy takes it for: also a process, whose address is the node's.
    pub fn who(&self) -> Who {
        if self.inside { Who::Workload } else { Who::Outside }
    }

    /// Where it is asked as a subject: the first of its ports.
    pub fn ports(&self) -> u16 {
        if self.audited { AUDITED } else { INGRESS }
    }

    /// What becomes of that which is judged so, at this subject.
    pub fn verdict(&self, judged: Verdict) -> Verdict {
        if self.audited {
            judged.under_audit()
        } else {
            judged
        }
    }
}

/// What is judged of an echo, by whom it is exchanged with.
pub fn echo(who: Who) -> Verdict {
    match who {
        Who::Workload => LET,
        Who::Outside => NOT_ALLOWED,
    }
}

pub struct Scene {
    pub stage: Stage,
    /// Whom the policy selects.
    pub subjects: Vec<Party>,
    pub peers: Vec<Party>,
    serving: Vec<weft_testnet::Process>,
}

/// The control plane, without nodes.
pub async fn stage() -> Stage {
    let options = StageOptions {
        bin_dir: binary("weft-node").parent().unwrap().to_owned(),
        python: None,
    };
    let mut stage = Stage::new(&options).unwrap();
    for name in ["identity", "policy", "placement"] {
        stage.start_service(name).await.unwrap();
    }
    stage
}

pub fn both(node: &Node) -> [IpAddr; 2] {
    [node.v4().into(), node.v6().into()]
}

fn policy(name: &str, role: &str, ingress: u16, outside: &[IpAddr]) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  endpointSelector: {{matchLabels: {{role: {role}}}}}\n{}{}",
        rules("ingress", ingress, outside),
        rules("egress", EGRESS, outside),
    )
}

/// Subjects of the same rules, a pod and a process each: as they are, and under audit.
pub async fn scene() -> Scene {
    let mut stage = stage().await;
    stage.start_node("n1", &["default/*"]).await.unwrap();
    let host = stage.testnet().node("outside").unwrap();
    let node = stage.node("n1").unwrap().net.clone();
    for (name, role, ingress) in [
        ("matrix", "subject", INGRESS),
        ("matrix-audited", "audited", AUDITED),
    ] {
        let text = policy(name, role, ingress, &both(&host));
        stage.apply(&format!("{name}.yaml"), &text).unwrap();
    }
    let mut scene = Scene {
        subjects: Vec::new(),
        peers: Vec::new(),
        serving: Vec::new(),
        stage,
    };
    for (name, role) in [
        ("subject-pod", "subject"),
        ("audited-pod", "audited"),
        ("peer-pod", "peer"),
    ] {
        scene.stage.place("n1", workload(name, role)).await.unwrap();
        let party = Party {
            name,
            seat: scene.stage.seat(name).unwrap(),
            addresses: scene.stage.pod(name).unwrap().net.addresses(),
            inside: true,
            pings: true,
            audited: role == "audited",
        };
        scene.add(party, role != "peer").await;
    }
    for (name, role) in [
        ("subject-process", "subject"),
        ("audited-process", "audited"),
        ("peer-process", "peer"),
    ] {
        let placed = scene.stage.place_process("n1", workload(name, role)).await;
        let party = Party {
            name,
            seat: placed.unwrap(),
            addresses: both(&node),
            inside: true,
            pings: false,
            audited: role == "audited",
        };
        scene.add(party, role != "peer").await;
    }
    let party = Party {
        name: "outside",
        seat: scene.stage.seat_outside(&host).unwrap(),
        addresses: both(&host),
        inside: false,
        pings: true,
        audited: false,
    };
    scene.add(party, false).await;
    scene
}

fn workload(name: &str, role: &str) -> WorkloadSpec {
    let mut spec = labelled(name, &[("role", role)]);
    if role == "audited" {
        spec.annotations.insert(AUDIT.into(), "true".into());
    }
    spec
}

impl Scene {
    /// Serves at all ports that its role is asked at.
    async fn add(&mut self, party: Party, subject: bool) {
        let first = if subject { party.ports() } else { EGRESS };
        let addresses: Vec<SocketAddr> = party
            .addresses
            .iter()
            .flat_map(|a| CASES.iter().map(move |c| SocketAddr::new(*a, first + c.port)))
            .collect();
        let serving = self.stage.serve_echo(&party.seat, party.name, &addresses);
        self.serving.push(serving.await.unwrap());
        let to = if subject {
            &mut self.subjects
        } else {
            &mut self.peers
        };
        to.push(party);
    }

    /// Asks from one to the other at all ports by TCP and UDP, and pings; answers with what was not as
    /// it should be.
    async fn judge(&self, subject: &Party, peer: &Party, ingress: bool) -> Vec<String> {
        let (from, to, first) = match ingress {
            true => (peer, subject, subject.ports()),
            false => (subject, peer, EGRESS),
        };
        let mut asked: Vec<(Target, &str, Verdict)> = Vec::new();
        for address in to.addresses {
            for case in CASES {
                let verdict = subject.verdict(case.of(peer.who()));
                let at = SocketAddr::new(address, first + case.port);
                asked.push((Target::Tcp(at), case.what, verdict));
                asked.push((Target::Udp(at), case.what, verdict));
            }
            if from.pings && to.pings {
                let verdict = subject.verdict(echo(peer.who()));
                asked.push((Target::Icmp(address), "echo", verdict));
            }
        }
        let targets: Vec<Target> = asked.iter().map(|(t, ..)| *t).collect();
        let answers = self.stage.ask_echo(&from.seat, PATIENCE, &targets).await.unwrap();
        let both = asked.iter().zip(&answers);
        let wrong = both.filter(|((.., verdict), answer)| answer.is_ok() != verdict.passes());
        let wrong = wrong.map(|((target, what, verdict), answer)| {
            let (from, to) = (from.name, to.name);
            format!("{from} -> {to} {target} ({what}): {answer:?}, {verdict:?}")
        });
        wrong.collect()
    }

    /// All pairs, both ways; until all is as it should be, or for too long. Answers with what is not, and
    /// with what the last round was told of: the node keeps no more than some rounds' flows.
    pub async fn settled(&self) -> (Vec<String>, Vec<Value>) {
        let begun = Instant::now();
        loop {
            let (mut wrong, mut flows) = (Vec::new(), Vec::new());
            for subject in &self.subjects {
                for peer in &self.peers {
                    wrong.extend(self.judge(subject, peer, true).await);
                    wrong.extend(self.judge(subject, peer, false).await);
                }
                flows.extend(flows_of(&self.stage).await);
            }
            if wrong.is_empty() || begun.elapsed() > SOON {
                return (wrong, flows);
            }
        }
    }
}

/// The flows on the node, as far as they are looked at here.
pub async fn flows_of(stage: &Stage) -> Vec<Value> {
    let mut observe = stage.weft(&stage.node("n1").unwrap().run_dir);
    observe.args(["observe", "--all", "-o", "json"]);
    let text = output(observe).await.unwrap();
    let lines = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    lines.map(|response| told(&response["flow"])).collect()
}

/// What is looked at here, in one place each.
fn told(flow: &Value) -> Value {
    let l4 = flow["l4"].as_object().and_then(|l4| l4.iter().next());
    let end = |name: &str| {
        json!({
            "app_id": flow["weft"][name]["app_id"],
            "address": flow["IP"][name],
            "port": l4.map(|(_, p)| p[format!("{name}_port")].clone()),
        })
    };
    json!({
        "direction": flow["traffic_direction"].as_str().map(str::to_lowercase),
        "verdict": flow["verdict"],
        "protocol": l4.map(|(protocol, _)| protocol),
        "version": flow["IP"]["ipVersion"],
        "source": end("source"),
        "destination": end("destination"),
        "rule": flow["weft"]["rule"],
        "drop_reason": flow["weft"]["drop_reason"],
    })
}

/// Whether a flow says what was judged.
pub fn says(flow: &Value, verdict: Verdict) -> bool {
    let has = |key: &str, word: &str| flow[key].as_str().is_some_and(|text| text.contains(word));
    let because = |told: &str, reason: &str, rule: &str| {
        flow["verdict"] == told && flow["drop_reason"] == reason && (rule.is_empty() || has("rule", rule))
    };
    match verdict {
        Verdict::Let(rule) => flow["verdict"] == "FORWARDED" && has("rule", rule),
        Verdict::Drop(reason, rule) => because("DROPPED", reason, rule),
        Verdict::Audit(reason, rule) => because("AUDIT", reason, rule),
    }
}

/// Whether an end of a flow is this one.
pub fn is(party: &Party, end: &Value) -> bool {
    let at = |a: &IpAddr| end["address"] == a.to_string().as_str();
    end["app_id"] == party.name || !party.inside && party.addresses.iter().any(at)
}
