//! What GRPCRoute has of its own.

use super::{
    filters::Kinds,
    route::{self, Dialect, PathMatch, Route, RouteMatch},
    text::{Reader, bounded},
};
use crate::fields::{Field, Object, Problems};

pub(crate) fn read(object: &mut Object<'_>, problems: &mut Problems) -> Option<Route> {
    let dialect = Dialect {
        filters: Kinds::Grpc,
        read_match,
        rest: |_, _, _| {},
        has_default_rule: false,
    };
    route::read(object, &dialect, problems)
}

fn read_match(field: &Field<'_>, reader: &mut Reader<'_>) -> Option<RouteMatch> {
    let mut object = field.object(reader.problems)?;
    let path = match object.take("method") {
        Some(f) => method(&f, reader),
        None => Some(PathMatch::Prefix("/".into())),
    };
    let headers = object.take("headers");
    let headers = route::values(headers, true, reader);
    object.finish(reader.problems);
    Some(RouteMatch {
        path: path?,
        method: None,
        headers,
        query: Vec::new(),
    })
}

/// `pkg.Service`, in dots and identifiers.
fn is_service(text: &str) -> bool {
    let text = text.strip_prefix('.').unwrap_or(text);
    text.split('.').all(is_method)
}

fn is_method(text: &str) -> bool {
    let first = text.bytes().next();
    first.is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn method(field: &Field<'_>, reader: &mut Reader<'_>) -> Option<PathMatch> {
    let mut object = field.object(reader.problems)?;
    let pattern = match object.take("type") {
        Some(f) => reader.choice(&f, &[("Exact", false), ("RegularExpression", true)]),
        None => Some(false),
    };
    let mut part = |name: &str, check: fn(&str) -> bool| {
        let field = object.take(name)?;
        let text = bounded(&field, 1..=1024, reader.problems)?;
        if pattern == Some(true) {
            reader.pattern(&field, &text);
        } else if !check(&text) {
            field.fail(
                reader.problems,
                format_args!("{text:?} is no {name} such as those of a .proto file"),
            );
            return None;
        }
        Some(text)
    };
    let before = (part("service", is_service), part("method", is_method));
    object.finish(reader.problems);
    let pattern = pattern?;
    let any = || "[^/]+".to_owned();
    let group = |text: String| format!("(?:{text})");
    Some(match (before, pattern) {
        ((None, None), _) => {
            field.fail(reader.problems, "must name a service, a method, or both");
            return None;
        }
        ((service, method), true) => PathMatch::Pattern(format!(
            "/{}/{}",
            service.map_or_else(any, group),
            method.map_or_else(any, group)
        )),
        ((Some(service), Some(method)), false) => PathMatch::Exact(format!("/{service}/{method}")),
        ((Some(service), None), false) => PathMatch::Prefix(format!("/{service}")),
        ((None, Some(method)), false) => PathMatch::GrpcMethod(method),
    })
}
