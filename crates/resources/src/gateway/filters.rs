//! Filters of rules and backends.

use super::{
    refs,
    route::{HeaderEdit, Mirror, PathChange, PathMatch, Redirect, Rewrite, RouteFilters, RouteRule},
    text::{Reader, bounded, header_name, header_value, hostname, items, number, port},
};
use crate::fields::{Field, Object, Problems};

/// Which filters a kind of routes has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kinds {
    Http,
    Grpc,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Filter {
    RequestHeaders,
    ResponseHeaders,
    Mirror,
    Redirect,
    Rewrite,
}

/// Each filter's `type` with the field that holds it.
const KNOWN: [(&str, &str, Filter); 5] = [
    (
        "RequestHeaderModifier",
        "requestHeaderModifier",
        Filter::RequestHeaders,
    ),
    (
        "ResponseHeaderModifier",
        "responseHeaderModifier",
        Filter::ResponseHeaders,
    ),
    ("RequestMirror", "requestMirror", Filter::Mirror),
    ("RequestRedirect", "requestRedirect", Filter::Redirect),
    ("URLRewrite", "urlRewrite", Filter::Rewrite),
];

/// Filters of the standard that have no effect here. What they hold is not looked into.
const OTHERS: [(&str, &str); 3] = [
    ("CORS", "cors"),
    ("ExternalAuth", "externalAuth"),
    ("ExtensionRef", "extensionRef"),
];

pub(super) fn read(object: &mut Object<'_>, kinds: Kinds, reader: &mut Reader<'_>) -> RouteFilters {
    let mut all = RouteFilters::default();
    let mut seen: Vec<Filter> = Vec::new();
    let list = object.take("filters");
    for field in items(list, 16, reader.problems) {
        let Some(filter) = one(&field, kinds, &mut all, reader) else {
            continue;
        };
        if filter != Filter::Mirror && seen.contains(&filter) {
            field.fail(reader.problems, "repeats a filter that can stand only once");
        }
        seen.push(filter);
        if seen.contains(&Filter::Redirect) && seen.contains(&Filter::Rewrite) {
            field.fail(
                reader.problems,
                "RequestRedirect and URLRewrite can not stand together",
            );
        }
    }
    all
}

fn one(field: &Field<'_>, kinds: Kinds, all: &mut RouteFilters, reader: &mut Reader<'_>) -> Option<Filter> {
    let mut object = field.object(reader.problems)?;
    let kind = object.need("type", reader.problems);
    let mut parts = Vec::new();
    for (name, part, filter) in KNOWN {
        if kinds == Kinds::Grpc && matches!(filter, Filter::Redirect | Filter::Rewrite) {
            continue;
        }
        parts.push((name, object.take(part), Some(filter)));
    }
    for (name, part) in OTHERS {
        if kinds == Kinds::Http || name == "ExtensionRef" {
            parts.push((name, object.take(part), None));
        }
    }
    object.finish(reader.problems);
    let kind = kind?;
    let text = kind.text(reader.problems)?;
    let mut meant = None;
    for (name, part, filter) in parts {
        if name == text {
            meant = Some((part, filter));
        } else if let Some(part) = part {
            part.fail(
                reader.problems,
                format_args!("can not stand in a filter of type {text}"),
            );
        }
    }
    let Some((part, filter)) = meant else {
        let text: String = text.chars().take(64).collect();
        reader.unsupported(&kind, &format!("filter {text:?} is not supported"));
        return None;
    };
    let Some(part) = part else {
        field.fail(reader.problems, format_args!("says nothing for its type {text}"));
        return None;
    };
    let Some(filter) = filter else {
        reader.unsupported(&kind, &format!("filter {text} is not supported"));
        return None;
    };
    match filter {
        Filter::RequestHeaders => all.request_headers = headers(&part, reader.problems)?,
        Filter::ResponseHeaders => all.response_headers = headers(&part, reader.problems)?,
        Filter::Mirror => all.mirrors.push(mirror(&part, reader.problems)?),
        Filter::Redirect => all.redirect = Some(redirect(&part, reader)?),
        Filter::Rewrite => all.rewrite = Some(rewrite(&part, reader)?),
    }
    Some(filter)
}

fn headers(field: &Field<'_>, problems: &mut Problems) -> Option<HeaderEdit> {
    let mut object = field.object(problems)?;
    let mut pairs = |name: &str, problems: &mut Problems| {
        let list = object.take(name);
        let mut found: Vec<(String, String)> = Vec::new();
        for f in items(list, 16, problems) {
            let Some(mut one) = f.object(problems) else {
                continue;
            };
            let name = one.need("name", problems).and_then(|f| header_name(&f, problems));
            let value = one
                .need("value", problems)
                .and_then(|f| header_value(&f, problems));
            one.finish(problems);
            let (Some(name), Some(value)) = (name, value) else {
                continue;
            };
            if found.iter().any(|(n, _)| n.eq_ignore_ascii_case(&name)) {
                f.fail(problems, format_args!("header {name:?} is named twice"));
            }
            found.push((name, value));
        }
        found
    };
    let (set, add) = (pairs("set", problems), pairs("add", problems));
    let list = object.take("remove");
    let remove = items(list, 16, problems)
        .iter()
        .filter_map(|f| header_name(f, problems))
        .collect();
    object.finish(problems);
    Some(HeaderEdit { set, add, remove })
}

