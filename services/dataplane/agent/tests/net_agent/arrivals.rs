//! Pods come and go on two nodes, as fast as the machine can but at most two hundred a second, through all
//! that a real start goes through: the agents' API, registration at a running policy service, its streams, the agents' writers, the
//! kernel's tables. A prober that knows the truth asks the programs meanwhile: what a pod that was
//! started sends is judged as that pod's, though its address was somebody else's a moment ago.

mod node;
mod probe;

use crate::control::Control;
use node::{Programs, Stub};
use probe::{ADDRESSES, Answers, PORTS, Pod, Truth, ip, probe};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Mutex, task::JoinSet, time::MissedTickBehavior};
use tonic::transport::Channel;
use weft_agent::{AgentConfig, Environment, Secret};
use weft_proto::weft::dataplane::v1::{
    AddRequest, Placed, RemoveRequest, WorkloadSpec, workload_spec::Place, workloads_client::WorkloadsClient,
};
use weft_telemetry::{Health, Metrics};
use weft_testnet::Testnet;

const NODES: [&str; 2] = ["n1", "n2"];
const ROLES: [&str; 3] = ["front", "bad", "other"];
/// Pods that come in a second, if the machine can do it, and in all; as many go.
const PER_SECOND: u32 = 200;
const PODS: u32 = 1_600;
/// Starts and stops that may be under way at once.
const WORKERS: usize = 96;
/// Of so many pods one has labels that nobody had before, as when something new is deployed; the others
/// have those of others, as pods of a Deployment do.
const NEW_IDENTITY: u32 = 8;

