//! Folders, mounts and processes of the machine that the stage stands on.

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};
use weft_testnet::Process;

/// SIGTERM by pid; a process that has ended is none to tell.
pub fn terminate(process: &Process) {
    if let Ok(pid) = i32::try_from(process.id()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    }
}

pub(super) fn make_dir(path: &Path, owner: Option<u32>) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    std::os::unix::fs::chown(path, owner, owner)?;
    Ok(())
}

pub(super) fn write_private(path: &Path, text: &str, owner: u32) -> Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let _ = fs::remove_file(path);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    std::os::unix::fs::chown(path, Some(owner), Some(owner))?;
    Ok(())
}

/// Shows a folder at another path, read-only; unmounted with the network.
pub(super) fn bind(from: &Path, to: &Path) -> Result<PathBuf> {
    let from = from
        .canonicalize()
        .with_context(|| format!("no folder {}", from.display()))?;
    fs::create_dir_all(to)?;
    let none = None::<&str>;
    mount(Some(&from), to, none, MsFlags::MS_BIND, none)?;
    mount(
        none,
        to,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
        none,
    )?;
    Ok(to.to_owned())
}

/// The agent that a weft-node runs: its child of that name.
pub fn agent_of(node: i32) -> Result<i32> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let is = |field: &str, value: &str| {
            status
                .lines()
                .any(|l| l.strip_prefix(field).is_some_and(|v| v.trim() == value))
        };
        if is("Name:", "weft-agent") && is("PPid:", &node.to_string()) && !is("State:", "Z (zombie)") {
            return Ok(pid);
        }
    }
    anyhow::bail!("weft-node {node} has no agent")
}
