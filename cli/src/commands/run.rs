//! `weft run`: starts an app as a workload of the local agent, and removes it when the app ends.

use crate::connect::{AgentArgs, agent_error, is_passing};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Gid, Pid, Uid, User},
};
use std::{
    collections::HashMap,
    ffi::OsString,
    fs::OpenOptions,
    os::{
        fd::AsRawFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};
use tonic::{Code, Streaming, transport::Channel};
use weft_proto::weft::dataplane::v1::{
    AttachRequest, AttachResponse, Placed, ProcessPlace, WorkloadSpec, workload_spec::Place,
    workloads_client::WorkloadsClient,
};

/// How long to wait before asking an agent again that went away.
const REATTACH_PAUSE: Duration = Duration::from_millis(300);

/// Run an app in the mesh.
///
/// The app calls others by http://localhost:$DAPR_HTTP_PORT/v1.0/invoke/<app-id>/method/<path>;
/// with a root agent the port is 3500 and nothing has to be set.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  weft run --app-id cart --app-port 8080 -- python app.py")]
pub struct Run {
    /// The name other apps call this one by
    #[arg(long, value_name = "ID", value_parser = parse_app_id)]
    app_id: String,
    /// The port the app listens on (on 127.0.0.1 is enough); leave out for apps that only call
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    app_port: Option<u16>,
    /// How the app is spoken to
    #[arg(long, value_name = "PROTOCOL", default_value = "http", value_parser = ["http"])]
    app_protocol: String,
    /// Namespace of the workload
    #[arg(long, short, value_name = "NAME", default_value = "default", value_parser = parse_namespace)]
    namespace: String,
    /// A label that policies can select, `key=value`; may be repeated
    #[arg(long = "label", short, value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Run the app as this user, `name` or `uid[:gid]` [default: whoever called sudo]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    #[command(flatten)]
    agent: AgentArgs,
    /// The app and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn parse_app_id(text: &str) -> Result<String, weft_model::NameError> {
    weft_model::check_app_id(text).map(|()| text.to_owned())
}

fn parse_namespace(text: &str) -> Result<String, weft_model::NameError> {
    weft_model::check_dns_label(text).map(|()| text.to_owned())
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as key=value")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Run {
    /// Runs the app to its end and returns its exit code.
    pub async fn run(self) -> Result<ExitCode> {
        let user = self
            .user
            .as_deref()
            .map_or_else(invoking_user, |u| named_user(u).map(Some))?;
        let (channel, socket) = self.agent.agent()?;
        let mut agent = WorkloadsClient::new(channel);
        // Signals are caught before the app starts, so that none is lost between.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;

        let attach = tokio::time::timeout(
            Duration::from_secs(60),
            attach(&mut agent, self.spec(), String::new()),
        );
        let (placed, mut stream) = tokio::select! {
            attached = attach => attached
                .context("the agent did not get the workload ready within 60 s; `weft status` says what it waits for")?
                .map_err(|status| agent_error(&status, &socket))?,
            _ = interrupt.recv() => return Ok(ExitCode::from(130)),
            _ = terminate.recv() => return Ok(ExitCode::from(143)),
        };

        let mut child = tokio::process::Command::from(self.app(&placed, user)?)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| self.not_started(&error))?;
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .map(Pid::from_raw);
        let mut attached = true;
        loop {
            tokio::select! {
                ended = child.wait() => return Ok(exit_code(ended?)),
                // The terminal sends Ctrl-C to the app as well; from elsewhere it is passed on.
                _ = interrupt.recv() => forward(pid, Signal::SIGINT),
                _ = terminate.recv() => forward(pid, Signal::SIGTERM),
                message = stream.message(), if attached => {
                    if !matches!(message, Ok(Some(_))) {
                        eprintln!("weft: the agent went away; the app keeps running, attaching again");
                        attached = false;
                    }
                }
                again = reattach(&mut agent, self.spec(), &placed), if !attached => {
                    stream = again?;
                    attached = true;
                    eprintln!("weft: attached again");
                }
            }
        }
    }

    /// Why the app did not start, and what helps.
    fn not_started(&self, error: &std::io::Error) -> anyhow::Error {
        use std::io::ErrorKind as K;
        let program = &self.command[0];
        let text = program.to_string_lossy();
        let remedy = match (error.kind(), &self.user) {
            (K::NotFound, _) if text.contains('/') => "; check the path, and the interpreter it names",
            (K::NotFound, _) => "; no such program in PATH",
            (K::PermissionDenied, Some(_)) if !Uid::effective().is_root() => "; --user needs root",
            (K::PermissionDenied, _) => "; the app's user may not run it",
            _ => "",
        };
        anyhow!("cannot start {text}: {error}{remedy}")
    }

    fn spec(&self) -> WorkloadSpec {
        WorkloadSpec {
            namespace: self.namespace.clone(),
            name: self.app_id.to_ascii_lowercase().replace('_', "-"),
            labels: self.labels.iter().cloned().collect(),
            annotations: HashMap::from([("dapr.io/app-id".into(), self.app_id.clone())]),
            app_id: self.app_id.clone(),
            app_port: self.app_port.map(u32::from).unwrap_or_default(),
            app_protocol: self.app_protocol.clone(),
            place: Some(Place::Process(ProcessPlace {})),
            ..WorkloadSpec::default()
        }
    }

    fn app(&self, placed: &Placed, user: Option<User>) -> Result<Command> {
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .envs(&placed.environment)
            .env("APP_ID", &self.app_id);
        if let Some(port) = self.app_port {
            command.env("APP_PORT", port.to_string());
        }
        let cgroup = if placed.cgroup.is_empty() {
            None
        } else {
            let procs = PathBuf::from(&placed.cgroup).join("cgroup.procs");
            let file = OpenOptions::new().write(true).open(&procs);
            Some(file.with_context(|| format!("cannot put the app into {}", procs.display()))?)
        };
        if let Some(user) = &user {
            command
                .env("HOME", &user.dir)
                .env("USER", &user.name)
                .env("LOGNAME", &user.name);
        }
        let groups = user.as_ref().map(|u| (u.uid, u.gid, groups_of(u)));
        // SAFETY: between fork and exec only write(2), setgroups(2), setgid(2) and setuid(2) run, all
        // async-signal-safe and without allocation; descriptors and ids were made before the fork.
        unsafe {
            command.pre_exec(move || {
                if let Some(procs) = &cgroup {
                    // "0" moves the writing process itself.
                    if libc::write(procs.as_raw_fd(), b"0".as_ptr().cast(), 1) != 1 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                if let Some((uid, gid, groups)) = &groups {
                    nix::unistd::setgroups(groups)?;
                    nix::unistd::setgid(*gid)?;
                    nix::unistd::setuid(*uid)?;
                }
                Ok(())
            });
        }
        Ok(command)
    }
}

async fn attach(
    agent: &mut WorkloadsClient<Channel>,
    spec: WorkloadSpec,
    resume_id: String,
) -> Result<(Placed, Streaming<AttachResponse>), tonic::Status> {
    let request = AttachRequest {
        spec: Some(spec),
        resume_id,
    };
    let mut stream = agent.attach(request).await?.into_inner();
    let first = stream.message().await?.and_then(|m| m.placed);
    let placed = first.ok_or_else(|| tonic::Status::unavailable("the agent ended the stream"))?;
    Ok((placed, stream))
}

/// Attaches again after the agent went away, for as long as it takes. An agent that has forgotten the
/// app takes it up anew, as long as the app finds everything where it was told: the same cgroup, and
/// no ports and token of its own.
async fn reattach(
    agent: &mut WorkloadsClient<Channel>,
    spec: WorkloadSpec,
    told: &Placed,
) -> Result<Streaming<AttachResponse>> {
    let mut resume_id = told.id.clone();
    loop {
        match attach(agent, spec.clone(), resume_id.clone()).await {
            Ok((placed, stream))
                if placed.environment == told.environment && placed.cgroup == told.cgroup =>
            {
                return Ok(stream);
            }
            Ok(_) => bail!("the agent started anew and gave the app another place; start the app again"),
            Err(status) if status.code() == Code::NotFound && told.environment.is_empty() => {
                resume_id.clear()
            }
            Err(status) if status.code() == Code::NotFound => {
                bail!(
                    "the agent started anew and the app's ports are gone with the old one; start the app again"
                )
            }
            Err(status) if is_passing(&status) => tokio::time::sleep(REATTACH_PAUSE).await,
            Err(status) => bail!("the agent does not take the app up again: {}", status.message()),
        }
    }
}

fn forward(pid: Option<Pid>, signal: Signal) {
    if let Some(pid) = pid {
        // It may have ended this moment; then there is nobody to tell.
        let _ = kill(pid, signal);
    }
}

fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|s| 128 + s))
        .unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Who called sudo; nobody else is dropped to.
