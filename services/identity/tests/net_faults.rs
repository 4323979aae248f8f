//! Disks and users as operators have them, each with the twin that works: needs root, to mount
//! small file systems and to become somebody else.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::Command,
    time::Duration,
};
use tempfile::TempDir;
use tonic::Code;
use weft_proto::weft::identity::v1::{
    AuditEntry, CreateJoinTokenRequest, JoinRequest, ListAuditRequest, admin_client::AdminClient,
    bootstrap_client::BootstrapClient,
};

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

/// A service with its state on a small file system of its own.
struct OnSmallDisk {
    child: std::process::Child,
    dir: TempDir,
}

impl Drop for OnSmallDisk {
    fn drop(&mut self) {
        // The mount is gone with its namespace.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl OnSmallDisk {
    fn start(size: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let script = format!(
            "mount -t tmpfs -o size={size} none {} && exec {} {}",
            state.display(),
            env!("CARGO_BIN_EXE_weft-identity"),
            arguments(&state, &dir.path().join("run")),
        );
        let child = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    fn local(&self) -> tonic::transport::Channel {
        weft_rpc::channel_local(self.dir.path().join("run/identity.sock")).unwrap()
    }

    /// A file beside the database, as the service's namespace has it.
    fn filler(&self) -> std::path::PathBuf {
        let state = self.dir.path().join("state/filler");
        std::path::PathBuf::from(format!("/proc/{}/root{}", self.child.id(), state.display()))
    }

    async fn token(&self, name: &str) -> Result<String, tonic::Status> {
        let request = CreateJoinTokenRequest {
            kind: "node".into(),
            name: name.into(),
            ..Default::default()
        };
        let reply = AdminClient::new(self.local()).create_join_token(request).await?;
        Ok(reply.into_inner().token)
    }

    async fn join(&self, token: &str) -> Result<(), tonic::Status> {
        let request = JoinRequest {
            token: token.into(),
            csr_der: weft_tls::new_key_and_csr().unwrap().csr_der,
        };
        BootstrapClient::new(self.local()).join(request).await.map(|_| ())
    }

    async fn joins(&self) -> Vec<AuditEntry> {
        let request = ListAuditRequest {
            limit: 1000,
            ..Default::default()
        };
        let reply = AdminClient::new(self.local()).list_audit(request).await.unwrap();
        let all = reply.into_inner().entries.into_iter();
        all.filter(|e| e.action == "join").collect()
    }
}

/// Tries until it works, for half a minute.
async fn until<T, F: Future<Output = Option<T>>>(mut attempt: impl FnMut() -> F) -> T {
    let tries = async {
        loop {
            if let Some(done) = attempt().await {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), tries)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_disk_that_fills_up_gives_nothing_out_and_the_record_says_why() {
    let service = OnSmallDisk::start("4m");
    let spare = until(|| async { service.token("spare").await.ok() }).await;
    let before = service.joins().await.len();
    std::fs::write(service.filler(), vec![0; 8 << 20]).unwrap_err();
    // Some writes still find room in what the database has already.
    let mut refused = None;
    for _ in 0..2000 {
        if let Err(status) = service.token("filling").await {
            refused = Some(status);
            break;
        }
    }
    let refused = refused.expect("the disk did not fill up");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let refused = service.join(&spare).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(
        refused.message().contains("can not use its database"),
        "{refused}"
    );
    assert_eq!(service.joins().await.len(), before);

    std::fs::remove_file(service.filler()).unwrap();
    let told = until(|| async { service.joins().await.into_iter().next() }).await;
    assert_eq!((told.outcome.as_str(), told.serial.as_str()), ("refuse", ""));
    assert!(
        told.reason.starts_with("nothing was given out") && told.reason.contains("the disk is full"),
        "{}",
        told.reason
    );
    // The token was not used up.
    service.join(&spare).await.unwrap();
    assert_eq!(service.joins().await[0].outcome, "issue");
}
