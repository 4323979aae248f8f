//! What the node says, from packets to values.

use crate::{
    GatewayPorts, HandoffError, Listener,
    message::{parse_addresses, take_listeners},
    wire::Received,
};
use prost::Message as _;
use std::{collections::HashMap, net::IpAddr, os::fd::OwnedFd, path::PathBuf};
use weft_proto::weft::{
    dataplane::v1::{Capability, WorkloadSpec},
    node::v1 as proto,
};

/// What the node said at the start.
#[derive(Debug)]
pub struct Hello {
    /// The node's name.
    pub node: String,
    /// The node's version.
    pub software: String,
    /// What is enforced, what is not and why.
    pub capabilities: Vec<Capability>,
    /// The node's own listeners: runtime APIs for processes, tunnel, local API.
    pub listeners: Vec<Listener>,
    /// BPF maps by name.
    pub maps: HashMap<String, OwnedFd>,
    /// The node's own addresses.
    pub addresses: Vec<IpAddr>,
}

/// A workload that the node has placed.
#[derive(Debug)]
pub struct PlacedWorkload {
    /// `<node>/<namespace>/<name>/<start>`.
    pub id: String,
    /// As asked for.
    pub spec: WorkloadSpec,
    /// Inside its namespace; empty for processes.
    pub listeners: Vec<Listener>,
    /// Where its processes are to be put.
    pub cgroup: Option<PathBuf>,
    /// The cgroup's kernel id; 0 without one.
    pub cgroup_id: u64,
    /// Its number in the kernel's maps; 0 from a node that does not tell.
    pub endpoint: u32,
    /// A pod's addresses as read in its namespace.
    pub addresses: Vec<IpAddr>,
    /// Numeric identity and SPIFFE ID, when an earlier agent told them.
    pub derived: Option<(u32, String)>,
}

/// A message as the agent's driver takes it.
#[derive(Debug)]
pub(crate) enum Incoming {
    Hello { hello: Box<Hello>, workloads: usize },
    Placed(Box<PlacedWorkload>),
    Gone { id: String, reason: String },
    Sockets(Vec<OwnedFd>),
    Closed(usize),
    GatewayPorts(GatewayPorts),
    Done,
    Failure(String),
}

/// Reads a message and gives each descriptor its owner.
pub(crate) fn decode(received: Received) -> Result<(u64, Incoming), HandoffError> {
    use proto::node_message::Message;
    let message = proto::NodeMessage::decode(received.message.as_slice())
        .map_err(|e| HandoffError::protocol(format!("the node's message: {e}")))?;
    let mut fds = received.descriptors.into_iter();
    let incoming = match message.message {
        Some(Message::Hello(hello)) => {
            let listeners = take_listeners(hello.listeners, &mut fds)?;
            let mut maps = HashMap::new();
            for name in hello.maps {
                let map = fds
                    .next()
                    .ok_or_else(|| HandoffError::protocol("a map came without its descriptor"))?;
                maps.insert(name, map);
            }
            let workloads = usize::try_from(hello.workloads).unwrap_or(usize::MAX);
            let hello = Hello {
                node: hello.node,
                software: hello.software,
                capabilities: hello.capabilities,
                listeners,
                maps,
                addresses: parse_addresses(hello.addresses)?,
            };
            Incoming::Hello {
                hello: Box::new(hello),
                workloads,
            }
        }
        Some(Message::Placed(placed)) => Incoming::Placed(Box::new(PlacedWorkload {
            id: placed.id,
            spec: placed
                .spec
                .ok_or_else(|| HandoffError::protocol("a workload without its specification"))?,
            listeners: take_listeners(placed.listeners, &mut fds)?,
            cgroup: Some(placed.cgroup)
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            cgroup_id: placed.cgroup_id,
            endpoint: placed.endpoint,
            addresses: parse_addresses(placed.addresses)?,
            derived: placed
                .derived
                .map(|derived| (derived.identity, derived.spiffe_id)),
        })),
        Some(Message::Gone(gone)) => Incoming::Gone {
            id: gone.id,
            reason: gone.reason,
        },
        Some(Message::Sockets(sockets)) => {
            let taken: Vec<OwnedFd> = fds.by_ref().collect();
            if taken.len() != usize::try_from(sockets.count).unwrap_or(usize::MAX) {
                return Err(HandoffError::protocol("sockets are missing"));
            }
            Incoming::Sockets(taken)
        }
        Some(Message::SocketsClosed(closed)) => {
            Incoming::Closed(usize::try_from(closed.count).unwrap_or(usize::MAX))
        }
        Some(Message::GatewayPorts(opened)) => {
            let failure = |failure: proto::PortFailure| {
                let port = u16::try_from(failure.port).unwrap_or(0);
                (port, failure.reason)
            };
            Incoming::GatewayPorts(GatewayPorts {
                listeners: take_listeners(opened.listeners, &mut fds)?,
                failures: opened.failures.into_iter().map(failure).collect(),
            })
        }
        Some(Message::Done(_)) => Incoming::Done,
        Some(Message::Failure(failure)) => Incoming::Failure(failure.reason),
        None => return Err(HandoffError::protocol("the node's message is of an unknown kind")),
    };
    if fds.next().is_some() {
        return Err(HandoffError::protocol("more descriptors than the message lists"));
    }
    Ok((message.request_id, incoming))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fds(n: usize) -> Vec<OwnedFd> {
        let null = std::fs::File::open("/dev/null").unwrap();
        (0..n).map(|_| null.try_clone().unwrap().into()).collect()
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(message in prop::collection::vec(any::<u8>(), 0..512), n in 0usize..5) {
            let _ = decode(Received { message, descriptors: fds(n) });
        }

        /// The number of descriptors must be what the message lists, whatever else is in it.
        #[test]
        fn descriptors_are_counted(listeners in 0usize..4, maps in 0usize..4, n in 0usize..9) {
            let hello = proto::NodeHello {
                listeners: vec![proto::Listener { kind: 1, address: "127.0.0.1:3500".into() }; listeners],
                maps: (0..maps).map(|i| format!("map{i}")).collect(),
                ..Default::default()
            };
            let message = proto::NodeMessage {
                request_id: 1,
                message: Some(proto::node_message::Message::Hello(hello)),
            }
            .encode_to_vec();
            let decoded = decode(Received { message, descriptors: fds(n) });
            prop_assert_eq!(decoded.is_ok(), n == listeners + maps);
        }
    }
}
