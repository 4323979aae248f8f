//! Where things are, and what kind of machine this is.

use std::{env, path::PathBuf, process::Command};

/// The workspace's root: the folder above this crate's.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| ".".into(), PathBuf::from)
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Programs that setup installs for tests.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// The virtual environment with the Python SDKs.
pub fn venv() -> PathBuf {
    target().join("venv")
}

/// The Python of [`venv`].
pub fn python() -> PathBuf {
    venv().join("bin/python")
}

/// Whether nothing may be left out.
pub fn in_ci() -> bool {
    env::var("CI").is_ok_and(|v| v == "true" || v == "1")
}

/// Whether this process is root.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Whether a program is on the path.
pub fn has(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {program} >/dev/null 2>&1")])
        .status()
        .is_ok_and(|s| s.success())
}
