//! Listeners, sockets and addresses, made in the namespace of the calling thread.

use crate::NodeError;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};
use weft_handoff::{Family, ListenerKind, SharedListener};

/// Ports that apps see; contracts of the product.
const RUNTIME: [(ListenerKind, u16); 2] = [
    (ListenerKind::RuntimeHttp, 3500),
    (ListenerKind::RuntimeGrpc, 50001),
];
/// Tunnels from other nodes.
const TUNNEL: u16 = 15008;
/// Where the kernel's programs send connections that are to be captured.
const CAPTURE: u16 = 15001;
/// The same for questions to resolvers.
const DNS: u16 = 15053;
/// How many connects wait while no agent accepts; the namespace's `net.core.somaxconn` caps it.
const BACKLOG: i32 = 4096;

/// What a namespace gets: the tunnel on every address it has or will have, the capture listener and the one for
/// questions to resolvers on loopback, and, where apps speak the runtime APIs, those as well.
pub(crate) fn open_all(runtime: bool, place: &str) -> Result<Vec<SharedListener>, NodeError> {
    let mut wanted = vec![
        (
            ListenerKind::Tunnel,
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, TUNNEL)),
        ),
        (
            ListenerKind::Tunnel,
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, TUNNEL)),
        ),
    ];
    let runtime = RUNTIME.into_iter().filter(|_| runtime);
    for (kind, port) in runtime.chain([(ListenerKind::Capture, CAPTURE), (ListenerKind::Dns, DNS)]) {
        wanted.push((kind, SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
        wanted.push((kind, SocketAddr::from((Ipv6Addr::LOCALHOST, port))));
    }
    open(wanted, place)
}

/// A port of a gateway, on every address that the namespace has or will have.
pub(crate) fn open_gateway(port: u16, place: &str) -> Result<Vec<SharedListener>, NodeError> {
    let all: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let wanted = all.map(|ip| (ListenerKind::Gateway, SocketAddr::new(ip, port)));
    open(wanted.into(), place)
}

fn open(wanted: Vec<(ListenerKind, SocketAddr)>, place: &str) -> Result<Vec<SharedListener>, NodeError> {
    let mut listeners = Vec::with_capacity(wanted.len());
    for (kind, address) in wanted {
        let made = match kind {
            ListenerKind::Dns => udp_socket(address),
            _ => tcp_listener(address),
        };
        match made {
            Ok(socket) => {
                listeners.push(SharedListener {
                    kind,
                    address: address.to_string(),
                    socket: Arc::new(socket),
                });
            }
            // A namespace without IPv6 has nobody who could connect to it.
            Err(e)
                if address.is_ipv6()
                    && matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {}
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                return Err(NodeError::PortInUse {
                    address,
                    place: place.to_owned(),
                });
            }
            Err(source) => {
                return Err(NodeError::Listen {
                    address,
                    place: place.to_owned(),
                    source,
                });
            }
        }
    }
    Ok(listeners)
}

fn tcp_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket(
        family,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

fn tcp_listener(address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = tcp_socket(family(address))?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    put(&fd, address)?;
    listen(&fd, Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN))?;
    Ok(fd)
}

/// Without SO_REUSEADDR, with which others could take the port of a UDP socket as well.
fn udp_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family(address), SockType::Datagram, flags, None)?;
    put(&fd, address)?;
    Ok(fd)
}

fn family(address: SocketAddr) -> AddressFamily {
    match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Gives a socket its address, IPv4 and IPv6 apart.
fn put(fd: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv6() {
        setsockopt(fd, sockopt::Ipv6V6Only, &true)?;
    }
    // The namespace's loopback may still be down.
    match address {
        SocketAddr::V4(_) => setsockopt(fd, sockopt::IpFreebind, &true)?,
        SocketAddr::V6(_) => set_ipv6_freebind(fd)?,
    }
    Ok(bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?)
}

fn set_ipv6_freebind(fd: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, which is alive for the call and has the length given.
    let answer = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_FREEBIND,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Unconnected sockets.
pub(crate) fn sockets(family: Family, count: usize) -> io::Result<Vec<OwnedFd>> {
    let family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    (0..count).map(|_| tcp_socket(family)).collect()
}

/// The addresses by which others reach this namespace: neither loopback nor link-local ones.
pub(crate) fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        let Some(address) = interface.address else {
            continue;
        };
        let address = if let Some(v4) = address.as_sockaddr_in() {
            IpAddr::V4(v4.ip())
        } else if let Some(v6) = address.as_sockaddr_in6() {
            IpAddr::V6(v6.ip())
        } else {
            continue;
        };
        let local = match address {
            IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
        };
        if !local && !found.contains(&address) {
            found.push(address);
        }
    }
    Ok(found)
}
