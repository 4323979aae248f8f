//! `sock_diag(7)`: listing the sockets of a network namespace with what the programs keep on them,
//! and closing one.
//!
//! Owns the layouts of the netlink messages. Which sockets are meant is its caller's business.

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Flags in an attribute's type.
const NLA_TYPE: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;
/// Of a request and of its answer: see `linux/inet_diag.h` and `linux/sock_diag.h`.
const REQ_SK_BPF_STORAGES: u16 = 2;
const REQ_MAP_FD: u16 = 1;
const SK_BPF_STORAGES: u16 = 20;
const BPF_STORAGE: u16 = 1;
const BPF_STORAGE_VALUE: u16 = 3;

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_sockid`.
const ID: usize = 48;
/// `struct inet_diag_req_v2`: eight bytes and the id.
const REQUEST: usize = 8 + ID;
/// `struct inet_diag_msg`: four bytes, the id, five words.
const MESSAGE: usize = 4 + ID + 20;
/// The kernel sends at most 32 KiB at once unless one socket needs more.
const BUFFER: usize = 1 << 17;
/// An answer that takes longer does not come: the kernel answers from the caller's own context.
const PATIENCE: i64 = 10;

/// Sockets that have a peer and are not about to vanish: established, SYN sent, closing in any way.
pub(crate) const WITH_PEER: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// A UDP socket that is connected.
pub(crate) const CONNECTED: u32 = 1 << 1;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query<'a> {
    pub(crate) family: AddressFamily,
    /// `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub(crate) protocol: u8,
    /// States by their bits.
    pub(crate) states: u32,
    /// The peer's port; 0: any.
    pub(crate) port: u16,
    /// A socket-storage map whose values come with the sockets; the kernel tells them of TCP only.
    pub(crate) storage: Option<BorrowedFd<'a>>,
}

/// A socket as the kernel names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    family: u8,
    protocol: u8,
    id: [u8; ID],
    pub(crate) peer: SocketAddr,
    /// A process still has it. Others end by themselves.
    pub(crate) held: bool,
    /// The storage's value, if the socket has one.
    pub(crate) value: Option<Vec<u8>>,
}

impl Found {
    /// `SO_COOKIE`: two words, the lower first.
    pub(crate) fn cookie(&self) -> u64 {
        let word = |at: usize| {
            let bytes = [self.id[at], self.id[at + 1], self.id[at + 2], self.id[at + 3]];
            u64::from(u32::from_ne_bytes(bytes))
        };
        word(ID - 8) | word(ID - 4) << 32
    }
}

/// A network namespace's sockets. It stays with the namespace in which it was opened, whichever
/// thread uses it later.
#[derive(Debug)]
pub struct NamespaceSockets {
    fd: OwnedFd,
}

impl NamespaceSockets {
    /// Opens the sockets of the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
        Ok(Self { fd })
    }

    /// All sockets that match, with their values. It may be called again only after it has ended.
    pub(crate) fn list(&mut self, query: &Query<'_>) -> io::Result<Vec<Found>> {
        send(self.fd.as_raw_fd(), &list_request(query), MsgFlags::empty())?;
        let mut found = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC)?;
            let packet = buffer
                .get(..length)
                .ok_or_else(|| io::Error::other("the kernel's answer is larger than expected"))?;
            for (kind, payload) in messages(packet) {
                match kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => return Err(error_in(payload)),
                    SOCK_DIAG_BY_FAMILY => found.extend(read_message(payload, query.protocol)),
                    _ => {}
                }
            }
        }
    }

    /// Whether closing is something that the kernel does, for us.
    pub(crate) fn can_close(&mut self) -> io::Result<()> {
        let nobody = Found {
            // A family is a small number in a header of one byte.
            family: AddressFamily::Inet as i32 as u8,
            protocol: 6,
            id: [0; ID],
            peer: SocketAddr::from(([0, 0, 0, 0], 0)),
            held: false,
            value: None,
        };
        self.close(&nobody).map(drop)
    }

    /// Closes a socket as an abort does. False if it is gone already.
    pub(crate) fn close(&mut self, socket: &Found) -> io::Result<bool> {
        let body = request(socket.family, socket.protocol, 0, &socket.id);
        send(
            self.fd.as_raw_fd(),
            &message(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, &body),
            MsgFlags::empty(),
        )?;
        let mut buffer = [0; 4096];
        loop {
            let length = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (kind, payload) in messages(&buffer[..length]) {
                if kind == NLMSG_ERROR {
                    let error = error_in(payload);
                    return match error.raw_os_error() {
                        Some(0) => Ok(true),
                        Some(libc::ENOENT) => Ok(false),
                        _ => Err(error),
                    };
                }
            }
        }
    }
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + body.len());
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    // Sequence and sender: one question at a time on a socket of its own needs neither.
    out.extend([0; 8]);
    out.extend(body);
    out
}

fn request(family: u8, protocol: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut out = Vec::with_capacity(REQUEST);
    out.extend([family, protocol, 0, 0]);
    out.extend(states.to_ne_bytes());
    out.extend(id);
    out
}

