//! The peers: nginx and Envoy as plain proxies, one worker each, and the backend that all paths end at.

use crate::sample::{PROXY_CORE, pin};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use weft_testnet::{Namespace, Process, Spawn};

/// What an nginx does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Config {
    /// Answers everything with 1 KiB, at ports 8080 and 8081.
    Backend,
    /// Proxies port 9001 to the backend.
    Proxy,
}

/// The process id.
pub fn id(process: &Process) -> i32 {
    i32::try_from(process.id()).unwrap_or(0)
}

/// Starts an nginx on a core.
pub fn nginx(config: Config, name: &str, dir: &Path, namespace: &Namespace, core: usize) -> Result<Process> {
    let own = dir.join(format!("nginx-{name}"));
    fs::create_dir_all(&own)?;
    let text = match config {
        Config::Backend => include_str!("../peers/backend.conf"),
        Config::Proxy => include_str!("../peers/nginx.conf"),
    };
    let text = text
        .replace("@DIR@", &own.display().to_string())
        .replace("@BODY@", &"x".repeat(1024));
    let file = own.join("nginx.conf");
    fs::write(&file, text)?;
    let mut command = Command::new("nginx");
    command
        .arg("-p")
        .arg(&own)
        .arg("-c")
        .arg(&file)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let process = namespace.spawn(command, &Spawn::root()).context("nginx")?;
    pin(id(&process), core)?;
    Ok(process)
}

/// Starts Envoy, proxying port 9002 to the backend; `None`, with a word of it, where there is none.
pub fn envoy(python: Option<&Path>, namespace: &Namespace) -> Result<Option<Process>> {
    let Some(binary) = envoy_binary(python) else {
        eprintln!("Envoy is left out: `cargo xtask bench` installs it");
        return Ok(None);
    };
    let mut command = Command::new(binary);
    command
        .args(["--config-yaml", include_str!("../peers/envoy.yaml")])
        .args([
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let process = namespace.spawn(command, &Spawn::root()).context("Envoy")?;
    pin(id(&process), PROXY_CORE)?;
    Ok(Some(process))
}

/// The binary inside the Python package.
fn envoy_binary(python: Option<&Path>) -> Option<PathBuf> {
    let script = "import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), '_bin', 'envoy'))";
    let output = Command::new(python?).args(["-c", script]).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.exists().then_some(path)
}
