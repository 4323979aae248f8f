//! A connection with what was read of it and what is to be written to it.
//!
//! Between messages it holds no buffer: reading goes by one of the thread until it is known how much came,
//! so that an idle connection costs little.

use bytes::{Buf, Bytes, BytesMut};
use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// What one look at a connection brings at most where little is expected.
const SCRATCH: usize = 16 * 1024;

thread_local! {
    static SCRATCH_OF_THREAD: RefCell<[u8; SCRATCH]> = const { RefCell::new([0; SCRATCH]) };
}

/// Both directions of a connection.
#[derive(Debug)]
pub(crate) struct Wire<T> {
    pub io: T,
    /// Read, and not taken yet.
    pub read: BytesMut,
    /// To be written: a head, or the line before a chunk.
    pub out: Vec<u8>,
    /// How much of `out` is written.
    written: usize,
    /// To be written after it.
    data: Bytes,
    /// And after that.
    tail: &'static [u8],
    /// Some bytes were ever written since [`Wire::begin`].
    begun: bool,
    /// All is written and passed on.
    flushed: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Wire<T> {
    /// What was read of it so far is `read`.
    pub fn new(io: T, read: BytesMut) -> Self {
        Self {
            io,
            read,
            out: Vec::new(),
            written: 0,
            data: Bytes::new(),
            tail: &[],
            begun: false,
            flushed: true,
        }
    }

    /// Reads more; 0 at the end. `wanted` is how much is known to come.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        if wanted > SCRATCH {
            self.read.reserve(wanted);
            return poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read);
        }
        SCRATCH_OF_THREAD.with(|scratch| {
            let Ok(mut scratch) = scratch.try_borrow_mut() else {
                // Within the reading of another connection, which this one is carried by.
                self.read.reserve(SCRATCH);
                return poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read);
            };
            let mut buffer = ReadBuf::new(&mut *scratch);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            let read = buffer.filled();
            self.read.extend_from_slice(read);
            Poll::Ready(Ok(read.len()))
        })
    }

    /// Whether the peer has closed it, or sent what nobody asked for. Nothing waits for it then.
    pub fn is_dead(&mut self, cx: &mut Context<'_>) -> bool {
        !self.read.is_empty() || self.poll_fill(cx, 0).is_ready()
    }

    /// A new message is written from now on.
    pub fn begin(&mut self) {
        self.begun = false;
    }

    /// Whether any byte of the message was written.
    pub fn is_begun(&self) -> bool {
        self.begun
    }

    /// Something was put into `out`.
    pub fn touch(&mut self) {
        self.flushed = false;
    }

    /// Puts the data of a body behind what is in `out`; only where there is none yet.
    pub fn put(&mut self, data: Bytes, tail: &'static [u8]) {
        self.data = data;
        self.tail = tail;
        self.flushed = false;
    }

    /// Whether more data can be put.
    pub fn has_room(&self) -> bool {
        self.data.is_empty() && self.tail.is_empty()
    }

    /// Whether nothing is left to be written.
    pub fn is_flushed(&self) -> bool {
        self.flushed
    }

    /// Writes all there is.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.flushed {
            return Poll::Ready(Ok(()));
        }
        loop {
            let out = self.out.get(self.written..).unwrap_or_default();
            if out.is_empty() && self.data.is_empty() && self.tail.is_empty() {
                break;
            }
            let io = Pin::new(&mut self.io);
            let n = if io.is_write_vectored() {
                let pieces = [
                    IoSlice::new(out),
                    IoSlice::new(&self.data),
                    IoSlice::new(self.tail),
                ];
                let from = usize::from(out.is_empty());
                ready!(io.poll_write_vectored(cx, &pieces[from..]))?
            } else {
                let pieces = [out, &self.data, self.tail];
                let next = pieces.into_iter().find(|piece| !piece.is_empty());
                ready!(io.poll_write(cx, next.unwrap_or_default()))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.begun = true;
            self.wrote(n);
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.out.clear();
        self.written = 0;
        self.flushed = true;
        Poll::Ready(Ok(()))
    }

    fn wrote(&mut self, n: usize) {
        let of_out = n.min(self.out.len() - self.written);
        self.written += of_out;
        let n = n - of_out;
        let of_data = n.min(self.data.len());
        if of_data > 0 && of_data == self.data.len() {
            // Gives its buffer back.
            self.data = Bytes::new();
        } else {
            self.data.advance(of_data);
        }
        self.tail = self.tail.get(n - of_data..).unwrap_or_default();
    }

    /// Nothing more of the message can be written.
    pub fn give_up(&mut self) {
        self.out.clear();
        self.written = 0;
        self.data = Bytes::new();
        self.tail = &[];
        self.flushed = true;
    }

    /// Holds no buffer that is not needed.
    pub fn rest(&mut self) {
        if self.flushed {
            self.out = Vec::new();
        }
        if self.read.is_empty() {
            self.read = BytesMut::new();
        }
    }
}
