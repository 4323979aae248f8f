//! The certificate authority: certificates per second of one core, the time one takes at a steady
//! rate, a cold start, memory. Asked as agents ask, by gRPC over mTLS for the workloads of their
//! nodes, with P-256 and the audit record on the disk before each answer.
//!
//! The service is a process of its own on core 1, whoever asks is on core 0. There is no peer: the
//! others sign without a durable record.

pub(crate) mod stand;

use crate::{
    Options,
    rows::{Row, median, spread},
    sample::{anonymous_mib, cpu_seconds, rss_mib},
};
use anyhow::{Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use stand::{Asker, EACH, NODES, Stand};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use weft_proto::weft::identity::v1::ListAuditRequest;

/// Calls of each node that run at once at full load.
const CALLS: usize = 5;
/// Certificates per second at the steady rate.
const STEADY: u32 = 500;
/// Workloads of a cold start.
const COLD: u64 = (NODES * EACH) as u64;
/// Requests of a node that run at once in a cold start, as an agent has it.
const AT_ONCE: usize = 16;

/// Measures and returns the rows.
pub async fn run(options: &Options) -> Result<Vec<Row>> {
    let mut stand = Stand::start(options).await?;
    let (pid, askers) = (stand.pid, &stand.askers);
    let mut colds = vec![cold_start(askers).await?];
    let mut issued = COLD;
    let busy = rss_mb(pid);
    let first = at_rest(pid).await;
    let anonymous = anonymous_mib(pid) * 1.048_576;
    let (mut rates, mut per_core, mut p50s, mut p99s) = (vec![], vec![], vec![], vec![]);
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        if round > 1 {
            colds.push(cold_start(askers).await?);
            issued += COLD;
        }
        let cpu = cpu_seconds(pid)?;
        let (count, seconds) = full_load(askers, options.seconds).await?;
        rates.push(count as f64 / seconds);
        per_core.push(count as f64 / (cpu_seconds(pid)? - cpu));
        issued += count;
        let mut times = steady(askers, options.seconds).await?;
        issued += times.len() as u64;
        times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            times
                .get((times.len() as f64 * share) as usize)
                .copied()
                .unwrap_or(0.0)
        };
        p50s.push(at(0.5));
        p99s.push(at(0.99));
    }
    let last = rss_mb(pid);
    // All of it is in the record.
    let newest = stand.admin.list_audit(ListAuditRequest::default()).await?;
    let recorded = newest.into_inner().entries.first().map_or(0, |e| e.id);
    if recorded < issued {
        bail!("{issued} certificates were given out and {recorded} recorded");
    }
    let fresh = stand.fresh * 1.048_576;
    stand.stop().await?;
    let row = |name: &str, unit, values: &[f64], target: Option<(&str, bool)>| Row {
        name: name.into(),
        unit,
        value: median(values),
        spread: spread(values),
        peer: None,
        ratio: None,
        target: target.map(|(text, _)| text.to_owned()),
        holds: target.map(|(_, holds)| holds),
    };
    let (rate, p99, cold) = (median(&rates), median(&p99s), median(&colds));
    Ok(vec![
        row(
            "full-load/rate",
            "certificates/s",
            &rates,
            Some(("at least 5000", rate >= 5000.0)),
        ),
        row("full-load/per-core-second", "certificates", &per_core, None),
        row("steady-500/p50", "ms", &p50s, None),
        row("steady-500/p99", "ms", &p99s, Some(("under 10", p99 < 10.0))),
        row("cold-start/10000", "s", &colds, Some(("at most 4", cold <= 4.0))),
        row("memory/started", "MB", &[fresh], None),
        row("memory/10000-at-once", "MB", &[busy], None),
        row(
            "memory/10000-issued",
            "MB",
            &[first],
            Some(("under 30", first < 30.0)),
        ),
        row("memory/10000-anonymous", "MB", &[anonymous], None),
        row(&format!("memory/{issued}-issued"), "MB", &[last], None),
    ])
}

/// Resident memory in units of a million bytes.
fn rss_mb(pid: i32) -> f64 {
    rss_mib(pid) * 1.048_576
}

/// Resident memory when nothing more is given back: the service does that within some seconds.
async fn at_rest(pid: i32) -> f64 {
    const PATIENCE: Duration = Duration::from_secs(30);
    const QUIET: Duration = Duration::from_secs(12);
    let begun = Instant::now();
    let (mut least, mut since) = (rss_mb(pid), Instant::now());
    while begun.elapsed() < PATIENCE && since.elapsed() < QUIET {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = rss_mb(pid);
        if now < least - 0.5 {
            (least, since) = (now, Instant::now());
        }
    }
    // What it is now, not what it was in the best moment.
    rss_mb(pid)
}

/// As many as it takes; how many there were in how many seconds.
async fn full_load(askers: &[Asker], seconds: u32) -> Result<(u64, f64)> {
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds.into());
    let mut tasks = JoinSet::new();
    for asker in askers {
        for call in 0..CALLS {
            let mut asker = asker.clone();
            tasks.spawn(async move {
                let mut count = 0;
                while Instant::now() < end {
                    asker.ask(call + CALLS * count).await?;
                    count += 1;
                }
                anyhow::Ok(count as u64)
            });
        }
    }
    let mut count = 0;
    while let Some(done) = tasks.join_next().await {
        count += done??;
    }
    Ok((count, begun.elapsed().as_secs_f64()))
}

/// All nodes begin at the same moment, each with all of its workloads; seconds until the last is
/// answered.
async fn cold_start(askers: &[Asker]) -> Result<f64> {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for asker in askers {
        let asker = asker.clone();
        tasks.spawn(async move {
            let calls = stream::iter((0..EACH).map(|workload| {
                let mut asker = asker.clone();
                async move { asker.ask(workload).await }
            }));
            calls.buffer_unordered(AT_ONCE).try_collect::<()>().await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// One every two milliseconds, whether or not the ones before are answered; what each took, in
/// milliseconds from when it was due.
async fn steady(askers: &[Asker], seconds: u32) -> Result<Vec<f64>> {
    let begun = tokio::time::Instant::now();
    let mut tasks = JoinSet::new();
    for (i, asker) in (0..STEADY * seconds).zip(askers.iter().cycle()) {
        let due = begun + Duration::from_secs(1) * i / STEADY;
        tokio::time::sleep_until(due).await;
        let mut asker = asker.clone();
        tasks.spawn(async move {
            asker.ask(i as usize / NODES).await?;
            anyhow::Ok(due.elapsed().as_secs_f64() * 1000.0)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.push(done??);
    }
    Ok(times)
}
