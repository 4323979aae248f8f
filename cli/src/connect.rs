//! Finding and calling the agent, the certificate authority and the policy service of this machine.

use anyhow::{Result, anyhow};
use std::path::PathBuf;
use tonic::{Code, Status, transport::Channel};

/// The folder of local sockets: `/run/weft` for root, the user's runtime folder otherwise.
pub fn default_run_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/run/weft".into();
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(|d| PathBuf::from(d).join("weft"));
    // Where there is no login session there is no runtime folder either.
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/state/weft/run"));
    own.or_else(home)
        .unwrap_or_else(|| std::env::temp_dir().join("weft"))
}

/// How to reach the local agent.
#[derive(Debug, Clone, clap::Args)]
pub struct AgentArgs {
    /// Folder with the local sockets of the agent, the certificate authority and the policy service
    /// [default: /run/weft for root, else $XDG_RUNTIME_DIR/weft]
    #[arg(long, env = "WEFT_RUN_DIR", value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
}

impl AgentArgs {
    /// The folder in force.
    pub fn dir(&self) -> PathBuf {
        self.run_dir.clone().unwrap_or_else(default_run_dir)
    }

    /// A channel to the agent, and its socket's path for messages.
    pub fn agent(&self) -> Result<(Channel, PathBuf)> {
        let path = self.dir().join("agent.sock");
        Ok((weft_rpc::channel_local(path.clone())?, path))
    }

    /// A channel to the policy service's local socket.
    pub fn policy(&self) -> Result<(Channel, PathBuf)> {
        let path = self.dir().join("policy.sock");
        Ok((weft_rpc::channel_local(path.clone())?, path))
    }

    /// A channel to the certificate authority's local socket.
    pub fn identity(&self) -> Result<(Channel, PathBuf)> {
        let path = self.dir().join("identity.sock");
        Ok((weft_rpc::channel_local(path.clone())?, path))
    }
}

/// Whether a call failed because nobody answers, not because it was refused.
pub fn is_unreachable(status: &Status) -> bool {
    status.code() == Code::Unavailable
}

/// Whether the failure is the connection's: an answer that says "unavailable" has no cause below it.
pub fn nobody_answers(status: &Status) -> bool {
    is_unreachable(status) && std::error::Error::source(status).is_some()
}

/// Whether a call may do better when tried again: nobody answered, or who did went away meanwhile.
pub fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Aborted | Code::DeadlineExceeded
    )
}

/// What a failed call to the agent means for the user.
pub fn agent_error(status: &Status, socket: &std::path::Path) -> anyhow::Error {
    if nobody_answers(status) {
        return anyhow!(
            "no agent answers at {} ({}); start one with `weft dev`, or name its folder with --run-dir",
            socket.display(),
            reason(socket)
        );
    }
    anyhow!("the agent refused: {}", status.message())
}

/// What a failed call to the certificate authority means for the user.
pub fn identity_error(status: &Status, socket: &std::path::Path) -> anyhow::Error {
    if nobody_answers(status) {
        return anyhow!(
            "no certificate authority answers at {} ({}); run this where weft-identity or `weft dev` \
             runs, as its user or root, or name its folder with --run-dir",
            socket.display(),
            reason(socket)
        );
    }
    anyhow!("the certificate authority refused: {}", status.message())
}

/// What a failed call to the policy service means for the user.
pub fn policy_error(status: &Status, socket: &std::path::Path) -> anyhow::Error {
    if nobody_answers(status) {
        return anyhow!(
            "no policy service answers at {} ({}); run this where weft-policy or `weft dev` runs, as its \
             user or root, or name its folder with --run-dir",
            socket.display(),
            reason(socket)
        );
    }
    anyhow!("the policy service refused: {}", status.message())
}

/// Why nobody answers at a local socket.
pub fn reason(socket: &std::path::Path) -> String {
    match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => "it does not speak gRPC".into(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => "no such socket".into(),
        Err(e) => e.kind().to_string(),
    }
}
