//! What the binary gives up, tried from inside.
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn the_binary_can_do_what_it_must_and_nothing_else() {
    let out = Command::new(env!("CARGO_BIN_EXE_weft-agent"))
        .arg("--check-seccomp")
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(
        out.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    for line in [
        "execve: refused",
        "socket(AF_PACKET): refused",
        "setns: refused",
        "serving: threads",
    ] {
        assert!(
            text.contains(&format!("ok    {line}")),
            "{line} is missing:\n{text}"
        );
    }
    assert!(!text.contains("WRONG"), "{text}");
}

#[test]
fn without_weft_node_it_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_weft-agent"))
        .args(["--metrics-listen", "127.0.0.1:0", "--data-dir"])
        .arg(folder.path())
        .env_remove("WEFT_HANDOFF_FD")
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stderr).unwrap();
    assert!(text.contains("--rootless") && text.contains("weft dev"), "{text}");
}

#[test]
fn a_pods_token_needs_the_meshs_roots() {
    let folder = tempfile::tempdir().unwrap();
    let start = |more: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_weft-agent"))
            .args([
                "--rootless",
                "--metrics-listen",
                "127.0.0.1:0",
                "--listen",
                "127.0.0.1:0",
            ])
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .arg("--local-socket")
            .arg(folder.path().join("agent.sock"))
            .args(["--join-kubernetes-token-file", "/nowhere/token"])
            .args(more)
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(1));
        String::from_utf8(out.stderr).unwrap()
    };
    let text = start(&[]);
    assert!(text.contains("--trust-anchors-file"), "{text}");
    // With a place for them, it goes on to look there.
    let text = start(&["--trust-anchors-file", "/nowhere/ca.crt"]);
    assert!(text.contains("/nowhere/ca.crt can not be used"), "{text}");
}
