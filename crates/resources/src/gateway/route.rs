//! What HTTPRoute and GRPCRoute have in common.

use super::{
    filters,
    refs::{self, BackendTarget, ParentRef},
    text::{Reader, hostname, items, number},
};
use crate::fields::{Field, Object, Problems};
use std::time::Duration;
use weft_model::check_name;

/// More matches of all rules together are refused, as the schema does.
const MAX_MATCHES: usize = 128;

/// Requests and where they go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    /// Where it wants to be attached.
    pub parents: Vec<ParentRef>,
    /// Hosts it is for; empty for every host.
    pub hostnames: Vec<String>,
    /// In order.
    pub rules: Vec<RouteRule>,
    /// Legal values that have no effect here, each `field.path: what is wrong`. A route with any is
    /// not accepted.
    pub unsupported: Vec<String>,
}

/// Any of its matches, then its filters, then one of its backends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteRule {
    /// Empty when it has none.
    pub name: String,
    /// None: every request.
    pub matches: Vec<RouteMatch>,
    /// What happens to requests and responses.
    pub filters: RouteFilters,
    /// Where requests go.
    pub backends: Vec<BackendRef>,
    /// From the request's arrival to the end of the response; zero for no bound.
    pub request_timeout: Duration,
    /// For one try; zero for no bound.
    pub backend_timeout: Duration,
    /// When another try is made.
    pub retry: Option<Retry>,
}

/// What a request must be. All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteMatch {
    /// Of the request line.
    pub path: PathMatch,
    /// Absent for any.
    pub method: Option<String>,
    /// Names are unique, whatever their case.
    pub headers: Vec<(String, ValueMatch)>,
    /// Names are unique.
    pub query: Vec<(String, ValueMatch)>,
}

/// How a path is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// Just this path.
    Exact(String),
    /// Element by element.
    Prefix(String),
    /// A regular expression for all of it.
    Pattern(String),
    /// A gRPC method of any service.
    GrpcMethod(String),
}

/// How a value is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueMatch {
    /// Just this.
    Exact(String),
    /// A regular expression for all of it.
    Pattern(String),
}

/// What a rule or a backend does to what passes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteFilters {
    /// `RequestHeaderModifier`.
    pub request_headers: HeaderEdit,
    /// `ResponseHeaderModifier`.
    pub response_headers: HeaderEdit,
    /// `RequestRedirect`.
    pub redirect: Option<Redirect>,
    /// `URLRewrite`.
    pub rewrite: Option<Rewrite>,
    /// `RequestMirror`, each.
    pub mirrors: Vec<Mirror>,
}

/// Changes of headers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderEdit {
    /// Replaced.
    pub set: Vec<(String, String)>,
    /// Added.
    pub add: Vec<(String, String)>,
    /// Taken away.
    pub remove: Vec<String>,
}

/// What becomes of the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathChange {
    /// `ReplaceFullPath`.
    Full(String),
    /// `ReplacePrefixMatch`.
    Prefix(String),
}

/// An answer that sends the client elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Another host.
    pub hostname: Option<String>,
    /// Another path.
    pub path: Option<PathChange>,
    /// Another port.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// What the backend sees instead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Another host.
    pub hostname: Option<String>,
    /// Another path.
    pub path: Option<PathChange>,
}

/// A copy of requests whose answers nobody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// To whom.
    pub target: BackendTarget,
    /// How many of `out_of` requests.
    pub share: u32,
    /// Never zero.
    pub out_of: u32,
}

/// A backend with its part of the requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendRef {
    /// Who.
    pub target: BackendTarget,
    /// Relative to the sum of all.
    pub weight: u32,
    /// For requests that go here.
    pub filters: RouteFilters,
}

/// When and how often another try is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Answers that are worth another try, beside failed connections.
    pub codes: Vec<u16>,
    /// Tries after the first.
    pub attempts: u32,
    /// The pause before each.
    pub backoff: Duration,
}

/// How one of the two kinds reads what differs.
pub(super) struct Dialect {
    /// Names of filters it has.
    pub filters: filters::Kinds,
    /// One match.
    pub read_match: fn(&Field<'_>, &mut Reader<'_>) -> Option<RouteMatch>,
    /// What else a rule has.
    pub rest: fn(&mut Object<'_>, &mut RouteRule, &mut Reader<'_>),
    /// Whether a route without rules has one for every request.
    pub has_default_rule: bool,
}

