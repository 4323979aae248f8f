//! `weft identity revoke`, `reinstate` and `revocations`.

use crate::{
    connect::{AgentArgs, identity_error},
    output::{Format, print_done, print_text, print_value, table, time},
};
use anyhow::Result;
use clap::Args;
use serde_json::json;
use weft_proto::weft::identity::v1::{
    ListRevocationsRequest, ReinstateRequest, Revocation, RevokeRequest, admin_client::AdminClient,
};

/// Revoke an identity or a certificate.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  weft identity revoke spiffe://cluster.local/ns/default/cart --reason 'key leaked'\n  \
                  weft identity revoke 4f02a1… --reason 'key leaked'\n\nA revoked identity gets no certificates \
                  until it is reinstated; of a node, also those that it holds for workloads are revoked."
)]
pub struct Revoke {
    /// The SPIFFE ID, or the serial number of one certificate
    #[arg(value_name = "SPIFFE-ID|SERIAL")]
    target: String,
    /// Why, for the audit record
    #[arg(long)]
    reason: String,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: AgentArgs,
}

/// Take a revocation back.
#[derive(Debug, Args)]
pub struct Reinstate {
    /// The revoked identity
    #[arg(value_name = "SPIFFE-ID")]
    spiffe_id: String,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: AgentArgs,
}

/// Show what is revoked.
#[derive(Debug, Args)]
pub struct Revocations {
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: AgentArgs,
}

impl Revoke {
    pub(super) async fn run(self) -> Result<()> {
        let (channel, socket) = self.agent.identity()?;
        let request = RevokeRequest {
            target: self.target.clone(),
            reason: self.reason.clone(),
        };
        AdminClient::new(channel)
            .revoke(request)
            .await
            .map_err(|status| identity_error(&status, &socket))?;
        let value = json!({ "target": self.target, "reason": self.reason });
        print_done(&format!("{} is revoked", self.target), &value, self.output)
    }
}

impl Reinstate {
    pub(super) async fn run(self) -> Result<()> {
        let (channel, socket) = self.agent.identity()?;
        let request = ReinstateRequest {
            spiffe_id: self.spiffe_id.clone(),
        };
        AdminClient::new(channel)
            .reinstate(request)
            .await
            .map_err(|status| identity_error(&status, &socket))?;
        let text = format!(
            "{} may have certificates again; those from before stay revoked",
            self.spiffe_id
        );
        print_done(&text, &json!({ "spiffeId": self.spiffe_id }), self.output)
    }
}

impl Revocations {
    pub(super) async fn run(self) -> Result<()> {
        let (channel, socket) = self.agent.identity()?;
        let all = AdminClient::new(channel)
            .list_revocations(ListRevocationsRequest {})
            .await
            .map_err(|status| identity_error(&status, &socket))?
            .into_inner()
            .revocations;
        // Reinstated: only what began before is revoked.
        let until_now = |r: &Revocation| r.target.starts_with("spiffe://") && r.valid_from != u64::MAX;
        if !matches!(self.output, Format::Table) {
            let each = all.iter().map(|r| {
                json!({
                    "target": r.target, "time": time(r.time), "reason": r.reason, "reinstated": until_now(r),
                })
            });
            return print_value(&json!(each.collect::<Vec<_>>()), self.output);
        }
        let row = |r: &Revocation| {
            let scope = if until_now(r) {
                "before it was reinstated"
            } else {
                "all"
            };
            vec![r.target.clone(), time(r.time), scope.into(), r.reason.clone()]
        };
        let header = ["TARGET", "SINCE", "CERTIFICATES", "REASON"];
        print_text(&table(&header, &all.iter().map(row).collect::<Vec<_>>()))
    }
}
