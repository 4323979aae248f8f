//! rtnetlink, as far as the node needs it: which interfaces and addresses a namespace has, where
//! their peers are, and that something of this changed.
//!
//! A socket belongs to the namespace it was made in, wherever it is used later. What the kernel
//! sends is read with bounds: nothing here trusts a length.

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;

const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_LINK_NETNSID: u16 = 37;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;

/// Groups of `linux/rtnetlink.h`: links, IPv4 and IPv6 addresses, and the messages they bring.
const GROUPS: u32 = 1 | 0x10 | 0x100;
const CHANGES: [u16; 4] = [RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR];

/// Larger than any message of the kernel's dumps, which are at most 32 KiB.
const BUFFER: usize = 64 * 1024;
/// Interfaces or addresses of one namespace that are looked at.
const MOST: usize = 8192;
/// The kernel answers at once; this ends a wait that would hold up everybody.
const PATIENCE: i64 = 5;

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) loopback: bool,
    pub(crate) up: bool,
    /// `veth`, `bridge`; empty for hardware.
    pub(crate) kind: String,
    /// The interface that this one is bound to: a veth's peer.
    pub(crate) peer: Option<u32>,
    /// The id by which this namespace knows the one its peer is in; `None`: this one.
    pub(crate) peer_namespace: Option<i32>,
}

/// A netlink socket of the namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Route(OwnedFd);

impl Route {
    /// For questions, in the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
        Ok(Self(fd))
    }

    /// All interfaces.
    pub(crate) fn links(&self) -> io::Result<Vec<Link>> {
        let mut found = Vec::new();
        self.ask(&request(RTM_GETLINK, NLM_F_DUMP, &[0; 16]), |kind, body| {
            if kind == RTM_NEWLINK {
                found.extend(link(body));
            }
            found.len() < MOST
        })?;
        Ok(found)
    }

    /// All addresses, with the interface of each.
    pub(crate) fn addresses(&self) -> io::Result<Vec<(u32, IpAddr)>> {
        let mut found = Vec::new();
        self.ask(&request(RTM_GETADDR, NLM_F_DUMP, &[0; 8]), |kind, body| {
            if kind == RTM_NEWADDR {
                found.extend(address(body));
            }
            found.len() < MOST
        })?;
        Ok(found)
    }

    /// The id by which this namespace knows another one; `None` when nothing of it leads there.
    pub(crate) fn namespace_id(&self, other: BorrowedFd<'_>) -> io::Result<Option<i32>> {
        let mut body = vec![0; 4];
        body.extend_from_slice(&8u16.to_ne_bytes());
        body.extend_from_slice(&NETNSA_FD.to_ne_bytes());
        body.extend_from_slice(&other.as_raw_fd().to_ne_bytes());
        let mut found = None;
        self.ask(&request(RTM_GETNSID, 0, &body), |kind, body| {
            if kind == RTM_NEWNSID {
                let mut attributes = Attributes(body.get(4..).unwrap_or_default());
                found = attributes
                    .find_map(|(kind, value)| (kind == NETNSA_NSID).then(|| number(value))?)
                    .map(u32::cast_signed)
                    .filter(|id| *id >= 0);
            }
            false
        })?;
        Ok(found)
    }

    /// Sends a request and gives each message of the answer to `take`, until that says enough.
    fn ask(&self, request: &[u8], mut take: impl FnMut(u16, &[u8]) -> bool) -> io::Result<()> {
        send(self.0.as_raw_fd(), request, MsgFlags::empty())?;
        let dump = request.get(6..8) == Some(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes()[..]);
        let mut buffer = vec![0; BUFFER];
        // What is left of a dump that was cut short must not answer the next question.
        let mut wanted = true;
        loop {
            let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (kind, body) in Messages(buffer.get(..length).unwrap_or_default()) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = number(body).map_or(libc::EIO, |n| n.cast_signed().wrapping_neg());
                        return match code {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(code)),
                        };
                    }
                    kind if wanted => wanted = take(kind, body),
                    _ => {}
                }
            }
            if !dump {
                return Ok(());
            }
        }
    }
}

