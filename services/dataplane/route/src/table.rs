//! The routes of one listener or Service, indexed by host and path.
//!
//! Precedence, as the Gateway API has it: the most specific hostname; then an exact path, a
//! pattern, the longest prefix; then a method; then the most headers, then the most query
//! parameters; then the older route, then its name in alphabetical order; then the order of rules
//! and matches in the route. `tests/precedence.rs` holds the index against that sentence.

use crate::{
    Hostname,
    hostname::host_of,
    spec::{Match, PathMatch, Route, Rule},
};
use http::{HeaderMap, Method};
use std::{cmp::Reverse, collections::HashMap, sync::Arc};

/// Most matches in one table: a bound on memory, several times what the largest published
/// benchmark of gateways uses (20,000 routes).
const MAX_MATCHES: usize = 100_000;

/// A table that is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the routes have {found} matches in all; {MAX_MATCHES} are allowed: use fewer routes at one listener"
)]
pub struct TooLarge {
    /// How many there are.
    pub found: usize,
}

/// What a table is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The authority as the client wrote it; port, case and a last dot make no difference.
    pub host: &'a str,
    /// The method.
    pub method: &'a Method,
    /// The path, as it will be forwarded.
    pub path: &'a str,
    /// The query, without the question mark.
    pub query: Option<&'a str>,
    /// Headers.
    pub headers: &'a HeaderMap,
}

/// The rule that a request meets.
#[derive(Debug, Clone, Copy)]
pub struct Matched<'a> {
    /// The route.
    pub route: &'a Arc<Route>,
    /// Its rule.
    pub rule: &'a Arc<Rule>,
    /// The prefix that matched, as written: what a rewrite of the prefix replaces. `/` where the
    /// match names none.
    pub prefix: &'a str,
}

/// Routes that compete for the same requests. Made anew for each change; a lookup takes no lock.
#[derive(Debug, Default)]
pub struct RouteTable {
    exact: HashMap<Box<str>, Paths>,
    /// By suffix with its dot.
    below: HashMap<Box<str>, Paths>,
    any: Paths,
    /// Every candidate once, whatever number of hosts its route has.
    candidates: Vec<Candidate>,
}

/// Candidates of one host, by number, in the order in which they are tried.
#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<Box<str>, Vec<u32>>,
    patterns: Vec<u32>,
    /// By prefix without its last slash.
    prefixes: HashMap<Box<str>, Vec<u32>>,
    /// The elements of the longest prefix: a path with more slashes costs no more lookups.
    deepest: usize,
    grpc_methods: HashMap<Box<str>, Vec<u32>>,
}

#[derive(Debug)]
struct Candidate {
    route: Arc<Route>,
    rule: Arc<Rule>,
    /// `None`: the rule has no matches, so everything meets it.
    number: Option<usize>,
}

impl RouteTable {
    /// Indexes routes.
    pub fn new(routes: &[Arc<Route>]) -> Result<Self, TooLarge> {
        let matches = |route: &Arc<Route>| {
            let rules: usize = route.rules.iter().map(|rule| rule.matches.len().max(1)).sum();
            rules * route.hostnames.len().max(1)
        };
        let found = routes.iter().map(matches).sum();
        if found > MAX_MATCHES {
            return Err(TooLarge { found });
        }
        let mut table = Self::default();
        let mut sorted: Vec<&Arc<Route>> = routes.iter().collect();
        // The order in which candidates are numbered is the order of the last criteria.
        sorted.sort_by_key(|route| (route.created, &route.namespace, &route.name));
        for route in sorted {
            for rule in &route.rules {
                let numbers = match rule.matches.len() {
                    0 => vec![None],
                    many => (0..many).map(Some).collect(),
                };
                for number in numbers {
                    table.add(Candidate {
                        route: route.clone(),
                        rule: rule.clone(),
                        number,
                    });
                }
            }
        }
        let Self {
            exact,
            below,
            any,
            candidates,
        } = &mut table;
        for paths in exact.values_mut().chain(below.values_mut()).chain([any]) {
            paths.sort(candidates);
        }
        Ok(table)
    }

