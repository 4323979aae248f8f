//! The node's option: all of a node under audit, but for who says otherwise.

use crate::{
    cases::Verdict,
    scene::{AUDIT, PATIENCE, both, flows_of, says, stage},
};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};
use weft_demo::stage::{Answer, Target, labelled};
use weft_process_tests::SOON;

const PORT: u16 = 2000;
/// Nobody is let in.
const SHUT: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: shut, namespace: default}
spec: {endpointSelector: {matchLabels: {role: subject}}, ingress: [{}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn a_node_under_audit_lets_pass_what_policy_refuses_but_for_whom_it_is_not() {
    let mut stage = stage().await;
    stage.apply("shut.yaml", SHUT).unwrap();
    let flags = ["--policy-audit-mode"];
    stage.start_node_with("n1", &["default/*"], &flags).await.unwrap();
    let host = stage.testnet().node("outside").unwrap();
    let outside = stage.seat_outside(&host).unwrap();
    let mut serving = Vec::new();
    // They differ in the annotation only; the process has no address of its own.
    for (name, annotation) in [("audited", None), ("enforced", Some("false"))] {
        let mut spec = labelled(name, &[("role", "subject")]);
        spec.annotations
            .extend(annotation.map(|a| (AUDIT.to_owned(), a.to_owned())));
        stage.place("n1", spec).await.unwrap();
        let addresses = stage.pod(name).unwrap().net.addresses();
        let seat = stage.seat(name).unwrap();
        let at = addresses.map(|a| SocketAddr::new(a, PORT));
        serving.push(stage.serve_echo(&seat, name, &at).await.unwrap());
    }
    let mut spec = labelled("process", &[("role", "subject")]);
    spec.annotations.clear();
    let seat = stage.place_process("n1", spec).await.unwrap();
    let node = both(&stage.node("n1").unwrap().net);
    let at = node.map(|a| SocketAddr::new(a, PORT));
    serving.push(stage.serve_echo(&seat, "process", &at).await.unwrap());

    let pod = |name: &str| stage.pod(name).unwrap().net.addresses();
    let (audited, enforced) = (pod("audited"), pod("enforced"));
    let targets = |addresses: [std::net::IpAddr; 2], pings: bool| -> Vec<Target> {
        let of = |a| {
            let at = SocketAddr::new(a, PORT);
            let echo = pings.then_some(Target::Icmp(a));
            [Target::Tcp(at), Target::Udp(at)].into_iter().chain(echo)
        };
        addresses.into_iter().flat_map(of).collect()
    };
    let pass = [targets(audited, true), targets(node, false)].concat();
    let refused = targets(enforced, true);
    let begun = Instant::now();
    loop {
        let passed = stage.ask_echo(&outside, PATIENCE, &pass).await.unwrap();
        let dropped = stage.ask_echo(&outside, PATIENCE, &refused).await.unwrap();
        let right = passed.iter().all(Answer::is_ok) && !dropped.iter().any(Answer::is_ok);
        if right {
            break;
        }
        assert!(begun.elapsed() < SOON, "{passed:?} {dropped:?}");
    }

    const WHY: &str = "no rule of CiliumNetworkPolicy/default/shut";
    let wanted = [
        ("audited", Verdict::Audit("POLICY_DENIED", WHY)),
        ("process", Verdict::Audit("POLICY_DENIED", WHY)),
        ("enforced", Verdict::Drop("POLICY_DENIED", WHY)),
    ];
    let begun = Instant::now();
    loop {
        let flows = flows_of(&stage).await;
        let told = |name: &str, verdict, protocol: &str, version: &str| {
            flows.iter().any(|f| {
                f["direction"] == "ingress"
                    && f["destination"]["app_id"] == name
                    && f["protocol"] == protocol
                    && f["version"] == version
                    && says(f, verdict)
            })
        };
        let mut missing = Vec::new();
        for (name, verdict) in wanted {
            for version in ["IPv4", "IPv6"] {
                let echo = format!("ICMP{}", &version[2..]);
                for protocol in ["TCP", "UDP", &echo] {
                    let is_asked = name != "process" || protocol != echo;
                    if is_asked && !told(name, verdict, protocol, version) {
                        missing.push((name, version, protocol.to_owned()));
                    }
                }
            }
        }
        if missing.is_empty() {
            return;
        }
        assert!(
            begun.elapsed() < SOON,
            "not told: {missing:?}; {:#?}",
            flows.last()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
