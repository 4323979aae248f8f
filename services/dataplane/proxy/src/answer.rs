//! What a client is told when its request can not go on: statuses and texts as Envoy has them, so
//! that what reads them today goes on reading them. gRPC clients are told by `grpc-status`.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use weft_flows::{DropReason, Verdict};
use weft_l7::Body;

/// Why a request was not passed on, or got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It can not be understood, or two readers could understand it differently.
    Malformed(&'static str),
    /// No rule wants it.
    NoRoute,
    /// The rule names no backend that may be used.
    NoBackend,
    /// The backend has no endpoint.
    NoEndpoint,
    /// Policy.
    Denied(DropReason),
    /// Too many requests are under way there.
    Overloaded,
    /// No connection could be made.
    Unreachable,
    /// The connection ended before the answer.
    Broken,
    /// Its time is over.
    Timeout,
}

impl Failure {
    /// The status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoBackend => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Denied(_) => StatusCode::FORBIDDEN,
            Self::NoEndpoint | Self::Overloaded | Self::Unreachable | Self::Broken => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Malformed(why) => why,
            Self::NoRoute | Self::NoBackend => "",
            // Cilium's own text.
            Self::Denied(_) => "Access denied\r\n",
            Self::NoEndpoint => "no healthy upstream",
            Self::Overloaded => {
                "upstream connect error or disconnect/reset before headers. reset reason: overflow"
            }
            Self::Unreachable => {
                "upstream connect error or disconnect/reset before headers. reset reason: connection failure"
            }
            Self::Broken => {
                "upstream connect error or disconnect/reset before headers. reset reason: connection termination"
            }
            Self::Timeout => "upstream request timeout",
        }
    }

    /// How flows call it.
    pub fn end(self) -> (Verdict, Option<DropReason>) {
        let reason = match self {
            Self::Malformed(_) => return (Verdict::Error, None),
            Self::NoRoute | Self::NoBackend => DropReason::NoRoute,
            Self::NoEndpoint => DropReason::NoEndpoint,
            Self::Denied(reason) => return (Verdict::Dropped, Some(reason)),
            Self::Overloaded => DropReason::Overloaded,
            Self::Unreachable => DropReason::Unreachable,
            Self::Broken | Self::Timeout => DropReason::UpstreamFailed,
        };
        (Verdict::Error, Some(reason))
    }

    /// The answer to a request; `grpc` if it was gRPC's.
    pub fn answer(self, grpc: bool) -> Response<Body> {
        let text = self.text();
        if grpc {
            return self.grpc_answer(text);
        }
        let mut response = Response::new(match text {
            "" => Body::empty(),
            text => Body::from(text),
        });
        *response.status_mut() = self.status();
        if !text.is_empty() {
            let plain = HeaderValue::from_static("text/plain");
            response.headers_mut().insert(header::CONTENT_TYPE, plain);
        }
        response
    }

    /// Trailers only (gRPC over HTTP/2, "Responses"); codes as gRPC maps them from statuses.
    fn grpc_answer(self, text: &'static str) -> Response<Body> {
        let code = match self.status().as_u16() {
            400 => "13",
            403 => "7",
            404 => "12",
            429 | 502 | 503 | 504 => "14",
            _ => "2",
        };
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(
            HeaderName::from_static("grpc-status"),
            HeaderValue::from_static(code),
        );
        let text = HeaderValue::from_static(text.trim_ascii_end());
        headers.insert(HeaderName::from_static("grpc-message"), text);
        response
    }
}

/// Whether a request is gRPC's.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.and_then(|kind| kind.strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}
