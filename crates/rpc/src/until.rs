//! Request streams that end when the server drains, for services that answer for as long as their
//! caller asks and know nothing of a drain.

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Status, body::Body, server::NamedService};

/// A service whose callers' streams end with the token.
#[derive(Debug, Clone)]
pub(crate) struct Until<S> {
    pub service: S,
    pub end: CancellationToken,
}

impl<S: NamedService> NamedService for Until<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: tower::Service<http::Request<Body>>> tower::Service<http::Request<Body>> for Until<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        let ended = Box::pin(self.end.clone().cancelled_owned());
        self.service
            .call(request.map(|inner| Body::new(Asked { inner, ended })))
    }
}

struct Asked {
    inner: Body,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl http_body::Body for Asked {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        // What has arrived is answered still.
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Pending => self.ended.as_mut().poll(cx).map(|()| None),
            frame => frame,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