pub(super) fn read(object: &mut Object<'_>, dialect: &Dialect, problems: &mut Problems) -> Option<Route> {
    let mut spec = object.need("spec", problems)?.object(problems)?;
    let parents = refs::parents(&mut spec, problems);
    let names = spec.take("hostnames");
    let names = items(names, 16, problems);
    let hostnames = names.iter().filter_map(|f| hostname(f, true, problems)).collect();
    let list = spec.take("rules");
    let fields = items(list.clone(), 16, problems);
    if let Some(list) = list
        .as_ref()
        .filter(|_| fields.is_empty() && dialect.has_default_rule)
    {
        list.fail(
            problems,
            "must have an element; leave rules out to mean every request",
        );
    }
    let mut reader = Reader::new(problems);
    let mut rules: Vec<RouteRule> = Vec::new();
    for field in &fields {
        let Some(rule) = rule(field, dialect, &mut reader) else {
            continue;
        };
        if !rule.name.is_empty() && rules.iter().any(|r| r.name == rule.name) {
            field.fail(
                reader.problems,
                format_args!("the name {:?} is another rule's", rule.name),
            );
        }
        rules.push(rule);
    }
    let unsupported = reader.unsupported;
    let matches: usize = rules.iter().map(|r| r.matches.len()).sum();
    if matches > MAX_MATCHES {
        problems.add(
            spec.line,
            "spec.rules",
            format_args!("have {matches} matches, at most {MAX_MATCHES} are allowed in a route"),
        );
    }
    if list.is_none() && dialect.has_default_rule {
        rules.push(RouteRule::default());
    }
    spec.unsupported(&["useDefaultGateways"], problems);
    spec.finish(problems);
    Some(Route {
        parents,
        hostnames,
        rules,
        unsupported,
    })
}

fn rule(field: &Field<'_>, dialect: &Dialect, reader: &mut Reader<'_>) -> Option<RouteRule> {
    let mut object = field.object(reader.problems)?;
    let name = object
        .take("name")
        .and_then(|f| f.checked(reader.problems, check_name));
    let list = object.take("matches");
    let matches = items(list, 64, reader.problems)
        .iter()
        .filter_map(|f| (dialect.read_match)(f, reader))
        .collect();
    let filters = filters::read(&mut object, dialect.filters, reader);
    let list = object.take("backendRefs");
    let backends: Vec<BackendRef> = items(list, 16, reader.problems)
        .iter()
        .filter_map(|f| backend(f, dialect, reader))
        .collect();
    let mut rule = RouteRule {
        name: name.unwrap_or_default(),
        matches,
        filters,
        backends,
        ..RouteRule::default()
    };
    (dialect.rest)(&mut object, &mut rule, reader);
    object.unsupported(&["sessionPersistence"], reader.problems);
    object.finish(reader.problems);
    filters::check(field, &rule, reader.problems);
    Some(rule)
}

fn backend(field: &Field<'_>, dialect: &Dialect, reader: &mut Reader<'_>) -> Option<BackendRef> {
    let mut object = field.object(reader.problems)?;
    let target = refs::backend(&mut object, field.path.clone(), reader.problems);
    let weight = match object.take("weight") {
        Some(f) => number(&f, 0..=1_000_000, reader.problems),
        None => Some(1),
    };
    let filters = filters::read(&mut object, dialect.filters, reader);
    object.finish(reader.problems);
    Some(BackendRef {
        target: target?,
        weight: weight?,
        filters,
    })
}

/// Headers or parameters with the values they must have. Exactly equal names are refused, as the
/// schema does; of names that differ in case only, which mean the same header, the first counts.
pub(super) fn values(
    list: Option<Field<'_>>,
    headers: bool,
    reader: &mut Reader<'_>,
) -> Vec<(String, ValueMatch)> {
    let mut found: Vec<(String, ValueMatch)> = Vec::new();
    let mut written: Vec<String> = Vec::new();
    for field in items(list, 16, reader.problems) {
        let Some(mut object) = field.object(reader.problems) else {
            continue;
        };
        let pattern = match object.take("type") {
            Some(f) => reader.choice(&f, &[("Exact", false), ("RegularExpression", true)]),
            None => Some(false),
        };
        let name = object
            .need("name", reader.problems)
            .and_then(|f| super::text::header_name(&f, reader.problems));
        let most = if headers { 4096 } else { 1024 };
        let value = object
            .need("value", reader.problems)
            .and_then(|f| Some((super::text::bounded(&f, 1..=most, reader.problems)?, f)));
        object.finish(reader.problems);
        let (Some(pattern), Some(name), Some((value, at))) = (pattern, name, value) else {
            continue;
        };
        if written.contains(&name) {
            field.fail(reader.problems, format_args!("{name:?} is matched twice"));
            continue;
        }
        written.push(name.clone());
        let name = if headers { name.to_ascii_lowercase() } else { name };
        if found.iter().any(|(n, _)| *n == name) {
            continue;
        }
        let value = if pattern {
            reader.pattern(&at, &value);
            ValueMatch::Pattern(value)
        } else {
            ValueMatch::Exact(value)
        };
        found.push((name, value));
    }
    found
}
