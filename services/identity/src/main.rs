//! The identity service's process.

use clap::Args;
use serde::Serialize;
use std::{net::SocketAddr, path::PathBuf, process::ExitCode};
use weft_identity::{Config, Env, StartError};
use weft_service::Info;

/// Everything is optional: what is not given comes from the file or is built in.
#[derive(Debug, Args, Serialize)]
struct Flags {
    /// Where gRPC is served [default: 0.0.0.0:7301]
    #[arg(long, env = "WEFT_IDENTITY_LISTEN", value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<SocketAddr>,
    /// Folder of the database and the key file
    #[arg(long, env = "WEFT_IDENTITY_STATE_DIR", value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    state_dir: Option<PathBuf>,
    /// PostgreSQL instead of a file in the state folder: postgres://user:password@host/database
    #[arg(
        long,
        env = "WEFT_IDENTITY_DATABASE_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    database_url: Option<String>,
    /// Folder of the operators' socket, identity.sock
    #[arg(long, env = "WEFT_IDENTITY_RUN_DIR", value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    run_dir: Option<PathBuf>,
    /// Trust domain of all certificates; fixed at the first start
    #[arg(long, env = "WEFT_TRUST_DOMAIN", value_name = "DOMAIN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    trust_domain: Option<String>,
    /// The policy service, whose registry says which workload runs where
    #[arg(long, env = "WEFT_POLICY_ADDR", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_addr: Option<String>,
}

const INFO: Info = Info {
    binary: "weft-identity",
    name: "identity",
    about: "Certificate authority of the mesh: SPIFFE identities, join tokens, trust bundles",
    metrics_port: 7311,
    secrets: &["database_url"],
};

fn main() -> ExitCode {
    weft_identity::keep_in_one_place();
    weft_service::main::<Config, Flags, StartError, _, _>(
        INFO,
        |config| &config.telemetry,
        |config, context| {
            let env = Env::new(context.drain)
                .metrics(&context.metrics)
                .health(context.health);
            weft_identity::serve_with(config, env)
        },
    )
}
