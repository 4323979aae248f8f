//! What an actor can be told to do with sockets that talk, and who answers them.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, mpsc::sync_channel};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recv, socket,
};
use weft_testnet::Namespace;

use crate::actor::Actor;

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

impl Actor {
    fn words(&self, command: &str) -> Result<String, String> {
        self.ask(command, &[]).map(|(answer, _)| answer)
    }

    fn number(&self, command: &str) -> Result<usize, String> {
        self.words(command).map(|answer| answer.parse().unwrap())
    }

    /// Connects and returns the connection's number, or the error.
    pub fn dial(&self, to: SocketAddr) -> Result<usize, String> {
        self.number(&format!("dial {to}"))
    }

    /// Says a line over a connection and returns the answer.
    pub fn say(&self, number: usize, text: &str) -> Result<String, String> {
        self.words(&format!("say {number} {text}"))
    }

    /// Who the socket says is at its other end.
    pub fn peer(&self, number: usize) -> Result<SocketAddr, String> {
        self.words(&format!("peer {number}"))
            .map(|answer| answer.parse().unwrap())
    }

    /// "open", "closed" by the other end, or the error that the next read gives.
    pub fn state(&self, number: usize) -> String {
        self.words(&format!("state {number}")).unwrap()
    }

    /// Connects many times and counts who answered.
    pub fn spread(&self, times: usize, to: SocketAddr) -> BTreeMap<String, usize> {
        let answer = self.words(&format!("spread {times} {to}")).unwrap();
        answer
            .split_whitespace()
            .map(|pair| {
                let (name, count) = pair.split_once('=').unwrap();
                (name.to_string(), count.parse().unwrap())
            })
            .collect()
    }

    /// A UDP socket that can talk to `to`, not connected.
    pub fn datagrams(&self, to: SocketAddr) -> usize {
        self.number(&format!("udp {to}")).unwrap()
    }

    /// Connects a UDP socket.
    pub fn connect_datagrams(&self, number: usize, to: SocketAddr) -> Result<(), String> {
        self.words(&format!("uconnect {number} {to}")).map(drop)
    }

    /// Sends over a connected UDP socket and returns the answer and where it seems to come from.
    pub fn exchange(&self, number: usize, text: &str) -> Result<(String, SocketAddr), String> {
        self.words(&format!("send {number} {text}"))?;
        self.hear(number)
    }

    /// The same to an address.
    pub fn exchange_with(
        &self,
        number: usize,
        to: SocketAddr,
        text: &str,
    ) -> Result<(String, SocketAddr), String> {
        self.words(&format!("sendto {number} {to} {text}"))?;
        self.hear(number)
    }

    pub fn hear(&self, number: usize) -> Result<(String, SocketAddr), String> {
        let answer = self.words(&format!("hear {number}"))?;
        let (from, text) = answer.split_once(' ').unwrap();
        Ok((text.to_string(), from.parse().unwrap()))
    }
}

