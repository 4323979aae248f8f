//! What a peer that has shown its certificate sends, from the first byte of HTTP/2 on. Whatever is
//! handed on is a CONNECT to an authority with few headers, each stream at most once; the connection
//! ends with its bytes, whatever they are.

use super::*;
use futures::FutureExt;
use std::collections::HashSet;
use tokio::io::AsyncWriteExt;
use weft_fuzz::Corpus;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// No input has more bytes, and so no answer waits for one.
const PIPE: usize = 1 << 20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a small frame").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header as HPACK writes one that it does not remember.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0x00];
    for text in [name, value] {
        // Below 127: one byte says how long it is.
        bytes.push(u8::try_from(text.len()).expect("a short text"));
        bytes.extend(text.as_bytes());
    }
    bytes
}

fn headers(stream: u32, end: bool, fields: &[(&str, &str)]) -> Vec<u8> {
    let block: Vec<u8> = fields
        .iter()
        .flat_map(|(name, value)| literal(name, value))
        .collect();
    frame(1, 0x4 | u8::from(end), stream, &block)
}

fn connect(stream: u32, authority: &str) -> Vec<u8> {
    let fields = [
        (":method", "CONNECT"),
        (":authority", authority),
        (crate::SOURCE_HEADER, "n1/shop/cart/1"),
        (crate::DESTINATION_HEADER, "n2/shop/pay/1"),
    ];
    headers(stream, false, &fields)
}

fn get(stream: u32) -> Vec<u8> {
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/"),
        (":authority", "pay.shop:50002"),
    ];
    headers(stream, true, &fields)
}

fn corpus() -> Corpus {
    let begun = |frames: &[Vec<u8>]| [PREFACE, &frame(4, 0, 0, &[]), &frames.concat()].concat();
    Corpus::of([
        begun(&[connect(1, "pay.shop:50002")]),
        begun(&[
            connect(1, "10.0.0.2:8080"),
            frame(0, 0, 1, b"hello"),
            frame(0, 1, 1, b""),
        ]),
        begun(&[
            connect(1, "[fd00::2]:8080"),
            connect(3, "pay.shop:50002"),
            frame(3, 0, 1, &[0, 0, 0, 8]),
        ]),
        begun(&[get(1)]),
        begun(&[get(1), connect(3, "pay.shop:50002")]),
        begun(&[
            frame(6, 0, 0, &[7; 8]),
            connect(1, "pay.shop:50002"),
            frame(8, 0, 0, &[0, 0, 16, 0]),
            frame(7, 0, 0, &[0; 8]),
        ]),
    ])
    .words([
        "CONNECT",
        "GET",
        "\u{0}\u{7}:method\u{7}CONNECT",
        "\u{0}\u{5}:path\u{1}/",
        "\u{0}\u{a}:authority\u{e}pay.shop:50002",
        "weft-destination",
        "@",
        ":",
    ])
}

type Asked = fn(Parts) -> Result<(Authority, HeaderMap), StatusCode>;

/// Has a connection read the input, and shows each stream that is opened with what is asked for.
fn streams(runtime: &tokio::runtime::Runtime, input: &[u8], mut each: impl FnMut(Opened)) {
    let connection = async {
        let (mut peer, ours) = tokio::io::duplex(PIPE);
        peer.write_all(input).await.expect("room");
        let Ok(mut connection) = http2(&Limits::default()).handshake::<_, Bytes>(ours).await else {
            return;
        };
        while let Some(Ok((request, respond))) = connection.accept().await {
            each((request, respond));
        }
    };
    // It has everything that it will ever get: when it waits for more, it has read all.
    let _guard = runtime.enter();
    let _ = tokio::task::unconstrained(connection).now_or_never();
}

type Opened = (Request<RecvStream>, SendResponse<Bytes>);

fn holds(runtime: &tokio::runtime::Runtime, asked: Asked, input: &[u8]) {
    if input.len() > PIPE {
        return;
    }
    let (mut seen, mut open) = (HashSet::new(), Vec::new());
    streams(runtime, input, |(request, mut respond)| {
        let (head, body) = request.into_parts();
        let (method, uri) = (head.method.clone(), head.uri.clone());
        assert!(
            seen.insert(respond.stream_id()),
            "{:?} twice",
            respond.stream_id()
        );
        match asked(head) {
            Ok((authority, headers)) => {
                assert_eq!(method, Method::CONNECT);
                assert_eq!(uri.authority(), Some(&authority));
                assert!(uri.path_and_query().is_none(), "{uri} has a path");
                let size: usize = headers.iter().map(|(n, v)| n.as_str().len() + v.len()).sum();
                assert!(size <= MAX_HEADERS as usize, "{size} bytes of headers");
                open.push((respond, body));
                assert!(open.len() <= Limits::default().max_streams as usize);
            }
            Err(status) => refuse(&mut respond, status),
        }
    });
}

fn runtime() -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}

#[test]
fn fuzz_connect() {
    let runtime = runtime();
    weft_fuzz::target!(corpus(), |input: &[u8]| holds(&runtime, asked, input));
}

#[test]
fn the_target_notices_when_any_method_is_taken() {
    let any: Asked = |head| {
        let authority = head.uri.into_parts().authority.ok_or(StatusCode::BAD_REQUEST)?;
        Ok((authority, head.headers))
    };
    let runtime = runtime();
    assert!(weft_fuzz::finds!(20_000, corpus(), |input: &[u8]| holds(
        &runtime, any, input
    )));
}

/// How many streams of each input are handed on, and how many are refused.
#[test]
fn what_of_the_corpus_is_a_connect_is_handed_on() {
    let runtime = runtime();
    let corpus = corpus();
    let counted = corpus.seeds().iter().map(|seed| {
        let (mut taken, mut refused) = (0, 0);
        streams(&runtime, seed, |(request, _)| {
            match asked(request.into_parts().0) {
                Ok(_) => taken += 1,
                Err(_) => refused += 1,
            }
        });
        (taken, refused)
    });
    let counted: Vec<_> = counted.collect();
    assert_eq!(counted, [(1, 0), (1, 0), (2, 0), (0, 1), (1, 1), (1, 0)]);
}
