//! Shared endpoints on two nodes: from a gateway through the runtime of one app to another, whose pods are on
//! both nodes; who may not is dropped by the rule's name; agents and nodes go.

use crate::{
    flows::{Flow, Verdict},
    rig::{Rig, Running, SOON, signal},
};
use nix::sys::signal::Signal;
use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use weft_proto::weft::dataplane::v1::{
    AddRequest, WorkloadSpec, workload_spec::Place, workloads_client::WorkloadsClient,
};
use weft_testnet::{Namespace, Node, Pod, Process, Spawn};

const INGRESS: &str = "10.96.8.10:3500";

/// The example's manifests, but for Services whose addresses the tests have to know.
fn manifests() -> Vec<(&'static str, String)> {
    let example =
        |text: &str, address: &str| text.replace("type: ClusterIP", &format!("clusterIPs: [{address}]"));
    vec![
        (
            "gateway.yaml",
            include_str!("../../../../../examples/whoami/gateway.yaml").into(),
        ),
        (
            "route.yaml",
            include_str!("../../../../../examples/whoami/route-runtime.yaml").into(),
        ),
        (
            "services.yaml",
            include_str!("../../../../../examples/whoami/services.yaml").into(),
        ),
        (
            "shared-ingress.yaml",
            example(
                include_str!("../../../../../examples/whoami/shared-ingress.yaml"),
                "10.96.8.10, \"fd00:10:96::10\"",
            ),
        ),
        (
            "shared-whoami.yaml",
            example(
                include_str!("../../../../../examples/whoami/shared-whoami.yaml"),
                "10.96.8.11",
            ),
        ),
    ]
}

pub const POLICIES: &str = include_str!("../../../../../examples/whoami/policies.yaml");
const PODS: &str = include_str!("../../../../../examples/whoami/policy-pods.yaml");
const SPLIT: &str = include_str!("../../../../../examples/whoami/split-50-50.yaml");

/// An app that answers each request with its name and the request's head.
fn serve(name: &str, listener: TcpListener) {
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
        let body = format!("{name}\n{head}");
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).ok()?;
    }
}

/// What an app said.
#[derive(Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub name: String,
    pub line: String,
    headers: Vec<(String, String)>,
}

