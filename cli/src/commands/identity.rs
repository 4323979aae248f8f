//! `weft identity`: join tokens and the audit record, by the certificate authority's local socket.

use crate::{
    connect::{AgentArgs, identity_error},
    output::{Format, print_text, print_value, table, time},
};
use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use weft_proto::weft::identity::v1::{
    AuditEntry, CreateJoinTokenRequest, HostPattern, ListAuditRequest, admin_client::AdminClient,
};

/// Ask the certificate authority of this machine.
#[derive(Debug, Subcommand)]
pub enum Identity {
    /// Single-use tokens with which services and nodes join
    #[command(subcommand)]
    JoinToken(JoinToken),
    /// Every issuance and refusal, newest first
    Audit(Audit),
}

/// Single-use tokens.
#[derive(Debug, Subcommand)]
pub enum JoinToken {
    /// Make a token and print it; it is shown once and pins the root certificate's SHA-256
    Create(Create),
}

/// Make a join token.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  weft identity join-token create --kind service --name policy\n  \
    weft identity join-token create --kind node --name n1 --may-host 'default/*'"
)]
pub struct Create {
    /// Whom it admits
    #[arg(long, value_parser = ["service", "node"])]
    kind: String,
    /// Name of the service or node
    #[arg(long)]
    name: String,
    /// Workloads a node may host, `<namespace>/<app-id>` with `*` for any run; may be repeated
    #[arg(long, value_name = "PATTERN", value_parser = parse_pattern)]
    may_host: Vec<HostPattern>,
    /// Seconds until it expires
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    ttl: u32,
    #[command(flatten)]
    agent: AgentArgs,
}

/// Show the audit record.
#[derive(Debug, Args)]
pub struct Audit {
    /// How many entries
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    last: u32,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: AgentArgs,
}

fn parse_pattern(text: &str) -> Result<HostPattern, String> {
    let (namespace, app_id) = text
        .split_once('/')
        .ok_or("write it as <namespace>/<app-id>, say 'default/*'")?;
    Ok(HostPattern {
        namespace: namespace.into(),
        app_id: app_id.into(),
    })
}

impl Identity {
    /// Runs the chosen command.
    pub async fn run(self) -> Result<()> {
        match self {
            Self::JoinToken(JoinToken::Create(c)) => c.run().await,
            Self::Audit(c) => c.run().await,
        }
    }
}

impl Create {
    async fn run(self) -> Result<()> {
        let (channel, socket) = self.agent.identity()?;
        if self.kind == "node" && self.may_host.is_empty() {
            eprintln!(
                "weft: this node will be allowed to host nothing; --may-host 'default/*' says what it may"
            );
        }
        let request = CreateJoinTokenRequest {
            kind: self.kind,
            name: self.name,
            may_host: self.may_host,
            ttl_seconds: self.ttl,
        };
        let reply = AdminClient::new(channel)
            .create_join_token(request)
            .await
            .map_err(|status| identity_error(&status, &socket))?;
        print_text(&reply.into_inner().token)
    }
}

impl Audit {
    async fn run(self) -> Result<()> {
        let (channel, socket) = self.agent.identity()?;
        let entries = AdminClient::new(channel)
            .list_audit(ListAuditRequest {
                limit: self.last,
                before_id: 0,
            })
            .await
            .map_err(|status| identity_error(&status, &socket))?
            .into_inner()
            .entries;
        match self.output {
            Format::Table => {
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
            format => {
                let entries: Vec<_> = entries
                    .iter()
                    .map(|e| {
                        json!({
                            "id": e.id, "time": time(e.time), "outcome": e.outcome, "action": e.action,
                            "caller": e.caller, "spiffeId": e.spiffe_id, "serial": e.serial, "reason": e.reason,
                        })
                    })
                    .collect();
                print_value(&json!(entries), format)
            }
        }
    }
}
