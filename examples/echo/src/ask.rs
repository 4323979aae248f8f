//! Asks once.

use crate::Done;
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, send, socket},
};
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

const WORD: &str = "hello";

/// Asks all targets at once and prints how it went, in their order.
pub fn run(patience: &str, targets: &[&str]) -> Done {
    let patience = Duration::from_millis(patience.parse()?);
    let asked: Vec<_> = targets
        .iter()
        .map(|target| {
            let target = (*target).to_owned();
            thread::spawn(move || {
                let outcome = ask(&target, patience);
                (target, outcome)
            })
        })
        .collect();
    for thread in asked {
        let (target, outcome) = thread.join().map_err(|_| "a thread ended early")?;
        match outcome {
            Ok(answer) => println!("{target} ok {answer}"),
            Err(error) => println!("{target} {} {error}", kind(&error)),
        }
    }
    Ok(())
}

fn kind(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "timeout",
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => "refused",
        io::ErrorKind::PermissionDenied => "denied",
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => "unreachable",
        _ => "error",
    }
}

fn ask(target: &str, patience: Duration) -> io::Result<String> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "no such target");
    let (how, address) = target.split_once(':').ok_or_else(wrong)?;
    match how {
        "tcp" => tcp(address.parse().map_err(|_| wrong())?, patience),
        "udp" => udp(address.parse().map_err(|_| wrong())?, patience),
        "icmp" => icmp(address.parse().map_err(|_| wrong())?, patience),
        _ => Err(wrong()),
    }
}

fn tcp(address: SocketAddr, patience: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    // In one piece: servers of other protocols refuse a line, and some wait for more behind a part of one.
    stream.write_all(format!("{WORD}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::ConnectionReset,
            "closed without an answer",
        ));
    }
    Ok(answer.trim_end().to_owned())
}

/// Says it again now and then: the first datagram may come before the neighbour is known.
fn udp(address: SocketAddr, patience: Duration) -> io::Result<String> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(patience / 4))?;
    let end = Instant::now() + patience;
    let mut answer = [0; 2048];
    loop {
        socket.send_to(WORD.as_bytes(), address)?;
        match socket.recv_from(&mut answer) {
            Ok((n, from)) if from == address => return Ok(String::from_utf8_lossy(&answer[..n]).into_owned()),
            Ok((_, from)) => return Err(io::Error::other(format!("{from} answered"))),
            Err(error) if kind(&error) == "timeout" && Instant::now() < end => {}
            Err(error) => return Err(error),
        }
    }
}

/// An echo by a ping socket: needs no capability where `ping_group_range` allows it.
fn icmp(address: IpAddr, patience: Duration) -> io::Result<String> {
    let (family, protocol, request, reply) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
    connect(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(address, 0)),
    )?;
    // type, code, checksum, identifier and sequence, which the kernel fills in, then the word.
    let message = [&[request, 0, 0, 0, 0, 0, 0, 1], WORD.as_bytes()].concat();
    // As a UDP socket it has the time limit that is wanted; it is connected, so only replies come.
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(patience / 4))?;
    let end = Instant::now() + patience;
    let mut answer = [0; 256];
    loop {
        send(socket.as_raw_fd(), &message, nix::sys::socket::MsgFlags::empty())
            .map_err(|e: Errno| io::Error::from(e))?;
        match socket.recv(&mut answer) {
            Ok(n) if n >= 8 && answer[0] == reply && answer[8..n] == *WORD.as_bytes() => {
                return Ok("echo".into());
            }
            Ok(_) => {}
            Err(error) if kind(&error) == "timeout" => {}
            Err(error) => return Err(error),
        }
        if Instant::now() >= end {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// For `talk` as well: one line there and back.
pub fn line(stream: &mut (impl Read + Write), said: &str) -> io::Result<String> {
    stream.write_all(format!("{said}\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            return Ok(String::from_utf8_lossy(&answer).into_owned());
        }
        answer.push(byte[0]);
    }
}
