//! The binary: joins by token, serves, drains; and says in one line what is wrong.

use crate::rig::td;
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};
use tempfile::TempDir;
use tokio::sync::oneshot;
use weft_identity::{HostPattern, Kind};
use weft_proto::weft::policy::v1::{self as pb, registry_client::RegistryClient};
use weft_tls::Expect;

fn binary(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-policy"));
    command
        .env_clear()
        .args([
            "--listen",
            "127.0.0.1:0",
            "--metrics-listen",
            "127.0.0.1:0",
            "--log-format",
            "json",
        ])
        .arg("--state-dir")
        .arg(dir.join("state"))
        .arg("--run-dir")
        .arg(dir.join("run"));
    command
}

async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

/// Ends the process whatever becomes of the test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn it_joins_by_token_serves_and_drains() {
    let dir = TempDir::new().unwrap();
    let (_trigger, drain) = weft_drain::channel();
    let config = weft_identity::Config {
        listen: ([127, 0, 0, 1], 0).into(),
        state_dir: dir.path().join("identity"),
        run_dir: None,
        ..Default::default()
    };
    let identity = weft_identity::start(config, drain.clone()).await.unwrap();
    let ttl = Duration::from_secs(600);
    let token = identity
        .create_join_token(Kind::Service, "policy", Vec::new(), ttl)
        .await
        .unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, &*token.reveal()).unwrap();
    std::fs::create_dir(dir.path().join("resources")).unwrap();

    let mut command = binary(dir.path());
    command.arg("--resources").arg(dir.path().join("resources"));
    command.arg("--join-token-file").arg(&file);
    command.args(["--identity-addr", &identity.address().to_string()]);
    let mut child = Guard(
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let (found, address) = oneshot::channel();
    let mut found = Some(found);
    let (out, err) = (child.0.stdout.take().unwrap(), child.0.stderr.take().unwrap());
    let (lines, mut read) = tokio::sync::mpsc::unbounded_channel();
    for stream in [Box::new(out) as Box<dyn std::io::Read + Send>, Box::new(err)] {
        let lines = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
    }
    let wait = async {
        while let Some(line) = read.recv().await {
            if line.contains("policy service ready") {
                let at = line.find("\"address\":\"").unwrap_or_else(|| panic!("{line}")) + 11;
                let text: String = line[at..]
                    .chars()
                    .take_while(|c| c.is_ascii_digit() || ".:".contains(*c))
                    .collect();
                let _ = found.take().unwrap().send(text);
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait)
        .await
        .expect("the service was never ready");
    let address = address.await.unwrap();

    // A node of the same mesh registers a workload that its token permits, and no other.
    let shop = HostPattern {
        namespace: "default".into(),
        app_id: "cart*".into(),
    };
    let token = identity
        .create_join_token(Kind::Node, "n1", vec![shop], ttl)
        .await
        .unwrap();
    let id = td().node("n1").unwrap();
    let node = weft_enroll::Enrollment::new(id, dir.path().join("node"), identity.address().to_string())
        .token(weft_enroll::TokenSource::Given(token))
        .enroll(drain)
        .await
        .unwrap();
    let expect = Expect::Id(td().service("policy").unwrap());
    let channel = weft_rpc::channel(&address, Some(&node.svid), &node.trust, expect).unwrap();
    let request = |name: &str| pb::RegisterRequest {
        workload: Some(pb::Workload {
            id: format!("n1/default/{name}/1"),
            node: "n1".into(),
            namespace: "default".into(),
            name: name.into(),
            app_id: name.into(),
            kind: pb::WorkloadKind::Process.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut registry = RegistryClient::new(channel);
    registry.register(request("cart")).await.unwrap();
    let refused = registry.register(request("pay")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");

    let pid = child.0.id().to_string();
    let killed = output({
        let mut kill = Command::new("kill");
        kill.args(["-TERM", &pid]);
        kill
    });
    assert!(killed.await.status.success());
    let status = tokio::task::spawn_blocking(move || child.0.wait().unwrap())
        .await
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn what_is_wrong_is_one_line_with_the_remedy() {
    let dir = TempDir::new().unwrap();
    let mut command = binary(dir.path());
    command.args(["--resources", "/nowhere/at/all"]);
    let failed = output(command).await;
    let text = String::from_utf8_lossy(&failed.stderr).into_owned();
    let last = text.lines().last().unwrap();
    assert_eq!(failed.status.code(), Some(1), "{text}");
    assert!(
        last.contains("/nowhere/at/all") && last.contains("--resources"),
        "{text}"
    );

    let mut command = binary(dir.path());
    let folder = dir.path().display().to_string();
    command.args(["--source", "kubernetes", "--resources", &folder]);
    let failed = output(command).await;
    let text = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1), "{text}");
    assert!(
        text.lines().last().unwrap().contains("leave one of them out"),
        "{text}"
    );

    let mut command = binary(dir.path());
    command.args(["--source", "kubernetes"]);
    let failed = output(command).await;
    let text = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1), "{text}");
    assert!(
        text.lines().last().unwrap().contains("name a --kubeconfig"),
        "{text}"
    );

    let mut command = binary(dir.path());
    command.args(["--identity-addr", "nonsense"]);
    let failed = output(command).await;
    assert_eq!(failed.status.code(), Some(2));

    let mut command = binary(dir.path());
    let token = weft_enroll::JoinToken::new([1; 32], [2; 8], [3; 32]).reveal();
    command.args(["--join-token", &token, "--check-config"]);
    command.env("WEFT_POLICY_DATABASE_URL", "postgres://u:hunter2@h/d");
    let shown = output(command).await;
    assert_eq!(shown.status.code(), Some(0));
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        text.contains("node_timeout_seconds: 600") && !text.contains("weft1."),
        "{text}"
    );
    assert!(
        text.contains("database_url:") && !text.contains("hunter2"),
        "{text}"
    );
}
