//! Between nodes there is TLS only: the same search that finds nothing there finds the text where
//! the app reads it.

use super::unique;
use crate::{
    report::Report,
    stage::{API, Stage},
};
use anyhow::Result;

/// Requests while the captures run; each carries the mark in its query, as its reply does.
const REQUESTS: u32 = 150;

pub async fn play(stage: &mut Stage, report: &mut Report) -> Result<()> {
    report.chapter("On the wire between the nodes: mTLS with both identities");
    let mark = unique("clear-text-mark");
    let padding = "x".repeat(700);
    let between = stage.testnet().underlay(&stage.node("n2")?.net).capture()?;
    let inside = stage.pod("billing")?.net.namespace().loopback().capture()?;
    let cart = stage.pod("cart")?.net.namespace().clone();
    let mut good = 0;
    for n in 0..REQUESTS {
        let path = format!("/v1.0/invoke/billing/method/echo?id={mark}-{n}-{padding}");
        if let Ok((200, body)) = stage.get(&cart, API, &path, &[]).await {
            good += u32::from(body.contains(&mark));
        }
    }
    let (between, inside) = (between.stop()?, inside.stop()?);
    report.check(
        "cart called billing on the other node meanwhile",
        good == REQUESTS,
        format!("{good} of {REQUESTS}"),
    );
    let tls = between.tls_on(15008);
    report.check(
        "at least 100 KB of TLS records passed between the nodes, and nothing else on that port",
        tls.bytes >= 100_000 && tls.other_bytes == 0,
        format!(
            "{} records, {} bytes, {} bytes not TLS",
            tls.records, tls.bytes, tls.other_bytes
        ),
    );
    report.check(
        "the requests' text is not among it",
        between.complete() && !between.contains(mark.as_bytes()),
        format!("{} frames searched, none lost", between.frames().len()),
    );
    report.check(
        "its twin: the same search finds it where the app reads it",
        inside.contains(mark.as_bytes()),
        format!("{} frames on billing's loopback", inside.frames().len()),
    );
    Ok(())
}
