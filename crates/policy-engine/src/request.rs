//! Requests: which of them a rule about HTTP means.
//!
//! Rules say so with regular expressions. Each is compiled once for a set, and most are none: a text
//! without anything special in it, several of them (`GET|HEAD`), and a beginning (`/public/.*`), are
//! compared as they are. Others are only asked about texts that begin as they do.
//! All rules of a direction are found by what the paths that they mean begin with ([`Paths`]).

use crate::{
    Entry,
    fault::{Fault, made},
    paths::{Paths, Said},
};
use std::{borrow::Cow, collections::HashMap, ops::Range, sync::Arc};
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
    Fitting(String, Arc<str>, regex::bytes::Regex),
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
        Ok(Self::Fitting(
            beginning(pattern).to_owned(),
            pattern.into(),
            regex,
        ))
    }

    /// What all texts that it means begin with, and must fit; of several, one suffices.
    fn says(&self) -> Vec<Said<'_>> {
        let plain = |beginning| Said {
            beginning,
            expression: None,
        };
        match self {
            Self::Exactly(text) | Self::Beginning(text) => vec![plain(text)],
            Self::OneOf(texts) => texts.iter().map(|text| plain(text)).collect(),
            Self::Fitting(beginning, expression, _) => vec![Said {
                beginning,
                expression: Some(expression),
            }],
        }
    }

    fn fits(&self, text: &str) -> bool {
        match self {
            _ if made(Fault::RequestIsNotAnchored) => self.is_in(text),
            Self::Exactly(expected) => text == expected,
            Self::OneOf(expected) => expected.iter().any(|e| text == e),
            Self::Beginning(beginning) => text.strip_prefix(&**beginning).is_some_and(|r| !r.contains('\n')),
            Self::Fitting(beginning, _, regex) => {
                text.starts_with(&**beginning) && regex.is_match(text.as_bytes())
            }
        }
    }

    /// What [`Fault::RequestIsNotAnchored`] does.
    fn is_in(&self, text: &str) -> bool {
        match self {
            Self::Exactly(expected) | Self::Beginning(expected) => text.contains(&**expected),
            Self::OneOf(expected) => expected.iter().any(|e| text.contains(&**e)),
            Self::Fitting(_, _, regex) => regex.is_match(text.as_bytes()),
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
        self.names_but_path(request) && self.names_path(request)
    }

    fn names_path(&self, request: &RequestFacts<'_>) -> bool {
        let path = match request.path.split_once('?') {
            Some((path, _)) if made(Fault::QueryIsNotJudged) => path,
            _ => request.path,
        };
        self.path.as_ref().is_none_or(|t| t.fits(path)) || made(Fault::PathIsIgnored)
    }

    fn names_but_path(&self, request: &RequestFacts<'_>) -> bool {
        let fits = |expected: &Option<Text>, found: &str| expected.as_ref().is_none_or(|t| t.fits(found));
        let has = |(name, value): &(String, Option<String>)| {
            let found = request.header(name);
            let value = value.as_ref().filter(|_| !made(Fault::HeaderValueIsIgnored));
            found.is_some_and(|found| value.is_none_or(|v| *found == *v.as_bytes()))
        };
        let host = match request.host.split_once(':') {
            Some((host, _)) if made(Fault::PortOfHostIsNotJudged) => host,
            _ => request.host,
        };
        (fits(&self.method, request.method) || made(Fault::MethodIsIgnored))
            && (fits(&self.host, host) || made(Fault::HostIsIgnored))
            && if made(Fault::OneHeaderSuffices) {
                self.headers.is_empty() || self.headers.iter().any(has)
            } else {
                self.headers.iter().all(has)
            }
    }
}