impl Answer {
    fn read(text: &str) -> Self {
        let status = text.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
        let (_, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        let (name, head) = body.split_once('\n').unwrap_or_default();
        let mut lines = head.lines();
        let line = lines.next().unwrap_or_default().to_owned();
        let pairs = lines.filter_map(|l| l.split_once(": "));
        let headers = pairs.map(|(n, v)| (n.to_lowercase(), v.to_owned())).collect();
        Self {
            status,
            name: name.to_owned(),
            line,
            headers,
        }
    }

    pub fn header(&self, name: &str) -> Vec<&str> {
        let all = self.headers.iter().filter(|(n, _)| n == name);
        all.map(|(_, value)| value.as_str()).collect()
    }
}

/// Asks once, from a namespace.
fn ask(from: &Namespace, to: SocketAddr, path: &str, headers: &str) -> Answer {
    let asked = || -> Option<String> {
        let mut stream = from.connect(to).ok()?;
        stream.set_read_timeout(Some(SOON)).ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\n{headers}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    };
    Answer::read(&asked().unwrap_or_default())
}

/// Asks once in a workload, by bash.
pub fn script(place: &Namespace, cgroup: &Path, to: &str, path: &str) -> Answer {
    let (host, port) = to.rsplit_once(':').unwrap();
    let script = format!(
        "exec 3<>/dev/tcp/{host}/{port} || exit; \
         printf 'GET {path} HTTP/1.1\\r\\nHost: x\\r\\nX-Forwarded-For: 1.2.3.4\\r\\nConnection: close\\r\\n\\r\\n' >&3; \
         timeout 10 cat <&3"
    );
    Answer::read(&run(place, cgroup, &script))
}

pub fn run(place: &Namespace, cgroup: &Path, script: &str) -> String {
    let mut command = Command::new("bash");
    command.args(["-c", script]).stdout(Stdio::piped());
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

pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub async fn flows(node: &Running) -> Vec<Flow> {
    node.all_flows().await
}

/// A pod of the app: labels and no app-id, as published.
async fn whoami(node: &Running, version: &str) -> (Pod, PathBuf) {
    let name = format!("whoami-{version}");
    let pod = node.node.pod(&name).unwrap();
    serve(&name, pod.namespace().listen("0.0.0.0:80").unwrap());
    let labels = [("app", "whoami"), ("version", version)];
    let spec = WorkloadSpec {
        namespace: "default".into(),
        name,
        labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        place: Some(Place::NetnsPath(pod.namespace().path().to_str().unwrap().into())),
        ..Default::default()
    };
    let request = AddRequest { spec: Some(spec) };
    let mut client = WorkloadsClient::new(node.channel());
    let deadline = Instant::now() + SOON;
    loop {
        match client.add(request.clone()).await {
            Ok(added) => {
                let cgroup = added.into_inner().placed.unwrap().cgroup;
                return (pod, PathBuf::from(cgroup));
            }
            Err(status) => assert!(Instant::now() < deadline, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Two nodes, a pod of each version on one of them; a pod and a process that are none of it; a machine outside.
pub struct Scene {
    pub rig: Rig,
    shop: (Pod, PathBuf),
    worker: (PathBuf, Process),
    pub outside: Node,
    pods: [(Pod, PathBuf); 2],
}

impl Scene {
    pub async fn new(more: &[(&'static str, &str)]) -> Self {
        let mut all = manifests();
        all.extend(more.iter().map(|(name, text)| (*name, (*text).to_owned())));
        let all: Vec<(&str, &str)> = all.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let rig = Rig::new(&all, &["n1", "n2"]);
        let pods = [
            whoami(&rig.nodes[0], "v1").await,
            whoami(&rig.nodes[1], "v2").await,
        ];
        let shop = rig.nodes[0].node.pod("shop").unwrap();
        let place = Place::NetnsPath(shop.namespace().path().to_str().unwrap().into());
        let placed = rig.nodes[0].add("shop", 0, place).await;
        let worker = rig.nodes[0].add_process("worker").await;
        let outside = rig.net.node("outside").unwrap();
        Self {
            shop: (shop, PathBuf::from(placed.cgroup)),
            worker,
            outside,
            pods,
            rig,
        }
    }

    /// By the gateway of a node.
    fn enter(&self, node: usize, path: &str, headers: &str) -> Answer {
        let to = SocketAddr::new(self.rig.nodes[node].node.v4().into(), 80);
        ask(self.outside.namespace(), to, path, headers)
    }

    pub async fn ready(&self) {
        for node in 0..self.rig.nodes.len() {
            for name in ["whoami-v1", "whoami-v2"] {
                eventually("the chain does not answer", async || {
                    self.enter(node, "/", "").name == name
                })
                .await;
            }
        }
    }

    pub fn callers(&self) -> [(&Namespace, &Path); 2] {
        [
            (self.shop.0.namespace(), &self.shop.1),
            (self.rig.nodes[0].node.namespace(), &self.worker.0),
        ]
    }
}

const FORGED: &str = "dapr-caller-app-id: admin\r\ndapr-callee-app-id: other\r\ndapr-caller-namespace: kube-system\r\n\
    x-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https\r\nforwarded: for=1.2.3.4\r\nx-real-ip: 1.2.3.4\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_takes_every_hop_and_arrives_as_it_is() {
    let scene = Scene::new(&[("policies.yaml", POLICIES), ("pods.yaml", PODS)]).await;
    scene.ready().await;
    let client = scene.outside.v4().to_string();
    for node in 0..2 {
        for (path, line) in [
            ("/", "GET / HTTP/1.1"),
            ("/a?b=1", "GET /a?b=1 HTTP/1.1"),
            ("/a//b/", "GET /a//b/ HTTP/1.1"),
        ] {
            let answer = scene.enter(node, path, FORGED);
            assert_eq!((answer.status, answer.line.as_str()), (200, line), "{answer:?}");
            assert_eq!(answer.header("host"), ["whoami.default.svc.cluster.local:80"]);
            assert_eq!(answer.header("dapr-caller-app-id"), ["ingress"]);
            assert_eq!(answer.header("dapr-caller-namespace"), ["default"]);
            assert_eq!(answer.header("dapr-callee-app-id"), ["whoami"]);
            assert_eq!(answer.header("x-forwarded-proto"), ["http"]);
            assert_eq!(answer.header("x-forwarded-host"), ["shop.example"]);
            assert!(answer.header("x-real-ip").is_empty(), "{answer:?}");
            let [trace] = answer.header("traceparent")[..] else {
                panic!("{answer:?}")
            };
            assert!(trace.len() == 55 && trace.ends_with("-01"), "{trace}");
            let [by] = answer.header("x-forwarded-for")[..] else {
                panic!("{answer:?}")
            };
            assert!(by.starts_with(&format!("{client}, 198.18.")), "{by}");
            let [forwarded] = answer.header("forwarded")[..] else {
                panic!("{answer:?}")
            };
            assert!(
                forwarded.starts_with(&format!("for={client}, for=198.18.")),
                "{forwarded}"
            );
            assert!(forwarded.contains("host=ingress-shared-n"), "{forwarded}");
        }
    }
    // Each hop is written down, on its node, with the policy that let it pass.
    let mut all = flows(&scene.rig.nodes[0]).await;
    all.extend(flows(&scene.rig.nodes[1]).await);
    let hop = |from: &str, to: &str, port: u32, rule: &str| {
        all.iter().any(|f| {
            let (source, destination) = (f.source.clone().unwrap(), f.destination.clone().unwrap());
            f.verdict() == Verdict::Forwarded
                // What is carried to another node without being read has no status there.
                && (f.status == 200 || f.kind == "connection")
                && (source.workload.starts_with(from)
                    || source.app_id == from
                    || from == "gateway" && source.identity == 8)
                && destination.workload.starts_with(to)
                && destination.port == port
                && f.rule.contains(rule)
        })
    };
    for node in ["n1", "n2"] {
        let ingress = format!("ingress-shared-{node}");
        assert!(
            hop("gateway", &ingress, 3500, "default/ingress-from-gateway"),
            "{node}"
        );
        assert!(hop(&ingress, "whoami-shared-n", 50002, ""), "{node}");
    }
    assert!(hop(
        "ingress-shared-n",
        "whoami-shared-n",
        50002,
        "default/whoami-from-ingress"
    ));
    for pod in ["whoami-v1", "whoami-v2"] {
        assert!(hop("whoami-shared-n", pod, 80, "default/whoami-pods"), "{pod}");
    }
    // Local and by tunnel.
    let vias: BTreeSet<&str> = all
        .iter()
        .filter(|f| f.status == 200)
        .map(|f| f.via.as_str())
        .collect();
    assert!(vias.contains("tunnel") && vias.contains("same-node"), "{vias:?}");
    let proofs: BTreeSet<&str> = all.iter().map(|f| f.caller_proof.as_str()).collect();
    assert!(proofs.contains("agent"), "{proofs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_speak_as_an_app_is_dropped_by_the_rules_name() {
    let scene = Scene::new(&[("split.yaml", SPLIT)]).await;
    scene.ready().await;
    let invoke = "/v1.0/invoke/whoami.default/method//x?y=1";
    for (place, cgroup) in scene.callers() {
        // Before there is any policy: by the Service, over both nodes, as the app that it is the runtime of.
        let (mut names, mut hands) = (BTreeSet::new(), BTreeSet::new());
        eventually("not over both nodes and versions", async || {
            let answer = script(place, cgroup, INGRESS, invoke);
            if answer.status != 200 {
                return false;
            }
            assert_eq!(answer.line, "GET /x?y=1 HTTP/1.1");
            assert_eq!(answer.header("dapr-caller-app-id"), ["ingress"]);
            let [by] = answer.header("x-forwarded-for")[..] else {
                panic!("{answer:?}")
            };
            assert!(!by.contains("1.2.3.4"), "forged: {by}");
            names.insert(answer.name.clone());
            hands.insert(by.split(", ").nth(1).unwrap_or_default().to_owned());
            names.len() == 2 && hands.len() == 2
        })
        .await;
        // By its own address too: the agent of that node answers, this one's or the other's.
        for address in &hands {
            let answer = script(place, cgroup, &format!("{address}:3500"), invoke);
            assert_eq!(answer.status, 200, "{address}: {answer:?}");
            let health = format!("{address}:3500");
            assert_eq!(script(place, cgroup, &health, "/v1.0/healthz").status, 204);
            // Nobody answers at other ports.
            assert_eq!(script(place, cgroup, &format!("{address}:80"), invoke).status, 0);
        }
    }
    // In the caller's own name, by its own runtime: 50002 of the shared app.
    let (place, cgroup) = scene.callers()[0];
    let own = script(place, cgroup, "127.0.0.1:3500", invoke);
    assert_eq!(
        (own.status, own.header("dapr-caller-app-id")),
        (200, vec!["shop"]),
        "{own:?}"
    );

    scene.rig.write("policies.yaml", POLICIES);
    for (place, cgroup) in scene.callers() {
        eventually("it still may", async || {
            script(place, cgroup, INGRESS, invoke).status == 0
        })
        .await;
    }
    assert_eq!(script(place, cgroup, "127.0.0.1:3500", invoke).status, 403);
    // The twins: the gateway may, and the app behind the runtime, which is whoami's.
    for node in 0..2 {
        assert_eq!(scene.enter(node, "/", "").status, 200);
    }
    let (pod, cgroup) = &scene.pods[0];
    let itself = || script(pod.namespace(), cgroup, "10.96.8.11:3500", "/v1.0/metadata");
    eventually("the app may not speak as itself", async || itself().status == 200).await;
    // Written down by the rule's name, on the node whose policy it was.
    let mut all = flows(&scene.rig.nodes[0]).await;
    all.extend(flows(&scene.rig.nodes[1]).await);
    for (app, port, rule) in [
        ("shop", 3500, "default/ingress-from-gateway"),
        ("worker", 3500, "default/ingress-from-gateway"),
        ("shop", 50002, "default/whoami-from-ingress"),
    ] {
        let dropped = all.iter().any(|f| {
            f.verdict() == Verdict::Dropped
                && f.drop_reason == "POLICY_DENIED"
                && f.source.as_ref().is_some_and(|s| s.app_id == app)
                && f.destination.as_ref().is_some_and(|d| d.port == port)
                && f.rule.contains(rule)
        });
        assert!(dropped, "{app} {port} {rule}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_packet_goes_to_the_address_of_a_shared_endpoint() {
    let scene = Scene::new(&[]).await;
    scene.ready().await;
    let all = flows(&scene.rig.nodes[0]).await;
    let mut addresses = all.iter().filter_map(|f| f.destination.as_ref());
    let address = addresses
        .find(|d| d.workload == "ingress-shared-n1")
        .unwrap()
        .address
        .clone();
    let (shop, worker) = (&scene.shop, &scene.worker);
    // The node's own processes have no listener for captured connections, and nothing goes out either.
    let node = scene.rig.nodes[0].node.namespace();
    let refused = run(
        node,
        scene.rig.nodes[0].node.cgroup(),
        &format!("exec 3<>/dev/tcp/{address}/3500"),
    );
    assert_eq!(refused, "");
    let outgoing = scene
        .rig
        .net
        .underlay(&scene.rig.nodes[0].node)
        .capture()
        .unwrap();
    for (place, cgroup) in [(shop.0.namespace(), &*shop.1), (node, &*worker.0)] {
        run(place, cgroup, &format!("echo x > /dev/udp/{address}/3500; true"));
        // Of the range, and nobody's: closed as well, by TCP and by UDP.
        run(place, cgroup, "echo x > /dev/udp/198.18.255.1/53; true");
        let nobody = run(
            place,
            cgroup,
            "timeout 5 bash -c 'exec 3<>/dev/tcp/198.18.255.1/80 && cat <&3'; echo $?",
        );
        assert_ne!(nobody.trim(), "124", "it was not refused but waited for");
    }
    let mut told = Vec::new();
    eventually("the refused packets are not told of", async || {
        told = flows(&scene.rig.nodes[0]).await;
        told.retain(|f| f.drop_reason == "UNKNOWN_L3_TARGET_ADDRESS" && f.protocol == "UDP");
        // The process has no way there to begin with.
        let mut sources = told.iter().filter_map(|f| f.source.as_ref());
        sources.any(|source| source.app_id == "shop")
    })
    .await;
    // The control: something else of the pod's does go out.
    let far = scene.rig.nodes[1].node.v4();
    run(
        shop.0.namespace(),
        &shop.1,
        &format!("echo weft-goes-out > /dev/udp/{far}/9; true"),
    );
    assert!(outgoing.wait_for(b"weft-goes-out", SOON));
    let captured = outgoing.stop().unwrap();
    let ours = address.parse::<Ipv4Addr>().unwrap().octets();
    for octets in [ours, [198, 18, 255, 1]] {
        assert!(!captured.contains(&octets), "{octets:?} was on the wire");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_and_a_node_that_dies_leave_no_gap_that_lasts() {
    let mut scene = Scene::new(&[]).await;
    scene.ready().await;
    let old = scene.rig.nodes[0].agent();
    signal(old, Signal::SIGKILL);
    eventually("no other agent came", async || {
        let now = scene.rig.nodes[0].agent_now();
        now.is_some_and(|pid| pid != old)
    })
    .await;
    eventually("the chain does not answer any more", async || {
        scene.enter(0, "/", "").status == 200
    })
    .await;

    // The node of the one that is there once for the cluster.
    let at = async |scene: &Scene, node: usize| {
        let mut all = flows(&scene.rig.nodes[node]).await;
        all.retain(|f| f.status == 200 && f.destination.as_ref().is_some_and(|d| d.port == 50002));
        all.last().map(|f| f.destination.clone().unwrap().node)
    };
    let serving = at(&scene, 0).await.unwrap();
    let other = if serving == "n1" { 1 } else { 0 };
    assert_eq!(scene.enter(other, "/", "").status, 200);
    let dead = scene.rig.nodes.remove(1 - other);
    drop(dead);
    // The gateway that is left, its app's pods on this node, and no longer the other's runtime.
    let gone = serving.clone();
    eventually("it does not move", async || {
        let answered = scene.enter(0, "/", "").status == 200;
        answered && at(&scene, 0).await.is_some_and(|node| node != gone)
    })
    .await;
}