fn list_request(query: &Query<'_>) -> Vec<u8> {
    let mut id = [0; ID];
    id[2..4].copy_from_slice(&query.port.to_be_bytes());
    // A family is a small number in a header of one byte.
    let mut body = request(query.family as i32 as u8, query.protocol, query.states, &id);
    if let Some(map) = query.storage {
        body.extend(attribute_head(REQ_SK_BPF_STORAGES | NLA_F_NESTED, 4 + 4));
        body.extend(attribute_head(REQ_MAP_FD, size_of::<u32>()));
        body.extend(map.as_raw_fd().to_ne_bytes());
    }
    message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, &body)
}

fn attribute_head(kind: u16, payload: usize) -> [u8; 4] {
    let length = u16::try_from(4 + payload).unwrap_or(u16::MAX).to_ne_bytes();
    let kind = kind.to_ne_bytes();
    [length[0], length[1], kind[0], kind[1]]
}

/// Type and payload of each message in a packet; what is cut off ends it.
fn messages(packet: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = packet;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        let payload = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// Type and payload of each attribute.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & NLA_TYPE;
        let payload = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The kernel's answer to a request; error 0 says that it was done.
fn error_in(payload: &[u8]) -> io::Error {
    match payload.first_chunk() {
        Some(number) => io::Error::from_raw_os_error(i32::from_ne_bytes(*number).saturating_neg()),
        None => io::Error::other("the kernel's answer is cut off"),
    }
}

fn read_message(payload: &[u8], protocol: u8) -> Option<Found> {
    let family = *payload.first()?;
    let id: [u8; ID] = payload.get(4..4 + ID)?.try_into().ok()?;
    let port = u16::from_be_bytes([id[2], id[3]]);
    let address = if i32::from(family) == libc::AF_INET {
        let octets: [u8; 4] = id[20..24].try_into().ok()?;
        IpAddr::from(Ipv4Addr::from(octets))
    } else {
        let octets: [u8; 16] = id[20..36].try_into().ok()?;
        IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
    };
    let value = attributes(payload.get(MESSAGE..)?)
        .filter(|(kind, _)| *kind == SK_BPF_STORAGES)
        .flat_map(|(_, storages)| attributes(storages))
        .filter(|(kind, _)| *kind == BPF_STORAGE)
        .flat_map(|(_, storage)| attributes(storage))
        .find(|(kind, _)| *kind == BPF_STORAGE_VALUE)
        .map(|(_, value)| value.to_vec());
    let inode = payload.get(MESSAGE - 4..MESSAGE)?;
    Some(Found {
        held: inode.iter().any(|byte| *byte != 0),
        family,
        protocol,
        id,
        peer: SocketAddr::new(address, port),
        value,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = attribute_head(kind, payload.len()).to_vec();
        out.extend(payload);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    /// An answer as the kernel writes it.
    fn answer(family: i32, id: [u8; ID], value: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![family as u8, 1, 0, 0];
        body.extend(id);
        body.extend([1; 20]);
        body.extend(attribute(8, &[0]));
        if let Some(value) = value {
            let map = attribute(2, &7u32.to_ne_bytes());
            let storage = [map, attribute(BPF_STORAGE_VALUE, value)].concat();
            body.extend(attribute(
                SK_BPF_STORAGES,
                &attribute(BPF_STORAGE | NLA_F_NESTED, &storage),
            ));
        }
        body
    }

    #[test]
    fn a_socket_is_read_with_its_peer_and_its_value() {
        let mut id = [0; ID];
        id[2..4].copy_from_slice(&8080u16.to_be_bytes());
        id[20..24].copy_from_slice(&[10, 1, 2, 3]);
        let found = read_message(&answer(libc::AF_INET, id, Some(b"value")), 6).unwrap();
        assert_eq!(found.peer, "10.1.2.3:8080".parse().unwrap());
        assert_eq!(found.value.as_deref(), Some(&b"value"[..]));
        assert!(found.held);

        id[20..36].copy_from_slice(&Ipv4Addr::new(10, 1, 2, 3).to_ipv6_mapped().octets());
        let found = read_message(&answer(libc::AF_INET6, id, None), 6).unwrap();
        assert_eq!(
            (found.peer, found.value),
            ("10.1.2.3:8080".parse().unwrap(), None)
        );
    }

    #[test]
    fn several_messages_come_in_one_packet() {
        let mut packet = message(SOCK_DIAG_BY_FAMILY, 0, &[1, 2, 3]);
        packet.resize(packet.len().next_multiple_of(4), 0);
        packet.extend(message(NLMSG_ERROR, 0, &(-libc::ENOENT).to_ne_bytes()));
        let read: Vec<_> = messages(&packet).collect();
        assert_eq!(read.len(), 2);
        assert_eq!(read[0], (SOCK_DIAG_BY_FAMILY, &[1u8, 2, 3][..]));
        assert_eq!(error_in(read[1].1).raw_os_error(), Some(libc::ENOENT));
    }

    proptest! {
        #[test]
        fn any_answer_is_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            for (_, payload) in messages(&bytes) {
                let _ = (read_message(payload, 6), error_in(payload));
            }
            let _ = read_message(&bytes, 17);
        }

        /// Damage reaches further than noise does.
        #[test]
        fn damaged_answers_are_read_without_panic(at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let mut bytes = answer(libc::AF_INET6, [3; ID], Some(&[5; 40]));
            let at = at.index(bytes.len());
            bytes[at] = with;
            let _ = read_message(&bytes, 6);
        }
    }
}
