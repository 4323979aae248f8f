//! HTTP between workloads of two nodes: routes of Services, and rules about single requests; from pods
//! and processes alike.

use crate::{
    flows::{Flow, Verdict},
    rig::{Rig, Running, SOON},
};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use weft_proto::weft::dataplane::v1::workload_spec::Place;
use weft_testnet::{Namespace, Pod, Process, Spawn};

pub const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: whoami, namespace: default}
spec:
  clusterIPs: ["10.96.8.1"]
  selector: {app: v1}
  ports: [{name: http, port: 80, targetPort: 8081}]
---
apiVersion: v1
kind: Service
metadata: {name: whoami-v1, namespace: default}
spec:
  clusterIPs: ["10.96.8.2"]
  selector: {app: v1}
  ports: [{name: http, port: 80, targetPort: 8081}]
---
apiVersion: v1
kind: Service
metadata: {name: whoami-v2, namespace: default}
spec:
  clusterIPs: ["10.96.8.3"]
  selector: {app: v2}
  ports: [{name: http, port: 80, targetPort: 8082}]
"#;
pub const WHOAMI: &str = "10.96.8.1:80";

fn split(one: u32, two: u32) -> String {
    format!(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: split, namespace: default}}
spec:
  parentRefs: [{{group: "", kind: Service, name: whoami, port: 80}}]
  rules:
  - backendRefs:
    - {{name: whoami-v1, port: 80, weight: {one}}}
    - {{name: whoami-v2, port: 80, weight: {two}}}
"#
    )
}

const RULES: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: public, namespace: default}
spec:
  endpointSelector: {matchLabels: {dapr.io/app-id: v1}}
  ingress:
  - fromEndpoints: [{matchLabels: {dapr.io/app-id: shop}}, {matchLabels: {dapr.io/app-id: worker}}]
    toPorts:
    - ports: [{port: "8081", protocol: TCP}]
      rules: {http: [{method: GET, path: "/public/.*"}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: reader, namespace: default}
spec:
  endpointSelector: {matchLabels: {dapr.io/app-id: shop}}
  egress:
  - toEndpoints: [{matchLabels: {dapr.io/app-id: v2}}]
    toPorts:
    - ports: [{port: "8082", protocol: TCP}]
      rules: {http: [{method: GET}]}
  - toEndpoints: [{matchLabels: {dapr.io/app-id: v1}}]
"#;

const TO: &str = "WEFT_TEST_TO";
const FOR: &str = "WEFT_TEST_MILLISECONDS";
pub const CONNECTIONS: u64 = 16;
/// Requests a second in all, at which a client aims; proof of "no request fails" asks for 500.
const PACE: u64 = 800;

/// An app that answers each request with its name and the path.
pub fn serve(name: &str, listener: TcpListener) {
    let name = name.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let name = name.clone();
            std::thread::spawn(move || answer(&name, &stream));
        }
    });
}

fn answer(name: &str, mut stream: &TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let body = format!("{name} {}", head.split(' ').nth(1)?);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).ok()?;
        if head.to_lowercase().contains("\r\nconnection: close\r\n") {
            return None;
        }
    }
}

/// Asks in a workload: over sixteen connections for so long, each reply checked by a unique path, no
/// request tried twice. Says how often each app answered, or what went wrong.
pub fn load(place: &Namespace, cgroup: &Path, to: &str, time: Duration) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["requests::is_a_client", "--exact", "--ignored", "--nocapture"]);
    command.env(TO, to).env(FOR, time.as_millis().to_string());
    command.stdout(Stdio::piped());
    place.spawn(command, &Spawn::root().cgroup(cgroup)).unwrap()
}

pub fn counts(mut client: Process) -> BTreeMap<String, u64> {
    let mut said = String::new();
    client.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let mut counts = BTreeMap::new();
    for line in said.lines().filter_map(|line| line.strip_prefix("COUNT ")) {
        let (name, count) = line.split_once(' ').unwrap();
        *counts.entry(name.to_owned()).or_default() += count.parse::<u64>().unwrap();
    }
    assert!(said.contains("test result: ok"), "a request failed: {said}");
    counts
}

#[test]
#[ignore = "started by the tests here"]
fn is_a_client() {
    let (Ok(to), Ok(time)) = (std::env::var(TO), std::env::var(FOR)) else {
        return;
    };
    let time = Duration::from_millis(time.parse().unwrap());
    let clients = (0..CONNECTIONS).map(|client| {
        let to = to.clone();
        std::thread::spawn(move || client_of(client, &to, time))
    });
    for client in clients.collect::<Vec<_>>() {
        for (name, count) in client.join().unwrap() {
            println!("COUNT {name} {count}");
        }
    }
}

