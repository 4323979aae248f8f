//! `weft containers`: registers the containers of this machine's Docker engine as workloads.
//!
//! Owns which containers are workloads and keeping the agent's list true: looked at anew after each
//! event of the engine and every few seconds besides. What crosses the border: the engine's API in,
//! the agent's `Workloads` out. It runs as root beside the agent, because the agent itself may not
//! speak to an engine.

mod engine;
mod spec;
mod sync;

use crate::connect::AgentArgs;
use anyhow::Result;
use clap::Args;
use engine::Engine;
use std::{path::PathBuf, process::ExitCode, time::Duration};
use sync::Sync;
use tokio::signal::unix::{SignalKind, signal};
use weft_proto::weft::dataplane::v1::workloads_client::WorkloadsClient;

/// Events may be lost, and the agent may have forgotten: so often all is compared.
const RESYNC: Duration = Duration::from_secs(5);
/// Before the engine is asked again after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Register the containers of this machine's Docker engine as workloads.
///
/// A container is a workload if it carries the label dapr.io/app-id or weft.dev/workload=true and has
/// a network of its own. Its other labels are what policies and Services select. Understood besides:
/// dapr.io/app-port, dapr.io/app-protocol, weft.dev/namespace (default: "default"). Runs until it is
/// stopped; the workloads stay, and the next run takes them up again.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    docker run -d --name hello --label dapr.io/app-id=hello --label dapr.io/app-port=80 <image>\n  \
    weft containers")]
pub struct Containers {
    /// The engine's socket
    #[arg(
        long,
        env = "WEFT_DOCKER_SOCKET",
        value_name = "PATH",
        default_value = "/var/run/docker.sock"
    )]
    docker_socket: PathBuf,
    /// Compare once and stop; exit 1 when something could not be registered
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    agent: AgentArgs,
}

impl Containers {
    /// Runs until SIGINT or SIGTERM.
    pub async fn run(self) -> Result<ExitCode> {
        let (channel, socket) = self.agent.agent()?;
        let engine = Engine::new(self.docker_socket);
        let mut sync = Sync::new(engine.clone(), WorkloadsClient::new(channel), socket);
        if self.once {
            let clean = sync.compare().await?;
            return Ok(if clean {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            () = follow(&engine, &mut sync) => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Compares whenever something may have changed. A failure is said once, not at each try.
async fn follow(engine: &Engine, sync: &mut Sync) {
    let mut said = String::new();
    loop {
        let failed = match engine.events().await {
            Ok(mut events) => loop {
                if let Err(error) = sync.compare().await {
                    break error;
                }
                said.clear();
                match tokio::time::timeout(RESYNC, events.next()).await {
                    Ok(Ok(())) | Err(_) => {}
                    Ok(Err(error)) => break error,
                }
            },
            Err(error) => error,
        };
        let text = format!("{failed:#}");
        if text != said {
            eprintln!("weft: {text}; trying again");
            said = text;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
