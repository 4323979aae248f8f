//! `weft identity backup` and `restore`.

use crate::{
    connect::{AgentArgs, identity_error},
    output::{Format, print_done},
};
use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::json;
use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use weft_proto::weft::identity::v1::{BackupRequest, admin_client::AdminClient};

/// Write a backup.
#[derive(Debug, Args)]
#[command(
    after_help = "The file holds the authority's keys, encrypted with the passphrase. Make one after each \
                  rotation of the root. The audit record is not in it (`weft identity audit --all`), nor are \
                  join tokens."
)]
pub struct Backup {
    /// The file to write; it must not exist yet
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// File whose first line is the passphrase, at least 16 characters
    #[arg(long, value_name = "FILE")]
    passphrase_file: PathBuf,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: AgentArgs,
}

fn passphrase(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let line = text.lines().next().unwrap_or_default();
    ensure!(!line.is_empty(), "{} holds no passphrase", path.display());
    Ok(line.to_owned())
}

impl Backup {
    pub(super) async fn run(self) -> Result<()> {
        let (channel, socket) = self.agent.identity()?;
        let request = BackupRequest {
            passphrase: passphrase(&self.passphrase_file)?,
        };
        let reply = AdminClient::new(channel)
            .max_decoding_message_size(256 * 1024 * 1024)
            .backup(request)
            .await
            .map_err(|status| identity_error(&status, &socket))?;
        let backup = reply.into_inner().backup;
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&self.out)?;
            file.write_all(&backup)?;
            file.sync_all()
        };
        write().with_context(|| format!("cannot write {}", self.out.display()))?;
        let text = format!("{} bytes in {}", backup.len(), self.out.display());
        let value = json!({ "file": self.out, "bytes": backup.len() });
        print_done(&text, &value, self.output)
    }
}

/// Restore a backup.
#[cfg(feature = "dev")]
#[derive(Debug, Args)]
#[command(
    after_help = "Run it as the user of weft-identity and before that is started, with the places that its \
                  configuration names. Running members go on: they come back to the restored service and \
                  renew with it. Who joined after the backup has to join again, and what was revoked after it \
                  has to be revoked again."
)]
pub struct Restore {
    /// The backup
    #[arg(value_name = "FILE")]
    backup: PathBuf,
    /// File whose first line is the passphrase
    #[arg(long, value_name = "FILE")]
    passphrase_file: PathBuf,
    /// State folder of the identity service
    #[arg(long, env = "WEFT_IDENTITY_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// PostgreSQL instead of a file in the state folder
    #[arg(
        long,
        env = "WEFT_IDENTITY_DATABASE_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    database_url: Option<String>,
    /// The key-encryption key's file, if it is not in the state folder; made when it is not there
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[cfg(feature = "dev")]
impl Restore {
    pub(super) async fn run(self) -> Result<()> {
        let mut config = weft_identity::Config {
            database_url: self.database_url,
            ..weft_identity::Config::default()
        };
        if let Some(folder) = self.state_dir {
            config.state_dir = folder;
        }
        config.ca.key_encryption_key = self.key_file;
        config.check()?;
        let backup =
            fs::read(&self.backup).with_context(|| format!("cannot read {}", self.backup.display()))?;
        let now = weft_tls::Now::unix_seconds(&weft_tls::SystemClock);
        let trust_domain =
            weft_identity::restore(&config, &backup, &passphrase(&self.passphrase_file)?, now).await?;
        let text = format!(
            "The authority of {trust_domain} is restored; start weft-identity with this trust domain"
        );
        print_done(&text, &json!({ "trustDomain": trust_domain }), self.output)
    }
}
