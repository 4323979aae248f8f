//! The baseline: the same backend directly, behind nginx and Envoy as plain proxies, behind one
//! agent, and behind two agents with mTLS between them.
//!
//! Every path is loopback TCP on both sides of the proxy. Client and backend share core 0, what is
//! under test has core 1. Ours runs with policy, metrics and flows on.

use crate::{
    Options,
    peers::{Config, envoy, id, nginx},
    rows::{Row, median, spread},
    sample::{Sample, measure, pin},
};
use anyhow::Result;
use std::{collections::BTreeMap, time::Duration};
use weft_demo::{
    command::wait_for,
    stage::{App, Stage, StageOptions},
};
use weft_testnet::{Namespace, Spawn};

const CONNECTIONS: [u32; 3] = [1, 16, 128];
/// CPU of one agent hop, microseconds per request.
const ONE_HOP: f64 = 25.0;

/// What ours judges each request by; the peers judge nothing.
const POLICY: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: bench, namespace: default}
spec:
  endpointSelector: {matchExpressions: [{key: app, operator: In, values: [near, far]}]}
  ingress:
    - fromEndpoints: [{matchLabels: {app: client}}]
      toPorts: [{ports: [{port: \"50002\", protocol: TCP}]}]
";

/// A way to the backend.
struct Way {
    name: &'static str,
    from: Namespace,
    url: String,
    under_test: Vec<(&'static str, i32)>,
}

/// Measures and returns the rows.
pub async fn run(options: &Options) -> Result<Vec<Row>> {
    let mut stage = Stage::new(&StageOptions {
        bin_dir: options.bin_dir.clone(),
        python: None,
    })?;
    for name in ["identity", "policy", "placement"] {
        stage.start_service(name).await?;
    }
    stage.start_node("n1", &["default/*"]).await?;
    stage.start_node("n2", &["default/*"]).await?;
    stage.start_pod("n1", "client", App::Rust).await?;
    let mut processes = Vec::new();
    let dir = stage.dir().to_owned();
    for (node, app) in [("n1", "near"), ("n2", "far")] {
        let namespace = stage.place_pod(node, app).await?;
        processes.push(nginx(Config::Backend, app, &dir, &namespace, 0)?);
    }
    stage.apply("bench.yaml", POLICY)?;
    let near = stage.pod_namespace("near")?;
    let client = stage.pod_namespace("client")?;
    let proxy = nginx(Config::Proxy, "proxy", &dir, &near, 1)?;
    let envoy = envoy(options.python.as_deref(), &near)?;
    let agents = [stage.agent_pid("n1")?, stage.agent_pid("n2")?];
    let nodes = [stage.node_pid("n1")?, stage.node_pid("n2")?];

    let path = |name, from: &Namespace, url: &str, under_test: Vec<(&'static str, i32)>| Way {
        name,
        from: from.clone(),
        url: url.to_owned(),
        under_test,
    };
    let invoke = |app: &str| format!("http://127.0.0.1:3500/v1.0/invoke/{app}/method/");
    let mut paths = vec![
        path("direct", &near, "http://127.0.0.1:8080/", vec![]),
        path(
            "nginx",
            &near,
            "http://127.0.0.1:9001/",
            vec![("nginx", id(&proxy))],
        ),
        path(
            "one-agent",
            &client,
            &invoke("near"),
            vec![("weft-agent-n1", agents[0]), ("weft-node-n1", nodes[0])],
        ),
        path(
            "two-agents-mtls",
            &client,
            &invoke("far"),
            vec![
                ("weft-agent-n1", agents[0]),
                ("weft-node-n1", nodes[0]),
                ("weft-agent-n2", agents[1]),
                ("weft-node-n2", nodes[1]),
            ],
        ),
    ];
    if let Some(envoy) = &envoy {
        paths.insert(
            2,
            path(
                "envoy",
                &near,
                "http://127.0.0.1:9002/",
                vec![("envoy", id(envoy))],
            ),
        );
    }
    let nobody = Spawn::nobody();
    for p in &paths {
        wait_for(p.name, Duration::from_secs(20), || {
            measure((&p.from, &nobody), &p.url, 1, 1, &[])
        })
        .await?;
        for (_, pid) in &p.under_test {
            pin(*pid, 1)?;
        }
    }
    let mut samples: BTreeMap<(&str, u32), Vec<Sample>> = BTreeMap::new();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for connections in CONNECTIONS {
            for p in &paths {
                let sample = measure(
                    (&p.from, &nobody),
                    &p.url,
                    connections,
                    options.seconds,
                    &p.under_test,
                )
                .await?;
                samples.entry((p.name, connections)).or_default().push(sample);
            }
        }
    }
    drop(processes);
    stage.stop().await;
    Ok(rows(&samples))
}

/// Figures of ours beside nginx's; of the peers beside nothing.
fn rows(samples: &BTreeMap<(&str, u32), Vec<Sample>>) -> Vec<Row> {
    type Figure = (&'static str, &'static str, fn(&Sample) -> f64);
    const FIGURES: [Figure; 4] = [
        ("rate", "requests/s", |s| s.rate),
        ("p50", "ms", |s| s.p50),
        ("p99", "ms", |s| s.p99),
        ("cpu", "µs/request", |s| s.cpu),
    ];
    let mut rows = Vec::new();
    for ((path, connections), taken) in samples {
        for (figure, unit, of) in FIGURES {
            if *path == "direct" && figure == "cpu" {
                continue;
            }
            let values: Vec<f64> = taken.iter().map(of).collect();
            let ours = path.contains("agent");
            let peer = samples
                .get(&("nginx", *connections))
                .filter(|_| ours)
                .map(|s| median(&s.iter().map(of).collect::<Vec<_>>()));
            let value = median(&values);
            let bound = (*path == "one-agent" && figure == "cpu" && *connections > 1).then_some(ONE_HOP);
            rows.push(Row {
                name: format!("{path}/{connections}/{figure}"),
                unit,
                value,
                spread: spread(&values),
                peer,
                ratio: peer.filter(|p| *p > 0.0).map(|p| value / p),
                target: bound.map(|b| format!("at most {b}")),
                holds: bound.map(|b| value <= b),
            });
        }
        let processes = taken.first().map(|s| s.rss.clone()).unwrap_or_default();
        for (at, (process, _)) in processes.into_iter().enumerate() {
            let values: Vec<f64> = taken
                .iter()
                .filter_map(|s| s.rss.get(at))
                .map(|(_, mib)| *mib)
                .collect();
            rows.push(Row {
                name: format!("{path}/{connections}/rss/{process}"),
                unit: "MiB",
                value: median(&values),
                spread: spread(&values),
                peer: None,
                ratio: None,
                target: None,
                holds: None,
            });
        }
    }
    rows
}
