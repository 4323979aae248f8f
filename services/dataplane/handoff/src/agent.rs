//! The agent's client: one task owns the socket; handles ask it.

use crate::{
    Family, GatewayPorts, GoneBackend, HANDOFF_FD_ENV, HandoffError, Hello, MAX_BACKENDS, MAX_SOCKETS,
    PlacedWorkload,
    incoming::{Incoming, decode},
    pool::{BATCH, Pool, Taken},
    socket::{self, PacketReceiver, PacketSender},
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket as new_socket};
use prost::Message as _;
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};
use weft_proto::weft::{dataplane::v1::WorkloadSpec, node::v1 as proto};

/// How long an answer may take. Placing a pod opens a dozen sockets; more means trouble.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Requests that may wait to be sent.
const REQUESTS: usize = 256;
/// Events that may wait to be read; beyond it the link is given up.
const EVENTS: usize = 8192;

/// What the node tells unasked.
#[derive(Debug)]
pub enum Event {
    /// Another agent placed a workload, or this one did and gave up waiting for the answer.
    Placed(Box<PlacedWorkload>),
    /// A workload is gone: drop its listeners, deregister it.
    Gone {
        /// The workload's id.
        id: String,
        /// For the log.
        reason: String,
    },
}

/// The node's events, in order. They must be read: an agent that leaves too many loses its link.
#[derive(Debug)]
pub struct Events {
    events: mpsc::Receiver<Event>,
}

impl Events {
    /// The next event; `None` when the node is gone. Cancellation-safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

/// All that a new link starts with.
#[derive(Debug)]
pub struct Connected {
    /// For requests.
    pub link: AgentLink,
    /// What the node has.
    pub hello: Hello,
    /// What is already there.
    pub workloads: Vec<PlacedWorkload>,
    /// What the node tells from now on.
    pub events: Events,
}

/// A handle for requests to the node; clones share the link.
#[derive(Debug, Clone)]
pub struct AgentLink {
    requests: mpsc::Sender<Pending>,
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct Pending {
    message: proto::agent_message::Message,
    answer: oneshot::Sender<Result<Reply, HandoffError>>,
}

#[derive(Debug)]
enum Reply {
    Placed(Box<PlacedWorkload>),
    Sockets(Vec<OwnedFd>),
    Closed(usize),
    GatewayPorts(GatewayPorts),
    Done,
}

impl AgentLink {
    /// The descriptor that `weft-node` left in the environment, if it did. Call it once, early.
    pub fn inherited() -> Result<Option<OwnedFd>, HandoffError> {
        let Ok(number) = std::env::var(HANDOFF_FD_ENV) else {
            return Ok(None);
        };
        let fd: RawFd =
            number.parse().ok().filter(|fd| *fd > 2).ok_or_else(|| {
                HandoffError::protocol(format!("{HANDOFF_FD_ENV}={number} is no descriptor"))
            })?;
        Self::from_number(fd).map(Some)
    }