/// A socket that tells of changed links and addresses in the calling thread's namespace, non-blocking.
pub(crate) fn subscribe() -> io::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkRoute,
    )?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    Ok(fd)
}

/// Takes what a subscription has to tell: that something changed; `WouldBlock` when nothing did. A
/// queue that ran over is a change like any: whoever hears of it looks at everything again.
pub(crate) fn changed(subscription: &OwnedFd) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match recv(subscription.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => {
                let bytes = buffer.get(..length).unwrap_or_default();
                if Messages(bytes).any(|(kind, _)| CHANGES.contains(&kind)) {
                    return Ok(());
                }
            }
            Err(nix::errno::Errno::ENOBUFS) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    message
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// The messages of a packet: kind and body.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::try_from(number(self.0)?).ok()?;
        let kind = u16::from_ne_bytes(*self.0.get(4..6)?.first_chunk()?);
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    }
}

/// Attributes: kind without its flags, and value.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..4)?.first_chunk()?) & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

fn link(body: &[u8]) -> Option<Link> {
    let mut found = Link {
        index: number(body.get(4..)?)?,
        loopback: number(body.get(8..)?)? & IFF_LOOPBACK != 0,
        up: number(body.get(8..)?)? & IFF_UP != 0,
        ..Link::default()
    };
    for (kind, value) in Attributes(body.get(16..)?) {
        match kind {
            IFLA_IFNAME => found.name = text(value),
            IFLA_LINK => found.peer = number(value),
            IFLA_LINK_NETNSID => found.peer_namespace = number(value).map(u32::cast_signed),
            IFLA_LINKINFO => {
                let kind = Attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                found.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(found)
}

fn address(body: &[u8]) -> Option<(u32, IpAddr)> {
    let interface = number(body.get(4..)?)?;
    let (mut local, mut other) = (None, None);
    for (kind, value) in Attributes(body.get(8..)?) {
        let read = match (*body.first()?, value.len()) {
            (2, 4) => value.first_chunk::<4>().map(|a| IpAddr::from(Ipv4Addr::from(*a))),
            (10, 16) => value
                .first_chunk::<16>()
                .map(|a| IpAddr::from(Ipv6Addr::from(*a))),
            _ => None,
        };
        match kind {
            IFA_LOCAL => local = read,
            IFA_ADDRESS => other = read,
            _ => {}
        }
    }
    // On a point-to-point link the second one is the peer's.
    Some((interface, local.or(other)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::AsFd;

    #[test]
    fn loopback_is_read_from_the_kernel() {
        let route = Route::open().unwrap();
        let links = route.links().unwrap();
        let lo = links.iter().find(|l| l.loopback).unwrap();
        assert_eq!((lo.name.as_str(), lo.peer), ("lo", None));
        // A question to which there is no answer does not hold up the next.
        let none = route.namespace_id(std::fs::File::open("/dev/null").unwrap().as_fd());
        assert!(none.is_err());
        let addresses = route.addresses().unwrap();
        assert!(
            addresses.contains(&(lo.index, Ipv4Addr::LOCALHOST.into())),
            "{addresses:?}"
        );
    }

    #[test]
    fn a_point_to_point_address_is_ones_own() {
        let mut body = vec![2, 32, 0, 0, 7, 0, 0, 0];
        for (kind, address) in [(IFA_ADDRESS, [10, 0, 0, 1]), (IFA_LOCAL, [10, 0, 0, 2])] {
            body.extend_from_slice(&8u16.to_ne_bytes());
            body.extend_from_slice(&kind.to_ne_bytes());
            body.extend_from_slice(&address);
        }
        assert_eq!(address(&body), Some((7, Ipv4Addr::new(10, 0, 0, 2).into())));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..256),
            length in 0u32..300, kind in 16u16..24,
        ) {
            let _ = (link(&bytes), address(&bytes));
            // With a head that leads further in.
            if bytes.len() >= HEADER {
                bytes[..4].copy_from_slice(&length.to_ne_bytes());
                bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
                prop_assert!(Messages(&bytes).count() <= bytes.len() / HEADER);
            }
        }
    }
}
