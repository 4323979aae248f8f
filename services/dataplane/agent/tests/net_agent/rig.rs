//! Control services in a namespace of their own, nodes with both processes, apps in pods and
//! cgroups.

use crate::{
    control::{Control, IDENTITY_SOCKETS},
    flows::{self, Flow},
};
use nix::sys::signal::Signal;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};
use weft_identity::CaConfig;
use weft_proto::weft::dataplane::v1::{
    AddRequest, GetRequest, Placed, WorkloadSpec, status_client::StatusClient, workload_spec::Place,
    workloads_client::WorkloadsClient,
};
use weft_testnet::{Namespace, Node, Pod, Process, Spawn, Testnet};

const AGENT_UID: u32 = 65101;
/// For anything that should have happened.
pub const SOON: Duration = Duration::from_secs(30);

/// Control services on a thread that is in their namespace.
pub struct ControlPlane {
    addresses: [String; 3],
    tokens: Vec<String>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl ControlPlane {
    fn start(place: Node, folder: PathBuf, nodes: &[&str], ca: CaConfig) -> Self {
        let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        let (ready, started) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let address = place.v4().into();
        let serve = async move {
            let control = Control::start(&folder, address, ca).await;
            let mut tokens = Vec::new();
            for node in &nodes {
                tokens.push(control.node_token(node).await);
            }
            ready.send((control.addresses(), tokens)).unwrap();
            let _ = stopped.await;
            control.stop().await;
        };
        let thread = std::thread::spawn(move || {
            place
                .namespace()
                .run(|| tokio::runtime::Runtime::new().unwrap().block_on(serve))
                .unwrap();
        });
        let (addresses, tokens) = started.recv_timeout(SOON).unwrap();
        Self {
            addresses,
            tokens,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Ends the services.
    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

/// A node with both processes.
pub struct Running {
    pub node: Node,
    run_dir: PathBuf,
    data_dir: PathBuf,
    agent_bin: PathBuf,
    process: Process,
}

/// A network with a control plane and two nodes.
pub struct Rig {
    pub nodes: Vec<Running>,
    pub control: ControlPlane,
    /// Last, so that everything above is gone before it.
    pub net: Testnet,
}

fn binary(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_weft-agent")).with_file_name(name);
    assert!(
        path.exists(),
        "{} is missing: cargo build -p {name}",
        path.display()
    );
    path
}

impl Rig {
    /// With these manifests and nodes.
    pub fn new(manifests: &[(&str, &str)], names: &[&str]) -> Self {
        Self::with_authority(manifests, names, CaConfig::default())
    }

    /// The same, with certificates as these settings say.
    pub fn with_authority(manifests: &[(&str, &str)], names: &[&str], ca: CaConfig) -> Self {
        weft_tls::install_provider();
        let net = Testnet::new().unwrap();
        let folder = net.dir().join("control");
        std::fs::create_dir_all(folder.join("resources")).unwrap();
        for (name, text) in manifests {
            std::fs::write(folder.join("resources").join(name), text).unwrap();
        }
        let control = ControlPlane::start(net.node("control").unwrap(), folder, names, ca);
        let nodes = names.iter().zip(&control.tokens);
        let nodes = nodes.map(|(name, token)| Running::start(&net, name, &control.addresses, token));
        Self {
            nodes: nodes.collect(),
            control,
            net,
        }
    }
}

impl Rig {
    /// The identity service, for operators on its machine.
    pub fn identity(&self) -> tonic::transport::Channel {
        let folder = self.net.dir().join("control").join(IDENTITY_SOCKETS);
        weft_rpc::channel_local(folder.join("identity.sock")).unwrap()
    }

    /// Changes a manifest.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.net.dir().join("control").join("resources").join(name);
        std::fs::write(path, text).unwrap();
    }
}

impl Running {
    fn start(net: &Testnet, name: &str, [identity, policy, placement]: &[String; 3], token: &str) -> Self {
        let node = net.node(name).unwrap();
        let run_dir = net.dir().join(format!("run-{name}"));
        // A link, so that another build can take its place.
        let agent_bin = net.dir().join(format!("agent-bin-{name}"));
        std::os::unix::fs::symlink(binary("weft-agent"), &agent_bin).unwrap();
        let data_dir = net.dir().join(format!("agent-{name}"));
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mut command = Command::new(binary("weft-node"));
        for (flag, value) in [
            ("--node-name", name.to_owned()),
            ("--netns", text(node.namespace().path())),
            ("--cgroup-root", text(node.cgroup())),
            ("--bpffs", text(&net.bpffs().unwrap())),
            ("--run-dir", text(&run_dir)),
            ("--agent-bin", text(&agent_bin)),
            ("--agent-data-dir", text(&data_dir)),
            ("--agent-user", AGENT_UID.to_string()),
            ("--metrics-listen", "127.0.0.1:0".to_owned()),
        ] {
            command.args([flag, &value]);
        }
        for argument in [
            format!("--identity={identity}"),
            format!("--policy={policy}"),
            format!("--placement={placement}"),
        ] {
            command.args(["--agent-arg", &argument]);
        }
        command
            .env("WEFT_JOIN_TOKEN", token)
            .env("WEFT_LOG_FORMAT", "text");
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = net.spawn(command, &Spawn::root()).unwrap();
        let errors = BufReader::new(process.stderr.take().unwrap());
        let prefix = name.to_owned();
        std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                eprintln!("  {prefix}: {line}");
            }
        });
        Self {
            node,
            run_dir,
            data_dir,
            agent_bin,
            process,
        }
    }

