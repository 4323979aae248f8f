//! Disks and users as operators have them, each with the twin that works: needs root, to mount
//! small file systems and to become somebody else.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::Command,
};
use tempfile::TempDir;

const NOBODY: u32 = 65_534;

/// The arguments of a service with its state in one folder and its socket in another.
fn arguments(state: &Path, run: &Path) -> String {
    format!(
        "--config /dev/null --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 --state-dir {} --run-dir {}",
        state.display(),
        run.display()
    )
}

/// Runs a script for at most four seconds; `None` when the service was still running then, else
/// the one line it ended with.
fn run(program: &str, options: &[&str], script: &str) -> Option<String> {
    let out = Command::new(program)
        .args(options)
        .args(["sh", "-c", script])
        .output()
        .unwrap();
    let text = String::from_utf8(out.stderr).unwrap();
    if out.status.code() == Some(124) {
        assert!(text.contains("identity service ready"), "{text}");
        return None;
    }
    let mut lines = text.lines().filter(|l| l.starts_with("weft-identity: "));
    let (line, more) = (lines.next(), lines.next());
    assert_eq!((out.status.code(), more), (Some(1), None), "{text}");
    Some(
        line.unwrap_or_else(|| panic!("no reason was given: {text}"))
            .to_owned(),
    )
}

/// Starts with the state folder on a file system with these options.
fn start_on(mount_options: &str) -> Option<String> {
    let dir = TempDir::new().unwrap();
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let script = format!(
        "mount -t tmpfs -o {mount_options} none {} && exec timeout 4 {} {}",
        state.display(),
        env!("CARGO_BIN_EXE_weft-identity"),
        arguments(&state, &dir.path().join("run")),
    );
    // The mount is gone with its namespace.
    run("unshare", &["--mount"], &script)
}

#[test]
fn a_full_or_read_only_disk_is_one_line() {
    let full = start_on("size=48k").unwrap();
    assert!(
        full.contains("identity.db") && full.contains("the disk is full"),
        "{full}"
    );
    let fixed = start_on("ro").unwrap();
    assert!(
        fixed.contains("identity.db can not be opened") && fixed.contains("Read-only"),
        "{fixed}"
    );
    assert_eq!(start_on("size=16m"), None);
}

#[test]
fn somebody_elses_state_is_one_line() {
    let dir = TempDir::new().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // Where the binary was built may be closed to others.
    let binary = dir.path().join("weft-identity");
    std::fs::copy(env!("CARGO_BIN_EXE_weft-identity"), &binary).unwrap();
    let (state, run_dir) = (dir.path().join("state"), dir.path().join("run"));
    for folder in [&state, &run_dir] {
        std::fs::create_dir(folder).unwrap();
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).unwrap();
        chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let script = format!(
        "exec timeout 4 {} {}",
        binary.display(),
        arguments(&state, &run_dir)
    );
    let nobody = NOBODY.to_string();
    let start = || {
        run(
            "setpriv",
            &["--reuid", &nobody, "--regid", &nobody, "--clear-groups"],
            &script,
        )
    };
    assert_eq!(start(), None);
    // As after a run as root: the files are there and closed.
    for file in ["identity.db", "key-encryption-key"] {
        chown(state.join(file), Some(0), Some(0)).unwrap();
        let line = start().unwrap();
        assert!(
            line.contains(file) && line.contains("Permission denied"),
            "{line}"
        );
        assert!(line.contains("belong to the user"), "{line}");
        chown(state.join(file), Some(NOBODY), Some(NOBODY)).unwrap();
    }
}
