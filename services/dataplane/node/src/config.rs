//! The node's settings: flags over `WEFT_*` environment over the file over these defaults.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::path::PathBuf;
use weft_telemetry::TelemetryConfig;

/// What becomes of traffic between workloads of different nodes. TCP goes by the agents' mTLS tunnels
/// in either case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// What tunnels do not carry (UDP, ICMP) goes as it is
    #[default]
    Tunnel,
    /// What tunnels do not carry is dropped
    Strict,
}

/// What `weft-node` is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of this node in the cluster.
    #[serde(deserialize_with = "node_name")]
    pub node_name: String,
    /// The node's own network namespace; the current one when absent.
    pub netns: Option<PathBuf>,
    /// Subtree of cgroup v2 for this node's processes; `<cgroup2>/weft/<node>` when absent.
    pub cgroup_root: Option<PathBuf>,
    /// A bpf file system; mounted there when there is none.
    pub bpffs: PathBuf,
    /// Folder for the node's sockets.
    pub run_dir: PathBuf,
    /// The agent's program; `weft-agent` beside this one when absent.
    pub agent_bin: Option<PathBuf>,
    /// User (and group) of the agent: a name, `uid` or `uid:gid`.
    pub agent_user: Option<String>,
    /// Folder that is made for the agent's state and belongs to its user.
    pub agent_data_dir: PathBuf,
    /// Arguments that the agent is started with.
    pub agent_args: Vec<String>,
    /// What becomes of traffic between nodes that tunnels do not carry.
    pub encryption: Encryption,
    /// Somebody else starts the agent; it connects at `<run-dir>/node.sock`.
    pub no_agent: bool,
    /// Leave programs attached and their pins in place when ending.
    pub keep_state: bool,
    /// Logs, metrics and traces.
    pub telemetry: TelemetryConfig,
    /// Programs of another release, for tests.
    #[doc(hidden)]
    #[serde(skip)]
    pub programs: Option<weft_bpf::Build<'static>>,
}

/// The host's name, which may be none that a node can have; that is told at the start.
fn host_name() -> String {
    let name = nix::unistd::gethostname().ok();
    let name = name.and_then(|name| name.into_string().ok());
    name.map(|name| name.to_ascii_lowercase()).unwrap_or_default()
}

/// Found while the configuration is read, so that `--check-config` finds it too.
fn node_name<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let name = String::deserialize(d)?;
    if name != host_name() {
        weft_model::check_name(&name).map_err(D::Error::custom)?;
    }
    Ok(name)
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: host_name(),
            netns: None,
            cgroup_root: None,
            bpffs: "/sys/fs/bpf".into(),
            run_dir: weft_config::run_dir(),
            agent_bin: None,
            agent_user: None,
            agent_data_dir: weft_config::state_dir("agent"),
            agent_args: Vec::new(),
            encryption: Encryption::Tunnel,
            no_agent: false,
            keep_state: false,
            telemetry: TelemetryConfig::default(),
            programs: None,
        }
    }
}

/// The same as flags.
#[derive(Debug, clap::Args, Serialize)]
pub struct Flags {
    /// Name of this node in the cluster [default: the host's name]
    #[arg(long, env = "WEFT_NODE", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<String>,
    /// The node's own network namespace, as /run/netns/<name> [default: the current one]
    #[arg(long, env = "WEFT_NETNS", value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<PathBuf>,
    /// Subtree of cgroup v2 for this node's processes [default: <cgroup2>/weft/<node>]
    #[arg(long, env = "WEFT_CGROUP_ROOT", value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup_root: Option<PathBuf>,
    /// A bpf file system, mounted there when there is none [default: /sys/fs/bpf]
    #[arg(long, env = "WEFT_BPFFS", value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    bpffs: Option<PathBuf>,
    /// Folder for the node's sockets [default: /run/weft]
    #[arg(long, env = "WEFT_RUN_DIR", value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    run_dir: Option<PathBuf>,
    /// The agent's program [default: weft-agent beside this one]
    #[arg(long, env = "WEFT_AGENT_BIN", value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_bin: Option<PathBuf>,
    /// User of the agent: a name, uid or uid:gid [default: weft, else 65033]
    #[arg(long, env = "WEFT_AGENT_USER", value_name = "USER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_user: Option<String>,
    /// Folder that is made for the agent's state [default: /var/lib/weft/agent]
    #[arg(long, env = "WEFT_AGENT_DATA_DIR", value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_data_dir: Option<PathBuf>,
    /// An argument for the agent; may be given several times
    #[arg(long = "agent-arg", value_name = "ARG", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    agent_args: Vec<String>,
    /// What becomes of traffic between workloads of different nodes; TCP goes by mTLS tunnels
    /// in either case [default: tunnel]
    #[arg(long, env = "WEFT_ENCRYPTION", value_enum, value_name = "MODE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption: Option<Encryption>,
    /// Somebody else starts the agent, which connects at <run-dir>/node.sock
    #[arg(long, env = "WEFT_NO_AGENT", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    no_agent: Option<bool>,
    /// Leave programs attached and their pins in place when ending
    #[arg(long, env = "WEFT_KEEP_STATE", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_state: Option<bool>,
}
