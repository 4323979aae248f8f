//! The node's end: who may connect, what agents ask, what they are told.

use crate::{
    Family, GoneBackend, HandoffError, ListenerKind, MAX_BACKENDS, MAX_GATEWAY_PORTS, MAX_SOCKETS,
    socket::{self, PacketReceiver, PacketSender},
};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, getsockopt, listen,
    socket as new_socket, sockopt,
};
use prost::Message as _;
use std::{
    collections::BTreeSet,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
};
use weft_proto::weft::{
    dataplane::v1::{Capability, WorkloadSpec},
    node::v1 as proto,
};

/// What may wait for an agent that does not read; beyond it the link is given up. All workloads of
/// a node follow its hello at once.
const QUEUE: usize = 8192;

/// A listening socket that the node keeps and shares.
#[derive(Debug, Clone)]
pub struct SharedListener {
    /// What it is for.
    pub kind: ListenerKind,
    /// The bound address or path.
    pub address: String,
    /// The socket.
    pub socket: Arc<OwnedFd>,
}

/// A workload as placed by the node.
#[derive(Debug, Clone)]
pub struct Placed {
    /// `<node>/<namespace>/<name>/<start>`.
    pub id: String,
    /// As asked for.
    pub spec: WorkloadSpec,
    /// Inside its namespace; empty for processes.
    pub listeners: Vec<SharedListener>,
    /// Where its processes are to be put.
    pub cgroup: Option<PathBuf>,
    /// The cgroup's inode number; 0 without one.
    pub cgroup_id: u64,
    /// Its number in the kernel's maps.
    pub endpoint: u32,
    /// A pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Numeric identity and SPIFFE ID, once an agent has told them.
    pub derived: Option<(u32, String)>,
}

/// What answers an agent's hello.
#[derive(Debug, Clone, Default)]
pub struct HelloAnswer {
    /// The node's name.
    pub node: String,
    /// What is enforced and what is not.
    pub capabilities: Vec<Capability>,
    /// The node's own listeners.
    pub listeners: Vec<SharedListener>,
    /// BPF maps by name.
    pub maps: Vec<(String, Arc<OwnedFd>)>,
    /// The node's addresses.
    pub addresses: Vec<IpAddr>,
    /// Workloads that are already there.
    pub workloads: Vec<Placed>,
}

/// What an agent asks.
#[derive(Debug)]
pub enum AgentRequest {
    /// The first message: who is there. Answered by [`NodeSender::hello`].
    Hello {
        /// The agent's version.
        software: String,
    },
    /// Place a workload. Answered by [`Answer::Placed`].
    Place(Box<WorkloadSpec>),
    /// Take a workload away. Answered by [`Answer::Done`].
    Remove {
        /// The workload's id.
        id: String,
    },
    /// Make sockets. Answered by [`Answer::Sockets`].
    OpenSockets {
        /// The workload's id.
        workload: String,
        /// Of the sockets.
        family: Family,
        /// At most [`MAX_SOCKETS`].
        count: usize,
    },
    /// What the policy service derived. Answered by [`Answer::Done`].
    Derived {
        /// The workload's id.
        id: String,
        /// Its numeric identity.
        identity: u32,
        /// Its SPIFFE ID.
        spiffe_id: String,
    },
    /// Listen on these ports for gateways, and on no others. Answered by [`Answer::GatewayPorts`].
    GatewayPorts(BTreeSet<u16>),
    /// Close sockets whose backend is gone. Answered by [`Answer::Closed`].
    CloseSockets(Vec<GoneBackend>),
    /// The agent serves all its listeners. Answered by [`Answer::Done`].
    Ready,
}

/// A request with the number that its answer repeats.
#[derive(Debug)]
pub struct Request {
    /// For [`NodeSender::answer`].
    pub id: u64,
    /// What is asked.
    pub message: AgentRequest,
}

/// Answers to requests other than the hello.
#[derive(Debug)]
pub enum Answer {
    /// The workload and its listeners.
    Placed(Box<Placed>),
    /// The sockets; they are closed here once sent.
    Sockets(Vec<OwnedFd>),
    /// How many sockets were closed.
    Closed(usize),
    /// The listeners of gateways, and the ports that could not be had with the reason.
    GatewayPorts(Vec<SharedListener>, Vec<(u16, String)>),
    /// Nothing to tell.
    Done,
    /// One line for the operator.
    Failure(String),
}

