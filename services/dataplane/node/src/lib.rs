//! The privileged process of a node.
//!
//! Owns what needs root: BPF programs and maps, cgroups, listeners and sockets inside pods'
//! namespaces. It keeps every descriptor, so that connects wait in the backlog while there is no
//! agent, and hands copies to the unprivileged agent (`weft_handoff`). It reads not one byte of
//! what tenants send.
//!
//! - [`serve`]: the process `weft-node`, which starts and supervises the agent.
//! - [`start`]: the same without supervision, for a process that is the agent itself.
//!
//! After a restart the programs and maps that an earlier node left are adopted. Pods are placed again
//! with the number and the id that they had (`kept`); processes are found again by their cgroup when
//! their launcher adds them.
//!
//! One process serves one node: it moves itself (and so all its threads) into the node's cgroup,
//! because the kernel attributes connections to listeners by where these were made. What it starts
//! from then on is there too, and is ended with the node.

mod agent;
mod cgroup;
mod config;
mod core;
mod error;
mod kept;
mod kernel;
mod listen;
mod machine;
mod meters;
mod namespace;
mod netlink;
mod place;
mod pod;
mod sight;
mod sockets;
mod supervise;
mod user;
mod watch;
mod wiring;

pub use config::{Config, Encryption, Flags};
pub use error::NodeError;
pub use machine::join_machine_cgroups;
pub use user::AgentUser;

use crate::{
    agent::Program,
    cgroup::Cgroups,
    core::{Command, Core, Parts},
    kept::Kept,
    kernel::Programs,
    meters::Meters,
    namespace::{Entrance, Namespace},
    supervise::Supervisor,
};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::{mpsc, oneshot};
use weft_drain::Watcher;
use weft_handoff::{HandoffError, ListenerKind, NodeListener, SharedListener};
use weft_proto::weft::dataplane::v1::Capability;
use weft_service::Context;

/// A node that is up. Dropping it cleans up in the background; [`Node::stop`] waits for it.
#[derive(Debug)]
pub struct Node {
    commands: mpsc::Sender<Command>,
    capabilities: Vec<Capability>,
    namespace: Option<Arc<OwnedFd>>,
    sockets: Vec<PathBuf>,
}

/// Sets the node up: namespace, cgroups, programs, listeners. Must be called in a runtime.
pub async fn start(config: &Config) -> Result<Node, NodeError> {
    start_with(config, Meters::default()).await
}

async fn start_with(config: &Config, meters: Meters) -> Result<Node, NodeError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(NodeError::NotRoot);
    }
    weft_model::check_name(&config.node_name).map_err(|e| NodeError::Name {
        what: "--node-name",
        detail: e.to_string(),
    })?;
    raise_open_files();
    let namespace = match &config.netns {
        Some(path) => Namespace::by_path(path)?,
        None => Namespace::own()?,
    };
    let own_namespace = config
        .netns
        .as_ref()
        .map(|_| namespace.try_clone_fd().map(Arc::new))
        .transpose()?;
    let entrance = Entrance::start()?;

    // Cgroups first: what is opened from here on belongs to the node's own.
    let (name, root) = (config.node_name.clone(), config.cgroup_root.clone());
    let cgroups = tokio::task::spawn_blocking(move || prepare_cgroups(&name, root))
        .await
        .map_err(|_| NodeError::Stopped)??;
    let mut setup = Setup {
        cgroups: Some(cgroups),
        sockets: Vec::new(),
    };
    let mut listeners = Vec::new();
    for (kind, name) in LOCAL_SOCKETS {
        let path = config.run_dir.join(name);
        listeners.push(local_listener(&config.run_dir, &path, kind)?);
        setup.sockets.push(path);
    }
    let sockets = setup.sockets.clone();
    let (opened, addresses) = entrance
        .run(&namespace, || {
            let listeners = listen::open_all(true, "the node's network namespace")?;
            let addresses = listen::addresses().map_err(|source| NodeError::Process {
                action: "read the node's addresses",
                source,
            })?;
            Ok((listeners, addresses))
        })
        .await?;
    listeners.extend(opened);
    let Some((root, cgroups)) = setup.finish() else {
        return Err(NodeError::Stopped);
    };
    // In the node's namespace, where its interfaces are, and those of pods that an earlier node left.
    let (settings, there) = (
        config.clone(),
        cgroups.as_ref().map(Cgroups::ids).unwrap_or_default(),
    );
    let programs = entrance
        .run(&namespace, move || {
            let programs = Programs::start(&settings, root.as_deref().map_err(String::as_str));
            programs.keep_only(&there);
            Ok(Arc::new(programs))
        })
        .await?;
    let capabilities = programs.capabilities().to_vec();
    let enforced = programs.are_loaded();
    let (commands, queue) = mpsc::channel(core::QUEUE);
    let parts = Parts {
        node: config.node_name.clone(),
        entrance,
        namespace: Arc::new(namespace),
        foreign: machine_namespaces(),
        listeners,
        addresses,
        cgroups,
        programs,
        commands: commands.clone(),
        meters,
        kept: Kept::open(&config.run_dir).ok().filter(|_| enforced),
    };
    Core::start(parts, queue)?;
    Ok(Node {
        commands,
        capabilities,
        namespace: own_namespace,
        sockets,
    })
}

