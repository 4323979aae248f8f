//! A process of its own that opens sockets as told: callers, listeners and readers of the tests.
//!
//! It is this test executable once more, with a sequenced-packet socket as its standard input. A
//! packet is a line of words, with descriptors beside it where the command says so; the answer
//! begins with "ok" or is the error.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrStorage, bind, connect, getsockname, listen, recvmsg, sendmsg, sendto, setsockopt, socket,
    socketpair, sockopt,
};
use weft_bpf::Origins;
use weft_testnet::{Namespace, Process, Spawn};

/// The test's end of an actor.
pub struct Actor {
    socket: OwnedFd,
    _process: Process,
}

impl Actor {
    /// Starts one in a namespace, as `spawn` says.
    pub fn new(namespace: &Namespace, spawn: &Spawn) -> Self {
        let (ours, theirs) = pair();
        let mut command = Command::new("/proc/self/exe");
        command.args(["--ignored", "--exact", "actor::act", "--nocapture"]);
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null());
        Self {
            socket: ours,
            _process: namespace.spawn(command, spawn).unwrap(),
        }
    }

    /// An unprivileged one in a cgroup.
    pub fn nobody(namespace: &Namespace, cgroup: &Path) -> Self {
        Self::new(namespace, &Spawn::nobody().cgroup(cgroup))
    }

    /// Sends a command and returns the answer.
    pub fn ask(&self, command: &str, fds: &[BorrowedFd<'_>]) -> Result<(String, Option<OwnedFd>), String> {
        send(&self.socket, command, fds).unwrap();
        let (answer, mut fds) = receive(&self.socket).unwrap();
        match answer.strip_prefix("ok") {
            Some(rest) => Ok((rest.trim().to_string(), fds.pop())),
            None => Err(answer),
        }
    }

    fn tell(&self, command: &str) -> String {
        self.ask(command, &[])
            .unwrap_or_else(|error| panic!("{command}: {error}"))
            .0
    }

    /// Listens; the listener stays this process's making whoever holds it.
    pub fn listen(&self, address: SocketAddr, backlog: i32) -> TcpListener {
        let (_, fd) = self.ask(&format!("listen {address} {backlog}"), &[]).unwrap();
        TcpListener::from(fd.unwrap())
    }

    /// Takes datagrams at an address; the socket stays this process's making. Not all tests do.
    #[allow(dead_code)]
    pub fn bind(&self, address: SocketAddr) -> std::net::UdpSocket {
        let (_, fd) = self.ask(&format!("bind {address}"), &[]).unwrap();
        std::net::UdpSocket::from(fd.unwrap())
    }

    /// Connects and returns the connection's number and own address.
    pub fn connect(&self, to: SocketAddr) -> (usize, SocketAddr) {
        numbered(&self.tell(&format!("connect {to}")))
    }

    /// Connects by a process that its parent has left behind.
    pub fn connect_hidden(&self, to: SocketAddr) -> SocketAddr {
        self.tell(&format!("hidden {to}")).parse().unwrap()
    }

    /// Sends the first bytes with the SYN where the other end allows it.
    pub fn connect_fast(&self, to: SocketAddr) -> (usize, SocketAddr) {
        numbered(&self.tell(&format!("fast {to}")))
    }

    /// Begins to connect and doesn't wait.
    pub fn begin(&self, from: SocketAddr, to: SocketAddr) -> (usize, SocketAddr) {
        numbered(&self.tell(&format!("begin {from} {to}")))
    }

    /// Connects with a socket made by someone else.
    pub fn connect_with(&self, socket: BorrowedFd<'_>, to: SocketAddr) -> (usize, SocketAddr) {
        numbered(&self.ask(&format!("with {to}"), &[socket]).unwrap().0)
    }

    /// A socket that isn't connected.
    pub fn socket(&self) -> OwnedFd {
        self.ask("socket", &[]).unwrap().1.unwrap()
    }

    pub fn close(&self, number: usize) {
        self.tell(&format!("close {number}"));
    }

    /// Connects and closes many times.
    pub fn repeat(&self, times: usize, to: SocketAddr) {
        self.tell(&format!("repeat {times} {to}"));
    }
}

fn numbered(answer: &str) -> (usize, SocketAddr) {
    let (number, address) = answer.split_once(' ').unwrap();
    (number.parse().unwrap(), address.parse().unwrap())
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .unwrap()
}

fn send(socket: &OwnedFd, text: &str, fds: &[BorrowedFd<'_>]) -> nix::Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights };
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(text.as_bytes())],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
}