/// The receiving half of one agent's link.
#[derive(Debug)]
pub struct NodeLink {
    receiver: PacketReceiver,
}

/// The sending half: a queue that a task of its own empties, so that an agent that does not read
/// holds up nobody.
#[derive(Debug, Clone)]
pub struct NodeSender {
    queue: mpsc::Sender<Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    message: Vec<u8>,
    fds: Vec<Arc<OwnedFd>>,
}

impl NodeLink {
    /// Takes over a connected socket. Must be called in a runtime.
    pub fn start(fd: OwnedFd) -> Result<(Self, NodeSender), HandoffError> {
        let (sender, receiver) = socket::split(fd)?;
        let (queue, outgoing) = mpsc::channel(QUEUE);
        tokio::spawn(send_all(sender, outgoing));
        Ok((Self { receiver }, NodeSender { queue }))
    }

    /// The next request; an error ends the link. Cancellation-safe.
    pub async fn recv(&mut self) -> Result<Request, HandoffError> {
        let received = self.receiver.recv().await?;
        if !received.descriptors.is_empty() {
            return Err(HandoffError::protocol("an agent sent descriptors"));
        }
        decode(&received.message)
    }
}

async fn send_all(mut sender: PacketSender, mut outgoing: mpsc::Receiver<Outgoing>) {
    while let Some(Outgoing { message, fds }) = outgoing.recv().await {
        let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        if let Err(error) = sender.send(&message, &borrowed).await {
            // Dropping the receiver tells every sender; the reading half notices by itself.
            tracing::debug!(%error, "an agent's link ended while sending");
            return;
        }
    }
}

impl NodeSender {
    /// Answers [`AgentRequest::Hello`]: what the node has, then each workload.
    pub fn hello(&self, request: u64, hello: HelloAnswer) -> Result<(), HandoffError> {
        let mut fds = Vec::with_capacity(hello.listeners.len() + hello.maps.len());
        let listeners = list(hello.listeners, &mut fds);
        let mut maps = Vec::with_capacity(hello.maps.len());
        for (name, map) in hello.maps {
            maps.push(name);
            fds.push(map);
        }
        let message = proto::NodeHello {
            node: hello.node,
            capabilities: hello.capabilities,
            listeners,
            maps,
            workloads: u32::try_from(hello.workloads.len()).unwrap_or(u32::MAX),
            addresses: hello.addresses.iter().map(ToString::to_string).collect(),
            software: weft_model::VERSION.to_owned(),
        };
        self.send(request, proto::node_message::Message::Hello(message), fds)?;
        hello
            .workloads
            .into_iter()
            .try_for_each(|workload| self.placed(workload))
    }

    /// Answers a request.
    pub fn answer(&self, request: u64, answer: Answer) -> Result<(), HandoffError> {
        use proto::node_message::Message;
        let mut fds = Vec::new();
        let message = match answer {
            Answer::Placed(placed) => Message::Placed(placed_message(*placed, &mut fds)),
            Answer::Sockets(sockets) => {
                fds = sockets.into_iter().map(Arc::new).collect();
                Message::Sockets(proto::SocketsOpened {
                    count: u32::try_from(fds.len()).unwrap_or(u32::MAX),
                })
            }
            Answer::Closed(count) => Message::SocketsClosed(proto::SocketsClosed {
                count: u32::try_from(count).unwrap_or(u32::MAX),
            }),
            Answer::GatewayPorts(listeners, failures) => Message::GatewayPorts(proto::GatewayPortsOpened {
                listeners: list(listeners, &mut fds),
                failures: failures
                    .into_iter()
                    .map(|(port, reason)| proto::PortFailure {
                        port: port.into(),
                        reason,
                    })
                    .collect(),
            }),
            Answer::Done => Message::Done(proto::Done {}),
            Answer::Failure(reason) => Message::Failure(proto::Failure { reason }),
        };
        self.send(request, message, fds)
    }

    /// Tells of a workload that this agent did not place itself.
    pub fn placed(&self, placed: Placed) -> Result<(), HandoffError> {
        let mut fds = Vec::new();
        let message = placed_message(placed, &mut fds);
        self.send(0, proto::node_message::Message::Placed(message), fds)
    }

