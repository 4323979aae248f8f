//! The chunked coding (RFC 9112, section 7.1).

use super::head::{self, HeadError};
use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

/// Bytes that extensions of the chunks of one body may have together: they mean nothing to anybody here.
const MAX_EXTENSIONS: usize = 16 * 1024;
/// Bytes of the trailers.
const MAX_TRAILERS: usize = 16 * 1024;
/// Fields among them.
const MAX_FIELDS: usize = 100;

/// Why a body is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// A chunk's size is no number, or too large for one.
    #[error("the size of a chunk can not be read")]
    Size,
    /// Extensions that are no text of one line, or too long.
    #[error("the extension of a chunk can not be read")]
    Extension,
    /// A chunk that does not end where its size says.
    #[error("a chunk does not end where it says")]
    End,
    /// Trailers that are no fields, or too many.
    #[error("the trailers can not be read")]
    Trailers,
}

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Digits of a size, of which so many came.
    Size(u64, u8),
    /// Behind the size, up to the line's end.
    Blank(u64),
    Extension(u64),
    /// The line feed of the size's line.
    Line(u64),
    Data(u64),
    /// The line that ends a chunk.
    Return,
    Feed,
    Trailers,
    Ended,
}

/// Where the reading of one body stands.
#[derive(Debug, Clone)]
pub(crate) struct Chunked {
    state: State,
    extensions: usize,
}

/// What was read.
#[derive(Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    /// More bytes are needed.
    More,
    End,
}

impl Default for Chunked {
    fn default() -> Self {
        Self {
            state: State::Size(0, 0),
            extensions: 0,
        }
    }
}

impl Chunked {
    pub fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// How many bytes of data are known to come.
    pub fn expected(&self) -> u64 {
        match self.state {
            State::Data(left) => left,
            _ => 0,
        }
    }

    /// Takes what it can from the front of `buffer`.
    pub fn read(&mut self, buffer: &mut BytesMut) -> Result<Piece, ChunkError> {
        loop {
            match self.state {
                State::Ended => return Ok(Piece::End),
                State::Data(left) => {
                    if buffer.is_empty() {
                        return Ok(Piece::More);
                    }
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                    let left = left - taken as u64;
                    self.state = if left == 0 {
                        State::Return
                    } else {
                        State::Data(left)
                    };
                    let data = buffer.split_to(taken).freeze();
                    // So that its end is known together with the last of it.
                    if left == 0 {
                        self.skip_to_end(buffer)?;
                    }
                    return Ok(Piece::Data(data));
                }
                State::Trailers => return self.read_trailers(buffer),
                _ => {
                    let Some(byte) = buffer.first().copied() else {
                        return Ok(Piece::More);
                    };
                    self.state = self.next(byte)?;
                    buffer.advance(1);
                }
            }
        }
    }

    /// Goes on to the end of the body if all of that is here and it has no trailers.
    fn skip_to_end(&mut self, buffer: &mut BytesMut) -> Result<(), ChunkError> {
        const LAST: &[u8] = b"\r\n0\r\n\r\n";
        if buffer.starts_with(LAST) {
            buffer.advance(LAST.len());
            self.state = State::Ended;
        }
        Ok(())
    }

    fn next(&mut self, byte: u8) -> Result<State, ChunkError> {
        Ok(match (self.state, byte) {
            (State::Size(size, digits), _) if byte.is_ascii_hexdigit() => {
                // Sixteen digits are all that a size can have; a size of zeros in front is none.
                if digits >= 16 {
                    return Err(ChunkError::Size);
                }
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                State::Size(size << 4 | u64::from(digit), digits + 1)
            }
            (State::Size(_, 0), _) => return Err(ChunkError::Size),
            (State::Size(size, _) | State::Blank(size) | State::Extension(size), b'\r') => State::Line(size),
            (State::Size(size, _) | State::Blank(size), b' ' | b'\t') => {
                self.count()?;
                State::Blank(size)
            }
            (State::Size(size, _) | State::Blank(size), b';') => State::Extension(size),
            (State::Size(..) | State::Blank(_), _) => return Err(ChunkError::Size),
            (State::Extension(size), _) => {
                if byte.is_ascii_control() && byte != b'\t' {
                    return Err(ChunkError::Extension);
                }
                self.count()?;
                State::Extension(size)
            }
            (State::Line(0), b'\n') => State::Trailers,
            (State::Line(size), b'\n') => State::Data(size),
            (State::Line(_), _) => return Err(ChunkError::Size),
            (State::Return, b'\r') => State::Feed,
            (State::Feed, b'\n') => State::Size(0, 0),
            (State::Return | State::Feed, _) => return Err(ChunkError::End),
            (state @ (State::Data(_) | State::Trailers | State::Ended), _) => state,
        })
    }

