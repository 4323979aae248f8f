//! `weft status`: the local agent in one page.

use crate::{
    connect::{AgentArgs, agent_error},
    output::{Format, print_text, print_value, table, time},
};
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
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
    pub async fn run(self) -> Result<()> {
        let (channel, socket) = self.agent.agent()?;
        let status = StatusClient::new(channel)
            .get(GetRequest {})
            .await
            .map_err(|status| agent_error(&status, &socket))?
            .into_inner();
        match self.output {
            Format::Table => print_text(&page(&status)),
            format => print_value(&value(&status), format),
        }
    }
}

fn kind(workload: &Workload) -> &'static str {
    match workload.kind() {
        WorkloadKind::Pod => "pod",
        WorkloadKind::Process => "process",
        WorkloadKind::Unspecified => "unknown",
    }
}

fn page(s: &GetResponse) -> String {
    let mut out = format!(
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
        "capabilities": s.capabilities.iter().map(|c| json!({
            "name": c.name, "active": c.active, "reason": c.reason,
        })).collect::<Vec<_>>(),
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