    /// Tells that a workload is gone.
    pub fn gone(&self, id: &str, reason: &str) -> Result<(), HandoffError> {
        let message = proto::WorkloadGone {
            id: id.to_owned(),
            reason: reason.to_owned(),
        };
        self.send(0, proto::node_message::Message::Gone(message), Vec::new())
    }

    fn send(
        &self,
        request_id: u64,
        message: proto::node_message::Message,
        fds: Vec<Arc<OwnedFd>>,
    ) -> Result<(), HandoffError> {
        let message = proto::NodeMessage {
            request_id,
            message: Some(message),
        }
        .encode_to_vec();
        crate::wire::plan(message.len(), fds.len())?;
        self.queue
            .try_send(Outgoing { message, fds })
            .map_err(|e| match e {
                mpsc::error::TrySendError::Full(_) => {
                    HandoffError::protocol(format!("the agent left {QUEUE} messages unread"))
                }
                mpsc::error::TrySendError::Closed(_) => HandoffError::Closed,
            })
    }
}

fn list(listeners: Vec<SharedListener>, fds: &mut Vec<Arc<OwnedFd>>) -> Vec<proto::Listener> {
    listeners
        .into_iter()
        .map(|listener| {
            fds.push(listener.socket);
            proto::Listener {
                kind: listener.kind.to_wire().into(),
                address: listener.address,
            }
        })
        .collect()
}

fn placed_message(placed: Placed, fds: &mut Vec<Arc<OwnedFd>>) -> proto::WorkloadPlaced {
    proto::WorkloadPlaced {
        derived: placed
            .derived
            .map(|(identity, spiffe_id)| proto::WorkloadDerived {
                id: placed.id.clone(),
                identity,
                spiffe_id,
            }),
        id: placed.id,
        spec: Some(placed.spec),
        listeners: list(placed.listeners, fds),
        cgroup: placed
            .cgroup
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default(),
        cgroup_id: placed.cgroup_id,
        endpoint: placed.endpoint,
        addresses: placed.addresses.iter().map(ToString::to_string).collect(),
    }
}

pub(crate) fn decode(message: &[u8]) -> Result<Request, HandoffError> {
    use proto::agent_message::Message;
    let message = proto::AgentMessage::decode(message)
        .map_err(|e| HandoffError::protocol(format!("an agent's message: {e}")))?;
    let id = message.request_id;
    let message = match message.message {
        Some(Message::Hello(hello)) => AgentRequest::Hello {
            software: hello.software,
        },
        Some(Message::Place(place)) => AgentRequest::Place(Box::new(
            place
                .spec
                .ok_or_else(|| HandoffError::protocol("a workload without its specification"))?,
        )),
        Some(Message::GatewayPorts(open)) => {
            if open.ports.len() > MAX_GATEWAY_PORTS {
                return Err(HandoffError::protocol(format!(
                    "{} ports for gateways; {MAX_GATEWAY_PORTS} are allowed",
                    open.ports.len()
                )));
            }
            let port = |port: &u32| u16::try_from(*port).ok().filter(|port| *port != 0);
            let ports: Option<BTreeSet<u16>> = open.ports.iter().map(port).collect();
            let ports = ports.ok_or_else(|| HandoffError::protocol("a gateway's port that is none"))?;
            AgentRequest::GatewayPorts(ports)
        }
        Some(Message::Remove(remove)) => AgentRequest::Remove { id: remove.id },
        Some(Message::OpenSockets(open)) => {
            let count = usize::try_from(open.count).unwrap_or(usize::MAX);
            if count == 0 || count > MAX_SOCKETS {
                return Err(HandoffError::protocol(format!(
                    "{count} sockets asked for, 1 to {MAX_SOCKETS} may be"
                )));
            }
            let family = Family::from_wire(open.family)
                .ok_or_else(|| HandoffError::protocol(format!("address family {}", open.family)))?;
            AgentRequest::OpenSockets {
                workload: open.workload_id,
                family,
                count,
            }
        }
        Some(Message::Derived(derived)) => AgentRequest::Derived {
            id: derived.id,
            identity: derived.identity,
            spiffe_id: derived.spiffe_id,
        },
        Some(Message::CloseSockets(close)) => {
            if close.backends.len() > MAX_BACKENDS {
                return Err(HandoffError::protocol(format!(
                    "{} backends named, at most {MAX_BACKENDS} may be",
                    close.backends.len()
                )));
            }
            let backends = close.backends.into_iter().map(GoneBackend::from_wire);
            AgentRequest::CloseSockets(backends.collect::<Result<_, _>>()?)
        }
        Some(Message::Ready(_)) => AgentRequest::Ready,
        None => return Err(HandoffError::protocol("an agent's message of an unknown kind")),
    };
    Ok(Request { id, message })
}

