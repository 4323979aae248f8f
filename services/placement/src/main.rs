//! `weft-placement`: the placement service as a process.

use serde::Serialize;
use std::{net::SocketAddr, path::PathBuf, process::ExitCode};
use weft_placement::{Config, ServeError, serve};
use weft_service::{Context, Info};

/// Flags; each has its environment variable.
#[derive(Debug, clap::Args, Serialize)]
struct Flags {
    /// Where gRPC is served [default: 0.0.0.0:7302]
    #[arg(long, env = "WEFT_PLACEMENT_LISTEN", value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<SocketAddr>,
    /// Folder of the database, the key and the certificate
    #[arg(long, env = "WEFT_PLACEMENT_STATE_DIR", value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    state_dir: Option<PathBuf>,
    /// PostgreSQL instead of a file in the state folder: postgres://user:password@host/database
    #[arg(
        long,
        env = "WEFT_PLACEMENT_DATABASE_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    database_url: Option<String>,
    /// Trust domain of the mesh
    #[arg(long, env = "WEFT_TRUST_DOMAIN", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    trust_domain: Option<String>,
    /// The identity service
    #[arg(long, env = "WEFT_IDENTITY_ADDR", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    identity_addr: Option<String>,
    /// Join token for the first start
    #[arg(long, env = "WEFT_JOIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    join_token: Option<String>,
    /// File with the join token for the first start
    #[arg(long, env = "WEFT_JOIN_TOKEN_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    join_token_file: Option<PathBuf>,
    /// Slots of actor types that are new: a power of two
    #[arg(long, env = "WEFT_PLACEMENT_SLOTS", value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    slots: Option<u32>,
}

const INFO: Info = Info {
    binary: "weft-placement",
    name: "placement",
    about: "Says which host owns which virtual actors",
    metrics_port: 7312,
    secrets: &["join_token", "database_url"],
};

fn main() -> ExitCode {
    weft_service::main::<Config, Flags, ServeError, _, _>(
        INFO,
        |config| &config.telemetry,
        |config: Config, context: Context| serve(config, context.drain, context.metrics, context.health),
    )
}
