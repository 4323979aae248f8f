//! Reading a request's head: for whom it is, and whether it is one that everybody behind this proxy
//! understands in the same way.

use http::{HeaderMap, HeaderValue, Request, Uri, Version, header, uri::PathAndQuery};
use weft_l7::{Body, hygiene};

/// What of a request says where it goes.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// The authority as the client wrote it.
    pub host: HeaderValue,
    /// Path and query, as they will be forwarded.
    pub path: PathAndQuery,
    /// It came by HTTP/2.
    pub two: bool,
}

/// Checks a request and takes from it what was meant for this hop only.
pub(crate) fn read(request: &mut Request<Body>) -> Result<Head, &'static str> {
    let method = request.method().clone();
    hygiene::prepare_request(&method, request.headers_mut()).map_err(|e| match e {
        hygiene::HeadError::Connection => "header Connection can not be understood",
        hygiene::HeadError::Host => "more than one Host header",
        hygiene::HeadError::Connect => "CONNECT is not served here",
    })?;
    let two = request.version() == Version::HTTP_2;
    let host = host(request.uri(), request.headers(), two)?;
    let path = match request.uri().path_and_query() {
        Some(path) => path.clone(),
        None => PathAndQuery::from_static("/"),
    };
    if is_ambiguous(path.path()) {
        return Err("the path can be understood in more than one way");
    }
    Ok(Head { host, path, two })
}

fn host(uri: &Uri, headers: &HeaderMap, two: bool) -> Result<HeaderValue, &'static str> {
    let named = headers.get(header::HOST);
    let host = match uri.authority() {
        Some(authority) => {
            let authority = authority.as_str();
            // HTTP/2 may carry both (RFC 9113, section 8.3.1): then they must say the same. In
            // HTTP/1.1 the request line counts (RFC 9112, section 3.2.2).
            let differs = |host: &HeaderValue| !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes());
            if two && named.is_some_and(differs) {
                return Err("authority and Host differ");
            }
            HeaderValue::from_str(authority).map_err(|_| "the authority is no header value")?
        }
        None => named.cloned().ok_or("no Host header")?,
    };
    let legal = |b: &u8| b.is_ascii_alphanumeric() || b"-._~:[]%".contains(b);
    match !host.is_empty() && host.as_bytes().iter().all(legal) {
        true => Ok(host),
        false => Err("the host is none"),
    }
}

/// Whether an app could take a path for another one than policy and routes were asked about: it has
/// segments `.` or `..`, a backslash, or NUL, written plainly or as percent-encoding. An encoded
/// slash is passed on as it is, and counts as the end of a segment here.
fn is_ambiguous(path: &str) -> bool {
    // Nearly all paths have none of it.
    if !path.bytes().any(|b| matches!(b, b'.' | b'%' | b'\\')) {
        return false;
    }
    let mut bytes = path.bytes();
    // Bytes of the present segment that are all dots; 3 for anything else.
    let mut dots = 0;
    let is_dots = |dots| dots == 1 || dots == 2;
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
                match (digit(bytes.next()), digit(bytes.next())) {
                    (Some(high), Some(low)) => (high * 16 + low) as u8,
                    // No encoding at all: apps differ in what they make of it.
                    _ => return true,
                }
            }
            byte => byte,
        };
        match byte {
            b'\\' | 0 => return true,
            b'/' if is_dots(dots) => return true,
            b'/' => dots = 0,
            // Parameters of a segment, which some apps cut off: `/..;/`.
            b';' if is_dots(dots) => return true,
            b'.' if dots < 3 => dots += 1,
            _ => dots = 3,
        }
    }
    is_dots(dots)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_that_two_readers_take_differently_are_refused() {
        for path in [
            "/a/../b",
            "/a/./b",
            "/..",
            "/.",
            "/a/%2e%2E/b",
            "/a/.%2e",
            "/a%2f..%2fb",
            "/a\\b",
            "/a%5Cb",
            "/a%00",
            "/a%",
            "/a%2",
            "/a%zz",
            "/..;/b",
            "/a/..;x/b",
        ] {
            assert!(is_ambiguous(path), "{path}");
        }
        for path in [
            "/",
            "*",
            "/a//b",
            "/a.b/c",
            "/...",
            "/..a",
            "/a..",
            "/.well-known/x",
            "/a%20b",
            "/a%2Fb",
            "/a;b=1",
        ] {
            assert!(!is_ambiguous(path), "{path}");
        }
    }

    fn read_one(version: Version, uri: &str, hosts: &[&str]) -> Result<String, &'static str> {
        let mut request = Request::new(Body::empty());
        *request.version_mut() = version;
        *request.uri_mut() = uri.parse().unwrap();
        for host in hosts {
            request
                .headers_mut()
                .append(header::HOST, HeaderValue::try_from(*host).unwrap());
        }
        let head = read(&mut request)?;
        Ok(format!("{} {}", head.host.to_str().unwrap(), head.path))
    }

    #[test]
    fn the_host_is_one_and_told_once() {
        let one = Version::HTTP_11;
        assert_eq!(read_one(one, "/x?y", &["a:80"]), Ok("a:80 /x?y".into()));
        assert_eq!(read_one(one, "http://b/x", &["a"]), Ok("b /x".into()));
        assert_eq!(read_one(one, "/x", &[]), Err("no Host header"));
        assert_eq!(read_one(one, "/x", &["a", "a"]), Err("more than one Host header"));
        for host in ["", "a/b", "a b", "u@a", "a,b"] {
            assert_eq!(read_one(one, "/x", &[host]), Err("the host is none"), "{host}");
        }
        let two = Version::HTTP_2;
        assert_eq!(read_one(two, "http://b/x", &[]), Ok("b /x".into()));
        assert_eq!(read_one(two, "http://b/x", &["B"]), Ok("b /x".into()));
        assert_eq!(
            read_one(two, "http://b/x", &["a"]),
            Err("authority and Host differ")
        );
    }

    proptest! {
        /// What is let through means the same when it is decoded once.
        #[test]
        fn what_passes_has_no_dot_segments(path in "/([a./]|%2e|%2F|%5c|\\\\){0,10}") {
            if !is_ambiguous(&path) {
                let decoded = path.replace("%2e", ".").replace("%2F", "/").replace("%5c", "\\");
                prop_assert!(decoded.split('/').all(|s| s != "." && s != "..") && !decoded.contains('\\'));
            }
        }
    }
}
