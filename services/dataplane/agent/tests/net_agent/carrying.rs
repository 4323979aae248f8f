//! TCP of any protocol between pods of two nodes: redirected by the kernel, carried by the tunnel,
//! judged on both sides; nothing of it in clear between the nodes.

use crate::rig::{Rig, Running, SOON, ask_until, signal};
use nix::sys::signal::Signal;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Stdio,
};
use weft_proto::weft::dataplane::v1::{Flow, Verdict, workload_spec::Place};
use weft_testnet::{Pod, Spawn};

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
"#;
const ADDRESSES: [&str; 2] = ["10.96.7.7", "fd96::7"];
/// What is looked for on the wire.
const SECRET: &str = "pineapple-in-the-clear";

/// A store that greets who connects, answers PING as Redis does, and gives lines back.
fn store(listener: TcpListener) {
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
fn script(pod: &Pod, cgroup: &Path, script: &str) -> String {
    let mut command = std::process::Command::new("bash");
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
    let (stored, _) = add(far, "store").await;
    for address in ["0.0.0.0:6379", "[::]:6379"] {
        let listener = stored.namespace().run(|| v6_only(address)).unwrap();
        std::thread::spawn(move || store(listener));
    }
    near.redirect(&["10.96.7.7:6379", "[fd96::7]:6379"]);

    let between = rig.net.underlay(&far.node).capture().unwrap();
    let inside = stored.namespace().loopback().capture().unwrap();
    for address in ADDRESSES {
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

    // The agent is killed: who connects then waits for the next one, and is served.
    let killed = near.agent();
    signal(killed, Signal::SIGKILL);
    ask_until("+READY\r +PONG", || {
        script(&shop, &shop_cgroup, &ping("10.96.7.7"))
    })
    .await;
    assert_ne!(near.agent(), killed);
}

fn v6_only(address: &str) -> TcpListener {
    let address: std::net::SocketAddr = address.parse().unwrap();
    // Two listeners on one port: the one for IPv6 must leave IPv4 to the other.
    let socket = match address.is_ipv4() {
        true => return TcpListener::bind(address).unwrap(),
        false => nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet6,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::empty(),
            None,
        )
        .unwrap(),
    };
    use nix::sys::socket::{Backlog, SockaddrStorage, bind, listen, setsockopt, sockopt};
    use std::os::fd::AsRawFd;
    setsockopt(&socket, sockopt::Ipv6V6Only, &true).unwrap();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
    listen(&socket, Backlog::new(16).unwrap()).unwrap();
    TcpListener::from(socket)
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
