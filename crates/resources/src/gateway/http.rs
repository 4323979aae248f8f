//! What HTTPRoute has of its own.

use super::{
    filters::Kinds,
    route::{self, Dialect, PathMatch, Retry, Route, RouteMatch, RouteRule},
    text::{Reader, bounded, duration, items, number},
};
use crate::fields::{Field, Object, Problems};
use std::time::Duration;

/// Tries after the first where a route says none: as much as a failed connection needs.
const ATTEMPTS: u32 = 1;
/// The pause before another try where a route says none; what Envoy has too.
const BACKOFF: Duration = Duration::from_millis(25);

const METHODS: [(&str, &str); 9] = [
    ("GET", "GET"),
    ("HEAD", "HEAD"),
    ("POST", "POST"),
    ("PUT", "PUT"),
    ("DELETE", "DELETE"),
    ("CONNECT", "CONNECT"),
    ("OPTIONS", "OPTIONS"),
    ("TRACE", "TRACE"),
    ("PATCH", "PATCH"),
];

pub(crate) fn read(object: &mut Object<'_>, problems: &mut Problems) -> Option<Route> {
    let dialect = Dialect {
        filters: Kinds::Http,
        read_match,
        rest,
        has_default_rule: true,
    };
    route::read(object, &dialect, problems)
}

fn read_match(field: &Field<'_>, reader: &mut Reader<'_>) -> Option<RouteMatch> {
    let mut object = field.object(reader.problems)?;
    let path = match object.take("path") {
        Some(f) => path(&f, reader),
        None => Some(PathMatch::Prefix("/".into())),
    };
    let headers = object.take("headers");
    let headers = route::values(headers, true, reader);
    let query = object.take("queryParams");
    let query = route::values(query, false, reader);
    let method = object.take("method").map(|f| reader.choice(&f, &METHODS));
    object.finish(reader.problems);
    Some(RouteMatch {
        path: path?,
        method: match method {
            Some(method) => Some(method?.to_owned()),
            None => None,
        },
        headers,
        query,
    })
}

#[derive(Clone, Copy, PartialEq)]
enum PathKind {
    Exact,
    Prefix,
    Pattern,
}

fn path(field: &Field<'_>, reader: &mut Reader<'_>) -> Option<PathMatch> {
    let mut object = field.object(reader.problems)?;
    let kinds = [
        ("Exact", PathKind::Exact),
        ("PathPrefix", PathKind::Prefix),
        ("RegularExpression", PathKind::Pattern),
    ];
    let kind = match object.take("type") {
        Some(f) => reader.choice(&f, &kinds),
        None => Some(PathKind::Prefix),
    };
    let value = object.take("value");
    let text = match &value {
        Some(f) => bounded(f, 1..=1024, reader.problems),
        None => Some("/".to_owned()),
    };
    object.finish(reader.problems);
    let (kind, text) = (kind?, text?);
    if kind == PathKind::Pattern {
        reader.pattern(value.as_ref().unwrap_or(field), &text);
        return Some(PathMatch::Pattern(text));
    }
    if let Some(wrong) = wrong_path(&text) {
        value
            .as_ref()
            .unwrap_or(field)
            .fail(reader.problems, format_args!("{text:?} {wrong}"));
        return None;
    }
    Some(match kind {
        PathKind::Exact => PathMatch::Exact(text),
        _ => PathMatch::Prefix(text),
    })
}

/// What the schema forbids in paths that are compared as they stand.
pub(super) fn wrong_path(path: &str) -> Option<&'static str> {
    if !path.starts_with('/') {
        return Some("must begin with /");
    }
    if ["//", "/./", "/../", "%2f", "%2F", "#"]
        .iter()
        .any(|p| path.contains(p))
    {
        return Some(
            "must not contain //, /./, /../, %2f or #: no request's path does once it is made plain",
        );
    }
    if path.ends_with("/..") || path.ends_with("/.") {
        return Some("must not end with /.. or /.");
    }
    let bytes = path.as_bytes();
    let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    let legal = |(at, byte): (usize, &u8)| match byte {
        b'%' => hex(at + 1) && hex(at + 2),
        b => b.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(b),
    };
    (!bytes.iter().enumerate().all(legal)).then_some("has characters that must be written as %XX")
}

fn rest(object: &mut Object<'_>, rule: &mut RouteRule, reader: &mut Reader<'_>) {
    if let Some(field) = object.take("timeouts")
        && let Some(mut timeouts) = field.object(reader.problems)
    {
        let mut time = |name: &str, problems: &mut Problems| {
            timeouts
                .take(name)
                .and_then(|f| duration(&f, problems))
                .unwrap_or_default()
        };
        rule.request_timeout = time("request", reader.problems);
        rule.backend_timeout = time("backendRequest", reader.problems);
        timeouts.finish(reader.problems);
        if !rule.request_timeout.is_zero() && rule.backend_timeout > rule.request_timeout {
            field.fail(reader.problems, "backendRequest must not be longer than request");
        }
    }
    if let Some(field) = object.take("retry") {
        rule.retry = retry(&field, reader);
    }
}

fn retry(field: &Field<'_>, reader: &mut Reader<'_>) -> Option<Retry> {
    let mut object = field.object(reader.problems)?;
    let list = object.take("codes");
    let mut codes = Vec::new();
    for f in items(list, 200, reader.problems) {
        let code = number(&f, 400..=599, reader.problems).and_then(|n| u16::try_from(n).ok());
        codes.extend(code.filter(|c| !codes.contains(c)));
    }
    let attempts = match object.take("attempts") {
        Some(f) => {
            let attempts = number(&f, 1..=u32::MAX >> 1, reader.problems);
            if attempts.is_some_and(|n| n > 100) {
                reader.unsupported(&f, "more than 100 tries are not supported");
            }
            attempts
        }
        None => Some(ATTEMPTS),
    };
    let backoff = match object.take("backoff") {
        Some(f) => duration(&f, reader.problems),
        None => Some(BACKOFF),
    };
    object.finish(reader.problems);
    Some(Retry {
        codes,
        attempts: attempts?,
        backoff: backoff?,
    })
}
