//! Refusals that programs can read: a gRPC status with `google.rpc` details in
//! `grpc-status-details-bin`, as Google's APIs, Dapr and most gRPC clients know them.
//!
//! Each carries an `ErrorInfo`: a reason that never changes and the domain that it belongs to. The
//! sentence beside it is for people. What comes from callers is cut to a bounded length: a status
//! travels in a header, and one that is too large would arrive as a broken connection.

use http::{HeaderMap, Response};
use std::{collections::HashMap, time::Duration};
use tonic::{Code, Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Domain of the reasons that the server itself gives, whichever service it is of.
pub const RPC_DOMAIN: &str = "rpc.weft.dev";
/// Bytes of a sentence. It is sent twice, and percent-encoded it may grow to three times that.
const MAX_TEXT: usize = 1024;
const TOO_LATE: &str = "no answer within";

/// A refusal under construction. What is certain is given at once, the rest where it applies.
#[derive(Debug, Clone)]
pub struct Refusal {
    code: Code,
    message: String,
    details: ErrorDetails,
}

impl Refusal {
    /// With its reason (`UPPER_SNAKE_CASE`, for programs), the domain of that, and a sentence.
    pub fn new(code: Code, reason: &str, domain: &str, message: impl Into<String>) -> Self {
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, domain, HashMap::new());
        Self {
            code,
            message: bounded(message.into()),
            details,
        }
    }

    /// `BadRequest`: the field of the request that is wrong; the sentence says how.
    pub fn field(mut self, name: &str) -> Self {
        let problem = self.message.clone();
        self.details.add_bad_request_violation(name, problem);
        self
    }

    /// `RetryInfo`: when it is worth asking again.
    pub fn retry_after(mut self, pause: Duration) -> Self {
        self.details.set_retry_info(Some(pause));
        self
    }

    /// `ResourceInfo`: what the request is about.
    pub fn resource(mut self, kind: &str, name: &str) -> Self {
        let problem = self.message.clone();
        let name = bounded(name.into());
        self.details.set_resource_info(kind, name, String::new(), problem);
        self
    }

    /// `PreconditionFailure`: the state that the system is not in.
    pub fn precondition(mut self, kind: &str, subject: &str) -> Self {
        let problem = self.message.clone();
        self.details
            .add_precondition_failure_violation(kind, bounded(subject.into()), problem);
        self
    }

    /// `QuotaFailure`: whose quota it is.
    pub fn quota(mut self, subject: &str) -> Self {
        let problem = self.message.clone();
        self.details
            .add_quota_failure_violation(bounded(subject.into()), problem);
        self
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::with_error_details(refusal.code, refusal.message, refusal.details)
    }
}

/// At most [`MAX_TEXT`] bytes, cut between characters.
fn bounded(mut text: String) -> String {
    if text.len() <= MAX_TEXT {
        return text;
    }
    let mut end = MAX_TEXT - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.push('…');
    text
}

/// Gives details to a refusal that has none: the reading of a request failed before any handler
/// saw it, or a handler said only a code.
pub(crate) fn complete(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    if headers.contains_key(Status::GRPC_STATUS_DETAILS) {
        return response;
    }
    if let Some(status) = Status::from_header_map(headers).filter(|s| s.code() != Code::Ok) {
        let refusal = Refusal::new(status.code(), reason(&status), RPC_DOMAIN, status.message());
        set(headers, &refusal.into());
    }
    response
}

/// What is answered when no answer has begun in time.
pub(crate) fn too_late(within: Duration) -> Status {
    Status::deadline_exceeded(format!("{TOO_LATE} {} s", within.as_secs_f32()))
}

/// Why no handler decided on a request, where that is what a response says: `complete` gives it details.
pub(crate) fn unread(response: &Response<Body>) -> Option<(&'static str, String)> {
    let headers = response.headers();
    if headers.contains_key(Status::GRPC_STATUS_DETAILS) {
        return None;
    }
    let status = Status::from_header_map(headers).filter(|s| s.code() != Code::Ok)?;
    Some((reason(&status), bounded(status.message().to_owned())))
}

