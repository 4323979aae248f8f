//! Starting the finished binaries as users do, and looking at what they say and how they end.
//!
//! Owns where the binaries are, how long any of them may take, and the folders of one test. The
//! tests know flags and messages; nothing of any service's inside is used here.
// Only tests use this crate, and a test that can not go on panics.
#![allow(clippy::unwrap_used)]

mod mesh;
mod process;

pub use mesh::{Mesh, Operator, get};
pub use process::{Ended, Serving, run, run_as_nobody};

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// For anything that should have happened: a debug build on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// The processes of a mesh: all but `weft`, which has no configuration of its own.
pub const PROCESSES: [&str; 5] = [
    "weft-identity",
    "weft-policy",
    "weft-placement",
    "weft-node",
    "weft-agent",
];

/// The processes that serve gRPC and need no root.
pub const SERVICES: [&str; 4] = ["weft-identity", "weft-policy", "weft-placement", "weft-agent"];

/// A binary of the build that this test belongs to.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    // Tests are in `deps`, beside the binaries.
    let path = test.parent().unwrap().parent().unwrap().join(name);
    assert!(
        path.is_file(),
        "{} is missing: build it with `cargo build --workspace --bins`",
        path.display()
    );
    path
}

/// The folders of one test, removed when dropped.
#[derive(Debug)]
pub struct Home(tempfile::TempDir);

impl Home {
    /// Empty.
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// The folder of all.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A path in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file in it with this text.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.at(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A binary with nothing of this process's environment, and with an empty configuration file.
    pub fn bare(&self, name: &str) -> Command {
        let mut command = Command::new(binary(name));
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.path())
            .stdin(Stdio::null());
        command
    }

    /// A process of a mesh with its folders here and with ports of the system's choice. It reads
    /// `<name>.yaml` when that is there, and logs as JSON, as much as it does by itself.
    pub fn command(&self, name: &str) -> Command {
        let mut command = self.bare(name);
        // By environment, so that a test's flags count before it.
        let settings = self.at(&format!("{name}.yaml"));
        let settings = if settings.exists() {
            settings
        } else {
            "/dev/null".into()
        };
        command
            .arg("--config")
            .arg(settings)
            .env("WEFT_METRICS_LISTEN", "127.0.0.1:0")
            .env("WEFT_LOG", "info")
            .env("WEFT_LOG_FORMAT", "json");
        let (state, any_port) = (self.at(name), "127.0.0.1:0");
        match name {
            "weft-node" => command.env("WEFT_RUN_DIR", self.at("run")),
            "weft-agent" => command
                .args(["--rootless", "true", "--node", "n1", "--tunnel-port", "0"])
                .env("WEFT_AGENT_LISTEN", any_port)
                .env("WEFT_HUBBLE_LISTEN", any_port)
                .env("WEFT_AGENT_DATA_DIR", state)
                .env("WEFT_LOCAL_SOCKET", self.at("agent.sock")),
            _ => {
                let service = name.trim_start_matches("weft-").to_uppercase();
                command
                    .env(format!("WEFT_{service}_LISTEN"), any_port)
                    .env(format!("WEFT_{service}_STATE_DIR"), state)
                    .env("WEFT_IDENTITY_RUN_DIR", self.at("run"))
                    .env("WEFT_POLICY_RUN_DIR", self.at("run"))
            }
        };
        command
    }
}

/// An address on loopback that nobody listens on at this moment.
pub fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}
