//! The one body type of requests and responses on their way through.

use crate::{
    h1::{chunked::ChunkError, exchange::ExchangeError, handed::Handed, received::Received},
    pool::Lease,
};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use parking_lot::Mutex;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::time::{Instant, Sleep, sleep_until};

/// Counts one request under way until dropped.
#[derive(Debug)]
pub struct InFlight(Arc<AtomicU32>);

impl InFlight {
    /// Counts one more in `counter`.
    pub fn begin(counter: &Arc<AtomicU32>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection of HTTP/2 that it comes from failed.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The connection it comes from failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The connection it comes from ended, or it is not as long as it said.
    #[error("the message ended before its body did")]
    Incomplete,
    /// Its chunks are none.
    #[error(transparent)]
    Chunks(#[from] ChunkError),
    /// What it answers to broke off.
    #[error(transparent)]
    Exchange(ExchangeError),
    /// Its time is over.
    #[error("the time for this message is over")]
    Deadline,
    /// It may not go on.
    #[error("this message may not go on")]
    Cut,
    /// It is larger than what may be kept of it.
    #[error("more than {0} bytes")]
    TooLarge(usize),
    /// Whoever makes it here failed.
    #[error("{0}")]
    Made(String),
}

/// A body that streams through, or a short one made here.
#[derive(Debug, Default)]
pub struct Body {
    source: Source,
    /// The connection it comes from; goes back to its pool at the end of the body.
    lease: Option<Lease>,
    /// The connection that became something else.
    handed: Option<HandedOver>,
    /// The stream of a served HTTP/2 connection that is open until this response's body is sent.
    pub(crate) stream: Option<InFlight>,
    /// When it must have ended.
    deadline: Option<Pin<Box<Sleep>>>,
    /// What breaks it off.
    cut: Option<Cut>,
}

/// The lock is never taken; it makes the future one that may be shared.
struct Cut(Mutex<BoxFuture<'static, ()>>);

impl std::fmt::Debug for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cut")
    }
}

/// The lock is never taken; it makes the connection one that may be shared.
struct HandedOver(Mutex<Box<Handed>>);

impl std::fmt::Debug for HandedOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HandedOver")
    }
}

#[derive(Debug, Default)]
enum Source {
    #[default]
    Empty,
    Bytes(Bytes),
    /// By HTTP/2.
    Incoming(Incoming),
    Made(Made),
    /// Of a request, by HTTP/1.1.
    Received(Received),
    /// Of an answer, by HTTP/1.1: from the connection of the lease.
    Leased,
}

/// The lock is never taken; it makes the body one that may be shared.
struct Made(Box<Mutex<UnsyncBoxBody<Bytes, BodyError>>>);

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Made")
    }
}

impl Body {
    /// Without content.
    pub fn empty() -> Self {
        Self::default()
    }

