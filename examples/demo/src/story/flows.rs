//! The flows of all this, as operators read them.

use crate::{command::output, report::Report, stage::Stage};
use anyhow::Result;
use serde_json::Value;

pub async fn play(stage: &mut Stage, report: &mut Report) -> Result<()> {
    report.chapter("One flow log: who called whom, what was decided, by what proof");
    for node in ["n1", "n2"] {
        let mut observe = stage.weft(&stage.node(node)?.run_dir);
        observe.args(["observe", "--last", "4"]);
        let lines = output(observe).await.unwrap_or_default();
        report.note(format!("weft observe on {node}:"));
        for line in lines.lines() {
            report.note(format!("  {line}"));
        }
    }
    let sent = flows(stage, "n1", "cart", "billing").await?;
    let received = flows(stage, "n2", "cart", "billing").await?;
    let spiffe = |flow: &Value, side: &str| {
        flow["weft"][side]["spiffe_id"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let whole = |flows: &[Value], direction: &str| {
        flows.iter().any(|f| {
            f["traffic_direction"] == direction
                && f["verdict"] == "FORWARDED"
                && spiffe(f, "source").ends_with("/ns/default/cart")
                && spiffe(f, "destination").ends_with("/ns/default/billing")
        })
    };
    report.check(
        "the caller's node shows the call as egress, with both SPIFFE identities",
        whole(&sent, "EGRESS"),
        sent.last()
            .map(|f| format!("{} -> {}", spiffe(f, "source"), spiffe(f, "destination")))
            .unwrap_or_default(),
    );
    report.check(
        "the callee's node shows it as ingress, proven by the tunnel's certificate",
        whole(&received, "INGRESS")
            && received
                .iter()
                .any(|f| f["weft"]["caller_proof"] == "tunnel-svid"),
        received
            .last()
            .map(|f| f["weft"]["caller_proof"].to_string())
            .unwrap_or_default(),
    );
    let trace = |flow: &Value| -> Option<String> {
        let id = flow["trace_context"]["parent"]["trace_id"].as_str()?;
        Some(id.to_owned())
    };
    let traces: Vec<String> = sent.iter().filter_map(trace).collect();
    let same = received
        .iter()
        .filter_map(trace)
        .any(|t| !t.is_empty() && traces.contains(&t));
    report.check(
        "both carry the same W3C trace id",
        same,
        traces.last().map_or("none", String::as_str),
    );
    Ok(())
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
    Ok(output(observe)
        .await?
        .lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).ok())
        .map(|response| response["flow"].clone())
        .collect())
}