    /// Puts another build of the agent in the place of the one that is started next.
    pub fn install_agent(&self, program: &[u8]) {
        use std::os::unix::fs::PermissionsExt;
        let beside = self.agent_bin.with_extension("new");
        std::fs::write(&beside, program).unwrap();
        std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&beside, &self.agent_bin).unwrap();
    }

    /// Where the agent keeps what outlives it.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The agent's local API.
    pub fn channel(&self) -> tonic::transport::Channel {
        weft_rpc::channel_local(self.run_dir.join("agent.sock")).unwrap()
    }

    /// Adds a workload; the agent may be starting.
    pub async fn add(&self, name: &str, port: u16, place: Place) -> Placed {
        self.add_with(name, port, place, &[]).await
    }

    /// With annotations.
    pub async fn add_with(
        &self,
        name: &str,
        port: u16,
        place: Place,
        annotations: &[(&str, &str)],
    ) -> Placed {
        let annotations = annotations
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let spec = WorkloadSpec {
            annotations: annotations.collect(),
            namespace: "default".into(),
            name: name.into(),
            app_id: name.into(),
            app_port: port.into(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            place: Some(place),
            ..Default::default()
        };
        let request = AddRequest { spec: Some(spec) };
        let mut client = WorkloadsClient::new(self.channel());
        let deadline = Instant::now() + SOON;
        loop {
            match client.add(request.clone()).await {
                Ok(added) => return added.into_inner().placed.unwrap(),
                Err(status) => assert!(Instant::now() < deadline, "{status}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Adds an app in a pod.
    pub async fn add_pod(&self, pod: &Pod) {
        let app = pod.namespace().listen("127.0.0.1:0").unwrap();
        let port = app.local_addr().unwrap().port();
        serve(pod.name(), app);
        let place = Place::NetnsPath(pod.namespace().path().to_str().unwrap().into());
        self.add(pod.name(), port, place).await;
    }

    /// Adds a process; answers with its cgroup and its first process, with which it would go.
    pub async fn add_process(&self, name: &str) -> (PathBuf, Process) {
        let app = self.node.namespace().listen("127.0.0.1:0").unwrap();
        let port = app.local_addr().unwrap().port();
        serve(name, app);
        let placed = self.add(name, port, Place::Process(Default::default())).await;
        assert!(placed.environment.is_empty(), "plain localhost:3500 must work");
        let cgroup = PathBuf::from(placed.cgroup);
        let mut command = Command::new("sleep");
        command.arg("1000");
        let spawn = Spawn::nobody().cgroup(&cgroup);
        let process = self.node.namespace().spawn(command, &spawn).unwrap();
        (cgroup, process)
    }

    /// A capability as the status shows it: whether it is active, and why not.
    pub async fn capability(&self, name: &str) -> Option<(bool, String)> {
        let status = StatusClient::new(self.channel())
            .get(GetRequest {})
            .await
            .unwrap();
        let mut all = status.into_inner().capabilities.into_iter();
        all.find(|c| c.name == name).map(|c| (c.active, c.reason))
    }

    /// Hubble's API.
    pub fn hubble(&self) -> tonic::transport::Channel {
        weft_rpc::channel_local(self.run_dir.join("hubble.sock")).unwrap()
    }

    /// All flows.
    pub async fn all_flows(&self) -> Vec<Flow> {
        flows::all(self.hubble()).await
    }

    /// The flows about a path.
    pub async fn flows(&self, path: &str) -> Vec<Flow> {
        let mut all = self.all_flows().await;
        all.retain(|flow| flow.path == path);
        all
    }

    /// Whether the last good state on the disk has a workload in it.
    pub fn has_kept(&self, workload: &str) -> bool {
        let state = std::fs::read(self.data_dir.join("mesh.state")).unwrap_or_default();
        state.windows(workload.len()).any(|w| w == workload.as_bytes())
    }

    /// Asks the node to replace its agent.
    pub fn replace_agent(&self) {
        signal(self.process.id().try_into().unwrap(), Signal::SIGHUP);
    }

    /// Where workloads find the SPIFFE Workload API.
    pub fn workload_socket(&self) -> PathBuf {
        self.run_dir.join("workload.sock")
    }

    /// Process id of the agent, while there is one.
    pub fn agent_now(&self) -> Option<i32> {
        let text = std::fs::read_to_string(self.run_dir.join("agent.pid")).ok()?;
        text.trim().parse().ok()
    }

    /// Process id of the agent.
    pub fn agent(&self) -> i32 {
        let text = std::fs::read_to_string(self.run_dir.join("agent.pid")).unwrap();
        text.trim().parse().unwrap()
    }

    /// Runs a script as an unprivileged user, in a cgroup or in none of the node's.
    pub fn script(&self, cgroup: Option<&Path>, script: &str) -> String {
        let mut command = Command::new("bash");
        command.args(["-c", script]).stdout(Stdio::piped());
        let spawn = match cgroup {
            Some(cgroup) => Spawn::nobody().cgroup(cgroup),
            None => Spawn::nobody(),
        };
        let mut process = self.node.namespace().spawn(command, &spawn).unwrap();
        let mut answer = String::new();
        process
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut answer)
            .unwrap();
        answer
    }
}

/// Signals a process of this test's.
pub fn signal(pid: i32, signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

/// A request for another app, with what a liar would add.
pub fn request(app: &str, method: &str) -> String {
    format!(
        "GET /v1.0/invoke/{app}/method/{method} HTTP/1.1\r\nhost: localhost\r\ndapr-caller-app-id: admin\r\n\
         dapr-caller-namespace: kube-system\r\nconnection: close\r\n\r\n"
    )
}

/// The same as a script.
pub fn request_script(app: &str, method: &str) -> String {
    let request = request(app, method).replace('\r', "\\r").replace('\n', "\\n");
    format!("exec 3<>/dev/tcp/127.0.0.1/3500; printf '{request}' >&3; cat <&3")
}

/// Asks from inside a namespace; the whole answer.
pub fn ask(from: &Namespace, app: &str, method: &str) -> String {
    let runtime: SocketAddr = "127.0.0.1:3500".parse().unwrap();
    let mut stream: TcpStream = from.connect(runtime).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request(app, method).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// An app that answers with its name, who it was told has called, and what for.
fn serve(name: &str, listener: TcpListener) {
    let name = name.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let name = name.clone();
            std::thread::spawn(move || answer(&name, &stream.unwrap()));
        }
    });
}

fn answer(name: &str, mut stream: &TcpStream) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let header = |name: &str| {
            let line = head
                .lines()
                .find(|l| l.to_lowercase().starts_with(&format!("{name}:")));
            line.and_then(|l| l.split_once(": "))
                .map_or("-", |(_, v)| v)
                .to_owned()
        };
        let body = format!(
            "{name} asked by {} of {} for {}",
            header("dapr-caller-app-id"),
            header("dapr-caller-namespace"),
            head.split(' ').nth(1).unwrap_or("-")
        );
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Asks until the answer has `wanted` in it: nodes learn of each other's workloads a moment later.
pub async fn ask_until(wanted: &str, mut ask: impl FnMut() -> String) -> String {
    let deadline = Instant::now() + SOON;
    loop {
        let answer = ask();
        if answer.contains(wanted) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{wanted:?} is not in {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
