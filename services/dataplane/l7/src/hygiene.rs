//! Which headers end at a proxy (RFC 9110, section 7.6.1).

use http::{HeaderMap, HeaderName, HeaderValue, header};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// `Connection` may name this many headers; a message that names more is refused.
const MAX_NAMED: usize = 16;

/// Why a head can not be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// `Connection` names something that is no header, or too many.
    #[error("header Connection can not be understood")]
    Connection,
    /// More than one `Host`.
    #[error("more than one Host header")]
    Host,
    /// `CONNECT`: this is no forward proxy.
    #[error("CONNECT is not served here")]
    Connect,
}

/// Takes out what was meant for this hop only: what `Connection` names, and the fixed ones. The
/// framing headers of the next hop are made anew from the body.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) -> Result<(), HeadError> {
    // The usual message has none, or a plain keep-alive or close, which name nothing.
    let usual = |value: &HeaderValue| {
        let is = |text: &[u8]| value.as_bytes().eq_ignore_ascii_case(text);
        is(b"keep-alive") || is(b"close")
    };
    if headers.get_all(header::CONNECTION).iter().all(usual) {
        headers.remove(header::CONNECTION);
    } else {
        let mut named: [Option<HeaderName>; MAX_NAMED] = [const { None }; MAX_NAMED];
        let mut count = 0;
        for value in headers.get_all(header::CONNECTION) {
            let text = value.to_str().map_err(|_| HeadError::Connection)?;
            for token in text.split(',').map(str::trim).filter(|t| !t.is_empty()) {
                if token.eq_ignore_ascii_case("close") || token.eq_ignore_ascii_case("keep-alive") {
                    continue;
                }
                let name = HeaderName::from_bytes(token.as_bytes()).map_err(|_| HeadError::Connection)?;
                // Naming an end-to-end field here would let a caller take it from the callee.
                if name == header::HOST || name == header::CONTENT_LENGTH || name == header::AUTHORIZATION {
                    return Err(HeadError::Connection);
                }
                *named.get_mut(count).ok_or(HeadError::Connection)? = Some(name);
                count += 1;
            }
        }
        headers.remove(header::CONNECTION);
        for name in named.into_iter().flatten() {
            headers.remove(name);
        }
    }
    let trailers = HeaderValue::from_static("trailers");
    if headers.get(header::TE).is_some_and(|te| te != trailers) {
        headers.remove(header::TE);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
    ] {
        headers.remove(name);
    }
    Ok(())
}

/// Checks a request's head and makes it ready to be sent on. `Expect` ends here: the server side
/// has answered it by the time the body is read.
pub fn prepare_request(method: &http::Method, headers: &mut HeaderMap) -> Result<(), HeadError> {
    if *method == http::Method::CONNECT {
        return Err(HeadError::Connect);
    }
    if headers.get_all(header::HOST).iter().nth(1).is_some() {
        return Err(HeadError::Host);
    }
    headers.remove(header::EXPECT);
    strip_hop_by_hop(headers)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| {
                (
                    HeaderName::try_from(*n).unwrap(),
                    HeaderValue::try_from(*v).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn hop_by_hop_headers_end_here_and_others_pass() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Secret"),
            ("keep-alive", "timeout=5"),
            ("x-secret", "1"),
            ("te", "trailers, deflate"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "x"),
            ("proxy-connection", "x"),
            ("authorization", "Bearer x"),
            ("x-kept", "2"),
            ("host", "h"),
        ]);
        prepare_request(&http::Method::GET, &mut headers).unwrap();
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "host", "x-kept"]);
    }

    #[test]
    fn what_can_not_be_understood_is_refused() {
        let refused = |pairs: &[(&str, &str)]| prepare_request(&http::Method::GET, &mut map(pairs)).err();
        assert_eq!(refused(&[("host", "a"), ("host", "b")]), Some(HeadError::Host));
        assert_eq!(refused(&[("host", "a")]), None);
        assert_eq!(refused(&[("connection", "host")]), Some(HeadError::Connection));
        assert_eq!(
            refused(&[("connection", "content-length")]),
            Some(HeadError::Connection)
        );
        assert_eq!(refused(&[("connection", "a b")]), Some(HeadError::Connection));
        assert_eq!(
            refused(&[("connection", &"x,".repeat(17))]),
            Some(HeadError::Connection)
        );
        let connect = prepare_request(&http::Method::CONNECT, &mut map(&[]));
        assert_eq!(connect.err(), Some(HeadError::Connect));
    }

    proptest! {
        #[test]
        fn nothing_named_by_connection_survives(
            names in proptest::collection::vec("[a-z]{1,8}(-[a-z]{1,4})?", 0..20),
            listed in proptest::collection::vec("[ -~]{0,12}", 0..20),
        ) {
            let mut headers = HeaderMap::new();
            for name in &names {
                headers.append(HeaderName::try_from(name.as_str()).unwrap(), HeaderValue::from_static("v"));
            }
            let connection = listed.join(",");
            headers.insert(header::CONNECTION, HeaderValue::try_from(connection.as_str()).unwrap());
            if strip_hop_by_hop(&mut headers).is_ok() {
                prop_assert!(!headers.contains_key(header::CONNECTION));
                for token in connection.split(',').map(str::trim).filter(|t| !t.is_empty()) {
                    prop_assert!(!headers.contains_key(token));
                }
            }
        }
    }
}
