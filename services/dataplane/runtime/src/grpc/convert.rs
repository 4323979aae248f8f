//! What several methods convert.

use crate::blocks::Trace;
use http::HeaderMap;
use std::collections::HashMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// A part of an answer is kept in an error up to this length.
const MAX_DETAIL: usize = 63;

/// Pairs in an order of their own.
pub(super) fn pairs(map: HashMap<String, String>) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> = map.into_iter().collect();
    pairs.sort_unstable();
    pairs
}

/// The trace of a call: its own, or a new one.
pub(super) fn trace<T>(request: &tonic::Request<T>) -> Trace {
    let mut headers = HeaderMap::new();
    for name in ["traceparent", "tracestate"] {
        if let Some(value) = request.metadata().get(name)
            && let Ok(value) = http::HeaderValue::from_bytes(value.as_bytes())
        {
            headers.insert(name, value);
        }
    }
    Trace::of(&mut headers)
}

/// The code of gRPC for a status of HTTP, as Dapr maps them.
fn code(status: u16) -> Code {
    match status {
        200..300 => Code::Ok,
        408 => Code::Cancelled,
        400 => Code::Internal,
        504 => Code::DeadlineExceeded,
        404 => Code::NotFound,
        409 => Code::AlreadyExists,
        403 => Code::PermissionDenied,
        401 => Code::Unauthenticated,
        429 => Code::ResourceExhausted,
        501 => Code::Unimplemented,
        503 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

/// An error that is an answer of HTTP.
pub(super) fn of_http(status: u16, detail: &str) -> Status {
    let text = http::StatusCode::from_u16(status).ok();
    let text = text.and_then(|s| s.canonical_reason()).unwrap_or_default();
    let mut end = detail.len().min(MAX_DETAIL);
    while !detail.is_char_boundary(end) {
        end -= 1;
    }
    let metadata = HashMap::from([
        ("http.code".to_owned(), status.to_string()),
        ("http.error_message".to_owned(), detail[..end].to_owned()),
    ]);
    let details = ErrorDetails::with_error_info(text, "dapr.io", metadata);
    Status::with_error_details(code(status), text, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_http_is_an_error_of_grpc() {
        let status = of_http(404, &"é".repeat(40));
        assert_eq!((status.code(), status.message()), (Code::NotFound, "Not Found"));
        let details = status.get_details_error_info().map(|info| info.metadata);
        let details = details.unwrap_or_default();
        assert_eq!(details["http.code"], "404");
        assert_eq!(details["http.error_message"], "é".repeat(31));
        assert_eq!(code(204), Code::Ok);
        assert_eq!(of_http(599, "").code(), Code::Unknown);
    }
}
