//! `weft-agent`: see the library.

use std::process::ExitCode;
use weft_agent::{AgentConfig, AgentError, Environment, Flags, SECRETS, harden, selftest};
use weft_service::{Context, Info};

const INFO: Info = Info {
    binary: "weft-agent",
    name: "dataplane",
    about: "The node's unprivileged process: Dapr's runtime APIs, mTLS tunnels, policy and flows",
    metrics_port: 7314,
    secrets: SECRETS,
};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--check-seccomp") {
        return check_seccomp();
    }
    // weft-node starts this program through a descriptor, so the kernel named it by a number. Only
    // the name in process lists depends on it.
    let _ = std::fs::write("/proc/self/comm", "weft-agent");
    // Before there are threads and before the first byte is read.
    if let Err(error) = harden::harden() {
        eprintln!("weft-agent: {error}");
        return ExitCode::FAILURE;
    }
    weft_service::main::<AgentConfig, Flags, AgentError, _, _>(INFO, |config| &config.telemetry, run)
}

async fn run(config: AgentConfig, context: Context) -> Result<(), AgentError> {
    let environment = Environment::of(&config)?;
    let Context {
        drain,
        metrics,
        health,
    } = context;
    let starting = weft_agent::start(config, environment, &metrics, &health, drain.clone());
    // Nothing is served yet: a signal ends the start where it is.
    match drain.until_draining(starting).await {
        Some(agent) => agent?.wait().await,
        None => Ok(()),
    }
}

fn check_seccomp() -> ExitCode {
    match selftest::run(&mut std::io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("weft-agent: {error}");
            ExitCode::FAILURE
        }
    }
}
