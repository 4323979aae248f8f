//! Requests and answers with one meaning, and with more.

use super::*;

const LIMITS: HeadLimits = HeadLimits {
    fields: 4,
    bytes: 256,
};

type Read = Result<Option<(Request<()>, Message)>, HeadError>;

/// Read in pieces of `step`.
fn read(text: &str, step: usize) -> Read {
    let (mut buffer, mut looked) = (BytesMut::new(), Looked::default());
    for piece in text.as_bytes().chunks(step) {
        buffer.extend_from_slice(piece);
        if let Some(read) = request(&mut buffer, &mut looked, LIMITS)? {
            return Ok(Some(read));
        }
    }
    Ok(None)
}

#[test]
fn requests_with_one_meaning_are_read_and_others_refused() {
    let framing = |fields: &str| {
        let text = format!("POST /a?b HTTP/1.1\r\n{fields}\r\n");
        let read = [1, 7, 300].map(|step| {
            let read = read(&text, step).map(|read| {
                let (request, message) = read.unwrap();
                assert_eq!((request.uri().path(), request.method()), ("/a", &Method::POST));
                match message.framing {
                    Framing::Length(length) => format!("{length} {}", message.keep_alive),
                    Framing::Chunked(_) => format!("chunked {}", message.keep_alive),
                    Framing::ToEnd => panic!("a request has an end"),
                }
            });
            read.map_err(|error| error.to_string())
        });
        assert_eq!((&read[0], &read[1]), (&read[1], &read[2]));
        read[0].clone()
    };
    let ok = |text: &str| Ok(text.to_owned());
    assert_eq!(framing(""), ok("0 true"));
    assert_eq!(framing("Content-Length: 7\r\n"), ok("7 true"));
    assert_eq!(
        framing("content-length: 7\r\nContent-Length: 7\r\n"),
        ok("7 true")
    );
    assert_eq!(framing("transfer-encoding: Chunked\r\n"), ok("chunked true"));
    assert_eq!(framing("connection: x, Close\r\n"), ok("0 false"));
    let ambiguous = Err(HeadError::Ambiguous.to_string());
    for fields in [
        "content-length: 7\r\ncontent-length: 8\r\n",
        "content-length: 7\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 7\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: identity\r\n",
    ] {
        assert_eq!(framing(fields), ambiguous, "{fields}");
    }
    let malformed = Err(HeadError::Malformed.to_string());
    for fields in [
        "content-length: 7, 7\r\n",
        "content-length: +7\r\n",
        "content-length:\r\n",
        "content-length: 99999999999999999999\r\n",
        "content-length : 7\r\n",
        "a\r\n",
        " a: b\r\n",
        "a: b\r\n folded\r\n",
        "a: \u{1}\r\n",
    ] {
        assert_eq!(framing(fields), malformed, "{fields}");
    }
}

#[test]
fn heads_have_bounds_and_versions_their_ways() {
    let large = |n| format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "x".repeat(n));
    assert_eq!(read(&large(300), 9).unwrap_err(), HeadError::TooLarge);
    assert_eq!(read(&large(300), 400).unwrap_err(), HeadError::TooLarge);
    assert!(read(&large(200), 9).unwrap().is_some());
    let many = |n| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(n));
    assert_eq!(read(&many(5), 400).unwrap_err(), HeadError::TooLarge);
    assert!(read(&many(4), 400).unwrap().is_some());
    let old = |fields: &str| {
        let read = read(&format!("\r\n\r\nGET / HTTP/1.0\r\n{fields}\r\n"), 3).unwrap();
        read.unwrap().1.keep_alive
    };
    assert!(!old("") && old("connection: Keep-Alive\r\n"));
    let chunked = "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n";
    assert_eq!(read(chunked, 3).unwrap_err(), HeadError::Ambiguous);
    assert_eq!(
        read("GET / HTTP/2.0\r\n\r\n", 3).unwrap_err(),
        HeadError::Malformed
    );
    assert!(read("GET / HTTP/1.1\r\nhost: x\r\n", 3).unwrap().is_none());
}

#[test]
fn answers_have_the_bodies_that_their_requests_and_statuses_let_them() {
    let framing = |asked: Method, text: &str| {
        let mut buffer = BytesMut::from(text.as_bytes());
        let read = answer(&mut buffer, &mut Looked::default(), LIMITS, &asked);
        let (_, message) = read.unwrap().unwrap();
        (format!("{:?}", message.framing), message.keep_alive)
    };
    let length = |n: u64| format!("{:?}", Framing::Length(n));
    let five = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
    assert_eq!(framing(Method::GET, five), (length(5), true));
    assert_eq!(framing(Method::HEAD, five), (length(0), true));
    let none = five.replace("200 OK", "304 Not Modified");
    assert_eq!(framing(Method::GET, &none), (length(0), true));
    let open = "HTTP/1.1 200 OK\r\n\r\n";
    assert_eq!(
        framing(Method::GET, open),
        (format!("{:?}", Framing::ToEnd), false)
    );
    let two = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n";
    let read = answer(
        &mut BytesMut::from(two),
        &mut Looked::default(),
        LIMITS,
        &Method::GET,
    );
    assert_eq!(read.unwrap_err(), HeadError::Ambiguous);
}
