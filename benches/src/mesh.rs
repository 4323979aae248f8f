//! The mesh: what direct traffic of pods costs with Weft in the kernel, beside the same pods on a node
//! without Weft; what a policy's size costs; what an endpoint costs in memory.
//!
//! Client and server are two pods of one node, on a core each. With Weft every packet passes the
//! programs at both veths: source address, policy of both sides, connection tracking. New connections
//! go to a service's address. Without Weft they go to the server's own, on a node of the same make.

use crate::{
    Options,
    rows::{Row, median, spread},
    tables,
    traffic::{Counted, Kind},
};
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeMap,
    io::Read,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};
use weft_demo::{
    command::{output, wait_for},
    stage::{Stage, StageOptions},
};
use weft_testnet::{Namespace, Process, Spawn};

const PORT: u16 = 7001;
const SERVICE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 7, 7)), 80);
/// CPU of both ends of a tunnel, microseconds per request.
const TUNNEL: f64 = 35.0;
const START: Duration = Duration::from_secs(30);

/// What selects both pods: default deny in both directions, with what the benchmark does allowed.
const DESIRED: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
    - fromEndpoints: [{matchLabels: {app: client}}]
      toPorts: [{ports: [{port: \"7001\", protocol: TCP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: client, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress:
    - toEndpoints: [{matchLabels: {app: server}}]
      toPorts: [{ports: [{port: \"7001\", protocol: TCP}]}]
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: default}
spec:
  clusterIP: 10.96.7.7
  selector: {app: server}
  ports: [{port: 80, targetPort: 7001, protocol: TCP}]
";

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
    let mut stage = Stage::new(&StageOptions {
        bin_dir: options.bin_dir.clone(),
        python: None,
    })?;
    let program = stage.dir().join("bin/weft-bench");
    stage.apply("mesh.yaml", DESIRED)?;
    for name in ["identity", "policy", "placement"] {
        stage.start_service(name).await?;
    }
    stage.start_node("n1", &["default/*"]).await?;
    let sides = [plain(&stage, &program)?, meshed(&mut stage, &program).await?];
    let mut taken: BTreeMap<&str, [Vec<f64>; 2]> = BTreeMap::new();
    for (name, kind, service, ..) in FIGURES {
        for side in &sides {
            wait_for(name, START, || async {
                side.measure(&program, kind, service, 100).await
            })
            .await
            .with_context(|| stage.log_tail("n1"))?;
        }
    }
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for (name, kind, service, ..) in FIGURES {
            // Whoever is second finds a warmer machine: that changes from round to round.
            let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
            for at in order {
                let counted = sides[at]
                    .measure(&program, kind, service, u64::from(options.seconds) * 1000)
                    .await?;
                let scale = if kind == Kind::Stream { 1e6 } else { 1.0 };
                let rate = counted.count as f64 / counted.seconds / scale;
                taken.entry(name).or_default()[at].push(rate);
            }
        }
    }
    stage.stop().await;
    let mut rows: Vec<Row> = FIGURES
        .iter()
        .filter_map(|figure| row(figure, taken.get(figure.0)?))
        .collect();
    rows.extend(tunnel(options).await?);
    rows.push(tables::memory()?);
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

/// Two pods of a node that has no Weft.
fn plain(stage: &Stage, program: &PathBuf) -> Result<Side> {
    let node = stage.testnet().node("plain")?;
    let (client, server) = (node.pod("plainc")?, node.pod("plains")?);
    let spawn = Spawn::nobody();
    let address = SocketAddr::from((server.v4(), PORT));
    Ok(Side {
        from: client.namespace().clone(),
        server: address,
        service: address,
        _serving: serve(program, server.namespace(), &spawn, address)?,
        spawn,
    })
}

/// The same under Weft.
async fn meshed(stage: &mut Stage, program: &PathBuf) -> Result<Side> {
    let server = stage.place_pod("n1", "server").await?;
    let client = stage.place_pod("n1", "client").await?;
    let address = SocketAddr::from((stage.pod("server")?.net.v4(), PORT));
    Ok(Side {
        from: client,
        server: address,
        service: SERVICE,
        _serving: serve(program, &server, &stage.in_pod("server"), address)?,
        spawn: stage.in_pod("client"),
    })
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
