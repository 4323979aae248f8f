//! Policies that speak of names, with a real resolver (dnsmasq) and real clients (dig, libc): what may be asked,
//! what answers open and for how long. All of it by UDP and TCP, IPv4 and IPv6.

use crate::{
    carrying::script,
    flows::{Flow, Verdict},
    rig::{Rig, Running, SOON, signal},
};
use nix::sys::signal::Signal;
use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use weft_proto::weft::dataplane::v1::workload_spec::Place;
use weft_testnet::{Node, Pod, Process, Spawn};

/// A twin of the policy's subject is `free`, which no policy selects.
const POLICY: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: names, namespace: default}
spec:
  endpointSelector: {matchExpressions: [{key: dapr.io/app-id, operator: In, values: [shop, worker]}]}
  egress:
  - toCIDR: ["203.0.113.53/32", "fd00:113::53/128"]
    toPorts:
    - ports: [{port: "53", protocol: ANY}]
      rules: {dns: [{matchPattern: "*.allowed.test"}, {matchName: lone.test}]}
  - toFQDNs: [{matchPattern: "*.allowed.test"}]
    toPorts: [{ports: [{port: "7000", protocol: TCP}]}]
"#;
const RESOLVERS: [&str; 2] = ["203.0.113.53", "fd00:113::53"];
/// Of the resolver's answers, in seconds: long enough for an agent to start anew.
const TTL: u64 = 20;

/// Somebody outside of the mesh: a resolver, and services at some addresses.
struct Outside {
    node: Node,
    _resolver: Process,
}

impl Outside {
    fn new(rig: &Rig) -> Self {
        let node = rig.net.node("outside").unwrap();
        let hosts = [1, 2, 3, 4, 53].map(|n| {
            format!("address add 203.0.113.{n}/32 dev lo\naddress add fd00:113::{n}/128 dev lo nodad\n")
        });
        node.namespace()
            .ip(&format!("link set lo up\n{}", hosts.concat()))
            .unwrap();
        for running in &rig.nodes {
            let routes = format!(
                "route add 203.0.113.0/24 via {}\nroute add fd00:113::/64 via {}\n",
                node.v4(),
                node.v6()
            );
            running.node.namespace().ip(&routes).unwrap();
        }
        let mut command = Command::new("dnsmasq");
        command.args([
            "--no-daemon",
            "--conf-file=/dev/null",
            "--user=root",
            "--pid-file=",
            "--no-resolv",
            "--no-hosts",
            "--local=/test/",
            "--bind-interfaces",
            "--host-record=www.allowed.test,203.0.113.1,fd00:113::1",
            "--host-record=lone.test,203.0.113.2",
            "--host-record=other.test,203.0.113.3",
            "--host-record=kept.allowed.test,203.0.113.4",
            "--cname=alias.allowed.test,www.allowed.test",
        ]);
        command.arg(format!("--local-ttl={TTL}"));
        command.args(RESOLVERS.map(|address| format!("--listen-address={address}")));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let resolver = node.namespace().spawn(command, &Spawn::root()).unwrap();
        let listener = node.namespace().listen("[::]:7000").unwrap();
        std::thread::spawn(move || greet(&listener));
        Self {
            node,
            _resolver: resolver,
        }
    }

