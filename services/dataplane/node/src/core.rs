//! The one task that owns the node's state: workloads, agents' links, cgroups, programs.
//!
//! Agents' requests, their links' ends and the watches' reports all come in through one channel
//! each. What blocks (entering a namespace) is done by the entrance's thread.

use crate::{
    NodeError,
    cgroup::Cgroups,
    kept::Kept,
    kernel::Programs,
    listen,
    meters::Meters,
    namespace::{Entrance, Namespace},
    pod::Wired,
    sockets,
    watch::{Report, Watches, Watching},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::AbortHandle,
};
use weft_handoff::{
    AgentRequest, Answer, Family, GoneBackend, HandoffError, HelloAnswer, NodeLink, NodeSender, Placed,
    Request, SharedListener,
};

/// Requests of all agents that may wait; each link's reader waits then.
pub(crate) const QUEUE: usize = 256;
/// Requests for sockets that may be under way.
const OPENING: usize = 256;
/// Requests to close sockets that may be under way; each lasts a little longer than a second.
const CLOSING: usize = 64;
/// How often the kernel's counters are read.
const COUNTERS_EVERY: Duration = Duration::from_secs(5);

/// What the core is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// A connected agent's socket; `ready` is told once that agent serves.
    Attach {
        socket: OwnedFd,
        ready: Option<oneshot::Sender<()>>,
    },
    /// A request over a link.
    Request { link: u64, request: Request },
    /// A link ended.
    Ended { link: u64, error: HandoffError },
    /// Clean up and end; answers when done.
    Stop {
        keep_state: bool,
        done: oneshot::Sender<()>,
    },
}

struct Link {
    sender: NodeSender,
    reader: AbortHandle,
    greeted: bool,
    ready: Option<oneshot::Sender<()>>,
}

pub(crate) struct Workload {
    pub(crate) placed: Placed,
    /// Its own, or the node's for a process.
    pub(crate) namespace: Arc<Namespace>,
    /// What the kernel's maps hold of a pod.
    pub(crate) wired: Option<Wired>,
    /// An earlier node placed it, and its launcher has not said anything of it since.
    pub(crate) restored: bool,
    pub(crate) watching: Vec<Watching>,
}

/// What the core starts with.
pub(crate) struct Parts {
    pub(crate) node: String,
    pub(crate) entrance: Entrance,
    pub(crate) namespace: Arc<Namespace>,
    /// Namespaces that are no pod's for sure.
    pub(crate) foreign: Vec<Namespace>,
    pub(crate) listeners: Vec<SharedListener>,
    pub(crate) addresses: Vec<IpAddr>,
    /// Or the reason why there are none.
    pub(crate) cgroups: Result<Cgroups, String>,
    pub(crate) programs: Arc<Programs>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) meters: Meters,
    /// Absent where the folder cannot be made, or nothing is in the kernel that could be adopted.
    pub(crate) kept: Option<Kept>,
}

impl Parts {
    pub(crate) fn keep(&self, placed: &Placed) {
        self.kept.iter().for_each(|kept| kept.keep(placed));
    }
}

/// The node's state.
pub(crate) struct Core {
    pub(crate) parts: Parts,
    pub(crate) watches: Watches,
    links: HashMap<u64, Link>,
    pub(crate) workloads: HashMap<String, Workload>,
    opening: Arc<Semaphore>,
    closing: Arc<Semaphore>,
    last_link: u64,
    pub(crate) last_endpoint: u32,
    pub(crate) last_start: u128,
    /// What is open for gateways, by port. It stays open while no agent runs: connects wait.
    gateways: BTreeMap<u16, Vec<SharedListener>>,
}

