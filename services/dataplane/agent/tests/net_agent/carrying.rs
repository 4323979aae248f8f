//! TCP of any protocol between pods of two nodes: redirected by the kernel, carried by the tunnel,
//! judged on both sides; nothing of it in clear between the nodes.

use crate::{
    flows::{Flow, Verdict},
    rig::{Rig, Running, SOON, ask_until, signal},
};
use nix::sys::signal::Signal;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use weft_proto::weft::dataplane::v1::workload_spec::Place;
use weft_testnet::{Namespace, Pod, Process, Spawn};

const STORE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: store, namespace: default}
spec:
  clusterIPs: ["10.96.7.7", "fd96::7"]
  selector: {app: store}
  ports: [{name: redis, port: 6379, targetPort: 6379}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: store, namespace: default}
spec:
  endpointSelector: {matchLabels: {dapr.io/app-id: store}}
  ingress:
  - fromEndpoints: [{matchLabels: {dapr.io/app-id: shop}}]
    toPorts: [{ports: [{port: "6379", protocol: TCP}]}]
---
apiVersion: v1
kind: Service
metadata: {name: till, namespace: default}
spec:
  clusterIPs: ["10.96.7.8", "fd96::8"]
  selector: {app: till}
  ports: [{name: redis, port: 6379, targetPort: 6380}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: till, namespace: default}
spec:
  endpointSelector: {matchLabels: {dapr.io/app-id: till}}
  ingress:
  - fromEndpoints: [{matchLabels: {dapr.io/app-id: worker}}]
    toPorts: [{ports: [{port: "6380", protocol: TCP}, {port: more, protocol: TCP}, {port: "6382", protocol: TCP}]}]
"#;
const ADDRESSES: [&str; 2] = ["10.96.7.7", "fd96::7"];
/// What is looked for on the wire.
const SECRET: &str = "pineapple-in-the-clear";

const STORE_PORT: &str = "WEFT_TEST_STORE_PORT";

/// Starts a store where a workload is: on all addresses there.
fn store(place: &Namespace, cgroup: &Path, port: u16) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["carrying::is_a_store", "--exact", "--ignored"]);
    command.env(STORE_PORT, port.to_string());
    command.stdout(Stdio::null());
    place.spawn(command, &Spawn::root().cgroup(cgroup)).unwrap()
}

/// It greets who connects, answers PING as Redis does, and gives lines back.
#[test]
#[ignore = "started by the tests here"]
fn is_a_store() {
    let port: u16 = std::env::var(STORE_PORT).unwrap().parse().unwrap();
    // Takes IPv4 as well.
    let listener = TcpListener::bind(("::", port)).unwrap();
    for stream in listener.incoming().map_while(Result::ok) {
        std::thread::spawn(move || talk(&stream));
    }
}

fn talk(mut stream: &TcpStream) -> Option<()> {
    stream.write_all(b"+READY\r\n").ok()?;
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).ok()? > 0 {
        let answer: &[u8] = if line == b"PING\r\n" { b"+PONG\r\n" } else { &line };
        stream.write_all(answer).ok()?;
        line.clear();
    }
    Some(())
}

/// Runs a script as an unprivileged user of a pod; what it said.
pub fn script(pod: &Pod, cgroup: &Path, script: &str) -> String {
    let mut command = Command::new("bash");
    command.args(["-c", script]).stdout(Stdio::piped());
    let spawn = Spawn::nobody().cgroup(cgroup);
    let mut process = pod.namespace().spawn(command, &spawn).unwrap();
    let mut answer = String::new();
    process
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut answer)
        .unwrap();
    answer
}

/// Reads the greeting before it says anything.
fn ping(to: &str) -> String {
    format!(
        "exec 3<>/dev/tcp/{to}/6379 || exit; read -r -u 3 greeting; printf 'PING\\r\\n' >&3; \
         read -r -u 3 answer; echo \"$greeting $answer\""
    )
}

