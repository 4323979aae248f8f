//! What the kernel judges by itself, between pods of one node, is told as flows: who, whom, by which
//! rule, and why not.

use crate::{
    carrying::script,
    flows::{Flow, Verdict},
    rig::{Rig, SOON, signal},
};
use nix::sys::signal::Signal;
use std::{
    io::Write,
    net::{IpAddr, TcpListener, UdpSocket},
    path::PathBuf,
    time::{Duration, Instant},
};
use weft_proto::{
    hubble::observer::{GetFlowsRequest, get_flows_response::ResponseTypes, observer_client::ObserverClient},
    weft::dataplane::v1::{GetRequest, status_client::StatusClient, workload_spec::Place},
};
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
            assert_eq!((allowed.protocol, &*allowed.drop_reason), ("TCP", ""));
            assert_eq!(refused.drop_reason, "POLICY_DENIED", "{refused:?}");
            // No rule speaks of it; told is which policy lets nothing else in.
            let by = "no rule of CiliumNetworkPolicy/default/cart: ingress";
            assert!(refused.rule.starts_with(by), "{refused:?}");
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

/// While the agent does not read, the kernel's buffer fills: what found no room is counted, and whoever
/// follows the flows is told; so is the status.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_found_no_room_are_told() {
    /// Each is refused and told; the buffer has room for a third of them.
    const DATAGRAMS: usize = 30_000;
    let rig = Rig::new(&[("cart.yaml", CART)], &["n1"]);
    let node = &rig.nodes[0];
    let [cart, thief] = ["cart", "thief"].map(|name| node.node.pod(name).unwrap());
    for pod in [&cart, &thief] {
        let place = Place::NetnsPath(pod.namespace().path().to_str().unwrap().into());
        node.add(pod.name(), 0, place).await;
    }
    let request = GetFlowsRequest {
        follow: true,
        ..Default::default()
    };
    let mut flows = ObserverClient::new(node.hubble());
    let mut following = flows.get_flows(request).await.unwrap().into_inner();
    let mut status = StatusClient::new(node.channel());
    let mut shown = async || {
        let told = status.get(GetRequest::default()).await.unwrap().into_inner();
        told.datapath.unwrap().events_lost
    };
    assert_eq!(shown().await, 0);

    let agent = node.agent();
    signal(agent, Signal::SIGSTOP);
    let to = (cart.v4(), 9);
    let flood = || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        // The first ones may wait for the neighbour's address.
        (0..DATAGRAMS)
            .filter(|_| socket.send_to(b"flood", to).is_ok())
            .count()
    };
    let sent = thief.namespace().run(flood).unwrap();
    signal(agent, Signal::SIGCONT);
    assert_eq!(sent, DATAGRAMS);

    let (mut refused, mut lost) = (0, 0);
    let told = async {
        while refused == 0 || lost == 0 {
            match following.message().await.unwrap().unwrap().response_types {
                Some(ResponseTypes::Flow(flow)) if flow.verdict() == Verdict::Dropped => refused += 1,
                Some(ResponseTypes::LostEvents(event)) => lost += event.num_events_lost,
                _ => {}
            }
        }
    };
    tokio::time::timeout(SOON, told).await.unwrap();
    let begun = Instant::now();
    while shown().await == 0 {
        assert!(begun.elapsed() < SOON, "the status does not say so");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!(
        "{refused} refused and {lost} lost were told; the status says {}",
        shown().await
    );
}
