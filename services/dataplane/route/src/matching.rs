//! Texts that are compared: exactly, or with a bounded regular expression.

use regex::{Regex, RegexBuilder};

/// Largest pattern that is accepted, as text and as compiled program. A route's author is not the
/// node's owner: matching time grows with the program's size, and there may be many of them.
const MAX_TEXT: usize = 1024;
const MAX_PROGRAM: usize = 256 * 1024;

/// A regular expression (RE2 syntax, linear time) that must fit the whole text.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: Box<str>,
    regex: Regex,
}

/// A pattern that can not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Too long.
    #[error("the regular expression has {0} bytes; {MAX_TEXT} are allowed")]
    Long(usize),
    /// Compiled, it would be too large.
    #[error(
        "the regular expression is too complex: {MAX_PROGRAM} bytes are allowed when compiled; use smaller repetitions"
    )]
    Complex,
    /// Not a pattern.
    #[error("not a regular expression (RE2 syntax, no look-around, no back references): {0}")]
    Syntax(String),
}

impl Pattern {
    /// Reads a pattern.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        if text.len() > MAX_TEXT {
            return Err(PatternError::Long(text.len()));
        }
        // Alone first: `a)(b` must not become legal by the brackets put around it.
        let build = |text: &str| {
            RegexBuilder::new(text)
                .size_limit(MAX_PROGRAM)
                .dfa_size_limit(MAX_PROGRAM)
                .build()
                .map_err(|error| match error {
                    regex::Error::CompiledTooBig(_) => PatternError::Complex,
                    other => PatternError::Syntax(
                        other.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
                    ),
                })
        };
        build(text)?;
        let regex = build(&format!("^(?:{text})$"))?;
        Ok(Self {
            text: text.into(),
            regex,
        })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether all of `value` fits.
    pub fn matches(&self, value: &str) -> bool {
        self.regex.is_match(value)
    }
}

/// How a header's or parameter's value is compared.
#[derive(Debug, Clone)]
pub enum TextMatch {
    /// Just this, case and all.
    Exact(Box<str>),
    /// All of it fits the pattern.
    Pattern(Pattern),
}

impl TextMatch {
    /// Whether a value is meant.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(text) => **text == *value,
            Self::Pattern(pattern) => pattern.matches(value),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_the_whole_text() {
        let pattern = Pattern::new("v[0-9]|w").unwrap();
        assert!(pattern.matches("v1") && pattern.matches("w"));
        assert!(!pattern.matches("v1x") && !pattern.matches("xw") && !pattern.matches("v1\n"));
    }

    #[test]
    fn patterns_are_bounded() {
        assert!(matches!(Pattern::new("a)(b"), Err(PatternError::Syntax(_))));
        assert!(matches!(Pattern::new("(?=a)"), Err(PatternError::Syntax(_))));
        assert!(matches!(
            Pattern::new("((a{100}){100}){100}"),
            Err(PatternError::Complex)
        ));
        assert_eq!(
            Pattern::new(&"a".repeat(2000)).err(),
            Some(PatternError::Long(2000))
        );
        assert!(Pattern::new("(a{10}){10}").is_ok());
    }
}