    fn add(&mut self, candidate: Candidate) {
        // Bounded by MAX_MATCHES.
        let number = self.candidates.len() as u32;
        let path = candidate.path();
        if candidate.route.hostnames.is_empty() {
            self.any.add(path, number);
        }
        for hostname in &candidate.route.hostnames {
            let (hosts, name) = match hostname {
                Hostname::Exact(name) => (&mut self.exact, name),
                Hostname::Below(suffix) => (&mut self.below, suffix),
            };
            hosts.entry(name.clone()).or_default().add(path, number);
        }
        self.candidates.push(candidate);
    }

    /// Whether there is no rule at all.
    pub fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    /// The rule that a request meets. A host whose own routes do not want the request leaves it to
    /// less specific ones.
    pub fn find(&self, asked: &Asked<'_>) -> Option<Matched<'_>> {
        let host = host_of(asked.host);
        let named = self.exact.get(&*host);
        if let Some(found) = named.and_then(|paths| self.among(paths, asked)) {
            return Some(found);
        }
        if !self.below.is_empty() {
            // The longest suffix first. A name has at most 127 labels; others have no route here.
            let dots = host
                .bytes()
                .enumerate()
                .filter(|(_, byte)| *byte == b'.')
                .take(127);
            for (at, _) in dots.filter(|(at, _)| *at > 0) {
                let paths = self.below.get(&host[at..]);
                if let Some(found) = paths.and_then(|paths| self.among(paths, asked)) {
                    return Some(found);
                }
            }
        }
        self.among(&self.any, asked)
    }

    fn among<'a>(&'a self, paths: &'a Paths, asked: &Asked<'_>) -> Option<Matched<'a>> {
        let first = |numbers: &'a [u32]| {
            let mut candidates = numbers.iter().filter_map(|n| self.candidates.get(*n as usize));
            candidates.find(|candidate| candidate.meets(asked))
        };
        let list = |numbers: Option<&'a Vec<u32>>| numbers.and_then(|numbers| first(numbers));
        let found = list(paths.exact.get(asked.path))
            .or_else(|| first(&paths.patterns))
            .or_else(|| {
                prefixes(asked.path, paths.deepest).find_map(|prefix| list(paths.prefixes.get(prefix)))
            })
            .or_else(|| list(paths.grpc_methods.get(grpc_method(asked.path)?)))?;
        Some(Matched {
            route: &found.route,
            rule: &found.rule,
            prefix: match found.path() {
                Some(PathMatch::Prefix(prefix)) => prefix,
                _ => "/",
            },
        })
    }
}

impl Paths {
    fn add(&mut self, path: Option<&PathMatch>, number: u32) {
        let list = match path {
            Some(PathMatch::Exact(path)) => self.exact.entry(path.clone()).or_default(),
            Some(PathMatch::Pattern(_)) => &mut self.patterns,
            Some(PathMatch::GrpcMethod(method)) => self.grpc_methods.entry(method.clone()).or_default(),
            None => self.prefixes.entry("".into()).or_default(),
            Some(PathMatch::Prefix(prefix)) => {
                let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
                let elements = prefix.bytes().filter(|byte| *byte == b'/').count();
                self.deepest = self.deepest.max(elements);
                self.prefixes.entry(prefix.into()).or_default()
            }
        };
        list.push(number);
    }

    fn sort(&mut self, candidates: &[Candidate]) {
        let rank = |number: &u32| {
            candidates
                .get(*number as usize)
                .map(|candidate| (candidate.rank(), *number))
        };
        let lists = self.exact.values_mut().chain(self.prefixes.values_mut());
        for list in lists
            .chain(self.grpc_methods.values_mut())
            .chain([&mut self.patterns])
        {
            list.sort_by_key(rank);
        }
    }
}

impl Candidate {
    fn conditions(&self) -> Option<&Match> {
        self.rule.matches.get(self.number?)
    }

    fn path(&self) -> Option<&PathMatch> {
        Some(&self.conditions()?.path)
    }

