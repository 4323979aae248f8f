//! `weft-policy`: see the library.

use serde::Serialize;
use std::{net::SocketAddr, path::PathBuf, process::ExitCode};
use weft_policy::{Config, Source};
use weft_service::{Context, Info};

#[derive(Debug, clap::Args, Serialize)]
struct Flags {
    /// Where gRPC is served [default: 0.0.0.0:7303]
    #[arg(long, env = "WEFT_POLICY_LISTEN", value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<SocketAddr>,
    /// Where what is desired is read: folder or kubernetes [default: folder]
    #[arg(long, env = "WEFT_POLICY_SOURCE", value_name = "SOURCE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
    /// How the API server is reached [default: as the account of this pod]
    #[arg(long, env = "WEFT_POLICY_KUBECONFIG", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    kubeconfig: Option<PathBuf>,
    /// Namespace of the Lease by which one of several replicas writes statuses [default: the account's]
    #[arg(long, env = "WEFT_POLICY_LEASE_NAMESPACE", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_namespace: Option<String>,
    /// Folder of manifests, watched for changes
    #[arg(long, env = "WEFT_POLICY_RESOURCES", value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<PathBuf>,
    /// Where the database and this service's key are kept
    #[arg(long, env = "WEFT_POLICY_STATE_DIR", value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    state_dir: Option<PathBuf>,
    /// PostgreSQL instead of a file in the state folder: postgres://user:password@host/database
    #[arg(
        long,
        env = "WEFT_POLICY_DATABASE_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    database_url: Option<String>,
    /// Folder for the local socket that `weft get` asks [default: /run/weft for root, else
    /// $XDG_RUNTIME_DIR/weft]
    #[arg(long, env = "WEFT_POLICY_RUN_DIR", value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    run_dir: Option<PathBuf>,
    /// Trust domain of all SPIFFE IDs
    #[arg(long, env = "WEFT_TRUST_DOMAIN", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    trust_domain: Option<String>,
    /// The identity service, as host:port
    #[arg(long, env = "WEFT_IDENTITY_ADDR", value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    identity_addr: Option<String>,
    /// Range of addresses for Services that name none; once per family [default: 10.96.0.0/12, fd00:10:96::/112]
    #[arg(
        long = "service-cidr",
        env = "WEFT_POLICY_SERVICE_CIDR",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    service_cidrs: Vec<String>,
    /// Range of addresses for shared endpoints (weft.dev/shared-app); once per family; nothing else may have
    /// addresses there [default: 198.18.0.0/16, fd00:10:97::/112]
    #[arg(
        long = "shared-cidr",
        env = "WEFT_POLICY_SHARED_CIDR",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    shared_cidrs: Vec<String>,
    /// How long a node may be away before a shared endpoint with strategy deployment moves [default: 15]
    #[arg(long, env = "WEFT_POLICY_SHARED_MOVE_SECONDS", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    shared_move_seconds: Option<u64>,
    /// Take workloads on loopback addresses from agents that run with --rootless: only for a mesh that is
    /// all on one machine
    #[arg(long, env = "WEFT_INSECURE_LOOPBACK", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    insecure_loopback: Option<bool>,
    /// Join token for the first start
    #[arg(long, env = "WEFT_JOIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    join_token: Option<String>,
    /// File with the join token for the first start
    #[arg(long, env = "WEFT_JOIN_TOKEN_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    join_token_file: Option<PathBuf>,
}

const INFO: Info = Info {
    binary: "weft-policy",
    name: "policy",
    about: "Reads what is desired, compiles it, and streams each node what that node needs",
    metrics_port: 7313,
    secrets: &["join_token", "database_url"],
};

fn main() -> ExitCode {
    weft_service::main::<Config, Flags, weft_policy::ServeError, _, _>(
        INFO,
        |config| &config.telemetry,
        |config: Config, context: Context| {
            weft_policy::serve(config, context.drain, context.metrics, context.health)
        },
    )
}
