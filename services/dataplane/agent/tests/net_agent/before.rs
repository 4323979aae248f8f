//! Connections that are older than what is said of HTTP: a Service's first route takes none of them away,
//! and a first rule about requests lets nothing more through in them.

use crate::{
    flows::{Flow, Verdict},
    requests::{CONNECTIONS, SERVICES, WHOAMI, counts, load, once, pod, serve},
    rig::{Rig, SOON, ask_until},
};
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};
use weft_testnet::{Namespace, Pod, Process, Spawn};

const ROUTE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: away, namespace: default}
spec:
  parentRefs: [{group: "", kind: Service, name: whoami, port: 80}]
  rules: [{backendRefs: [{name: whoami-v2, port: 80}]}]
"#;
const RULE: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: public, namespace: default}
spec:
  endpointSelector: {matchLabels: {dapr.io/app-id: v1}}
  ingress:
  - fromEndpoints: [{matchLabels: {dapr.io/app-id: shop}}]
    toPorts:
    - ports: [{port: "8081", protocol: TCP}]
      rules: {http: [{method: GET, path: "/public/.*"}]}
"#;
/// The Service of v1 alone, which has no route.
const V1: &str = "10.96.8.2:80";

/// Sends requests over one connection: each line that it reads is a path. It waits three seconds for an answer.
const KEEPS: &str = r#"
exec 3<>/dev/tcp/$1/$2 || exit
while read -r path; do
  printf 'GET %s HTTP/1.1\r\nhost: whoami\r\n\r\n' "$path" >&3
  status= length=0
  while IFS= read -r -t 3 -u 3 line; do
    line=${line%$'\r'}
    [ -n "$line" ] || break
    [ -n "$status" ] || status=$line
    case $line in content-length:*) length=${line#*: };; esac
  done
  if [ -z "$status" ]; then echo nothing; continue; fi
  IFS= read -r -t 3 -N "$length" -u 3 body
  echo "$body"
done
"#;

struct Kept {
    process: Process,
    said: BufReader<ChildStdout>,
}

impl Kept {
    fn open(place: &Namespace, cgroup: &Path, to: &str) -> Self {
        let (host, port) = to.rsplit_once(':').unwrap();
        let mut command = Command::new("bash");
        command.args(["-c", KEEPS, "keeps", host, port]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = place.spawn(command, &Spawn::nobody().cgroup(cgroup)).unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        Self { process, said }
    }

    fn ask(&mut self, path: &str) -> String {
        writeln!(self.process.stdin.as_mut().unwrap(), "{path}").unwrap();
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

/// Connections that v1's app has.
fn connected(v1: &Pod) -> usize {
    let read = || std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let table = v1.namespace().run(read).unwrap();
    let of = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        // The local address, the other one, the state.
        words.next().is_some_and(|local| local.ends_with(":1F91")) && words.nth(1) == Some("01")
    };
    table.lines().filter(of).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_route_takes_no_connection_away_and_a_first_rule_lets_nothing_more_through() {
    let rig = Rig::new(&[("services.yaml", SERVICES)], &["n1"]);
    let near = &rig.nodes[0];
    let (shop, cgroup) = pod(near, "shop").await;
    let (v1, _) = pod(near, "v1").await;
    let (v2, _) = pod(near, "v2").await;
    serve("v1", v1.namespace().listen("0.0.0.0:8081").unwrap());
    serve("v2", v2.namespace().listen("0.0.0.0:8082").unwrap());
    let place = shop.namespace();
    let ask = |to: &str, path: &str| once(place, &cgroup, to, "GET", path);
    ask_until("v1 /", || ask(WHOAMI, "/")).await;
    let mut kept = Kept::open(place, &cgroup, WHOAMI);
    let mut ruled = Kept::open(place, &cgroup, V1);
    assert_eq!((&*kept.ask("/a"), &*ruled.ask("/a")), ("v1 /a", "v1 /a"));

    // The route comes in the middle of the load: who connects from then on meets it, and no request of
    // those who were connected is lost.
    let clients = load(place, &cgroup, WHOAMI, Duration::from_secs(4));
    let begun = Instant::now();
    while connected(&v1) < usize::try_from(CONNECTIONS).unwrap() + 2 {
        assert!(begun.elapsed() < SOON, "the clients do not connect");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rig.write("route.yaml", ROUTE);
    ask_until("v2 /new", || ask(WHOAMI, "/new")).await;
    assert_eq!(kept.ask("/b"), "v1 /b");
    let found = tokio::task::block_in_place(|| counts(clients));
    assert!(
        found.contains_key("v1") && found.values().sum::<u64>() >= 4 * 500,
        "{found:?}"
    );
    assert!(!found.contains_key("v2"), "{found:?}");
    assert_eq!(kept.ask("/c"), "v1 /c");

    rig.write("rule.yaml", RULE);
    ask_until("Access denied", || ask(V1, "/secret")).await;
    // Its twin, read by the agent.
    assert!(ask(V1, "/public/d").ends_with("v1 /public/d"));
    for path in ["/public/d", "/secret"] {
        assert_eq!(ruled.ask(path), "nothing");
    }
    let deadline = Instant::now() + SOON;
    loop {
        let flows: Vec<Flow> = near.flows("").await;
        let dropped = flows.iter().find(|f| {
            f.kind == "packet"
                && f.verdict() == Verdict::Dropped
                && f.direction == "ingress"
                && f.source.as_ref().is_some_and(|s| s.app_id == "shop")
                && f.destination.as_ref().is_some_and(|d| d.app_id == "v1")
        });
        if let Some(dropped) = dropped {
            assert_eq!(
                dropped.drop_reason,
                "PROXY_REDIRECTION_NOT_SUPPORTED_FOR_PROTOCOL"
            );
            assert!(dropped.rule.contains("default/public"), "{}", dropped.rule);
            return;
        }
        assert!(Instant::now() < deadline, "not told");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