    /// Lower is tried first, among candidates with the same path.
    fn rank(&self) -> (Reverse<usize>, bool, Reverse<usize>, Reverse<usize>) {
        match self.conditions() {
            None => (Reverse(0), true, Reverse(0), Reverse(0)),
            Some(of) => {
                let pattern = match &of.path {
                    PathMatch::Pattern(pattern) => pattern.text().len(),
                    _ => 0,
                };
                let counts = (of.headers.len(), of.query.len());
                (
                    Reverse(pattern),
                    of.method.is_none(),
                    Reverse(counts.0),
                    Reverse(counts.1),
                )
            }
        }
    }

    fn meets(&self, asked: &Asked<'_>) -> bool {
        self.conditions().is_none_or(|of| {
            let path = match &of.path {
                PathMatch::Pattern(pattern) => pattern.matches(asked.path),
                // The index found them by it.
                PathMatch::Exact(_) | PathMatch::Prefix(_) | PathMatch::GrpcMethod(_) => true,
            };
            path && of.beside_path(asked)
        })
    }
}

impl Match {
    /// Whether a request meets everything but the path.
    fn beside_path(&self, asked: &Asked<'_>) -> bool {
        if self.method.as_ref().is_some_and(|method| method != asked.method) {
            return false;
        }
        let headers = self.headers.iter().all(|(name, wanted)| {
            let mut values = asked.headers.get_all(name).iter();
            let (first, more) = (values.next(), values.next().is_some());
            match (first.map(|value| value.to_str()), more) {
                (Some(Ok(value)), false) => wanted.matches(value),
                // Several lines mean what one line with commas means (RFC 9110, 5.3).
                (Some(Ok(_)), true) => {
                    let values = asked.headers.get_all(name).iter().map(|value| value.to_str());
                    values
                        .collect::<Result<Vec<_>, _>>()
                        .is_ok_and(|values| wanted.matches(&values.join(",")))
                }
                // Absent, or bytes that are no text.
                _ => false,
            }
        });
        headers
            && self.query.iter().all(|(name, wanted)| {
                let query = asked.query.unwrap_or_default().as_bytes();
                // Of several, the first counts.
                let mut pairs = form_urlencoded::parse(query);
                pairs
                    .find(|(found, _)| **found == **name)
                    .is_some_and(|(_, value)| wanted.matches(&value))
            })
    }
}

/// The prefixes of a path that end where an element ends, the longest first, without last slash.
fn prefixes(path: &str, deepest: usize) -> impl Iterator<Item = &str> {
    let slashes = path.bytes().enumerate().filter(|(_, byte)| *byte == b'/');
    // An element ends before the next slash or with the path. The slash at the start ends nothing.
    let mut ends: Vec<usize> = slashes
        .map(|(at, _)| at)
        .chain([path.len()])
        .take(deepest + 1)
        .collect();
    if ends.first() != Some(&0) {
        ends.insert(0, 0);
    }
    ends.into_iter().rev().filter_map(|end| path.get(..end))
}

/// The method of a gRPC path.
fn grpc_method(path: &str) -> Option<&str> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.contains('/')).then_some(method)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_a_prefix_for_each_element() {
        let found = |path, deepest| prefixes(path, deepest).collect::<Vec<_>>();
        assert_eq!(found("/a/b", 5), ["/a/b", "/a", ""]);
        assert_eq!(found("/a/b/", 5), ["/a/b/", "/a/b", "/a", ""]);
        assert_eq!(found("/a/b/c", 1), ["/a", ""]);
        assert_eq!(found("/a/b/c", 0), [""]);
        assert_eq!(found("*", 3), ["*", ""]);
        assert_eq!(found("", 3), [""]);
        assert_eq!(found("/", 3), ["/", ""]);
    }

    #[test]
    fn a_grpc_path_has_two_elements() {
        assert_eq!(grpc_method("/a.B/C"), Some("C"));
        for path in ["/a", "/a/b/c", "//b", "a/b", ""] {
            assert_eq!(grpc_method(path), None, "{path}");
        }
    }
}