/// The rules about requests of one direction of a set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Requests {
    /// In the order of their entries.
    rules: Vec<Rule>,
    /// By the position of an entry, ascending: its rules.
    entries: Vec<(u32, Range<u32>)>,
    paths: Paths,
}

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
        let (mut all, mut bad) = (Self::default(), None);
        for (at, entry) in entries.iter().enumerate().filter(|(_, e)| !e.http.is_empty()) {
            let first = all.end();
            for rule in &*entry.http {
                match compile(rule, &mut known) {
                    Ok(rule) => all.rules.push(rule),
                    Err(problem) => {
                        bad.get_or_insert(BadRule { entry: at, problem });
                    }
                }
            }
            if made(Fault::FirstRequestRuleOnly) {
                all.rules.truncate(first as usize + 1);
            }
            // Positions are those of the index, which has no more either.
            let position = u32::try_from(at).unwrap_or(u32::MAX);
            all.entries.push((position, first..all.end()));
        }
        let anything = Said {
            beginning: "",
            expression: None,
        };
        let said = all.rules.iter().zip(0..).flat_map(|(rule, number)| {
            let says = rule.path.as_ref().map_or_else(|| vec![anything], Text::says);
            says.into_iter().map(move |said| (number, said))
        });
        all.paths = Paths::new(said);
        (all, bad)
    }

    fn end(&self) -> u32 {
        u32::try_from(self.rules.len()).unwrap_or(u32::MAX)
    }

    fn of(&self, position: u32) -> Range<u32> {
        let found = self.entries.binary_search_by_key(&position, |(at, _)| *at);
        found.map_or(0..0, |at| self.entries[at].1.clone())
    }

    /// Whether the entry at this position means the request.
    pub(crate) fn names(&self, position: u32, request: &RequestFacts<'_>) -> bool {
        let Range { start, end } = self.of(position);
        let rules = self.rules.get(start as usize..end as usize);
        rules.is_some_and(|rules| rules.iter().any(|rule| rule.names(request)))
    }

    /// The first of the entries at these positions, which are ascending, that means the request.
    pub(crate) fn first(&self, positions: &[u32], request: &RequestFacts<'_>) -> Option<u32> {
        if made(Fault::PathIsIgnored) || made(Fault::RequestIsNotAnchored) {
            return positions.iter().copied().find(|at| self.names(*at, request));
        }
        let number = self.paths.first(request.path, |number, path_fits| {
            let rule = &self.rules[number as usize];
            positions.binary_search(&self.entry_of(number)).is_ok()
                && rule.names_but_path(request)
                && (path_fits || rule.names_path(request))
        })?;
        Some(self.entry_of(number))
    }

    /// The position of the entry that a rule is of.
    fn entry_of(&self, rule: u32) -> u32 {
        let after = self.entries.partition_point(|(_, rules)| rules.start <= rule);
        // Entries of which no rule could be compiled are before the one that begins at the same number.
        after.checked_sub(1).map_or(u32::MAX, |at| self.entries[at].0)
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

    fn entry(http: Vec<HttpRule>) -> Entry {
        Entry {
            deny: false,
            rule: Arc::new(crate::RuleRef {
                kind: String::new(),
                namespace: String::new(),
                name: String::new(),
                path: String::new(),
            }),
            protocol: Some(6),
            ports: crate::Ports::Any,
            redirect: true,
            http: http.into(),
            dns: Default::default(),
            auth: Default::default(),
            peers: crate::Peers::any(),
        }
    }

    fn rule(path: &str, method: &str, team: &str) -> HttpRule {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        HttpRule {
            method: some(method),
            path: some(path),
            host: None,
            headers: some(team)
                .map(|team| ("x-team".into(), Some(team)))
                .into_iter()
                .collect(),
        }
    }

    fn some_rule() -> impl Strategy<Value = HttpRule> {
        // Nested beginnings, alternatives, expressions with one beginning and with none.
        let path = r"(/a{0,3}(\.\*|\[0-9\]\+|\(/b\)\?|/b|/\[ab\]\*)?|\.\*/b|/a\|/aa|\[/a\]\{2\}|)";
        (path, "(GET|PUT|GET\\|PUT|)", "(|1|2)").prop_map(|(path, method, team)| rule(&path, &method, &team))
    }

    proptest! {
        /// By the index and in turn, the same entry is the first.
        #[test]
        fn the_index_names_the_entry_that_is_first_in_turn(
            entries in proptest::collection::vec(proptest::collection::vec(some_rule(), 0..9), 1..7),
            asked in any::<u8>(),
            path in "/a{0,3}(/b|/[ab]{0,2}|[0-9]|\n)?",
            (method, team) in ("(GET|PUT|POST)", "(|1|2)"),
        ) {
            let entries: Vec<Entry> = entries.into_iter().map(entry).collect();
            let (requests, bad) = Requests::compile(&entries);
            prop_assert!(bad.is_none());
            let asked: Vec<u32> = (0..8).filter(|at| asked & 1 << at != 0).collect();
            let mut headers = http::HeaderMap::new();
            if !team.is_empty() {
                headers.insert("x-team", team.parse().map_err(|_| TestCaseError::fail("team"))?);
            }
            let request = RequestFacts { method: &method, path: &path, host: "h", headers: &headers };
            let in_turn = asked.iter().copied().find(|at| requests.names(*at, &request));
            prop_assert_eq!(requests.first(&asked, &request), in_turn);
        }
    }

    #[test]
    fn of_a_hundred_rules_only_those_are_asked_that_begin_as_the_path_does() {
        let mut rules: Vec<HttpRule> = (0..100)
            .map(|n| rule(&format!("/team{n}/[0-9]+"), "", ""))
            .collect();
        rules.push(rule("/items/[0-9]+", "", ""));
        let said: Vec<Text> = rules
            .iter()
            .filter_map(|rule| Text::compile(rule.path.as_deref()?).ok())
            .collect();
        let paths = Paths::new(
            (0..)
                .zip(&said)
                .flat_map(|(n, text)| text.says().into_iter().map(move |s| (n, s))),
        );
        let mut asked = Vec::new();
        let first = paths.first("/items/4711", |n, _| {
            asked.push(n);
            true
        });
        assert_eq!((first, asked), (Some(100), vec![100]));
    }

    #[test]
    fn expressions_with_one_beginning_are_asked_together() {
        let mut rules: Vec<HttpRule> = (0..50).map(|n| rule(&format!(".*/team{n}/x"), "", "")).collect();
        rules.push(rule(".*/last", "GET", ""));
        let (requests, _) = Requests::compile(&[entry(rules[..50].to_vec()), entry(rules)]);
        let headers = http::HeaderMap::new();
        let ask = |path| {
            let request = RequestFacts {
                method: "GET",
                path,
                host: "h",
                headers: &headers,
            };
            let mut known = Vec::new();
            requests.paths.first(path, |n, path_fits| {
                known.push(path_fits);
                requests.rules[n as usize].names(&request)
            });
            (requests.first(&[0, 1], &request), known)
        };
        assert_eq!(ask("/a/team7/x"), (Some(0), vec![true]));
        assert_eq!(ask("/a/last"), (Some(1), vec![true]));
        assert_eq!(ask("/a/none"), (None, vec![]));
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
