//! The trace that a request belongs to (W3C Trace Context).

use http::{HeaderMap, HeaderName, HeaderValue};
use rand::Rng;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The trace that a request belongs to; one that belongs to none, or to something that is no trace
/// context, begins one (W3C Trace Context, section 4.3).
pub fn trace(headers: &mut HeaderMap) -> [u8; 16] {
    if let Some(id) = headers
        .get(TRACEPARENT)
        .and_then(|value| trace_id(value.as_bytes()))
    {
        return id;
    }
    let mut random = [0; 24];
    rand::rng().fill(&mut random);
    // All zero means none.
    random[0] |= 1;
    random[16] |= 1;
    // Sampled: its id is in the flows of every hop.
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
    put_hex(&mut text[3..35], &random[..16]);
    put_hex(&mut text[36..52], &random[16..]);
    if let Ok(value) = HeaderValue::from_bytes(&text) {
        headers.insert(TRACEPARENT, value);
        // State of another trace says nothing about this one.
        headers.remove("tracestate");
    }
    let mut id = [0; 16];
    id.copy_from_slice(&random[..16]);
    id
}

fn put_hex(text: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// Reads `<version>-<trace id>-<parent id>-<flags>`.
fn trace_id(value: &[u8]) -> Option<[u8; 16]> {
    let ends = value.len() == 55 || (value.get(55) == Some(&b'-') && !value.starts_with(b"00"));
    let dashes = [2, 35, 52].iter().all(|at| value.get(*at) == Some(&b'-'));
    if !ends || !dashes || value.starts_with(b"ff") {
        return None;
    }
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let is_hex = |range: std::ops::Range<usize>| value[range].iter().all(|b| digit(*b).is_some());
    if !is_hex(0..2) || !is_hex(36..52) || !is_hex(53..55) || value[36..52].iter().all(|b| *b == b'0') {
        return None;
    }
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(value[3..35].chunks_exact(2)) {
        *byte = digit(pair[0])? * 16 + digit(pair[1])?;
    }
    (id != [0; 16]).then_some(id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_sound_trace_is_kept_and_another_begun() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(GOOD));
        let id = trace(&mut headers);
        assert_eq!(id[..2], [0x4b, 0xf9]);
        assert_eq!(headers[TRACEPARENT], GOOD);
        let bad = [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ];
        for text in bad {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, HeaderValue::from_static(text));
            headers.insert("tracestate", HeaderValue::from_static("a=b"));
            let id = trace(&mut headers);
            assert_eq!(trace_id(headers[TRACEPARENT].as_bytes()), Some(id), "{text}");
            assert!(!headers.contains_key("tracestate"));
        }
        // A later version may be longer.
        assert!(trace_id(format!("01{}-more", &GOOD[2..]).as_bytes()).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(value in proptest::collection::vec(any::<u8>(), 0..70)) {
            let _ = trace_id(&value);
        }
    }
}
