//! `weft identity join-token`.

use crate::{
    connect::{AgentArgs, identity_error, is_passing},
    output::{Format, print_done, print_value, time},
};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::json;
use std::{
    fs::OpenOptions,
    io::{ErrorKind, Write},
    os::unix::fs::{OpenOptionsExt, fchown},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tonic::{Status, transport::Channel};
use weft_proto::weft::identity::v1::{
    CreateJoinTokenRequest, CreateJoinTokenResponse, HostPattern, admin_client::AdminClient,
};

/// Between two tries of `--wait`.
const PAUSE: Duration = Duration::from_millis(300);

/// Single-use tokens.
#[derive(Debug, Subcommand)]
pub enum JoinToken {
    /// Make a token and print it; it is shown once and pins the root certificate's SHA-256
    Create(Create),
}

impl JoinToken {
    /// Runs the chosen command.
    pub async fn run(self) -> Result<()> {
        let Self::Create(create) = self;
        create.run().await
    }
}

/// Make a join token.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  weft identity join-token create --kind service --name policy\n  \
    weft identity join-token create --kind node --name n1 --may-host 'default/*'\n  \
    weft identity join-token create --kind service --name policy --out /tokens/policy --keep --wait 60"
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
    /// Write it into a new file, readable by its owner only, instead of printing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// With --out: the user, and group, that the file belongs to, by number; for root, to give a token to a
    /// service of another user
    #[arg(long, requires = "out", value_name = "UID[:GID]", value_parser = parse_owner)]
    owner: Option<Owner>,
    /// With --out: if the file is there, leave it as it is and make no token
    #[arg(long, requires = "out")]
    keep: bool,
    /// Seconds to wait for a certificate authority that does not answer yet
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=3600))]
    wait: u32,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: AgentArgs,
}

/// A user, and a group if the file is not to stay in the one it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    uid: u32,
    gid: Option<u32>,
}

fn parse_owner(text: &str) -> Result<Owner, String> {
    let number = |text: &str| {
        text.parse::<u32>()
            .map_err(|_| format!("{text:?} is no number of a user or group"))
    };
    match text.split_once(':') {
        Some((uid, gid)) => Ok(Owner {
            uid: number(uid)?,
            gid: Some(number(gid)?),
        }),
        None => Ok(Owner {
            uid: number(text)?,
            gid: None,
        }),
    }
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

impl Create {
    async fn run(self) -> Result<()> {
        if self.keep && self.out.as_ref().is_some_and(|file| file.exists()) {
            return Ok(());
        }
        let (channel, socket) = self.agent.identity()?;
        if self.kind == "node" && self.may_host.is_empty() {
            eprintln!(
                "weft: this node will be allowed to host nothing; --may-host 'default/*' says what it may"
            );
        }
        let request = CreateJoinTokenRequest {
            kind: self.kind.clone(),
            name: self.name.clone(),
            may_host: self.may_host,
            ttl_seconds: self.ttl,
        };
        // Made before the token: one that can not be kept should not exist.
        let file = self.out.as_deref();
        let file = file.map(|path| create(path, self.owner)).transpose()?;
        let wait = Duration::from_secs(self.wait.into());
        let made = ask(channel, request, wait)
            .await
            .map_err(|status| identity_error(&status, &socket));
        let mut told = json!({ "kind": self.kind, "name": self.name });
        match (made, file, &self.out) {
            (Ok(made), Some(mut file), Some(path)) => {
                file.write_all(made.token.as_bytes())
                    .and_then(|()| file.sync_all())
                    .with_context(|| format!("cannot write {}", path.display()))?;
                if matches!(self.output, Format::Table) {
                    return Ok(());
                }
                told["expires"] = time(made.expires_at).into();
                told["file"] = path.display().to_string().into();
                print_value(&told, self.output)
            }
            (Ok(made), ..) => {
                told["expires"] = time(made.expires_at).into();
                told["token"] = made.token.as_str().into();
                print_done(&made.token, &told, self.output)
            }
            (Err(error), _, path) => {
                if let Some(path) = path {
                    // It is empty, and the next try wants to make it.
                    let _ = std::fs::remove_file(path);
                }
                Err(error)
            }
        }
    }
}

async fn ask(
    channel: Channel,
    request: CreateJoinTokenRequest,
    wait: Duration,
) -> Result<CreateJoinTokenResponse, Status> {
    let until = Instant::now() + wait;
    let mut authority = AdminClient::new(channel);
    loop {
        match authority.create_join_token(request.clone()).await {
            Ok(reply) => return Ok(reply.into_inner()),
            Err(status) if is_passing(&status) && Instant::now() < until => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(status) => return Err(status),
        }
    }
}

fn create(path: &Path, owner: Option<Owner>) -> Result<std::fs::File> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let file = file.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => anyhow::anyhow!(
            "{} is there already; remove it, or let it be with --keep",
            path.display()
        ),
        _ => anyhow::Error::from(error).context(format!("cannot make {}", path.display())),
    })?;
    // While it is empty: nobody else has read it before.
    if let Some(Owner { uid, gid }) = owner
        && let Err(error) = fchown(&file, Some(uid), gid)
    {
        let _ = std::fs::remove_file(path);
        let what = format!("cannot give {} to user {uid}", path.display());
        return Err(anyhow::Error::from(error).context(what));
    }
    Ok(file)
}