fn client_of(client: u64, to: &str, time: Duration) -> BTreeMap<String, u64> {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let (started, mut counts, mut asked) = (Instant::now(), BTreeMap::new(), 0_u64);
    while started.elapsed() < time {
        let path = format!("/public/{client}-{asked}");
        let (status, body) = ask(&mut stream, "GET", &path);
        let (name, seen) = body.split_once(' ').unwrap_or_default();
        assert_eq!((status, seen), (200, &*path));
        *counts.entry(name.to_owned()).or_default() += 1;
        asked += 1;
        let due = Duration::from_micros(asked * CONNECTIONS * 1_000_000 / PACE);
        std::thread::sleep(due.saturating_sub(started.elapsed()));
    }
    counts
}

fn ask(stream: &mut TcpStream, method: &str, path: &str) -> (u16, String) {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: whoami\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0, "closed after {head:?}");
        if let Some((_, value)) = line.to_lowercase().split_once("content-length: ") {
            length = value.trim().parse().unwrap();
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    (head[9..12].parse().unwrap(), String::from_utf8(body).unwrap())
}

/// Asks once from a workload, by bash.
pub fn once(place: &Namespace, cgroup: &Path, to: &str, method: &str, path: &str) -> String {
    let (host, port) = to.rsplit_once(':').unwrap();
    let host = host.trim_matches(['[', ']']);
    let mut command = Command::new("bash");
    let script = format!(
        "exec 3<>/dev/tcp/{host}/{port} || exit; \
         printf '{method} {path} HTTP/1.1\\r\\nhost: whoami\\r\\nconnection: close\\r\\n\\r\\n' >&3; \
         timeout 10 cat <&3"
    );
    command.args(["-c", &script]).stdout(Stdio::piped());
    let mut process = place.spawn(command, &Spawn::nobody().cgroup(cgroup)).unwrap();
    let mut answer = String::new();
    process
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut answer)
        .unwrap();
    answer
}

async fn until(wanted: &str, ask: impl FnMut() -> String) {
    crate::rig::ask_until(wanted, ask).await;
}

pub async fn pod(node: &Running, name: &str) -> (Pod, PathBuf) {
    let pod = node.node.pod(name).unwrap();
    let place = Place::NetnsPath(pod.namespace().path().to_str().unwrap().into());
    let placed = node.add(name, 0, place).await;
    (pod, PathBuf::from(placed.cgroup))
}

/// App v1 in a pod here, app v2 as a process there; a pod and a process here that ask.
pub(crate) struct Scene {
    pub(crate) rig: Rig,
    shop: (Pod, PathBuf),
    worker: (PathBuf, Process),
    _v1: Pod,
}

pub(crate) async fn scene(manifests: &[(&str, &str)]) -> Scene {
    let rig = Rig::new(manifests, &["n1", "n2"]);
    let (near, far) = (&rig.nodes[0], &rig.nodes[1]);
    let shop = pod(near, "shop").await;
    let worker = near.add_process("worker").await;
    let (v1, _) = pod(near, "v1").await;
    serve("v1", v1.namespace().listen("0.0.0.0:8081").unwrap());
    far.add("v2", 8082, Place::Process(Default::default())).await;
    serve("v2", far.node.namespace().listen("0.0.0.0:8082").unwrap());
    Scene {
        rig,
        shop,
        worker,
        _v1: v1,
    }
}

impl Scene {
    /// The two who ask: where they are, and their cgroups.
    fn callers(&self) -> [(&Namespace, &Path); 2] {
        [
            (self.shop.0.namespace(), &self.shop.1),
            (self.rig.nodes[0].node.namespace(), &self.worker.0),
        ]
    }
}

