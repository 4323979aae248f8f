//! The scaffold as operators meet it: whole processes, their one line on standard error and their
//! exit codes. The process is this test's own executable, started again to run only `child`.
#![allow(clippy::unwrap_used, missing_docs)]

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Output, Stdio},
};
use weft_service::{Context, Info};

/// Set only in the started process; its arguments, one per line.
const ARGUMENTS: &str = "SCAFFOLD_ARGUMENTS";

const INFO: Info = Info {
    binary: "weft-scaffold",
    name: "scaffold",
    about: "For tests",
    metrics_port: 0,
    secrets: &["token"],
};

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    greeting: String,
    token: Option<String>,
    level: u32,
    mode: String,
    telemetry: weft_telemetry::TelemetryConfig,
}

#[derive(Debug, clap::Args, Serialize)]
struct Flags {
    #[arg(long, env = "WEFT_SCAFFOLD_GREETING")]
    #[serde(skip_serializing_if = "Option::is_none")]
    greeting: Option<String>,
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
}

/// Not a test of its own: the process that the others start.
#[test]
fn child() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else {
        return;
    };
    let arguments = std::iter::once("weft-scaffold").chain(arguments.lines());
    let code = weft_service::main_from::<Config, Flags, String, _, _>(
        arguments.map(Into::into),
        INFO,
        |config| &config.telemetry,
        serve,
    );
    std::process::exit(code.into());
}