    /// Until the resolver answers.
    fn ready(&self) {
        let deadline = Instant::now() + SOON;
        let asked = || {
            let mut dig = Command::new("dig");
            dig.args([
                "+short",
                "+time=1",
                "+tries=1",
                "www.allowed.test",
                "@203.0.113.53",
            ]);
            dig.stdout(Stdio::piped());
            let mut process = self.node.namespace().spawn(dig, &Spawn::root()).unwrap();
            let mut said = String::new();
            let stdout = process.stdout.take().unwrap();
            BufReader::new(stdout).read_line(&mut said).unwrap();
            said
        };
        while asked().trim() != "203.0.113.1" {
            assert!(Instant::now() < deadline, "dnsmasq does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Greets who connects, and gives lines back.
fn greet(listener: &TcpListener) {
    for mut stream in listener.incoming().map_while(Result::ok) {
        std::thread::spawn(move || {
            let _ = stream.write_all(b"hello\n");
            let reader = BufReader::new(stream.try_clone().unwrap());
            for line in reader.lines().map_while(Result::ok) {
                if stream.write_all(format!("{line}\n").as_bytes()).is_err() {
                    return;
                }
            }
        });
    }
}

/// An app in a pod.
struct App {
    pod: Pod,
    cgroup: PathBuf,
}

impl App {
    async fn new(node: &Running, name: &str) -> Self {
        let pod = node.node.pod(name).unwrap();
        let place = Place::NetnsPath(pod.namespace().path().to_str().unwrap().into());
        let placed = node.add(name, 0, place).await;
        let cgroup = PathBuf::from(placed.cgroup);
        Self { pod, cgroup }
    }

    fn run(&self, text: &str) -> String {
        script(&self.pod, &self.cgroup, text).trim().to_owned()
    }

    /// What dig says: the status and, each on a line, the answers' data.
    fn dig(&self, arguments: &str) -> (String, Vec<String>) {
        let said = self.run(&format!(
            "dig +time=5 +tries=1 +noall +comments +answer {arguments}; true"
        ));
        let status = said
            .split("status: ")
            .nth(1)
            .and_then(|rest| rest.split(',').next());
        let answers = said
            .lines()
            .filter(|line| !line.starts_with(';') && !line.is_empty());
        let data = answers.filter_map(|line| line.split_whitespace().last());
        (
            status.unwrap_or(&said).to_owned(),
            data.map(str::to_owned).collect(),
        )
    }

    /// Whether it is greeted there. Two seconds suffice for a SYN that is sent again.
    fn reaches(&self, address: &str) -> bool {
        let call = format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/7000 && head -n 1 <&3'; true");
        self.run(&call) == "hello"
    }
}

fn is_answer(found: &(String, Vec<String>), data: &[&str]) -> bool {
    found.0 == "NOERROR" && found.1 == data
}

async fn flow(node: &Running, what: &str, wanted: impl Fn(&Flow) -> bool) -> Flow {
    let deadline = Instant::now() + SOON;
    loop {
        let flows = node.all_flows().await;
        if let Some(found) = flows.iter().find(|flow| wanted(flow)) {
            return found.clone();
        }
        assert!(Instant::now() < deadline, "no flow of {what}: {flows:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn of(flow: &Flow, kind: &str, verdict: Verdict, to: &str) -> bool {
    flow.kind == kind
        && flow.verdict() == verdict
        && flow.source.as_ref().is_some_and(|s| s.app_id == "shop")
        && flow.destination.as_ref().is_some_and(|d| d.address == to)
}

#[tokio::test(flavor = "multi_thread")]
async fn allowed_names_open_their_addresses() {
    let rig = Rig::new(&[("names.yaml", POLICY)], &["n1"]);
    let node = &rig.nodes[0];
    let outside = Outside::new(&rig);
    outside.ready();
    let (shop, free) = (App::new(node, "shop").await, App::new(node, "free").await);

    // Before anybody asked for it, an address is nobody's.
    assert!(!shop.reaches("203.0.113.1"));
    let refused = flow(node, "the first refusal", |f| {
        of(f, "packet", Verdict::Dropped, "203.0.113.1")
    })
    .await;
    assert_eq!(refused.drop_reason, "POLICY_DENIED", "{refused:?}");
    assert!(
        refused
            .rule
            .starts_with("no rule of CiliumNetworkPolicy/default/names"),
        "{refused:?}"
    );

    // The answer opens it at once, with nothing between.
    let call = "dig +short www.allowed.test @203.0.113.53 && \
                timeout 2 bash -c 'exec 3<>/dev/tcp/203.0.113.1/7000 && head -n 1 <&3'";
    assert_eq!(shop.run(call), "203.0.113.1\nhello");
    let passed = flow(node, "the connection", |f| {
        of(f, "packet", Verdict::Forwarded, "203.0.113.1")
    })
    .await;
    assert!(
        passed.rule.ends_with("egress[1].toPorts[0].ports[0]"),
        "{passed:?}"
    );
    let asked = flow(node, "the question", |f| {
        of(f, "dns", Verdict::Forwarded, "203.0.113.53")
    })
    .await;
    assert!(asked.rule.contains("default/names: egress[0]"), "{asked:?}");

    // Another name may not be asked for; the twin, whom no policy selects, may.
    let other = "other.test @203.0.113.53";
    assert_eq!(shop.dig(other), ("REFUSED".into(), Vec::new()));
    assert!(is_answer(&free.dig(other), &["203.0.113.3"]));
    assert!(!shop.reaches("203.0.113.3") && free.reaches("203.0.113.3"));
    let refused = flow(node, "the refused question", |f| {
        of(f, "dns", Verdict::Dropped, "203.0.113.53")
    })
    .await;
    assert_eq!(refused.drop_reason, "POLICY_DENIED");
    assert!(refused.rule.contains("default/names: egress[0]"), "{refused:?}");

    // One that may be asked for and is not among those to connect to opens nothing.
    assert!(is_answer(&shop.dig("lone.test @203.0.113.53"), &["203.0.113.2"]));
    assert!(!shop.reaches("203.0.113.2"));
    // What does not exist is said as the resolver says it.
    assert_eq!(shop.dig("no.allowed.test @203.0.113.53").0, "NXDOMAIN");

    // By TCP, by IPv6, by libc, by another name for it.
    assert!(is_answer(
        &shop.dig("+tcp www.allowed.test @203.0.113.53"),
        &["203.0.113.1"]
    ));
    assert_eq!(shop.dig("+tcp other.test @203.0.113.53").0, "REFUSED");
    assert!(
        !shop.reaches("fd00:113::1"),
        "only its IPv4 address was asked for"
    );
    assert!(is_answer(
        &shop.dig("AAAA www.allowed.test @fd00:113::53"),
        &["fd00:113::1"]
    ));
    assert!(shop.reaches("fd00:113::1"));
    assert_eq!(shop.dig("other.test @fd00:113::53").0, "REFUSED");
    assert!(is_answer(
        &shop.dig("+tcp AAAA www.allowed.test @fd00:113::53"),
        &["fd00:113::1"]
    ));
    let by_alias = shop.dig("alias.allowed.test @203.0.113.53");
    assert!(
        is_answer(&by_alias, &["www.allowed.test.", "203.0.113.1"]),
        "{by_alias:?}"
    );
    assert_eq!(libc_resolves(&shop, &rig, "www.allowed.test"), "203.0.113.1");
    assert_eq!(libc_resolves(&shop, &rig, "other.test"), "");

    // A process of the node, which has no namespace of its own.
    let (cgroup, _first) = node.add_process("worker").await;
    let worker = |text: &str| node.script(Some(&cgroup), text).trim().to_owned();
    let short = |name: &str| worker(&format!("dig +short +time=5 +tries=1 {name} @203.0.113.53; true"));
    assert_eq!(short("kept.allowed.test"), "203.0.113.4");
    let connects = |address: &str| {
        worker(&format!(
            "timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/7000 && head -n 1 <&3'; true"
        ))
    };
    assert_eq!(connects("203.0.113.4"), "hello");
    let refused = worker("dig +noall +comments +time=5 +tries=1 other.test @203.0.113.53; true");
    assert!(refused.contains("status: REFUSED"), "{refused}");
    assert_eq!(connects("203.0.113.3"), "");

    // A resolver that no rule names is not asked at all.
    assert_ne!(shop.dig("www.allowed.test @203.0.113.4").0, "NOERROR");
}

/// What libc's own resolver says, which connects its sockets.
fn libc_resolves(app: &App, rig: &Rig, name: &str) -> String {
    let file = rig.net.dir().join("resolv.conf");
    std::fs::write(&file, "nameserver 203.0.113.53\noptions timeout:5 attempts:1\n").unwrap();
    let script = format!(
        "mount --bind {} /etc/resolv.conf && getent ahostsv4 {name} | awk 'NR == 1 {{print $1}}'",
        file.display()
    );
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", &script])
        .stdout(Stdio::piped());
    let spawn = Spawn::root().cgroup(&app.cgroup);
    let mut process = app.pod.namespace().spawn(command, &spawn).unwrap();
    let mut said = String::new();
    let stdout = process.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut said).unwrap();
    said.trim().to_owned()
}

/// Speaks over one connection until it is cut, and says so.
fn hold(app: &App, address: &str, log: &Path) -> Process {
    let script = format!(
        "exec 3<>/dev/tcp/{address}/7000; read -r hello <&3; echo $hello; \
         while echo ping >&3 && read -t 10 -r line <&3; do sleep 0.3; done; echo cut"
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script]);
    command.stdout(std::fs::File::create(log).unwrap());
    let spawn = Spawn::root().cgroup(&app.cgroup);
    app.pod.namespace().spawn(command, &spawn).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_names_outlive_the_agent_and_end_with_their_answer() {
    let rig = Rig::new(&[("names.yaml", POLICY)], &["n1"]);
    let node = &rig.nodes[0];
    let outside = Outside::new(&rig);
    outside.ready();
    let shop = App::new(node, "shop").await;
    let log = rig.net.dir().join("held");
    assert!(is_answer(
        &shop.dig("kept.allowed.test @203.0.113.53"),
        &["203.0.113.4"]
    ));
    let _held = hold(&shop, "203.0.113.4", &log);
    assert!(is_answer(
        &shop.dig("www.allowed.test @203.0.113.53"),
        &["203.0.113.1"]
    ));
    assert!(shop.reaches("203.0.113.1"));

    // Killed: what it knew of names is there again, and nobody has to ask.
    let old = node.agent();
    signal(old, Signal::SIGKILL);
    let deadline = Instant::now() + SOON;
    while node.agent_now().is_none_or(|now| now == old) {
        assert!(Instant::now() < deadline, "the agent does not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let answered = || shop.dig("+time=1 lone.test @203.0.113.53").0 == "NOERROR";
    while !answered() {
        assert!(Instant::now() < deadline, "the new agent does not answer");
    }
    assert!(shop.reaches("203.0.113.1"));

    // In time it is closed again, as nobody asks; what is in use stays.
    let deadline = Instant::now() + Duration::from_secs(TTL) + 2 * SOON;
    while shop.reaches("203.0.113.1") {
        assert!(
            Instant::now() < deadline,
            "the answer's time is over and the address still open"
        );
        // The connection that was tried is one that is in use for a while.
        tokio::time::sleep(Duration::from_secs(15)).await;
    }
    let held = std::fs::read_to_string(&log).unwrap();
    assert_eq!(held, "hello\n", "cut, though it was in use");
    assert!(is_answer(
        &shop.dig("www.allowed.test @203.0.113.53"),
        &["203.0.113.1"]
    ));
    assert!(shop.reaches("203.0.113.1"), "asked for again");
}
