//! A stream of bytes cut into lines of a bounded length.

/// What was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    Whole(Vec<u8>),
    /// Longer than the limit: what was in it is not known.
    TooLong,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Lines {
    held: Vec<u8>,
    limit: usize,
    skipping: bool,
}

impl Lines {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            held: Vec::new(),
            limit,
            skipping: false,
        }
    }

    /// Whether a line was begun and has not ended.
    pub(super) fn has_rest(&self) -> bool {
        self.skipping || !self.held.is_empty()
    }

    /// The lines that end in this chunk. Empty ones are left out.
    pub(super) fn push(&mut self, chunk: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut parts = chunk.split(|b| *b == b'\n').peekable();
        while let Some(part) = parts.next() {
            let ends = parts.peek().is_some();
            if self.held.len() + part.len() > self.limit {
                self.skipping = true;
                // Not only emptied: what it took is given back.
                self.held = Vec::new();
            }
            if !self.skipping {
                self.held.extend_from_slice(part);
            }
            if ends {
                let line = std::mem::take(&mut self.held);
                if std::mem::take(&mut self.skipping) {
                    lines.push(Line::TooLong);
                } else if !line.is_empty() {
                    lines.push(Line::Whole(line));
                }
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(limit: usize, text: &[u8], at: &[usize]) -> Vec<Line> {
        let mut lines = Lines::new(limit);
        let mut cuts: Vec<usize> = at.iter().map(|i| i % (text.len() + 1)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        cuts.windows(2)
            .flat_map(|w| lines.push(&text[w[0]..w[1]]))
            .collect()
    }

    #[test]
    fn a_line_may_be_as_long_as_the_limit_and_no_longer() {
        let whole = |text: &str| Line::Whole(text.into());
        assert_eq!(
            cut(3, b"abc\nabcd\n\nx\ny", &[2, 6]),
            [whole("abc"), Line::TooLong, whole("x")]
        );
        assert_eq!(
            cut(4, b"abc\nabcd\n\nx\ny", &[2, 6]),
            [whole("abc"), whole("abcd"), whole("x")]
        );
    }

    #[test]
    fn what_is_left_at_the_end_is_known() {
        let mut lines = Lines::new(3);
        for (chunk, rest) in [
            ("a", true),
            ("\n", false),
            ("abcd", true),
            ("\n", false),
            ("ab\nc", true),
        ] {
            lines.push(chunk.as_bytes());
            assert_eq!(lines.has_rest(), rest, "{chunk:?}");
        }
    }

    proptest! {
        #[test]
        fn where_chunks_end_makes_no_difference(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'a')], 0..200),
            at in proptest::collection::vec(0usize..200, 0..20),
            limit in 1usize..20,
        ) {
            prop_assert_eq!(cut(limit, &text, &at), cut(limit, &text, &[]));
        }
    }
}
