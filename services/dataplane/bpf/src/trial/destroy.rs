//! `SOCK_DESTROY`, tried on a connection of our own in a namespace of our own.

use std::{
    io::{self, Read},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
/// Request, and: answer in any case.
const REQUEST_ACK: u16 = 1 | 4;
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes a connection over the loopback of the calling thread's namespace, which must be a fresh one,
/// has the kernel destroy it, and sees that its end is told.
pub(super) fn attempt() -> io::Result<()> {
    loopback_up()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut stream = TcpStream::connect(listener.local_addr()?)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    destroy(&stream)?;
    match stream.read(&mut [0; 1]) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
        Err(e) => Err(io::Error::new(
            e.kind(),
            format!("the connection did not end as it should: {e}"),
        )),
        Ok(_) => Err(io::Error::other("the connection went on")),
    }
}

fn loopback_up() -> io::Result<()> {
    let fd = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: all zero is a valid value of this plain struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = (*from).cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    // SAFETY: the request is alive for the call, and named with a terminating zero.
    match unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::SIOCSIFFLAGS as libc::Ioctl,
            &raw const request,
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn destroy(stream: &TcpStream) -> io::Result<()> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
    // `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, then the socket.
    let mut body = vec![2, 6, 0, 0];
    body.extend_from_slice(&u32::MAX.to_ne_bytes());
    body.extend_from_slice(&stream.local_addr()?.port().to_be_bytes());
    body.extend_from_slice(&stream.peer_addr()?.port().to_be_bytes());
    for _ in 0..2 {
        body.extend_from_slice(&Ipv4Addr::LOCALHOST.octets());
        body.extend_from_slice(&[0; 12]);
    }
    // Any interface, and no cookie: the addresses say which.
    body.extend_from_slice(&0u32.to_ne_bytes());
    body.extend_from_slice(&[0xff; 8]);
    let length = u32::try_from(16 + body.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend_from_slice(&SOCK_DESTROY.to_ne_bytes());
    message.extend_from_slice(&REQUEST_ACK.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&body);
    send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let answer = answer.get(..length).unwrap_or_default();
    let kind = answer.get(4..6).map(|k| u16::from_ne_bytes([k[0], k[1]]));
    let code = answer
        .get(16..20)
        .map(|c| i32::from_ne_bytes([c[0], c[1], c[2], c[3]]));
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        _ => Err(io::Error::other("sock_diag answered something else")),
    }
}