fn invoking_user() -> Result<Option<User>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let Some(uid) = std::env::var("SUDO_UID").ok().and_then(|u| u.parse().ok()) else {
        return Ok(None);
    };
    User::from_uid(Uid::from_raw(uid)).context("reading the invoking user")
}

fn named_user(text: &str) -> Result<User> {
    let (uid, gid) = text.split_once(':').map_or((text, None), |(u, g)| (u, Some(g)));
    let known = match uid.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid))?.or_else(|| gid.is_some().then(|| anonymous(uid))),
        Err(_) => User::from_name(uid)?,
    };
    let mut user = known.ok_or_else(|| anyhow!("no user {text:?}; name one of this machine, or uid:gid"))?;
    if let Some(gid) = gid {
        user.gid = Gid::from_raw(
            gid.parse()
                .with_context(|| format!("group {gid:?} is no number"))?,
        );
    }
    Ok(user)
}

/// A user id without an entry in the user database.
fn anonymous(uid: u32) -> User {
    User {
        name: uid.to_string(),
        passwd: std::ffi::CString::default(),
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(uid),
        gecos: std::ffi::CString::default(),
        dir: "/".into(),
        shell: "/bin/sh".into(),
    }
}

fn groups_of(user: &User) -> Vec<Gid> {
    std::ffi::CString::new(user.name.clone())
        .ok()
        .and_then(|name| nix::unistd::getgrouplist(&name, user.gid).ok())
        .unwrap_or_else(|| vec![user.gid])
}
