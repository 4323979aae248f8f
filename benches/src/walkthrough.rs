//! The walkthrough: what the L7 proxy costs, beside nginx and Envoy in the same run.
//!
//! A pod asks a Service that has an HTTPRoute, and a pod of the same node answers, through the agent.
//! The peers proxy the same backend. Every path is loopback TCP on both sides of the proxy; each proxy
//! has one worker, on a core of its own, with policy, metrics and flows on for ours. Then the same with
//! a hundred rules at L7, while its route changes ten times a second, through the whole chain from a
//! gateway by two shared runtimes, and what a connection takes that nobody uses.

mod chain;
mod changes;
mod idle;
mod pods;
mod report;

pub use idle::main as idle;

use crate::{
    Options,
    peers::{Config, envoy, id, nginx},
    rows::Row,
    sample::{PROXY_CORE, Sample, measure, pin},
};
use anyhow::{Context, Result};
use changes::Changes;
use pods::place;
use std::{collections::BTreeMap, time::Duration};
use weft_demo::{
    command::wait_for,
    stage::{Stage, StageOptions},
};
use weft_testnet::{Namespace, Spawn};

/// Connections at once.
const CONNECTIONS: [u32; 2] = [16, 128];
/// How long a path may take to come about: manifests, certificates, routes.
const START: Duration = Duration::from_secs(60);

/// Services, routes and policies of the paths.
const MESH: &str = include_str!("../walkthrough/mesh.yaml");
/// What they ask for, on every path: the last of the rules at L7 means it.
const PATH: &str = "/items/4711";
/// Rules at L7 on one of the paths.
const RULES: usize = 100;

/// By path and number of connections.
type Samples = BTreeMap<(&'static str, u32), Vec<Sample>>;

/// A way to the backend.
struct Way {
    name: &'static str,
    from: Namespace,
    spawn: Spawn,
    url: String,
    under_test: Vec<(&'static str, i32)>,
}

impl Way {
    async fn measure(&self, connections: u32, seconds: u32) -> Result<Sample> {
        let from = (&self.from, &self.spawn);
        measure(from, &self.url, connections, seconds, &self.under_test)
            .await
            .with_context(|| self.name)
    }
}

/// Measures and returns the rows.
pub async fn run(options: &Options) -> Result<Vec<Row>> {
    let mut stage = Stage::new(&StageOptions {
        bin_dir: options.bin_dir.clone(),
        python: None,
    })?;
    stage.set_workers(1);
    for name in ["identity", "policy", "placement"] {
        stage.start_service(name).await?;
        pin(id(&stage.services[name]), 0)?;
    }
    stage.start_node("n1", &["default/*"]).await?;
    let client = place(&mut stage, "n1", "client", &[("app", "client")]).await?;
    let web = place(
        &mut stage,
        "n1",
        "whoami",
        &[("app", "whoami"), ("version", "v1")],
    )
    .await?;
    let dir = stage.dir().to_owned();
    let _backend = nginx(Config::Backend, "whoami", &dir, &web, 0)?;
    stage.apply("mesh.yaml", MESH)?;
    stage.apply("rules.yaml", &rules())?;
    stage.apply(changes::FILE, &changes::route(0))?;
    let proxy = nginx(Config::Proxy, "proxy", &dir, &web, PROXY_CORE)?;
    let envoy = envoy(options.python.as_deref(), &web)?;
    let ours = [
        ("weft-agent", stage.agent_pid("n1")?),
        ("weft-node", stage.node_pid("n1")?),
    ];
    let path = |name, from: &Namespace, spawn: Spawn, at: &str, under_test: &[(&'static str, i32)]| Way {
        name,
        from: from.clone(),
        spawn,
        url: format!("http://{at}{PATH}"),
        under_test: under_test.to_vec(),
    };
    let outside = Spawn::nobody;
    let pod = || stage.in_pod("client");
    let mut ways = vec![
        path("direct", &web, outside(), "127.0.0.1:8080", &[]),
        path(
            "nginx",
            &web,
            outside(),
            "127.0.0.1:9001",
            &[("nginx", id(&proxy))],
        ),
    ];
    if let Some(envoy) = &envoy {
        ways.push(path(
            "envoy",
            &web,
            outside(),
            "127.0.0.1:9002",
            &[("envoy", id(envoy))],
        ));
    }
    ways.push(path("hop", &client, pod(), pods::WHOAMI, &ours));
    ways.push(path("rules", &client, pod(), pods::RULED, &ours));
    let hop = path("changes", &client, pod(), pods::WHOAMI, &ours);
    for way in &ways {
        wait_for(way.name, START, || way.measure(1, 1)).await?;
        for (_, pid) in &way.under_test {
            pin(*pid, PROXY_CORE)?;
        }
    }
    let chain = chain::prepare(&stage, &ours).await;
    if let Err(error) = &chain {
        eprintln!("the chain of shared runtimes is left out: {error:#}");
    }
    let mut samples = Samples::new();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for connections in CONNECTIONS {
            for way in &ways {
                let sample = way.measure(connections, options.seconds).await?;
                samples.entry((way.name, connections)).or_default().push(sample);
            }
        }
        let changing = Changes::start(&stage);
        let sample = hop.measure(CONNECTIONS[0], options.seconds).await;
        let made = changing.stop().await?;
        eprintln!("{made:.1} changes of the route a second");
        samples
            .entry(("changes", CONNECTIONS[0]))
            .or_default()
            .push(sample?);
        if let Ok(chain) = &chain {
            let sample = chain.measure(CONNECTIONS[0], options.seconds).await?;
            samples.entry(("chain", CONNECTIONS[0])).or_default().push(sample);
        }
    }
    let idle = idle::measure((&client, &stage.in_pod("client")), ours[0].1, options.rounds).await?;
    stage.stop().await;
    let mut rows = report::rows(&samples);
    rows.push(idle);
    Ok(rows)
}

/// A hundred rules of which the last means what is asked for: beginnings, patterns, headers, methods.
fn rules() -> String {
    let mut text = String::from(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\n\
         metadata: {name: ruled, namespace: default}\nspec:\n  \
         endpointSelector: {matchLabels: {app: whoami}}\n  ingress:\n    \
         - fromEndpoints: [{matchLabels: {app: client}}]\n      toPorts:\n        \
         - ports: [{port: \"8081\", protocol: TCP}]\n          rules:\n            http:\n",
    );
    for n in 0..RULES - 1 {
        text += &match n % 4 {
            0 => format!("              - {{method: GET, path: \"/team{n}/.*\"}}\n"),
            1 => format!("              - {{method: GET, path: \"/team{n}/v[0-9]+/items/[a-z]+\"}}\n"),
            2 => format!("              - {{path: \"/team{n}/.*\", headers: [\"X-Team: {n}\"]}}\n"),
            _ => format!("              - {{method: \"GET|POST\", path: \"/team{n}(/.*)?\"}}\n"),
        };
    }
    text + "              - {method: GET, path: \"/items/[0-9]+\"}\n"
}
