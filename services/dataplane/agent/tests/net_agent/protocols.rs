//! gRPC and WebSockets between workloads of two nodes, by routes of Services and through a gateway, with
//! the unmodified libraries of Python: grpcio and aiohttp.

use crate::{
    flows::Verdict,
    rig::{Rig, Running, SOON},
    spiffe::python,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};
use weft_proto::weft::dataplane::v1::workload_spec::Place;
use weft_testnet::{Namespace, Node, Pod, Process, Spawn};

fn service(name: &str, app: &str, address: &str, port: u16) -> String {
    format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  clusterIPs: ["{address}"]
  selector: {{app: {app}}}
  ports: [{{name: main, port: {port}}}]
---"#
    )
}

fn services() -> String {
    [
        service("carts", "one", "10.96.9.1", 50051),
        service("carts-one", "one", "10.96.9.2", 50051),
        service("carts-two", "two", "10.96.9.3", 50051),
        service("chat", "talk", "10.96.9.4", 8080),
        service("chat-own", "talk", "10.96.9.5", 8080),
    ]
    .concat()
}

const CARTS: &str = "10.96.9.1:50051";
const CHAT: &str = "10.96.9.4:8080";
const GATE: &str = "10.96.9.9:8088";

/// The same rules for a Service and for a gateway.
fn grpc_route(name: &str, parent: &str, hostnames: &str) -> String {
    format!(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {{name: {name}, namespace: default}}
spec:
  parentRefs: [{parent}]
  hostnames: [{hostnames}]
  rules:
  - matches:
    - method: {{service: shop.Cart, method: Add}}
      headers: [{{name: x-canary, value: "yes"}}]
    backendRefs: [{{name: carts-two, port: 50051}}]
  - matches: [{{method: {{service: shop.Cart}}}}]
    backendRefs: [{{name: carts-one, port: 50051}}]
  - matches: [{{method: {{method: Split}}}}]
    backendRefs:
    - {{name: carts-one, port: 50051, weight: 1}}
    - {{name: carts-two, port: 50051, weight: 1}}
"#
    )
}

const OF_SERVICE: &str = r#"{group: "", kind: Service, name: carts, port: 50051}"#;
const OF_GATEWAY: &str = "{name: gate}";

const GATEWAY: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: default}
spec:
  gatewayClassName: cilium
  addresses: [{type: IPAddress, value: 10.96.9.9}]
  listeners: [{name: http, protocol: HTTP, port: 8088}]
"#;

fn http_route(name: &str, parent: &str, hostnames: &str) -> String {
    format!(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: default}}
spec:
  parentRefs: [{parent}]
  hostnames: [{hostnames}]
  rules:
  - matches: [{{path: {{type: PathPrefix, value: /}}}}]
    backendRefs: [{{name: chat-own, port: 8080}}]
"#
    )
}

/// Who may call what of the first cart.
const RULES: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: carts, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: one}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: shop}}]
    toPorts:
    - ports: [{port: "50051", protocol: TCP}]
      rules: {http: [{method: POST, path: "/shop.Cart/(Add|Watch|Chat|Fail)"}, {method: POST, path: "/.*/Split"}]}
  - fromEntities: [ingress]
    toPorts:
    - ports: [{port: "50051", protocol: TCP}]
      rules: {http: [{method: POST, path: "/shop.Cart/Add"}]}
"#;

/// Nobody may open WebSockets to it any more.
const NO_SOCKETS: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: no-sockets, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: talk}}
  ingress:
  - fromEntities: [all]
    toPorts:
    - ports: [{port: "8080", protocol: TCP}]
      rules: {http: [{method: GET, path: "/plain"}]}
"#;

fn start(place: &Namespace, cgroup: Option<&Path>, arguments: &[&str]) -> Process {
    let mut command = Command::new(python());
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/net_agent/protocols.py"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let spawn = match cgroup {
        Some(cgroup) => Spawn::root().cgroup(cgroup),
        None => Spawn::root(),
    };
    place.spawn(command, &spawn).unwrap()
}

