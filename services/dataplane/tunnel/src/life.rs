//! Signs of life of a peer: any bytes that come from it, answers to PINGs, and its kernel's
//! acknowledgements of what was sent.
//!
//! A PING alone would not do: on a slow link it waits behind megabytes that were sent before it,
//! and a connection that moves data all the time would be taken for dead.

use h2::{Ping, PingPong};
use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// Set when bytes came; taken back by whoever looks.
pub(crate) type Heard = Arc<AtomicBool>;

/// A connection that notes whether anything comes.
pub(crate) struct Listening<T> {
    io: T,
    heard: Heard,
}

impl<T> Listening<T> {
    pub fn new(io: T) -> (Self, Heard) {
        let heard = Heard::default();
        (
            Self {
                io,
                heard: heard.clone(),
            },
            heard,
        )
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Listening<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.heard.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Listening<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The acknowledgements of a TCP connection.
pub(crate) struct Acks(OwnedFd);

impl Acks {
    /// Of `socket`, on a descriptor of its own.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        Ok(Self(socket.as_fd().try_clone_to_owned()?))
    }

    /// How long ago the last one came.
    fn last(&self) -> Option<Duration> {
        let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
        let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
        // SAFETY: the descriptor is open for as long as `self`; the kernel writes at most `len`
        // bytes to `info`, which is that large.
        let done = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if done != 0 {
            return None;
        }
        // SAFETY: all bit patterns are valid for its integer fields, and what the kernel did not
        // write is zero.
        let info = unsafe { info.assume_init() };
        Some(Duration::from_millis(info.tcpi_last_ack_recv.into()))
    }
}

/// Asks for signs of life and says when there are none.
pub(crate) struct Watchdog {
    pings: PingPong,
    acks: Acks,
    heard: Heard,
    last: Instant,
    /// When the PING under way was sent.
    asked: Option<Instant>,
}

impl Watchdog {
    pub fn new(pings: PingPong, (heard, acks): (Heard, Acks)) -> Self {
        Self {
            pings,
            acks,
            heard,
            last: Instant::now(),
            asked: None,
        }
    }

    /// Sends a PING unless one is under way.
    pub fn ask(&mut self) {
        if self.asked.is_none() && self.pings.send_ping(Ping::opaque()).is_ok() {
            self.asked = Some(Instant::now());
        }
    }

    /// Resolves when the PING under way is answered; stays pending when the connection ends.
    /// Cancellation-safe.
    pub async fn answered(&mut self) {
        let pong = std::future::poll_fn(|cx| self.pings.poll_pong(cx)).await;
        if pong.is_err() {
            std::future::pending::<()>().await;
        }
        self.asked = None;
        self.last = Instant::now();
    }

    /// When the peer was last heard, to the precision of the calls to this.
    pub fn last_heard(&mut self) -> Instant {
        if self.heard.swap(false, Ordering::Relaxed) {
            self.last = Instant::now();
        }
        self.last
    }

    /// Asks after silence, and says whether there was no sign for too long since.
    pub fn is_dead(&mut self, interval: Duration, limit: Duration) -> bool {
        let last = self.last_heard();
        if last.elapsed() >= interval {
            self.ask();
        }
        let unanswered = self.asked.is_some_and(|asked| asked.max(last).elapsed() >= limit);
        // While acknowledgements come, the PING is only waiting for its turn.
        unanswered && self.acks.last().is_none_or(|ago| ago >= limit)
    }
}
