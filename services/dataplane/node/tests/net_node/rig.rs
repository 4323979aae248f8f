//! A network with one node's `weft-node` as a process of its own, and what tests ask of it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};
use weft_bpf::{Address, Datapath, Endpoint, Set};
use weft_handoff::{AgentLink, Connected, ListenerKind, PlacedWorkload};
use weft_proto::weft::dataplane::v1::{WorkloadSpec, workload_spec::Place};
use weft_testnet::{Namespace, Node, Pod, Process, Spawn, Testnet};

/// Whom the node takes for its agent in these tests.
pub const AGENT_UID: u32 = 65100;
/// For anything that should have happened.
pub const SOON: Duration = Duration::from_secs(20);

pub struct Rig {
    pub process: Option<Process>,
    pub log: mpsc::Receiver<String>,
    pub node: Node,
    pub run_dir: PathBuf,
    pub net: Testnet,
}

impl Rig {
    /// A node whose agent is the test.
    pub fn without_agent() -> Self {
        Self::new(&["--no-agent"], &[])
    }

    pub fn new(args: &[&str], environment: &[(&str, &str)]) -> Self {
        let net = Testnet::new().unwrap();
        let node = net.node("n1").unwrap();
        let run_dir = net.dir().join("run");
        let mut rig = Self {
            process: None,
            log: mpsc::channel().1,
            node,
            run_dir,
            net,
        };
        rig.start(args, environment);
        rig
    }

    /// `weft-node` with what it needs here; `args` may replace any of it.
    pub fn command(&self, args: &[&str]) -> Command {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft-node"));
        for (flag, value) in [
            ("--node-name", "n1".to_owned()),
            ("--netns", text(self.node.namespace().path())),
            ("--cgroup-root", text(self.node.cgroup())),
            ("--bpffs", text(&self.net.bpffs().unwrap())),
            ("--run-dir", text(&self.run_dir)),
            ("--agent-data-dir", text(&self.net.dir().join("agent"))),
            ("--agent-user", AGENT_UID.to_string()),
            ("--metrics-listen", "127.0.0.1:0".to_owned()),
        ] {
            if !args.contains(&flag) {
                command.args([flag, &value]);
            }
        }
        command.args(args).stdout(Stdio::null()).stderr(Stdio::piped());
        command.env("WEFT_LOG_FORMAT", "json");
        command
    }

    pub fn start(&mut self, args: &[&str], environment: &[(&str, &str)]) {
        let mut command = self.command(args);
        command.envs(environment.iter().copied());
        self.spawn(command);
    }

    fn spawn(&mut self, command: Command) {
        let mut process = self.net.spawn(command, &Spawn::root()).unwrap();
        let errors = BufReader::new(process.stderr.take().unwrap());
        let (lines, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                eprintln!("  weft-node: {line}");
                let _ = lines.send(line);
            }
        });
        self.log = log;
        self.process = Some(process);
    }

    /// Another release of `weft-node`: this test binary, which runs that test alone and is told where to look.
    pub fn start_next_release(&mut self, test: &str, (name, told): (&str, &Path)) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", test, "--nocapture"])
            .env(name, told);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        self.spawn(command);
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    /// Connects as the agent's user does.
    pub async fn connect(&self) -> Connected {
        let socket = self.connect_as(AGENT_UID).await.unwrap();
        AgentLink::start(socket).await.unwrap()
    }

    /// Connects from a thread with that user's rights: the node sees who calls connect.
    pub async fn connect_as(&self, uid: u32) -> std::io::Result<OwnedFd> {
        let path = self.run_dir.join("node.sock");
        eventually("the node listens", || path.exists()).await;
        std::thread::spawn(move || {
            use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
            // SAFETY: the raw call changes this thread only, which ends with the closure.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) }, 0);
            let fd = socket(
                AddressFamily::Unix,
                SockType::SeqPacket,
                SockFlag::SOCK_CLOEXEC,
                None,
            )?;
            connect(fd.as_raw_fd(), &UnixAddr::new(&path)?)?;
            Ok(fd)
        })
        .join()
        .unwrap()
    }

    /// Ends the node in order.
    pub fn stop(&mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        signal(process.id(), libc::SIGTERM);
        wait(&mut process)
    }

    /// Runs a second `weft-node` to its end, which must come: exit code and last line.
    pub fn run_to_end(&self, mut command: Command) -> (Option<i32>, String) {
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (
            output.status.code(),
            text.lines().last().unwrap_or_default().to_owned(),
        )
    }

    /// Kernel's programs, pins and cgroups of this node.
    pub fn left_behind(&self) -> Vec<PathBuf> {
        let pins = self.net.bpffs().unwrap().join("weft");
        let sockets = ["agent.sock", "node.sock", "agent.pid"].map(|name| self.run_dir.join(name));
        [self.node.cgroup().to_owned(), pins]
            .into_iter()
            .chain(sockets)
            .filter(|path| path.exists())
            .collect()
    }
}

