//! Requests: which of them a rule about HTTP means.
//!
//! Rules say so with regular expressions. Each is compiled once for a set, and most are none: a text
//! without anything special in it, several of them (`GET|HEAD`), and a beginning (`/public/.*`), are
//! compared as they are. Others are only asked about texts that begin as they do.

use crate::{
    Entry,
    fault::{Fault, made},
};
use std::{borrow::Cow, collections::HashMap};
use weft_resources::{HttpRule, expression};

/// What rules may ask of a request.
#[derive(Debug, Clone, Copy)]
pub struct RequestFacts<'a> {
    /// Method, as sent.
    pub method: &'a str,
    /// Path with its query: what the next hop is asked for.
    pub path: &'a str,
    /// Host, with its port where the client names it: `:authority`, in HTTP/1.1 the `Host` header.
    pub host: &'a str,
    /// Headers. Several of one name are judged as one, joined by commas.
    pub headers: &'a http::HeaderMap,
}

impl RequestFacts<'_> {
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        if name == "host" {
            return Some(self.host.as_bytes().into());
        }
        let mut values = self.headers.get_all(name).iter().map(http::HeaderValue::as_bytes);
        let first = values.next()?;
        let Some(second) = values.next() else {
            return Some(first.into());
        };
        let mut joined = first.to_vec();
        for value in std::iter::once(second).chain(values) {
            joined.push(b',');
            joined.extend(value);
        }
        Some(joined.into())
    }
}

/// What one part of a request must be.
#[derive(Debug, Clone)]
enum Text {
    Exactly(String),
    OneOf(Vec<String>),
    /// And then anything that is one line.
    Beginning(String),
    /// Nothing fits that begins otherwise.
    Fitting(String, regex::bytes::Regex),
}

impl Text {
    fn compile(pattern: &str) -> Result<Self, String> {
        if !pattern.contains(is_special) {
            return Ok(Self::Exactly(pattern.to_owned()));
        }
        if let Some(beginning) = pattern.strip_suffix(".*").filter(|p| !p.contains(is_special)) {
            return Ok(Self::Beginning(beginning.to_owned()));
        }
        if !pattern.contains(|c| c != '|' && is_special(c)) {
            return Ok(Self::OneOf(pattern.split('|').map(str::to_owned).collect()));
        }
        let regex = expression(pattern)?;
        Ok(Self::Fitting(beginning(pattern).to_owned(), regex))
    }

    fn fits(&self, text: &str) -> bool {
        match self {
            _ if made(Fault::RequestIsNotAnchored) => self.is_in(text),
            Self::Exactly(expected) => text == expected,
            Self::OneOf(expected) => expected.iter().any(|e| text == e),
            Self::Beginning(beginning) => text.strip_prefix(&**beginning).is_some_and(|r| !r.contains('\n')),
            Self::Fitting(beginning, regex) => {
                text.starts_with(&**beginning) && regex.is_match(text.as_bytes())
            }
        }
    }

    /// What [`Fault::RequestIsNotAnchored`] does.
    fn is_in(&self, text: &str) -> bool {
        match self {
            Self::Exactly(expected) | Self::Beginning(expected) => text.contains(&**expected),
            Self::OneOf(expected) => expected.iter().any(|e| text.contains(&**e)),
            Self::Fitting(_, regex) => regex.is_match(text.as_bytes()),
        }
    }
}

/// What has a meaning of its own in a regular expression.
fn is_special(c: char) -> bool {
    r"\.+*?()|[]{}^$".contains(c)
}

/// What all that fits a pattern begins with, as far as can be seen without reading all of it: nothing
/// where there are alternatives outside of parentheses.
fn beginning(pattern: &str) -> &str {
    let end = pattern.find(is_special).unwrap_or(pattern.len());
    let (start, rest) = pattern.split_at(end);
    if has_alternatives(rest) {
        return "";
    }
    match rest.chars().next() {
        // The last character may be missing.
        Some('*' | '?' | '{') => start
            .char_indices()
            .next_back()
            .map_or("", |(at, _)| &start[..at]),
        _ => start,
    }
}

/// Whether there is a `|` that is not surely inside parentheses.
fn has_alternatives(pattern: &str) -> bool {
    if !pattern.contains('|') {
        return false;
    }
    let mut depth = 0_usize;
    for c in pattern.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '|' if depth == 0 => return true,
            // A parenthesis may be meant as itself there.
            '[' | '\\' => return true,
            _ => {}
        }
    }
    false
}

#[derive(Debug, Clone)]
struct Rule {
    method: Option<Text>,
    path: Option<Text>,
    host: Option<Text>,
    headers: Vec<(String, Option<String>)>,
}

