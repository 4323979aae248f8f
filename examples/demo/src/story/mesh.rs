//! What never touches the agent: connections between pods, judged and balanced by the kernel. And what
//! the agent carries for apps that know no HTTP.

use super::{json, unique};
use crate::{
    command::{output, wait_for},
    report::Report,
    stage::{Seat, Stage, Target},
};
use anyhow::{Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

/// Lets ledger be asked by teller, and by nobody else.
const DESIRED: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: ledger-callers, namespace: default}
spec:
  endpointSelector: {matchExpressions: [{key: app, operator: In, values: [ledger, ledger2, archive]}]}
  ingress:
    - fromEndpoints: [{matchLabels: {app: teller}}]
      toPorts: [{ports: [{port: \"7000\", protocol: TCP}]}]
---
apiVersion: v1
kind: Service
metadata: {name: ledger, namespace: default}
spec:
  clusterIP: 10.96.70.70
  selector: {role: ledger}
  ports: [{port: 70, targetPort: 7000, protocol: TCP}]
";
const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 70, 70)), 70);
const PORT: u16 = 7000;
const PATIENCE: Duration = Duration::from_millis(1500);
const SOON: Duration = Duration::from_secs(20);

pub async fn play(stage: &mut Stage, report: &mut Report) -> Result<()> {
    report.chapter("Connections that no agent touches, and a protocol that is no HTTP");
    for name in ["ledger", "ledger2"] {
        stage.place_labelled("n1", name, &[("role", "ledger")]).await?;
    }
    for name in ["teller", "thief"] {
        stage.place_pod("n1", name).await?;
    }
    stage.place_pod("n2", "archive").await?;
    for name in ["ledger", "ledger2", "archive"] {
        let addresses = stage.pod(name)?.net.addresses().map(|a| SocketAddr::new(a, PORT));
        let serving = stage.serve_echo(&stage.seat(name)?, name, &addresses).await?;
        if let Some(pod) = stage.pods.get_mut(name) {
            pod.app = Some(serving);
        }
    }
    stage.apply("ledger.yaml", DESIRED)?;
    direct(stage, report).await?;
    balanced(stage, report).await?;
    carried(stage, report).await?;
    without_agent(stage, report).await
}

fn address(stage: &Stage, name: &str) -> Result<SocketAddr> {
    Ok(SocketAddr::from((stage.pod(name)?.net.v4(), PORT)))
}

/// How one question went: its outcome and the answer's text.
async fn ask(stage: &Stage, from: &Seat, to: SocketAddr) -> Result<(bool, String)> {
    let answers = stage.ask_echo(from, PATIENCE, &[Target::Tcp(to)]).await?;
    let said = |a: &crate::stage::Answer| (a.is_ok(), format!("{} {}", a.outcome, a.text));
    answers
        .first()
        .map(said)
        .ok_or_else(|| anyhow::anyhow!("no answer"))
}

/// Until it is as wanted: a policy takes a moment from the file to the kernel.
async fn asked(stage: &Stage, from: &Seat, to: SocketAddr, wanted: bool) -> Result<(bool, String)> {
    wait_for("the answer", SOON, || async {
        let (is_ok, text) = ask(stage, from, to).await?;
        ensure!(is_ok == wanted, "{text}");
        Ok((is_ok, text))
    })
    .await
}

async fn flows(stage: &Stage, node: &str, from: &str, to: &str) -> Result<Vec<Value>> {
    let mut observe = stage.weft(&stage.node(node)?.run_dir);
    observe.args([
        "observe",
        "--all",
        "--from-pod",
        from,
        "--to-pod",
        to,
        "-o",
        "json",
    ]);
    let lines = output(observe).await?;
    Ok(lines.lines().map(|line| json(line)["flow"].clone()).collect())
}

async fn direct(stage: &Stage, report: &mut Report) -> Result<()> {
    let (teller, thief, ledger) = (
        stage.seat("teller")?,
        stage.seat("thief")?,
        address(stage, "ledger")?,
    );
    let refused = asked(stage, &thief, ledger, false).await;
    report.check_result(
        "the kernel drops what thief sends to ledger's port",
        refused,
        |(is_ok, text)| (!is_ok, text.clone()),
    );
    let own = stage.pod("teller")?.net.v4().to_string();
    let allowed = asked(stage, &teller, ledger, true).await;
    report.check_result(
        "its twin: teller is answered by ledger, which sees teller's own address",
        allowed,
        |(is_ok, text)| (*is_ok && text.contains(&format!("ledger {own} ")), text.clone()),
    );
    for (from, verdict, says) in [
        ("thief", "DROPPED", "POLICY_DENIED"),
        ("teller", "FORWARDED", "ledger-callers"),
    ] {
        let flow = wait_for("the flow", SOON, || async {
            let flows = flows(stage, "n1", from, "ledger").await?;
            let tells = |f: &&Value| {
                f["verdict"] == verdict
                    && f["traffic_direction"] == "INGRESS"
                    && [&f["weft"]["rule"], &f["drop_reason_desc"]]
                        .iter()
                        .any(|v| v.as_str().is_some_and(|v| v.contains(says)))
            };
            let found = flows.iter().find(tells).cloned();
            found
                .ok_or_else(|| anyhow::anyhow!("{} flows, none says {says}: {:?}", flows.len(), flows.last()))
        })
        .await;
        report.check_result(
            &format!("the kernel's flow of {from}'s connection says {says}"),
            flow,
            |f| {
                (
                    true,
                    format!("{} {} {}", f["verdict"], f["drop_reason_desc"], f["weft"]["rule"]),
                )
            },
        );
    }
    Ok(())
}

/// One address for two pods.
async fn balanced(stage: &Stage, report: &mut Report) -> Result<()> {
    let teller = stage.seat("teller")?;
    let first = asked(stage, &teller, SERVICE, true).await;
    let mut by = BTreeSet::new();
    let mut answered = 0;
    for _ in 0..40 {
        if let Ok((true, text)) = ask(stage, &teller, SERVICE).await {
            answered += 1;
            by.extend(text.split(' ').nth(1).map(str::to_owned));
        }
    }
    report.check(
        "a Service's address is answered by both of its pods, with no proxy between",
        first.is_ok() && answered == 40 && by.len() == 2,
        format!("{answered} of 40 by {by:?}"),
    );
    let thief = ask(stage, &stage.seat("thief")?, SERVICE).await;
    report.check_result(
        "its twin: thief gets no further by the Service's address",
        thief,
        |(is_ok, text)| (!is_ok, text.clone()),
    );
    Ok(())
}

/// Between nodes: the same connect(2), mutually authenticated and encrypted.
async fn carried(stage: &Stage, report: &mut Report) -> Result<()> {
    let (teller, archive) = (stage.seat("teller")?, address(stage, "archive")?);
    let reached = asked(stage, &teller, archive, true).await;
    report.check_result(
        "teller reaches archive on the other node by its plain address",
        reached,
        |(is_ok, text)| (*is_ok, text.clone()),
    );
    let mark = unique("clear-text-line");
    let word = format!("{mark}-{}", "x".repeat(700));
    let between = stage.testnet().underlay(&stage.node("n2")?.net).capture()?;
    let inside = stage.pod("archive")?.net.namespace().loopback().capture()?;
    let veth = stage.pod("archive")?.net.link().capture()?;
    let talk = stage.talk_echo(&teller, archive, &word).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let talked = talk.end().await;
    let (between, inside, veth) = (between.stop()?, inside.stop()?, veth.stop()?);
    report.check_result("a conversation in a protocol of its own", talked, |said| {
        (true, said.clone())
    });
    let tls = between.tls_on(15008);
    report.check(
        "between the nodes it is TLS, and its text is not among it",
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
        "its twin: the same search finds it in archive's own namespace",
        inside.contains(mark.as_bytes()) || veth.contains(mark.as_bytes()),
        format!(
            "{} frames on loopback, {} on the veth",
            inside.frames().len(),
            veth.frames().len()
        ),
    );
    let refused = asked(stage, &stage.seat("thief")?, archive, false).await;
    report.check_result("thief is refused there too", refused, |(is_ok, text)| {
        (!is_ok, text.clone())
    });
    Ok(())
}

/// The agent is not needed for what the kernel does.
async fn without_agent(stage: &Stage, report: &mut Report) -> Result<()> {
    let (teller, thief, ledger) = (
        stage.seat("teller")?,
        stage.seat("thief")?,
        address(stage, "ledger")?,
    );
    let talk = stage.talk_echo(&teller, ledger, "on").await?;
    let old = stage.agent_pid("n1")?;
    kill(Pid::from_raw(old), Signal::SIGKILL)?;
    let (fresh, refused) = (
        ask(stage, &teller, ledger).await,
        ask(stage, &thief, ledger).await,
    );
    let node = stage.node_pid("n1")?;
    let new = wait_for("a new agent", SOON, || async move {
        let pid = crate::stage::agent_of(node)?;
        ensure!(pid != old, "the old one is still there");
        Ok(pid)
    })
    .await;
    report.check_result(
        "weft-agent dies: a new direct connection is made all the same",
        fresh,
        |(is_ok, text)| (*is_ok, text.clone()),
    );
    report.check_result("its twin: thief is still refused", refused, |(is_ok, text)| {
        (!is_ok, text.clone())
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let talked = talk.end().await;
    report.check_result(
        "and the conversation that was going on loses no line",
        talked.and_then(|said| new.map(|pid| (said, pid))),
        |(said, pid)| (true, format!("{said}; agent {old}, then {pid}")),
    );
    Ok(())
}
