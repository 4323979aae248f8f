//! One connection to a peer: a request is written to it and the answer read from it, by whoever waits for
//! that answer. What of the request is not written by then is written while the answer is read.

use super::{
    framing::Framing,
    handed::{Handed, Io},
    head::{self, HeadError, HeadLimits, Looked},
    wire::Wire,
    write::{self, Written},
};
use crate::{Body, BodyError};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode, header, request};
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

const LIMITS: HeadLimits = HeadLimits {
    fields: 100,
    bytes: 64 * 1024,
};
/// Interim answers to one request (`103 Early Hints`); they are not passed on.
const MAX_INTERIM: usize = 16;

/// Why there is no answer, or none to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It ended before the answer did.
    #[error("the connection ended before the answer")]
    Ended,
    /// What came is no answer.
    #[error("the answer can not be read: {0}")]
    Head(#[from] HeadError),
    /// The request did not come to its end.
    #[error("the request broke off: {0}")]
    Request(#[source] Box<BodyError>),
}

/// What is left of a request's body.
struct Upload {
    body: Body,
    chunked: bool,
    /// Bytes that were promised and are not written.
    left: u64,
    /// Some of it was taken from where it comes from.
    begun: bool,
}

/// A connection, and what is under way on it.
pub(crate) struct Exchange {
    /// The lock is never taken; it makes the connection one that may be shared.
    wire: Mutex<Wire<Box<dyn Io>>>,
    upload: Option<Upload>,
    /// Of the answer.
    framing: Framing,
    keep_alive: bool,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("framing", &self.framing)
            .finish_non_exhaustive()
    }
}

/// How a request's body is written: as its own length says; where that is not known, in chunks.
fn written(head: &request::Parts, body: &Body) -> Written {
    match body.size_hint().exact() {
        Some(0) | None if body.is_end_stream() => match head.headers.contains_key(header::CONTENT_LENGTH) {
            true => Written::Length(0),
            false => Written::Without,
        },
        Some(length) => Written::Length(length),
        None => Written::Chunked,
    }
}

impl Exchange {
    pub fn new(io: impl Io + 'static) -> Self {
        Self {
            wire: Mutex::new(Wire::new(Box::new(io), BytesMut::new())),
            upload: None,
            framing: Framing::NONE,
            keep_alive: true,
        }
    }

    /// Sends a request and reads the head of its answer, which it answers with the request's headers. The
    /// request comes back if nothing of it was sent.
    pub async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<(Response<()>, HeaderMap), (ExchangeError, Option<Request<Body>>)> {
        let (head, body) = request.into_parts();
        let how = written(&head, &body);
        let wire = self.wire.get_mut();
        wire.begin();
        write::write_request(&mut wire.out, &head, how);
        wire.touch();
        self.upload = (!matches!(how, Written::Without | Written::Length(0))).then_some(Upload {
            body,
            chunked: how == Written::Chunked,
            left: match how {
                Written::Length(length) => length,
                _ => u64::MAX,
            },
            begun: false,
        });
        let (mut looked, mut interim) = (Looked::default(), 0);
        let answered = poll_fn(|cx| self.poll_answer(cx, &head.method, &mut looked, &mut interim)).await;
        match answered {
            Ok(answer) => Ok((answer, head.headers)),
            Err(error) => Err((error, self.unsent(head))),
        }
    }

