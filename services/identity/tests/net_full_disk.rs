//! A full disk, on a file system of its own: needs root to mount it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;
use tempfile::TempDir;

/// Starts the binary with a state folder of so many KiB; its exit code and what it said.
fn start_with_disk(kib: u32) -> (Option<i32>, String) {
    let dir = TempDir::new().unwrap();
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let script = format!(
        "mount -t tmpfs -o size={kib}k,mode=700 none {state} && exec timeout 4 {binary} --config \
         /dev/null --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 --state-dir {state} --run-dir {run}",
        state = state.display(),
        binary = env!("CARGO_BIN_EXE_weft-identity"),
        run = dir.path().join("run").display(),
    );
    // The mount is gone with its namespace.
    let out = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .unwrap();
    (out.status.code(), String::from_utf8(out.stderr).unwrap())
}

#[test]
fn a_full_disk_is_one_line() {
    let (code, text) = start_with_disk(48);
    let lines: Vec<&str> = text
        .lines()
        .filter(|l| l.starts_with("weft-identity: "))
        .collect();
    assert_eq!((code, lines.len()), (Some(1), 1), "{text}");
    assert!(
        lines[0].contains("identity.db") && lines[0].contains("the disk is full"),
        "{text}"
    );
}

#[test]
fn a_larger_disk_is_enough() {
    let (code, text) = start_with_disk(16 * 1024);
    // It ran until it was told to end.
    assert_eq!(code, Some(124), "{text}");
    assert!(text.contains("identity service ready"), "{text}");
}