/// Of the cart of n1: nothing but what is allowed. Of n2's: everything but what is refused.
const POLICIES: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: cart-1, namespace: shop}
spec:
  endpointSelector: {matchLabels: {cart: n1}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: front}}]
    toPorts: [{ports: [{port: '80', protocol: TCP}]}]
  - fromEntities: [world]
    toPorts: [{ports: [{port: '443', protocol: TCP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: cart-2, namespace: shop}
spec:
  endpointSelector: {matchLabels: {cart: n2}}
  enableDefaultDeny: {ingress: false, egress: false}
  ingressDeny:
  - fromEndpoints: [{matchLabels: {role: bad}}]
";

/// An agent and the node that it is on.
struct Machine {
    programs: Arc<Programs>,
    workloads: WorkloadsClient<Channel>,
    metrics: Metrics,
    trigger: weft_drain::Trigger,
    handle: weft_agent::Handle,
}

impl Machine {
    async fn start(net: &Testnet, at: usize, folder: &Path, control: &Control) -> Self {
        let address = [192, 0, 2, 1 + at as u8].into();
        let node = Stub::new(net, NODES[at], address, folder);
        Self::on(&node, at, folder, control).await
    }

    /// The first agent of a node has a token; the next ones have its files.
    async fn on(node: &Stub, at: usize, folder: &Path, control: &Control) -> Self {
        let name = NODES[at];
        let [identity, policy, placement] = control.addresses();
        let data_dir = folder.join(name);
        let join_token = match data_dir.exists() {
            true => None,
            false => Some(Secret(control.node_token(name).await)),
        };
        let config = AgentConfig {
            identity,
            policy,
            placement,
            join_token,
            data_dir,
            listen: "127.0.0.1:0".into(),
            hubble_listen: String::new(),
            pod_cidrs: vec!["10.1.0.0/16".into()],
            ..AgentConfig::default()
        };
        let (trigger, drain) = weft_drain::channel();
        let (metrics, health) = (Metrics::new("dataplane"), Health::default());
        let environment = Environment::Handoff(node.attach());
        let handle = weft_agent::start(config, environment, &metrics, &health, drain).await;
        let handle = handle.unwrap();
        let channel = weft_rpc::channel_local(handle.local_socket().into()).unwrap();
        Self {
            programs: node.programs.clone(),
            workloads: WorkloadsClient::new(channel),
            metrics,
            trigger,
            handle,
        }
    }

    async fn stop(self) {
        let ended = tokio::spawn(self.handle.wait());
        self.trigger.drain(Duration::from_secs(10)).await;
        // The link's other end is gone as well by then.
        let _ = ended.await.unwrap();
    }
}

/// Writes to the kernel's tables that an agent made.
fn writes(metrics: &Metrics) -> u64 {
    let text = metrics.text();
    let line = text
        .lines()
        .find(|l| l.starts_with("weft_dataplane_kernel_writes_total "));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

async fn add(
    mut workloads: WorkloadsClient<Channel>,
    name: &str,
    labels: &[(&str, &str)],
    at: std::net::IpAddr,
) -> Placed {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let spec = WorkloadSpec {
        namespace: "shop".into(),
        name: name.into(),
        labels: labels.collect(),
        place: Some(Place::NetnsPath(at.to_string())),
        ..Default::default()
    };
    let added = workloads.add(AddRequest { spec: Some(spec) }).await;
    added.unwrap().into_inner().placed.unwrap()
}

/// What the workers share.
struct Work {
    truth: Arc<Truth>,
    workloads: [WorkloadsClient<Channel>; 2],
    free: Mutex<Vec<u8>>,
    /// One pod at each tick.
    ticks: Mutex<tokio::time::Interval>,
    begun: AtomicU32,
    /// When pods were started, and when they were told to stop.
    came: Moments,
    went: Moments,
}

/// When something happened, first and last, and how often.
#[derive(Default)]
struct Moments(Mutex<Option<(Instant, Instant, u32)>>);

impl Moments {
    async fn note(&self) {
        let now = Instant::now();
        let mut noted = self.0.lock().await;
        let (first, _, count) = noted.unwrap_or((now, now, 0));
        *noted = Some((first, now, count + 1));
    }

    /// How often, and how often in a second between the first time and the last.
    async fn rate(&self) -> (u32, f64) {
        let (first, last, count) = self.0.lock().await.unwrap();
        (count, f64::from(count - 1) / (last - first).as_secs_f64())
    }
}

/// Starts pods and stops them until all have been.
async fn work(shared: Arc<Work>, mut random: u32) {
    loop {
        shared.ticks.lock().await.tick().await;
        let number = shared.begun.fetch_add(1, Ordering::Relaxed);
        if number >= PODS {
            return;
        }
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let pick = |bits: u32, of: usize| (random >> bits) as usize % of;
        let last = {
            let mut free = shared.free.lock().await;
            let at = pick(8, free.len());
            free.swap_remove(at)
        };
        let (role, on) = (ROLES[pick(16, 3)], pick(20, 2));
        shared.came.note().await;
        let name = format!("pod-{number}");
        shared.truth.begin(last, role);
        let version = match number % NEW_IDENTITY {
            0 => name.clone(),
            n => n.to_string(),
        };
        let labels = [("role", role), ("version", version.as_str())];
        let placed = add(shared.workloads[on].clone(), &name, &labels, ip(last)).await;
        let pod = Pod {
            role,
            node: on,
            number: node::number(&placed.id),
            identity: placed.identity,
        };
        shared.truth.started(last, pod);
        tokio::time::sleep(Duration::from_millis(10 + pick(12, 100) as u64)).await;
        shared.truth.leaves(last);
        let gone = RemoveRequest { id: placed.id };
        shared.workloads[on].clone().remove(gone).await.unwrap();
        shared.went.note().await;
        shared.free.lock().await.push(last);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_started_pod_sends_is_judged_as_its_own() {
    weft_tls::install_provider();
    let net = Testnet::new().unwrap();
    let folder = net.dir().join("control");
    std::fs::create_dir_all(folder.join("resources")).unwrap();
    std::fs::write(folder.join("resources").join("cart.yaml"), POLICIES).unwrap();
    let control = Control::start(&folder, [127, 0, 0, 1].into(), Default::default()).await;
    let mut machines = Vec::new();
    for (at, name) in NODES.into_iter().enumerate() {
        let machine = Machine::start(&net, at, &folder, &control).await;
        let cart = probe::cart(at);
        add(machine.workloads.clone(), "cart", &[("cart", name)], cart).await;
        machines.push(machine);
    }
    let truth = Arc::new(Truth::default());
    let over = Arc::new(AtomicBool::new(false));
    let probers: Vec<_> = machines
        .iter()
        .enumerate()
        .map(|(at, machine)| {
            let (programs, truth, over) = (machine.programs.clone(), truth.clone(), over.clone());
            std::thread::spawn(move || probe(at, &programs, &truth, &over))
        })
        .collect();

    let mut ticks = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    // What a busy machine misses comes later, as far as there are workers: the rate is that of all of it.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let shared = Arc::new(Work {
        truth: truth.clone(),
        workloads: [machines[0].workloads.clone(), machines[1].workloads.clone()],
        free: Mutex::new((1..=ADDRESSES).collect()),
        ticks: Mutex::new(ticks),
        begun: AtomicU32::new(0),
        came: Moments::default(),
        went: Moments::default(),
    });
    let mut workers = JoinSet::new();
    for n in 0..WORKERS {
        workers.spawn(work(shared.clone(), 12_345 + 7_919 * n as u32));
    }
    while let Some(ended) = workers.join_next().await {
        ended.unwrap();
    }
    over.store(true, Ordering::Release);
    let ((came, coming), (went, going)) = (shared.came.rate().await, shared.went.rate().await);
    println!("{came} pods came, {coming:.0} a second, and {went} went, {going:.0} a second");
    assert_eq!((came, went), (PODS, PODS));
    for (name, prober) in NODES.into_iter().zip(probers) {
        let answers: Answers = prober.join().unwrap();
        println!(
            "{name}: {} probes, {} passed, {} dropped; {} while the address changed hands, {} of a pod that was \
             not known there yet",
            answers.asked, answers.passed, answers.dropped, answers.during, answers.early,
        );
        assert!(answers.wrong.is_empty(), "{name}: {:#?}", answers.wrong);
        assert!(answers.asked > 1_000 && answers.during > 0, "{answers:?}");
        // Of started pods, and not always the same.
        assert!(
            answers.settled_passed > 0 && answers.settled_dropped > 0,
            "{answers:?}"
        );
    }
    known_in_the_end(&machines).await;
    for machine in machines {
        machine.stop().await;
    }
    control.stop().await;
}

/// While an agent is replaced there are two. The old one writes the kernel's tables until it drains, the
/// new one from then on, and both never.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_agents_one_writes_the_tables() {
    weft_tls::install_provider();
    let net = Testnet::new().unwrap();
    let folder = net.dir().join("control");
    std::fs::create_dir_all(folder.join("resources")).unwrap();
    std::fs::write(folder.join("resources").join("cart.yaml"), POLICIES).unwrap();
    let control = Control::start(&folder, [127, 0, 0, 1].into(), Default::default()).await;
    let node = Stub::new(&net, NODES[0], [192, 0, 2, 1].into(), &folder);
    let old = Machine::on(&node, 0, &folder, &control).await;
    add(old.workloads.clone(), "cart", &[("cart", "n1")], probe::cart(0)).await;
    let new = Machine::on(&node, 0, &folder, &control).await;

    let front = [("role", "front")];
    let passes = |placed: &Placed, last: u8| {
        let frame = probe::syn(ip(last), 1_000, probe::cart(0), 80);
        node.programs.pass(&frame, Some(node::number(&placed.id)))
    };
    let before = writes(&old.metrics);
    // Its connection to the old one is older than the new one.
    let placed = add(old.workloads.clone(), "first", &front, ip(1)).await;
    assert!(passes(&placed, 1));
    assert!(writes(&old.metrics) > before);
    assert_eq!(writes(&new.metrics), 0, "it is not its turn");

    let metrics = old.metrics.clone();
    old.stop().await;
    let before = writes(&metrics);
    let placed = add(new.workloads.clone(), "second", &front, ip(2)).await;
    assert!(passes(&placed, 2));
    assert!(writes(&new.metrics) > 0);
    assert_eq!(writes(&metrics), before, "its turn is over");
    new.stop().await;
    control.stop().await;
}

/// "Not known yet" ends: each of two more pods is let in where it may, and not where it may not.
async fn known_in_the_end(machines: &[Machine]) {
    for (last, role) in [(1, "front"), (2, "bad")] {
        let placed = add(machines[0].workloads.clone(), role, &[("role", role)], ip(last)).await;
        for (at, machine) in machines.iter().enumerate() {
            let begun = Instant::now();
            while machine.programs.identity_of(ip(last)) != Some(placed.identity) {
                assert!(begun.elapsed() < crate::rig::SOON, "{role} at {}", NODES[at]);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let from = (at == 0).then(|| node::number(&placed.id));
            for port in PORTS {
                let frame = probe::syn(ip(last), 1_000, probe::cart(at), port);
                let passes = machine.programs.pass(&frame, from);
                assert_eq!(
                    passes,
                    probe::allowed(at, role, port),
                    "{role} at {}:{port}",
                    NODES[at]
                );
            }
        }
    }
}
