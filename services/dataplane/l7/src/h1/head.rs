//! Heads of messages, read: what two readers could take differently is refused.

use super::framing::Framing;
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use hyper::ext::ReasonPhrase;
use std::mem::MaybeUninit;

/// Fields of one head, whatever the limits say.
const MOST_FIELDS: usize = 128;

/// Why a head is none, or is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// It is not HTTP/1.
    #[error("the head is no HTTP")]
    Malformed,
    /// It can be understood in more than one way.
    #[error("the framing of the message is ambiguous")]
    Ambiguous,
    /// It is larger, or has more fields, than is taken.
    #[error("the head is too large")]
    TooLarge,
}

impl HeadError {
    /// How a client is told.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed | Self::Ambiguous => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        }
    }
}

/// Bounds of a head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadLimits {
    pub fields: usize,
    pub bytes: usize,
}

/// What a head says of its message and its connection.
#[derive(Debug)]
pub(crate) struct Message {
    pub framing: Framing,
    /// The connection may be used for another message.
    pub keep_alive: bool,
    /// The client waits for a word before it sends the body.
    pub expects_continue: bool,
    /// `TE: trailers`.
    pub takes_trailers: bool,
}

/// What of a head was looked through for its end.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Looked(usize);

/// Takes a head from the front of `buffer` once all of it is there.
fn take(buffer: &mut BytesMut, looked: &mut Looked, limits: HeadLimits) -> Result<Option<Bytes>, HeadError> {
    // Empty lines before a head are allowed and mean nothing.
    if looked.0 == 0 {
        loop {
            match &buffer[..] {
                [b'\n', ..] => buffer.advance(1),
                [b'\r', b'\n', ..] => buffer.advance(2),
                _ => break,
            }
        }
    }
    for at in memchr::memchr_iter(b'\n', &buffer[looked.0..]) {
        let at = looked.0 + at;
        // The line before may have ended with or without a carriage return.
        let line = &buffer[..at];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.ends_with(b"\n") {
            if at >= limits.bytes {
                return Err(HeadError::TooLarge);
            }
            looked.0 = 0;
            return Ok(Some(buffer.split_to(at + 1).freeze()));
        }
    }
    // The next line feed may belong to what is here.
    looked.0 = match &buffer[..] {
        // Perhaps half of an empty line before it.
        b"\r" => 0,
        _ => buffer.len(),
    };
    match buffer.len() < limits.bytes {
        true => Ok(None),
        false => Err(HeadError::TooLarge),
    }
}

fn told(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooLarge,
        _ => HeadError::Malformed,
    }
}

fn version(minor: Option<u8>) -> Version {
    match minor {
        Some(0) => Version::HTTP_10,
        _ => Version::HTTP_11,
    }
}

/// What the fields say of framing and connection, as they are read.
#[derive(Default)]
struct Said {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    takes_trailers: bool,
}

impl Said {
    fn field(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<(), HeadError> {
        if *name == header::CONTENT_LENGTH {
            let length = length(value.as_bytes()).ok_or(HeadError::Malformed)?;
            // The same once more changes nothing.
            if self.length.is_some_and(|known| known != length) {
                return Err(HeadError::Ambiguous);
            }
            self.length = Some(length);
        } else if *name == header::TRANSFER_ENCODING {
            // Other codings, or this one twice, are not understood by everybody in the same way.
            if self.chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return Err(HeadError::Ambiguous);
            }
            self.chunked = true;
        } else if *name == header::CONNECTION {
            for token in value.as_bytes().split(|b| *b == b',') {
                let token = token.trim_ascii();
                self.close |= token.eq_ignore_ascii_case(b"close");
                self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if *name == header::EXPECT {
            self.expects_continue |= value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        } else if *name == header::TE {
            self.takes_trailers |= value.as_bytes().eq_ignore_ascii_case(b"trailers");
        }
        Ok(())
    }

    /// What holds for both kinds of messages: one framing only, and none that the version does not know.
    fn check(&self, version: Version) -> Result<(), HeadError> {
        let both = self.chunked && self.length.is_some();
        match both || self.chunked && version == Version::HTTP_10 {
            true => Err(HeadError::Ambiguous),
            false => Ok(()),
        }
    }

    fn message(&self, framing: Framing, version: Version) -> Message {
        let keep_alive = match version {
            Version::HTTP_10 => self.keep_alive && !self.close,
            _ => !self.close,
        };
        Message {
            framing,
            keep_alive,
            expects_continue: self.expects_continue && version == Version::HTTP_11,
            takes_trailers: self.takes_trailers,
        }
    }
}

/// Digits and nothing else.
fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

fn collect(head: &Bytes, fields: &[httparse::Header<'_>], said: &mut Said) -> Result<HeaderMap, HeadError> {
    // Room for what a proxy adds.
    let mut headers = HeaderMap::with_capacity(fields.len() + 4);
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| HeadError::Malformed)?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value));
        let value = value.map_err(|_| HeadError::Malformed)?;
        said.field(&name, &value)?;
        headers.try_append(name, value).map_err(|_| HeadError::TooLarge)?;
    }
    Ok(headers)
}

