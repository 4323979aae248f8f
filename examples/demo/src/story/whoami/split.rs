//! A route of a Service splits its requests by weight, and changes under load.

use super::{Cast, SPLIT_EVENLY, SPLIT_MOSTLY};
use crate::{
    load::{self, Outcome, Plan},
    report::Report,
    stage::Stage,
};
use anyhow::Result;
use std::time::Duration;

/// So many requests are counted, beginning with the first that is sent so long after the change.
const COUNTED: usize = 400;
const AFTER: Duration = Duration::from_secs(1);
/// Within which so many are sent.
const COUNTING: Duration = Duration::from_millis(1000);
/// Before the first change.
const BEFORE: Duration = Duration::from_millis(300);

pub async fn play(stage: &Stage, cast: &Cast, report: &mut Report) -> Result<()> {
    report.chapter("A route of Service whoami splits requests between its versions, and changes under load");
    // Five standard deviations of 400 requests, and of the smaller share.
    for (what, manifest, fresh, mean, bound) in [
        ("50 to 50", SPLIT_EVENLY, true, 200, 50),
        ("90 to 10", SPLIT_MOSTLY, false, 40, 30),
    ] {
        let run = run(stage, cast, manifest, fresh).await;
        let how = if fresh {
            "each on a connection of its own"
        } else {
            "on 16 connections"
        };
        report.check_result(
            &format!("{what}: no request of a client in the cluster fails at the change, {how}, no retries"),
            run.as_ref().map_err(|e| anyhow::anyhow!("{e:#}")),
            |run| {
                let outcome = &run.outcome;
                let good = outcome.good == outcome.sent && outcome.rate() >= 500.0;
                (good, outcome.line())
            },
        );
        let Ok(run) = run else { continue };
        let since = run.changed + AFTER.as_micros() as u64;
        let shares = run.outcome.shares(since, COUNTED, 2).map(|(shares, _)| shares);
        report.check(
            &format!("{what}: the {COUNTED} requests from 1 s after the change"),
            shares.as_ref().is_some_and(|by| by[1].abs_diff(mean) <= bound),
            match shares {
                Some(by) => format!("{} by v1, {} by v2; {mean} ± {bound} wanted", by[0], by[1]),
                None => "fewer were sent".to_owned(),
            },
        );
    }
    Ok(())
}

struct Run {
    outcome: Outcome,
    /// When the route was changed.
    changed: u64,
}

/// Load, in the middle of which the route changes. Connections that were opened before a Service had any
/// route go on to the pod that they are of, so what is counted after the first one is on fresh ones.
async fn run(stage: &Stage, cast: &Cast, manifest: &str, fresh: bool) -> Result<Run> {
    let plan = Plan {
        address: cast.service,
        path: "/?id=".into(),
        expect: Vec::new(),
        connections: 16,
        rate: 800,
        reconnect: fresh,
        answerers: vec!["Name: v1\n".into(), "Name: v2\n".into()],
    };
    let client = stage.client(&cast.visitors[0], &plan).await?;
    tokio::time::sleep(BEFORE).await;
    let changed = load::now();
    stage.apply("whoami-split.yaml", manifest)?;
    tokio::time::sleep(AFTER + COUNTING).await;
    Ok(Run {
        outcome: client.stop().await?,
        changed,
    })
}
