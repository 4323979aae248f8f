//! Heads and chunked bodies from anybody's bytes, held against a plain reading of the same bytes.

use super::{
    chunked::{Chunked, Piece},
    framing::Framing,
    head::{self, HeadError, HeadLimits, Looked},
};
use bytes::BytesMut;
use std::path::Path;
use weft_fuzz::Corpus;

const LIMITS: HeadLimits = HeadLimits {
    fields: 100,
    bytes: 64 * 1024,
};

fn corpus(name: &str, words: impl IntoIterator<Item = &'static str>) -> Corpus {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    Corpus::read(&folder).words(words)
}

fn heads() -> Corpus {
    let words = [
        "Content-Length: 1\r\n",
        "Content-Length: 2\n",
        "transfer-encoding: chunked\r\n",
        "transfer-encoding:",
        "GET / HTTP/1.1\r\n",
        "\r\n",
        "\n",
        "\r",
        " ",
        ":",
    ];
    corpus("head", words)
}

fn bodies() -> Corpus {
    corpus(
        "body",
        ["0\r\n", "1\r\n", "a", "\r\n", ";", "0", "F", "\n", "\r", ": "],
    )
}

/// Where the bytes are cut, which they say themselves.
fn cut(bytes: &[u8]) -> (&[u8], &[u8]) {
    let at = bytes.iter().map(|c| usize::from(*c)).sum::<usize>() % (bytes.len() + 1);
    bytes.split_at(at)
}

/// How a head's body is framed, and how many bytes are behind it.
type Head = Result<Option<(String, usize)>, HeadError>;

fn read_head(pieces: [&[u8]; 2]) -> Head {
    let (mut buffer, mut looked) = (BytesMut::new(), Looked::default());
    let mut left: usize = pieces.iter().map(|piece| piece.len()).sum();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        left -= piece.len();
        if let Some((_, message)) = head::request(&mut buffer, &mut looked, LIMITS)? {
            let framing = match message.framing {
                Framing::Length(length) => length.to_string(),
                Framing::Chunked(_) => "chunked".to_owned(),
                Framing::ToEnd => "to the end".to_owned(),
            };
            return Ok(Some((framing, buffer.len() + left)));
        }
    }
    Ok(None)
}

/// Line by line with all of it at hand: every framing that a line says, in lower case, and how many bytes are
/// behind the head.
fn plainly(head: &[u8]) -> Option<(Vec<String>, usize)> {
    let mut rest = head;
    let (mut said, mut lines) = (Vec::new(), 0);
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let line = String::from_utf8_lossy(&rest[..end]).to_ascii_lowercase();
        let line = line.strip_suffix('\r').unwrap_or(&line);
        rest = &rest[end + 1..];
        match line {
            "" if lines > 0 => return Some((said, rest.len())),
            "" => continue,
            _ => lines += 1,
        }
        if let Some(length) = line.strip_prefix("content-length:") {
            said.push(length.trim_matches([' ', '\t']).to_owned());
        } else if let Some(coding) = line.strip_prefix("transfer-encoding:") {
            said.push(coding.trim_matches([' ', '\t']).to_owned());
        }
    }
    None
}

/// What is read is what all lines say, and it does not matter in which pieces they came.
fn head_holds(read: impl Fn([&[u8]; 2]) -> Head, bytes: &[u8]) {
    let (first, second) = cut(bytes);
    let found = read([first, second]);
    assert_eq!(found, read([bytes, b""]));
    let plain = plainly(bytes);
    match found {
        Ok(Some((framing, behind))) => {
            let (said, left) = plain.expect("a head without an end");
            assert_eq!(behind, left);
            match said.is_empty() {
                true => assert_eq!(framing, "0"),
                // Leading zeros are the same number.
                false => assert!(said.iter().all(|one| *one == framing
                    || one.trim_start_matches('0') == framing.trim_start_matches('0')
                        && one.bytes().all(|b| b.is_ascii_digit()))),
            }
        }
        Ok(None) => assert!(plain.is_none()),
        Err(_) => {}
    }
}

