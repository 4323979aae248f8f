//! The body of an answer on its way to the client: the next piece is taken once the one before is written.

use crate::{
    Body, BodyError, ServeError,
    h1::{
        received::{Inner, Shared},
        write::{self, Written},
    },
    server1::is_gone,
};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite};

/// An answer that is being written.
pub(crate) struct Writing {
    body: Body,
    written: Written,
    takes_trailers: bool,
    ended: bool,
}

impl Writing {
    /// The body of an answer whose head is written.
    pub fn new(body: Body, written: Written, takes_trailers: bool) -> Self {
        Self {
            body,
            written,
            takes_trailers,
            ended: written == Written::Without,
        }
    }

    /// Writes what there is, until all of it is written.
    pub fn poll<T>(&mut self, shared: &Shared<T>, cx: &mut Context<'_>) -> Poll<Result<(), ServeError>>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            // Its body may be that of the request: it is polled without holding the connection.
            let waits = !self.ended && has_room(&shared.0.lock()) && {
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => {
                        self.put(shared, frame).map_err(ServeError::Answer)?;
                        false
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(ServeError::Answer(error))),
                    Poll::Ready(None) => {
                        self.end(shared, None).map_err(ServeError::Answer)?;
                        false
                    }
                    Poll::Pending => true,
                }
            };
            let mut inner = shared.0.lock();
            let Some(wire) = &mut inner.wire else {
                return Poll::Ready(Ok(()));
            };
            ready!(wire.poll_flush(cx))?;
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if waits {
                if is_gone(&mut inner, cx) {
                    let gone = io::Error::from(io::ErrorKind::ConnectionAborted);
                    return Poll::Ready(Err(gone.into()));
                }
                return Poll::Pending;
            }
        }
    }

    fn put<T>(&mut self, shared: &Shared<T>, frame: Frame<Bytes>) -> Result<(), BodyError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return self.end(shared, frame.into_trailers().ok().as_ref()),
        };
        if data.is_empty() {
            return Ok(());
        }
        let ended = self.body.is_end_stream();
        let mut inner = shared.0.lock();
        let Some(wire) = &mut inner.wire else {
            return Ok(());
        };
        let tail: &[u8] = match &mut self.written {
            Written::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(BodyError::Incomplete)?;
                self.ended = *left == 0;
                b""
            }
            Written::Chunked => {
                write::write_chunk(&mut wire.out, data.len());
                self.ended = ended;
                if ended { b"\r\n0\r\n\r\n" } else { b"\r\n" }
            }
            Written::ToEnd | Written::Without => b"",
        };
        wire.put(data, tail);
        Ok(())
    }

    fn end<T>(&mut self, shared: &Shared<T>, trailers: Option<&HeaderMap>) -> Result<(), BodyError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        self.ended = true;
        match self.written {
            Written::Length(1..) => return Err(BodyError::Incomplete),
            Written::Chunked => {
                if let Some(wire) = &mut shared.0.lock().wire {
                    write::write_last(&mut wire.out, trailers.filter(|_| self.takes_trailers));
                    wire.touch();
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn has_room<T: AsyncRead + AsyncWrite + Unpin>(inner: &Inner<T>) -> bool {
    inner.wire.as_ref().is_some_and(|wire| wire.has_room())
}