    /// The inherited descriptor with this number, as `--handoff-fd` gives it. Call it once, early.
    pub fn from_number(fd: RawFd) -> Result<OwnedFd, HandoffError> {
        use nix::fcntl::{FcntlArg, FdFlag, fcntl};
        // SAFETY: only borrowed for this call, which checks whether it is open at all.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
            .map_err(|e| HandoffError::socket("use the inherited descriptor", e.into()))?;
        // SAFETY: it is open, was passed to this process for this purpose and is taken once.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Connects to a node that listens at `path`.
    pub async fn connect(path: &Path) -> Result<Connected, HandoffError> {
        let failed = |e: nix::Error| HandoffError::Path {
            path: path.to_owned(),
            source: e.into(),
            remedy: match e {
                nix::Error::ENOENT | nix::Error::ECONNREFUSED => "start weft-node, or check --run-dir",
                nix::Error::EACCES | nix::Error::EPERM => {
                    "run the agent as the user that weft-node names (--agent-user)"
                }
                _ => "look at weft-node's log",
            },
        };
        let fd = new_socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .map_err(failed)?;
        // Connecting to a local listener either succeeds at once or fails: it is not awaited.
        connect(fd.as_raw_fd(), &UnixAddr::new(path).map_err(failed)?).map_err(failed)?;
        Self::start(fd).await
    }

    /// Says hello over a connected socket and takes what the node hands over.
    pub async fn start(fd: OwnedFd) -> Result<Connected, HandoffError> {
        let (sender, receiver) = socket::split(fd)?;
        tokio::time::timeout(ANSWER_WITHIN, Self::handshake(sender, receiver))
            .await
            .map_err(|_| HandoffError::Timeout {
                request: "hello",
                seconds: ANSWER_WITHIN.as_secs(),
            })?
    }

    async fn handshake(
        mut sender: PacketSender,
        mut receiver: PacketReceiver,
    ) -> Result<Connected, HandoffError> {
        let hello = proto::AgentHello {
            software: weft_model::VERSION.to_owned(),
        };
        sender
            .send(&encode(1, proto::agent_message::Message::Hello(hello)), &[])
            .await?;
        let (hello, count) = match decode(receiver.recv().await?)? {
            (1, Incoming::Hello { hello, workloads }) => (hello, workloads),
            (_, Incoming::Failure(reason)) => return Err(HandoffError::Refused(reason)),
            _ => return Err(HandoffError::protocol("the node did not answer the hello")),
        };
        let pool = Arc::new(Pool::default());
        let mut workloads = Vec::new();
        for _ in 0..count {
            match decode(receiver.recv().await?)? {
                (0, Incoming::Placed(workload)) => {
                    pool.add(&workload.id);
                    workloads.push(*workload);
                }
                _ => return Err(HandoffError::protocol("the node broke off its list of workloads")),
            }
        }
        let (requests, pending) = mpsc::channel(REQUESTS);
        let (events, incoming) = mpsc::channel(EVENTS);
        let driver = Driver {
            sender,
            receiver,
            pending,
            events,
            pool: Arc::clone(&pool),
            waiting: HashMap::new(),
            last_id: 1,
        };
        tokio::spawn(driver.run());
        Ok(Connected {
            link: AgentLink { requests, pool },
            hello: *hello,
            workloads,
            events: Events { events: incoming },
        })
    }

    /// Places a workload. When the caller gives up (or is cancelled) and the node answers later,
    /// the workload comes as [`Event::Placed`].
    pub async fn place(&self, spec: WorkloadSpec) -> Result<PlacedWorkload, HandoffError> {
        let message = proto::agent_message::Message::Place(proto::PlaceWorkload { spec: Some(spec) });
        match self.ask("place", message).await? {
            Reply::Placed(workload) => Ok(*workload),
            _ => Err(HandoffError::protocol("another answer than a workload")),
        }
    }

    /// Takes a workload away: its cgroup and the node's handles of its listeners.
    pub async fn remove(&self, id: &str) -> Result<(), HandoffError> {
        self.pool.remove(id);
        self.ask_done(
            "remove",
            proto::agent_message::Message::Remove(proto::RemoveWorkload { id: id.to_owned() }),
        )
        .await
    }

    /// Tells what the policy service derived, for the kernel's maps and for the next agent.
    pub async fn derived(&self, id: &str, identity: u32, spiffe_id: &str) -> Result<(), HandoffError> {
        let derived = proto::WorkloadDerived {
            id: id.to_owned(),
            identity,
            spiffe_id: spiffe_id.to_owned(),
        };
        self.ask_done("derived", proto::agent_message::Message::Derived(derived))
            .await
    }

    /// Closes, on the whole node, the sockets that services sent to backends they have no more, and
    /// returns how many there were. Any number of backends.
    pub async fn close_sockets(&self, gone: &[GoneBackend]) -> Result<usize, HandoffError> {
        let mut closed = 0usize;
        for some in gone.chunks(MAX_BACKENDS) {
            let close = proto::CloseSockets {
                backends: some.iter().map(GoneBackend::to_wire).collect(),
            };
            match self
                .ask(
                    "close_sockets",
                    proto::agent_message::Message::CloseSockets(close),
                )
                .await?
            {
                Reply::Closed(count) => closed = closed.saturating_add(count),
                _ => return Err(HandoffError::protocol("another answer than a count")),
            }
        }
        Ok(closed)
    }

    /// Asks for listeners on the ports that gateways want, at most [`crate::MAX_GATEWAY_PORTS`]: others that
    /// were open for gateways are closed.
    pub async fn gateway_ports(&self, ports: &BTreeSet<u16>) -> Result<GatewayPorts, HandoffError> {
        let open = proto::OpenGatewayPorts {
            ports: ports.iter().map(|port| u32::from(*port)).collect(),
        };
        let message = proto::agent_message::Message::GatewayPorts(open);
        match self.ask("gateway_ports", message).await? {
            Reply::GatewayPorts(opened) => Ok(opened),
            _ => Err(HandoffError::protocol("another answer than ports")),
        }
    }

    /// Says that this agent accepts on every listener: an agent before it may be drained.
    pub async fn ready(&self) -> Result<(), HandoffError> {
        self.ask_done(
            "ready",
            proto::agent_message::Message::Ready(proto::AgentReady {}),
        )
        .await
    }

    /// Asks for `count` (1 to [`MAX_SOCKETS`]) unconnected, non-blocking TCP sockets made in the
    /// workload's namespace.
    pub async fn open_sockets(
        &self,
        workload: &str,
        family: Family,
        count: usize,
    ) -> Result<Vec<OwnedFd>, HandoffError> {
        let open = proto::OpenSockets {
            workload_id: workload.to_owned(),
            family: family.to_wire(),
            count: u32::try_from(count.clamp(1, MAX_SOCKETS)).unwrap_or(1),
        };
        match self
            .ask("open_sockets", proto::agent_message::Message::OpenSockets(open))
            .await?
        {
            Reply::Sockets(sockets) => Ok(sockets),
            _ => Err(HandoffError::protocol("another answer than sockets")),
        }
    }

    /// One such socket, from a small pool that is refilled in the background.
    pub async fn socket(&self, workload: &str, family: Family) -> Result<OwnedFd, HandoffError> {
        match self.pool.take(workload, family) {
            Taken::Socket { socket, refill } => {
                if refill {
                    let (link, workload) = (self.clone(), workload.to_owned());
                    tokio::spawn(async move {
                        match link.open_sockets(&workload, family, BATCH).await {
                            Ok(sockets) => link.pool.put(&workload, family, sockets),
                            // Whoever finds the shelf empty asks again and gets the reason.
                            Err(error) => tracing::debug!(%workload, %error, "no new sockets"),
                        }
                        link.pool.refilled(&workload, family);
                    });
                }
                Ok(socket)
            }
            Taken::Empty => {
                let mut sockets = self.open_sockets(workload, family, BATCH).await?;
                let socket = sockets
                    .pop()
                    .ok_or_else(|| HandoffError::protocol("no sockets in the answer"))?;
                self.pool.put(workload, family, sockets);
                Ok(socket)
            }
            Taken::Unknown => Err(HandoffError::Refused(format!(
                "workload {workload} is not on this node"
            ))),
        }
    }

    /// Resolves when the node is gone.
    pub async fn closed(&self) {
        self.requests.closed().await;
    }

    async fn ask_done(
        &self,
        name: &'static str,
        message: proto::agent_message::Message,
    ) -> Result<(), HandoffError> {
        match self.ask(name, message).await? {
            Reply::Done => Ok(()),
            _ => Err(HandoffError::protocol("another answer than done")),
        }
    }

    async fn ask(
        &self,
        name: &'static str,
        message: proto::agent_message::Message,
    ) -> Result<Reply, HandoffError> {
        let (answer, answered) = oneshot::channel();
        let exchange = async {
            self.requests
                .send(Pending { message, answer })
                .await
                .map_err(|_| HandoffError::Closed)?;
            answered.await.map_err(|_| HandoffError::Closed)?
        };
        tokio::time::timeout(ANSWER_WITHIN, exchange)
            .await
            .map_err(|_| HandoffError::Timeout {
                request: name,
                seconds: ANSWER_WITHIN.as_secs(),
            })?
    }
}

/// Owns the socket and every request under way.
struct Driver {
    sender: PacketSender,
    receiver: PacketReceiver,
    pending: mpsc::Receiver<Pending>,
    events: mpsc::Sender<Event>,
    pool: Arc<Pool>,
    waiting: HashMap<u64, oneshot::Sender<Result<Reply, HandoffError>>>,
    last_id: u64,
}

impl Driver {
    async fn run(mut self) {
        let end = self.exchange().await;
        // Sockets of a lost link would keep namespaces alive that nobody watches any more.
        self.pool.clear();
        match end {
            Ok(()) => {}
            Err(HandoffError::Closed) => {
                tracing::warn!("weft-node is gone: no workload can be placed until it is back")
            }
            Err(error) => tracing::error!(%error, "the link to weft-node is lost"),
        }
    }