/// The next request, once its head is here.
pub(crate) fn request(
    buffer: &mut BytesMut,
    looked: &mut Looked,
    limits: HeadLimits,
) -> Result<Option<(Request<()>, Message)>, HeadError> {
    let Some(head) = take(buffer, looked, limits)? else {
        return Ok(None);
    };
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let fields = &mut fields[..limits.fields.min(MOST_FIELDS)];
    let mut parsed = httparse::Request::new(&mut []);
    let status = parsed.parse_with_uninit_headers(&head, fields).map_err(told)?;
    let (httparse::Status::Complete(n), Some(method), Some(path)) = (status, parsed.method, parsed.path)
    else {
        return Err(HeadError::Malformed);
    };
    // Where the reading of lines differs from the looking for the end, nobody knows what comes behind.
    if n != head.len() {
        return Err(HeadError::Malformed);
    }
    let version = version(parsed.version);
    let mut said = Said::default();
    let headers = collect(&head, parsed.headers, &mut said)?;
    said.check(version)?;
    let framing = match said.length {
        _ if said.chunked => Framing::chunked(),
        Some(length) => Framing::Length(length),
        None => Framing::NONE,
    };
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(method.as_bytes()).map_err(|_| HeadError::Malformed)?;
    let target = head.slice_ref(path.as_bytes());
    *request.uri_mut() = Uri::from_maybe_shared(target).map_err(|_| HeadError::Malformed)?;
    *request.version_mut() = version;
    *request.headers_mut() = headers;
    Ok(Some((request, said.message(framing, version))))
}

/// The next answer to a request of this method, once its head is here.
pub(crate) fn answer(
    buffer: &mut BytesMut,
    looked: &mut Looked,
    limits: HeadLimits,
    asked: &Method,
) -> Result<Option<(Response<()>, Message)>, HeadError> {
    let Some(head) = take(buffer, looked, limits)? else {
        return Ok(None);
    };
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let fields = &mut fields[..limits.fields.min(MOST_FIELDS)];
    let mut parsed = httparse::Response::new(&mut []);
    let status = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, &head, fields)
        .map_err(told)?;
    let (httparse::Status::Complete(n), Some(code)) = (status, parsed.code) else {
        return Err(HeadError::Malformed);
    };
    if n != head.len() {
        return Err(HeadError::Malformed);
    }
    let version = version(parsed.version);
    let mut said = Said::default();
    let headers = collect(&head, parsed.headers, &mut said)?;
    said.check(version)?;
    let status = StatusCode::from_u16(code).map_err(|_| HeadError::Malformed)?;
    let framing = match said.length {
        _ if !has_body(asked, status) => Framing::NONE,
        _ if said.chunked => Framing::chunked(),
        Some(length) => Framing::Length(length),
        None => Framing::ToEnd,
    };
    let mut message = said.message(framing, version);
    message.keep_alive &= !matches!(message.framing, Framing::ToEnd);
    let mut response = Response::new(());
    // Words of its own, which some clients read.
    if let Some(reason) = parsed
        .reason
        .filter(|reason| status.canonical_reason() != Some(*reason))
        && let Ok(reason) = ReasonPhrase::try_from(reason.as_bytes())
    {
        response.extensions_mut().insert(reason);
    }
    *response.status_mut() = status;
    *response.version_mut() = version;
    *response.headers_mut() = headers;
    Ok(Some((response, message)))
}

/// Whether an answer can have a body (RFC 9112, section 6.3).
pub(crate) fn has_body(asked: &Method, status: StatusCode) -> bool {
    let none = status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || *asked == Method::HEAD;
    !none
}

/// Fields up to an empty line.
pub(crate) fn fields(lines: &Bytes, most: usize) -> Result<HeaderMap, HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let fields = &mut fields[..most.min(MOST_FIELDS)];
    match httparse::parse_headers(lines, fields).map_err(told)? {
        httparse::Status::Complete((n, fields)) if n == lines.len() => {
            let mut headers = HeaderMap::with_capacity(fields.len());
            for field in fields {
                let name = HeaderName::from_bytes(field.name.as_bytes());
                let value = HeaderValue::from_maybe_shared(lines.slice_ref(field.value));
                let (Ok(name), Ok(value)) = (name, value) else {
                    return Err(HeadError::Malformed);
                };
                headers.append(name, value);
            }
            Ok(headers)
        }
        _ => Err(HeadError::Malformed),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "head_tests.rs"]
mod tests;