/// Some 138 kB of lines there and back; then the digests of both.
fn bulk(to: &str) -> String {
    let lines = format!("yes {SECRET} | head -n 6000");
    let bytes = 6000 * (SECRET.len() + 1);
    format!(
        "exec 3<>/dev/tcp/{to}/6379 || exit; read -r -u 3 greeting; \
         {lines} >&3 & head -c {bytes} <&3 | sha256sum; {lines} | sha256sum"
    )
}

async fn add(node: &Running, name: &str) -> (Pod, PathBuf) {
    let pod = node.node.pod(name).unwrap();
    let place = Place::NetnsPath(pod.namespace().path().to_str().unwrap().into());
    let placed = node.add(name, 0, place).await;
    (pod, PathBuf::from(placed.cgroup))
}

fn about<'a>(flows: &'a [Flow], source: &str, kind: &str) -> Option<&'a Flow> {
    let of = |f: &&Flow| f.kind == kind && f.source.as_ref().is_some_and(|s| s.app_id == source);
    flows.iter().rev().find(of)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_on_another_node_is_reached_by_tunnel_and_not_in_clear() {
    let rig = Rig::new(&[("store.yaml", STORE)], &["n1", "n2"]);
    let (near, far) = (&rig.nodes[0], &rig.nodes[1]);
    let (shop, shop_cgroup) = add(near, "shop").await;
    let (thief, thief_cgroup) = add(near, "thief").await;
    let (stored, stored_cgroup) = add(far, "store").await;
    let _store = store(stored.namespace(), &stored_cgroup, 6379);

    let between = rig.net.underlay(&far.node).capture().unwrap();
    let inside = stored.namespace().loopback().capture().unwrap();
    // By the service, and by the pod's own addresses.
    let own = stored.addresses().map(|a| a.to_string());
    for address in ADDRESSES.into_iter().chain(own.iter().map(String::as_str)) {
        ask_until("+READY\r +PONG", || script(&shop, &shop_cgroup, &ping(address))).await;
        let digests = script(&shop, &shop_cgroup, &bulk(address));
        let mut digests = digests.lines();
        let (back, sent) = (digests.next().unwrap(), digests.next().unwrap());
        assert_eq!(back, sent, "{address}");

        // The twin who may not; it differs in its name only.
        let refused = script(&thief, &thief_cgroup, &ping(address));
        assert!(!refused.contains("READY"), "{refused}");
    }
    let between = between.stop().unwrap();
    let inside = inside.stop().unwrap();
    assert!(between.complete());
    assert!(!between.contains(SECRET.as_bytes()), "in clear between the nodes");
    assert!(
        inside.contains(SECRET.as_bytes()),
        "the same search finds it where it is in clear"
    );
    let tls = between.tls_on(15008);
    assert!(tls.bytes >= 100_000 && tls.other_bytes == 0, "{tls:?}");

    let (out, into) = (near.flows("").await, far.flows("").await);
    for (flows, direction) in [(&out, "egress"), (&into, "ingress")] {
        let opened = about(flows, "shop", "connection").unwrap();
        assert_eq!(
            (opened.verdict(), &*opened.direction),
            (Verdict::Forwarded, direction)
        );
        assert_eq!(
            (&*opened.via, opened.destination.as_ref().unwrap().port),
            ("tunnel", 6379)
        );
        let closed = about(flows, "shop", "closed").unwrap();
        assert!(closed.bytes_received > 0, "{closed:?}");
    }
    let dropped = about(&into, "thief", "connection").unwrap();
    assert_eq!(
        (dropped.verdict(), &*dropped.drop_reason),
        (Verdict::Dropped, "POLICY_DENIED")
    );

    // What is open when policy changes is closed, and not as if it had ended.
    let opened = |flows: &[Flow]| flows.iter().filter(|f| f.kind == "connection").count();
    let before = opened(&near.flows("").await);
    let held = std::thread::scope(|scope| {
        let hold = "exec 3<>/dev/tcp/10.96.7.7/6379; read -r -u 3 greeting; timeout 30 cat <&3; echo $?";
        let held = scope.spawn(|| script(&shop, &shop_cgroup, hold));
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let deadline = std::time::Instant::now() + SOON;
                while opened(&near.flows("").await) == before {
                    assert!(std::time::Instant::now() < deadline, "it was not opened");
                }
                rig.write("store.yaml", &STORE.replace("app-id: shop", "app-id: nobody"));
            });
        });
        held.join().unwrap()
    });
    assert_eq!(held.trim(), "1", "cat was told of a reset");
    rig.write("store.yaml", STORE);
    ask_until("+READY\r +PONG", || {
        script(&shop, &shop_cgroup, &ping("10.96.7.7"))
    })
    .await;

    // The agent is killed: who connects then waits for the next one, and is served.
    let killed = near.agent();
    signal(killed, Signal::SIGKILL);
    ask_until("+READY\r +PONG", || {
        script(&shop, &shop_cgroup, &ping("10.96.7.7"))
    })
    .await;
    assert_ne!(near.agent(), killed);
}

