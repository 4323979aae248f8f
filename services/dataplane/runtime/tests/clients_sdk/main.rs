//! Dapr's own SDKs, unmodified, in processes of their own: every call of the building blocks that are
//! served, replies checked by value. The scripts print a line for each check and exit with 1 at the
//! first that fails.

#![allow(clippy::unwrap_used)]

#[path = "../blocks/stage.rs"]
#[allow(dead_code)]
mod stage;
#[path = "../world/mod.rs"]
mod world;

use stage::Stage;
use std::{path::PathBuf, process::Stdio, time::Duration};
use tokio::{net::TcpListener, process::Command, time::timeout};

/// An interpreter's start on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

fn python() -> PathBuf {
    let path = std::env::var_os("WEFT_PYTHON").expect("WEFT_PYTHON: run this by `cargo xtask test clients`");
    path.into()
}

/// The folder with `node_modules` in it.
fn node_modules() -> PathBuf {
    let path = std::env::var_os("WEFT_NODE_MODULES")
        .expect("WEFT_NODE_MODULES: run this by `cargo xtask test clients`");
    path.into()
}

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients_sdk")
        .join(name)
}

/// Two apps of different identity on one agent, and components for both.
async fn components(stage: &Stage) {
    for name in ["store", "other"] {
        stage.component(name, "state.in-memory", &[], &[]);
    }
    stage.component("bus", "pubsub.in-memory", &[], &[]);
    stage.component("files", "bindings.localstorage", &[("rootPath", "/data")], &[]);
    stage.component("env", "secretstores.local.env", &[], &["app"]);
    stage.component("locks", "lock.in-memory", &[], &[]);
    stage.component("tick", "bindings.cron", &[("schedule", "@every 100ms")], &["app"]);
}

/// Runs a client that is app `app` and listens on a port of its own, beside a neighbour that answers.
async fn run(mut command: Command) {
    let stage = Stage::new();
    components(&stage).await;
    let neighbour = stage::App::new(&[
        ("POST /score", 200, "{\"score\": 14}"),
        ("GET /score", 200, "{\"score\": 7}"),
    ])
    .await;
    let _neighbour = stage.app("scorer", &neighbour).await;
    let port = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let environment = ("dapr.io/env".to_owned(), "PASSWORD=p4ss,USER=me".to_owned());
    let settings = weft_runtime::AppSettings::of([(&environment.0, &environment.1)]);
    let app = stage
        .world
        .workload_that(&stage.agent, "app", port, None, settings)
        .await;
    command
        .env("DAPR_HTTP_PORT", app.api.port().to_string())
        .env("DAPR_GRPC_PORT", app.grpc.port().to_string())
        .env("APP_PORT", port.to_string())
        .env_remove("DAPR_API_TOKEN")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // What is configured changes as long as the client runs.
    let changing = async {
        let mut every = tokio::time::interval(Duration::from_millis(200));
        for limit in 0.. {
            every.tick().await;
            let items = format!(r#"{{"limit": "{limit}", "colour": {{"value": "blue", "version": "v1"}}}}"#);
            stage.component("conf", "configuration.in-memory", &[("items", &items)], &[]);
        }
    };
    let output = tokio::select! {
        output = timeout(PATIENCE, command.output()) => output,
        () = changing => unreachable!("it goes on"),
    };
    let output = output.expect("the client did not end").unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    let checks = out.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(checks >= 22, "only {checks} checks ran:\n{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn python_by_grpc() {
    let mut command = Command::new(self::python());
    command.arg(script("sdk.py"));
    run(command).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn javascript_by_http() {
    let mut command = Command::new("node");
    command
        .arg(script("sdk.js"))
        .arg("http")
        .env("NODE_PATH", node_modules());
    run(command).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn javascript_by_grpc() {
    let mut command = Command::new("node");
    command
        .arg(script("sdk.js"))
        .arg("grpc")
        .env("NODE_PATH", node_modules());
    run(command).await;
}
