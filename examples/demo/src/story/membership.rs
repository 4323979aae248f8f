//! Everybody comes up from a single-use token, and gets no more than it says.

use crate::{
    command::output,
    report::Report,
    stage::{App, Stage},
};
use anyhow::Result;

pub async fn play(stage: &mut Stage, report: &mut Report) -> Result<()> {
    report.chapter("The control plane and two nodes join by single-use tokens");
    stage.start_service("identity").await?;
    report.check(
        "the certificate authority made its root and serves",
        true,
        stage.address(7301),
    );
    for name in ["policy", "placement"] {
        stage.start_service(name).await?;
        report.check(
            &format!("{name} joined with a token and serves over mTLS"),
            true,
            "listening",
        );
    }
    stage.start_node("n1", &["default/*"]).await?;
    stage
        .start_node(
            "n2",
            &[
                "default/billing",
                "default/reports",
                "default/archive",
                // Pods without app-id, and shared endpoints.
                "default/default",
                "default/ingress",
                "default/whoami",
            ],
        )
        .await?;
    for node in ["n1", "n2"] {
        let connected = connected(stage, node).await?;
        report.check(
            &format!("node {node} joined; its agent is connected to all three services"),
            connected == ["identity", "placement", "policy"],
            connected.join(", "),
        );
    }

    // A token opens the door once.
    let used = stage.dir().join("service-policy.token");
    let again = second_use(stage, &used).await;
    report.check(
        "a used token is refused",
        again.as_ref().is_err_and(|e| format!("{e:#}").contains("token")),
        again.map_or_else(|e| shorten(&format!("{e:#}")), |_| "it was taken again".into()),
    );

    // n2 may host what is named there; asking for another app's identity is refused and recorded.
    let refused = stage.start_pod("n2", "vault", App::Rust).await;
    let why = refused.err().map(|e| format!("{e:#}")).unwrap_or_default();
    report.check(
        "node n2 gets no identity that it may not host",
        why.contains("may not host"),
        sentence(&why, "may not host"),
    );
    let allowed = stage.start_pod("n1", "vault", App::Rust).await;
    report.check(
        "its twin: the same app on node n1, whose token allows it",
        allowed.is_ok(),
        match &allowed {
            Ok(()) => "running".to_owned(),
            Err(e) => shorten(&format!("{e:#}")),
        },
    );
    let mut audit = stage.weft(&stage.identity_run_dir());
    audit.args(["identity", "audit", "--last", "200", "-o", "json"]);
    let audit = output(audit).await.unwrap_or_default();
    let entries: Vec<serde_json::Value> = serde_json::from_str(&audit).unwrap_or_default();
    let refusals: Vec<_> = entries.iter().filter(|e| e["outcome"] == "refuse").collect();
    report.check(
        "the used token's refusal is in the audit record",
        refusals.iter().any(|e| e["action"] == "join"),
        format!("{} of {} entries are refusals", refusals.len(), entries.len()),
    );
    // The registry refuses first, so that nobody is told of the workload and no certificate is asked for.
    let log = std::fs::read_to_string(stage.dir().join("log/policy.log")).unwrap_or_default();
    let line = log
        .lines()
        .find(|l| l.contains("no host pattern of the node permits it"));
    report.check(
        "and node n2's in the policy service's log, with the workload",
        line.is_some_and(|l| l.contains("n2/default/vault/")),
        sentence(line.unwrap_or_default(), "registration refused"),
    );
    Ok(())
}

/// A service with an empty folder and a token that was used before.
async fn second_use(stage: &Stage, token: &std::path::Path) -> Result<String> {
    let mut command = std::process::Command::new(stage.dir().join("bin/weft-policy"));
    command
        .args([
            "--listen",
            "127.0.0.1:0",
            "--metrics-listen",
            "127.0.0.1:0",
            "--identity-addr",
            &stage.address(7301),
        ])
        .arg("--state-dir")
        .arg(stage.dir().join("second-use"))
        .arg("--resources")
        .arg(stage.resources())
        .arg("--join-token-file")
        .arg(token);
    let namespace = stage.control.namespace().clone();
    tokio::task::spawn_blocking(move || {
        let output = namespace.run(|| command.output())??;
        anyhow::ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::new())
    })
    .await?
}

/// The part of an error between its colons that says it.
fn sentence(text: &str, with: &str) -> String {
    let part = text.split([':', '\n']).find(|part| part.contains(with));
    part.map_or_else(|| shorten(text), |part| part.trim().chars().take(160).collect())
}

fn shorten(text: &str) -> String {
    let line = text.lines().next_back().unwrap_or_default();
    line.chars().take(160).collect()
}

/// The services that a node's agent is connected to.
async fn connected(stage: &Stage, node: &str) -> Result<Vec<String>> {
    let mut status = stage.weft(&stage.node(node)?.run_dir);
    status.args(["status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_str(&output(status).await?)?;
    let upstreams = status["upstreams"].as_array().into_iter().flatten();
    let mut names: Vec<String> = upstreams
        .filter(|u| u["connected"] == true)
        .filter_map(|u| Some(u["name"].as_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}