fn mirror(field: &Field<'_>, problems: &mut Problems) -> Option<Mirror> {
    let mut object = field.object(problems)?;
    let target = object.need("backendRef", problems).and_then(|f| {
        let mut reference = f.object(problems)?;
        let target = refs::backend(&mut reference, f.path.clone(), problems);
        reference.finish(problems);
        target
    });
    let percent = object.take("percent").map(|f| number(&f, 0..=100, problems));
    let fraction = object.take("fraction");
    object.finish(problems);
    let (share, out_of) = match (percent, fraction) {
        (Some(_), Some(_)) => {
            field.fail(problems, "percent and fraction can not stand together");
            return None;
        }
        (Some(percent), None) => (percent?, 100),
        (None, None) => (100, 100),
        (None, Some(f)) => {
            let mut fraction = f.object(problems)?;
            let most = u32::MAX >> 1;
            let share = fraction
                .need("numerator", problems)
                .and_then(|f| number(&f, 0..=most, problems));
            let out_of = match fraction.take("denominator") {
                Some(f) => number(&f, 1..=most, problems),
                None => Some(100),
            };
            fraction.finish(problems);
            let (share, out_of) = (share?, out_of?);
            if share > out_of {
                f.fail(problems, "numerator must not be above denominator");
                return None;
            }
            (share, out_of)
        }
    };
    Some(Mirror {
        target: target?,
        share,
        out_of,
    })
}

fn path_change(field: &Field<'_>, reader: &mut Reader<'_>) -> Option<PathChange> {
    let mut object = field.object(reader.problems)?;
    let kind = object.need("type", reader.problems);
    let mut part =
        |name: &str, problems: &mut Problems| object.take(name).map(|f| (bounded(&f, 0..=1024, problems), f));
    let full = part("replaceFullPath", reader.problems);
    let prefix = part("replacePrefixMatch", reader.problems);
    object.finish(reader.problems);
    let is_full = reader.choice(
        &kind?,
        &[("ReplaceFullPath", true), ("ReplacePrefixMatch", false)],
    )?;
    let (meant, other, name) = if is_full {
        (full, prefix, "replaceFullPath")
    } else {
        (prefix, full, "replacePrefixMatch")
    };
    if let Some((_, f)) = other {
        f.fail(
            reader.problems,
            format_args!("can not stand beside the type that wants {name}"),
        );
    }
    let Some((text, at)) = meant else {
        field.fail(reader.problems, format_args!("{name} is required for this type"));
        return None;
    };
    let text = text?;
    if !text
        .bytes()
        .all(|b| b.is_ascii_graphic() && b != b'#' && b != b'?')
    {
        reader.unsupported(
            &at,
            "only a path is supported: no ?, no #, other characters as %XX",
        );
    }
    Some(if is_full {
        PathChange::Full(text)
    } else {
        PathChange::Prefix(text)
    })
}

fn redirect(field: &Field<'_>, reader: &mut Reader<'_>) -> Option<Redirect> {
    let mut object = field.object(reader.problems)?;
    let scheme = object
        .take("scheme")
        .and_then(|f| reader.choice(&f, &[("http", "http"), ("https", "https")]));
    let host = object
        .take("hostname")
        .and_then(|f| hostname(&f, false, reader.problems));
    let path = object.take("path").and_then(|f| path_change(&f, reader));
    let port = object.take("port").and_then(|f| port(&f, reader.problems));
    let status = match object.take("statusCode") {
        Some(f) => {
            let code = number(&f, 100..=599, reader.problems)?;
            if !matches!(code, 301 | 302 | 303 | 307 | 308) {
                reader.unsupported(&f, "one of 301, 302, 303, 307, 308 is supported");
            }
            u16::try_from(code).ok()?
        }
        None => 302,
    };
    object.finish(reader.problems);
    Some(Redirect {
        scheme: scheme.map(str::to_owned),
        hostname: host,
        path,
        port,
        status,
    })
}

fn rewrite(field: &Field<'_>, reader: &mut Reader<'_>) -> Option<Rewrite> {
    let mut object = field.object(reader.problems)?;
    let host = object
        .take("hostname")
        .and_then(|f| hostname(&f, false, reader.problems));
    let path = object.take("path").and_then(|f| path_change(&f, reader));
    object.finish(reader.problems);
    Some(Rewrite { hostname: host, path })
}

/// What must hold between filters and the rest of a rule.
pub(super) fn check(field: &Field<'_>, rule: &RouteRule, problems: &mut Problems) {
    if rule.filters.redirect.is_some() && !rule.backends.is_empty() {
        field.fail(problems, "RequestRedirect can not stand beside backendRefs");
    }
    let by_prefix = |filters: &RouteFilters| {
        let redirect = filters.redirect.as_ref().and_then(|r| r.path.as_ref());
        let rewrite = filters.rewrite.as_ref().and_then(|r| r.path.as_ref());
        [redirect, rewrite]
            .into_iter()
            .flatten()
            .any(|change| matches!(change, PathChange::Prefix(_)))
    };
    let one_prefix = match rule.matches.as_slice() {
        // Absent ones stand for one of the prefix "/".
        [] => true,
        [one] => matches!(one.path, PathMatch::Prefix(_)),
        _ => false,
    };
    let all = std::iter::once(&rule.filters).chain(rule.backends.iter().map(|b| &b.filters));
    if !one_prefix && all.into_iter().any(by_prefix) {
        field.fail(
            problems,
            "replacePrefixMatch needs exactly one match, of type PathPrefix",
        );
    }
}
