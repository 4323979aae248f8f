//! Carrying bytes between two connections.
//!
//! Nothing is read before there is room for it on the other side, so what is in flight is bounded
//! by the windows and the kernel's buffers. An idle connection holds no buffer.

use crate::socket::Socket;
use bytes::{BufMut, Bytes, BytesMut};
use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::tcp,
    time::timeout,
};
use weft_tunnel::{ReadHalf, TunnelStream, WriteHalf};

/// The first read of a connection, and the one after which reads grow no more: small messages take
/// little memory, bulk few system calls.
const FIRST_READ: usize = 8 * 1024;
const MOST_READ: usize = 256 * 1024;
/// When one side takes no more and the other has said all, so long what still comes is thrown away,
/// for the answer to be read before the reset arrives.
const LINGER: Duration = Duration::from_secs(1);

/// One end of a relay.
#[derive(Debug)]
pub(crate) enum End {
    /// An app, or what is outside the mesh.
    Tcp(Socket),
    /// A workload on another node.
    Tunnel(Box<TunnelStream>),
}

/// Bytes carried so far.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    /// From who opened.
    pub sent: AtomicU64,
    /// To who opened.
    pub received: AtomicU64,
}

enum Source<'a> {
    Tcp(tcp::ReadHalf<'a>),
    Tunnel(ReadHalf<'a>),
}

enum Sink<'a> {
    Tcp(tcp::WriteHalf<'a>),
    Tunnel(WriteHalf<'a>),
}

impl End {
    fn split(&mut self) -> (Source<'_>, Sink<'_>) {
        match self {
            Self::Tcp(socket) => {
                let (read, write) = socket.split();
                (Source::Tcp(read), Sink::Tcp(write))
            }
            Self::Tunnel(stream) => {
                let (read, write) = stream.split();
                (Source::Tunnel(read), Sink::Tunnel(write))
            }
        }
    }
}

/// Carries until both directions have ended. After an error, or when this is dropped before its
/// end, both ends are reset.
pub(crate) async fn relay(mut opener: End, mut answerer: End, carried: &Carried) -> io::Result<()> {
    {
        let (opener_out, opener_in) = opener.split();
        let (answerer_out, answerer_in) = answerer.split();
        let (opener_state, answerer_state) = (State::default(), State::default());
        let up = pump(
            (opener_out, &opener_state),
            (answerer_in, &answerer_state),
            &carried.sent,
        );
        let down = pump(
            (answerer_out, &answerer_state),
            (opener_in, &opener_state),
            &carried.received,
        );
        let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
        // Whoever reads an error is told by a reset: at once, with the direction that goes on.
        tokio::select! {
            ended = &mut up => {
                ended?;
                rest(down, &opener_state).await?;
            }
            ended = &mut down => {
                ended?;
                rest(up, &answerer_state).await?;
            }
        }
        if opener_state.is_closed() || answerer_state.is_closed() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
    }
    for end in [opener, answerer] {
        if let End::Tcp(socket) = end {
            socket.close();
        }
    }
    Ok(())
}

/// What is known of an end by writing to it.
#[derive(Debug, Default)]
struct State {
    /// It takes no more.
    closed: AtomicBool,
    /// By a reset before it had said that it has no more to say. The kernel tells an error once, so
    /// who reads then sees an end that was none.
    reset: AtomicBool,
}

impl State {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// A connection whose end had been told before its reset reports a broken pipe (tcp_reset in
    /// Linux: CLOSE_WAIT), all others something else.
    fn close(&self, by: &io::Error) {
        self.closed.store(true, Ordering::Relaxed);
        self.reset
            .store(by.kind() != io::ErrorKind::BrokenPipe, Ordering::Relaxed);
    }

    /// Whether an end that was read is one.
    fn check_end(&self) -> io::Result<()> {
        match self.reset.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::ConnectionReset.into()),
            false => Ok(()),
        }
    }
}

/// The direction that is left when the other has ended.
async fn rest(direction: impl Future<Output = io::Result<()>>, to: &State) -> io::Result<()> {
    let mut direction = std::pin::pin!(direction);
    loop {
        match timeout(LINGER, &mut direction).await {
            Ok(ended) => return ended,
            Err(_) if to.is_closed() => return Ok(()),
            Err(_) => {}
        }
    }
}