    /// Ends well when every handle is dropped.
    async fn exchange(&mut self) -> Result<(), HandoffError> {
        let mut outgoing: VecDeque<Vec<u8>> = VecDeque::new();
        loop {
            // Requests are single packets, so a send that is cancelled here has not happened.
            tokio::select! {
                received = self.receiver.recv() => self.take(decode(received?)?)?,
                sent = send_first(&mut self.sender, &outgoing), if !outgoing.is_empty() => {
                    sent?;
                    outgoing.pop_front();
                }
                request = self.pending.recv(), if outgoing.len() < REQUESTS => {
                    let Some(Pending { message, answer }) = request else { return Ok(()) };
                    self.last_id += 1;
                    let encoded = encode(self.last_id, message);
                    match crate::wire::plan(encoded.len(), 0) {
                        Ok(_) => {
                            self.waiting.insert(self.last_id, answer);
                            outgoing.push_back(encoded);
                        }
                        Err(error) => drop(answer.send(Err(error))),
                    }
                }
            }
        }
    }

    fn take(&mut self, (id, incoming): (u64, Incoming)) -> Result<(), HandoffError> {
        let reply = match incoming {
            Incoming::Gone { id, reason } => {
                self.pool.remove(&id);
                return self.tell(Event::Gone { id, reason });
            }
            Incoming::Hello { .. } => return Err(HandoffError::protocol("a second hello")),
            Incoming::Placed(workload) => {
                self.pool.add(&workload.id);
                if id == 0 {
                    return self.tell(Event::Placed(workload));
                }
                Ok(Reply::Placed(workload))
            }
            Incoming::Sockets(sockets) => Ok(Reply::Sockets(sockets)),
            Incoming::Closed(count) => Ok(Reply::Closed(count)),
            Incoming::GatewayPorts(opened) => Ok(Reply::GatewayPorts(opened)),
            Incoming::Done => Ok(Reply::Done),
            Incoming::Failure(reason) => Err(HandoffError::Refused(reason)),
        };
        let Some(waiting) = self.waiting.remove(&id) else {
            return Err(HandoffError::protocol(format!(
                "an answer to request {id}, which was not asked"
            )));
        };
        match waiting.send(reply) {
            // Nobody waits any more, but the workload is there.
            Err(Ok(Reply::Placed(workload))) => self.tell(Event::Placed(workload)),
            _ => Ok(()),
        }
    }

    fn tell(&self, event: Event) -> Result<(), HandoffError> {
        match self.events.try_send(event) {
            Err(mpsc::error::TrySendError::Full(_)) => Err(HandoffError::protocol(format!(
                "{EVENTS} events were left unread"
            ))),
            // Whoever dropped the events does not want them.
            _ => Ok(()),
        }
    }
}

async fn send_first(sender: &mut PacketSender, outgoing: &VecDeque<Vec<u8>>) -> Result<(), HandoffError> {
    match outgoing.front() {
        Some(message) => sender.send(message, &[]).await,
        None => Ok(()),
    }
}

fn encode(request_id: u64, message: proto::agent_message::Message) -> Vec<u8> {
    proto::AgentMessage {
        request_id,
        message: Some(message),
    }
    .encode_to_vec()
}
