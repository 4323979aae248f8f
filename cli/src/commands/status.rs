//! `weft status`: the local agent in one page. Exit code 3 says that manifests were rejected: what
//! they ask for, a policy perhaps, is not in force.

use crate::{
    connect::{AgentArgs, agent_error},
    output::{Format, print_text, print_value, table, time},
};
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use std::process::ExitCode;
use weft_proto::weft::{
    dataplane::v1::{GetRequest, GetResponse, status_client::StatusClient},
    policy::v1::{Workload, WorkloadKind},
};

/// Show the agent of this node.
#[derive(Debug, Args)]
pub struct Status {
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: AgentArgs,
}

impl Status {
    /// Prints the agent's status.
    pub async fn run(self) -> Result<ExitCode> {
        let (channel, socket) = self.agent.agent()?;
        let status = StatusClient::new(channel)
            .get(GetRequest {})
            .await
            .map_err(|status| agent_error(&status, &socket))?
            .into_inner();
        match self.output {
            Format::Table => print_text(&page(&status))?,
            format => print_value(&value(&status), format)?,
        }
        let rejected = status.rejected.is_some_and(|r| r.total > 0);
        Ok(ExitCode::from(if rejected { REJECTED } else { 0 }))
    }
}

/// Exit code when manifests were rejected.
const REJECTED: u8 = 3;

/// Manifests that have no effect, in front of all else: a policy among them protects nothing.
fn rejected(s: &GetResponse) -> String {
    let Some(rejected) = s.rejected.as_ref().filter(|r| r.total > 0) else {
        return String::new();
    };
    let mut out = format!(
        "{} NOT IN FORCE because of mistakes in them:\n",
        match rejected.total {
            1 => "1 MANIFEST FILE IS".to_owned(),
            n => format!("{n} MANIFEST FILES ARE"),
        }
    );
    for file in &rejected.files {
        let instead = if file.earlier_in_force {
            "what it said before still holds"
        } else {
            "it was never good: nothing of it holds"
        };
        out += &format!("  {}: {instead}\n", file.path);
        for error in &file.errors {
            out += &format!("    {error}\n");
        }
    }
    out + "\n"
}

fn kind(workload: &Workload) -> &'static str {
    match workload.kind() {
        WorkloadKind::Pod => "pod",
        WorkloadKind::Process => "process",
        WorkloadKind::Unspecified => "unknown",
    }
}

fn page(s: &GetResponse) -> String {
    let mut out = rejected(s);
    out += &format!(
        "Node {} ({}), up since {}\n",
        s.node,
        s.version,
        time(s.started_at)
    );
    out += &format!(
        "Certificate {} until {}\n",
        s.spiffe_id,
        time(s.certificate_not_after)
    );
    out += &format!("Policy version {}\n\n", s.policy_version);
    let upstreams: Vec<_> = s
        .upstreams
        .iter()
        .map(|u| {
            vec![
                u.name.clone(),
                u.address.clone(),
                connected(u.connected).into(),
                u.error.clone(),
            ]
        })
        .collect();
    out += &table(&["SERVICE", "ADDRESS", "STATE", "LAST ERROR"], &upstreams);
    out += "\n\n";
    let capabilities: Vec<_> = s
        .capabilities
        .iter()
        .map(|c| {
            vec![
                c.name.clone(),
                if c.active { "enforced" } else { "NOT ENFORCED" }.into(),
                c.reason.clone(),
            ]
        })
        .collect();
    out += &table(&["CAPABILITY", "STATE", "WHY"], &capabilities);
    out += "\n\n";
    if let Some(d) = &s.datapath {
        out += &format!(
            "Kernel: {} endpoints, {} addresses, {} policy sets with {} entries; {} events lost\n",
            d.endpoints, d.addresses, d.policy_sets, d.policy_entries, d.events_lost
        );
        for problem in &d.problems {
            out += &format!("  CLOSED: {problem}\n");
        }
        out += "\n";
    }
    let workloads: Vec<_> = s
        .workloads
        .iter()
        .map(|w| {
            vec![
                w.namespace.clone(),
                w.name.clone(),
                w.app_id.clone(),
                kind(w).into(),
                w.identity.to_string(),
                w.spiffe_id.clone(),
            ]
        })
        .collect();
    out + &table(
        &["NAMESPACE", "NAME", "APP-ID", "KIND", "IDENTITY", "SPIFFE ID"],
        &workloads,
    )
}

fn connected(yes: bool) -> &'static str {
    if yes { "connected" } else { "AWAY" }
}

fn value(s: &GetResponse) -> Value {
    json!({
        "node": s.node,
        "version": s.version,
        "startedAt": time(s.started_at),
        "spiffeId": s.spiffe_id,
        "certificateNotAfter": time(s.certificate_not_after),
        "policyVersion": s.policy_version,
        "rejectedFiles": s.rejected.as_ref().map(|r| json!({
            "total": r.total,
            "files": r.files.iter().map(|f| json!({
                "path": f.path, "earlierInForce": f.earlier_in_force, "errors": f.errors,
            })).collect::<Vec<_>>(),
        })),
        "capabilities": s.capabilities.iter().map(|c| json!({
            "name": c.name, "active": c.active, "reason": c.reason,
        })).collect::<Vec<_>>(),
        "datapath": s.datapath.as_ref().map(|d| json!({
            "endpoints": d.endpoints, "addresses": d.addresses, "policySets": d.policy_sets,
            "policyEntries": d.policy_entries, "eventsLost": d.events_lost, "problems": d.problems,
        })),
        "upstreams": s.upstreams.iter().map(|u| json!({
            "name": u.name, "address": u.address, "connected": u.connected, "error": u.error,
        })).collect::<Vec<_>>(),
        "workloads": s.workloads.iter().map(|w| json!({
            "id": w.id, "namespace": w.namespace, "name": w.name, "appId": w.app_id, "kind": kind(w),
            "identity": w.identity, "spiffeId": w.spiffe_id, "addresses": w.addresses,
            "appPort": w.app_port, "labels": w.labels,
        })).collect::<Vec<_>>(),
    })
}
