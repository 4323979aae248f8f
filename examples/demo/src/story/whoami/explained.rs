//! `weft explain` says of each pair what the kernel and the proxy then do.

use super::{Cast, REQUESTS, until};
use crate::{
    report::Report,
    stage::{API, Seat, Stage, Target},
};
use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use std::{net::SocketAddr, process::Command, time::Duration};
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_millis(2000);

pub async fn play(stage: &Stage, cast: &Cast, runtime: SocketAddr, report: &mut Report) -> Result<()> {
    report.chapter("`weft explain` of every pair says what the kernel and the proxy then do");
    stage.apply("whoami-requests.yaml", REQUESTS)?;
    // What is held against each other is said of one state: the last policy has come to both nodes.
    let cart = stage.seat("cart")?;
    for pod in &cast.pods {
        let url = format!("http://{}/public/x", cast.whoami(stage, pod)?);
        until(stage, &cart, &url, &["-m", "1"], |r| r.status == 200).await?;
    }
    connections(stage, cast, report).await?;
    requests(stage, cast, report).await?;
    calls(stage, cast, runtime, report).await
}

/// A question and what became of it.
struct Pair {
    text: String,
    explain: Command,
    done: bool,
}

/// Asks `weft explain` of all at once; answers those that it says something else of.
async fn differ(pairs: Vec<Pair>) -> Result<(usize, usize, Vec<String>)> {
    let mut asked = JoinSet::new();
    for Pair {
        text,
        mut explain,
        done,
    } in pairs
    {
        asked.spawn_blocking(move || {
            let output = explain.output()?;
            let says = match output.status.code() {
                Some(0) => true,
                Some(1) => false,
                _ => bail!("{text}: {}", String::from_utf8_lossy(&output.stderr).trim()),
            };
            anyhow::Ok((
                says,
                (says != done).then(|| format!("{text}: explain says {says}, it is {done}")),
            ))
        });
    }
    let (mut allowed, mut all, mut wrong) = (0, 0, Vec::new());
    while let Some(answer) = asked.join_next().await {
        let (says, differs) = answer??;
        allowed += usize::from(says);
        all += 1;
        wrong.extend(differs);
    }
    Ok((all, allowed, wrong))
}

fn explain(stage: &Stage, from: &str, to: &str, port: u16) -> Command {
    let mut explain = stage.weft(&stage.identity_run_dir());
    explain.args(["explain", "--from", from, "--to", to, "--port", &port.to_string()]);
    explain
}

fn told(result: &(usize, usize, Vec<String>)) -> (bool, String) {
    let (all, allowed, wrong) = result;
    // Both verdicts are among them, or nothing was shown.
    let holds = wrong.is_empty() && *allowed > 0 && allowed < all;
    (holds, format!("{all} pairs, {allowed} allowed; {wrong:?} differ"))
}

async fn connections(stage: &Stage, cast: &Cast, report: &mut Report) -> Result<()> {
    let outside = cast.outside_address.to_string();
    let mut callers: Vec<(String, Seat)> = vec![(outside, cast.outside.clone())];
    for name in ["visitor-0", "visitor-1", "billing", "teller", "thief"] {
        callers.push((name.to_owned(), stage.seat(name)?));
    }
    let mut callees: Vec<(&str, SocketAddr)> = Vec::new();
    for pod in &cast.pods {
        callees.push((pod, cast.whoami(stage, pod)?));
    }
    for name in ["ledger", "ledger2", "archive"] {
        callees.push((name, (stage.pod(name)?.net.v4(), 7000).into()));
    }
    let targets: Vec<Target> = callees.iter().map(|(_, address)| Target::Tcp(*address)).collect();
    let asking = callers
        .iter()
        .map(|(_, seat)| stage.ask_echo(seat, PATIENCE, &targets));
    let answers = try_join_all(asking).await?;
    let mut pairs = Vec::new();
    for ((from, _), answers) in callers.iter().zip(answers) {
        for ((to, address), answer) in callees.iter().zip(answers) {
            pairs.push(Pair {
                text: format!(
                    "{from} -> {to}:{} ({} {})",
                    address.port(),
                    answer.outcome,
                    answer.text
                ),
                explain: explain(stage, from, to, address.port()),
                done: answer.is_ok(),
            });
        }
    }
    let result = differ(pairs).await;
    report.check_result(
        "connections: what it allows comes about, what it denies does not",
        result,
        told,
    );
    Ok(())
}

/// App cart may ask for what is public.
async fn requests(stage: &Stage, cast: &Cast, report: &mut Report) -> Result<()> {
    let cart = stage.seat("cart")?;
    let mut pairs = Vec::new();
    for pod in &cast.pods {
        let address = cast.whoami(stage, pod)?;
        for (method, path) in [("GET", "/public/x"), ("GET", "/x"), ("POST", "/public/x")] {
            let url = format!("http://{address}{path}");
            let reply = stage.curl(&cart, &url, &["-X", method]).await;
            let reply = reply.with_context(|| format!("{method} {url}"))?;
            let mut explain = explain(stage, "cart", pod, 80);
            explain.args(["--method", method, "--path", path]);
            pairs.push(Pair {
                text: format!("cart -> {pod}, {method} {path}"),
                explain,
                done: match reply.status {
                    200 => true,
                    403 => false,
                    other => bail!("{method} {url}: {other}"),
                },
            });
        }
    }
    let result = differ(pairs).await;
    report.check_result("requests likewise: 200 or 403", result, told);
    Ok(())
}

/// The calls that meet at shared endpoints: of a runtime API, and of apps.
async fn calls(stage: &Stage, cast: &Cast, runtime: SocketAddr, report: &mut Report) -> Result<()> {
    let gateway = format!("http://{}/", cast.gateways[0].ip());
    let runtime = format!("http://{runtime}/v1.0/invoke/whoami.default/method/");
    let invoke = |app: &str| format!("http://{API}/v1.0/invoke/{app}/method/echo");
    let (cart, orders) = (stage.seat("cart")?, stage.seat("orders")?);
    let stranger = stage.seat("stranger")?;
    let near = "ingress-shared-n1";
    // By the gateway all of its three hops come about, or none would.
    let asked = [
        ("reserved:ingress", near, 3500, &cast.outside, gateway.clone()),
        (near, "whoami", 50002, &cast.outside, gateway.clone()),
        ("whoami", "whoami-v1-0", 80, &cast.outside, gateway),
        ("visitor-0", near, 3500, &cast.visitors[0], runtime.clone()),
        ("cart", near, 3500, &cart, runtime),
        ("cart", "whoami", 50002, &cart, invoke("whoami")),
        ("orders", "whoami", 50002, &orders, invoke("whoami")),
        ("orders", "cart", 50002, &orders, invoke("cart")),
        ("stranger", "cart", 50002, &stranger, invoke("cart")),
        ("cart", "billing", 50002, &cart, invoke("billing")),
    ];
    let mut pairs = Vec::new();
    for (from, to, port, seat, url) in asked {
        let reply = stage.curl(seat, &url, &["-m", "2"]).await;
        pairs.push(Pair {
            text: format!("{from} -> {to}:{port}"),
            explain: explain(stage, from, to, port),
            done: reply.is_ok_and(|r| r.status == 200),
        });
    }
    let result = differ(pairs).await;
    report.check_result("calls of runtimes and apps likewise", result, told);
    Ok(())
}