    fn count(&mut self) -> Result<(), ChunkError> {
        self.extensions += 1;
        match self.extensions <= MAX_EXTENSIONS {
            true => Ok(()),
            false => Err(ChunkError::Extension),
        }
    }

    fn read_trailers(&mut self, buffer: &mut BytesMut) -> Result<Piece, ChunkError> {
        if buffer.starts_with(b"\r\n") {
            buffer.advance(2);
            self.state = State::Ended;
            return Ok(Piece::End);
        }
        let Some(end) = memchr::memmem::find(buffer, b"\r\n\r\n").map(|at| at + 4) else {
            return match buffer.len() <= MAX_TRAILERS {
                true => Ok(Piece::More),
                false => Err(ChunkError::Trailers),
            };
        };
        if end > MAX_TRAILERS {
            return Err(ChunkError::Trailers);
        }
        let fields = head::fields(&buffer.split_to(end).freeze(), MAX_FIELDS);
        self.state = State::Ended;
        fields
            .map(Piece::Trailers)
            .map_err(|_: HeadError| ChunkError::Trailers)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Data, trailers, and what was left; the bytes come in pieces of `step`.
    fn read(bytes: &[u8], step: usize) -> Result<(Vec<u8>, Option<HeaderMap>, usize), ChunkError> {
        let (mut chunked, mut buffer) = (Chunked::default(), BytesMut::new());
        let (mut data, mut trailers, mut at) = (Vec::new(), None, 0);
        loop {
            match chunked.read(&mut buffer)? {
                Piece::Data(piece) => data.extend_from_slice(&piece),
                Piece::Trailers(fields) => trailers = Some(fields),
                Piece::End => return Ok((data, trailers, bytes.len() - at + buffer.len())),
                Piece::More if at == bytes.len() => return Err(ChunkError::End),
                Piece::More => {
                    let next = bytes.len().min(at + step);
                    buffer.extend_from_slice(&bytes[at..next]);
                    at = next;
                }
            }
        }
    }

    #[test]
    fn bodies_that_are_none_are_told() {
        for (bytes, error) in [
            ("\r\n", ChunkError::Size),
            ("x\r\n", ChunkError::Size),
            ("-1\r\n", ChunkError::Size),
            (" 1\r\na\r\n0\r\n\r\n", ChunkError::Size),
            ("1 2\r\n", ChunkError::Size),
            ("00000000000000001\r\na\r\n0\r\n\r\n", ChunkError::Size),
            ("1\na\r\n0\r\n\r\n", ChunkError::Size),
            ("1\r\rabc", ChunkError::Size),
            ("1;a\nb\r\n", ChunkError::Extension),
            ("1\r\nab\r\n", ChunkError::End),
            ("1\r\na\n0\r\n\r\n", ChunkError::End),
            ("0\r\na b: c\r\n\r\n", ChunkError::Trailers),
        ] {
            for step in [1, 3, 100] {
                assert_eq!(read(bytes.as_bytes(), step).unwrap_err(), error, "{bytes:?}");
            }
        }
        let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(MAX_EXTENSIONS + 1));
        assert_eq!(read(long.as_bytes(), 4096).unwrap_err(), ChunkError::Extension);
        let fits = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(MAX_EXTENSIONS));
        assert_eq!(read(fits.as_bytes(), 4096).unwrap().0, b"a");
        let long = format!("0\r\nx: {}\r\n\r\n", "x".repeat(MAX_TRAILERS));
        assert_eq!(read(long.as_bytes(), 4096).unwrap_err(), ChunkError::Trailers);
    }

    #[test]
    fn extensions_are_left_out_and_trailers_told() {
        let bytes = b"3 ;a=\"b\"\r\nabc\r\nA\r\n0123456789\r\n0;last\r\nX-Sum: 7\r\n\r\nGET ";
        let (data, trailers, left) = read(bytes, 5).unwrap();
        assert_eq!((&*data, left), (&b"abc0123456789"[..], 4));
        assert_eq!(trailers.unwrap()["x-sum"], "7");
    }

    proptest! {
        #[test]
        fn whatever_is_chunked_comes_back_in_whatever_pieces(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
            upper in any::<bool>(),
            trailer in any::<bool>(),
            step in 1..60usize,
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                let size = match upper {
                    true => format!("{:X}\r\n", chunk.len()),
                    false => format!("0{:x};e\r\n", chunk.len()),
                };
                bytes.extend_from_slice(size.as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(if trailer { b"0\r\nx: y\r\n\r\n" } else { b"0\r\n\r\n" });
            let (data, trailers, left) = read(&bytes, step).unwrap();
            prop_assert_eq!(data, chunks.concat());
            prop_assert_eq!((trailers.is_some(), left), (trailer, 0));
        }
    }
}
