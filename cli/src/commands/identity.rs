//! `weft identity`: everything an operator asks of the certificate authority, by its local socket.
//! Join tokens are here, the rest is in the files below.

mod authority;
mod backup;
mod record;
mod revoke;

use crate::{
    connect::{AgentArgs, identity_error},
    output::print_text,
};
use anyhow::Result;
use authority::{Rotate, Show};
use backup::Backup;
#[cfg(feature = "dev")]
use backup::Restore;
use clap::{Args, Subcommand};
use record::{Audit, List};
use revoke::{Reinstate, Revocations, Revoke};
use weft_proto::weft::identity::v1::{CreateJoinTokenRequest, HostPattern, admin_client::AdminClient};

/// Ask the certificate authority of this machine.
#[derive(Debug, Subcommand)]
pub enum Identity {
    /// Roots and issuers with their ages, and where a rotation stands
    Show(Show),
    /// Replace the root, the issuer, or everything they signed; nothing is restarted
    Rotate(Rotate),
    /// Certificates that were given out and are valid, newest first
    List(List),
    /// End an identity or one certificate before its time, on every node
    Revoke(Revoke),
    /// Let a revoked identity have certificates again; those from before stay revoked
    Reinstate(Reinstate),
    /// What is revoked
    Revocations(Revocations),
    /// Write the authority with its keys into an encrypted file
    Backup(Backup),
    /// Put a backup into an empty database, before the service is started
    #[cfg(feature = "dev")]
    Restore(Restore),
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
            Self::List(c) => c.run().await,
            Self::Revoke(c) => c.run().await,
            Self::Reinstate(c) => c.run().await,
            Self::Revocations(c) => c.run().await,
            Self::Backup(c) => c.run().await,
            #[cfg(feature = "dev")]
            Self::Restore(c) => c.run().await,
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
