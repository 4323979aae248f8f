//! gRPC clients that name the socket's path as the authority of their requests.
//!
//! Clients on gRPC's C core (Python, Ruby, C++) send `%2Frun%2Fweft%2Fworkload.sock`, those on Netty
//! `/run/weft/workload.sock`. Neither is a legal authority, and the `h2` crate ends such streams with
//! PROTOCOL_ERROR (hyperium/h2#487, open). Nothing here depends on the authority, so what is read is
//! passed on with the offending characters replaced, one for one: no length changes, and the
//! compression state of both ends agrees. These clients send the value plainly, not Huffman-coded;
//! one that did would be refused as before.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// `PRI * HTTP/2.0…`: what a client's side begins with (RFC 9113, 3.4).
const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
/// Frame type and flags of HEADERS (RFC 9113, 6.2).
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// A larger frame is more than the server permits; it is passed on to be refused there.
const MAX_FRAME: usize = 16 * 1024;
/// `:authority` in the static table (RFC 7541, Appendix A).
const AUTHORITY: usize = 1;
const READ: usize = 4 * 1024;

/// The server's side of a connection, as `h2` can read it.
#[derive(Debug)]
pub(crate) struct Lenient<T> {
    io: T,
    rewriter: Rewriter,
}

impl<T> Lenient<T> {
    pub(crate) fn new(io: T) -> Self {
        Self {
            io,
            rewriter: Rewriter::default(),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Lenient<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        while self.rewriter.ready.is_empty() {
            let mut space = [0; READ];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                // The end, perhaps within a frame: what is there of it decides nothing any more.
                return Poll::Ready(Ok(()));
            }
            self.rewriter.push(read.filled());
        }
        let ready = &mut self.rewriter.ready;
        let take = ready.len().min(buf.remaining());
        buf.put_slice(&ready[..take]);
        ready.drain(..take);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Lenient<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Takes bytes in any portions; holds back no more than one HEADERS frame.
#[derive(Debug)]
struct Rewriter {
    /// Not looked at yet: less than a whole frame.
    held: Vec<u8>,
    /// To be passed on.
    ready: Vec<u8>,
    /// So many bytes are passed on unseen.
    pass: usize,
}

impl Default for Rewriter {
    fn default() -> Self {
        Self {
            held: Vec::new(),
            ready: Vec::new(),
            pass: PREFACE,
        }
    }
}

impl Rewriter {
    fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.pass > 0 {
                let (now, later) = bytes.split_at(self.pass.min(bytes.len()));
                self.ready.extend_from_slice(now);
                self.pass -= now.len();
                bytes = later;
                continue;
            }
            let wanted = self.wanted();
            let (now, later) = bytes.split_at((wanted - self.held.len()).min(bytes.len()));
            self.held.extend_from_slice(now);
            bytes = later;
            if self.held.len() < wanted || self.wanted() > wanted {
                continue;
            }
            match headers(&self.held) {
                Some(_) => rewrite(&mut self.held),
                None => self.pass = length(&self.held),
            }
            self.ready.append(&mut self.held);
        }
    }

    /// How many bytes must be held before something can be done with them.
    fn wanted(&self) -> usize {
        match self.held.len() {
            0..FRAME_HEADER => FRAME_HEADER,
            _ => FRAME_HEADER + headers(&self.held).unwrap_or(0),
        }
    }
}

fn length(frame: &[u8]) -> usize {
    match frame {
        [a, b, c, ..] => usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c),
        _ => 0,
    }
}

/// The length of a HEADERS frame that is to be looked at.
fn headers(frame: &[u8]) -> Option<usize> {
    let length = length(frame);
    (frame.get(3) == Some(&HEADERS) && length <= MAX_FRAME).then_some(length)
}

/// Makes the authorities in a whole HEADERS frame legal.
fn rewrite(frame: &mut [u8]) {
    let Some((header, payload)) = frame.split_at_mut_checked(FRAME_HEADER) else {
        return;
    };
    let flags = header[4];
    let mut start = 0;
    let mut end = payload.len();
    if flags & PADDED != 0 {
        let padding = payload.first().copied().map_or(0, usize::from);
        start += 1;
        end = end.saturating_sub(padding);
    }
    if flags & PRIORITY != 0 {
        start += 5;
    }
    if start < end {
        let mut block = Block {
            bytes: &mut payload[start..end],
            at: 0,
        };
        // Ends at the first thing that is not understood, or where the block goes on in another frame.
        while block.field().is_some() {}
    }
}

