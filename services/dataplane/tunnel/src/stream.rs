//! One CONNECT stream as a byte stream: back-pressure both ways, each direction ends by itself.

use crate::stuck::{Stuck, Waiting};
use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use std::{
    any::Any,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One write takes at most this much, so that one writer can not claim a whole send buffer of
/// fresh memory at once.
const MAX_WRITE: usize = 256 * 1024;

/// A byte stream to a workload on another node.
pub struct TunnelStream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Received, not yet read. Its flow-control credit is given back as it is read.
    unread: Bytes,
    finished: bool,
    retired: Arc<AtomicBool>,
    stuck: Stuck,
    /// While what came is not passed on.
    unreleased: Option<Waiting>,
    /// Released with the stream (counts it on its connection).
    _held: Option<Box<dyn Any + Send + Sync>>,
}

impl std::fmt::Debug for TunnelStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunnelStream")
            .field("id", &self.send.stream_id())
            .finish_non_exhaustive()
    }
}

impl TunnelStream {
    pub(crate) fn new(
        send: SendStream<Bytes>,
        recv: RecvStream,
        retired: Arc<AtomicBool>,
        stuck: Stuck,
        held: Option<Box<dyn Any + Send + Sync>>,
    ) -> Self {
        Self {
            send,
            recv,
            unread: Bytes::new(),
            finished: false,
            retired,
            stuck,
            unreleased: None,
            _held: held,
        }
    }

    /// Set once the stream's connection must not carry anything new: its certificate or bundle was
    /// replaced, or the peer is going away. What is under way may be finished.
    pub fn retired(&self) -> Arc<AtomicBool> {
        self.retired.clone()
    }

    /// Both directions, each on its own, without a copy of what passes.
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        let read = ReadHalf {
            recv: &mut self.recv,
            unread: &mut self.unread,
            stuck: &self.stuck,
            unreleased: &mut self.unreleased,
        };
        let write = WriteHalf {
            send: &mut self.send,
            finished: &mut self.finished,
            stuck: &self.stuck,
        };
        (read, write)
    }

    /// Waits for room to write and says how much there is, at most `wanted`.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        poll_room(&mut self.send, self.finished, cx, wanted)
    }

    fn put(&mut self, data: Bytes) -> io::Result<()> {
        self.send.send_data(data, false).map_err(io_error)
    }
}

fn poll_room(
    send: &mut SendStream<Bytes>,
    finished: bool,
    cx: &mut Context<'_>,
    wanted: usize,
) -> Poll<io::Result<usize>> {
    if finished {
        return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
    }
    let wanted = wanted.min(MAX_WRITE);
    send.reserve_capacity(wanted);
    loop {
        let room = send.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room.min(wanted)));
        }
        match ready!(send.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(e)) => return Poll::Ready(Err(io_error(e))),
            None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

/// Waits for the next data; none at the end.
fn poll_data(recv: &mut RecvStream, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
    Poll::Ready(match ready!(recv.poll_data(cx)) {
        Some(Ok(data)) => Ok(Some(data)),
        Some(Err(e)) => match e.reason() {
            // The other side is done with the stream and wants no more: an end.
            Some(Reason::NO_ERROR) => Ok(None),
            _ => Err(io_error(e)),
        },
        None => Ok(None),
    })
}

fn finish(send: &mut SendStream<Bytes>, finished: &mut bool) -> io::Result<()> {
    if *finished {
        return Ok(());
    }
    *finished = true;
    send.send_data(Bytes::new(), true).map_err(io_error)
}

/// What comes out of a stream.
#[derive(Debug)]
pub struct ReadHalf<'a> {
    recv: &'a mut RecvStream,
    unread: &'a mut Bytes,
    stuck: &'a Stuck,
    unreleased: &'a mut Option<Waiting>,
}

