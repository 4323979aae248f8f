//! The mesh: what direct traffic of pods costs with Weft in the kernel, beside the same pods on a node
//! without Weft; what a policy's size and an endpoint cost there; what a tunnel costs.
//!
//! Client and server are two pods of one node, on a core each. With Weft every packet passes the
//! programs at both veths: source address, policy of both sides (default deny, a hundred rules each),
//! connection tracking, events that somebody reads. New connections go to a service's address. Without
//! Weft they go to the server's own, on a node of the same make. The tables are written as an agent
//! writes them, by this process.

use crate::{
    Options, lookup,
    rows::{Row, median, spread},
    tables,
    traffic::{Counted, Kind},
};
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use weft_bpf::{
    Address, Backend, Direction, Endpoint, Entry, Frontend, Kernel, PolicyKey, Set, Transport, netns_cookie,
    pin_dir,
};
use weft_demo::command::{output, wait_for};
use weft_testnet::{Namespace, Node, Pod, Process, Spawn, Testnet};

const PORT: u16 = 7001;
const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 7, 7)), 80);
/// CPU of both ends of a tunnel, microseconds per request.
const TUNNEL: f64 = 35.0;
const START: Duration = Duration::from_secs(10);
const TCP: u8 = 6;
/// Rules beside the one that speaks.
const RULES: u32 = 100;
const WORLD: u32 = 2;

/// A figure that is asked for: name, traffic, to the service's address, unit, least ratio.
type Figure = (&'static str, Kind, bool, &'static str, Option<f64>);
const FIGURES: [Figure; 4] = [
    (
        "new-connections/service",
        Kind::Connect,
        true,
        "connections/s",
        Some(0.85),
    ),
    (
        "new-connections/direct",
        Kind::Connect,
        false,
        "connections/s",
        None,
    ),
    ("request-response", Kind::Ask, false, "requests/s", Some(0.95)),
    ("stream", Kind::Stream, false, "MB/s", Some(0.95)),
];

/// Where a client runs and what it calls.
struct Side {
    from: Namespace,
    spawn: Spawn,
    server: SocketAddr,
    service: SocketAddr,
    _serving: Process,
}

/// Measures and returns the rows.
pub async fn run(options: &Options) -> Result<Vec<Row>> {
    let program = std::env::current_exe()?;
    let net = Testnet::new()?;
    let (node, weft) = (net.node("plain")?, net.node("weft")?);
    let plain = Side::new(&program, &node.pod("pc")?, &node.pod("ps")?, &Spawn::root(), None)?;
    let meshed = Meshed::new(&net, &weft)?;
    let spawn = Spawn::root().cgroup(weft.cgroup().join("pods"));
    let ours = Side::new(&program, &meshed.client, &meshed.server, &spawn, Some(SERVICE))?;
    let sides = [plain, ours];
    let mut taken: BTreeMap<&str, [Vec<f64>; 2]> = BTreeMap::new();
    for (name, kind, service, ..) in FIGURES {
        for side in &sides {
            wait_for(name, START, || async {
                side.measure(&program, kind, service, 100).await
            })
            .await?;
        }
    }
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for (name, kind, service, ..) in FIGURES {
            // Whoever is second finds a warmer machine: that changes from round to round.
            let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
            for at in order {
                let time = u64::from(options.seconds) * 1000;
                let counted = sides[at].measure(&program, kind, service, time).await?;
                let scale = if kind == Kind::Stream { 1e6 } else { 1.0 };
                let rate = counted.count as f64 / counted.seconds / scale;
                taken.entry(name).or_default()[at].push(rate);
            }
        }
    }
    drop(sides);
    meshed.judged()?;
    let mut rows: Vec<Row> = FIGURES
        .iter()
        .filter_map(|figure| row(figure, taken.get(figure.0)?))
        .collect();
    rows.extend(lookup::rows(options.rounds)?);
    rows.push(tables::memory()?);
    rows.extend(tunnel(options).await?);
    Ok(rows)
}

