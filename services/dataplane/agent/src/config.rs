//! What the agent is told: flags, environment and file, in that order.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::{fmt, net::IpAddr, path::PathBuf};
use weft_enroll::TokenSource;
use weft_model::TrustDomain;
use weft_telemetry::TelemetryConfig;

/// What is exported, and where to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExportConfig {
    /// The file; none: nothing is exported. Full ones are beside it, `.1` the latest.
    pub file_path: Option<PathBuf>,
    /// Megabytes of one file.
    pub file_max_size_mb: u64,
    /// Full files that are kept.
    pub file_max_backups: usize,
    /// Only flows that one of these filters matches: JSON objects behind each other.
    pub allowlist: String,
    /// No flows that one of these matches.
    pub denylist: String,
    /// Fields that are written; all when there is none.
    pub fieldmask: Vec<String>,
}

impl Default for ExportConfig {
    fn default() -> Self {
        Self {
            file_path: None,
            file_max_size_mb: 10,
            file_max_backups: 5,
            allowlist: String::new(),
            denylist: String::new(),
            fieldmask: Vec::new(),
        }
    }
}

impl ExportConfig {
    /// The file, for logs.
    pub fn shown(&self) -> String {
        let path = self.file_path.as_ref();
        path.map(|p| p.display().to_string()).unwrap_or_default()
    }
}

/// The same as flags.
#[derive(Debug, Default, clap::Args, Serialize)]
struct ExportFlags {
    /// Write flows as JSON lines into this file, for log shippers
    #[arg(
        long = "hubble-export-file-path",
        env = "WEFT_HUBBLE_EXPORT_FILE_PATH",
        value_name = "FILE"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    file_path: Option<PathBuf>,
    /// Begin another file after so many megabytes [default: 10]
    #[arg(
        long = "hubble-export-file-max-size-mb",
        env = "WEFT_HUBBLE_EXPORT_FILE_MAX_SIZE_MB",
        value_name = "MB"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    file_max_size_mb: Option<u64>,
    /// Keep so many full files [default: 5]
    #[arg(
        long = "hubble-export-file-max-backups",
        env = "WEFT_HUBBLE_EXPORT_FILE_MAX_BACKUPS",
        value_name = "N"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    file_max_backups: Option<usize>,
    /// Write only flows that one of these filters matches (JSON-encoded FlowFilters)
    #[arg(
        long = "hubble-export-allowlist",
        env = "WEFT_HUBBLE_EXPORT_ALLOWLIST",
        value_name = "JSON"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    allowlist: Option<String>,
    /// Write no flows that one of these filters matches
    #[arg(
        long = "hubble-export-denylist",
        env = "WEFT_HUBBLE_EXPORT_DENYLIST",
        value_name = "JSON"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    denylist: Option<String>,
    /// Write only these fields: time,verdict,source.pod_name
    #[arg(
        long = "hubble-export-fieldmask",
        env = "WEFT_HUBBLE_EXPORT_FIELDMASK",
        value_name = "FIELDS",
        value_delimiter = ','
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fieldmask: Vec<String>,
}

impl ExportFlags {
    fn is_empty(&self) -> bool {
        let Self {
            file_path,
            file_max_size_mb,
            file_max_backups,
            allowlist,
            denylist,
            fieldmask,
        } = self;
        file_path.is_none()
            && file_max_size_mb.is_none()
            && file_max_backups.is_none()
            && allowlist.is_none()
            && denylist.is_none()
            && fieldmask.is_empty()
    }
}

