//! The APIs of shared endpoints beside plain HTTP: gRPC with Dapr's own SDK, metrics, and all of it by IPv6.

use crate::{
    flows::Verdict,
    rig::{Running, SOON},
    shared::{POLICIES, Scene, eventually, flows, run, script},
    spiffe::python,
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    io::Read,
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};
use weft_proto::weft::dataplane::v1::{GetRequest, status_client::StatusClient};
use weft_testnet::{Namespace, Spawn};

const STORE: &str = r#"
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: store, namespace: default}
spec: {type: state.in-memory, version: v1, metadata: []}
"#;
/// One more who may speak as the app, by gRPC.
const SHOP_MAY: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: shop-by-grpc, namespace: default}
spec:
  endpointSelector: {matchLabels: {dapr.io/app-id: ingress}}
  ingress:
  - fromEndpoints: [{matchLabels: {dapr.io/app-id: shop}}]
    toPorts: [{ports: [{port: "50001", protocol: TCP}, {port: "3500", protocol: TCP}]}]
"#;
const V6: &str = "fd00:10:96::10";

/// What the SDK is told in a workload.
fn sdk(place: &Namespace, cgroup: &Path, host: &str) -> Value {
    let mut command = Command::new(python());
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/net_agent/shared_client.py"))
        .args([format!("{host}:3500"), format!("{host}:50001")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut client = place.spawn(command, &Spawn::root().cgroup(cgroup)).unwrap();
    let mut out = String::new();
    client.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    // The SDK itself says on the same stream what it waits for.
    out.lines()
        .last()
        .map_or(Value::Null, |told| serde_json::from_str(told).unwrap())
}

/// Asks until the SDK has been answered.
async fn answered(place: &Namespace, cgroup: &Path, host: &str) -> Value {
    let deadline = Instant::now() + SOON;
    loop {
        let told = tokio::task::block_in_place(|| sdk(place, cgroup, host));
        if told["state"] == "value" {
            return told;
        }
        assert!(Instant::now() < deadline, "{told}");
    }
}

/// The addresses of the shared app `ingress` on a node.
async fn addresses(node: &Running) -> Vec<IpAddr> {
    let status = StatusClient::new(node.channel())
        .get(GetRequest {})
        .await
        .unwrap();
    let name = format!("ingress-shared-{}", node.node.name());
    let workloads = status.into_inner().workloads;
    let found = workloads.iter().find(|w| w.name == name).unwrap();
    found.addresses.iter().map(|a| a.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn daprs_sdk_speaks_as_a_shared_app_by_grpc_and_its_metrics_count_that() {
    let scene = Scene::new(&[("store.yaml", STORE)]).await;
    scene.ready().await;
    for (place, cgroup) in scene.callers() {
        let told = answered(place, cgroup, "10.96.8.10").await;
        assert_eq!(
            (&told["app_id"], &told["none"]),
            (&"ingress".into(), &"INVALID_ARGUMENT".into()),
            "{told}"
        );
        // The app is asked by the shared one, by gRPC as by HTTP; what the caller says of it is not believed.
        for answer in [&told["answer"], &told["by_grpc"]] {
            let answer = answer.as_str().unwrap();
            let (name, head) = answer.split_once('\n').unwrap();
            assert!(name.starts_with("whoami-v"), "{answer}");
            let head = head.to_lowercase();
            assert!(head.starts_with("get /x?y=1 http/1.1"), "{answer}");
            for line in [
                "dapr-caller-app-id: ingress\r\n",
                "dapr-callee-app-id: whoami\r\n",
            ] {
                assert!(head.contains(line), "{answer}");
            }
            assert!(!head.contains("1.2.3.4") && !head.contains("admin"), "{answer}");
        }
    }
    // Its metrics, at the address of the endpoint on this node.
    let (place, cgroup) = scene.callers()[0];
    let all = addresses(&scene.rig.nodes[0]).await;
    let own = all.iter().find(|a| a.is_ipv4()).unwrap().to_string();
    let get = |path: &str| {
        run(
            place,
            cgroup,
            &format!(
                "exec 3<>/dev/tcp/{own}/9090 || exit; printf 'GET {path} HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n' >&3; timeout 10 cat <&3"
            ),
        )
    };
    // Which of the two endpoints a client gets is by chance.
    let mut text = String::new();
    eventually("no call is counted", async || {
        sdk(place, cgroup, "10.96.8.10");
        text = get("/metrics");
        text.contains("Dapr/SaveState\",grpc_server_status=\"OK\"}")
    })
    .await;
    for line in [
        "HTTP/1.1 200 OK\r\n",
        "# TYPE dapr_grpc_io_server_completed_rpcs counter\n",
        "grpc_server_method=\"dapr.proto.runtime.v1.Dapr/GetState\",grpc_server_status=\"INVALID_ARGUMENT\"}",
        "dapr_http_server_request_count{app_id=\"ingress\",method=\"GET\",status=\"200\"}",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert!(get("/other").starts_with("HTTP/1.1 404 "));

    // By policy: who may is one rule's, by gRPC as by HTTP.
    scene
        .rig
        .write("policies.yaml", &format!("{POLICIES}---{SHOP_MAY}"));
    let [(shop, shop_cgroup), (worker, worker_cgroup)] = scene.callers();
    eventually("it still may", async || {
        sdk(worker, worker_cgroup, "10.96.8.10").get("refused").is_some()
    })
    .await;
    assert_eq!(get("/metrics"), "");
    answered(shop, shop_cgroup, "10.96.8.10").await;
    let refused = run(
        worker,
        worker_cgroup,
        &format!("exec 3<>/dev/tcp/{own}/50001 && cat <&3"),
    );
    assert_eq!(refused, "");
    let mut all = flows(&scene.rig.nodes[0]).await;
    all.extend(flows(&scene.rig.nodes[1]).await);
    for (app, port) in [("worker", 50001), ("shop", 9090)] {
        let dropped = all.iter().find(|f| {
            f.verdict() == Verdict::Dropped
                && f.source.as_ref().is_some_and(|s| s.app_id == app)
                && f.destination.as_ref().is_some_and(|d| d.port == port)
        });
        let dropped = dropped.unwrap_or_else(|| panic!("{app} {port}"));
        assert_eq!(dropped.drop_reason, "POLICY_DENIED");
        assert!(
            dropped.rule.contains("default/ingress-from-gateway"),
            "{}",
            dropped.rule
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_endpoint_is_reached_by_ipv6_on_both_nodes() {
    let scene = Scene::new(&[]).await;
    scene.ready().await;
    let invoke = "/v1.0/invoke/whoami.default/method//x?y=1";
    for (place, cgroup) in scene.callers() {
        let mut hands = BTreeSet::new();
        eventually("not by both nodes' endpoints", async || {
            let answer = script(place, cgroup, &format!("{V6}:3500"), invoke);
            if answer.status != 200 {
                return false;
            }
            assert_eq!(answer.line, "GET /x?y=1 HTTP/1.1");
            assert_eq!(answer.header("dapr-caller-app-id"), ["ingress"]);
            let [by] = answer.header("x-forwarded-for")[..] else {
                panic!("{answer:?}")
            };
            assert!(!by.contains("1.2.3.4"), "forged: {by}");
            hands.insert(by.split(", ").nth(1).unwrap_or_default().to_owned());
            hands.len() == 2
        })
        .await;
    }
    // By its own addresses too, of this node and of the other.
    let (place, cgroup) = scene.callers()[0];
    let mut own = Vec::new();
    for node in &scene.rig.nodes {
        let all = addresses(node).await;
        own.push(all.into_iter().find(IpAddr::is_ipv6).unwrap());
    }
    for address in &own {
        let answer = script(place, cgroup, &format!("{address}:3500"), invoke);
        assert_eq!(answer.status, 200, "{address}: {answer:?}");
        assert_eq!(script(place, cgroup, &format!("{address}:80"), invoke).status, 0);
    }
    scene
        .rig
        .write("policies.yaml", &format!("{POLICIES}---{SHOP_MAY}"));
    let [(shop, shop_cgroup), (worker, worker_cgroup)] = scene.callers();
    eventually("it still may", async || {
        script(worker, worker_cgroup, &format!("{V6}:3500"), "/v1.0/healthz").status == 0
    })
    .await;
    // The twin differs in who asks.
    for address in own {
        let health =
            |place, cgroup| script(place, cgroup, &format!("{address}:3500"), "/v1.0/healthz").status;
        assert_eq!(
            (health(shop, shop_cgroup), health(worker, worker_cgroup)),
            (204, 0),
            "{address}"
        );
    }
    let mut all = flows(&scene.rig.nodes[0]).await;
    all.extend(flows(&scene.rig.nodes[1]).await);
    let dropped = all.iter().any(|f| {
        f.verdict() == Verdict::Dropped
            && f.destination.as_ref().is_some_and(|d| d.port == 3500)
            && f.source.as_ref().is_some_and(|s| s.app_id == "worker")
            && f.rule.contains("default/ingress-from-gateway")
    });
    assert!(dropped, "no flow tells of it");
}