/// Processes have no address of their own: they are known by cgroup here, by certificate there.
#[tokio::test(flavor = "multi_thread")]
async fn processes_of_two_nodes_reach_each_other_as_who_they_are() {
    let rig = Rig::new(&[("store.yaml", STORE)], &["n1", "n2"]);
    let (near, far) = (&rig.nodes[0], &rig.nodes[1]);
    let (worker, _runs) = near.add_process("worker").await;
    let (loafer, _runs_too) = near.add_process("loafer").await;
    let declared = [("weft.dev/named-ports", "more=6381")];
    let till = far
        .add_with("till", 6380, Place::Process(Default::default()), &declared)
        .await;
    let _tills = [6380, 6381, 6382].map(|port| store(far.node.namespace(), Path::new(&till.cgroup), port));
    for address in ["10.96.7.8", "fd96::8"] {
        ask_until("+READY\r +PONG", || near.script(Some(&worker), &ping(address))).await;
        let refused = near.script(Some(&loafer), &ping(address));
        assert!(!refused.contains("READY"), "{refused}");
    }
    // By the node's address it is known at its app's port and where it says so; elsewhere it is the node's.
    let knock = |port: u16| {
        let greet = format!(
            "timeout 3 bash -c 'exec 3<>/dev/tcp/{}/{port} && head -n 1 <&3'",
            far.node.v4()
        );
        near.script(Some(&worker), &greet)
    };
    for port in [6380, 6381] {
        ask_until("+READY", || knock(port)).await;
    }
    assert!(!knock(6382).contains("READY"));
    let into = far.flows("").await;
    let by_port = |port: u32| {
        let to = |flow: &&Flow| flow.destination.as_ref().is_some_and(|d| d.port == port);
        let from = |flow: &&Flow| flow.source.as_ref().is_some_and(|s| s.app_id == "worker");
        into.iter().filter(to).find(from)
    };
    for port in [6380, 6381] {
        let opened = by_port(port).unwrap();
        assert_eq!((&*opened.caller_proof, &*opened.via), ("tunnel-svid", "tunnel"));
    }
    assert!(by_port(6382).is_none(), "{:?}", by_port(6382));
    let dropped = about(&into, "loafer", "connection").unwrap();
    assert_eq!(dropped.verdict(), Verdict::Dropped);
    let out = near.flows("").await;
    assert_eq!(
        about(&out, "worker", "connection").unwrap().caller_proof,
        "cgroup"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_not_redirected_is_refused_at_the_capture_port() {
    let rig = Rig::new(&[], &["n1"]);
    let near = &rig.nodes[0];
    let (shop, cgroup) = add(near, "shop").await;
    let (worker, _runs) = near.add_process("worker").await;
    let knock = "exec 3<>/dev/tcp/127.0.0.1/15001 && timeout 20 cat <&3; echo ended";
    assert_eq!(script(&shop, &cgroup, knock).trim(), "ended");
    assert_eq!(near.script(Some(&worker), knock).trim(), "ended");
    let refused = || async {
        let flows = near.flows("").await;
        flows.iter().filter(|f| f.drop_reason == "UNKNOWN_CALLER").count()
    };
    let deadline = std::time::Instant::now() + SOON;
    while refused().await < 2 {
        assert!(std::time::Instant::now() < deadline, "it is not written down");
    }
}
