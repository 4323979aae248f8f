//! The policy service: from its start to every node's first confirmed snapshot, from a change to the
//! confirmation of every node concerned, many changes, memory, explain. The service is a process of its own,
//! nodes are in this one; between them the real gRPC over mTLS, and a certificate authority that signs for
//! each node. The clock runs from the write to the nodes' acks. There is no peer: nothing else sends each node
//! only what it needs.

mod layout;
mod nodes;
mod stand;

use crate::{
    Options,
    rows::{Row, median, spread},
    sample::rss_mib,
};
use anyhow::{Context, Result};
use nodes::Change;
use stand::Stand;
use std::time::{Duration, Instant};

/// How large the cluster is.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Scale {
    /// policy: CiliumNetworkPolicies
    #[arg(long, default_value_t = 10_000)]
    pub policies: usize,
    /// policy: workloads
    #[arg(long, default_value_t = 50_000)]
    pub workloads: usize,
    /// policy: Services; workloads of one have the same labels
    #[arg(long, default_value_t = 5_000)]
    pub services: usize,
    /// policy: nodes
    #[arg(long, default_value_t = 1_000)]
    pub nodes: usize,
}

/// Changes of each kind in a round.
const CHANGES: usize = 20;
/// Pods that come or go in a second under load.
const LOAD: u32 = 1_000;
const QUESTIONS: usize = 200;

/// What many changes of a kind gave.
#[derive(Default)]
struct Many {
    /// Milliseconds, of each node concerned.
    times: Vec<f64>,
    /// Updates at nodes that are not concerned.
    strays: usize,
    bytes: usize,
    count: usize,
}

impl Many {
    fn add(&mut self, change: Change) {
        self.times.extend(change.times);
        self.strays += change.strays;
        self.bytes += change.bytes;
        self.count += 1;
    }
}

fn percentile(times: &[f64], share: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(0.0)
}

fn row(name: &str, unit: &'static str, values: &[f64], target: Option<(&str, bool)>) -> Row {
    Row {
        name: name.into(),
        unit,
        value: median(values),
        spread: spread(values),
        peer: None,
        ratio: None,
        target: target.map(|(text, _)| text.to_owned()),
        holds: target.map(|(_, holds)| holds),
    }
}

/// Measures and returns the rows.
pub async fn run(options: &Options) -> Result<Vec<Row>> {
    let scale = options.scale;
    let mut stand = Stand::start(options, scale).await?;
    let begun = Instant::now();
    stand.register_all().await?;
    let registered = scale.workloads as f64 / begun.elapsed().as_secs_f64();
    eprintln!("{} workloads registered, {registered:.0}/s", scale.workloads);

    // With everything stored: the first compile of all of it.
    stand.stop_service().await?;
    stand.connect_nodes();
    let begun = Instant::now();
    stand.start_service().await?;
    let ready = begun.elapsed().as_secs_f64();
    stand.nodes.until_all_have_a_snapshot().await?;
    let first = begun.elapsed().as_secs_f64();
    eprintln!("serving after {ready:.1} s, every node confirmed after {first:.1} s");
    let first_memory = rss_mib(stand.pid()) * 1.048_576;

    let (mut policy, mut endpoint, mut label) = (Many::default(), Many::default(), Many::default());
    let mut explained = Vec::new();
    let (mut rates, mut lags) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for at in 0..CHANGES {
            let at = (round * CHANGES + at) * 37 % scale.services;
            policy.add(stand.change_policy(at, round).await?);
            endpoint.add(stand.add_pod(at).await?);
            label.add(stand.change_label(at).await?);
            stand.remove_pod(at).await?;
        }
        for at in 0..QUESTIONS {
            explained.push(stand.explain(at * 31 % scale.services).await?);
        }
        let (rate, lag) = stand
            .load(LOAD, Duration::from_secs(options.seconds.into()))
            .await?;
        rates.push(rate);
        lags.push(lag);
    }
    let memory = rss_mib(stand.pid()) * 1.048_576;
    let again = stand.restart().await.context("restart with nodes connected")?;
    stand.stop().await?;

    let holds = |many: &Many| percentile(&many.times, 0.99) < 100.0;
    let mut rows = vec![
        row("setup/registrations", "workloads/s", &[registered], None),
        row("first-compile/serving", "s", &[ready], None),
        row(
            "first-compile/every-node",
            "s",
            &[first],
            Some(("under 10", first < 10.0)),
        ),
        row("memory/first-compile", "MB", &[first_memory], None),
    ];
    for (name, many) in [("policy", &policy), ("endpoint", &endpoint), ("label", &label)] {
        let one = |share| [percentile(&many.times, share)];
        rows.push(row(&format!("change/{name}/p50"), "ms", &one(0.5), None));
        rows.push(row(
            &format!("change/{name}/p99"),
            "ms",
            &one(0.99),
            Some(("under 100", holds(many))),
        ));
        rows.push(row(
            &format!("change/{name}/updates-elsewhere"),
            "updates",
            &[many.strays as f64],
            Some(("0", many.strays == 0)),
        ));
        let each = many.bytes as f64 / many.count.max(1) as f64;
        rows.push(row(&format!("change/{name}/bytes"), "bytes", &[each], None));
    }
    let (rate, lag) = (median(&rates), median(&lags));
    let sustained = rate >= f64::from(LOAD) * 0.99;
    rows.push(row(
        "load/rate",
        "pods/s",
        &rates,
        Some(("at least 1000", sustained)),
    ));
    rows.push(row(
        "load/behind-at-the-end",
        "ms",
        &lags,
        Some(("under 1000", lag < 1000.0)),
    ));
    let slow = percentile(&explained, 0.99);
    rows.push(row("explain/p50", "ms", &[percentile(&explained, 0.5)], None));
    rows.push(row("explain/p99", "ms", &[slow], Some(("under 5", slow < 5.0))));
    rows.push(row(
        "memory/at-the-end",
        "MB",
        &[memory],
        Some(("under 1000", memory < 1000.0)),
    ));
    rows.push(row("restart/every-node", "s", &[again.seconds], None));
    rows.push(row(
        "restart/full-snapshots",
        "snapshots",
        &[again.snapshots as f64],
        Some(("0", again.snapshots == 0)),
    ));
    Ok(rows)
}
