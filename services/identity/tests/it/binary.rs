//! The process: its flags, and what it says when it can not run.

use crate::rig::{NOW, Rig, config};
use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};
use tempfile::TempDir;
use weft_identity::Env;
use weft_tls::{ManualClock, SystemClock};

const BINARY: &str = env!("CARGO_BIN_EXE_weft-identity");

fn command(dir: &Path) -> Command {
    let mut command = Command::new(BINARY);
    command
        .env_clear()
        .env("HOME", dir)
        .args(["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"])
        .arg("--state-dir")
        .arg(dir.join("state"))
        .arg("--run-dir")
        .arg(dir.join("run"))
        .args(["--config", "/dev/null"])
        .stdin(Stdio::null());
    command
}

/// Runs to its end; the reason is the last line.
async fn fails(mut command: Command) -> (i32, String) {
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    let Output { status, stderr, .. } = tokio::time::timeout(Duration::from_secs(60), run)
        .await
        .unwrap()
        .unwrap();
    let text = String::from_utf8(stderr).unwrap();
    let lines: Vec<&str> = text
        .lines()
        .filter(|l| l.starts_with("weft-identity: "))
        .collect();
    assert_eq!(lines.len(), 1, "{text}");
    (status.code().unwrap(), lines[0].to_owned())
}

#[tokio::test]
async fn bad_settings_are_usage_errors() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("identity.yaml");
    std::fs::write(&file, "ca:\n  node_ttl_seconds: 5\n").unwrap();
    let mut bad = Command::new(BINARY);
    bad.env_clear().arg("--check-config").arg("--config").arg(&file);
    let (code, line) = fails(bad).await;
    assert_eq!(code, 2);
    assert!(line.contains("ca.node_ttl_seconds"), "{line}");

    std::fs::write(&file, "ca:\n  node_ttl_seconds: 500\n").unwrap();
    let good = Command::new(BINARY)
        .env_clear()
        .env("WEFT_TRUST_DOMAIN", "from.environment")
        .arg("--check-config")
        .arg("--config")
        .arg(&file)
        .output()
        .unwrap();
    let shown = String::from_utf8(good.stdout).unwrap();
    assert!(good.status.success());
    assert!(
        shown.contains("node_ttl_seconds: 500") && shown.contains("from.environment"),
        "{shown}"
    );
}

#[tokio::test]
async fn a_locked_or_unusable_database_is_one_line() {
    let dir = TempDir::new().unwrap();
    let (_trigger, drain) = weft_drain::channel();
    let settings = weft_identity::Config {
        run_dir: None,
        ..config(&dir)
    };
    let holder = weft_identity::start_with(settings, Env::new(drain))
        .await
        .unwrap();
    let (code, line) = fails(command(dir.path())).await;
    assert_eq!(code, 1);
    assert!(line.contains("identity.db is locked"), "{line}");
    drop(holder);

    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("state"), "a file where the folder should be").unwrap();
    let (code, line) = fails(command(dir.path())).await;
    assert_eq!(code, 1);
    assert!(line.contains("identity.db can not be opened"), "{line}");
}

#[tokio::test]
async fn a_clock_before_the_certificates_is_one_line() {
    // An authority made a year from now.
    let ahead = ManualClock::at(SystemClock::shared().unix_seconds() + 365 * 24 * 3600);
    let (dir, _) = Rig::with(TempDir::new().unwrap(), ahead).await.stop().await;
    let (code, line) = fails(command(dir.path())).await;
    assert_eq!(code, 1);
    assert!(
        line.contains("the clock says") && line.contains("set the machine's clock"),
        "{line}"
    );
}

struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn it_serves_and_ends_at_a_signal() {
    let dir = TempDir::new().unwrap();
    let mut running = Running(command(dir.path()).stderr(Stdio::null()).spawn().unwrap());
    let socket: PathBuf = dir.path().join("run/identity.sock");
    let entries = async {
        loop {
            let channel = weft_rpc::channel_local(socket.clone()).unwrap();
            let mut admin = weft_proto::weft::identity::v1::admin_client::AdminClient::new(channel);
            match admin
                .list_audit(weft_proto::weft::identity::v1::ListAuditRequest::default())
                .await
            {
                Ok(reply) => return reply.into_inner().entries,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let entries = tokio::time::timeout(Duration::from_secs(60), entries)
        .await
        .unwrap();
    assert_eq!(entries[0].action, "own-certificate");
    assert!(entries[0].time.unwrap().seconds > i64::try_from(NOW).unwrap() - 10_i64.pow(9));
    let pid = nix::unistd::Pid::from_raw(running.0.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let ended = async {
        loop {
            match running.0.try_wait().unwrap() {
                Some(status) => return status,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(30), ended)
            .await
            .unwrap()
            .success()
    );
}