/// A text that is never shown.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The agent's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// The node's name, as in its SPIFFE ID. Empty: the host name. Under `weft-node` its name counts.
    #[serde(deserialize_with = "node")]
    pub node: String,
    /// The mesh's trust domain.
    #[serde(deserialize_with = "trust_domain")]
    pub trust_domain: String,
    /// Address of the identity service, `host:port`.
    #[serde(deserialize_with = "address")]
    pub identity: String,
    /// Address of the policy service.
    #[serde(deserialize_with = "address")]
    pub policy: String,
    /// Address of the placement service.
    #[serde(deserialize_with = "address")]
    pub placement: String,
    /// What `weft identity join-token create` printed; needed once.
    #[serde(deserialize_with = "join_token")]
    pub join_token: Option<Secret>,
    /// A file with it.
    pub join_token_file: Option<PathBuf>,
    /// Instead of a join token, for an agent that runs as a pod: the projected service-account token.
    pub join_kubernetes_token_file: Option<PathBuf>,
    /// With it: the roots that the identity service is believed by, PEM.
    pub trust_anchors_file: Option<PathBuf>,
    /// Keys, certificates and the last good state.
    pub data_dir: PathBuf,
    /// gRPC for operators (mTLS).
    #[serde(deserialize_with = "address")]
    pub listen: String,
    /// Hubble's API for operators and other nodes (mTLS); empty: on its socket only.
    #[serde(deserialize_with = "hubble_address")]
    pub hubble_listen: String,
    /// Hubble's API without TLS, for every process of this machine. Only on loopback.
    pub hubble_plaintext: bool,
    /// The socket of Hubble's API when `weft-node` does not hand it over; `hubble.sock` beside the local
    /// API's when absent.
    pub hubble_socket: Option<PathBuf>,
    /// Flows into a file, for log shippers.
    #[serde(deserialize_with = "export")]
    pub hubble_export: ExportConfig,
    /// Inherited descriptor of the link to `weft-node`.
    pub handoff_fd: Option<i32>,
    /// Path of `weft-node`'s socket, when nothing is inherited.
    pub handoff_socket: Option<PathBuf>,
    /// Without `weft-node`: serve workloads of this user only, each on ports of its own.
    pub rootless: bool,
    /// The local API's socket when `weft-node` does not hand it over.
    pub local_socket: PathBuf,
    /// The address by which other nodes reach this one, when `weft-node` does not tell it.
    pub address: IpAddr,
    /// Port of tunnels, the same on all nodes.
    pub tunnel_port: u16,
    /// Ranges from which this node's pods have their addresses. An address in there that is no known
    /// workload's counts as "in the cluster, not known yet" on all nodes. None: the /24 (IPv4) or /64
    /// (IPv6) around each pod, where the address is private.
    #[serde(deserialize_with = "pod_cidrs")]
    pub pod_cidrs: Vec<String>,
    /// What policy refuses passes and is told as AUDIT. A workload's annotation
    /// `weft.dev/policy-audit-mode` says otherwise for that workload.
    pub policy_audit_mode: bool,
    /// Logs, metrics, traces.
    pub telemetry: TelemetryConfig,
}

// Wrong values are found while the configuration is read, so that `--check-config` finds them too.

fn node<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    if !text.is_empty() {
        weft_model::check_name(&text).map_err(D::Error::custom)?;
    }
    Ok(text)
}

fn trust_domain<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    TrustDomain::new(&text).map(|_| text).map_err(D::Error::custom)
}

fn address<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    let parts = text.rsplit_once(':');
    if !parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
        return Err(D::Error::custom(format!("{text:?} is not host:port")));
    }
    Ok(text)
}

/// As [`address`], or none.
fn hubble_address<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    if text.is_empty() {
        return Ok(text);
    }
    address(serde::de::value::StringDeserializer::new(text))
}

fn export<'de, D: Deserializer<'de>>(d: D) -> Result<ExportConfig, D::Error> {
    let config = ExportConfig::deserialize(d)?;
    crate::hubble::check_export(&config).map_err(D::Error::custom)?;
    Ok(config)
}

fn pod_cidrs<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    let texts = Vec::<String>::deserialize(d)?;
    for text in &texts {
        let net: ipnet::IpNet = text
            .parse()
            .map_err(|e| D::Error::custom(format!("{text:?}: {e}")))?;
        // The policy service takes no wider ones: they are not one node's.
        if net.prefix_len() < if net.addr().is_ipv4() { 8 } else { 16 } {
            return Err(D::Error::custom(format!(
                "{net} is wider than one node's range can be"
            )));
        }
    }
    Ok(texts)
}

fn join_token<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Secret>, D::Error> {
    let secret = Option::<Secret>::deserialize(d)?;
    if let Some(secret) = &secret {
        // The error holds nothing of the text.
        TokenSource::text(&secret.0).map_err(D::Error::custom)?;
    }
    Ok(secret)
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            node: String::new(),
            trust_domain: "cluster.local".into(),
            identity: "127.0.0.1:7301".into(),
            policy: "127.0.0.1:7303".into(),
            placement: "127.0.0.1:7302".into(),
            join_token: None,
            join_token_file: None,
            join_kubernetes_token_file: None,
            trust_anchors_file: None,
            data_dir: weft_config::state_dir("agent"),
            listen: "127.0.0.1:7304".into(),
            hubble_listen: "127.0.0.1:4244".into(),
            hubble_plaintext: false,
            hubble_socket: None,
            hubble_export: ExportConfig::default(),
            handoff_fd: None,
            handoff_socket: None,
            rootless: false,
            local_socket: weft_config::run_dir().join("agent.sock"),
            address: IpAddr::from([127, 0, 0, 1]),
            tunnel_port: 15008,
            pod_cidrs: Vec::new(),
            policy_audit_mode: false,

            telemetry: TelemetryConfig::default(),
        }
    }
}

