//! `weft identity list` and `audit`: what was given out, and what was refused.

use crate::{
    connect::{AgentArgs, identity_error},
    output::{Format, print_text, print_value, table, time},
};
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use weft_proto::weft::identity::v1::{AuditEntry, ListAuditRequest, admin_client::AdminClient};

/// The most that is answered at once.
const PAGE: u32 = 1000;

/// Show certificates that are valid.
#[derive(Debug, Args)]
pub struct List {
    /// Only of this SPIFFE ID
    #[arg(value_name = "SPIFFE-ID")]
    spiffe_id: Option<String>,
    /// How many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    last: u32,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: AgentArgs,
}

/// Show the audit record.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  weft identity audit --refused\n  weft identity audit --serial 4f02…\n  \
                  weft identity audit --all > audit.jsonl"
)]
pub struct Audit {
    /// How many entries
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    last: u32,
    /// Only refusals
    #[arg(long)]
    refused: bool,
    /// Only about this SPIFFE ID
    #[arg(long, value_name = "SPIFFE-ID")]
    id: Option<String>,
    /// Only about the certificate with this serial number
    #[arg(long)]
    serial: Option<String>,
    /// Export: every entry, one JSON object per line, newest first
    #[arg(long, conflicts_with_all = ["last", "output"])]
    all: bool,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: AgentArgs,
}

async fn ask(agent: &AgentArgs, request: ListAuditRequest) -> Result<Vec<AuditEntry>> {
    let (channel, socket) = agent.identity()?;
    let reply = AdminClient::new(channel)
        .max_decoding_message_size(64 * 1024 * 1024)
        .list_audit(request)
        .await
        .map_err(|status| identity_error(&status, &socket))?;
    Ok(reply.into_inner().entries)
}

fn entry_json(e: &AuditEntry) -> Value {
    json!({
        "id": e.id, "time": time(e.time), "outcome": e.outcome, "action": e.action, "caller": e.caller,
        "attested": e.attested, "spiffeId": e.spiffe_id, "serial": e.serial,
        "notAfter": time(e.not_after), "reason": e.reason,
    })
}

impl List {
    pub(super) async fn run(self) -> Result<()> {
        let request = ListAuditRequest {
            limit: self.last,
            outcome: "issue".into(),
            spiffe_id: self.spiffe_id.unwrap_or_default(),
            alive: true,
            ..Default::default()
        };
        let entries = ask(&self.agent, request).await?;
        if !matches!(self.output, Format::Table) {
            let all: Vec<_> = entries.iter().map(entry_json).collect();
            return print_value(&json!(all), self.output);
        }
        let row = |e: &AuditEntry| {
            vec![
                e.spiffe_id.clone(),
                time(e.time),
                time(e.not_after),
                e.caller.clone(),
                e.serial.clone(),
            ]
        };
        let header = ["SPIFFE ID", "GIVEN", "UNTIL", "ASKED BY", "SERIAL"];
        print_text(&table(&header, &entries.iter().map(row).collect::<Vec<_>>()))
    }
}

impl Audit {
    pub(super) async fn run(self) -> Result<()> {
        let mut request = ListAuditRequest {
            limit: if self.all { PAGE } else { self.last },
            outcome: if self.refused { "refuse" } else { "" }.into(),
            spiffe_id: self.id.clone().unwrap_or_default(),
            serial: self.serial.clone().unwrap_or_default(),
            ..Default::default()
        };
        if self.all {
            loop {
                let page = ask(&self.agent, request.clone()).await?;
                let Some(oldest) = page.last() else { return Ok(()) };
                request.before_id = oldest.id;
                let lines: Vec<String> = page.iter().map(|e| entry_json(e).to_string()).collect();
                print_text(&lines.join("\n"))?;
            }
        }
        let entries = ask(&self.agent, request).await?;
        if !matches!(self.output, Format::Table) {
            let all: Vec<_> = entries.iter().map(entry_json).collect();
            return print_value(&json!(all), self.output);
        }
        let row = |e: &AuditEntry| {
            vec![
                time(e.time),
                e.outcome.clone(),
                e.action.clone(),
                e.caller.clone(),
                e.spiffe_id.clone(),
                if e.reason.is_empty() {
                    e.serial.clone()
                } else {
                    e.reason.clone()
                },
            ]
        };
        let header = [
            "TIME",
            "OUTCOME",
            "ACTION",
            "CALLER",
            "SPIFFE ID",
            "SERIAL OR REASON",
        ];
        print_text(&table(&header, &entries.iter().map(row).collect::<Vec<_>>()))
    }
}