/// All that a client says, to its end.
fn said(place: &Namespace, cgroup: Option<&Path>, arguments: &[&str]) -> Vec<Value> {
    let mut client = start(place, cgroup, arguments);
    let mut out = String::new();
    client.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    out.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A pod with one of the apps in it.
struct App {
    pod: Pod,
    cgroup: PathBuf,
    _process: Option<Process>,
}

async fn app(node: &Running, name: &str, port: u16, mode: Option<&str>) -> App {
    let pod = node.node.pod(name).unwrap();
    let place = Place::NetnsPath(pod.namespace().path().to_str().unwrap().into());
    let cgroup = PathBuf::from(node.add(name, port, place).await.cgroup);
    let port = port.to_string();
    let process = mode.map(|mode| start(pod.namespace(), Some(&cgroup), &[mode, name, &port]));
    App {
        pod,
        cgroup,
        _process: process,
    }
}

/// The client's pod on the first node; one cart on the other node and one beside the client.
struct Scene {
    shop: App,
    /// A machine that no agent knows.
    outside: Node,
    _apps: Vec<App>,
    rig: Rig,
}

impl Scene {
    async fn new(manifests: &[(&str, &str)]) -> Self {
        let services = services();
        let mut all = vec![("services.yaml", services.as_str())];
        all.extend(manifests);
        let rig = Rig::new(&all, &["n1", "n2"]);
        let (near, far) = (&rig.nodes[0], &rig.nodes[1]);
        let apps = vec![
            app(far, "one", 50051, Some("serve-grpc")).await,
            app(near, "two", 50051, Some("serve-grpc")).await,
            app(far, "talk", 8080, Some("serve-ws")).await,
        ];
        Self {
            shop: app(near, "shop", 0, None).await,
            outside: rig.net.node("outside").unwrap(),
            _apps: apps,
            rig,
        }
    }

    fn of_shop(&self, arguments: &[&str]) -> Vec<Value> {
        said(self.shop.pod.namespace(), Some(&self.shop.cgroup), arguments)
    }

    fn of_outside(&self, arguments: &[&str]) -> Vec<Value> {
        said(self.outside.namespace(), None, arguments)
    }

    fn gate(&self) -> String {
        format!("{}:8088", self.rig.nodes[0].node.v4())
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + SOON;
    loop {
        match tokio::task::block_in_place(&mut holds) {
            Ok(()) => return,
            Err(last) => assert!(Instant::now() < deadline, "{what}: {last}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Who runs a client, from where.
type Client<'a> = &'a dyn Fn(&[&str]) -> Vec<Value>;

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn answers(value: &Value) -> Vec<String> {
    value["said"].as_array().unwrap().iter().map(text).collect()
}

/// How often each app answered.
fn counts(value: &Value) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for answer in answers(value) {
        let name = answer.split(' ').next().unwrap().to_owned();
        *counts.entry(name).or_default() += 1;
    }
    counts
}

fn is_ok(said: &[Value], answer: &str) -> Result<(), String> {
    let good = said
        .iter()
        .all(|v| v["code"] == "OK" && answers(v).contains(&answer.to_owned()));
    (good && !said.is_empty())
        .then_some(())
        .ok_or(format!("{said:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_goes_by_its_route_over_the_tunnel_and_rules_name_its_methods() {
    let route = grpc_route("carts", OF_SERVICE, "");
    let scene = Scene::new(&[("route.yaml", &route), ("rules.yaml", RULES)]).await;
    eventually("no cart answers", || {
        is_ok(
            &scene.of_shop(&["grpc", CARTS, "carts", "unary /shop.Cart/Add 1"]),
            "one 0",
        )?;
        let canary = "unary /shop.Cart/Add 1 x-canary=yes";
        is_ok(&scene.of_shop(&["grpc", CARTS, "carts", canary]), "two 0")
    })
    .await;
    let said = scene.of_shop(&[
        "grpc",
        CARTS,
        "carts",
        "unary /shop.Cart/Add 20",
        "unary /shop.Cart/Add 20 x-canary=yes",
        "unary /shop.Cart/Add 1 x-canary=no",
        "watch /shop.Cart/Watch 1",
        "chat /shop.Cart/Chat 5",
        "unary /shop.Stock/Split 200",
        "unary /shop.Cart/Fail 1",
        "unary /shop.Cart/Empty 1",
        "unary /shop.Stock/Other 1",
    ]);
    let [add, canary, other, watch, chat, split, fail, empty, none] = &said[..] else {
        panic!("{said:?}")
    };
    // By method and header, over one connection; messages and trailers are the app's.
    assert_eq!(counts(add), [("one".to_owned(), 20)].into(), "{add}");
    assert_eq!(counts(canary), [("two".to_owned(), 20)].into(), "{canary}");
    assert_eq!(counts(other), [("one".to_owned(), 1)].into(), "{other}");
    // Streams: of the server, and of both while neither has ended.
    assert_eq!(answers(watch), ["one 0 w", "one 1 w", "one 2 w"], "{watch}");
    assert_eq!(
        answers(chat),
        ["one 0", "one 1", "one 2", "one 3", "one 4"],
        "{chat}"
    );
    assert_eq!((&watch["code"], &chat["code"]), (&"OK".into(), &"OK".into()));
    // 100 of each, within five standard deviations.
    let (one, two) = (counts(split)["one"], counts(split)["two"]);
    assert!(one + two == 200 && one.abs_diff(100) <= 36, "{one} {two}");
    // What the app says itself, what policy says, and what no rule of the route means.
    assert_eq!(
        (text(&fail["code"]), text(&fail["details"])),
        ("NOT_FOUND".into(), "no such cart".into())
    );
    assert_eq!(
        (text(&empty["code"]), text(&empty["details"])),
        ("PERMISSION_DENIED".into(), "Access denied".into())
    );
    assert_eq!(text(&none["code"]), "UNIMPLEMENTED", "{none}");

    let (near, far) = (&scene.rig.nodes[0], &scene.rig.nodes[1]);
    let sent = near.flows("/shop.Cart/Add").await;
    let by = |via: &str| {
        sent.iter()
            .find(|f| f.via == via && f.direction == "egress")
            .unwrap()
    };
    for (via, to) in [("tunnel", "one"), ("same-node", "two")] {
        let flow = by(via);
        assert_eq!((flow.verdict(), flow.status), (Verdict::Forwarded, 200));
        assert_eq!((&*flow.method, &*flow.route), ("POST", "GRPCRoute/default/carts"));
        assert_eq!(flow.destination.as_ref().unwrap().app_id, to);
    }
    let judged = far.flows("/shop.Cart/Add").await;
    let allowed = judged.iter().find(|f| f.direction == "ingress").unwrap();
    assert!(
        allowed.rule.starts_with("CiliumNetworkPolicy/default/carts: "),
        "{}",
        allowed.rule
    );
    assert_eq!(allowed.source.as_ref().unwrap().app_id, "shop");
    let dropped = far.flows("/shop.Cart/Empty").await;
    let dropped = dropped.iter().find(|f| f.direction == "ingress").unwrap();
    assert_eq!(
        (dropped.verdict(), &*dropped.drop_reason),
        (Verdict::Dropped, "POLICY_DENIED")
    );
    assert!(
        dropped.rule.starts_with("CiliumNetworkPolicy/default/carts: "),
        "{}",
        dropped.rule
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_takes_grpc_and_websockets_from_outside_and_from_a_pod() {
    // Routes of both kinds may not be for the same host of a listener.
    let routes = [
        grpc_route("carts", OF_GATEWAY, "carts.example"),
        http_route("chat", OF_GATEWAY, "chat.example"),
    ];
    let scene = Scene::new(&[
        ("gateway.yaml", GATEWAY),
        ("carts.yaml", &routes[0]),
        ("chat.yaml", &routes[1]),
        ("rules.yaml", RULES),
    ])
    .await;
    // From another machine by the node's own address, from a pod by that of the gateway's Service.
    let gate = scene.gate();
    let ways: [(&str, &str, Client<'_>); 2] = [
        ("outside", &gate, &|arguments| scene.of_outside(arguments)),
        ("a pod", GATE, &|arguments| scene.of_shop(arguments)),
    ];
    for (who, gate, client) in ways {
        eventually(who, || {
            is_ok(
                &client(&["grpc", gate, "carts.example", "unary /shop.Cart/Add 1"]),
                "one 0",
            )?;
            is_ok(
                &client(&[
                    "grpc",
                    gate,
                    "carts.example",
                    "unary /shop.Cart/Add 1 x-canary=yes",
                ]),
                "two 0",
            )
        })
        .await;
        let said = client(&[
            "grpc",
            gate,
            "carts.example",
            "unary /shop.Cart/Add 3",
            "unary /shop.Cart/Watch 1",
        ]);
        assert_eq!(answers(&said[0]), ["one 0", "one 1", "one 2"], "{who}: {said:?}");
        // It calls as the gateway now, whoever asked: that one's rule is narrower than the shop's.
        assert_eq!(text(&said[1]["code"]), "PERMISSION_DENIED", "{who}: {said:?}");
        eventually(who, || match &client(&["ws", gate, "chat.example"])[..] {
            [told] if told["large"] == true => {
                assert_eq!(answers(told), ["talk hello 0", "talk hello 1", "talk hello 2"]);
                Ok(())
            }
            other => Err(format!("{other:?}")),
        })
        .await;
    }
    // The other's host is no host of a route.
    let other = scene.of_outside(&["ws", &gate, "carts.example"]);
    assert_eq!(other[0]["refused"], 404, "{other:?}");
    let flows = scene.rig.nodes[0].flows("/ws").await;
    let opened: Vec<_> = flows.iter().filter(|f| f.status == 101).collect();
    assert!(!opened.is_empty(), "{flows:?}");
    for flow in opened {
        assert_eq!(
            (&*flow.route, &*flow.caller_proof),
            ("HTTPRoute/default/chat", "gateway")
        );
        assert_eq!(
            (flow.source.as_ref().unwrap().identity, &*flow.via),
            (8, "tunnel")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_goes_by_its_services_route_and_ends_when_policy_forbids_it() {
    let parent = r#"{group: "", kind: Service, name: chat, port: 8080}"#;
    let route = http_route("chat", parent, "");
    let scene = Scene::new(&[("route.yaml", &route)]).await;
    eventually(
        "nobody talks",
        || match &scene.of_shop(&["ws", CHAT, "chat"])[..] {
            [told] if told["large"] == true => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
    let mut staying = start(
        scene.shop.pod.namespace(),
        Some(&scene.shop.cgroup),
        &["ws", CHAT, "chat", "stay"],
    );
    let lines = BufReader::new(staying.stdout.take().unwrap()).lines();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let value: Value = serde_json::from_str(&line).unwrap();
            if tell.send(value).is_err() {
                return;
            }
        }
    });
    assert_eq!(told.recv_timeout(SOON).unwrap()["large"], true);
    scene.rig.write("rules.yaml", NO_SOCKETS);
    let ended = tokio::task::block_in_place(|| told.recv_timeout(SOON)).unwrap();
    assert_eq!(
        (&ended["ended"], &ended["answers"]),
        (&"CLOSED".into(), &true.into()),
        "{ended}"
    );
    // Refused from now on, and only what the rule does not name.
    let refused = scene.of_shop(&["ws", CHAT, "chat"]);
    assert_eq!(refused[0]["refused"], 403, "{refused:?}");
    let plain = format!(
        "exec 3<>/dev/tcp/{}; printf 'GET /plain HTTP/1.1\\r\\nhost: chat\\r\\nconnection: close\\r\\n\\r\\n' >&3; timeout 10 cat <&3",
        CHAT.replace(':', "/")
    );
    let mut command = Command::new("bash");
    command.args(["-c", &plain]).stdout(Stdio::piped());
    let spawn = Spawn::nobody().cgroup(&scene.shop.cgroup);
    let mut allowed = scene.shop.pod.namespace().spawn(command, &spawn).unwrap();
    let mut answer = String::new();
    allowed
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut answer)
        .unwrap();
    assert!(answer.contains("talk /plain"), "{answer}");
    let flows = scene.rig.nodes[1].flows("/ws").await;
    let dropped = flows.iter().find(|f| f.verdict() == Verdict::Dropped).unwrap();
    assert!(dropped.rule.contains("no-sockets"), "{}", dropped.rule);
}
