//! The body of a request that is being served: read from the client's connection by whoever takes it.

use super::{framing::Framing, wire::Wire};
use crate::BodyError;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use std::{
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};
use tokio::io::{AsyncRead, AsyncWrite};

/// Says that a body may come (RFC 9110, section 10.1.1).
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A served connection, shared by who serves it and who reads the body of its request. Never locked by both
/// at once but for a moment: the one waits for the other.
pub(crate) struct Shared<T>(pub Mutex<Inner<T>>);

pub(crate) struct Inner<T> {
    /// `None` once the connection was handed over.
    pub wire: Option<Wire<T>>,
    /// Of the request under way.
    pub framing: Framing,
    /// Somebody may still read it.
    held: bool,
    /// It is not sent before it is asked for.
    due: bool,
    /// The word that asks for it is being written.
    asking: bool,
    /// Woken when it has ended, or nobody reads it any more.
    waiting: Option<Waker>,
}

impl<T> Shared<T> {
    pub fn new(wire: Wire<T>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Inner {
            wire: Some(wire),
            framing: Framing::NONE,
            held: false,
            due: false,
            asking: false,
            waiting: None,
        })))
    }
}

impl<T> Inner<T> {
    /// A request begins; `due` if its client waits to be asked for the body.
    pub fn begin(&mut self, framing: Framing, due: bool) {
        self.held = !framing.is_ended();
        self.due = due && self.held;
        self.framing = framing;
    }

    /// Its answer is about to be written: from now on nobody is asked for a body. Answers whether one that
    /// was not asked for will not come.
    pub fn answering(&mut self) -> bool {
        // What is left of the word is written before the answer.
        self.asking = false;
        std::mem::take(&mut self.due)
    }

    /// What has become of the body by now.
    pub fn poll_body_end(&mut self, cx: &mut Context<'_>) -> Poll<BodyEnd> {
        if self.framing.is_ended() {
            return Poll::Ready(BodyEnd::Complete);
        }
        if !self.held {
            return Poll::Ready(BodyEnd::Abandoned);
        }
        self.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    fn wake(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }
}

/// How the reading of a request's body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyEnd {
    Complete,
    /// With bytes of it still to come.
    Abandoned,
}

/// The body, whatever connection it comes by.
trait Receive: Send + Sync {
    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>>;
    fn is_ended(&self) -> bool;
    fn size_hint(&self) -> SizeHint;
    fn abandon(&self);
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Receive for Shared<T> {
    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut inner = self.0.lock();
        let Inner {
            wire,
            framing,
            due,
            asking,
            ..
        } = &mut *inner;
        let Some(wire) = wire else {
            return Poll::Ready(Some(Err(BodyError::Incomplete)));
        };
        if std::mem::take(due) {
            wire.out.extend_from_slice(CONTINUE);
            wire.touch();
            *asking = true;
        }
        if *asking {
            ready!(wire.poll_flush(cx))?;
            *asking = false;
        }
        let polled = framing.poll_frame(wire, cx);
        if framing.is_ended() || matches!(polled, Poll::Ready(Some(Err(_)))) {
            inner.wake();
        }
        polled
    }

    fn is_ended(&self) -> bool {
        self.0.lock().framing.is_ended()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().framing.size_hint()
    }

    fn abandon(&self) {
        let mut inner = self.0.lock();
        inner.held = false;
        inner.wake();
    }
}

/// The right to read the body; given up when dropped.
pub(crate) struct Received(Arc<dyn Receive>);

impl Received {
    pub fn of<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(shared: &Arc<Shared<T>>) -> Self {
        Self(shared.clone())
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll_frame(cx)
    }

    pub fn is_ended(&self) -> bool {
        self.0.is_ended()
    }

    pub fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl std::fmt::Debug for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Received")
    }
}
