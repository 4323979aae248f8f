//! Where state, sockets and configuration files are, for root and for everybody else (XDG).

use std::{
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

fn is_root() -> bool {
    // The owner of /proc/self is the effective user; no libc call is needed for it.
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

fn home() -> PathBuf {
    env::var_os("HOME")
        .filter(|h| !h.is_empty())
        .map_or_else(env::temp_dir, PathBuf::from)
}

fn xdg(variable: &str) -> Option<PathBuf> {
    // The specification says to ignore relative paths.
    env::var_os(variable)
        .map(PathBuf::from)
        .filter(|p| p.is_absolute())
}

/// `/var/lib/weft/<service>`; without root `$XDG_STATE_HOME/weft/<service>`.
pub fn state_dir(service: &str) -> PathBuf {
    if is_root() {
        return Path::new("/var/lib/weft").join(service);
    }
    xdg("XDG_STATE_HOME")
        .unwrap_or_else(|| home().join(".local/state"))
        .join("weft")
        .join(service)
}

/// `/run/weft`; without root `$XDG_RUNTIME_DIR/weft`, else a folder in the state directory.
pub fn run_dir() -> PathBuf {
    if is_root() {
        return "/run/weft".into();
    }
    xdg("XDG_RUNTIME_DIR").map_or_else(|| state_dir("run"), |d| d.join("weft"))
}

/// `/etc/weft/<service>.yaml`; without root `$XDG_CONFIG_HOME/weft/<service>.yaml`.
pub fn default_file(service: &str) -> PathBuf {
    let dir = if is_root() {
        "/etc/weft".into()
    } else {
        xdg("XDG_CONFIG_HOME")
            .unwrap_or_else(|| home().join(".config"))
            .join("weft")
    };
    dir.join(format!("{service}.yaml"))
}
