//! Looks over the bytes of a request's head for framing that two readers could understand
//! differently.
//!
//! hyper follows RFC 9112 and lets `Transfer-Encoding` win over `Content-Length`, after which
//! nobody can tell that both were there. Whoever sent both is broken or up to something, so the
//! server refuses such a request; for that it has to be seen before hyper drops it.

const TRANSFER_ENCODING: &[u8] = b"transfer-encoding:";
const CONTENT_LENGTH: &[u8] = b"content-length:";
const LONGEST: usize = TRANSFER_ENCODING.len();

/// The state of looking through one head, whatever pieces it comes in.
#[derive(Debug, Default)]
pub(crate) struct HeadScan {
    /// The start of the present line.
    line: [u8; LONGEST],
    /// Bytes of the present line so far, without line ends.
    len: usize,
    /// Lines ended so far.
    lines: usize,
    pub transfer_encoding: bool,
    pub content_length: bool,
    pub complete: bool,
}

impl HeadScan {
    /// Takes the next bytes. What follows the head is not looked at.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !self.complete && !bytes.is_empty() {
            let end = memchr::memchr(b'\n', bytes);
            let piece = &bytes[..end.unwrap_or(bytes.len())];
            if self.len < LONGEST {
                let taken = piece.len().min(LONGEST - self.len);
                self.line[self.len..self.len + taken].copy_from_slice(&piece[..taken]);
            }
            self.len = self.len.saturating_add(piece.len());
            let Some(end) = end else { return };
            self.end_of_line();
            bytes = &bytes[end + 1..];
        }
    }

    fn end_of_line(&mut self) {
        let start = &self.line[..self.len.min(LONGEST)];
        let blank = start.is_empty() || start == b"\r";
        // Empty lines before a request line are allowed and mean nothing.
        if !blank {
            self.lines += 1;
            self.transfer_encoding |= starts_with(start, TRANSFER_ENCODING);
            self.content_length |= starts_with(start, CONTENT_LENGTH);
        } else if self.lines > 0 {
            self.complete = true;
        }
        self.len = 0;
    }

    /// Whether both ways of framing were used.
    pub fn is_ambiguous(&self) -> bool {
        self.transfer_encoding && self.content_length
    }
}

fn starts_with(line: &[u8], name: &[u8]) -> bool {
    line.get(..name.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scan(pieces: &[&[u8]]) -> HeadScan {
        let mut scan = HeadScan::default();
        pieces.iter().for_each(|p| scan.feed(p));
        scan
    }

    #[test]
    fn both_framings_are_seen_in_either_order_and_only_in_the_head() {
        let both = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\ncontent-LENGTH: 3\r\n\r\n";
        assert!(scan(&[both]).is_ambiguous());
        let other = b"POST / HTTP/1.1\r\ncontent-length: 3\r\nTRANSFER-encoding:chunked\r\n\r\n";
        assert!(scan(&[other]).is_ambiguous());
        let body = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n\r\ncontent-length: 3\r\n";
        let scanned = scan(&[body]);
        assert!(scanned.complete && scanned.transfer_encoding && !scanned.content_length);
        assert!(!scan(&[b"\r\n\r\nGET / HTTP/1.1\r\nx-content-length: 3\r\n"]).complete);
    }

    fn corpus() -> weft_fuzz::Corpus {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/head");
        let words = [
            "Content-Length: 1\r\n",
            "transfer-encoding:",
            "\r\n",
            "\n",
            "\r",
            " ",
            ":",
        ];
        weft_fuzz::Corpus::read(&folder).words(words)
    }

    /// Line by line, with all of it at hand: transfer encoding, content length, whether it is complete.
    fn plainly(head: &[u8]) -> (bool, bool, bool) {
        let mut lines: Vec<&[u8]> = head.split(|c| *c == b'\n').collect();
        // What follows the last line end is no line yet.
        lines.pop();
        let is_blank = |line: &&[u8]| line.is_empty() || *line == b"\r";
        let lines = lines.into_iter().skip_while(is_blank);
        let (mut seen, mut complete) = ((false, false), false);
        for line in lines {
            if is_blank(&line) {
                complete = true;
                break;
            }
            let line = line.to_ascii_lowercase();
            seen.0 |= line.starts_with(TRANSFER_ENCODING);
            seen.1 |= line.starts_with(CONTENT_LENGTH);
        }
        (seen.0, seen.1, complete)
    }

    /// In two pieces, cut where the bytes say.
    fn agrees(read: impl Fn(&[&[u8]]) -> HeadScan, head: &[u8]) {
        let cut = head.iter().map(|c| usize::from(*c)).sum::<usize>() % (head.len() + 1);
        let (first, second) = head.split_at(cut);
        let scanned = read(&[first, second]);
        let found = (
            scanned.transfer_encoding,
            scanned.content_length,
            scanned.complete,
        );
        assert_eq!(found, plainly(head));
    }

    #[test]
    fn fuzz_head() {
        weft_fuzz::target!(corpus(), |head: &[u8]| agrees(scan, head));
    }

    #[test]
    fn the_target_notices_a_line_that_is_forgotten_between_pieces() {
        let forgets = |pieces: &[&[u8]]| {
            let mut scan = HeadScan::default();
            for piece in pieces {
                scan.len = 0;
                scan.feed(piece);
            }
            scan
        };
        assert!(weft_fuzz::finds!(20_000, corpus(), |head: &[u8]| agrees(
            forgets, head
        )));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            lines in proptest::collection::vec(
                prop_oneof![
                    Just("Content-Length: 5".to_owned()),
                    Just("transfer-encoding: chunked".to_owned()),
                    "[ -~]{0,30}",
                ], 1..8),
            crlf in any::<bool>(),
            cuts in proptest::collection::vec(1..9usize, 0..40),
        ) {
            let end = if crlf { "\r\n" } else { "\n" };
            let text = format!("GET / HTTP/1.1{end}{}{end}{end}", lines.join(end));
            let whole = scan(&[text.as_bytes()]);
            let mut pieces = HeadScan::default();
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (piece, left) = rest.split_at(cut.min(rest.len()));
                pieces.feed(piece);
                rest = left;
            }
            pieces.feed(rest);
            prop_assert_eq!(
                (whole.transfer_encoding, whole.content_length, whole.complete),
                (pieces.transfer_encoding, pieces.content_length, pieces.complete)
            );
        }
    }
}
