//! How long a body is, and reading it.

use super::{
    chunked::{Chunked, Piece},
    wire::Wire,
};
use crate::BodyError;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};

/// Read at once of a long body.
const LARGE: usize = 64 * 1024;

/// Where the reading of a body stands.
#[derive(Debug, Clone)]
pub(crate) enum Framing {
    /// So many bytes are to come.
    Length(u64),
    Chunked(Chunked),
    /// All until the connection ends.
    ToEnd,
}

impl Framing {
    pub const NONE: Self = Self::Length(0);

    pub fn chunked() -> Self {
        Self::Chunked(Chunked::default())
    }

    pub fn is_ended(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.is_ended(),
            Self::ToEnd => false,
        }
    }

    pub fn size_hint(&self) -> SizeHint {
        match self {
            Self::Length(left) => SizeHint::with_exact(*left),
            Self::Chunked(chunked) if chunked.is_ended() => SizeHint::with_exact(0),
            Self::Chunked(_) | Self::ToEnd => SizeHint::default(),
        }
    }

    /// The next of the body that `wire` brings.
    pub fn poll_frame<T>(
        &mut self,
        wire: &mut Wire<T>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let wanted = match self {
                Self::Length(0) => return Poll::Ready(None),
                Self::Length(left) => {
                    if !wire.read.is_empty() {
                        let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(wire.read.len());
                        *left -= taken as u64;
                        let data = wire.read.split_to(taken).freeze();
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    *left
                }
                Self::ToEnd => {
                    if !wire.read.is_empty() {
                        let data = std::mem::take(&mut wire.read).freeze();
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    LARGE as u64
                }
                Self::Chunked(chunked) => {
                    match chunked.read(&mut wire.read) {
                        Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                        Ok(Piece::Trailers(fields)) => {
                            return Poll::Ready(Some(Ok(Frame::trailers(fields))));
                        }
                        Ok(Piece::End) => return Poll::Ready(None),
                        Ok(Piece::More) => {}
                        Err(error) => return Poll::Ready(Some(Err(error.into()))),
                    }
                    chunked.expected()
                }
            };
            let wanted = usize::try_from(wanted).unwrap_or(LARGE).min(LARGE);
            match ready!(wire.poll_fill(cx, wanted)) {
                Ok(0) if matches!(self, Self::ToEnd) => {
                    *self = Self::NONE;
                    return Poll::Ready(None);
                }
                Ok(0) => return Poll::Ready(Some(Err(BodyError::Incomplete))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }
}