pub fn wait(process: &mut Process) -> ExitStatus {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "the process does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn signal(pid: u32, signal: i32) {
    // SAFETY: a plain system call; the pid is that of a child that is not reaped yet.
    assert_eq!(unsafe { libc::kill(pid.try_into().unwrap(), signal) }, 0);
}

pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "it never holds that {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn pod_spec(pod: &Pod, app_id: &str) -> WorkloadSpec {
    WorkloadSpec {
        namespace: "default".into(),
        name: pod.name().into(),
        app_id: app_id.into(),
        place: Some(Place::NetnsPath(pod.namespace().path().to_str().unwrap().into())),
        ..Default::default()
    }
}

pub fn process_spec(name: &str) -> WorkloadSpec {
    WorkloadSpec {
        namespace: "default".into(),
        name: name.into(),
        app_id: name.into(),
        place: Some(Place::Process(Default::default())),
        ..Default::default()
    }
}

/// What an agent writes first: everybody outside is the world, and set 1 has no rules.
pub fn write_world(datapath: &Datapath) {
    const WORLD: u32 = 2;
    let world = Address {
        identity: WORLD,
        ..Address::default()
    };
    for net in ["::/0", "0.0.0.0/0"] {
        datapath.addresses.set(net.parse().unwrap(), world).unwrap();
    }
    let open = Set {
        generation: 1,
        ..Set::default()
    };
    datapath.sets.set(1, open).unwrap();
}

/// What an agent writes of a workload that it has got: first what it is, then where.
pub fn write_endpoint(datapath: &Datapath, number: u32, endpoint: Endpoint, addresses: &[IpAddr]) {
    datapath.endpoints.set(number, endpoint).unwrap();
    for address in addresses {
        let entry = Address {
            identity: endpoint.identity,
            local: true,
            endpoint: number,
            ..Address::default()
        };
        datapath.addresses.set((*address).into(), entry).unwrap();
    }
}

/// Workloads without any rules, and who the node is.
pub fn open(agent: &mut Connected, workloads: &[&PlacedWorkload]) -> Datapath {
    const HOST: u32 = 1;
    let datapath = Datapath::from_fds(&mut agent.hello.maps).unwrap();
    write_world(&datapath);
    for address in &agent.hello.addresses {
        let entry = Address {
            identity: HOST,
            host: true,
            local: true,
            ..Address::default()
        };
        datapath.addresses.set((*address).into(), entry).unwrap();
    }
    for placed in workloads {
        let endpoint = Endpoint {
            identity: 5000 + placed.endpoint,
            set: 1,
            process: placed.addresses.is_empty(),
            ..Endpoint::default()
        };
        write_endpoint(&datapath, placed.endpoint, endpoint, &placed.addresses);
    }
    datapath
}

/// A workload's listener of a kind and family, as a blocking TCP listener.
pub fn listener(workload: &PlacedWorkload, kind: ListenerKind, v6: bool) -> std::net::TcpListener {
    let found = workload
        .listeners
        .iter()
        .find(|l| l.kind == kind && l.tcp_address().unwrap().is_ipv6() == v6)
        .unwrap();
    let listener = found.try_clone().unwrap().into_tcp().unwrap();
    listener.set_nonblocking(false).unwrap();
    listener
}

/// Connects from inside and asks for whatever answers there; `Err` when nobody listens.
pub fn ask(from: &Namespace, address: SocketAddr, question: &str) -> std::io::Result<String> {
    from.run(|| ask_here(address, question)).unwrap()
}

/// The same from the calling thread's namespace.
pub fn ask_here(address: SocketAddr, question: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(format!("{question}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Answers one connection with `name` and what was asked.
pub fn answer(listener: &std::net::TcpListener, name: &str) {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    (&stream).write_all(format!("{name} {line}").as_bytes()).unwrap();
}

pub fn processes_in(cgroup: &Path) -> Vec<u32> {
    fs::read_to_string(cgroup.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect()
}
