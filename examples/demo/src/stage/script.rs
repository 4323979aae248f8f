//! Apps that are scripts with Dapr's own SDKs.

use super::{APP_PORT, START, Stage, host::bind};
use crate::command::wait_for;
use anyhow::{Context, Result};
use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What runs a script.
#[derive(Debug, Clone)]
pub enum Interpreter {
    /// The demo's Python, with the `dapr` package.
    Python,
    /// Node, with the modules of a folder that [`Stage::show_modules`] made.
    Node(PathBuf),
}

impl Stage {
    /// A folder of npm's packages where the apps' user can read it.
    pub fn show_modules(&self, folder: &Path) -> Result<PathBuf> {
        bind(folder, &self.dir().join("node_modules"))
    }

    /// Makes a pod, registers it, and starts a script in it, `<script> <port>`, as a user without rights and
    /// with an environment that says nothing of Dapr or Weft.
    pub async fn start_script(
        &mut self,
        node: &str,
        app_id: &str,
        interpreter: &Interpreter,
        script: &str,
    ) -> Result<()> {
        let command = match interpreter {
            Interpreter::Python => {
                let python = self.python.as_ref().context("no Python with the dapr package")?;
                let file = self.dir().join(format!("{app_id}.py"));
                fs::write(&file, script)?;
                let mut command = Command::new(python);
                command.env_clear().arg(file);
                command
            }
            Interpreter::Node(modules) => {
                let file = self.dir().join(format!("{app_id}.js"));
                fs::write(&file, script)?;
                let mut command = Command::new("node");
                command.env_clear().env("NODE_PATH", modules).arg(file);
                command
            }
        };
        let mut command = command;
        command.arg(APP_PORT.to_string());
        self.place_pod(node, app_id).await?;
        self.start_in(app_id, command, APP_PORT).await
    }

    /// Makes a pod without an app-id, and starts a server in it, as a user without rights.
    pub async fn start_server(
        &mut self,
        node: &str,
        name: &str,
        labels: &[(&str, &str)],
        command: Command,
        port: u16,
    ) -> Result<()> {
        self.place_plain(node, name, labels).await?;
        self.start_in(name, command, port).await
    }

    /// Starts a program in a pod and waits until it listens.
    async fn start_in(&mut self, app_id: &str, command: Command, port: u16) -> Result<()> {
        let namespace = self.pod_namespace(app_id)?;
        let mut command = self.logged(command, app_id)?;
        command.env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
        let process = namespace.spawn(command, &self.in_pod(app_id))?;
        if let Some(pod) = self.pods.get_mut(app_id) {
            pod.app = Some(process);
        }
        wait_for(app_id, START, || {
            let namespace = namespace.clone();
            async move { Ok(namespace.connect((Ipv4Addr::LOCALHOST, port)).map(drop)?) }
        })
        .await
        .with_context(|| self.log_tail(app_id))
    }
}
