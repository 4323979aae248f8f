//! A node that dies and comes back while traffic flows that it has nothing to do with: verdicts hold,
//! connections go on.

use crate::rig::{Rig, SOON, eventually, pod_spec};
use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use weft_bpf::{Datapath, Direction, Endpoint, Entry, PolicyKey, Set};
use weft_handoff::{Connected, PlacedWorkload};
use weft_testnet::{ForeignProgram, Namespace, Pod};

pub const SHOP: u32 = 4001;
pub const FRIEND: u32 = 4002;
pub const STRANGER: u32 = 4003;
const DENY_IN: u32 = 1;
/// Peer, protocol and port.
const EXACT: u32 = 1;
pub const PORT: u16 = 7000;
/// So long a refused connect is waited for: a packet that is dropped is not answered.
pub const REFUSED_AFTER: Duration = Duration::from_millis(150);

/// Every connection is answered line by line until it ends.
pub fn echo(namespace: &Namespace) {
    let listener: TcpListener = namespace.listen(("0.0.0.0", PORT)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Something done over and over in a pod, counted until it is stopped; it panics when it goes wrong.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Load {
    fn start(from: &Namespace, mut work: impl FnMut(u64) + Send + 'static) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (from, halt, count) = (from.clone(), stop.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            from.run(move || {
                while !halt.load(Ordering::Relaxed) {
                    work(count.load(Ordering::Relaxed));
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
            .unwrap();
        });
        Self { stop, done, thread }
    }

    pub fn count(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until `more` have been done from now on; fails as soon as one went wrong.
    pub async fn goes_on(&self, more: u64) {
        let from = self.count();
        eventually("the load goes on", || {
            assert!(!self.thread.is_finished(), "the load went wrong");
            self.count() >= from + more
        })
        .await;
    }

    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.done.load(Ordering::Relaxed)
    }
}

/// One connection, asked without end.
pub fn conversation(from: &Namespace, to: SocketAddr) -> Load {
    let mut stream = None;
    Load::start(from, move |n| {
        let stream = stream.get_or_insert_with(|| {
            let stream = TcpStream::connect_timeout(&to, SOON).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream
        });
        let question = format!("{n:08}");
        stream.write_all(question.as_bytes()).unwrap();
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, question.as_bytes());
    })
}

/// New connections; `allowed` says whether each must work or none.
pub fn connects(from: &Namespace, to: SocketAddr, allowed: bool) -> Load {
    Load::start(from, move |_| {
        let patience = if allowed { SOON } else { REFUSED_AFTER };
        match TcpStream::connect_timeout(&to, patience) {
            Ok(mut stream) if allowed => {
                stream.set_read_timeout(Some(SOON)).unwrap();
                stream.write_all(b"x").unwrap();
                stream.read_exact(&mut [0; 1]).unwrap();
            }
            Err(e) if !allowed && e.kind() == ErrorKind::TimedOut => {}
            other => panic!("allowed: {allowed}, and then {other:?}"),
        }
    })
}

pub struct Pods {
    pub shop: Pod,
    pub friend: Pod,
    pub stranger: Pod,
}

impl Pods {
    pub fn new(rig: &Rig) -> Self {
        Self {
            shop: rig.node.pod("shop").unwrap(),
            friend: rig.node.pod("friend").unwrap(),
            stranger: rig.node.pod("stranger").unwrap(),
        }
    }

    fn named(&self) -> [(&Pod, u32); 3] {
        [
            (&self.shop, SHOP),
            (&self.friend, FRIEND),
            (&self.stranger, STRANGER),
        ]
    }

    /// Without the listeners, which would keep ports for a node that is gone.
    pub async fn place(&self, agent: &Connected) -> Vec<PlacedWorkload> {
        let mut all = Vec::new();
        for (pod, _) in self.named() {
            let mut spec = pod_spec(pod, "");
            spec.addresses = pod.addresses().iter().map(ToString::to_string).collect();
            let mut placed = agent.link.place(spec).await.unwrap();
            placed.listeners.clear();
            all.push(placed);
        }
        all
    }
}