/// Where agents that the node did not start itself connect.
#[derive(Debug)]
pub struct NodeListener {
    socket: AsyncFd<OwnedFd>,
    path: PathBuf,
    allowed_uid: u32,
}

impl NodeListener {
    /// Binds `path` for the user `allowed_uid`. A socket that is left there is replaced. Must be
    /// called in a runtime.
    pub fn bind(path: &Path, allowed_uid: u32) -> Result<Self, HandoffError> {
        let fd = listen_at(path, allowed_uid).map_err(|source| HandoffError::Path {
            path: path.to_owned(),
            source,
            remedy: "check that its folder exists and may be written (--run-dir)",
        })?;
        // SAFETY: the `OwnedFd` is moved in; the `AsyncFd` alone owns and closes it.
        let socket = unsafe { AsyncFd::register(fd) }
            .map_err(|e| HandoffError::socket("register with the event loop", e.into()))?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            allowed_uid,
        })
    }

    /// The next agent's connection. [`HandoffError::Peer`] says that somebody else was turned
    /// away; the listener stays usable. Cancellation-safe.
    pub async fn accept(&self) -> Result<OwnedFd, HandoffError> {
        let fd = self
            .socket
            .async_io(Interest::READABLE, |socket| {
                let fd = accept4(
                    socket.as_raw_fd(),
                    SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                )?;
                // SAFETY: accept4 has just made this descriptor; nobody else has it.
                Ok(unsafe { OwnedFd::from_raw_fd(fd) })
            })
            .await
            .map_err(|e| HandoffError::socket("accept an agent", e))?;
        let peer = getsockopt(&fd, sockopt::PeerCredentials)
            .map_err(|e| HandoffError::socket("read who connects", e.into()))?;
        if peer.uid() != self.allowed_uid {
            return Err(HandoffError::Peer {
                pid: peer.pid(),
                uid: peer.uid(),
                allowed: self.allowed_uid,
            });
        }
        Ok(fd)
    }
}

/// A listening socket that appears at `path` only when its owner alone may connect; each
/// connection's uid is checked again all the same.
fn listen_at(path: &Path, owner: u32) -> std::io::Result<OwnedFd> {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    let mut before = path.as_os_str().to_owned();
    before.push(".new");
    let before = PathBuf::from(before);
    match std::fs::remove_file(&before) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = new_socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(&before)?)?;
    chown(&before, Some(owner), None)?;
    std::fs::set_permissions(&before, std::fs::Permissions::from_mode(0o600))?;
    listen(&fd, Backlog::new(16).unwrap_or(Backlog::MAXCONN))?;
    std::fs::rename(&before, path)?;
    Ok(fd)
}

impl Drop for NodeListener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode(&bytes);
        }

        /// Damaged messages of the right shape reach further than noise does.
        #[test]
        fn damaged_messages_are_answered(
            count in any::<u32>(), family in 0u32..8, at in any::<prop::sample::Index>(), with in any::<u8>(),
        ) {
            let open = proto::OpenSockets { workload_id: "n/default/a/1".into(), family, count };
            let mut bytes = proto::AgentMessage {
                request_id: 3,
                message: Some(proto::agent_message::Message::OpenSockets(open)),
            }
            .encode_to_vec();
            let whole = decode(&bytes);
            let fits = (1..=MAX_SOCKETS as u32).contains(&count) && (family == 4 || family == 6);
            prop_assert_eq!(whole.is_ok(), fits);
            let at = at.index(bytes.len());
            bytes[at] = with;
            let _ = decode(&bytes);
        }
    }
}