/// Data, and how many bytes are behind the body; `None` where it is none, or not all of it.
type Body = Option<(Vec<u8>, usize)>;

fn read_body(pieces: [&[u8]; 2]) -> Body {
    let (mut chunked, mut buffer, mut data) = (Chunked::default(), BytesMut::new(), Vec::new());
    let mut left: usize = pieces.iter().map(|piece| piece.len()).sum();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        left -= piece.len();
        loop {
            match chunked.read(&mut buffer).ok()? {
                Piece::Data(piece) => data.extend_from_slice(&piece),
                Piece::Trailers(_) | Piece::End => return Some((data, buffer.len() + left)),
                Piece::More => break,
            }
        }
    }
    None
}

/// The same with all of it at hand.
fn body_plainly(mut rest: &[u8]) -> Body {
    let mut data = Vec::new();
    loop {
        let digits = rest.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let size = std::str::from_utf8(&rest[..digits]).ok()?;
        let size = u64::from_str_radix(size, 16).ok().filter(|_| digits <= 16)?;
        rest = rest[digits..].trim_ascii_start_blank();
        if let Some(extension) = rest.strip_prefix(b";") {
            let is_text = |b: &&u8| !b.is_ascii_control() || **b == b'\t';
            rest = &extension[extension.iter().take_while(is_text).count()..];
        }
        rest = rest.strip_prefix(b"\r\n")?;
        if size == 0 {
            break;
        }
        let size = usize::try_from(size).ok()?;
        data.extend_from_slice(rest.get(..size)?);
        rest = rest[size..].strip_prefix(b"\r\n")?;
    }
    if let Some(rest) = rest.strip_prefix(b"\r\n") {
        return Some((data, rest.len()));
    }
    let end = rest.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let mut fields = [httparse::EMPTY_HEADER; 100];
    match httparse::parse_headers(&rest[..end], &mut fields) {
        Ok(httparse::Status::Complete((n, _))) if n == end => Some((data, rest.len() - end)),
        _ => None,
    }
}

trait Blank {
    fn trim_ascii_start_blank(&self) -> &[u8];
}

impl Blank for [u8] {
    fn trim_ascii_start_blank(&self) -> &[u8] {
        let blank = self.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
        &self[blank..]
    }
}

fn body_holds(read: impl Fn([&[u8]; 2]) -> Body, bytes: &[u8]) {
    let (first, second) = cut(bytes);
    assert_eq!(read([first, second]), body_plainly(bytes));
}

#[test]
fn fuzz_head() {
    weft_fuzz::target!(heads(), |bytes: &[u8]| head_holds(read_head, bytes));
}

#[test]
fn fuzz_body() {
    weft_fuzz::target!(bodies(), |bytes: &[u8]| body_holds(read_body, bytes));
}

#[test]
fn the_target_notices_a_framing_that_wins_over_another() {
    // As readers do that let Transfer-Encoding win.
    let lenient = |[first, second]: [&[u8]; 2]| {
        let text = [first, second].concat();
        match read_head([&text, b""]) {
            Err(HeadError::Ambiguous) => Ok(Some(("chunked".to_owned(), plainly(&text).map_or(0, |p| p.1)))),
            other => other,
        }
    };
    assert!(weft_fuzz::finds!(20_000, heads(), |bytes: &[u8]| head_holds(
        lenient, bytes
    )));
}

#[test]
fn the_target_notices_an_extension_that_is_taken_for_the_size() {
    let lenient = |pieces: [&[u8]; 2]| {
        let text = pieces.concat();
        let without: Vec<u8> = text.iter().copied().filter(|b| *b != b';').collect();
        read_body([&without, b""])
    };
    assert!(weft_fuzz::finds!(20_000, bodies(), |bytes: &[u8]| body_holds(
        lenient, bytes
    )));
}