fn receive(socket: &OwnedFd) -> nix::Result<(String, Vec<OwnedFd>)> {
    let mut buffer = [0; 4096];
    let mut space = cmsg_space!([RawFd; 4]);
    let (length, fds) = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(
            socket.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: just received, ours alone.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (message.bytes, fds)
    };
    Ok((String::from_utf8_lossy(&buffer[..length]).into_owned(), fds))
}

/// Not a test: the actor's own side.
#[test]
#[ignore = "started by the other tests"]
fn act() {
    // A double of standard input, so that closing it is not std's business.
    let socket = io::stdin().as_fd().try_clone_to_owned().unwrap();
    if let Ok(address) = std::env::var("WEFT_HIDDEN") {
        return hidden(&socket, &address);
    }
    let mut held: Vec<Option<OwnedFd>> = Vec::new();
    loop {
        let (command, fds) = receive(&socket).unwrap();
        if command.is_empty() {
            return;
        }
        let (answer, fd) = obey(&command, fds, &mut held).unwrap_or_else(|error| (error.to_string(), None));
        let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
        send(&socket, &answer, &fds).unwrap();
    }
}

/// Until a connection that was begun is there: what is dropped on the way never is.
fn wait_connected(socket: &OwnedFd) -> io::Result<()> {
    let mut entry = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one live entry.
    if unsafe { libc::poll(&mut entry, 1, 400) } != 1 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    match nix::sys::socket::getsockopt(socket, sockopt::SocketError)? {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

type Answer = (String, Option<OwnedFd>);

fn obey(command: &str, mut fds: Vec<OwnedFd>, held: &mut Vec<Option<OwnedFd>>) -> io::Result<Answer> {
    let words: Vec<&str> = command.split(' ').collect();
    let address = |at: usize| words[at].parse::<SocketAddr>().unwrap();
    let keep = |socket: OwnedFd, held: &mut Vec<Option<OwnedFd>>| -> io::Result<Answer> {
        let own = name(&socket)?;
        held.push(Some(socket));
        Ok((format!("ok {} {own}", held.len() - 1), None))
    };
    match words[0] {
        "bind" => {
            let socket = std::net::UdpSocket::bind(address(1)).unwrap();
            Ok(("ok".into(), Some(socket.into())))
        }
        "listen" => {
            let socket = make(address(1), false)?;
            bind(socket.as_raw_fd(), &SockaddrStorage::from(address(1)))?;
            listen(&socket, Backlog::new(words[2].parse::<i32>().unwrap())?)?;
            // Fast open without a cookie, for the tests' own namespaces.
            let value: libc::c_int = 16;
            // SAFETY: a live integer of the given length.
            unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::IPPROTO_TCP,
                    libc::TCP_FASTOPEN,
                    (&raw const value).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                );
            }
            Ok(("ok".into(), Some(socket)))
        }
        "connect" => keep(OwnedFd::from(TcpStream::connect(address(1))?), held),
        "fast" => {
            let socket = make(address(1), false)?;
            let to = SockaddrStorage::from(address(1));
            sendto(
                socket.as_raw_fd(),
                b"early",
                &to,
                MsgFlags::from_bits_retain(libc::MSG_FASTOPEN),
            )?;
            keep(socket, held)
        }
        "begin" => {
            let socket = make(address(1), true)?;
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            bind(socket.as_raw_fd(), &SockaddrStorage::from(address(1)))?;
            match connect(socket.as_raw_fd(), &SockaddrStorage::from(address(2))) {
                Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => keep(socket, held),
                Err(errno) => Err(errno.into()),
            }
        }
        "with" => {
            let socket = fds.remove(0);
            connect(socket.as_raw_fd(), &SockaddrStorage::from(address(1)))?;
            keep(socket, held)
        }
        "begin_with" => {
            let socket = fds.remove(0);
            nix::fcntl::fcntl(
                &socket,
                nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
            )?;
            match connect(socket.as_raw_fd(), &SockaddrStorage::from(address(1))) {
                Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => keep(socket, held),
                Err(errno) => Err(errno.into()),
            }
        }
        "socket" => Ok((
            "ok".into(),
            Some(make(SocketAddr::from(([0, 0, 0, 0], 0)), false)?),
        )),
        "udp_socket" => Ok(("ok".into(), Some(std::net::UdpSocket::bind("0.0.0.0:0")?.into()))),
        // Over a UDP socket made by someone else: "connect", "send" or "sendto".
        "use" => {
            let socket = std::net::UdpSocket::from(fds.remove(0));
            match words[1] {
                "connect" => socket.connect(address(2))?,
                "send" => drop(socket.send(b"x")?),
                _ => drop(socket.send_to(b"x", address(2))?),
            }
            Ok(("ok".into(), None))
        }
        "close" => {
            held[words[1].parse::<usize>().unwrap()] = None;
            Ok(("ok".into(), None))
        }
        "wait" => {
            let socket = held[words[1].parse::<usize>().unwrap()].as_ref().unwrap();
            wait_connected(socket)?;
            Ok(("ok".into(), None))
        }
        "repeat" => {
            for _ in 0..words[1].parse().unwrap() {
                drop(TcpStream::connect(address(2))?);
            }
            Ok(("ok".into(), None))
        }
        "hidden" => leave_behind(address(1)),
        "read" => {
            let (map, listener) = (fds.remove(0), TcpListener::from(fds.remove(0)));
            let origins = Origins::from_fd(map).map_err(io::Error::other)?;
            let (stream, _) = listener.accept()?;
            let origin = origins.read(&stream).map_err(io::Error::other)?;
            Ok((format!("ok {:?}", origin.map(|origin| origin.cgroup_id)), None))
        }
        "probe" => {
            let found = weft_bpf::probe(Path::new(words[1]));
            let missing = found.into_iter().filter(|capability| !capability.active);
            let lines: Vec<String> = missing.map(|c| format!("{}: {}", c.name, c.reason)).collect();
            Ok((format!("ok {}", lines.join("\n")), None))
        }
        "forge" => forge(&fds[0], &fds[1]).map(|()| ("ok".into(), None)),
        _ => Ok((format!("ok {}", crate::talk::obey(&words, held)?), None)),
    }
}

