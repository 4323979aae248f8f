//! What the story plays on: a control plane, two nodes and their pods, each a real process in a
//! network namespace of its own.

mod client;
mod echo;
mod host;
mod manifests;
mod members;
mod pods;
mod script;

pub use client::{Client, Reply};
pub use echo::{Answer, Seat, Talk, Target};
pub use host::{agent_of, terminate};
pub use pods::{RunningLoad, labelled};
pub use script::Interpreter;

use crate::command::wait_for;
use anyhow::{Context, Result};
use host::{bind, make_dir};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use tonic::transport::Channel;
use weft_testnet::{Namespace, Node, Pod, Process, Testnet};

/// Users without any rights, one for the control plane and one for apps, in no user database.
const CONTROL_USER: u32 = 61_001;
const APP_USER: u32 = 61_002;
/// How long processes may take to come up: a debug build on a busy machine.
const START: Duration = Duration::from_secs(60);
/// Where every app listens, on 127.0.0.1 of its own pod.
pub const APP_PORT: u16 = 8080;
/// Dapr's HTTP API, as apps see it.
pub const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3500);

/// What the stage is built from.
#[derive(Debug, Clone)]
pub struct StageOptions {
    /// Folder with the built binaries.
    pub bin_dir: PathBuf,
    /// A Python with the `dapr` package.
    pub python: Option<PathBuf>,
}

/// What an app is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum App {
    /// `examples/cart`.
    Rust,
    /// `examples/orders`, with Dapr's SDK.
    Python,
}

/// A node of the demo.
pub struct StageNode {
    /// Its namespace and addresses.
    pub net: Node,
    /// `weft-node`, which runs the agent.
    pub process: Process,
    /// Its local sockets.
    pub run_dir: PathBuf,
}

/// A pod with an app in it.
pub struct StagePod {
    /// Its namespace and addresses.
    pub net: Pod,
    /// Name of its node.
    pub node: String,
    /// Whether it has an app-id, and so Dapr's APIs.
    pub has_app_id: bool,
    /// Where its processes belong, so that the programs at the node's cgroup see them.
    pub cgroup: Option<PathBuf>,
    /// The app, once started.
    pub app: Option<Process>,
}

/// Everything that runs. Dropping it ends and removes all of it.
pub struct Stage {
    /// `identity`, `policy`, `placement`.
    pub services: BTreeMap<&'static str, Process>,
    /// By name.
    pub nodes: BTreeMap<String, StageNode>,
    /// By app-id.
    pub pods: BTreeMap<String, StagePod>,
    /// Where the control plane runs.
    pub control: Node,
    /// More for the cheat-sheet, as the chapters add it.
    pub hints: Vec<String>,
    bin: PathBuf,
    python: Option<PathBuf>,
    orders: PathBuf,
    workers: Option<u32>,
    // Last: dropping it kills what is left and removes namespaces, cgroups, mounts and the folder.
    net: Testnet,
}

impl Stage {
    /// An empty stage; also removes what an earlier run left.
    pub fn new(options: &StageOptions) -> Result<Self> {
        let net = Testnet::new()?;
        let dir = net.dir().to_owned();
        make_dir(&dir.join("log"), None)?;
        // The apps' user may not be able to enter the folders that the build wrote to.
        let bin = bind(&options.bin_dir, &dir.join("bin"))?;
        let venv = options
            .python
            .as_deref()
            .filter(|p| p.exists())
            .and_then(|p| p.parent()?.parent());
        let python = match venv {
            Some(venv) => Some(bind(venv, &dir.join("venv"))?.join("bin/python")),
            None => None,
        };
        let orders = dir.join("orders.py");
        fs::write(&orders, include_str!("../../orders/orders.py"))?;
        make_dir(&dir.join("resources"), Some(CONTROL_USER))?;
        Ok(Self {
            control: net.node("control")?,
            services: BTreeMap::new(),
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            hints: Vec::new(),
            bin,
            python,
            orders,
            workers: None,
            net,
        })
    }

    /// Nodes started from now on have so many worker threads in each of their processes, instead of one
    /// per core.
    pub fn set_workers(&mut self, workers: u32) {
        self.workers = Some(workers);
    }

    /// Whether the Python app can be started.
    pub fn has_python(&self) -> bool {
        self.python.is_some()
    }

    /// The network, for captures.
    pub fn testnet(&self) -> &Testnet {
        &self.net
    }

    /// The demo's folder.
    pub fn dir(&self) -> &Path {
        self.net.dir()
    }

    /// Where the policy service reads manifests.
    pub fn resources(&self) -> PathBuf {
        self.dir().join("resources")
    }