impl AgentConfig {
    /// The socket of Hubble's API, where no other is handed over.
    pub fn hubble_socket(&self) -> PathBuf {
        let beside = || self.local_socket.with_file_name("hubble.sock");
        self.hubble_socket.clone().unwrap_or_else(beside)
    }

    /// The node's name: as configured, or the host's, in lower case.
    pub fn node_name(&self) -> String {
        if !self.node.is_empty() {
            return self.node.clone();
        }
        let host = nix::unistd::gethostname().unwrap_or_default();
        host.to_string_lossy().to_lowercase()
    }
}

/// Fields that `--check-config` does not print.
pub const SECRETS: weft_service::Secrets = &["join_token"];

/// The flags.
#[derive(Debug, clap::Args, Serialize)]
pub struct Flags {
    /// The node's name (default: the host name)
    #[arg(long, env = "WEFT_NODE", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// Trust domain of the mesh
    #[arg(long, env = "WEFT_TRUST_DOMAIN", value_name = "DOMAIN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    trust_domain: Option<String>,
    /// Identity service
    #[arg(long, env = "WEFT_IDENTITY", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    /// Policy service
    #[arg(long, env = "WEFT_POLICY", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    /// Placement service
    #[arg(long, env = "WEFT_PLACEMENT", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    placement: Option<String>,
    /// Join token for the first start (prefer --join-token-file: arguments are visible to others)
    #[arg(long, env = "WEFT_JOIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    join_token: Option<String>,
    /// File with the join token
    #[arg(long, env = "WEFT_JOIN_TOKEN_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    join_token_file: Option<PathBuf>,
    /// Join as the node that this pod runs on: file with the projected service-account token
    #[arg(long, env = "WEFT_JOIN_KUBERNETES_TOKEN_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    join_kubernetes_token_file: Option<PathBuf>,
    /// The mesh's roots (PEM), to know the identity service by at the first start
    #[arg(long, env = "WEFT_TRUST_ANCHORS_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    trust_anchors_file: Option<PathBuf>,
    /// Folder for keys, certificates and the last good state
    #[arg(long, env = "WEFT_AGENT_DATA_DIR", value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
    /// Where operators reach the agent by gRPC over mTLS
    #[arg(long, env = "WEFT_AGENT_LISTEN", value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    /// Where operators and other nodes reach Hubble's API over mTLS; empty for its socket only
    #[arg(long, env = "WEFT_HUBBLE_LISTEN", value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    hubble_listen: Option<String>,
    /// Serve Hubble's API without TLS to every process of this machine (loopback only)
    #[arg(long, env = "WEFT_HUBBLE_PLAINTEXT", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    hubble_plaintext: Option<bool>,
    /// Socket of Hubble's API (with --rootless) [default: hubble.sock beside the local API's]
    #[arg(long, env = "WEFT_HUBBLE_SOCKET", value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    hubble_socket: Option<PathBuf>,
    #[command(flatten)]
    #[serde(skip_serializing_if = "ExportFlags::is_empty")]
    hubble_export: ExportFlags,
    /// Inherited descriptor of the link to weft-node
    #[arg(long, env = "WEFT_HANDOFF_FD", value_name = "FD")]
    #[serde(skip_serializing_if = "Option::is_none")]
    handoff_fd: Option<i32>,
    /// weft-node's socket, when nothing is inherited
    #[arg(long, env = "WEFT_HANDOFF_SOCKET", value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    handoff_socket: Option<PathBuf>,
    /// Run without weft-node: each workload has its own ports and a token; nothing is enforced in the kernel
    #[arg(long, env = "WEFT_ROOTLESS", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    rootless: Option<bool>,
    /// Socket of the local API (with --rootless)
    #[arg(long, env = "WEFT_LOCAL_SOCKET", value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    local_socket: Option<PathBuf>,
    /// Address by which other nodes reach this one (with --rootless)
    #[arg(long, env = "WEFT_NODE_ADDRESS", value_name = "IP")]
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    /// Port of tunnels, the same on all nodes
    #[arg(long, env = "WEFT_TUNNEL_PORT", value_name = "PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tunnel_port: Option<u16>,
    /// Range from which this node's pods have their addresses; may be given several times
    #[arg(
        long = "pod-cidr",
        env = "WEFT_POD_CIDR",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pod_cidrs: Vec<String>,
    /// Let pass what policy refuses, and tell it as AUDIT
    #[arg(long, env = "WEFT_POLICY_AUDIT_MODE", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_audit_mode: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_shown() {
        let config = AgentConfig {
            join_token: Some(Secret("weft1.secret".into())),
            ..AgentConfig::default()
        };
        assert!(!format!("{config:?}").contains("secret"));
    }
}
