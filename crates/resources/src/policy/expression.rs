//! Regular expressions of policies: RE2's, for a whole text, of bounded size.

pub use regex::bytes::RegexSet as ExpressionSet;
use regex::bytes::{Regex, RegexBuilder, RegexSetBuilder};

/// A longer expression is refused.
const MAX_EXPRESSION: usize = 1024;
/// Memory that a compiled expression may take, and what matching it may keep.
const MAX_COMPILED: usize = 256 * 1024;
/// The same of several that are matched in one pass.
const MAX_TOGETHER: usize = 4 * 1024 * 1024;

/// Compiles an expression that must fit all of a text, as policies mean theirs. Classes such as `\w` are
/// ASCII's, as RE2 has them. Matching takes time in proportion to the text, whatever the expression.
///
/// # Errors
/// Says in one line what is wrong with it.
pub fn expression(text: &str) -> Result<Regex, String> {
    if text.len() > MAX_EXPRESSION {
        return Err(format!("is longer than {MAX_EXPRESSION} bytes"));
    }
    let build = |pattern: &str| {
        let mut builder = RegexBuilder::new(pattern);
        builder.unicode(false).size_limit(MAX_COMPILED);
        builder.dfa_size_limit(MAX_COMPILED).build()
    };
    // First by itself: `a)|(?:b` is an expression only with something around it, and then not for the whole.
    build(text)
        .and_then(|_| build(&format!(r"\A(?:{text})\z")))
        .map_err(|e| {
            // The last line of the message says what is wrong.
            let reason = e.to_string();
            let reason = reason.lines().last().unwrap_or_default();
            format!("{text:?} is no regular expression: {reason}")
        })
}

/// Several expressions, each sound by itself, to be matched in one pass over a text. `None` where that takes
/// more memory than there is for it.
pub fn expressions(texts: &[&str]) -> Option<ExpressionSet> {
    let whole = texts.iter().map(|text| format!(r"\A(?:{text})\z"));
    let mut builder = RegexSetBuilder::new(whole);
    builder.unicode(false).size_limit(MAX_TOGETHER);
    builder.dfa_size_limit(MAX_TOGETHER).build().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{expression, expressions};

    #[test]
    fn expressions_together_mean_what_each_means_within_bounds() {
        let texts = ["/a.*", ".*b", "/a[0-9]+"];
        let together = expressions(&texts).unwrap();
        for text in ["/a", "/ab", "/a1", "/a\n", "x/a1", "b"] {
            let each = texts.map(|e| expression(e).unwrap().is_match(text.as_bytes()));
            let found = together.matches(text.as_bytes());
            assert_eq!([0, 1, 2].map(|at| found.matched(at)), each, "{text}");
        }
        assert!(expressions(&["(a{500}b{500}){100}"; 9]).is_none());
        assert!(expressions(&["(a{5}b{5}){5}"; 9]).is_some());
    }

    #[test]
    fn an_expression_is_for_the_whole_text() {
        let fits = |pattern: &str, text: &str| {
            let regex = expression(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}"));
            regex.is_match(text.as_bytes())
        };
        assert!(fits("/a|/b", "/a") && fits("/a|/b", "/b"));
        assert!(!fits("/a|/b", "/ax") && !fits("/a|/b", "x/b") && !fits("/a", "/a\n"));
        assert!(
            fits(r"/v\d", "/v1") && !fits(r"/v\d", "/v٣"),
            "RE2's digits are ASCII's"
        );
        assert!(fits("(?i)get", "GET") && !fits("get", "GET"));
        assert!(fits("/ü", "/ü"));
    }

    #[test]
    fn what_blows_up_or_breaks_out_is_refused() {
        for (bad, good) in [
            ("a)|(?:b", "(a)|(?:b)"),
            ("a{1000}{1000}", "a{1000}"),
            ("(a", "(a)"),
            (&*"a".repeat(1025), &*"a".repeat(1024)),
        ] {
            assert!(expression(bad).is_err(), "{bad}");
            assert!(expression(good).is_ok(), "{good}");
        }
        // Exponential for engines that go back; here it takes as long as the text is.
        let regex = expression("(a+)+b").unwrap_or_else(|e| panic!("{e}"));
        assert!(!regex.is_match("a".repeat(100_000).as_bytes()));
    }
}
