//! `weft identity`: everything an operator asks of the certificate authority, by its local socket.

mod authority;
mod backup;
mod join_token;
mod record;
mod revoke;

use anyhow::Result;
use authority::{Rotate, Show};
use backup::Backup;
#[cfg(feature = "dev")]
use backup::Restore;
use clap::Subcommand;
use join_token::JoinToken;
use record::{Audit, List};
use revoke::{Reinstate, Revocations, Revoke};

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

impl Identity {
    /// Runs the chosen command.
    pub async fn run(self) -> Result<()> {
        match self {
            Self::JoinToken(c) => c.run().await,
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
