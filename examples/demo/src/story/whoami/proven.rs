//! A policy that demands proof: of a peer whose address would do, and who does not come by a tunnel,
//! nothing gets in. On the wire there is TLS only.

use super::{Cast, SOON, VISITORS, flow, until};
use crate::{command::wait_for, load::Plan, report::Report, stage::Stage, story::unique};
use anyhow::{Result, bail};
use std::time::Duration;

const FILE: &str = "whoami-visitors.yaml";
const DEMAND: &str = "      authentication:\n        mode: required\n";
/// A pod of whoami on each node.
const NEAR: &str = "whoami-v1-0";
const FAR: &str = "whoami-v1-1";

pub async fn play(stage: &Stage, cast: &Cast, report: &mut Report) -> Result<()> {
    report.chapter("`authentication: mode: required`: an address is no proof");
    // In the pod's network, and no process of the pod: what it sends comes from the pod's address
    // and goes by no tunnel.
    let plain = stage.seat_beside("visitor-0")?;
    let far = format!("http://{}/", cast.whoami(stage, FAR)?);
    let near = format!("http://{}/", cast.whoami(stage, NEAR)?);
    let own = format!("{}:", stage.pod("visitor-0")?.net.v4());

    let short = ["-m", "1"];
    let stranger = stage.curl(&stage.seat("teller")?, &far, &short).await;
    report.check(
        "whoami's pods are closed to those that no policy names",
        stranger.is_err(),
        stranger.map_or_else(|e| format!("{e:#}"), |reply| reply.who()),
    );
    stage.apply(FILE, &VISITORS.replace(DEMAND, ""))?;
    let before = until(stage, &plain, &far, &short, |r| r.status == 200).await;
    report.check_result(
        "before: plain TCP from a visitor's address on the other node is answered",
        before,
        |reply| {
            (
                reply.status == 200 && reply.line("RemoteAddr").is_some_and(|a| a.starts_with(&own)),
                reply.who(),
            )
        },
    );

    stage.apply(FILE, VISITORS)?;
    let refused = wait_for("the refusal", SOON, || async {
        let reply = stage.curl(&plain, &far, &short).await;
        match reply {
            Ok(reply) => bail!("still {}", reply.who()),
            Err(error) => Ok(format!("{error:#}")),
        }
    })
    .await;
    report.check_result("proof demanded: the same gets no answer", refused, |error| {
        (true, error.clone())
    });
    let filters = ["--from-pod", "visitor-0", "--to-pod", FAR, "--verdict", "DROPPED"];
    let dropped = flow(stage, "n2", &filters, |f| {
        f["drop_reason_desc"] == "AUTH_REQUIRED"
    })
    .await;
    report.check_result("its flow says AUTH_REQUIRED and by which rule", dropped, |f| {
        let rule = f["weft"]["rule"].as_str().unwrap_or_default();
        (
            rule.starts_with("CiliumNetworkPolicy/default/whoami-visitors"),
            format!("{} {} {rule}", f["verdict"], f["drop_reason_desc"]),
        )
    });
    for (url, place) in [(&far, "the other node, by tunnel"), (&near, "its own node")] {
        let allowed = until(stage, &cast.visitors[0], url, &[], |r| r.status == 200).await;
        report.check_result(
            &format!("its twin: the visitor itself reaches whoami on {place}"),
            allowed,
            |reply| (true, reply.who()),
        );
    }
    wire(stage, cast, report).await
}

/// What passes between the nodes meanwhile.
async fn wire(stage: &Stage, cast: &Cast, report: &mut Report) -> Result<()> {
    let mark = unique("whoami-in-clear");
    let plan = Plan {
        address: cast.service,
        path: format!("/{mark}?pad={}&id=", "x".repeat(300)),
        expect: vec![mark.clone()],
        connections: 16,
        rate: 600,
        reconnect: false,
        answerers: Vec::new(),
    };
    let between = stage.testnet().underlay(&stage.node("n2")?.net).capture()?;
    // The far pods' own sides, where each request that got there is read.
    let mut inside = Vec::new();
    for pod in [FAR, "whoami-v2-1"] {
        let net = &stage.pod(pod)?.net;
        inside.push(net.namespace().loopback().capture()?);
        inside.push(net.link().capture()?);
    }
    let client = stage.client(&cast.visitors[0], &plan).await?;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let outcome = client.stop().await;
    let between = between.stop()?;
    let (mut found, mut searched) = (false, 0);
    for capture in inside {
        let captured = capture.stop()?;
        found |= captured.contains(mark.as_bytes());
        searched += captured.frames().len();
    }
    report.check_result("requests of a visitor meanwhile", outcome, |o| {
        (o.good == o.sent && o.good > 0, o.line())
    });
    let tls = between.tls_on(15008);
    report.check(
        "between the nodes at least 100 KB of TLS records, and the requests' text not among them",
        tls.bytes >= 100_000
            && tls.other_bytes == 0
            && between.complete()
            && !between.contains(mark.as_bytes()),
        format!(
            "{} records, {} bytes, {} frames searched",
            tls.records,
            tls.bytes,
            between.frames().len()
        ),
    );
    report.check(
        "its twin: the same search finds it where the far pods read it",
        found,
        format!("{searched} frames at the far pods"),
    );
    Ok(())
}