impl Core {
    /// Starts the core's task. Must be called in a runtime.
    pub(crate) fn start(parts: Parts, commands: mpsc::Receiver<Command>) -> Result<(), NodeError> {
        let (tell, reports) = mpsc::channel(QUEUE);
        let core = Self {
            last_endpoint: parts.programs.last_endpoint(),
            parts,
            watches: Watches::start(tell)?,
            links: HashMap::new(),
            workloads: HashMap::new(),
            opening: Arc::new(Semaphore::new(OPENING)),
            closing: Arc::new(Semaphore::new(CLOSING)),
            last_link: 0,
            last_start: 0,
            gateways: BTreeMap::new(),
        };
        tokio::spawn(core.run(commands, reports));
        Ok(())
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>, mut reports: mpsc::Receiver<Report>) {
        let mut read_counters = tokio::time::interval(COUNTERS_EVERY);
        // Before the first agent is told what there is.
        self.restore().await;
        loop {
            tokio::select! {
                _ = read_counters.tick() => self.parts.programs.count(&self.parts.meters),
                command = commands.recv() => match command {
                    Some(Command::Attach { socket, ready }) => self.attach(socket, ready),
                    Some(Command::Request { link, request }) => self.request(link, request).await,
                    Some(Command::Ended { link, error }) => self.ended(link, &error),
                    Some(Command::Stop { keep_state, done }) => {
                        self.stop(keep_state);
                        // Whoever waits must find everything closed.
                        drop(self);
                        let _ = done.send(());
                        return;
                    }
                    None => return self.stop(false),
                },
                Some(report) = reports.recv() => match report {
                    Report::Gone { id, reason } => self.gone(&id, &reason),
                    Report::Changed { id } => {
                        if let Err(reason) = self.look_again(&id).await {
                            tracing::error!(workload = %id, %reason, "a pod can not be enforced any more");
                            self.gone(&id, &reason);
                        }
                    }
                }
            }
            self.parts
                .meters
                .workloads
                .set(i64::try_from(self.workloads.len()).unwrap_or(i64::MAX));
            self.parts
                .meters
                .links
                .set(i64::try_from(self.links.len()).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn gone(&mut self, id: &str, reason: &str) {
        if self.take_away(id).is_some() {
            tracing::info!(workload = %id, %reason, "workload is gone");
            self.tell_all(None, |sender| sender.gone(id, reason));
        }
    }

    fn attach(&mut self, socket: OwnedFd, ready: Option<oneshot::Sender<()>>) {
        let (mut receiver, sender) = match NodeLink::start(socket) {
            Ok(halves) => halves,
            Err(error) => return tracing::error!(%error, "an agent's link cannot be served"),
        };
        self.last_link += 1;
        let link = self.last_link;
        let commands = self.parts.commands.clone();
        let reader = tokio::spawn(async move {
            loop {
                let command = match receiver.recv().await {
                    Ok(request) => Command::Request { link, request },
                    Err(error) => Command::Ended { link, error },
                };
                let last = matches!(command, Command::Ended { .. });
                if commands.send(command).await.is_err() || last {
                    return;
                }
            }
        });
        self.links.insert(
            link,
            Link {
                sender,
                reader: reader.abort_handle(),
                greeted: false,
                ready,
            },
        );
    }

    fn ended(&mut self, link: u64, error: &HandoffError) {
        if let Some(gone) = self.links.remove(&link) {
            gone.reader.abort();
            match error {
                HandoffError::Closed => tracing::info!("an agent's link ended"),
                error => tracing::error!(%error, "an agent's link is given up"),
            }
        }
    }

    /// Tells every agent that has said hello but `except`.
    pub(crate) fn tell_all(
        &mut self,
        except: Option<u64>,
        tell: impl Fn(&NodeSender) -> Result<(), HandoffError>,
    ) {
        let failed: Vec<_> = self
            .links
            .iter()
            .filter(|(id, link)| link.greeted && Some(**id) != except)
            .filter_map(|(id, link)| tell(&link.sender).err().map(|error| (*id, error)))
            .collect();
        for (link, error) in failed {
            self.ended(link, &error);
        }
    }

    async fn request(&mut self, link: u64, request: Request) {
        let Request { id, message } = request;
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        if !state.greeted && !matches!(message, AgentRequest::Hello { .. }) {
            return self.ended(link, &HandoffError::Protocol("a request before the hello".into()));
        }
        let sent = match message {
            AgentRequest::Hello { software } => {
                tracing::info!(%software, "an agent is connected");
                state.greeted = true;
                let sender = state.sender.clone();
                sender.hello(id, self.hello())
            }
            AgentRequest::Ready => {
                if let Some(ready) = state.ready.take() {
                    let _ = ready.send(());
                }
                state.sender.answer(id, Answer::Done)
            }
            AgentRequest::OpenSockets {
                workload,
                family,
                count,
            } => {
                let sender = state.sender.clone();
                self.open_sockets(sender, id, &workload, family, count);
                Ok(())
            }
            AgentRequest::GatewayPorts(wanted) => {
                let sender = state.sender.clone();
                let answer = self.gateway_ports(wanted).await;
                sender.answer(id, answer)
            }
            AgentRequest::CloseSockets(backends) => {
                let sender = state.sender.clone();
                self.close_sockets(sender, id, backends);
                Ok(())
            }
            AgentRequest::Place(spec) => {
                let sender = state.sender.clone();
                match self.place(*spec).await {
                    Ok(placed) => {
                        tracing::info!(workload = %placed.id, "workload placed");
                        let sent = sender.answer(id, Answer::Placed(Box::new(placed.clone())));
                        self.tell_all(Some(link), |sender| sender.placed(placed.clone()));
                        sent
                    }
                    Err(error) => sender.answer(id, failure(&error)),
                }
            }
            AgentRequest::Remove { id: workload } => {
                let sender = state.sender.clone();
                match self.take_away(&workload) {
                    Some(()) => {
                        tracing::info!(%workload, "workload removed");
                        self.tell_all(Some(link), |sender| sender.gone(&workload, "removed"));
                        sender.answer(id, Answer::Done)
                    }
                    None => sender.answer(id, failure(&NodeError::UnknownWorkload(workload))),
                }
            }
            AgentRequest::Derived {
                id: workload,
                identity,
                spiffe_id,
            } => {
                let answer = match self.derived(&workload, identity, spiffe_id) {
                    Ok(()) => Answer::Done,
                    Err(error) => failure(&error),
                };
                match self.links.get(&link) {
                    Some(state) => state.sender.answer(id, answer),
                    None => Ok(()),
                }
            }
        };
        if let Err(error) = sent {
            self.ended(link, &error);
        }
    }

    /// Opens what gateways want and closes what they do not any more.
    async fn gateway_ports(&mut self, wanted: BTreeSet<u16>) -> Answer {
        self.gateways.retain(|port, _| wanted.contains(port));
        let mut failures = Vec::new();
        for port in wanted {
            if self.gateways.contains_key(&port) {
                continue;
            }
            let place = format!("the namespace of node {}", self.parts.node);
            let (entrance, namespace) = (&self.parts.entrance, &self.parts.namespace);
            match entrance
                .run(namespace, move || listen::open_gateway(port, &place))
                .await
            {
                Ok(listeners) => {
                    tracing::info!(port, "open for gateways");
                    self.gateways.insert(port, listeners);
                }
                Err(error) => {
                    tracing::error!(port, %error, "not open for gateways");
                    failures.push((port, error.to_string()));
                }
            }
        }
        Answer::GatewayPorts(self.gateways.values().flatten().cloned().collect(), failures)
    }

    fn hello(&self) -> HelloAnswer {
        HelloAnswer {
            node: self.parts.node.clone(),
            capabilities: self.parts.programs.capabilities().to_vec(),
            listeners: self.parts.listeners.clone(),
            maps: self.parts.programs.maps(),
            addresses: self.parts.addresses.clone(),
            workloads: self
                .workloads
                .values()
                .map(|workload| workload.placed.clone())
                .collect(),
        }
    }

    /// Answered from a task of its own: an app's request waits for these sockets.
    fn open_sockets(&self, sender: NodeSender, request: u64, workload: &str, family: Family, count: usize) {
        let namespace = self
            .workloads
            .get(workload)
            .map(|workload| Arc::clone(&workload.namespace));
        let (entrance, workload) = (self.parts.entrance.clone(), workload.to_owned());
        let kernel = self.parts.programs.sockets();
        let Ok(slot) = Arc::clone(&self.opening).try_acquire_owned() else {
            let reason = format!("{OPENING} requests for sockets are under way already; ask again later");
            let _ = sender.answer(request, Answer::Failure(reason));
            return;
        };
        tokio::spawn(async move {
            let _slot = slot;
            let made = match namespace {
                Some(namespace) => {
                    entrance
                        .run(&namespace, move || {
                            let made =
                                listen::sockets(family, count).map_err(|source| NodeError::Process {
                                    action: "make sockets",
                                    source,
                                })?;
                            // Where the agent connects for an app is decided already.
                            if let Some(kernel) = kernel {
                                kernel.mark(&made)?;
                            }
                            Ok(made)
                        })
                        .await
                }
                None => Err(NodeError::UnknownWorkload(workload)),
            };
            let answer = made.map_or_else(|error| failure(&error), Answer::Sockets);
            if let Err(error) = sender.answer(request, answer) {
                tracing::debug!(%error, "sockets for an agent that is gone");
            }
        });
    }

    /// Answered from a task of its own, which looks once more a little later.
    fn close_sockets(&self, sender: NodeSender, request: u64, backends: Vec<GoneBackend>) {
        let Ok(slot) = Arc::clone(&self.closing).try_acquire_owned() else {
            let reason =
                format!("{CLOSING} requests to close sockets are under way already; ask again later");
            let _ = sender.answer(request, Answer::Failure(reason));
            return;
        };
        let Some(kernel) = self.parts.programs.sockets() else {
            // Without programs nothing was sent to any backend.
            let _ = sender.answer(request, Answer::Closed(0));
            return;
        };
        let mut namespaces = vec![Arc::clone(&self.parts.namespace)];
        for workload in self.workloads.values() {
            if !workload.namespace.same(&self.parts.namespace) {
                namespaces.push(Arc::clone(&workload.namespace));
            }
        }
        let (entrance, gone) = (self.parts.entrance.clone(), sockets::gone(backends));
        tokio::spawn(async move {
            let _slot = slot;
            let closed = kernel.close(&entrance, &namespaces, &gone).await;
            if let Err(error) = sender.answer(request, Answer::Closed(closed)) {
                tracing::debug!(%error, "an agent that is gone asked to close sockets");
            }
            tokio::time::sleep(sockets::AGAIN_AFTER).await;
            let late = kernel.close(&entrance, &namespaces, &gone).await;
            if closed + late > 0 {
                tracing::info!(closed, late, "sockets to removed backends closed");
            }
        });
    }

    fn derived(&mut self, id: &str, identity: u32, spiffe_id: String) -> Result<(), NodeError> {
        let workload = self
            .workloads
            .get_mut(id)
            .ok_or_else(|| NodeError::UnknownWorkload(id.to_owned()))?;
        if workload.placed.cgroup.is_some() {
            self.parts
                .programs
                .set(workload.placed.cgroup_id, workload.placed.endpoint, identity)?;
        }
        workload.placed.derived = Some((identity, spiffe_id));
        if workload.wired.is_some() {
            self.parts.keep(&workload.placed);
        }
        Ok(())
    }

    /// Forgets a workload: closes what was opened for it, removes its cgroup when it is empty.
    fn take_away(&mut self, id: &str) -> Option<()> {
        let mut workload = self.workloads.remove(id)?;
        workload.watching.clear();
        self.unwire(&mut workload);
        let endpoint = workload.placed.endpoint;
        self.parts.kept.iter().for_each(|kept| kept.forget(endpoint));
        Some(())
    }

    fn stop(&mut self, keep_state: bool) {
        for link in std::mem::take(&mut self.links).into_values() {
            link.reader.abort();
        }
        let ids: Vec<String> = self.workloads.keys().cloned().collect();
        if keep_state {
            self.workloads.clear();
        } else {
            for id in ids {
                let _ = self.take_away(&id);
            }
            self.parts.programs.uninstall();
            self.parts.kept.iter().for_each(Kept::close);
        }
        if let Ok(cgroups) = &mut self.parts.cgroups
            && let Err(error) = cgroups.leave(keep_state)
        {
            tracing::warn!(%error, "the node's cgroup stays");
        }
    }
}

fn failure(error: &NodeError) -> Answer {
    Answer::Failure(error.to_string())
}