impl ReadHalf<'_> {
    /// The next data as it came, never empty; `None` at the end. The peer may send as much again
    /// only after [`ReadHalf::release`]. Cancellation-safe.
    pub async fn data(&mut self) -> io::Result<Option<Bytes>> {
        if !self.unread.is_empty() {
            return Ok(Some(std::mem::take(self.unread)));
        }
        loop {
            match poll_fn(|cx| poll_data(self.recv, cx)).await? {
                Some(data) if data.is_empty() => {}
                Some(data) => {
                    *self.unreleased = Some(self.stuck.wait());
                    return Ok(Some(data));
                }
                None => return Ok(None),
            }
        }
    }

    /// So many bytes were passed on.
    pub fn release(&mut self, bytes: usize) -> io::Result<()> {
        *self.unreleased = None;
        self.recv.flow_control().release_capacity(bytes).map_err(io_error)
    }
}

/// What goes into a stream.
#[derive(Debug)]
pub struct WriteHalf<'a> {
    send: &'a mut SendStream<Bytes>,
    finished: &'a mut bool,
    stuck: &'a Stuck,
}

impl WriteHalf<'_> {
    /// Waits until something may be written and says how much, at most `wanted`. The room is taken
    /// from other streams' until [`WriteHalf::put`] or [`WriteHalf::give_back`]. Cancellation-safe.
    pub async fn room(&mut self, wanted: usize) -> io::Result<usize> {
        let mut waiting = None;
        poll_fn(|cx| {
            let room = poll_room(self.send, *self.finished, cx, wanted);
            if room.is_pending() {
                waiting.get_or_insert_with(|| self.stuck.wait());
            }
            room
        })
        .await
    }

    /// Writes at most the room there is.
    pub fn put(&mut self, data: Bytes) -> io::Result<()> {
        self.send.send_data(data, false).map_err(io_error)?;
        self.give_back();
        Ok(())
    }

    /// Gives back room that is not used.
    pub fn give_back(&mut self) {
        self.send.reserve_capacity(0);
    }

    /// Says that no more comes; the other direction goes on.
    pub fn finish(&mut self) -> io::Result<()> {
        finish(self.send, self.finished)
    }

    /// Resolves when the other side takes no more. Cancellation-safe.
    pub async fn refused(&mut self) -> io::Error {
        match poll_fn(|cx| self.send.poll_reset(cx)).await {
            Ok(reason) => io_error(reason.into()),
            Err(e) => io_error(e),
        }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let this = &mut *self;
        while this.unread.is_empty() {
            match ready!(poll_data(&mut this.recv, cx))? {
                Some(data) => this.unread = data,
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = this.unread.len().min(buf.remaining());
        buf.put_slice(&this.unread[..taken]);
        this.unread.advance(taken);
        // Only now may the peer send as much again.
        this.recv
            .flow_control()
            .release_capacity(taken)
            .map_err(io_error)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let taken = ready!(self.poll_room(cx, buf.len()))?;
        self.put(Bytes::copy_from_slice(&buf[..taken]))?;
        Poll::Ready(Ok(taken))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted: usize = bufs.iter().map(|b| b.len()).sum();
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        // One frame for all pieces: head and body of a small message travel together.
        let taken = ready!(self.poll_room(cx, wanted))?;
        let mut frame = BytesMut::with_capacity(taken);
        for piece in bufs {
            let left = taken - frame.len();
            frame.extend_from_slice(&piece[..piece.len().min(left)]);
        }
        self.put(frame.freeze())?;
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task writes what was handed over.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        Poll::Ready(finish(&mut this.send, &mut this.finished))
    }
}

pub(crate) fn io_error(e: h2::Error) -> io::Error {
    if e.is_io() {
        return e
            .into_io()
            .unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into());
    }
    let kind = match e.reason() {
        Some(Reason::CANCEL | Reason::REFUSED_STREAM | Reason::STREAM_CLOSED) => {
            io::ErrorKind::ConnectionReset
        }
        Some(Reason::NO_ERROR) => io::ErrorKind::BrokenPipe,
        _ => io::ErrorKind::ConnectionAborted,
    };
    io::Error::new(kind, e)
}
