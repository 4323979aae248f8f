//! A local redirect: of the runtime of ingress, which each node has, a client reaches its own node's only.

use super::{Cast, LOCAL_REDIRECT, NODES, SOON};
use crate::{
    command::{output, wait_for},
    report::Report,
    stage::{Seat, Stage},
    story::json,
};
use anyhow::{Context, Result, ensure};
use std::{collections::BTreeSet, net::SocketAddr};

/// By so many requests both endpoints are reached, but for once in eight million runs.
const ASKED: usize = 24;

pub async fn play(stage: &Stage, cast: &Cast, runtime: SocketAddr, report: &mut Report) -> Result<()> {
    report.chapter("A CiliumLocalRedirectPolicy keeps clients of ingress-dapr on their node");
    for (visitor, node) in cast.visitors.iter().zip(NODES) {
        let reached = reached(stage, visitor, runtime, ASKED).await;
        report.check_result(
            &format!("before: a visitor on {node} reaches the endpoints of both nodes"),
            reached,
            |names| (*names == both(), format!("{names:?}")),
        );
    }
    stage.apply("ingress-dapr-local.yaml", LOCAL_REDIRECT)?;
    for (visitor, node) in cast.visitors.iter().zip(NODES) {
        let own = BTreeSet::from([format!("default/ingress-shared-{node}")]);
        // It takes a moment; then it stays so.
        let settled = wait_for("the redirect", SOON, || async {
            let names = reached(stage, visitor, runtime, 8).await?;
            ensure!(names == own, "{names:?}");
            Ok(())
        })
        .await;
        let reached = match settled {
            Ok(()) => reached(stage, visitor, runtime, ASKED).await,
            Err(error) => Err(error),
        };
        report.check_result(
            &format!("with it: a visitor on {node} reaches its own only"),
            reached,
            |names| (*names == own, format!("{names:?}")),
        );
    }
    Ok(())
}

fn both() -> BTreeSet<String> {
    NODES.map(|node| format!("default/ingress-shared-{node}")).into()
}

/// Which endpoints took a visitor's requests: each names itself as the last hand before whoami's.
async fn reached(
    stage: &Stage,
    visitor: &Seat,
    runtime: SocketAddr,
    requests: usize,
) -> Result<BTreeSet<String>> {
    let url = format!("http://{runtime}/v1.0/invoke/whoami.default/method/");
    let mut addresses = BTreeSet::new();
    for _ in 0..requests {
        let reply = stage.curl(visitor, &url, &[]).await?;
        let hands = reply
            .line("X-Forwarded-For")
            .with_context(|| reply.text.clone())?;
        let last = hands.rsplit(", ").next().unwrap_or_default();
        addresses.insert(last.to_owned());
    }
    let mut names = BTreeSet::new();
    for address in addresses {
        // Whose address it is, the policy service knows.
        let mut explain = stage.weft(&stage.identity_run_dir());
        explain.args(["explain", "--from", &address, "--to", "whoami", "--port", "50002"]);
        explain.args(["-o", "json"]);
        let said = json(&output(explain).await?);
        let name = said["from"]["name"].as_str().map(str::to_owned);
        names.insert(name.with_context(|| said.to_string())?);
    }
    Ok(names)
}
