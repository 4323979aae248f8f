//! The packet socket: `sendmsg` and `recvmsg` with descriptors, on tokio.
//!
//! Owns the kernel interface of the hand-off. `recvmsg` is called directly because a truncated
//! control message must still close the descriptors that were installed.

use crate::{
    HandoffError,
    wire::{self, Assembler, MAX_PACKET, Received},
};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, getsockopt, sendmsg, setsockopt,
    sockopt,
};
use std::{
    io::{self, IoSlice},
    mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    sync::Arc,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Room for what the kernel can deliver at most with one packet (`SCM_MAX_FD`).
const KERNEL_MAX_FDS: usize = 253;
/// Asked of the kernel so that the largest packet fits; it doubles this for its bookkeeping.
const BUFFER: usize = MAX_PACKET + 64 * 1024;

/// A connected pair: by convention the node keeps the first and the agent gets the second.
pub fn pair() -> Result<(OwnedFd, OwnedFd), HandoffError> {
    let (a, b) = nix::sys::socket::socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )
    .map_err(|e| HandoffError::socket("make a socket pair", e.into()))?;
    Ok((a, b))
}

/// Turns a connected `SOCK_SEQPACKET` socket into the two halves. Must be called in a runtime.
pub(crate) fn split(fd: OwnedFd) -> Result<(PacketSender, PacketReceiver), HandoffError> {
    let kind = getsockopt(&fd, sockopt::SockType)
        .map_err(|e| HandoffError::socket("use the descriptor (is it the handoff socket?)", e.into()))?;
    if kind != SockType::SeqPacket {
        return Err(HandoffError::protocol(format!(
            "the descriptor is a {kind:?} socket, not SOCK_SEQPACKET"
        )));
    }
    set_nonblocking(&fd).map_err(|e| HandoffError::socket("make the socket non-blocking", e))?;
    // Fails only for a size the kernel caps anyway; then sending a large packet says so.
    let _ = setsockopt(&fd, sockopt::SndBuf, &BUFFER);
    // SAFETY: the `OwnedFd` is moved into the `AsyncFd`, which alone owns and closes it; nothing
    // replaces the description behind it.
    let socket = unsafe { AsyncFd::register(fd) }
        .map_err(|e| HandoffError::socket("register with the event loop", e.into()))?;
    let socket = Arc::new(socket);
    Ok((
        PacketSender {
            socket: Arc::clone(&socket),
        },
        PacketReceiver {
            socket,
            assembler: Assembler::default(),
            buffer: vec![0; MAX_PACKET].into_boxed_slice(),
        },
    ))
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct PacketSender {
    socket: Arc<AsyncFd<OwnedFd>>,
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct PacketReceiver {
    socket: Arc<AsyncFd<OwnedFd>>,
    assembler: Assembler,
    buffer: Box<[u8]>,
}

impl PacketSender {
    /// Sends one message. Not cancellation-safe: a message of several packets would stay
    /// incomplete, so callers own the sender in a task that is not cancelled while it sends.
    pub(crate) async fn send(&mut self, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), HandoffError> {
        for packet in wire::plan(message.len(), fds.len())? {
            let raw: Vec<RawFd> = fds[packet.descriptors.clone()]
                .iter()
                .map(AsRawFd::as_raw_fd)
                .collect();
            let content: &[u8] = if packet.with_message { message } else { &[] };
            self.socket
                .async_io(Interest::WRITABLE, |fd| {
                    let iov = [IoSlice::new(&packet.header), IoSlice::new(content)];
                    let rights = [ControlMessage::ScmRights(&raw)];
                    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
                    sendmsg::<UnixAddr>(fd.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None)?;
                    Ok(())
                })
                .await
                .map_err(send_error)?;
        }
        Ok(())
    }
}

fn send_error(source: io::Error) -> HandoffError {
    match source.raw_os_error() {
        Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN) => HandoffError::Closed,
        _ => HandoffError::socket("send", source),
    }
}

impl PacketReceiver {
    /// The next message. Cancellation-safe: what arrived of a message stays here.
    pub(crate) async fn recv(&mut self) -> Result<Received, HandoffError> {
        loop {
            let (length, fds) = {
                let buffer = &mut self.buffer;
                self.socket
                    .async_io(Interest::READABLE, |fd| receive(fd.as_fd(), buffer))
                    .await
            }
            .map_err(|e| match e.raw_os_error() {
                Some(libc::ECONNRESET) => HandoffError::Closed,
                Some(libc::EMFILE) => HandoffError::OutOfDescriptors,
                _ => HandoffError::socket("receive", e),
            })?;
            // A packet always has a header, so an empty one is the end.
            if length == 0 && fds.is_empty() {
                return Err(HandoffError::Closed);
            }
            if let Some(message) = self.assembler.push(&self.buffer[..length], fds)? {
                return Ok(message);
            }
        }
    }
}

const CONTROL: usize =
    // SAFETY: CMSG_SPACE only computes a size.
    unsafe { libc::CMSG_SPACE((KERNEL_MAX_FDS * mem::size_of::<RawFd>()) as u32) } as usize;

/// Storage for control messages, aligned as the kernel's header asks.
#[repr(C)]
union Control {
    bytes: [u8; CONTROL],
    align: libc::cmsghdr,
}

/// One `recvmsg`: the packet's length and its descriptors. A cut packet is `EMSGSIZE`, cut
/// descriptors are `EMFILE`; what was installed is closed.
fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = Control { bytes: [0; CONTROL] };
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: an all-zero msghdr is valid: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = CONTROL as _;
    // SAFETY: the header points at live, exclusively borrowed storage of the stated lengths.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;

    let mut fds = Vec::new();
    // SAFETY: the kernel has filled the control storage up to msg_controllen with well-formed
    // headers; CMSG_FIRSTHDR and CMSG_NXTHDR stay inside it. Data may be unaligned, hence
    // read_unaligned. Each descriptor in an SCM_RIGHTS message is ours alone from here on.
    unsafe {
        let mut entry = libc::CMSG_FIRSTHDR(&raw const header);
        while !entry.is_null() {
            if (*entry).cmsg_level == libc::SOL_SOCKET && (*entry).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(entry).cast::<RawFd>();
                let bytes = (*entry).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                for i in 0..bytes / mem::size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                }
            }
            entry = libc::CMSG_NXTHDR(&raw const header, entry);
        }
    }
    if header.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    Ok((length, fds))
}
