//! The one body type of requests and responses on their way through.

use crate::{
    pool::Lease,
    server::{Busy, RequestBusy},
};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
};

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

/// A body that streams through, or a short one made here.
#[derive(Debug, Default)]
pub struct Body {
    source: Source,
    /// The connection it comes from; goes back to its pool at the end of the body.
    lease: Option<Lease>,
    /// The served connection that is busy until this response's body is sent.
    pub(crate) busy: Option<Busy>,
    /// The served connection that is busy until this request's body is read.
    request_busy: Option<RequestBusy>,
}

#[derive(Debug, Default)]
enum Source {
    #[default]
    Empty,
    Bytes(Bytes),
    Incoming(Incoming),
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

    /// The body of a request that was received.
    pub(crate) fn received(incoming: Incoming, busy: impl FnOnce() -> RequestBusy) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        Self {
            source: Source::Incoming(incoming),
            request_busy: Some(busy()),
            ..Self::default()
        }
    }

    fn end(&mut self) {
        self.source = Source::Empty;
        if let Some(mut lease) = self.lease.take() {
            lease.finish();
        }
        self.busy = None;
        self.request_busy = None;
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
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
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
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
            Source::Incoming(incoming) => match ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    // Known now rather than at the next poll, which may never come.
                    if incoming.is_end_stream() {
                        this.end();
                    }
                    Poll::Ready(Some(Ok(frame)))
                }
                Some(Err(e)) => {
                    // The connection is not in a state to be used again.
                    this.lease = None;
                    Poll::Ready(Some(Err(e)))
                }
                None => {
                    this.end();
                    Poll::Ready(None)
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Bytes(bytes) => bytes.is_empty(),
            Source::Incoming(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Incoming(incoming) => incoming.size_hint(),
        }
    }
}
