//! CiliumLocalRedirectPolicy about an address: who calls it is answered by a pod of the own node, by TCP and
//! by UDP, and by nobody where there is none.

use crate::{
    rig::{Rig, Running},
    shared::{eventually, run},
    spiffe::python,
};
use std::{
    io::Write,
    net::{TcpListener, UdpSocket},
    path::PathBuf,
};
use weft_proto::weft::dataplane::v1::workload_spec::Place;
use weft_testnet::{Namespace, Pod};

/// As the documentation of Cilium has it for a node's cache of DNS.
const REDIRECT: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumLocalRedirectPolicy
metadata: {name: nodelocaldns, namespace: default}
spec:
  redirectFrontend:
    addressMatcher:
      ip: 169.254.20.10
      toPorts:
      - {port: "53", name: dns, protocol: UDP}
      - {port: "53", name: dns-tcp, protocol: TCP}
  redirectBackend:
    localEndpointSelector: {matchLabels: {app: cache}}
    toPorts:
    - {port: "5353", name: dns, protocol: UDP}
    - {port: "5354", name: dns-tcp, protocol: TCP}
"#;
const ADDRESS: &str = "169.254.20.10";

async fn pod(node: &Running, name: &str) -> (Pod, PathBuf) {
    let pod = node.node.pod(name).unwrap();
    let place = Place::NetnsPath(pod.namespace().path().to_str().unwrap().into());
    let placed = node.add(name, 0, place).await;
    (pod, PathBuf::from(placed.cgroup))
}

/// Answers each connection, and each datagram, by how it came.
fn serve(place: &Namespace) {
    let tcp: TcpListener = place.listen("0.0.0.0:5354").unwrap();
    let udp = place.run(|| UdpSocket::bind("0.0.0.0:5353").unwrap()).unwrap();
    std::thread::spawn(move || {
        for stream in tcp.incoming().map_while(Result::ok) {
            let _ = (&stream).write_all(b"cache by tcp");
        }
    });
    std::thread::spawn(move || {
        let mut some = [0; 64];
        while let Ok((_, from)) = udp.recv_from(&mut some) {
            let _ = udp.send_to(b"cache by udp", from);
        }
    });
}

/// What is answered to a datagram, and by which address as the asker sees it.
fn ask_by_udp((pod, cgroup): &(Pod, PathBuf)) -> String {
    const ASK: &str = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(0.5); \
                       s.sendto(b'?', ('169.254.20.10', 53)); said, by = s.recvfrom(64); print(said.decode(), *by)";
    let script = format!("{} -c \"{ASK}\" 2>/dev/null || echo nobody", python().display());
    run(pod.namespace(), cgroup, &script).trim().to_owned()
}

fn ask_by_tcp((pod, cgroup): &(Pod, PathBuf), port: u16) -> String {
    let script = format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{ADDRESS}/{port} && cat <&3'; echo \" $?\"");
    run(pod.namespace(), cgroup, &script).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_answered_by_the_own_nodes_pod_or_by_nobody() {
    let rig = Rig::new(&[], &["n1", "n2"]);
    let cache = pod(&rig.nodes[0], "cache").await;
    serve(cache.0.namespace());
    let near = pod(&rig.nodes[0], "near").await;
    let far = pod(&rig.nodes[1], "far").await;
    assert_eq!(ask_by_udp(&near), "nobody");

    rig.write("redirect.yaml", REDIRECT);
    eventually("nobody answers by UDP", async || {
        ask_by_udp(&near) == "cache by udp 169.254.20.10 53"
    })
    .await;
    assert_eq!(ask_by_tcp(&near, 53), "cache by tcp 0");
    // A port that is not named goes where it went.
    assert!(!ask_by_tcp(&near, 54).starts_with("cache"));
    // On the node without such a pod nobody is asked, and the caller knows at once.
    eventually("it is not refused", async || ask_by_tcp(&far, 53) == "1").await;
    assert_eq!(ask_by_udp(&far), "nobody");
    // One that comes takes its place.
    let other = pod(&rig.nodes[1], "cache").await;
    serve(other.0.namespace());
    eventually("the new one does not answer", async || {
        ask_by_tcp(&far, 53) == "cache by tcp 0"
    })
    .await;

    rig.write("redirect.yaml", "");
    eventually("it is redirected still", async || ask_by_udp(&near) == "nobody").await;
}
