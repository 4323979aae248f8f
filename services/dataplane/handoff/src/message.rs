//! Value types of the messages that both ends use, and reading them from the wire.

use crate::HandoffError;
use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
};
use weft_proto::weft::node::v1 as proto;

/// Most sockets that one request may ask for.
pub const MAX_SOCKETS: usize = 64;

/// Most backends that one request may name.
pub const MAX_BACKENDS: usize = 256;

/// Most ports that gateways may have open on a node.
pub const MAX_GATEWAY_PORTS: usize = 64;

/// The ports of gateways, as the node has them open now.
#[derive(Debug, Default)]
pub struct GatewayPorts {
    /// One for each family of addresses.
    pub listeners: Vec<Listener>,
    /// Those that could not be opened, with one line for the operator.
    pub failures: Vec<(u16, String)>,
}

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListenerKind {
    /// Dapr's HTTP API (3500).
    RuntimeHttp,
    /// Dapr's gRPC API (50001).
    RuntimeGrpc,
    /// Redirected connections (15001).
    Capture,
    /// mTLS tunnels from other nodes (15008).
    Tunnel,
    /// The agent's local gRPC API: a unix socket.
    LocalApi,
    /// SPIFFE's Workload API: a unix socket.
    WorkloadApi,
    /// Hubble's API: a unix socket.
    Hubble,
    /// A port of a gateway.
    Gateway,
    /// Redirected questions to resolvers (15053): a UDP socket.
    Dns,
}

impl ListenerKind {
    /// Whether it is a unix socket; the others are TCP, but for [`ListenerKind::Dns`].
    pub fn is_unix(self) -> bool {
        matches!(self, Self::LocalApi | Self::WorkloadApi | Self::Hubble)
    }

    pub(crate) fn to_wire(self) -> proto::ListenerKind {
        match self {
            Self::RuntimeHttp => proto::ListenerKind::RuntimeHttp,
            Self::RuntimeGrpc => proto::ListenerKind::RuntimeGrpc,
            Self::Capture => proto::ListenerKind::Capture,
            Self::Tunnel => proto::ListenerKind::Tunnel,
            Self::LocalApi => proto::ListenerKind::LocalApi,
            Self::WorkloadApi => proto::ListenerKind::WorkloadApi,
            Self::Hubble => proto::ListenerKind::Hubble,
            Self::Gateway => proto::ListenerKind::Gateway,
            Self::Dns => proto::ListenerKind::Dns,
        }
    }

    fn from_wire(kind: proto::ListenerKind) -> Option<Self> {
        Some(match kind {
            proto::ListenerKind::Unspecified => return None,
            proto::ListenerKind::RuntimeHttp => Self::RuntimeHttp,
            proto::ListenerKind::RuntimeGrpc => Self::RuntimeGrpc,
            proto::ListenerKind::Capture => Self::Capture,
            proto::ListenerKind::Tunnel => Self::Tunnel,
            proto::ListenerKind::LocalApi => Self::LocalApi,
            proto::ListenerKind::WorkloadApi => Self::WorkloadApi,
            proto::ListenerKind::Hubble => Self::Hubble,
            proto::ListenerKind::Gateway => Self::Gateway,
            proto::ListenerKind::Dns => Self::Dns,
        })
    }
}

/// Address family of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The one of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(crate) fn to_wire(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }

    pub(crate) fn from_wire(family: u32) -> Option<Self> {
        match family {
            4 => Some(Self::V4),
            6 => Some(Self::V6),
            _ => None,
        }
    }
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A backend that services have no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoneBackend {
    /// Its protocol.
    pub transport: Transport,
    /// Its address.
    pub backend: SocketAddr,
    /// The addresses of the services that had it. Empty: any service.
    pub services: Vec<SocketAddr>,
}

impl GoneBackend {
    pub(crate) fn to_wire(&self) -> proto::GoneBackend {
        let protocol = match self.transport {
            Transport::Tcp => proto::TransportProtocol::Tcp,
            Transport::Udp => proto::TransportProtocol::Udp,
        };
        proto::GoneBackend {
            protocol: protocol.into(),
            backend: self.backend.to_string(),
            services: self.services.iter().map(ToString::to_string).collect(),
        }
    }

    pub(crate) fn from_wire(gone: proto::GoneBackend) -> Result<Self, HandoffError> {
        let transport = match gone.protocol() {
            proto::TransportProtocol::Tcp => Transport::Tcp,
            proto::TransportProtocol::Udp => Transport::Udp,
            proto::TransportProtocol::Unspecified => {
                return Err(HandoffError::protocol("a backend without its protocol"));
            }
        };
        let address = |text: &str| {
            text.parse()
                .map_err(|_| HandoffError::protocol(format!("`{text}` is no address with a port")))
        };
        Ok(Self {
            transport,
            backend: address(&gone.backend)?,
            services: gone
                .services
                .iter()
                .map(|text| address(text))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// A listening socket as the agent gets it: non-blocking, bound and, unless it is UDP, listening.
///
/// The node and perhaps another agent hold the same socket, so it is only ever closed, never shut
/// down: `shutdown(2)` would end it for all.
#[derive(Debug)]
pub struct Listener {
    /// What it is for.
    pub kind: ListenerKind,
    /// `127.0.0.1:3500`, `[::1]:3500`, or a path for a unix socket.
    pub address: String,
    /// The socket.
    pub socket: OwnedFd,
}

impl Listener {
    /// The address of a TCP or UDP socket; `None` for a unix socket.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.address.parse().ok()
    }

    /// As a TCP listener, ready for `tokio::net::TcpListener::from_std`.
    pub fn into_tcp(self) -> io::Result<TcpListener> {
        if self.kind.is_unix() || self.kind == ListenerKind::Dns {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "this is no TCP listener",
            ));
        }
        Ok(TcpListener::from(self.socket))
    }

    /// As a UDP socket, ready for `tokio::net::UdpSocket::from_std`.
    pub fn into_udp(self) -> io::Result<UdpSocket> {
        if self.kind != ListenerKind::Dns {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "this is no UDP socket",
            ));
        }
        Ok(UdpSocket::from(self.socket))
    }

    /// As a unix listener, ready for `tokio::net::UnixListener::from_std`.
    pub fn into_unix(self) -> io::Result<UnixListener> {
        if !self.kind.is_unix() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "this is a TCP listener",
            ));
        }
        Ok(UnixListener::from(self.socket))
    }

    /// Another handle of the same socket.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            kind: self.kind,
            address: self.address.clone(),
            socket: self.socket.try_clone()?,
        })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Joins listeners as listed with their descriptors, in order. Takes just what it needs.
pub(crate) fn take_listeners(
    listed: Vec<proto::Listener>,
    fds: &mut impl Iterator<Item = OwnedFd>,
) -> Result<Vec<Listener>, HandoffError> {
    let mut listeners = Vec::with_capacity(listed.len().min(crate::wire::MAX_DESCRIPTORS));
    for listener in listed {
        let socket = fds
            .next()
            .ok_or_else(|| HandoffError::protocol("a listener came without its descriptor"))?;
        // A kind that a newer node knows is closed and left out.
        if let Some(kind) = ListenerKind::from_wire(listener.kind()) {
            listeners.push(Listener {
                kind,
                address: listener.address,
                socket,
            });
        }
    }
    Ok(listeners)
}

pub(crate) fn parse_addresses(addresses: Vec<String>) -> Result<Vec<IpAddr>, HandoffError> {
    addresses
        .into_iter()
        .map(|a| {
            a.parse()
                .map_err(|_| HandoffError::protocol(format!("`{a}` is no address")))
        })
        .collect()
}
