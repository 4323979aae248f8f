//! The traffic of the mesh's benchmark: a server, and a client that makes connections, asks one byte
//! at a time, or sends as much as it can. One thread each, plain blocking sockets: what they cost is
//! the same with and without Weft.
//!
//! `weft-bench traffic serve <address>` and `weft-bench traffic <kind> <address> <milliseconds>`.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    time::{Duration, Instant},
};

/// One write or read of a stream.
const CHUNK: usize = 128 * 1024;
/// A peer that says nothing for this long is gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a client does over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Connect, one byte there and back, close.
    Connect,
    /// One byte there and back on one connection.
    Ask,
    /// Send on one connection.
    Stream,
}

impl Kind {
    /// As an argument, and in rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Ask => "ask",
            Self::Stream => "stream",
        }
    }

    /// The connection's first byte says what it is for.
    fn mark(self) -> u8 {
        match self {
            Self::Connect => b'c',
            Self::Ask => b'a',
            Self::Stream => b's',
        }
    }

    fn of(text: &str) -> Option<Self> {
        [Self::Connect, Self::Ask, Self::Stream]
            .into_iter()
            .find(|k| k.name() == text)
    }
}

/// What a client counted: connections, questions or bytes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Counted {
    pub count: u64,
    pub seconds: f64,
}

/// Runs what the arguments say.
pub fn main(arguments: &[String]) -> Result<()> {
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", address] => serve(address.parse()?),
        [kind, address, time] => {
            let kind = Kind::of(kind).with_context(|| format!("no kind {kind}"))?;
            let time = Duration::from_millis(time.parse()?);
            let counted = drive(kind, address.parse()?, time)?;
            println!("{}", serde_json::to_string(&counted)?);
            Ok(())
        }
        _ => bail!("weft-bench traffic serve <address> | <kind> <address> <milliseconds>"),
    }
}

/// One client at a time, as they come.
fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
    let mut chunk = vec![0; CHUNK];
    loop {
        let (stream, _) = listener.accept()?;
        // A client that went away is no reason to end.
        let _ = answer(stream, &mut chunk);
    }
}

fn answer(mut stream: TcpStream, chunk: &mut [u8]) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut mark = [0];
    stream.read_exact(&mut mark)?;
    if mark[0] == Kind::Stream.mark() {
        let mut received: u64 = 0;
        loop {
            match stream.read(chunk)? {
                0 => break,
                n => received += n as u64,
            }
        }
        stream.write_all(&received.to_be_bytes())?;
        return Ok(());
    }
    stream.set_nodelay(true)?;
    stream.write_all(&mark)?;
    let mut byte = [0];
    // Until the client closes.
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn open(address: SocketAddr, kind: Kind) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[kind.mark()])?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream, byte: u8) -> Result<()> {
    let mut back = [0];
    stream.read_exact(&mut back)?;
    ensure!(back[0] == byte, "{} came back for {byte}", back[0]);
    Ok(())
}

fn drive(kind: Kind, address: SocketAddr, time: Duration) -> Result<Counted> {
    let begun = Instant::now();
    let mut count: u64 = 0;
    match kind {
        Kind::Connect => {
            while begun.elapsed() < time {
                let mut stream = open(address, kind)?;
                ask(&mut stream, kind.mark())?;
                // Closed by a reset, so that no port waits for its end.
                let linger = nix::libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                nix::sys::socket::setsockopt(&stream.as_fd(), nix::sys::socket::sockopt::Linger, &linger)?;
                count += 1;
            }
        }
        Kind::Ask => {
            let mut stream = open(address, kind)?;
            ask(&mut stream, kind.mark())?;
            while begun.elapsed() < time {
                // Looking at the clock costs; not each time.
                for byte in 0..64 {
                    stream.write_all(&[byte])?;
                    ask(&mut stream, byte)?;
                }
                count += 64;
            }
        }
        Kind::Stream => {
            let mut stream = open(address, kind)?;
            let chunk = vec![7; CHUNK];
            while begun.elapsed() < time {
                match stream.write_all(&chunk) {
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    other => other?,
                }
            }
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut received = [0; 8];
            stream.read_exact(&mut received)?;
            // What arrived counts.
            count = u64::from_be_bytes(received);
        }
    }
    Ok(Counted {
        count,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_counts_what_arrived() {
        // Found free, then taken by the server; nobody else here binds in between.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        std::thread::spawn(move || serve(address));
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(begun.elapsed() < PATIENCE);
        }
        for kind in [Kind::Connect, Kind::Ask, Kind::Stream] {
            let counted = drive(kind, address, Duration::from_millis(50)).unwrap();
            assert!(
                counted.count > 0 && counted.seconds >= 0.05,
                "{kind:?} {counted:?}"
            );
        }
    }
}