impl Node {
    /// What is enforced here and what is not.
    pub fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }

    /// A new agent's end of the hand-off, for `weft_handoff::AgentLink::start`.
    pub async fn agent_end(&self) -> Result<OwnedFd, NodeError> {
        let (ours, theirs) = weft_handoff::socket::pair()?;
        self.attach(ours).await?;
        Ok(theirs)
    }

    async fn attach(&self, socket: OwnedFd) -> Result<(), NodeError> {
        self.commands
            .send(Command::Attach { socket, ready: None })
            .await
            .map_err(|_| NodeError::Stopped)
    }

    /// Closes everything and removes what was made, and waits until that is done. Cgroups with
    /// processes in them stay; with `keep_state`, so do programs and pins.
    pub async fn stop(self, keep_state: bool) {
        let (done, stopped) = oneshot::channel();
        if self
            .commands
            .send(Command::Stop { keep_state, done })
            .await
            .is_ok()
        {
            let _ = stopped.await;
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let (done, _) = oneshot::channel();
        // Fails when it was stopped.
        let _ = self.commands.try_send(Command::Stop {
            keep_state: false,
            done,
        });
        self.sockets.iter().for_each(|path| {
            let _ = fs::remove_file(path);
        });
    }
}

/// The process: sets the node up, keeps an agent running until the drain, cleans up.
///
/// Each message on `replace` (SIGHUP in the binary) replaces the agent without losing a request.
pub async fn serve(config: Config, context: Context, replace: mpsc::Receiver<()>) -> Result<(), NodeError> {
    let user = AgentUser::resolve(config.agent_user.as_deref())?;
    let mut program = Program {
        path: config.agent_bin.clone().unwrap_or_else(agent::beside_this),
        args: config.agent_args.clone(),
        user,
        node: config.node_name.clone(),
        data_dir: config.agent_data_dir.clone(),
        netns: None,
    };
    if !nix::unistd::geteuid().is_root() {
        return Err(NodeError::NotRoot);
    }
    if !config.no_agent {
        program.prepare()?;
    }
    let meters = Meters::default();
    meters.register(&context.metrics);
    let node = start_with(&config, meters.clone()).await?;
    program.netns = node.namespace.clone();
    let Context { drain, health, .. } = context;
    let ended = if config.no_agent {
        health.ready("node");
        accept_agents(&node, &config.run_dir.join("node.sock"), user, drain).await
    } else {
        let supervisor = Supervisor::new(program, node.commands.clone(), &config.run_dir, meters, health);
        supervisor.run(drain, replace).await
    };
    node.stop(config.keep_state).await;
    ended
}

async fn accept_agents(
    node: &Node,
    path: &Path,
    user: AgentUser,
    mut drain: Watcher,
) -> Result<(), NodeError> {
    let listener = NodeListener::bind(path, user.uid)?;
    tracing::info!(path = %path.display(), uid = user.uid, "waiting for an agent");
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(socket) => node.attach(socket).await?,
                Err(error @ HandoffError::Peer { .. }) => tracing::warn!(%error, "somebody else was turned away"),
                Err(error) => {
                    tracing::error!(%error, "an agent cannot be accepted");
                    // Most likely out of descriptors: do not spin.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
            () = drain.draining() => return Ok(()),
        }
    }
}