/// The actor's side of the above.
pub fn obey(words: &[&str], held: &mut Vec<Option<OwnedFd>>) -> io::Result<String> {
    let address = |at: usize| words[at].parse::<SocketAddr>().unwrap();
    let index = |at: usize| words[at].parse::<usize>().unwrap();
    let stream = |held: &[Option<OwnedFd>], at| -> io::Result<TcpStream> {
        let stream = TcpStream::from(held[index(at)].as_ref().unwrap().try_clone()?);
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    let datagrams = |held: &[Option<OwnedFd>], at| -> io::Result<UdpSocket> {
        let socket = UdpSocket::from(held[index(at)].as_ref().unwrap().try_clone()?);
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    match words[0] {
        "dial" => {
            held.push(Some(TcpStream::connect(address(1))?.into()));
            Ok(format!("{}", held.len() - 1))
        }
        "say" => {
            let mut stream = stream(held, 1)?;
            stream.write_all(format!("{}\n", words[2]).as_bytes())?;
            line(&mut stream)
        }
        "peer" => Ok(stream(held, 1)?.peer_addr()?.to_string()),
        "state" => {
            let socket = held[index(1)].as_ref().unwrap();
            let mut byte = [0];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
            Ok(match recv(socket.as_raw_fd(), &mut byte, flags) {
                Ok(0) => "closed".into(),
                Ok(_) | Err(nix::Error::EAGAIN) => "open".into(),
                Err(error) => format!("{error:?}"),
            })
        }
        "spread" => {
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            for _ in 0..index(1) {
                let mut stream = TcpStream::connect(address(2))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(b"x\n")?;
                *counts.entry(line(&mut stream)?).or_default() += 1;
            }
            let counts: Vec<String> = counts
                .iter()
                .map(|(answer, count)| format!("{}={count}", answer.split(':').next().unwrap_or_default()))
                .collect();
            Ok(counts.join(" "))
        }
        "udp" => {
            let own: IpAddr = match address(1) {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            held.push(Some(UdpSocket::bind((own, 0))?.into()));
            Ok(format!("{}", held.len() - 1))
        }
        "uconnect" => datagrams(held, 1)?.connect(address(2)).map(|()| String::new()),
        "send" => datagrams(held, 1)?
            .send(words[2].as_bytes())
            .map(|_| String::new()),
        "sendto" => datagrams(held, 1)?
            .send_to(words[3].as_bytes(), address(2))
            .map(|_| String::new()),
        "hear" => hear(&datagrams(held, 1)?).map(|(text, from)| format!("{from} {text}")),
        "together" => together(Arc::new(datagrams(held, 1)?), [address(2), address(3)]),
        "race" => race(address(1)),
        "unix" => {
            let (mut one, mut other) = std::os::unix::net::UnixStream::pair()?;
            one.write_all(b"unix")?;
            drop(one);
            let mut said = String::new();
            other.read_to_string(&mut said)?;
            Ok(said)
        }
        other => Err(io::Error::other(format!("unknown command {other}"))),
    }
}

fn line(stream: &mut TcpStream) -> io::Result<String> {
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer.trim_end().to_string())
}

fn hear(socket: &UdpSocket) -> io::Result<(String, SocketAddr)> {
    let mut buffer = [0; 512];
    let (length, from) = socket.recv_from(&mut buffer)?;
    Ok((String::from_utf8_lossy(&buffer[..length]).into_owned(), from))
}

/// Two threads send to two services over one socket; each answer must seem to come from the service
/// that its text names.
fn together(socket: Arc<UdpSocket>, services: [SocketAddr; 2]) -> io::Result<String> {
    const EACH: usize = 200;
    // No more at once than a socket can hold: about 270 datagrams of a few bytes, by Linux' default.
    let (room, taken) = sync_channel(64);
    let senders = services.map(|to| {
        let (socket, room) = (Arc::clone(&socket), room.clone());
        thread::spawn(move || -> io::Result<()> {
            for _ in 0..EACH {
                // Whoever hears has given up when it fails, and says why.
                let _ = room.send(());
                socket.send_to(to.to_string().as_bytes(), to)?;
            }
            Ok(())
        })
    });
    let mut heard = BTreeMap::<String, usize>::new();
    for _ in 0..2 * EACH {
        let (text, from) = hear(&socket)?;
        let _ = taken.recv();
        let (name, asked) = text.split_once(':').unwrap_or_default();
        if asked != from.to_string() {
            return Err(io::Error::other(format!("{asked} was answered by {from}")));
        }
        *heard.entry(format!("{asked}@{name}")).or_default() += 1;
    }
    for sender in senders {
        sender.join().unwrap()?;
    }
    // One backend for each service, all the time.
    Ok(format!("{} {}", heard.len(), heard.values().sum::<usize>()))
}

/// Two threads connect one socket at once; what comes of it must be one whole connection.
fn race(to: SocketAddr) -> io::Result<String> {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let socket = Arc::new(socket(
        family,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Tcp,
    )?);
    let racers = [0, 1].map(|_| {
        let socket = Arc::clone(&socket);
        thread::spawn(move || connect(socket.as_raw_fd(), &SockaddrStorage::from(to)))
    });
    let results = racers.map(|racer| racer.join().unwrap());
    let connected = results.iter().filter(|result| result.is_ok()).count();
    if connected == 0 {
        return Err(io::Error::other(format!("{results:?}")));
    }
    let mut stream = TcpStream::from(socket.try_clone()?);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"x\n")?;
    Ok(format!("{} {}", stream.peer_addr()?, line(&mut stream)?))
}

/// Answers every line over TCP, and every datagram, at one address: "<name>:<what was said>".
pub fn answer(namespace: &Namespace, address: SocketAddr, name: &str) {
    let (name, udp_name) = (name.to_string(), name.to_string());
    let listener = namespace.listen(address).unwrap();
    let socket = namespace.run(|| UdpSocket::bind(address)).unwrap().unwrap();
    thread::spawn(move || serve(&listener, &name));
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let _ = socket.send_to(format!("{udp_name}:{said}").as_bytes(), from);
        }
    });
}

fn serve(listener: &TcpListener, name: &str) {
    for stream in listener.incoming().map_while(Result::ok) {
        let name = name.to_string();
        thread::spawn(move || {
            let Ok(mut out) = stream.try_clone() else { return };
            for said in BufReader::new(stream).lines().map_while(Result::ok) {
                if out.write_all(format!("{name}:{said}\n").as_bytes()).is_err() {
                    return;
                }
            }
        });
    }
}

/// Reads what is there until the other end closes.
pub fn drain(mut stream: TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let _ = stream.read_to_end(&mut all);
    all
}
