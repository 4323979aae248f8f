//! What the story plays on: a control plane, two nodes and their pods, each a real process in a
//! network namespace of its own.

use crate::{
    command::{output, wait_for},
    load,
};
use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tonic::transport::Channel;
use weft_proto::weft::dataplane::v1::{
    AddRequest, WorkloadSpec, workload_spec::Place, workloads_client::WorkloadsClient,
};
use weft_testnet::{Namespace, Node, Pod, Process, Spawn, Testnet};

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
    bin: PathBuf,
    python: Option<PathBuf>,
    orders: PathBuf,
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
            bin,
            python,
            orders,
            net,
        })
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
        let net = self.net.node(name)?;
        let dir = self.dir().join(name);
        let run_dir = dir.join("run");
        make_dir(&dir, None)?;
        make_dir(&run_dir, None)?;
        // The agent's default user where no user `weft` exists.
        let token = self.join_token("node", name, patterns, AGENT_USER).await?;
        let mut command = self.binary("weft-node");
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
            "--log-format=text".into(),
        ];
        command.args(arguments.iter().map(|a| format!("--agent-arg={a}")));
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

    /// Makes a pod and registers it; nothing runs in it yet.
    pub async fn place_pod(&mut self, node: &str, app_id: &str) -> Result<Namespace> {
        let net = self.node(node)?.net.pod(app_id)?;
        let spec = WorkloadSpec {
            namespace: "default".into(),
            name: app_id.into(),
            labels: [("app".to_owned(), app_id.to_owned())].into(),
            annotations: [("dapr.io/app-id".to_owned(), app_id.to_owned())].into(),
            app_id: app_id.into(),
            app_port: APP_PORT.into(),
            app_protocol: "http".into(),
            place: Some(Place::NetnsPath(net.namespace().path().display().to_string())),
            addresses: net.addresses().iter().map(ToString::to_string).collect(),
            ..WorkloadSpec::default()
        };
        let mut agent = WorkloadsClient::new(self.agent(node)?);
        let reply = tokio::time::timeout(START, agent.add(AddRequest { spec: Some(spec) })).await?;
        reply.with_context(|| format!("adding {app_id}; {}", self.log_tail(node)))?;
        let namespace = net.namespace().clone();
        self.pods.insert(
            app_id.to_owned(),
            StagePod {
                net,
                node: node.into(),
                app: None,
            },
        );
        Ok(namespace)
    }

    /// Makes a pod, registers it, and starts its app as a user without rights and with an
    /// environment that says nothing of Dapr or Weft.
    pub async fn start_pod(&mut self, node: &str, app_id: &str, app: App) -> Result<()> {
        let namespace = self.place_pod(node, app_id).await?;
        let command = self.logged(self.app(app, app_id)?, app_id)?;
        let process = namespace.spawn(command, &Spawn::user(APP_USER, APP_USER))?;
        if let Some(pod) = self.pods.get_mut(app_id) {
            pod.app = Some(process);
        }
        wait_for(app_id, START, || {
            let namespace = namespace.clone();
            async move { Ok(namespace.connect((Ipv4Addr::LOCALHOST, APP_PORT)).map(drop)?) }
        })
        .await
        .with_context(|| self.log_tail(app_id))
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

    /// The command that runs an app.
    pub fn app(&self, app: App, name: &str) -> Result<Command> {
        Ok(match app {
            App::Rust => {
                let mut command = self.binary("weft-example-cart");
                command.args([name, &APP_PORT.to_string()]);
                command
            }
            App::Python => {
                let python = self.python.as_ref().context("no Python with the dapr package")?;
                let mut command = Command::new(python);
                command
                    .env_clear()
                    .env("PATH", "/usr/bin:/bin")
                    .stdin(Stdio::null());
                command.arg(&self.orders).args([name, &APP_PORT.to_string()]);
                command
            }
        })
    }

    /// One request from inside a namespace.
    pub async fn get(
        &self,
        from: &Namespace,
        to: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<(u16, String)> {
        let (from, path) = (from.clone(), path.to_owned());
        let headers: Vec<(String, String)> = headers
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        tokio::task::spawn_blocking(move || {
            from.run(|| {
                let headers: Vec<(&str, &str)> =
                    headers.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                runtime()?.block_on(load::fetch(to, &path, &headers))
            })?
        })
        .await?
    }

    /// Starts load inside a namespace.
    pub fn load(&self, from: &Namespace, plan: load::Plan) -> RunningLoad {
        let stop = Arc::new(AtomicBool::new(false));
        let (from, halt) = (from.clone(), stop.clone());
        let task = tokio::task::spawn_blocking(move || {
            from.run(|| Ok::<_, anyhow::Error>(runtime()?.block_on(load::run(plan, halt))))?
        });
        RunningLoad { stop, task }
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

    /// What to try by hand while everything runs.
    pub fn cheat_sheet(&self) -> String {
        let weft = self.bin.join("weft").display().to_string();
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
        for (app_id, pod) in &self.pods {
            text += &format!(
                "nsenter --net={} curl -sw '\\n' 'localhost:3500/v1.0/invoke/cart/method/echo?id=1'  # {app_id} on {}\n",
                pod.net.namespace().path().display(),
                pod.node
            );
        }
        text + &format!(
            "\n# Who got which certificate, and who was refused\n{weft} identity audit --run-dir {}\n\n# Logs\nls {}",
            self.identity_run_dir().display(),
            self.dir().join("log").display()
        )
    }
}

/// The user of both agents.
const AGENT_USER: u32 = 61_003;

/// Load that runs until it is stopped.
pub struct RunningLoad {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<load::Outcome>>,
}

impl RunningLoad {
    /// Ends it and says what happened.
    pub async fn stop(mut self) -> Result<load::Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.task).await?
    }
}

impl Drop for RunningLoad {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A runtime of the calling thread: its sockets belong to that thread's namespace.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// SIGTERM by pid; a process that has ended is none to tell.
pub fn terminate(process: &Process) {
    if let Ok(pid) = i32::try_from(process.id()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    }
}

fn make_dir(path: &Path, owner: Option<u32>) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    std::os::unix::fs::chown(path, owner, owner)?;
    Ok(())
}

fn write_private(path: &Path, text: &str, owner: u32) -> Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let _ = fs::remove_file(path);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    std::os::unix::fs::chown(path, Some(owner), Some(owner))?;
    Ok(())
}

/// Shows a folder at another path, read-only; unmounted with the network.
fn bind(from: &Path, to: &Path) -> Result<PathBuf> {
    let from = from
        .canonicalize()
        .with_context(|| format!("no folder {}", from.display()))?;
    fs::create_dir_all(to)?;
    let none = None::<&str>;
    mount(Some(&from), to, none, MsFlags::MS_BIND, none)?;
    mount(
        none,
        to,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
        none,
    )?;
    Ok(to.to_owned())
}

/// The agent that a weft-node runs: its child of that name.
pub fn agent_of(node: i32) -> Result<i32> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let is = |field: &str, value: &str| {
            status
                .lines()
                .any(|l| l.strip_prefix(field).is_some_and(|v| v.trim() == value))
        };
        if is("Name:", "weft-agent") && is("PPid:", &node.to_string()) && !is("State:", "Z (zombie)") {
            return Ok(pid);
        }
    }
    anyhow::bail!("weft-node {node} has no agent")
}
