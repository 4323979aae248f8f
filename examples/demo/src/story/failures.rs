//! `kill -9`, in the middle of load: what each death costs.

use crate::{
    command::wait_for,
    load::{Outcome, Plan},
    report::Report,
    stage::{API, Stage, agent_of},
};
use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{fs, time::Duration};

/// Load before and after each death.
const BEFORE: Duration = Duration::from_millis(1500);
const AFTER: Duration = Duration::from_millis(2500);

fn plan(to: &str, reconnect: bool) -> Plan {
    Plan {
        address: API,
        path: format!("/v1.0/invoke/{to}/method/echo?id="),
        expect: vec![format!("\"app\":\"{to}\""), "\"caller\":\"cart\"".into()],
        connections: 16,
        rate: if reconnect { 200 } else { 800 },
        reconnect,
        answerers: Vec::new(),
    }
}

pub async fn play(stage: &mut Stage, report: &mut Report) -> Result<()> {
    report.chapter("kill -9 under load: 16 connections, no retries, each reply checked by its id");
    for name in ["identity", "policy", "placement"] {
        let outcome = service(stage, name).await;
        report.check_result(
            &format!("{name} dies and returns: no request fails"),
            outcome,
            |o| (unharmed(o), o.line()),
        );
    }
    agent(stage, report).await
}

fn unharmed(outcome: &Outcome) -> bool {
    outcome.good == outcome.sent && outcome.rate() >= 500.0
}

async fn service(stage: &mut Stage, name: &'static str) -> Result<Outcome> {
    let from = stage.pod("cart")?.net.namespace().clone();
    let load = stage.load(&from, plan("billing", false));
    tokio::time::sleep(BEFORE).await;
    {
        let mut process = stage.services.remove(name).context("it does not run")?;
        process.kill()?;
        process.wait()?;
    }
    tokio::time::sleep(AFTER).await;
    stage.start_service(name).await?;
    tokio::time::sleep(BEFORE).await;
    load.stop().await
}

async fn agent(stage: &mut Stage, report: &mut Report) -> Result<()> {
    let from = stage.pod("cart")?.net.namespace().clone();
    let node = stage.node_pid("n1")?;
    let old = agent_of(node)?;
    let status = fs::read_to_string(format!("/proc/{old}/status")).unwrap_or_default();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap_or("?")
            .trim()
            .to_owned()
    };
    let bare = ["CapEff:", "CapPrm:", "CapBnd:"]
        .iter()
        .all(|c| field(c).trim_start_matches('0').is_empty());
    report.check(
        "weft-agent runs without capabilities, under seccomp, as a user of its own",
        bare && field("Seccomp:") == "2" && !field("Uid:").starts_with('0'),
        format!(
            "CapEff {}, Seccomp {}, Uid {}",
            field("CapEff:"),
            field("Seccomp:"),
            field("Uid:").split('\t').next().unwrap_or("?")
        ),
    );

    let kept = stage.load(&from, plan("billing", false));
    let fresh = stage.load(&from, plan("orders", true));
    tokio::time::sleep(BEFORE).await;
    kill(Pid::from_raw(old), Signal::SIGKILL)?;
    let new = wait_for("a new agent", Duration::from_secs(20), || async move {
        let pid = agent_of(node)?;
        ensure!(pid != old, "the old one is still there");
        Ok(pid)
    })
    .await;
    tokio::time::sleep(AFTER).await;
    let (kept, fresh) = (kept.stop().await?, fresh.stop().await?);
    report.check_result("weft-agent dies: weft-node starts another", new, |pid| {
        (true, format!("pid {old}, then {pid}"))
    });
    report.check(
        "connects wait for it, none is refused or reset",
        fresh.connects_lost + kept.connects_lost == 0 && fresh.good > 0,
        fresh.line(),
    );
    // Each of the 16 connections of both loads may have had one request in flight.
    report.check(
        "only requests in flight are lost",
        kept.requests_lost <= 16 && fresh.requests_lost <= 16 && kept.good > 500,
        kept.line(),
    );
    Ok(())
}
