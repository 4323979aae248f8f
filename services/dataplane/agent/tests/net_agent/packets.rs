//! What the kernel judges by itself, between pods of one node, is told as flows: who, whom, by which
//! rule, and why not.

use crate::{
    carrying::script,
    rig::{Rig, SOON},
};
use std::{
    io::Write,
    net::{IpAddr, TcpListener},
    path::PathBuf,
    time::{Duration, Instant},
};
use weft_proto::weft::dataplane::v1::{Flow, Verdict, workload_spec::Place};
use weft_testnet::Pod;

const CART: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: cart, namespace: default}
spec:
  endpointSelector: {matchLabels: {dapr.io/app-id: cart}}
  ingress:
  - fromEndpoints: [{matchLabels: {dapr.io/app-id: shop}}]
    toPorts: [{ports: [{port: "7000", protocol: TCP}]}]
"#;

fn greet(listener: TcpListener) {
    for mut stream in listener.incoming().map_while(Result::ok) {
        let _ = stream.write_all(b"hello\n");
    }
}

fn call(pod: &Pod, cgroup: &std::path::Path, to: IpAddr) -> String {
    // Two seconds suffice for a SYN that is sent again.
    let call = format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{to}/7000 && head -n 1 <&3'; true");
    script(pod, cgroup, &call)
}

/// The packet that a source was judged by at the cart's side.
fn judged<'a>(flows: &'a [Flow], source: &str, verdict: Verdict) -> Option<&'a Flow> {
    flows.iter().find(|f| {
        f.kind == "packet"
            && f.verdict() == verdict
            && f.direction == "ingress"
            && f.source.as_ref().is_some_and(|s| s.app_id == source)
            && f.destination.as_ref().is_some_and(|d| d.app_id == "cart")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_connections_are_judged_in_the_kernel_and_told() {
    let rig = Rig::new(&[("cart.yaml", CART)], &["n1"]);
    let node = &rig.nodes[0];
    let mut pods: Vec<(Pod, PathBuf)> = Vec::new();
    for name in ["cart", "shop", "thief"] {
        let pod = node.node.pod(name).unwrap();
        let place = Place::NetnsPath(pod.namespace().path().to_str().unwrap().into());
        let placed = node.add(name, 0, place).await;
        pods.push((pod, PathBuf::from(placed.cgroup)));
    }
    let [(cart, _), shop, thief] = &pods[..] else {
        unreachable!("three were added")
    };
    let to: IpAddr = cart.v4().into();
    let listener = cart.namespace().listen(format!("{to}:7000")).unwrap();
    std::thread::spawn(move || greet(listener));

    assert_eq!(call(&shop.0, &shop.1, to).trim(), "hello");
    assert_eq!(
        call(&thief.0, &thief.1, to).trim(),
        "",
        "it differs in its name only"
    );

    let deadline = Instant::now() + SOON;
    loop {
        let flows = node.flows("").await;
        let allowed = judged(&flows, "shop", Verdict::Forwarded);
        let refused = judged(&flows, "thief", Verdict::Dropped);
        if let (Some(allowed), Some(refused)) = (allowed, refused) {
            assert!(allowed.rule.contains("default/cart"), "{allowed:?}");
            assert_eq!((allowed.protocol.as_str(), &*allowed.drop_reason), ("TCP", ""));
            assert_eq!(refused.drop_reason, "POLICY_DENIED", "{refused:?}");
            for flow in [allowed, refused] {
                let (source, destination) =
                    (flow.source.as_ref().unwrap(), flow.destination.as_ref().unwrap());
                assert!(source.identity >= 256 && destination.identity >= 256, "{flow:?}");
                assert_ne!(source.identity, destination.identity);
                assert_eq!(
                    (destination.port, &*destination.address),
                    (7000, &*to.to_string())
                );
                assert_eq!(flow.caller_proof, "pod-listener");
            }
            return;
        }
        assert!(Instant::now() < deadline, "not told: {flows:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
