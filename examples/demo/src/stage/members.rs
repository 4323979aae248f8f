//! The control services and the nodes: how each is started, joins and is waited for.

use super::{
    CONTROL_USER, START, Stage, StageNode,
    host::{make_dir, write_private},
};
use crate::command::{output, wait_for};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use weft_testnet::Spawn;

/// The user of both agents.
const AGENT_USER: u32 = 61_003;

impl Stage {
    /// Makes a join token and writes it where only `user` reads it.
    pub async fn join_token(&self, kind: &str, name: &str, patterns: &[&str], user: u32) -> Result<PathBuf> {
        let run_dir = self.identity_run_dir();
        let token = wait_for("a join token", START, || {
            let mut command = self.weft(&run_dir);
            command.args(["identity", "join-token", "create", "--kind", kind, "--name", name]);
            for pattern in patterns {
                command.args(["--may-host", pattern]);
            }
            output(command)
        })
        .await?;
        let path = self.dir().join(format!("{kind}-{name}.token"));
        write_private(&path, &token, user)?;
        Ok(path)
    }

    /// Starts one control service; again after it was killed, with the same folders.
    pub async fn start_service(&mut self, name: &'static str) -> Result<()> {
        let (port, metrics) = match name {
            "identity" => (7301, 7311),
            "placement" => (7302, 7312),
            "policy" => (7303, 7313),
            other => bail!("no control service {other}"),
        };
        let state = self.dir().join(name).join("state");
        let first = !state.exists();
        make_dir(&self.dir().join(name), None)?;
        make_dir(&state, Some(CONTROL_USER))?;
        let mut command = self.binary(&format!("weft-{name}"));
        command
            .args([
                "--listen",
                &self.address(port),
                "--metrics-listen",
                &format!("127.0.0.1:{metrics}"),
            ])
            .arg("--state-dir")
            .arg(&state)
            .args(["--log-format", "text"]);
        if name == "identity" {
            let run_dir = self.identity_run_dir();
            make_dir(&run_dir, Some(CONTROL_USER))?;
            command
                .arg("--run-dir")
                .arg(run_dir)
                .args(["--policy-addr", &self.address(7303)]);
        } else {
            command.args(["--identity-addr", &self.address(7301)]);
            if first {
                let token = self.join_token("service", name, &[], CONTROL_USER).await?;
                command.arg("--join-token-file").arg(token);
            }
        }
        if name == "policy" {
            command.arg("--resources").arg(self.resources());
            command.arg("--run-dir").arg(self.identity_run_dir());
        }
        let command = self.logged(command, name)?;
        let user = Spawn::user(CONTROL_USER, CONTROL_USER);
        let process = self.control.namespace().spawn(command, &user)?;
        self.services.insert(name, process);
        self.wait_listening(name, port).await
    }

    async fn wait_listening(&mut self, name: &'static str, port: u16) -> Result<()> {
        let address = (self.control.v4(), port);
        let namespace = self.control.namespace().clone();
        let up = wait_for(name, START, || {
            let namespace = namespace.clone();
            async move { Ok(namespace.connect(address).map(drop)?) }
        })
        .await;
        if let Some(ended) = self
            .services
            .get_mut(name)
            .and_then(|p| p.try_wait().ok().flatten())
        {
            bail!("weft-{name} ended with {ended}:\n{}", self.log_tail(name));
        }
        up.with_context(|| self.log_tail(name))
    }

    /// Starts a node that may host `patterns`.
    pub async fn start_node(&mut self, name: &str, patterns: &[&str]) -> Result<()> {
        self.start_node_with(name, patterns, &[]).await
    }

    /// The same, with more flags for its agent.
    pub async fn start_node_with(
        &mut self,
        name: &str,
        patterns: &[&str],
        agent_flags: &[&str],
    ) -> Result<()> {
        let net = self.net.node(name)?;
        let dir = self.dir().join(name);
        let run_dir = dir.join("run");
        make_dir(&dir, None)?;
        make_dir(&run_dir, None)?;
        // The agent's default user where no user `weft` exists.
        let token = self.join_token("node", name, patterns, AGENT_USER).await?;
        let mut command = self.binary("weft-node");
        if let Some(workers) = self.workers {
            // tokio's own; weft-node passes it on to its agent.
            command.env("TOKIO_WORKER_THREADS", workers.to_string());
        }
        command
            .args([
                "--node-name",
                name,
                "--log-format",
                "text",
                "--metrics-listen",
                "127.0.0.1:7315",
            ])
            .args(["--agent-user", &AGENT_USER.to_string()])
            .arg("--netns")
            .arg(net.namespace().path())
            .arg("--cgroup-root")
            .arg(net.cgroup())
            .arg("--bpffs")
            .arg(self.net.bpffs()?)
            .arg("--run-dir")
            .arg(&run_dir)
            .arg("--agent-data-dir")
            .arg(dir.join("agent"));
        let arguments = [
            format!("--identity={}", self.address(7301)),
            format!("--placement={}", self.address(7302)),
            format!("--policy={}", self.address(7303)),
            format!("--join-token-file={}", token.display()),
            format!("--listen={}:7304", net.v4()),
            format!("--hubble-listen={}:4244", net.v4()),
            "--log-format=text".into(),
        ];
        let flags = arguments
            .iter()
            .map(String::as_str)
            .chain(agent_flags.iter().copied());
        command.args(flags.map(|a| format!("--agent-arg={a}")));
        let command = self.logged(command, name)?;
        let process = net.namespace().spawn(command, &Spawn::root())?;
        self.nodes.insert(
            name.to_owned(),
            StageNode {
                net,
                process,
                run_dir: run_dir.clone(),
            },
        );
        let ready = wait_for("the agent", START, || {
            let mut status = self.weft(&run_dir);
            status.args(["status", "-o", "json"]);
            async move {
                let status: serde_json::Value = serde_json::from_str(&output(status).await?)?;
                let upstreams = status["upstreams"].as_array().cloned().unwrap_or_default();
                let away = upstreams.iter().find(|u| u["connected"] != true);
                match away {
                    None if !upstreams.is_empty() => Ok(()),
                    _ => bail!("not connected: {away:?}"),
                }
            }
        })
        .await;
        ready.with_context(|| self.log_tail(name))
    }
}