fn within(counts: &BTreeMap<String, u64>, percent: f64) {
    let get = |name: &str| counts.get(name).copied().unwrap_or(0);
    let (one, two) = (get("v1"), get("v2"));
    let n = (one + two) as f64;
    let (mean, deviation) = (
        n * percent / 100.0,
        (n * percent / 100.0 * (1.0 - percent / 100.0)).sqrt(),
    );
    assert!(
        (two as f64 - mean).abs() <= 5.0 * deviation,
        "{counts:?}: {mean} ± {} were wanted of v2",
        5.0 * deviation
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_splits_a_services_requests_and_its_change_loses_none() {
    let scene = scene(&[("services.yaml", SERVICES), ("route.yaml", &split(50, 50))]).await;
    for (place, cgroup) in scene.callers() {
        // Both backends answer: the nodes know of each other.
        for name in ["v1 /", "v2 /"] {
            until(name, || once(place, cgroup, WHOAMI, "GET", "/")).await;
        }
    }
    for (place, cgroup) in scene.callers() {
        let found = counts(load(place, cgroup, WHOAMI, Duration::from_secs(1)));
        assert!(found.values().sum::<u64>() >= 400, "{found:?}");
        within(&found, 50.0);
    }
    // The change comes in the middle of the load.
    let clients = scene
        .callers()
        .map(|(place, cgroup)| load(place, cgroup, WHOAMI, Duration::from_secs(4)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.rig.write("route.yaml", &split(90, 10));
    for client in clients {
        let found = tokio::task::block_in_place(|| counts(client));
        assert!(found.values().sum::<u64>() >= 4 * 500, "{found:?}");
    }
    for (place, cgroup) in scene.callers() {
        let found = counts(load(place, cgroup, WHOAMI, Duration::from_secs(1)));
        within(&found, 10.0);
    }
    let (place, cgroup) = scene.callers()[0];
    once(place, cgroup, WHOAMI, "GET", "/named");
    let flows: Vec<Flow> = scene.rig.nodes[0].flows("/named").await;
    let routed = flows
        .iter()
        .find(|f| f.kind == "http" && f.route == "HTTPRoute/default/split");
    let routed = routed.expect("no flow names the route");
    assert_eq!((routed.verdict(), routed.status), (Verdict::Forwarded, 200));
    // Without the route the Service is itself again, and connections to it are the kernel's.
    scene.rig.write("route.yaml", "");
    let direct = || scene.rig.nodes[0].flows("/direct");
    until("v1 /direct", || once(place, cgroup, WHOAMI, "GET", "/direct")).await;
    let deadline = Instant::now() + SOON;
    loop {
        let before = direct().await.len();
        until("v1 /direct", || once(place, cgroup, WHOAMI, "GET", "/direct")).await;
        if direct().await.len() == before {
            break;
        }
        assert!(Instant::now() < deadline, "requests are still read");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_requests_hold_for_pods_and_processes_on_both_sides() {
    let scene = scene(&[("services.yaml", SERVICES), ("rules.yaml", RULES)]).await;
    let near = &scene.rig.nodes[0];
    const V1: &str = "10.96.8.2:80";
    const V2: &str = "10.96.8.3:80";
    // Of the callee, which is on this node: who asks is a pod and a process.
    for (place, cgroup) in scene.callers() {
        until("v1 /public/a", || once(place, cgroup, V1, "GET", "/public/a")).await;
        let denied = once(place, cgroup, V1, "GET", "/secret/a");
        assert!(
            denied.starts_with("HTTP/1.1 403 ") && denied.ends_with("Access denied\r\n"),
            "{denied}"
        );
        let denied = once(place, cgroup, V1, "DELETE", "/public/a");
        assert!(denied.starts_with("HTTP/1.1 403 "), "{denied}");
    }
    // Of the caller, to another node: of the pod only.
    let [(shop, shop_cgroup), (worker, worker_cgroup)] = scene.callers();
    until("v2 /b", || once(shop, shop_cgroup, V2, "GET", "/b")).await;
    let denied = once(shop, shop_cgroup, V2, "DELETE", "/b");
    assert!(denied.starts_with("HTTP/1.1 403 "), "{denied}");
    until("v2 /b", || once(worker, worker_cgroup, V2, "DELETE", "/b")).await;

    let flows = near.flows("/secret/a").await;
    for caller in ["shop", "worker"] {
        let of =
            |f: &&Flow| f.source.as_ref().is_some_and(|s| s.app_id == caller) && f.direction == "ingress";
        let dropped = flows.iter().find(of).unwrap();
        assert_eq!(
            (dropped.verdict(), &*dropped.drop_reason),
            (Verdict::Dropped, "POLICY_DENIED")
        );
        assert!(
            dropped.rule.starts_with("CiliumNetworkPolicy/default/public: "),
            "{}",
            dropped.rule
        );
    }
    let dropped = near.flows("/b").await;
    let dropped = dropped.iter().find(|f| f.verdict() == Verdict::Dropped).unwrap();
    assert_eq!((&*dropped.direction, &*dropped.method), ("egress", "DELETE"));
    assert!(
        dropped.rule.starts_with("CiliumNetworkPolicy/default/reader: "),
        "{}",
        dropped.rule
    );
}

const GATEWAY: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: default-gateway, namespace: default}
spec:
  gatewayClassName: cilium
  listeners: [{name: http, protocol: HTTP, port: 8088}]
"#;
const THROUGH: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: through, namespace: default}
spec:
  parentRefs: [{name: default-gateway}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /one}}]
    backendRefs: [{name: whoami-v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /two}}]
    backendRefs: [{name: whoami-v2, port: 80}]
"#;
/// Who comes in by a gateway may call v2, nobody else; v1 is for the shop.
const INGRESS: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: from-gateways, namespace: default}
spec:
  endpointSelector: {matchLabels: {dapr.io/app-id: v2}}
  ingress: [{fromEntities: [ingress]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: from-shop, namespace: default}
spec:
  endpointSelector: {matchLabels: {dapr.io/app-id: v1}}
  ingress: [{fromEndpoints: [{matchLabels: {dapr.io/app-id: shop}}]}]
"#;

/// Asks the first node's gateway from another machine, one that no agent knows.
pub(crate) fn from_outside(
    scene: &Scene,
    port: u16,
    path: &str,
) -> Result<(u16, String), weft_testnet::Error> {
    let [near, far] = &scene.rig.nodes[..] else {
        panic!("two nodes")
    };
    let mut stream = far.node.namespace().connect((near.node.v4(), port))?;
    stream.set_read_timeout(Some(SOON)).unwrap();
    Ok(ask(&mut stream, "GET", path))
}

pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_open_on_the_node_and_calls_as_ingress() {
    let manifests = [
        ("services.yaml", SERVICES),
        ("gateway.yaml", GATEWAY),
        ("route.yaml", THROUGH),
        ("rules.yaml", INGRESS),
    ];
    let scene = scene(&manifests).await;
    let [near, far] = &scene.rig.nodes[..] else {
        panic!("two nodes")
    };
    // By tunnel, with the certificate of the node's gateways.
    eventually("v2 does not answer through the gateway", async || {
        from_outside(&scene, 8088, "/two").is_ok_and(|answer| answer == (200, "v2 /two".into()))
    })
    .await;
    assert_eq!(from_outside(&scene, 8088, "/none").unwrap().0, 404);
    // Its twin, to whom the policy says otherwise.
    eventually("v1 is not denied", async || {
        from_outside(&scene, 8088, "/one").is_ok_and(|(status, _)| status == 403)
    })
    .await;
    let [(place, cgroup), _] = scene.callers();
    until("v1 /one", || once(place, cgroup, "10.96.8.2:80", "GET", "/one")).await;
    let denied = once(place, cgroup, "10.96.8.3:80", "GET", "/two");
    assert!(
        !denied.contains("v2"),
        "who does not come by the gateway may not: {denied}"
    );

    // By the callee's node, on the other side; its rule is told on this one too.
    let told = near.flows("").await;
    let refused = told.iter().find(|f| f.verdict() == Verdict::Dropped).unwrap();
    assert_eq!(
        (&*refused.direction, &*refused.drop_reason),
        ("egress", "POLICY_DENIED")
    );
    assert_eq!(refused.source.as_ref().unwrap().app_id, "shop");
    assert!(refused.rule.contains("from-gateways"), "{}", refused.rule);
    assert_eq!(refused.denied_by, [vec![], vec!["from-gateways".to_owned()]]);

    let flows = near.flows("/two").await;
    let sent = flows.iter().find(|f| f.status == 200).unwrap();
    let source = sent.source.as_ref().unwrap();
    assert_eq!(
        (source.identity, &*sent.caller_proof, &*sent.via),
        (8, "gateway", "tunnel")
    );
    assert_eq!(sent.route, "HTTPRoute/default/through");
    let into = far.flows("").await;
    let opened = into
        .iter()
        .find(|f| f.source.as_ref().is_some_and(|s| s.identity == 8))
        .unwrap();
    assert_eq!(
        (opened.verdict(), &*opened.direction),
        (Verdict::Forwarded, "ingress")
    );
    assert_eq!(
        opened.source.as_ref().unwrap().spiffe_id,
        "spiffe://cluster.local/weft/ingress/n1"
    );
    let dropped = near.flows("/one").await;
    let dropped = dropped.iter().find(|f| f.verdict() == Verdict::Dropped).unwrap();
    assert!(dropped.rule.contains("from-shop"), "{}", dropped.rule);

    // A port that somebody has is told, and opened when it is free.
    let taken = near.node.namespace().listen("0.0.0.0:8089").unwrap();
    scene.rig.write("gateway.yaml", &GATEWAY.replace("8088", "8089"));
    eventually("the status does not tell of the taken port", async || {
        let reason = near.capability("gateway").await;
        reason.is_some_and(|(active, reason)| !active && reason.contains("8089 is in use"))
    })
    .await;
    drop(taken);
    eventually("the port is not opened", async || {
        from_outside(&scene, 8089, "/two").is_ok_and(|(status, _)| status == 200)
    })
    .await;
    assert!(near.capability("gateway").await.unwrap().0);
    // The one before is closed.
    eventually("the old port is open", async || {
        from_outside(&scene, 8088, "/two").is_err()
    })
    .await;
}
