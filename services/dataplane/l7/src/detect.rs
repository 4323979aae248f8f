//! Which HTTP a connection speaks, by its first bytes.
//!
//! Whoever speaks HTTP/2 without TLS says so with a preface that is no request of HTTP/1.1
//! (RFC 9113, section 3.4). Nothing is buffered but as much of it as came.

use crate::{ServeError, ServerLimits};
use bytes::BytesMut;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::timeout,
};
use weft_drain::Watcher;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    One,
    Two,
}

/// A connection whose first bytes have been looked at, and are read once more.
#[derive(Debug)]
pub(crate) struct Replayed<T> {
    io: T,
    start: [u8; PREFACE.len()],
    at: u8,
    len: u8,
}

/// Waits for the first bytes. `None`: it ended, or idled, before there were any.
pub(crate) async fn detect<T>(
    mut io: T,
    limits: &ServerLimits,
    drain: &mut Watcher,
) -> Result<Option<(Version, Replayed<T>)>, ServeError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut start = [0; PREFACE.len()];
    let leaving = async {
        drain.draining().await;
        // What its client has sent meanwhile is answered.
        tokio::time::sleep(limits.tick).await;
    };
    let first = tokio::select! {
        read = timeout(limits.idle_timeout, io.read(&mut start)) => read,
        () = leaving => return Ok(None),
    };
    let mut len = match first {
        Ok(Ok(len)) if len > 0 => len,
        // Reset or ended: nobody waits for anything.
        Ok(_) | Err(_) => return Ok(None),
    };
    let rest = async {
        while len < PREFACE.len() && start[..len] == PREFACE[..len] {
            match io.read(&mut start[len..]).await {
                Ok(0) | Err(_) => break,
                Ok(more) => len += more,
            }
        }
        len
    };
    let len = match timeout(limits.head_timeout, rest).await {
        Ok(len) => len,
        Err(_) => return Err(ServeError::HeadTimeout(limits.head_timeout)),
    };
    let version = match start == *PREFACE {
        true => Version::Two,
        false => Version::One,
    };
    let replayed = Replayed {
        io,
        start,
        at: 0,
        // At most 24.
        len: len as u8,
    };
    Ok(Some((version, replayed)))
}

impl<T> Replayed<T> {
    /// The connection, and what was read of it.
    pub fn into_parts(self) -> (T, BytesMut) {
        let read = &self.start[usize::from(self.at)..usize::from(self.len)];
        (self.io, BytesMut::from(read))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Replayed<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (at, len) = (usize::from(self.at), usize::from(self.len));
        if at < len {
            let taken = (len - at).min(buf.remaining());
            buf.put_slice(&self.start[at..at + taken]);
            self.at += taken as u8;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Replayed<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    /// What is told, and what is read, of bytes that come in two pieces.
    fn look(bytes: &[u8], cut: usize) -> Option<(Version, Vec<u8>)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (mut near, far) = tokio::io::duplex(256);
            let (_trigger, mut drain) = weft_drain::channel();
            let (one, two) = bytes.split_at(cut.min(bytes.len()));
            let (one, two) = (one.to_vec(), two.to_vec());
            let writing = tokio::spawn(async move {
                near.write_all(&one).await.unwrap();
                tokio::task::yield_now().await;
                near.write_all(&two).await.unwrap();
            });
            let limits = ServerLimits::default();
            let found = detect(far, &limits, &mut drain).await.unwrap();
            writing.await.unwrap();
            let (version, mut io) = found?;
            let mut all = Vec::new();
            io.read_to_end(&mut all).await.unwrap();
            Some((version, all))
        })
    }

    #[test]
    fn the_preface_is_told_from_requests_and_nothing_is_lost() {
        for cut in 0..30 {
            let two = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n+frames";
            assert_eq!(look(two, cut), Some((Version::Two, two.to_vec())));
            for one in [
                &b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n"[..],
                b"P",
                b"PRI /a HTTP/1.1\r\n\r\n",
                b"GET",
            ] {
                assert_eq!(look(one, cut), Some((Version::One, one.to_vec())));
            }
        }
        assert_eq!(look(b"", 0), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_passed_on(bytes in proptest::collection::vec(any::<u8>(), 1..60), cut in 0..60usize) {
            let (_, all) = look(&bytes, cut).unwrap();
            prop_assert_eq!(all, bytes);
        }
    }
}
