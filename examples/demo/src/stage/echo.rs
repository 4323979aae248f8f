//! `examples/echo` on the stage: a protocol of its own, served and asked for from pods, processes, and
//! hosts outside the mesh.

use super::{APP_USER, Stage};
use anyhow::{Context, Result, bail, ensure};
use std::{
    io::{BufRead, BufReader, Read},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{ChildStdout, Command, Stdio},
    time::Duration,
};
use weft_proto::weft::dataplane::v1::{ProcessPlace, WorkloadSpec, workload_spec::Place};
use weft_testnet::{Namespace, Node, Process, Spawn};

/// Where something runs: a pod, a process of a node, or a host outside.
#[derive(Debug, Clone)]
pub struct Seat {
    pub(super) namespace: Namespace,
    pub(super) spawn: Spawn,
}

impl Seat {
    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A line over TCP.
    Tcp(SocketAddr),
    /// A datagram.
    Udp(SocketAddr),
    /// An ICMP echo.
    Icmp(IpAddr),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Udp(address) => write!(f, "udp:{address}"),
            Self::Icmp(address) => write!(f, "icmp:{address}"),
        }
    }
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `ok`, `refused`, `denied`, `unreachable`, `timeout` or `error`.
    pub outcome: String,
    /// The answer, or the error's text.
    pub text: String,
}

impl Answer {
    /// Whether there was one.
    pub fn is_ok(&self) -> bool {
        self.outcome == "ok"
    }
}

/// A conversation that goes on until it is ended.
pub struct Talk {
    process: Process,
    said: BufReader<ChildStdout>,
}

impl Talk {
    /// Ends it. A line that was not answered, or a reset before, is a failure.
    pub async fn end(self) -> Result<String> {
        let Self {
            mut process,
            mut said,
        } = self;
        drop(process.stdin.take());
        tokio::task::spawn_blocking(move || {
            let (mut text, mut error) = (String::new(), String::new());
            said.read_to_string(&mut text)?;
            process
                .stderr
                .take()
                .context("no output")?
                .read_to_string(&mut error)?;
            ensure!(process.wait()?.success(), "{}", error.trim());
            Ok(text.trim().to_owned())
        })
        .await?
    }
}

impl Stage {
    /// In a pod.
    pub fn seat(&self, app_id: &str) -> Result<Seat> {
        let namespace = self.pod(app_id)?.net.namespace().clone();
        // Echoes by users without capabilities, in both families.
        namespace.sysctl("ipv4/ping_group_range", "0 2147483647")?;
        Ok(Seat {
            namespace,
            spawn: self.in_pod(app_id),
        })
    }

    /// In a pod's network without being of the pod: what is sent there has the pod's address, and none
    /// of it is taken up on its way.
    pub fn seat_beside(&self, app_id: &str) -> Result<Seat> {
        Ok(Seat {
            namespace: self.pod_namespace(app_id)?,
            spawn: Spawn::user(APP_USER, APP_USER),
        })
    }

    /// On a host that no mesh knows.
    pub fn seat_outside(&self, host: &Node) -> Result<Seat> {
        host.namespace().sysctl("ipv4/ping_group_range", "0 2147483647")?;
        Ok(Seat {
            namespace: host.namespace().clone(),
            spawn: Spawn::user(APP_USER, APP_USER),
        })
    }

    /// Registers a process of a node; what is started there is it.
    pub async fn place_process(&self, node: &str, spec: WorkloadSpec) -> Result<Seat> {
        let name = spec.name.clone();
        let spec = WorkloadSpec {
            place: Some(Place::Process(ProcessPlace {})),
            ..spec
        };
        let placed = self.register(node, spec).await?;
        ensure!(!placed.cgroup.is_empty(), "{name} has no cgroup");
        let namespace = self.node(node)?.net.namespace().clone();
        namespace.sysctl("ipv4/ping_group_range", "0 2147483647")?;
        Ok(Seat {
            namespace,
            spawn: Spawn::user(APP_USER, APP_USER).cgroup(PathBuf::from(placed.cgroup)),
        })
    }

    fn echo(&self, arguments: &[String]) -> Command {
        let mut command = self.binary("weft-example-echo");
        command.args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Serves TCP and UDP at these addresses.
    pub async fn serve_echo(&self, at: &Seat, name: &str, addresses: &[SocketAddr]) -> Result<Process> {
        let mut arguments = vec!["serve".to_owned(), name.to_owned()];
        arguments.extend(addresses.iter().map(ToString::to_string));
        let mut process = at.namespace.spawn(self.echo(&arguments), &at.spawn)?;
        let out = process.stdout.take().context("no output")?;
        tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(out).read_line(&mut line)?;
            ensure!(line.trim() == "serving", "it serves nothing: {line}");
            Ok(process)
        })
        .await?
    }

    /// Asks all targets at once; each has that long.
    pub async fn ask_echo(&self, from: &Seat, patience: Duration, targets: &[Target]) -> Result<Vec<Answer>> {
        let mut arguments = vec!["ask".to_owned(), patience.as_millis().to_string()];
        arguments.extend(targets.iter().map(ToString::to_string));
        let mut process = from.namespace.spawn(self.echo(&arguments), &from.spawn)?;
        let (out, err) = (process.stdout.take(), process.stderr.take());
        let text = tokio::task::spawn_blocking(move || {
            let (mut text, mut error) = (String::new(), String::new());
            out.context("no output")?.read_to_string(&mut text)?;
            err.context("no output")?.read_to_string(&mut error)?;
            if !process.wait()?.success() {
                bail!("{}", error.trim());
            }
            Ok(text)
        })
        .await??;
        let answer = |line: &str| {
            let mut words = line.splitn(3, ' ').skip(1).map(str::to_owned);
            Some(Answer {
                outcome: words.next()?,
                text: words.next().unwrap_or_default(),
            })
        };
        let answers: Vec<Answer> = text.lines().filter_map(answer).collect();
        ensure!(answers.len() == targets.len(), "{text}");
        Ok(answers)
    }

    /// Begins a conversation on one connection, with this word in every line.
    pub async fn talk_echo(&self, from: &Seat, to: SocketAddr, word: &str) -> Result<Talk> {
        let mut command = self.echo(&["talk".to_owned(), to.to_string(), word.to_owned()]);
        command.stdin(Stdio::piped());
        let mut process = from.namespace.spawn(command, &from.spawn)?;
        let out = process.stdout.take().context("no output")?;
        tokio::task::spawn_blocking(move || {
            let mut said = BufReader::new(out);
            let mut line = String::new();
            said.read_line(&mut line)?;
            ensure!(line.trim() == "talking", "no connection");
            Ok(Talk { process, said })
        })
        .await?
    }
}
