//! The agent as a process that the node starts: its rights, its death, its replacement.

use crate::{
    rig::{AGENT_UID, Rig, SOON, ask, ask_here, eventually, processes_in, signal},
    stub,
};
use std::{
    collections::HashSet,
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use weft_testnet::{Namespace, Pod};

struct Supervised {
    rig: Rig,
    pod: Pod,
}

const RUNTIME: &str = "127.0.0.1:3500";

fn address() -> SocketAddr {
    RUNTIME.parse().unwrap()
}

async fn supervised() -> Supervised {
    let this = std::env::current_exe().unwrap();
    let mut args = vec!["--agent-bin", this.to_str().unwrap()];
    for arg in stub::ARGS {
        args.extend(["--agent-arg", arg]);
    }
    // The pod must be there before the agent places it.
    let net = weft_testnet::Testnet::new().unwrap();
    let node = net.node("n1").unwrap();
    let pod = node.pod("shop").unwrap();
    let run_dir = net.dir().join("run");
    let mut rig = Rig {
        process: None,
        log: std::sync::mpsc::channel().1,
        node,
        run_dir,
        net,
    };
    let broken = rig.net.dir().join("broken");
    let place = pod.namespace().path().to_str().unwrap().to_owned();
    rig.start(
        &args,
        &[(stub::PLACE, &place), (stub::BROKEN, broken.to_str().unwrap())],
    );
    eventually("the agent answers in the pod", || {
        ask(pod.namespace(), address(), "up").is_ok()
    })
    .await;
    Supervised { rig, pod }
}

fn agent_pid(rig: &Rig) -> u32 {
    // There is none while there is no agent.
    let text = std::fs::read_to_string(rig.run_dir.join("agent.pid")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_has_no_privilege_and_only_its_descriptors() {
    let mut s = supervised().await;
    let pid = agent_pid(&s.rig);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(&format!("{name}:")))
            .unwrap();
        line.split_once(':')
            .unwrap()
            .1
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NoNewPrivs"), ["1"]);
    let id = AGENT_UID.to_string();
    assert_eq!(field("Uid"), vec![id.clone(); 4]);
    assert_eq!(field("Gid"), vec![id; 4]);
    assert!(field("Groups").is_empty());
    // The twin: the node itself has what the agent has not.
    let own = std::fs::read_to_string(format!("/proc/{}/status", s.rig.pid())).unwrap();
    assert!(!own.contains("CapEff:\t0000000000000000"));

    // It is in the node's namespace and cgroup.
    let namespace = |path: &str| std::fs::read_link(path).unwrap();
    let expected = s
        .rig
        .node
        .namespace()
        .run(|| namespace("/proc/thread-self/ns/net"))
        .unwrap();
    assert_eq!(namespace(&format!("/proc/{pid}/ns/net")), expected);
    assert!(processes_in(&s.rig.node.cgroup().join("_node")).contains(&pid));
    // Nothing that it could open files of the node with: no folder, map or namespace of others.
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = std::fs::read_link(entry.unwrap().path()).unwrap_or_default();
        let text = target.to_string_lossy().into_owned();
        assert!(
            !text.contains("cgroup") && !text.starts_with("net:["),
            "descriptor of {text}"
        );
    }
    assert!(s.rig.stop().success());
    assert_eq!(s.rig.left_behind(), Vec::<std::path::PathBuf>::new());
}

/// Asks many times at once; every answer must repeat its own question. Returns who answered.
fn ask_all(namespace: &Namespace, count: usize) -> HashSet<u32> {
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..count)
            .map(|i| {
                scope.spawn(move || {
                    let question = format!("question {i}");
                    let text = ask(namespace, address(), &question).unwrap();
                    let (pid, rest) = text.split_once(' ').unwrap();
                    assert_eq!(rest.trim_end(), question);
                    pid.parse::<u32>().unwrap()
                })
            })
            .collect();
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn connects_wait_for_the_next_agent_when_one_is_killed() {
    let s = supervised().await;
    let first = agent_pid(&s.rig);
    // Nobody accepts: what connects now stands in the backlog while the agent dies.
    signal(first, libc::SIGSTOP);
    let stopped = || {
        std::fs::read_to_string(format!("/proc/{first}/status"))
            .unwrap()
            .contains("T (stopped)")
    };
    eventually("it has stopped", stopped).await;
    let namespace = s.pod.namespace().clone();
    let asking = std::thread::spawn(move || ask_all(&namespace, 50));
    let waiting = || {
        let queue = |text: &str| {
            text.lines()
                .filter(|l| l.contains("0100007F:0DAC") && l.split_whitespace().nth(3) == Some("01"))
                .count()
        };
        s.pod
            .namespace()
            .run(|| queue(&std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap()))
            .unwrap()
    };
    // Both ends of each connection are listed.
    eventually("all are connected", || waiting() >= 100).await;
    signal(first, libc::SIGKILL);
    let answered_by = asking.join().unwrap();
    let second = agent_pid(&s.rig);
    assert_ne!(first, second);
    assert_eq!(answered_by, HashSet::from([second]));
    // It is started again each time.
    signal(second, libc::SIGKILL);
    let own = s.rig.node.cgroup().join("_node");
    eventually("it has ended", || !processes_in(&own).contains(&second)).await;
    assert!(!ask_all(s.pod.namespace(), 10).contains(&second));
}

/// Sixteen clients that ask over and over, each request over a connection of its own, until dropped.
struct Load {
    done: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    started: Instant,
    running: std::thread::JoinHandle<Outcome>,
}

#[derive(Default)]
struct Outcome {
    answered_by: HashSet<u32>,
    failed: Vec<std::io::Error>,
}

const CLIENTS: usize = 16;

impl Load {
    fn start(namespace: &Namespace) -> Self {
        let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (inside, over, count) = (namespace.clone(), Arc::clone(&done), Arc::clone(&asked));
        let client = move |client: usize| {
            let mut outcome = Outcome::default();
            while !over.load(Ordering::SeqCst) {
                let question = format!("{client} {}", count.fetch_add(1, Ordering::SeqCst));
                match ask_here(address(), &question) {
                    Ok(text) if text.is_empty() => outcome.failed.push(ErrorKind::UnexpectedEof.into()),
                    Ok(text) => {
                        let (pid, rest) = text.split_once(' ').unwrap();
                        assert_eq!(rest.trim_end(), question);
                        outcome.answered_by.insert(pid.parse().unwrap());
                    }
                    Err(error) => outcome.failed.push(error),
                }
            }
            outcome
        };
        let running = std::thread::spawn(move || {
            let clients = || {
                std::thread::scope(|scope| {
                    let clients: Vec<_> = (0..CLIENTS)
                        .map(|i| {
                            scope.spawn({
                                let client = &client;
                                move || client(i)
                            })
                        })
                        .collect();
                    clients.into_iter().fold(Outcome::default(), |mut all, one| {
                        let one = one.join().unwrap();
                        all.answered_by.extend(one.answered_by);
                        all.failed.extend(one.failed);
                        all
                    })
                })
            };
            inside.run(clients).unwrap()
        });
        Self {
            done,
            asked,
            started: Instant::now(),
            running,
        }
    }

    async fn flows(&self) {
        let before = self.asked.load(Ordering::SeqCst);
        eventually("requests flow", || {
            self.asked.load(Ordering::SeqCst) >= before + 1000
        })
        .await;
    }

    fn stop(self) -> Outcome {
        let rate = self.asked.load(Ordering::SeqCst) as f64 / self.started.elapsed().as_secs_f64();
        self.done.store(true, Ordering::SeqCst);
        println!("{rate:.0} requests/s over {CLIENTS} connections");
        assert!(rate >= 500.0, "{rate} requests/s are no load");
        self.running.join().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_under_load_costs_the_requests_in_flight_and_no_connect() {
    let s = supervised().await;
    let first = agent_pid(&s.rig);
    let load = Load::start(s.pod.namespace());
    load.flows().await;
    signal(first, libc::SIGKILL);
    eventually("another agent is started", || {
        ![0, first].contains(&agent_pid(&s.rig))
    })
    .await;
    load.flows().await;
    let outcome = load.stop();
    assert_eq!(outcome.answered_by, HashSet::from([first, agent_pid(&s.rig)]));
    // What the agent had accepted dies with it: at most one request of each client.
    assert!(outcome.failed.len() <= CLIENTS, "{:?}", outcome.failed);
    for error in outcome.failed {
        assert!(
            matches!(
                error.kind(),
                ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe
            ),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_loses_no_request() {
    let s = supervised().await;
    let first = agent_pid(&s.rig);
    let load = Load::start(s.pod.namespace());
    load.flows().await;
    signal(s.rig.pid(), libc::SIGHUP);
    eventually("another agent is started", || {
        ![0, first].contains(&agent_pid(&s.rig))
    })
    .await;
    let second = agent_pid(&s.rig);
    let own = s.rig.node.cgroup().join("_node");
    eventually("the old one has ended", || !processes_in(&own).contains(&first)).await;
    load.flows().await;

    // A release that does not come up changes nothing.
    let broken = s.rig.net.dir().join("broken");
    std::fs::write(&broken, "").unwrap();
    signal(s.rig.pid(), libc::SIGHUP);
    let deadline = Instant::now() + SOON;
    let told = |rig: &Rig| rig.log.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
    while !told(&s.rig).contains("the old one stays") {
        assert!(Instant::now() < deadline, "the failure is not told");
    }
    std::fs::remove_file(&broken).unwrap();
    load.flows().await;
    assert_eq!(agent_pid(&s.rig), second);
    let outcome = load.stop();
    assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
    assert_eq!(outcome.answered_by, HashSet::from([first, second]));
}