/// Ours beside the machine's own; the ratio is the median of the rounds' ratios.
fn row(figure: &Figure, [plain, ours]: &[Vec<f64>; 2]) -> Option<Row> {
    let (name, _, _, unit, least) = *figure;
    let ratios: Vec<f64> = plain.iter().zip(ours).map(|(p, o)| o / p).collect();
    let ratio = median(&ratios);
    Some(Row {
        name: name.to_owned(),
        unit,
        value: median(ours),
        spread: spread(ours),
        peer: Some(median(plain)),
        ratio: Some(ratio),
        target: least.map(|l| format!("at least {l} of the machine without Weft")),
        holds: least.map(|l| ratio >= l),
    })
}

/// CPU of both ends of a tunnel for a request of 128 bytes and an answer of 1 KiB, on 16 connections:
/// captured, through mTLS with both SVIDs, judged on both sides. Both ends are in one process there, each
/// on threads of its own whose time is counted.
async fn tunnel(options: &Options) -> Result<Vec<Row>> {
    let program = options.bin_dir.join("examples/tunnel");
    if !program.exists() {
        eprintln!(
            "the tunnel is left out: build it with cargo build --release -p weft-capture --example tunnel"
        );
        return Ok(Vec::new());
    }
    let mut taken = Vec::new();
    for _ in 0..options.rounds {
        let mut command = Command::new(&program);
        command.args(["16", &options.seconds.to_string()]);
        let said = output(command).await?;
        let value = said
            .lines()
            .find_map(|l| l.strip_prefix("cpu-us-per-request "))
            .with_context(|| format!("no figure in {said}"))?;
        taken.push(value.trim().parse::<f64>()?);
    }
    Ok(vec![Row {
        name: "tunnel/both-ends/cpu".into(),
        unit: "µs/request",
        value: median(&taken),
        spread: spread(&taken),
        peer: None,
        ratio: None,
        target: Some(format!("at most {TUNNEL}")),
        holds: Some(median(&taken) <= TUNNEL),
    }])
}

/// Two pods under Weft, as an agent would write their tables.
struct Meshed {
    client: Pod,
    server: Pod,
    kernel: Kernel,
    reading: Arc<AtomicBool>,
    reader: Option<JoinHandle<u64>>,
}

/// A pod's endpoint number and its identity, which is also its set's number plus a thousand.
const CLIENT: u32 = 1;
const SERVER: u32 = 2;

fn identity(endpoint: u32) -> u32 {
    1000 + endpoint
}