    /// Writes a manifest whole, as `kubectl apply` would bring it.
    pub fn apply(&self, name: &str, manifest: &str) -> Result<()> {
        let beside = self.dir().join("manifest.tmp");
        fs::write(&beside, manifest)?;
        std::os::unix::fs::chown(&beside, Some(CONTROL_USER), Some(CONTROL_USER))?;
        fs::rename(&beside, self.resources().join(name))?;
        Ok(())
    }

    /// Address of a control service.
    pub fn address(&self, port: u16) -> String {
        format!("{}:{port}", self.control.v4())
    }

    fn log(&self, name: &str) -> Result<File> {
        let path = self.dir().join("log").join(format!("{name}.log"));
        Ok(File::options().create(true).append(true).open(path)?)
    }

    /// The last lines of a process's log, for a failure's text.
    pub fn log_tail(&self, name: &str) -> String {
        let text = fs::read_to_string(self.dir().join("log").join(format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    fn binary(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        // Nothing of the caller's environment reaches the processes of the demo.
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null());
        command
    }

    fn logged(&self, mut command: Command, name: &str) -> Result<Command> {
        let log = self.log(name)?;
        command.stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    /// The `weft` command with the control plane's or a node's sockets.
    pub fn weft(&self, run_dir: &Path) -> Command {
        let mut command = self.binary("weft");
        command.env("WEFT_RUN_DIR", run_dir);
        command
    }

    /// Folder of the certificate authority's local socket.
    pub fn identity_run_dir(&self) -> PathBuf {
        self.dir().join("identity/run")
    }

    /// A channel to a node's agent.
    pub fn agent(&self, node: &str) -> Result<Channel> {
        Ok(weft_rpc::channel_local(
            self.node(node)?.run_dir.join("agent.sock"),
        )?)
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Result<&StageNode> {
        self.nodes.get(name).with_context(|| format!("no node {name}"))
    }

    /// A pod by app-id.
    pub fn pod(&self, app_id: &str) -> Result<&StagePod> {
        self.pods.get(app_id).with_context(|| format!("no pod {app_id}"))
    }

    /// The namespace of a pod.
    pub fn pod_namespace(&self, app_id: &str) -> Result<Namespace> {
        Ok(self.pod(app_id)?.net.namespace().clone())
    }

    /// The process id of a node's `weft-node`.
    pub fn node_pid(&self, node: &str) -> Result<i32> {
        Ok(i32::try_from(self.node(node)?.process.id())?)
    }

    /// The process id of a node's agent: weft-node's child of that name.
    pub fn agent_pid(&self, node: &str) -> Result<i32> {
        agent_of(self.node_pid(node)?)
    }

    /// Ends the processes in order; what does not end in time is killed with the network.
    pub async fn stop(&mut self) {
        self.pods.clear();
        let nodes: Vec<_> = std::mem::take(&mut self.nodes)
            .into_values()
            .map(|n| n.process)
            .collect();
        let services: Vec<_> = std::mem::take(&mut self.services).into_values().collect();
        for group in [nodes, services] {
            for process in &group {
                terminate(process);
            }
            for mut process in group {
                let ended = wait_for("its end", Duration::from_secs(10), || {
                    let ended = process.try_wait();
                    async move { ended?.context("it still runs") }
                });
                // Dropping the process kills it.
                let _ = ended.await;
            }
        }
    }

    /// The command `weft` with its path, for a person to type.
    pub fn weft_by_hand(&self) -> String {
        self.bin.join("weft").display().to_string()
    }

    /// What to try by hand while everything runs.
    pub fn cheat_sheet(&self) -> String {
        let weft = self.weft_by_hand();
        let mut text =
            String::from("\nEverything is still running; Ctrl-C removes it. In another terminal, as root:\n");
        for (name, node) in &self.nodes {
            let run = node.run_dir.display();
            text += &format!("\n# node {name}\n{weft} status --run-dir {run}\n");
            text += &format!("{weft} observe --follow --run-dir {run}\n");
        }
        text += &format!(
            "\n# Call cart from each pod. {}\n# lets only billing and orders in: edit or remove it, and call again.\n",
            self.resources().join("cart-callers.yaml").display()
        );
        for (app_id, pod) in self.pods.iter().filter(|(_, pod)| pod.has_app_id) {
            text += &format!(
                "nsenter --net={} curl -sw '\\n' 'localhost:3500/v1.0/invoke/cart/method/echo?id=1'  # {app_id} on {}\n",
                pod.net.namespace().path().display(),
                pod.node
            );
        }
        for hint in &self.hints {
            text += &format!("\n{hint}\n");
        }
        text + &format!(
            "\n# Who got which certificate, and who was refused\n{weft} identity audit --run-dir {}\n\n# Logs\nls {}",
            self.identity_run_dir().display(),
            self.dir().join("log").display()
        )
    }
}
