//! Heads of messages and the lines between pieces of a body, written.

use http::{HeaderMap, Version, header, request, response};
use hyper::ext::ReasonPhrase;
use std::{
    cell::RefCell,
    time::{Duration, Instant, SystemTime},
};

/// How the body of a message that is written is told from what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// There is none, and the fields may say what they like of it.
    Without,
    Length(u64),
    Chunked,
    /// The connection ends with it.
    ToEnd,
}

const CHUNKED: &[u8] = b"transfer-encoding: chunked\r\n";

/// Writes a request's head.
pub(crate) fn write_request(out: &mut Vec<u8>, head: &request::Parts, body: Written) {
    out.reserve(256);
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    match head.uri.path_and_query() {
        // In the form that asks an origin for it.
        Some(path) if head.uri.scheme().is_none() => out.extend_from_slice(path.as_str().as_bytes()),
        _ => out.extend_from_slice(head.uri.to_string().as_bytes()),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    write_fields(out, &head.headers, body, false);
    out.extend_from_slice(b"\r\n");
}

/// What an answer says of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Says {
    /// What its fields say, which is mostly nothing: it goes on.
    Nothing,
    /// It goes on, for a client that does not take that for granted.
    KeepAlive,
    Close,
}

/// Writes an answer's head.
pub(crate) fn write_answer(
    out: &mut Vec<u8>,
    head: &response::Parts,
    asked: Version,
    body: Written,
    says: Says,
) {
    out.reserve(512);
    out.extend_from_slice(match asked {
        Version::HTTP_10 => b"HTTP/1.0 ",
        _ => b"HTTP/1.1 ",
    });
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.push(b' ');
    match head.extensions.get::<ReasonPhrase>() {
        Some(reason) => out.extend_from_slice(reason.as_bytes()),
        None => out.extend_from_slice(head.status.canonical_reason().unwrap_or("<none>").as_bytes()),
    }
    out.extend_from_slice(b"\r\n");
    match says {
        Says::Nothing => {}
        Says::KeepAlive => out.extend_from_slice(b"connection: keep-alive\r\n"),
        Says::Close => out.extend_from_slice(b"connection: close\r\n"),
    }
    write_fields(out, &head.headers, body, says != Says::Nothing);
    // Whoever passes a message on says when it came, where nobody has (RFC 9110, section 6.6.1).
    if !head.headers.contains_key(header::DATE) && !head.status.is_informational() {
        write_date(out);
    }
    out.extend_from_slice(b"\r\n");
}

fn write_fields(out: &mut Vec<u8>, headers: &HeaderMap, body: Written, connection_is_said: bool) {
    for (name, value) in headers {
        let of_framing = *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING;
        if of_framing && (body != Written::Without || *name == header::TRANSFER_ENCODING)
            || connection_is_said && *name == header::CONNECTION
        {
            continue;
        }
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    match body {
        Written::Without | Written::ToEnd => {}
        Written::Length(length) => {
            out.extend_from_slice(b"content-length: ");
            write_number(out, length);
            out.extend_from_slice(b"\r\n");
        }
        Written::Chunked => out.extend_from_slice(CHUNKED),
    }
}

fn write_number(out: &mut Vec<u8>, mut number: u64) {
    let (mut digits, mut at) = ([0; 20], 20);
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Writes the line before a chunk.
pub(crate) fn write_chunk(out: &mut Vec<u8>, length: usize) {
    let (mut digits, mut at, mut rest) = ([0; 16], 16, length);
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// Writes the end of a chunked body, with its trailers: fields that only a head may have are left out
/// (RFC 9110, section 6.5.1).
pub(crate) fn write_last(out: &mut Vec<u8>, trailers: Option<&HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        let of_head = [
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::HOST,
            header::CONNECTION,
            header::TE,
            header::TRAILER,
            header::UPGRADE,
            header::AUTHORIZATION,
            header::SET_COOKIE,
            header::CONTENT_ENCODING,
            header::CONTENT_TYPE,
            header::CONTENT_RANGE,
        ];
        if !of_head.contains(name) {
            out.extend_from_slice(name.as_str().as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// The present time in words changes once a second; so long it is kept.
struct Date {
    line: Vec<u8>,
    until: Option<Instant>,
}

thread_local! {
    static DATE: RefCell<Date> = const { RefCell::new(Date { line: Vec::new(), until: None }) };
}

fn write_date(out: &mut Vec<u8>) {
    DATE.with_borrow_mut(|date| {
        let now = Instant::now();
        if date.until.is_none_or(|until| now >= until) {
            let time = SystemTime::now();
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let left = Duration::from_secs(1) - Duration::from_nanos(since.subsec_nanos().into());
            date.line = format!("date: {}\r\n", httpdate::fmt_http_date(time)).into_bytes();
            date.until = Some(now + left);
        }
        out.extend_from_slice(&date.line);
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use http::{HeaderValue, Response};

    #[test]
    fn what_is_written_says_its_length_once() {
        let (mut head, ()) = Response::new(()).into_parts();
        for (name, value) in [
            ("content-length", "9"),
            ("transfer-encoding", "chunked"),
            ("connection", "x"),
            ("date", "today"),
            ("a", "b"),
        ] {
            head.headers.insert(name, HeaderValue::from_static(value));
        }
        let written = |body, says| {
            let mut out = Vec::new();
            write_answer(&mut out, &head, Version::HTTP_11, body, says);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            written(Written::Length(12), Says::Close),
            "HTTP/1.1 200 OK\r\nconnection: close\r\ndate: today\r\na: b\r\ncontent-length: 12\r\n\r\n"
        );
        assert_eq!(
            written(Written::Without, Says::Nothing),
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\nconnection: x\r\ndate: today\r\na: b\r\n\r\n"
        );
        head.headers.clear();
        let mut out = Vec::new();
        write_answer(&mut out, &head, Version::HTTP_11, Written::Chunked, Says::Nothing);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("date: ") && text.contains(" GMT\r\n"), "{text}");
        let mut out = Vec::new();
        write_chunk(&mut out, 0x1a0);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        trailers.insert("content-length", HeaderValue::from_static("1"));
        write_last(&mut out, Some(&trailers));
        assert_eq!(out, b"1a0\r\n0\r\nx-sum: 1\r\n\r\n");
    }
}