impl Meshed {
    fn new(net: &Testnet, node: &Node) -> Result<Self> {
        fs::create_dir_all(node.cgroup())?;
        let options = weft_bpf::Options::new(node.cgroup(), pin_dir(&net.bpffs()?, node.name()));
        let kernel = Kernel::load(&options)?;
        let (client, server) = (node.pod("wc")?, node.pod("ws")?);
        let tables = kernel.datapath()?;
        for net in ["::/0", "::ffff:0:0/96"] {
            let world = Address {
                identity: WORLD,
                ..Address::default()
            };
            tables.addresses.set(net.parse()?, world)?;
        }
        for (number, pod, peer, direction) in [
            (CLIENT, &client, SERVER, Direction::Out),
            (SERVER, &server, CLIENT, Direction::In),
        ] {
            place(&kernel, node, pod, number)?;
            let key = |identity| PolicyKey {
                set: number,
                identity,
                direction,
                protocol: TCP,
                port: PORT,
            };
            let others = (0..RULES).map(|n| 2000 + n);
            for (rule, identity) in others.chain([identity(peer)]).enumerate() {
                let entry = Entry {
                    rule: u32::try_from(rule)? + 1,
                    ..Entry::default()
                };
                tables.policy.set(key(identity), entry)?;
            }
            let set = Set {
                // Peer, protocol and port; protocol and port of any peer.
                shapes_in: 0b1001,
                shapes_out: 0b1001,
                // What is not allowed is refused, in the direction that the policy is about; no rule of it is
                // about requests.
                flags: if direction == Direction::In { 1 } else { 2 } | 32 | 64,
                generation: number,
            };
            tables.sets.set(number, set)?;
            let endpoint = Endpoint {
                identity: identity(number),
                set: number,
                ..Endpoint::default()
            };
            tables.endpoints.set(number, endpoint)?;
        }
        let backend = Backend {
            address: SocketAddr::from((server.v4(), PORT)),
            endpoint: SERVER,
        };
        let frontend = Frontend {
            address: SERVICE,
            transport: Transport::Tcp,
        };
        let left_out = kernel.services()?.set(frontend, false, &[backend])?.left_out;
        anyhow::ensure!(left_out == 0, "no room for the service");
        let mut events = kernel.events()?;
        let reading = Arc::new(AtomicBool::new(true));
        let go_on = reading.clone();
        let reader = std::thread::spawn(move || {
            let mut read = 0;
            while go_on.load(Ordering::Relaxed) {
                while events.read().is_some() {
                    read += 1;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            read
        });
        Ok(Self {
            client,
            server,
            kernel,
            reading,
            reader: Some(reader),
        })
    }

    /// That the programs did look at it: without events nothing was judged.
    fn judged(mut self) -> Result<()> {
        self.reading.store(false, Ordering::Relaxed);
        let reader = self.reader.take().context("no reader")?;
        let read = reader
            .join()
            .map_err(|_| anyhow::anyhow!("the reader ended early"))?;
        let counters = self.kernel.counters()?;
        eprintln!("{read} events read; counters: {counters:?}");
        anyhow::ensure!(read > 0, "the programs told of no connection: nothing was judged");
        Ok(())
    }
}

/// Source addresses, address cache, namespace, then the interface.
fn place(kernel: &Kernel, node: &Node, pod: &Pod, number: u32) -> Result<()> {
    let of = Address {
        identity: identity(number),
        local: true,
        endpoint: number,
        ..Address::default()
    };
    let tables = kernel.datapath()?;
    for address in pod.addresses() {
        kernel.sources()?.add(number, address)?;
        tables.addresses.set(address.into(), of)?;
    }
    kernel.add_namespace(pod.namespace().run(netns_cookie)??, number)?;
    let link = pod.node_link().name().to_owned();
    node.namespace().run(|| {
        let ifindex = nix::net::if_::if_nametoindex(link.as_str())?;
        kernel.interfaces()?.set(ifindex, number)?;
        kernel.attach_interface(ifindex)?;
        Ok(())
    })?
}

/// Clients have core 0, servers core 1.
fn on_core(core: usize, program: &PathBuf, arguments: &[&str]) -> Command {
    let mut command = Command::new("taskset");
    command
        .args(["-c", &core.to_string()])
        .arg(program)
        .arg("traffic");
    command.args(arguments).stdin(Stdio::null());
    command
}

fn serve(program: &PathBuf, namespace: &Namespace, spawn: &Spawn, address: SocketAddr) -> Result<Process> {
    let command = on_core(1, program, &["serve", &address.to_string()]);
    Ok(namespace.spawn(command, spawn)?)
}

impl Side {
    fn new(
        program: &PathBuf,
        client: &Pod,
        server: &Pod,
        spawn: &Spawn,
        service: Option<SocketAddr>,
    ) -> Result<Self> {
        let address = SocketAddr::from((server.v4(), PORT));
        Ok(Self {
            from: client.namespace().clone(),
            spawn: spawn.clone(),
            server: address,
            service: service.unwrap_or(address),
            _serving: serve(program, server.namespace(), spawn, address)?,
        })
    }

    async fn measure(
        &self,
        program: &PathBuf,
        kind: Kind,
        service: bool,
        milliseconds: u64,
    ) -> Result<Counted> {
        let address = if service { self.service } else { self.server };
        let arguments = [kind.name(), &address.to_string(), &milliseconds.to_string()];
        let mut command = on_core(0, program, &arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = self.from.spawn(command, &self.spawn)?;
        let (out, err) = (process.stdout.take(), process.stderr.take());
        tokio::task::spawn_blocking(move || {
            let (mut stdout, mut stderr) = (String::new(), String::new());
            if let (Some(mut out), Some(mut err)) = (out, err) {
                out.read_to_string(&mut stdout)?;
                err.read_to_string(&mut stderr)?;
            }
            if !process.wait()?.success() {
                bail!("{}", stderr.trim());
            }
            Ok(serde_json::from_str(&stdout)?)
        })
        .await?
    }
}