    /// All of `bytes`.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self {
            source: Source::Bytes(bytes.into()),
            ..Self::default()
        }
    }

    /// What is made here piece by piece, trailers and all.
    pub fn made<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        if body.is_end_stream() {
            return Self::empty();
        }
        let body = body.map_err(|e| BodyError::Made(e.to_string()));
        Self {
            source: Source::Made(Made(Box::new(Mutex::new(body.boxed_unsync())))),
            ..Self::default()
        }
    }

    pub(crate) fn leased(incoming: Incoming, mut lease: Lease) -> Self {
        if incoming.is_end_stream() {
            lease.finish();
            return Self::empty();
        }
        Self {
            source: Source::Incoming(incoming),
            lease: Some(lease),
            ..Self::default()
        }
    }

    /// What the connection of `lease` brings.
    pub(crate) fn answered(lease: Lease) -> Self {
        let mut body = Self {
            source: Source::Leased,
            lease: Some(lease),
            ..Self::default()
        };
        if body.is_end_stream() {
            body.end();
        }
        body
    }

    /// Nothing, which yet keeps what `lease` counts: its connection became something else.
    pub(crate) fn handed(lease: Lease, handed: Handed) -> Self {
        Self {
            lease: Some(lease),
            handed: Some(HandedOver(Mutex::new(Box::new(handed)))),
            ..Self::default()
        }
    }

    /// The connection that became something else.
    pub(crate) fn take_handed(&mut self) -> Option<Handed> {
        Some(*self.handed.take()?.0.into_inner())
    }

    /// Of an answer by HTTP/1.1 that has not ended: the headers of its request, once.
    pub fn take_asked(&mut self) -> Option<HeaderMap> {
        self.lease.as_mut()?.asked.take()
    }

    /// The body of a request that was received.
    pub(crate) fn received(received: Received) -> Self {
        Self {
            source: Source::Received(received),
            ..Self::default()
        }
    }

    /// Breaks off with [`BodyError::Deadline`] unless it has ended by then.
    pub fn set_deadline(&mut self, deadline: Instant) {
        if !self.is_end_stream() {
            self.deadline = Some(Box::pin(sleep_until(deadline)));
        }
    }

    /// Breaks off with [`BodyError::Cut`] when that comes about before it has ended.
    pub fn cut_when(&mut self, end: impl Future<Output = ()> + Send + 'static) {
        if !self.is_end_stream() {
            self.cut = Some(Cut(Mutex::new(Box::pin(end))));
        }
    }

    /// Whether all of it is here, so that it can be sent more than once.
    pub fn is_kept(&self) -> bool {
        matches!(self.source, Source::Empty | Source::Bytes(_))
    }

    /// The same content once more; `None` unless [`Body::is_kept`].
    pub fn again(&self) -> Option<Self> {
        match &self.source {
            Source::Empty => Some(Self::empty()),
            Source::Bytes(bytes) => Some(Self::full(bytes.clone())),
            _ => None,
        }
    }

    /// Whether it says of itself that it has at most `limit` bytes.
    pub fn is_short(&self, limit: usize) -> bool {
        let upper = self.size_hint().upper();
        upper.is_some_and(|upper| upper <= limit as u64)
    }

    /// Reads a body to its end, so that it can be sent more than once. At most `limit` bytes of it.
    pub async fn keep(self, limit: usize) -> Result<Self, BodyError> {
        if self.is_kept() {
            return Ok(self);
        }
        let limited = http_body_util::Limited::new(self, limit);
        match limited.collect().await {
            Ok(all) => Ok(Self::full(all.to_bytes())),
            Err(error) => Err(match error.downcast::<BodyError>() {
                Ok(error) => *error,
                Err(_) => BodyError::TooLarge(limit),
            }),
        }
    }

    fn end(&mut self) {
        self.source = Source::Empty;
        if let Some(mut lease) = self.lease.take() {
            lease.finish();
        }
        self.stream = None;
        self.deadline = None;
        self.cut = None;
    }

    /// Why it must not go on, if it must not. Neither connection is in a state to be used again then.
    fn poll_break(&mut self, cx: &mut Context<'_>) -> Option<BodyError> {
        let late = self
            .deadline
            .as_mut()
            .is_some_and(|d| d.as_mut().poll(cx).is_ready());
        let cut = |cut: &mut Cut| cut.0.get_mut().as_mut().poll(cx).is_ready();
        let error = match late {
            true => BodyError::Deadline,
            false if self.cut.as_mut().is_some_and(cut) => BodyError::Cut,
            false => return None,
        };
        self.lease = None;
        self.source = Source::Empty;
        self.deadline = None;
        self.cut = None;
        Some(error)
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        Self {
            source: Source::Incoming(incoming),
            ..Self::default()
        }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::full(text)
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::full(bytes)
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self::full(text)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(error) = this.poll_break(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        match &mut this.source {
            Source::Empty => {
                this.end();
                Poll::Ready(None)
            }
            Source::Bytes(bytes) => {
                let bytes = std::mem::take(bytes);
                this.end();
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            source => {
                let (polled, ended) = match source {
                    Source::Incoming(incoming) => {
                        let polled = ready!(Pin::new(&mut *incoming).poll_frame(cx));
                        let polled = polled.map(|frame| frame.map_err(BodyError::from));
                        (polled, incoming.is_end_stream())
                    }
                    Source::Made(made) => (ready!(Pin::new(made.0.get_mut()).poll_frame(cx)), false),
                    Source::Received(received) => (ready!(received.poll_frame(cx)), received.is_ended()),
                    _ => match this.lease.as_mut().and_then(Lease::exchange) {
                        Some(exchange) => (ready!(exchange.poll_frame(cx)), exchange.is_ended()),
                        None => (Some(Err(BodyError::Incomplete)), true),
                    },
                };
                match polled {
                    Some(Ok(frame)) => {
                        // Known now rather than at the next poll, which may never come.
                        if ended {
                            this.end();
                        }
                        Poll::Ready(Some(Ok(frame)))
                    }
                    Some(Err(error)) => {
                        // The connection is not in a state to be used again.
                        this.lease = None;
                        this.source = Source::Empty;
                        Poll::Ready(Some(Err(error)))
                    }
                    None => {
                        this.end();
                        Poll::Ready(None)
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Bytes(bytes) => bytes.is_empty(),
            Source::Incoming(incoming) => incoming.is_end_stream(),
            // Known at its end only.
            Source::Made(_) => false,
            Source::Received(received) => received.is_ended(),
            Source::Leased => self.lease.as_ref().is_none_or(Lease::is_ended),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Incoming(incoming) => incoming.size_hint(),
            Source::Made(_) => SizeHint::default(),
            Source::Received(received) => received.size_hint(),
            Source::Leased => self
                .lease
                .as_ref()
                .map_or_else(SizeHint::default, Lease::size_hint),
        }
    }
}