impl Rule {
    fn names(&self, request: &RequestFacts<'_>) -> bool {
        let fits = |expected: &Option<Text>, found: &str| expected.as_ref().is_none_or(|t| t.fits(found));
        let has = |(name, value): &(String, Option<String>)| {
            let found = request.header(name);
            let value = value.as_ref().filter(|_| !made(Fault::HeaderValueIsIgnored));
            found.is_some_and(|found| value.is_none_or(|v| *found == *v.as_bytes()))
        };
        let path = match request.path.split_once('?') {
            Some((path, _)) if made(Fault::QueryIsNotJudged) => path,
            _ => request.path,
        };
        let host = match request.host.split_once(':') {
            Some((host, _)) if made(Fault::PortOfHostIsNotJudged) => host,
            _ => request.host,
        };
        (fits(&self.method, request.method) || made(Fault::MethodIsIgnored))
            && (fits(&self.path, path) || made(Fault::PathIsIgnored))
            && (fits(&self.host, host) || made(Fault::HostIsIgnored))
            && if made(Fault::OneHeaderSuffices) {
                self.headers.is_empty() || self.headers.iter().any(has)
            } else {
                self.headers.iter().all(has)
            }
    }
}

/// The rules about requests of one direction of a set, by the position of their entry.
#[derive(Debug, Clone, Default)]
pub(crate) struct Requests(HashMap<u32, Vec<Rule>>);

/// An expression that is none. Parsed manifests have no such; what comes over the wire may.
#[derive(Debug)]
pub(crate) struct BadRule {
    pub entry: usize,
    pub problem: String,
}

impl Requests {
    /// Compiles all rules; one with a mistake means no request, and the first such is told.
    pub(crate) fn compile(entries: &[Entry]) -> (Self, Option<BadRule>) {
        let mut known: HashMap<&str, Result<Text, String>> = HashMap::new();
        let (mut all, mut bad) = (HashMap::new(), None);
        for (at, entry) in entries.iter().enumerate().filter(|(_, e)| !e.http.is_empty()) {
            let mut rules = Vec::with_capacity(entry.http.len());
            for rule in &*entry.http {
                match compile(rule, &mut known) {
                    Ok(rule) => rules.push(rule),
                    Err(problem) => {
                        bad.get_or_insert(BadRule { entry: at, problem });
                    }
                }
            }
            if made(Fault::FirstRequestRuleOnly) {
                rules.truncate(1);
            }
            // Positions are those of the index, which has no more either.
            all.insert(u32::try_from(at).unwrap_or(u32::MAX), rules);
        }
        (Self(all), bad)
    }

    /// Whether the entry at this position means the request.
    pub(crate) fn names(&self, position: u32, request: &RequestFacts<'_>) -> bool {
        let rules = self.0.get(&position);
        rules.is_some_and(|rules| rules.iter().any(|rule| rule.names(request)))
    }
}

fn compile<'r>(
    rule: &'r HttpRule,
    known: &mut HashMap<&'r str, Result<Text, String>>,
) -> Result<Rule, String> {
    let mut text = |pattern: &'r Option<String>| {
        let Some(pattern) = pattern.as_deref() else {
            return Ok(None);
        };
        let compiled = known.entry(pattern).or_insert_with(|| Text::compile(pattern));
        compiled.clone().map(Some)
    };
    Ok(Rule {
        method: text(&rule.method)?,
        path: text(&rule.path)?,
        host: text(&rule.host)?,
        headers: rule.headers.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The short ways mean what the expression means.
        #[test]
        fn a_short_way_is_the_expression(
            pattern in r"[/ab\n-]{0,4}(\.\*)?|([ab]{0,2}\|){1,3}[ab]{0,2}",
            text in r"[/ab\n.*-]{0,6}",
        ) {
            let short = Text::compile(&pattern).map_err(TestCaseError::fail)?;
            prop_assert!(!matches!(short, Text::Fitting(..)));
            let regex = expression(&pattern).map_err(TestCaseError::fail)?;
            prop_assert_eq!(short.fits(&text), regex.is_match(text.as_bytes()), "{:?}", pattern);
        }
    }

    proptest! {
        /// What an expression must begin with is left out of no text that fits.
        #[test]
        fn a_beginning_is_that_of_all_that_fits(
            pattern in r"[ab]{0,3}(a\?|b\*|a\+|a\{0,1\}|\(a\|b\)|\(a\)|\|b|\[ab\|\]|\.|\\\||[ab]){1,3}",
            text in r"[ab|]{0,5}",
        ) {
            let text_match = Text::compile(&pattern).map_err(TestCaseError::fail)?;
            let regex = expression(&pattern).map_err(TestCaseError::fail)?;
            prop_assert_eq!(text_match.fits(&text), regex.is_match(text.as_bytes()), "{:?}", pattern);
        }
    }

    #[test]
    fn beginnings() {
        for (pattern, expected) in [
            ("/team/v[0-9]+/items", "/team/v"),
            ("/team(/.*)?", "/team"),
            ("/team/?", "/team"),
            ("/a|/b.", ""),
            ("/a(b|c)", "/a"),
            ("/a(b)|c", ""),
            (r"/a\.b", "/a"),
            ("(?i)/a", ""),
            ("/a{0}", "/"),
        ] {
            assert_eq!(beginning(pattern), expected, "{pattern}");
        }
    }
}