/// Carries one direction to its end. What comes for a side that takes no more is thrown away, so
/// that whoever sends comes to reading what was said before.
async fn pump(
    (mut from, from_state): (Source<'_>, &State),
    (mut to, to_state): (Sink<'_>, &State),
    count: &AtomicU64,
) -> io::Result<()> {
    let mut size = FIRST_READ;
    let refused = loop {
        let ready = tokio::select! {
            biased;
            refused = to.refused() => break refused,
            ready = from.ready() => ready?,
        };
        let data = match ready {
            Ready::Data(data) => data,
            Ready::End => match to.finish().await {
                Ok(()) => return Ok(()),
                Err(refused) => break refused,
            },
            Ready::Readable => {
                let room = tokio::select! {
                    room = to.room(size) => room,
                    // It would go unnoticed for as long as the other side does not read.
                    failed = from.failed() => return Err(failed),
                };
                let room = match room {
                    Ok(room) => room,
                    Err(refused) => break refused,
                };
                match from.read(room)? {
                    // A false alarm.
                    None => {
                        to.give_back();
                        continue;
                    }
                    Some(data) if data.is_empty() => {
                        from_state.check_end()?;
                        match to.finish().await {
                            Ok(()) => return Ok(()),
                            Err(refused) => break refused,
                        }
                    }
                    Some(data) => {
                        if data.len() == size {
                            size = (size * 2).min(MOST_READ);
                        } else if data.len() < size / 4 {
                            size = (size / 2).max(FIRST_READ);
                        }
                        data
                    }
                }
            }
        };
        let length = data.len();
        if let Err(refused) = to.put(data).await {
            break refused;
        }
        count.fetch_add(length as u64, Ordering::Relaxed);
        from.release(length)?;
    };
    if to.is_gone(&refused) {
        return Err(refused);
    }
    to_state.close(&refused);
    while from.discard().await? {}
    from_state.check_end()
}

enum Ready {
    /// Came without being asked for.
    Data(Bytes),
    /// Can be read.
    Readable,
    End,
}

impl Source<'_> {
    /// Waits until there is something. Cancellation-safe.
    async fn ready(&mut self) -> io::Result<Ready> {
        match self {
            Self::Tcp(read) => read.readable().await.map(|()| Ready::Readable),
            Self::Tunnel(read) => Ok(read.data().await?.map_or(Ready::End, Ready::Data)),
        }
    }

    /// Reads at most `room`: nothing if there is nothing after all, empty at the end.
    fn read(&mut self, room: usize) -> io::Result<Option<Bytes>> {
        let Self::Tcp(read) = self else { return Ok(None) };
        let mut buffer = BytesMut::with_capacity(room);
        // The allocator may have given more.
        let mut limited = (&mut buffer).limit(room);
        match read.try_read_buf(&mut limited) {
            Ok(_) => Ok(Some(buffer.freeze())),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Resolves when the other side has reset the connection. Cancellation-safe.
    async fn failed(&self) -> io::Error {
        match self {
            Self::Tcp(read) => failed(read.as_ref()).await,
            Self::Tunnel(_) => std::future::pending().await,
        }
    }

    /// So much was passed on.
    fn release(&mut self, length: usize) -> io::Result<()> {
        match self {
            Self::Tcp(_) => Ok(()),
            Self::Tunnel(read) => read.release(length),
        }
    }

    /// Throws something away; false at the end.
    async fn discard(&mut self) -> io::Result<bool> {
        match self.ready().await? {
            Ready::Data(data) => self.release(data.len()).map(|()| true),
            Ready::Readable => Ok(self.read(FIRST_READ)?.is_none_or(|data| !data.is_empty())),
            Ready::End => Ok(false),
        }
    }
}

impl Sink<'_> {
    /// Waits for room for at most `wanted` and says how much there is. Cancellation-safe.
    async fn room(&mut self, wanted: usize) -> io::Result<usize> {
        match self {
            Self::Tcp(write) => write.writable().await.map(|()| wanted),
            Self::Tunnel(write) => write.room(wanted).await,
        }
    }

    fn give_back(&mut self) {
        if let Self::Tunnel(write) = self {
            write.give_back();
        }
    }

    async fn put(&mut self, data: Bytes) -> io::Result<()> {
        match self {
            Self::Tcp(write) => write.write_all(&data).await,
            Self::Tunnel(write) => write.put(data),
        }
    }

    async fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(write) => write.shutdown().await,
            Self::Tunnel(write) => write.finish(),
        }
    }

    /// Resolves when the other side takes no more. Cancellation-safe.
    async fn refused(&mut self) -> io::Error {
        match self {
            Self::Tcp(write) => failed(write.as_ref()).await,
            Self::Tunnel(write) => write.refused().await,
        }
    }

    /// Whether after this error nothing can come from there either. What an app said before it
    /// reset its connection is still there to be read; a stream that is reset is gone as a whole,
    /// unless its other side only wants no more.
    fn is_gone(&self, error: &io::Error) -> bool {
        matches!(self, Self::Tunnel(_)) && error.kind() != io::ErrorKind::BrokenPipe
    }
}

async fn failed(socket: &tokio::net::TcpStream) -> io::Error {
    match socket.ready(Interest::ERROR).await {
        Ok(_) => {}
        Err(e) => return e,
    }
    match socket.take_error() {
        Ok(Some(e)) | Err(e) => e,
        Ok(None) => io::ErrorKind::ConnectionReset.into(),
    }
}