    /// The request, if nothing of it was written and nothing of its body taken.
    fn unsent(&mut self, head: request::Parts) -> Option<Request<Body>> {
        let upload = self.upload.take();
        if self.wire.get_mut().is_begun() || upload.as_ref().is_some_and(|upload| upload.begun) {
            return None;
        }
        let body = upload.map(|upload| upload.body).unwrap_or_default();
        Some(Request::from_parts(head, body))
    }

    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        asked: &Method,
        looked: &mut Looked,
        interim: &mut usize,
    ) -> Poll<Result<Response<()>, ExchangeError>> {
        if let Err(error) = self.pump(cx) {
            return Poll::Ready(Err(error));
        }
        let wire = self.wire.get_mut();
        loop {
            let read = head::answer(&mut wire.read, looked, LIMITS, asked);
            let Some((response, message)) = read? else {
                match ready!(wire.poll_fill(cx, 0))? {
                    0 => return Poll::Ready(Err(ExchangeError::Ended)),
                    _ => continue,
                }
            };
            if response.status().is_informational() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                *interim += 1;
                match *interim > MAX_INTERIM {
                    true => return Poll::Ready(Err(HeadError::TooLarge.into())),
                    false => continue,
                }
            }
            self.framing = message.framing;
            self.keep_alive &= message.keep_alive;
            return Poll::Ready(Ok(response));
        }
    }

    /// Writes what can be. A peer that takes no more may have answered already, so that alone is no error.
    fn pump(&mut self, cx: &mut Context<'_>) -> Result<(), ExchangeError> {
        let wire = self.wire.get_mut();
        loop {
            let mut waits = false;
            if let Some(upload) = &mut self.upload
                && wire.has_room()
            {
                match upload.poll(wire, cx) {
                    Poll::Ready(Ok(true)) => {}
                    Poll::Ready(Ok(false)) => self.upload = None,
                    Poll::Ready(Err(error)) => return Err(ExchangeError::Request(Box::new(error))),
                    Poll::Pending => waits = true,
                }
            }
            match wire.poll_flush(cx) {
                Poll::Ready(Ok(())) if self.upload.is_none() || waits => return Ok(()),
                Poll::Ready(Ok(())) => {}
                Poll::Pending => return Ok(()),
                Poll::Ready(Err(error)) if !wire.is_begun() => return Err(error.into()),
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "a peer took a request in part only");
                    self.keep_alive = false;
                    self.upload = None;
                    wire.give_up();
                    return Ok(());
                }
            }
        }
    }

    /// The next of the answer's body.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if (self.upload.is_some() || !self.wire.get_mut().is_flushed())
            && let Err(error) = self.pump(cx)
        {
            return Poll::Ready(Some(Err(BodyError::Exchange(error))));
        }
        self.framing.poll_frame(self.wire.get_mut(), cx)
    }

    pub fn is_ended(&self) -> bool {
        self.framing.is_ended()
    }

    pub fn size_hint(&self) -> SizeHint {
        self.framing.size_hint()
    }

    /// Something of the request is still to be written.
    pub fn is_sending(&mut self) -> bool {
        self.upload.is_some() || !self.wire.get_mut().is_flushed()
    }

    /// Writes the rest of the request.
    pub async fn finish_sending(&mut self) -> Result<(), ExchangeError> {
        poll_fn(|cx| {
            self.pump(cx)?;
            match self.is_sending() {
                true => Poll::Pending,
                false => Poll::Ready(Ok(())),
            }
        })
        .await
    }

    /// Whether another request may be sent on it. Holds no buffers from then on.
    pub fn is_reusable(&mut self) -> bool {
        let free = self.keep_alive && self.framing.is_ended() && !self.is_sending();
        let wire = self.wire.get_mut();
        wire.rest();
        free && wire.read.is_empty()
    }

    /// Whether its peer has closed it, or spoken unasked.
    pub fn is_dead(&mut self) -> bool {
        self.wire
            .get_mut()
            .is_dead(&mut Context::from_waker(Waker::noop()))
    }

    /// The connection itself, with what came behind the answer.
    pub fn hand_over(self) -> Handed {
        let wire = self.wire.into_inner();
        Handed {
            io: wire.io,
            read: wire.read.freeze(),
        }
    }
}

impl Upload {
    /// Puts the next of the body where it is written from; `false` at its end.
    fn poll(&mut self, wire: &mut Wire<Box<dyn Io>>, cx: &mut Context<'_>) -> Poll<Result<bool, BodyError>> {
        self.begun = true;
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(frame) => frame?,
            None => return Poll::Ready(self.end(wire, None)),
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return Poll::Ready(self.end(wire, frame.into_trailers().ok().as_ref())),
        };
        if data.is_empty() {
            return Poll::Ready(Ok(true));
        }
        if !self.chunked {
            let Some(left) = self.left.checked_sub(data.len() as u64) else {
                return Poll::Ready(Err(BodyError::Incomplete));
            };
            self.left = left;
            wire.put(data, b"");
            return Poll::Ready(Ok(left > 0));
        }
        write::write_chunk(&mut wire.out, data.len());
        let last = self.body.is_end_stream();
        wire.put(data, if last { b"\r\n0\r\n\r\n" } else { b"\r\n" });
        Poll::Ready(Ok(!last))
    }

    fn end(&mut self, wire: &mut Wire<Box<dyn Io>>, trailers: Option<&HeaderMap>) -> Result<bool, BodyError> {
        if self.chunked {
            write::write_last(&mut wire.out, trailers);
            wire.touch();
        } else if self.left > 0 {
            return Err(BodyError::Incomplete);
        }
        Ok(false)
    }
}