/// A header block (RFC 7541, 6).
struct Block<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Block<'_> {
    fn field(&mut self) -> Option<()> {
        let first = *self.bytes.get(self.at)?;
        let bits = match first {
            // An indexed field has no text.
            0x80.. => return self.integer(7).map(drop),
            0x40..=0x7f => 6,
            // A new size of the table.
            0x20..=0x3f => return self.integer(5).map(drop),
            _ => 4,
        };
        let name = self.integer(bits)?;
        let is_authority = match name {
            0 => {
                let (plain, from, to) = self.text()?;
                plain && &self.bytes[from..to] == b":authority"
            }
            index => index == AUTHORITY,
        };
        let (plain, from, to) = self.text()?;
        if is_authority && plain {
            for byte in &mut self.bytes[from..to] {
                if matches!(byte, b'%' | b'/') {
                    *byte = b'-';
                }
            }
        }
        Some(())
    }

    /// A text: whether it is plain, and where it is.
    fn text(&mut self) -> Option<(bool, usize, usize)> {
        let plain = self.bytes.get(self.at)? & 0x80 == 0;
        let length = self.integer(7)?;
        let (from, to) = (self.at, self.at.checked_add(length)?);
        if to > self.bytes.len() {
            return None;
        }
        self.at = to;
        Some((plain, from, to))
    }

    /// An integer whose first byte has `bits` bits of it (RFC 7541, 5.1).
    fn integer(&mut self, bits: u32) -> Option<usize> {
        let mask = (1usize << bits) - 1;
        let mut value = usize::from(*self.bytes.get(self.at)?) & mask;
        self.at += 1;
        if value < mask {
            return Some(value);
        }
        // Three more bytes are two million: more than any frame has.
        for shift in [0, 7, 14] {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(text: &[u8]) -> Vec<u8> {
        assert!(text.len() < 127);
        [&[text.len() as u8], text].concat()
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// `:method`, the authority in one of its forms, another header that keeps its slashes.
    fn request(authority: &[u8], form: u8) -> Vec<u8> {
        let named = match form {
            0 => vec![0x41],
            1 => [&[0x40][..], &text(b":authority")].concat(),
            _ => vec![0x11],
        };
        let other = [&[0x00][..], &text(b"x-path"), &text(b"/a%2F")].concat();
        [&[0x83][..], &named, &text(authority), &other].concat()
    }

    fn pushed(stream: &[u8], portion: usize) -> Vec<u8> {
        let mut rewriter = Rewriter::default();
        stream.chunks(portion).for_each(|bytes| rewriter.push(bytes));
        rewriter.ready
    }

    #[test]
    fn authorities_become_legal_and_nothing_else_changes() {
        let preface = [b'/'; PREFACE];
        for form in 0..3 {
            for (flags, before, after) in [
                (0x4, &[][..], &[][..]),
                (0x4 | PADDED, &[2][..], &[b'/'; 2][..]),
                (0x4 | PRIORITY, &[b'/'; 5][..], &[][..]),
                (
                    0x4 | PADDED | PRIORITY,
                    &[1, b'/', b'/', b'/', b'/', b'/'][..],
                    &[b'/'][..],
                ),
            ] {
                let stream = |authority: &[u8]| {
                    let payload = [before, &request(authority, form), after].concat();
                    // Data that looks like a request stays as it is.
                    let data = frame(0, 0, &request(b"/data", 0));
                    [
                        &preface[..],
                        &frame(4, 0, &[]),
                        &frame(HEADERS, flags, &payload),
                        &data,
                    ]
                    .concat()
                };
                for portion in [1, 7, 10_000] {
                    assert_eq!(
                        pushed(&stream(b"%2Frun/a.sock"), portion),
                        stream(b"-2Frun-a.sock"),
                        "form {form} flags {flags} portion {portion}"
                    );
                }
            }
        }
    }

    #[test]
    fn large_frames_are_not_held() {
        let mut stream = vec![0; PREFACE];
        let large = frame(HEADERS, 4, &vec![b'/'; MAX_FRAME + 1]);
        stream.extend_from_slice(&large[..100]);
        assert_eq!(pushed(&stream, 10_000), stream);
    }

    proptest! {
        /// Whatever comes, in whatever portions: as many bytes go out as came in, save what is
        /// held of one frame, and only `%` and `/` ever change.
        #[test]
        fn any_bytes_pass(
            frames in prop::collection::vec((0u8..3, 0u8..64, prop::collection::vec(any::<u8>(), 0..60)), 0..6),
            tail in prop::collection::vec(any::<u8>(), 0..40),
            portion in 1usize..50,
        ) {
            let mut stream = vec![b'%'; PREFACE];
            for (kind, flags, payload) in frames {
                stream.extend(frame(kind, flags, &payload));
            }
            stream.extend(tail);
            let out = pushed(&stream, portion);
            prop_assert!(out.len() <= stream.len());
            prop_assert!(stream.len() - out.len() <= FRAME_HEADER + MAX_FRAME);
            for (was, is) in stream.iter().zip(&out) {
                prop_assert!(was == is || (matches!(was, b'%' | b'/') && *is == b'-'));
            }
        }
    }
}
