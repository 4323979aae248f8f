//! Keeps one agent running: starts it again when it dies, replaces it without losing a request
//! when asked to, ends it in order.

use crate::{NodeError, agent::Program, core::Command, meters::Meters};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    process::Child,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use weft_drain::Watcher;
use weft_telemetry::Health;

/// First pause before a dead agent is started again; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// An agent that lived this long died of something new.
const STEADY: Duration = Duration::from_secs(30);
/// How long a new agent may take before the old one is drained.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long a replaced agent may take to finish what it has.
const RETIRE_WITHIN: Duration = Duration::from_secs(30);

/// Supervises agents made from one program.
#[derive(Debug)]
pub(crate) struct Supervisor {
    program: Program,
    commands: mpsc::Sender<Command>,
    pid_file: PathBuf,
    meters: Meters,
    health: Health,
    /// Replaced agents that still finish what they have.
    retiring: JoinSet<()>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    ready: oneshot::Receiver<()>,
    serves: bool,
    started: Instant,
}

/// The part of the node's health that is the agent's.
const AGENT: &str = "agent";

enum Next {
    Died,
    Replace,
    Stop,
}

impl Supervisor {
    pub(crate) fn new(
        program: Program,
        commands: mpsc::Sender<Command>,
        run_dir: &Path,
        meters: Meters,
        health: Health,
    ) -> Self {
        health.waiting(AGENT, "the agent is not up yet");
        let pid_file = run_dir.join("agent.pid");
        Self {
            program,
            commands,
            pid_file,
            meters,
            health,
            retiring: JoinSet::new(),
        }
    }

    /// Runs until the drain; each message on `replace` starts a new agent in place of the old one.
    /// Fails only when the first agent cannot be started at all.
    pub(crate) async fn run(
        mut self,
        mut drain: Watcher,
        mut replace: mpsc::Receiver<()>,
    ) -> Result<(), NodeError> {
        let mut current = self.start().await?;
        let mut pause = FIRST_PAUSE;
        loop {
            let next = tokio::select! {
                ready = &mut current.ready, if !current.serves => {
                    current.serves = true;
                    if ready.is_ok() {
                        tracing::info!(after = ?current.started.elapsed(), "the agent serves");
                        self.health.ready(AGENT);
                    }
                    continue;
                }
                status = current.child.wait() => {
                    let status = status.map_or_else(|e| e.to_string(), |status| status.to_string());
                    self.health.waiting(AGENT, format!("the agent ended: {status}"));
                    let _ = std::fs::remove_file(&self.pid_file);
                    tracing::error!(%status, "the agent ended; connects wait until the next one is up");
                    Next::Died
                }
                Some(()) = replace.recv() => Next::Replace,
                () = drain.draining() => Next::Stop,
            };
            match next {
                Next::Stop => break,
                Next::Replace => {
                    tracing::info!("replacing the agent");
                    current = self.replace(current, &mut drain).await;
                }
                Next::Died => {
                    if current.started.elapsed() >= STEADY {
                        pause = FIRST_PAUSE;
                    }
                    current = loop {
                        tokio::select! {
                            () = sleep(pause) => {}
                            () = drain.draining() => return self.end(None, drain).await,
                        }
                        pause = (pause * 2).min(LAST_PAUSE);
                        match self.start().await {
                            Ok(running) => break running,
                            Err(error) => tracing::error!(%error, again_in = ?pause, "no agent"),
                        }
                    };
                }
            }
        }
        self.end(Some(current), drain).await
    }

    async fn start(&self) -> Result<Running, NodeError> {
        let (ours, theirs) = weft_handoff::socket::pair()?;
        let (told, ready) = oneshot::channel();
        self.commands
            .send(Command::Attach {
                socket: ours,
                ready: Some(told),
            })
            .await
            .map_err(|_| NodeError::Stopped)?;
        let child = self.program.start(theirs)?;
        self.meters.agent_starts.inc();
        if let Some(pid) = child.id() {
            tracing::info!(pid, program = %self.program.path.display(), "agent started");
            if let Err(error) = std::fs::write(&self.pid_file, format!("{pid}\n")) {
                tracing::warn!(%error, path = %self.pid_file.display(), "the agent's pid is not written");
            }
        }
        Ok(Running {
            child,
            ready,
            serves: false,
            started: Instant::now(),
        })
    }

    /// Starts a new agent and, when it serves, drains the old one. Whatever goes wrong with the
    /// new one, the old one stays.
    async fn replace(&mut self, mut old: Running, drain: &mut Watcher) -> Running {
        let mut new = match self.start().await {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(%error, "the new agent cannot be started; the old one stays");
                return old;
            }
        };
        let why = tokio::select! {
            ready = &mut new.ready => match ready {
                Ok(()) => None,
                Err(_) => Some("it closed its link".to_owned()),
            },
            status = new.child.wait() => {
                Some(status.map_or_else(|e| e.to_string(), |status| format!("it ended with {status}")))
            }
            () = sleep(READY_WITHIN) => Some(format!("it did not say so within {} s", READY_WITHIN.as_secs())),
            () = drain.draining() => Some("the node shuts down".to_owned()),
        };
        match why {
            None => {
                tracing::info!("the new agent serves; draining the old one");
                new.serves = true;
                self.health.ready(AGENT);
                self.retiring
                    .spawn(async move { retire(&mut old.child, RETIRE_WITHIN).await });
                new
            }
            Some(why) => {
                tracing::error!(%why, "the new agent does not serve; the old one stays");
                let _ = new.child.kill().await;
                self.write_pid(&old);
                old
            }
        }
    }

    fn write_pid(&self, running: &Running) {
        if let Some(pid) = running.child.id() {
            let _ = std::fs::write(&self.pid_file, format!("{pid}\n"));
        }
    }

    async fn end(mut self, current: Option<Running>, drain: Watcher) -> Result<(), NodeError> {
        if let Some(mut current) = current {
            self.retiring
                .spawn(async move { retire(&mut current.child, RETIRE_WITHIN).await });
        }
        let retired = async { while self.retiring.join_next().await.is_some() {} };
        if drain.until_forced(retired).await.is_none() {
            // Dropping the tasks drops their children, which kills them.
            self.retiring.shutdown().await;
        }
        let _ = std::fs::remove_file(&self.pid_file);
        Ok(())
    }
}

/// Asks a process to end, and makes it end after `within`.
async fn retire(child: &mut Child, within: Duration) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // Not reaped yet, so the number is still this child's.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    match timeout(within, child.wait()).await {
        Ok(Ok(status)) => tracing::info!(%status, "the agent ended in order"),
        Ok(Err(error)) => tracing::warn!(%error, "the agent's end is unknown"),
        Err(_) => {
            tracing::warn!(
                "the agent did not end within {} s and is killed",
                within.as_secs()
            );
            let _ = child.kill().await;
        }
    }
}