/// The shop is for friends, on one port; what an agent would write.
pub fn write_policy(datapath: &Datapath, pods: &Pods, placed: &[PlacedWorkload]) {
    crate::rig::write_world(datapath);
    let shop = Set {
        shapes_in: EXACT,
        flags: DENY_IN,
        generation: 2,
        ..Set::default()
    };
    let key = PolicyKey {
        set: 2,
        identity: FRIEND,
        direction: Direction::In,
        protocol: 6,
        port: PORT,
    };
    datapath.policy.set(key, Entry::default()).unwrap();
    datapath.sets.set(2, shop).unwrap();
    for ((pod, identity), placed) in pods.named().into_iter().zip(placed) {
        let endpoint = Endpoint {
            identity,
            set: if identity == SHOP { 2 } else { 1 },
            ..Endpoint::default()
        };
        crate::rig::write_endpoint(datapath, placed.endpoint, endpoint, &pod.addresses());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_and_the_next_change_no_verdict_and_break_no_connection() {
    let mut rig = Rig::without_agent();
    let pods = Pods::new(&rig);
    echo(pods.shop.namespace());
    // Two of the next: what ends in order leaves nothing, unless it is told to.
    rig.stop();
    rig.start(&["--no-agent", "--keep-state"], &[]);
    // Somebody else's program at the same hook.
    let foreign = ForeignProgram::at_interface(pods.shop.node_link()).unwrap();
    let mut agent = rig.connect().await;
    let datapath = Datapath::from_fds(&mut agent.hello.maps).unwrap();
    let placed = pods.place(&agent).await;
    let numbers: Vec<u32> = placed.iter().map(|p| p.endpoint).collect();
    write_policy(&datapath, &pods, &placed);

    let to = SocketAddr::new(pods.shop.v4().into(), PORT);
    let direct = conversation(pods.friend.namespace(), to);
    let new = connects(pods.friend.namespace(), to, true);
    let refused = connects(pods.stranger.namespace(), to, false);
    direct.goes_on(200).await;
    new.goes_on(20).await;
    refused.goes_on(2).await;

    for kill in [true, false, true] {
        drop(agent);
        if kill {
            let mut process = rig.process.take().unwrap();
            process.kill().unwrap();
            process.wait().unwrap();
        } else {
            // The planned way, as an upgrade goes: what is in the kernel stays.
            assert!(rig.stop().success());
        }
        let _ = std::fs::remove_file(rig.run_dir.join("node.sock"));
        // Nobody is there, and everything goes on.
        direct.goes_on(200).await;
        new.goes_on(20).await;
        refused.goes_on(2).await;
        rig.start(&["--no-agent", "--keep-state"], &[]);
        agent = rig.connect().await;
        let others = agent
            .hello
            .capabilities
            .iter()
            .find(|c| c.name == "other-programs");
        let others = &others.unwrap().reason;
        assert!(
            others.contains("tcx ingress: foreign")
                && !others.contains("_endpoint")
                && !others.contains("process_"),
            "{others}"
        );
        // Its launchers have not said anything yet, and its agent knows all the same.
        let mut known: Vec<u32> = agent.workloads.iter().map(|w| w.endpoint).collect();
        known.sort_unstable();
        assert_eq!(known, numbers);
        agent.workloads.clear();
        direct.goes_on(200).await;
        refused.goes_on(2).await;
        let again: Vec<u32> = pods.place(&agent).await.iter().map(|p| p.endpoint).collect();
        assert_eq!(again, numbers, "somebody has another number now");
        direct.goes_on(200).await;
        new.goes_on(20).await;
        refused.goes_on(2).await;
    }
    let counts = [direct.stop(), new.stop(), refused.stop()];
    println!("exchanges on one connection, connects, refused connects: {counts:?}");
    // Whoever clears up takes it away without its node, and then nobody is refused.
    let mut process = rig.process.take().unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    let pins = weft_bpf::pin_dir(&rig.net.bpffs().unwrap(), "n1");
    weft_bpf::uninstall(&pins).unwrap();
    assert!(!pins.exists());
    connects(pods.stranger.namespace(), to, true).goes_on(1).await;
    assert!(
        foreign.is_attached().unwrap(),
        "somebody else's program was taken away"
    );
}

/// What tunnels do not carry goes to another node's workload as it is, or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn strict_encryption_drops_what_goes_around_tunnels() {
    let mut rig = Rig::new(&["--no-agent", "--keep-state"], &[]);
    let friend = rig.node.pod("friend").unwrap();
    let other = rig.net.node("n2").unwrap();
    let remote = other.pod("remote").unwrap();
    echo(remote.namespace());
    let to = SocketAddr::new(remote.v4().into(), PORT);
    rig.connect().await;
    for (mode, passes) in [("tunnel", true), ("strict", false), ("tunnel", true)] {
        rig.stop();
        let _ = std::fs::remove_file(rig.run_dir.join("node.sock"));
        rig.start(&["--no-agent", "--keep-state", "--encryption", mode], &[]);
        let mut agent = rig.connect().await;
        let mut placed = agent.link.place(pod_spec(&friend, "")).await.unwrap();
        placed.listeners.clear();
        let datapath = crate::rig::open(&mut agent, &[&placed]);
        let elsewhere = weft_bpf::Address {
            identity: STRANGER,
            tunnel: true,
            ..weft_bpf::Address::default()
        };
        datapath.addresses.set(to.ip().into(), elsewhere).unwrap();
        // Not from its cgroup, where connect would have been taken to the tunnel.
        let connected = friend
            .namespace()
            .run(|| TcpStream::connect_timeout(&to, REFUSED_AFTER));
        assert_eq!(connected.unwrap().is_ok(), passes, "{mode}");
        let state = agent.hello.capabilities.iter().find(|c| c.name == "encryption");
        assert_eq!(state.unwrap().reason.contains("is dropped"), !passes, "{mode}");
    }
}

/// A veth that is made anew gets the programs, and a source address counts only if it was given.
#[tokio::test(flavor = "multi_thread")]
async fn a_veth_that_is_made_anew_is_judged_as_the_old_one() {
    let rig = Rig::without_agent();
    let pods = Pods::new(&rig);
    echo(pods.shop.namespace());
    let mut agent = rig.connect().await;
    let datapath = Datapath::from_fds(&mut agent.hello.maps).unwrap();
    let placed = pods.place(&agent).await;
    write_policy(&datapath, &pods, &placed);
    let to = SocketAddr::new(pods.shop.v4().into(), PORT);
    let attempt = |pod: &Pod| {
        let connected = pod
            .namespace()
            .run(|| TcpStream::connect_timeout(&to, REFUSED_AFTER));
        connected.unwrap().is_ok()
    };
    assert!(attempt(&pods.friend) && !attempt(&pods.stranger));

    let (shop, name) = (&pods.shop, pods.shop.node_link().name());
    let (v4, v6) = (shop.v4(), shop.v6());
    rig.node
        .namespace()
        .ip(&format!(
            "link del {name}\nlink add {name} type veth peer name eth0 netns {}\n",
            shop.namespace().path().display()
        ))
        .unwrap();
    shop.namespace()
        .ip(&format!(
            "address add {v4}/32 dev eth0\naddress add {v6}/128 dev eth0 nodad\nlink set eth0 up\n\
             route add 10.244.1.1/32 dev eth0\nroute add default via 10.244.1.1\n"
        ))
        .unwrap();
    rig.node
        .namespace()
        .ip(&format!(
            "link set {name} up\naddress add 10.244.1.1/32 dev {name}\nroute add {v4}/32 dev {name}\n"
        ))
        .unwrap();
    eventually("the friend reaches the shop again", || attempt(&pods.friend)).await;
    assert!(!attempt(&pods.stranger));
    // The friend with an address that nobody gave it, although the way back is there; and its twin.
    let friend = &pods.friend;
    rig.node
        .namespace()
        .ip(&format!(
            "route add 10.244.1.77/32 dev {}\n",
            friend.node_link().name()
        ))
        .unwrap();
    friend
        .namespace()
        .ip("address add 10.244.1.77/32 dev eth0\n")
        .unwrap();
    for (source, allowed) in [("10.244.1.77".to_owned(), false), (friend.v4().to_string(), true)] {
        let route = format!("route replace default via 10.244.1.1 src {source}\n");
        friend.namespace().ip(&route).unwrap();
        assert_eq!(attempt(friend), allowed, "from {source}");
    }
}