type CgroupParts = (Result<PathBuf, String>, Result<Cgroups, String>);

/// Without cgroup v2 the node serves pods only; two nodes in one subtree are an error.
fn prepare_cgroups(node: &str, root: Option<PathBuf>) -> Result<CgroupParts, NodeError> {
    let mounted = match weft_bpf::find_cgroup2() {
        Ok(mounted) => mounted,
        Err(error) => return Ok((Err(error.to_string()), Err(error.to_string()))),
    };
    let own = mounted.join("weft").join(node);
    let root = root.unwrap_or_else(|| own.clone());
    // On the hierarchy's root everybody's folders are; the node's are apart.
    let folders = if root == mounted { &own } else { &root };
    match Cgroups::prepare(folders, &root, &mounted) {
        Ok(cgroups) => Ok((Ok(root), Ok(cgroups))),
        Err(error @ NodeError::Busy { .. }) => Err(error),
        Err(error) => Ok((Err(error.to_string()), Err(error.to_string()))),
    }
}

/// The namespaces of the machine itself: the one this process was started in, and that of the first
/// process, where that can be seen.
fn machine_namespaces() -> Vec<Namespace> {
    let first = Namespace::by_path(Path::new("/proc/1/ns/net"));
    [Namespace::own(), first].into_iter().flatten().collect()
}

/// What must be undone when the set-up fails half-way.
struct Setup {
    cgroups: Option<CgroupParts>,
    sockets: Vec<PathBuf>,
}

impl Setup {
    fn finish(&mut self) -> Option<CgroupParts> {
        self.sockets.clear();
        self.cgroups.take()
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        if let Some((_, Ok(cgroups))) = &mut self.cgroups
            && let Err(error) = cgroups.leave(false)
        {
            tracing::warn!(%error, "the node's cgroup stays");
        }
        for path in &self.sockets {
            let _ = fs::remove_file(path);
        }
    }
}

/// The node's unix sockets, by their names in the run folder.
const LOCAL_SOCKETS: [(ListenerKind, &str); 3] = [
    (ListenerKind::LocalApi, "agent.sock"),
    (ListenerKind::WorkloadApi, "workload.sock"),
    (ListenerKind::Hubble, "hubble.sock"),
];

/// A unix socket. Only root can connect to the agent's local API and to Hubble's; whoever can reach the Workload
/// API's file may connect, because there the kernel says who that is.
fn local_listener(run_dir: &Path, path: &Path, kind: ListenerKind) -> Result<SharedListener, NodeError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| NodeError::RunDir { action, path, source }
    };
    if !run_dir.exists() {
        fs::create_dir_all(run_dir).map_err(failed("make", run_dir))?;
        fs::set_permissions(run_dir, fs::Permissions::from_mode(0o755)).map_err(failed("open", run_dir))?;
    }
    // A socket without a listener is what a killed node left.
    if UnixStream::connect(path).is_ok() {
        return Err(failed("listen at", path)(io::ErrorKind::AddrInUse.into()));
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("replace", path)(e)),
        _ => {}
    }
    let mode = if kind == ListenerKind::WorkloadApi {
        0o666
    } else {
        0o600
    };
    let listening = || -> io::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // Before bind, so that the file never has other rights.
        nix::sys::stat::fchmod(&fd, nix::sys::stat::Mode::from_bits_truncate(mode))?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        // What the umask took away.
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        listen(&fd, Backlog::new(1024).unwrap_or(Backlog::MAXCONN))?;
        Ok(fd)
    };
    let fd = listening().map_err(failed("listen at", path))?;
    Ok(SharedListener {
        kind,
        address: path.display().to_string(),
        socket: Arc::new(fd),
    })
}

/// Listeners and namespaces of thousands of pods are more than the usual limit.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const WANTED: u64 = 1 << 18;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    // Beyond the hard limit it takes CAP_SYS_RESOURCE; up to it, nothing.
    if soft < WANTED
        && setrlimit(Resource::RLIMIT_NOFILE, WANTED, hard.max(WANTED)).is_err()
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, "the limit of open files stays");
    }
}
