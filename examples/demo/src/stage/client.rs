//! Clients on the stage: `curl`, and load with every reply checked, each a process of the workload (or
//! the host) that it is started in.

use super::{Seat, Stage};
use crate::{
    client,
    load::{Outcome, Plan},
};
use anyhow::{Context, Result, ensure};
use std::{
    io::{BufRead, BufReader, Read},
    process::{ChildStdout, Command, Stdio},
};
use weft_testnet::Process;

/// What `curl` got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Head and body.
    pub text: String,
}

impl Reply {
    /// The value on the line `name: value` of the body or the head, whatever the name's case.
    pub fn line(&self, name: &str) -> Option<&str> {
        self.values(name).next_back()
    }

    /// All of them.
    pub fn values<'a>(&'a self, name: &str) -> impl DoubleEndedIterator<Item = &'a str> {
        let name = name.to_owned();
        self.text.lines().filter_map(move |line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(&name).then(|| value.trim())
        })
    }

    /// The first line of the request that whoami saw.
    pub fn request(&self) -> Option<&str> {
        let mut lines = self.text.lines().rev();
        lines.find(|line| line.ends_with(" HTTP/1.1"))
    }

    /// Who answered, for the report.
    pub fn who(&self) -> String {
        format!(
            "{} from {} {}",
            self.status,
            self.line("Name").unwrap_or("nobody"),
            self.line("Hostname").unwrap_or_default()
        )
    }
}

/// Load of a process that runs until it is stopped.
pub struct Client {
    process: Process,
    said: BufReader<ChildStdout>,
}

impl Client {
    /// Ends it and says what happened.
    pub async fn stop(self) -> Result<Outcome> {
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
            Ok(serde_json::from_str(&text)?)
        })
        .await?
    }
}

impl Stage {
    /// One request by `curl`.
    pub async fn curl(&self, from: &Seat, url: &str, more: &[&str]) -> Result<Reply> {
        let mut command = Command::new("curl");
        command.env_clear().env("PATH", "/usr/bin:/bin").args([
            "-sSi",
            "--path-as-is",
            "--noproxy",
            "*",
            "-m",
            "5",
        ]);
        command.args(more).arg(url);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = from.namespace.spawn(command, &from.spawn)?;
        tokio::task::spawn_blocking(move || {
            let (mut text, mut error) = (Vec::new(), String::new());
            let (out, err) = (process.stdout.take(), process.stderr.take());
            out.context("no output")?.read_to_end(&mut text)?;
            err.context("no output")?.read_to_string(&mut error)?;
            ensure!(process.wait()?.success(), "{}", error.trim());
            let text = String::from_utf8_lossy(&text).into_owned();
            let status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
            let status = status.with_context(|| format!("no HTTP: {text:?}"))?;
            Ok(Reply { status, text })
        })
        .await?
    }

    /// Starts load.
    pub async fn client(&self, from: &Seat, plan: &Plan) -> Result<Client> {
        let mut command = self.binary("weft-demo");
        command.args(client::arguments(plan)?);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = from.namespace.spawn(command, &from.spawn)?;
        let out = process.stdout.take().context("no output")?;
        tokio::task::spawn_blocking(move || {
            let mut said = BufReader::new(out);
            let mut line = String::new();
            said.read_line(&mut line)?;
            ensure!(line.trim() == client::BEGUN, "it does not begin: {line}");
            Ok(Client { process, said })
        })
        .await?
    }
}