async fn serve(config: Config, mut context: Context) -> Result<(), String> {
    if config.mode == "fail" {
        return Err("the database /x is locked\nby another process; stop it".into());
    }
    println!("up");
    context.drain.draining().await;
    println!("draining");
    if config.mode == "stuck" {
        std::future::pending::<()>().await;
    }
    Ok(())
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(ARGUMENTS, arguments.join("\n"))
        .env_remove("WEFT_SCAFFOLD_GREETING")
        .env_remove("WEFT_LOG");
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// The one line on standard error and the exit code.
#[track_caller]
fn refused(arguments: &[&str]) -> (String, Option<i32>) {
    let output = run(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    let ours: Vec<&str> = stderr.lines().filter(|l| !l.starts_with('{')).collect();
    assert_eq!(ours.len(), 1, "not one line: {stderr}");
    (ours[0].to_owned(), output.status.code())
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scaffold.yaml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

#[test]
fn wrong_flags_are_one_line_and_exit_2() {
    let (line, code) = refused(&["--no-such-flag"]);
    assert_eq!(code, Some(2));
    assert!(
        line.starts_with("weft-scaffold: ") && line.contains("--no-such-flag"),
        "{line}"
    );
    assert!(line.ends_with("see weft-scaffold --help"), "{line}");
    let (line, code) = refused(&["--metrics-listen", "nonsense"]);
    assert_eq!(code, Some(2));
    assert!(
        line.contains("nonsense") && line.contains("--metrics-listen"),
        "{line}"
    );
}

#[test]
fn wrong_configuration_names_the_place_and_exits_2() {
    let (_dir, path) = file("greeting: hello\nlevle: 5\n");
    let (line, code) = refused(&["--config", &path, "--check-config"]);
    assert_eq!(code, Some(2));
    assert!(
        line.contains(&format!("{path}:2:")) && line.contains("levle"),
        "{line}"
    );
    let (_dir, path) = file("greeting: hello\ntelemetry:\n  log_format: loud\n");
    let (line, code) = refused(&["--config", &path]);
    assert_eq!(code, Some(2));
    assert!(
        line.contains(&format!("{path}:3:")) && line.contains("telemetry.log_format"),
        "{line}"
    );
    let (line, code) = refused(&["--config", "/nowhere/scaffold.yaml"]);
    assert_eq!(code, Some(2));
    assert!(line.contains("/nowhere/scaffold.yaml"), "{line}");
    let (line, code) = refused(&["--log", "weft=loud"]);
    assert_eq!(code, Some(2));
    assert!(line.contains("weft=loud"), "{line}");
}

#[test]
fn the_effective_configuration_is_shown_without_secrets() {
    let (_dir, path) = file("greeting: from-file\ntoken: hunter2\nlevel: 7\n");
    let shown = |command: &mut Command| {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
        text
    };
    let arguments = ["--config", &path, "--check-config"];
    let text = shown(&mut command(&arguments));
    assert!(
        text.contains("greeting: from-file") && text.contains("level: 7"),
        "{text}"
    );
    let text = shown(command(&arguments).env("WEFT_SCAFFOLD_GREETING", "from-environment"));
    assert!(text.contains("greeting: from-environment"), "{text}");
    let arguments = ["--config", &path, "--check-config", "--greeting", "from-flag"];
    let text = shown(command(&arguments).env("WEFT_SCAFFOLD_GREETING", "from-environment"));
    assert!(text.contains("greeting: from-flag"), "{text}");
}

#[test]
fn help_and_version_are_no_failures() {
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(
        text.contains("--check-config") && text.contains("WEFT_SCAFFOLD_GREETING"),
        "{text}"
    );
    let version = run(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert!(
        String::from_utf8(version.stdout)
            .unwrap()
            .contains("weft-scaffold ")
    );
}

#[test]
fn what_fails_while_running_is_one_line_and_exits_1() {
    let (line, code) = refused(&["--mode", "fail"]);
    assert_eq!(code, Some(1));
    assert_eq!(
        line,
        "weft-scaffold: the database /x is locked by another process; stop it"
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (line, code) = refused(&["--metrics-listen", &address]);
    assert_eq!(code, Some(1));
    assert!(
        line.contains(&address) && line.contains("--metrics-listen"),
        "{line}"
    );
}

/// A process that serves, and its standard output up to now.
fn start(arguments: &[&str]) -> (Child, BufReader<ChildStdout>, Pid) {
    let mut child = command(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    wait_for(&mut stdout, "up");
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    (child, stdout, pid)
}

#[track_caller]
fn wait_for(stdout: &mut BufReader<ChildStdout>, word: &str) {
    let mut line = String::new();
    while stdout.read_line(&mut line).unwrap() > 0 {
        // The harness prints the name of the test before what the test prints.
        if line.trim_end().ends_with(word) {
            return;
        }
        line.clear();
    }
    panic!("the process ended before it said {word:?}");
}

#[test]
fn both_signals_drain_and_exit_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (mut child, mut stdout, pid) = start(&[]);
        kill(pid, signal).unwrap();
        wait_for(&mut stdout, "draining");
        assert_eq!(child.wait().unwrap().code(), Some(0), "{signal}");
    }
}

#[test]
fn a_second_signal_ends_what_does_not_drain() {
    let (mut child, mut stdout, pid) = start(&["--mode", "stuck"]);
    kill(pid, Signal::SIGTERM).unwrap();
    wait_for(&mut stdout, "draining");
    assert!(child.try_wait().unwrap().is_none(), "it was to wait");
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn a_running_process_is_asked_whether_it_is_ready() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (health, (_trigger, drain)) = (weft_telemetry::Health::default(), weft_drain::channel());
    let listener = runtime.block_on(weft_telemetry::http::bind(([127, 0, 0, 1], 0).into()));
    let listener = listener.unwrap();
    let port = listener.local_addr().unwrap().port();
    let metrics = weft_telemetry::Metrics::new("scaffold");
    let serving = weft_telemetry::http::serve(listener, metrics, health.clone(), drain);
    let serving = runtime.spawn(serving);

    // As a container's HEALTHCHECK does, where the process listens everywhere.
    let ask = || {
        let listen = format!("0.0.0.0:{port}");
        let output = run(&["--check-health", "--metrics-listen", &listen]);
        (String::from_utf8(output.stdout).unwrap(), output.status.code())
    };
    health.waiting("database", "held by another");
    let (text, code) = ask();
    assert_eq!(code, Some(1));
    assert!(text.contains("waiting database: held by another"), "{text}");
    health.ready("database");
    let (text, code) = ask();
    assert_eq!(code, Some(0));
    assert!(text.contains("ok database"), "{text}");

    serving.abort();
    runtime.shutdown_background();
    let listen = format!("127.0.0.1:{port}");
    let (line, code) = refused(&["--check-health", "--metrics-listen", &listen]);
    assert_eq!(code, Some(1));
    assert!(
        line.contains(&format!("nothing answers at http://{listen}/healthz")),
        "{line}"
    );
    let (line, code) = refused(&["--check-health", "--metrics-listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(1));
    assert!(line.contains("--metrics-listen"), "{line}");
}
