//! Every case, between every two, both ways: what comes through, and that each is told by itself.

use crate::{
    cases::{CASES, EGRESS, Verdict},
    scene::{Party, Scene, echo, is, says, scene},
};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// One exchange that must be told.
struct Wanted<'a> {
    direction: &'static str,
    from: &'a Party,
    to: &'a Party,
    version: &'static str,
    protocol: String,
    /// Of ICMP there is none.
    port: Option<u16>,
    what: &'static str,
    verdict: Verdict,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_says_is_what_comes_through() {
    let scene = scene().await;
    let (wrong, flows) = scene.settled().await;
    assert!(wrong.is_empty(), "{} wrong: {wrong:#?}", wrong.len());

    // And each is told, with its reason and its rule.
    let mut by_port: HashMap<Option<u64>, Vec<&Value>> = HashMap::new();
    for flow in &flows {
        let port = flow["destination"]["port"].as_u64();
        by_port.entry(port).or_default().push(flow);
    }
    let (mut missing, mut counts) = (Vec::new(), BTreeMap::new());
    for wanted in wanted(&scene) {
        *counts.entry(kind(wanted.verdict)).or_insert(0) += 1;
        let told = by_port.get(&wanted.port.map(u64::from)).into_iter().flatten();
        if !{ told }.any(|flow| wanted.is_told_by(flow)) {
            missing.push(format!(
                "{} -> {} {} {} {} {:?} ({}): {:?}",
                wanted.from.name,
                wanted.to.name,
                wanted.direction,
                wanted.version,
                wanted.protocol,
                wanted.port,
                wanted.what,
                wanted.verdict
            ));
        }
    }
    println!("told: {counts:?}");
    let sample: BTreeMap<String, &Value> = flows.iter().map(|f| (f["verdict"].to_string(), f)).collect();
    assert!(missing.is_empty(), "no flow tells {missing:#?}; {sample:#?}");
}

fn kind(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Let(_) => "forwarded",
        Verdict::Drop(..) => "dropped",
        Verdict::Audit(..) => "audit",
    }
}

fn wanted(scene: &Scene) -> Vec<Wanted<'_>> {
    let mut all = Vec::new();
    for (subject, peer) in scene
        .subjects
        .iter()
        .flat_map(|s| scene.peers.iter().map(move |p| (s, p)))
    {
        for (direction, from, to, first) in [
            ("ingress", peer, subject, subject.ports()),
            ("egress", subject, peer, EGRESS),
        ] {
            for version in ["IPv4", "IPv6"] {
                let of = |protocol: &str, port, what, judged| Wanted {
                    direction,
                    from,
                    to,
                    version,
                    protocol: protocol.to_owned(),
                    port,
                    what,
                    verdict: subject.verdict(judged),
                };
                for case in CASES {
                    for protocol in ["TCP", "UDP"] {
                        all.push(of(
                            protocol,
                            Some(first + case.port),
                            case.what,
                            case.of(peer.who()),
                        ));
                    }
                }
                if from.pings && to.pings {
                    let protocol = format!("ICMP{}", &version[2..]);
                    all.push(of(&protocol, None, "echo", echo(peer.who())));
                }
            }
        }
    }
    all
}

impl Wanted<'_> {
    fn is_told_by(&self, flow: &Value) -> bool {
        flow["direction"] == self.direction
            && flow["version"] == self.version
            && flow["protocol"] == self.protocol.as_str()
            && is(self.from, &flow["source"])
            && is(self.to, &flow["destination"])
            && says(flow, self.verdict)
    }
}
