//! `weft identity`: the authority's state and rotation, join tokens and the audit record, by the
//! certificate authority's local socket.

use crate::{
    connect::{AgentArgs, identity_error},
    output::{Format, print_text, print_value, table, time},
};
use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use weft_proto::weft::identity::v1::{
    AuditEntry, Authority, CreateJoinTokenRequest, GetAuthorityRequest, HostPattern, ListAuditRequest,
    RotateRequest, RotateTarget, admin_client::AdminClient,
};

/// Ask the certificate authority of this machine.
#[derive(Debug, Subcommand)]
pub enum Identity {
    /// Roots and issuers with their ages, and where a rotation stands
    Show(Show),
    /// Replace the root, the issuer, or everything they signed; nothing is restarted
    Rotate(Rotate),
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

/// Show the authority.
#[derive(Debug, Args)]
pub struct Show {
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: AgentArgs,
}

/// Begin a rotation.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("target").required(true),
    after_help = "A new root signs when every connected member knows it, and the old one goes when nothing \
                  depends on it any more: `weft identity show` says how far it is."
)]
pub struct Rotate {
    /// A new root, and an issuer under it
    #[arg(long, group = "target")]
    root: bool,
    /// A new issuer under the present root
    #[arg(long, group = "target")]
    issuer: bool,
    /// New certificates for all members and workloads, now
    #[arg(long, group = "target")]
    leaves: bool,
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
            Self::Show(c) => c.run().await,
            Self::Rotate(c) => c.run().await,
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

impl Show {
    async fn run(self) -> Result<()> {
        let (channel, socket) = self.agent.identity()?;
        let shown = AdminClient::new(channel)
            .get_authority(GetAuthorityRequest {})
            .await
            .map_err(|status| identity_error(&status, &socket))?
            .into_inner();
        if !matches!(self.output, Format::Table) {
            let all = |list: &[Authority]| list.iter().map(authority_json).collect::<Vec<_>>();
            let replicas = shown.replicas.iter().map(|r| {
                json!({
                    "name": r.name, "seen": time(r.seen), "members": r.members, "ackedVersion": r.acked_version,
                })
            });
            let value = json!({
                "trustDomain": shown.trust_domain, "bundleVersion": shown.bundle_version,
                "phase": shown.phase, "members": shown.members, "waitingFor": shown.waiting_for,
                "roots": all(&shown.roots), "issuers": all(&shown.issuers),
                "replicas": replicas.collect::<Vec<_>>(),
            });
            return print_value(&value, self.output);
        }
        let row = |kind: &str, a: &Authority| {
            vec![
                kind.to_owned(),
                a.state.clone(),
                a.key.clone(),
                time(a.not_before),
                time(a.not_after),
                a.needed_until
                    .filter(|t| t.seconds > 0)
                    .map_or_else(|| "-".into(), |t| time(Some(t))),
                a.sha256.chars().take(16).collect(),
            ]
        };
        let rows: Vec<_> = shown
            .roots
            .iter()
            .map(|a| row("root", a))
            .chain(shown.issuers.iter().map(|a| row("issuer", a)))
            .collect();
        let header = ["KIND", "STATE", "KEY", "FROM", "UNTIL", "NEEDED UNTIL", "SHA-256"];
        print_text(&table(&header, &rows))?;
        let mut line = format!(
            "Trust domain {}, bundle {}, {} connected members",
            shown.trust_domain, shown.bundle_version, shown.members
        );
        match shown.phase.as_str() {
            "distributing" if shown.waiting_for.is_empty() => {
                line.push_str("; a new root is about to be used");
            }
            "distributing" => {
                line.push_str("; a new root waits until it is known to ");
                line.push_str(&shown.waiting_for);
            }
            "retiring" => line.push_str("; the old root goes when nothing depends on it"),
            _ => {}
        }
        print_text(&line)
    }
}

fn authority_json(a: &Authority) -> serde_json::Value {
    json!({
        "sha256": a.sha256, "state": a.state, "key": a.key, "notBefore": time(a.not_before),
        "notAfter": time(a.not_after), "neededUntil": time(a.needed_until), "hasKey": a.has_key,
    })
}

impl Rotate {
    async fn run(self) -> Result<()> {
        let (channel, socket) = self.agent.identity()?;
        let target = if self.root {
            RotateTarget::Root
        } else if self.issuer {
            RotateTarget::Issuer
        } else {
            RotateTarget::Leaves
        };
        let reply = AdminClient::new(channel)
            .rotate(RotateRequest {
                target: target.into(),
            })
            .await
            .map_err(|status| identity_error(&status, &socket))?
            .into_inner();
        print_text(match (target, reply.phase.as_str()) {
            (RotateTarget::Root, "distributing") => {
                "A new root is given to the members; `weft identity show` says how far it is"
            }
            (RotateTarget::Root, _) => "A new root is in use; the old one goes when nothing depends on it",
            (RotateTarget::Issuer, _) => "A new issuer is in use",
            _ => "Members and workloads are told to get new certificates",
        })
    }
}
