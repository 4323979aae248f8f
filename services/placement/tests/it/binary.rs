//! The process: its flags, its configuration, how it fails.

use std::{
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

fn run(state: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft-placement"))
        .args(["--metrics-listen", "127.0.0.1:0", "--state-dir"])
        .arg(state)
        .args(arguments)
        .env_remove("WEFT_PLACEMENT_LISTEN")
        .env("WEFT_PLACEMENT_SLOTS", "8192")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_configuration_in_force_is_shown_without_secrets() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("placement.yaml");
    let token = weft_enroll::JoinToken::new([1; 32], [2; 8], [3; 32]).reveal();
    std::fs::write(
        &file,
        format!(
            "slots: 1024\ntrust_domain: example.org\njoin_token: {}\ndatabase_url: postgres://u:hunter2@h/d\n",
            *token
        ),
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let shown = run(
        state.path(),
        &["--check-config", "--config", file, "--listen", "127.0.0.1:0"],
    );
    let out = text(&shown.stdout);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    // File below environment below flags.
    for line in ["trust_domain: example.org", "slots: 8192", "127.0.0.1:0"] {
        assert!(out.contains(line), "{line} is not in\n{out}");
    }
    assert!(out.contains("join_token:") && !out.contains("weft1."), "{out}");
    assert!(out.contains("database_url:") && !out.contains("hunter2"), "{out}");
}

#[test]
fn failures_are_one_line_and_name_the_thing() {
    let state = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let cases: [(&[&str], i32, &str); 6] = [
        (&["--listen", &address], 1, &address),
        (&["--slots", "1000"], 2, "slots"),
        (&["--identity-addr", "nowhere"], 2, "identity_addr"),
        (&["--check-config", "--trust-domain", "UPPER"], 2, "trust_domain"),
        (&["--database-url", "mysql://h/d"], 2, "postgres://"),
        (&["--no-such-flag"], 2, "--no-such-flag"),
    ];
    for (arguments, code, named) in cases {
        let out = run(state.path(), arguments);
        let error = text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(named), "{arguments:?}: {error}");
    }
}