fn make(address: SocketAddr, nonblocking: bool) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_CLOEXEC
        | if nonblocking {
            SockFlag::SOCK_NONBLOCK
        } else {
            SockFlag::empty()
        };
    let socket = socket(family, SockType::Stream, flags, SockProtocol::Tcp)?;
    if let SocketAddr::V6(v6) = address {
        setsockopt(
            &socket,
            sockopt::Ipv6V6Only,
            &(*v6.ip() != Ipv6Addr::UNSPECIFIED && !is_mapped(*v6.ip())),
        )?;
    }
    Ok(socket)
}

fn is_mapped(address: Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some()
}

fn name(socket: &OwnedFd) -> io::Result<SocketAddr> {
    let stream = TcpStream::from(socket.try_clone()?);
    let _: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    stream.local_addr()
}

/// Starts a child that starts a child, and leaves both: the second one connects.
fn leave_behind(to: SocketAddr) -> io::Result<Answer> {
    let (ours, theirs) = pair();
    // A shell gives what it leaves in the background an empty input unless told otherwise.
    let script = "exec 8<&0; setsid /proc/self/fd/9 --ignored --exact actor::act --nocapture <&8 & exit 0";
    let executable = std::fs::File::open("/proc/self/exe")?;
    let fd = executable.as_raw_fd();
    let mut middle = Command::new("sh");
    middle.args(["-c", script]).env("WEFT_HIDDEN", to.to_string());
    middle.stdin(Stdio::from(theirs)).stdout(Stdio::null());
    // SAFETY: only dup2 between fork and exec.
    unsafe {
        middle.pre_exec(move || {
            if libc::dup2(fd, 9) < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
    }
    middle.status()?;
    // With it goes the last copy of the other end here: should the child fail, reading ends.
    drop(middle);
    let (answer, _) = receive(&ours)?;
    // It holds its connection until this process ends.
    std::mem::forget(ours);
    Ok((answer, None))
}

fn hidden(socket: &OwnedFd, to: &str) {
    let answer = match TcpStream::connect(to) {
        Ok(stream) => {
            send(socket, &format!("ok {}", stream.local_addr().unwrap()), &[]).unwrap();
            let _ = receive(socket);
            return;
        }
        Err(error) => error.to_string(),
    };
    send(socket, &answer, &[]).unwrap();
}

/// Writes a record for a socket through the map's descriptor, as a reader must not be able to.
fn forge(map: &OwnedFd, accepted: &OwnedFd) -> io::Result<()> {
    #[repr(C)]
    struct Update {
        map: u32,
        reserved: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
    let (key, value) = (accepted.as_raw_fd(), [1u8; 48]);
    let mut update = Update {
        map: map.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: (&raw const key) as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    // SAFETY: a live attribute of the given length that points to a live key and value.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_UPDATE_ELEM,
            &raw mut update,
            size_of::<Update>(),
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