fn set(headers: &mut HeaderMap, status: &Status) {
    // Only what a header can not hold fails, and then the plain status is already there.
    if let Err(error) = status.add_header(headers) {
        tracing::warn!(%error, "details of a refusal could not be sent");
    }
}

/// What tonic says of requests that can not be read has codes of its own; all else goes by the code.
fn reason(status: &Status) -> &'static str {
    let text = status.message();
    match status.code() {
        Code::OutOfRange if text.contains("message length too large") => "MESSAGE_TOO_LARGE",
        Code::Internal if text.contains("decode") => "MESSAGE_MALFORMED",
        Code::Internal if text.contains("Missing request message") => "MESSAGE_MISSING",
        Code::DeadlineExceeded if text.starts_with(TOO_LATE) => "NOT_ANSWERED_IN_TIME",
        code => code_name(code),
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn arrived(status: Status) -> Status {
        Status::from_header_map(status.into_http::<Body>().headers()).unwrap()
    }

    #[test]
    fn what_is_said_arrives() {
        let refusal = Refusal::new(Code::ResourceExhausted, "TOO_MUCH", "test.weft.dev", "too much")
            .field("csr_der")
            .retry_after(Duration::from_secs(2))
            .resource("workload", "w1")
            .precondition("REGISTRY", "policy")
            .quota("n1");
        let status = arrived(refusal.into());
        assert_eq!(
            (status.code(), status.message()),
            (Code::ResourceExhausted, "too much")
        );
        let details = status.check_error_details().unwrap();
        let info = details.error_info().unwrap();
        assert_eq!((&*info.reason, &*info.domain), ("TOO_MUCH", "test.weft.dev"));
        let field = &details.bad_request().unwrap().field_violations[0];
        assert_eq!((&*field.field, &*field.description), ("csr_der", "too much"));
        assert_eq!(
            details.retry_info().unwrap().retry_delay,
            Some(Duration::from_secs(2))
        );
        assert_eq!(details.resource_info().unwrap().resource_name, "w1");
        assert_eq!(
            details.precondition_failure().unwrap().violations[0].subject,
            "policy"
        );
        assert_eq!(details.quota_failure().unwrap().violations[0].subject, "n1");
    }

    #[test]
    fn a_refusal_without_details_gets_some_and_one_with_them_keeps_its_own() {
        let reason = |status: Status| {
            let response = complete(status.into_http());
            let status = Status::from_header_map(response.headers());
            status.and_then(|s| s.get_details_error_info()).map(|i| i.reason)
        };
        let too_large = "Error, decoded message length too large: found 9 bytes, the limit is: 5 bytes";
        for (status, wanted) in [
            (Status::not_found("x"), Some("NOT_FOUND")),
            (Status::out_of_range(too_large), Some("MESSAGE_TOO_LARGE")),
            (
                Status::internal("failed to decode Protobuf message: x"),
                Some("MESSAGE_MALFORMED"),
            ),
            (Status::ok(""), None),
            (Refusal::new(Code::NotFound, "OWN", "d", "x").into(), Some("OWN")),
        ] {
            let shown = format!("{status}");
            assert_eq!(reason(status).as_deref(), wanted, "{shown}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_header_too_large(text in "\\PC{0,3000}") {
            let status: Status = Refusal::new(Code::NotFound, "R", "d", text.clone()).field("f").into();
            let response = status.into_http::<Body>();
            let size: usize = response.headers().iter().map(|(n, v)| n.as_str().len() + v.len()).sum();
            // Clients take 8 KiB at least.
            prop_assert!(size < 8 * 1024, "{size} bytes");
            let arrived = Status::from_header_map(response.headers()).unwrap();
            prop_assert!(text.len() > MAX_TEXT || arrived.message() == text);
        }
    }
}
