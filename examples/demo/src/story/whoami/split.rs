//! A route of a Service splits its requests by weight, and changes under load.

use super::{Cast, SPLIT_EVENLY, SPLIT_MOSTLY};
use crate::{
    load::{self, Outcome, Plan},
    report::Report,
    stage::{Seat, Stage},
};
use anyhow::Result;
use std::{net::SocketAddr, time::Duration};

/// So many requests are counted, beginning with the first that is sent so long after the change.
const COUNTED: usize = 400;
const AFTER: Duration = Duration::from_secs(1);
/// Within which so many are sent.
const COUNTING: Duration = Duration::from_millis(1000);
/// Before the change.
const BEFORE: Duration = Duration::from_millis(300);
/// In requests per second; 500 are asked for.
const RATE: u32 = 600;

pub async fn play(stage: &Stage, cast: &Cast, report: &mut Report) -> Result<()> {
    report.chapter("A route of Service whoami splits requests between its versions, and changes under load");
    let inside = ("a client in the cluster", &cast.visitors[0], cast.service);
    let outside = (
        "a client outside, through the gateway",
        &cast.outside,
        cast.gateways[0],
    );
    // Connections that were opened before a Service had any route go on to the pod that they are of, so
    // what is counted after its first one comes on others.
    for (client, split, fresh) in [
        (inside, &EVENLY, true),
        (inside, &MOSTLY, false),
        (outside, &EVENLY, false),
        (outside, &MOSTLY, false),
    ] {
        let (who, from, to) = client;
        let what = split.what;
        let run = run(stage, from, to, split.manifest, fresh).await;
        let how = match fresh {
            true => "each request on a connection of its own",
            false => "16 connections",
        };
        report.check_result(
            &format!("{what}: no request of {who} fails at the change; {how}, no retries"),
            run.as_ref().map_err(|e| anyhow::anyhow!("{e:#}")),
            |(_, o)| (o.good == o.sent && o.rate() >= 500.0, o.line()),
        );
        let shares = run.ok().and_then(|(changed, outcome)| {
            let since = changed + AFTER.as_micros() as u64;
            outcome.shares(since, COUNTED, 2)
        });
        let (mean, bound) = split.second;
        report.check(
            &format!("{what}: its {COUNTED} requests from 1 s after the change"),
            shares
                .as_ref()
                .is_some_and(|(by, _)| by[1].abs_diff(mean) <= bound),
            match shares {
                Some((by, _)) => format!("{} by v1, {} by v2; {mean} ± {bound} wanted", by[0], by[1]),
                None => "fewer were sent".to_owned(),
            },
        );
    }
    Ok(())
}

struct Split {
    what: &'static str,
    manifest: &'static str,
    /// How many of the requests that are counted go to v2, and how far from it they may be: five
    /// standard deviations.
    second: (usize, usize),
}

const EVENLY: Split = Split {
    what: "50 to 50",
    manifest: SPLIT_EVENLY,
    second: (200, 50),
};
const MOSTLY: Split = Split {
    what: "90 to 10",
    manifest: SPLIT_MOSTLY,
    second: (40, 30),
};

/// Load, in the middle of which the route changes; answers when that was.
async fn run(
    stage: &Stage,
    from: &Seat,
    to: SocketAddr,
    manifest: &str,
    fresh: bool,
) -> Result<(u64, Outcome)> {
    let plan = Plan {
        address: to,
        path: "/?id=".into(),
        expect: Vec::new(),
        connections: 16,
        rate: RATE,
        reconnect: fresh,
        answerers: vec!["Name: v1\n".into(), "Name: v2\n".into()],
    };
    let client = stage.client(from, &plan).await?;
    tokio::time::sleep(BEFORE).await;
    let changed = load::now();
    stage.apply("whoami-split.yaml", manifest)?;
    tokio::time::sleep(AFTER + COUNTING).await;
    Ok((changed, client.stop().await?))
}
