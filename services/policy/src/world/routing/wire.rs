//! Rules as nodes get them.

use super::backends::Resolver;
use std::time::Duration;
use weft_proto::weft::policy::v1 as pb;
use weft_resources::{
    Route,
    gateway::{
        BackendRef, HeaderEdit, PathChange, PathMatch, RouteFilters, RouteMatch, RouteRule, ValueMatch,
    },
};

pub(super) fn rules(route: &Route, resolver: &mut Resolver<'_>) -> Vec<pb::RouteRule> {
    route.rules.iter().map(|r| rule(r, resolver)).collect()
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn rule(rule: &RouteRule, resolver: &mut Resolver<'_>) -> pb::RouteRule {
    pb::RouteRule {
        name: rule.name.clone(),
        matches: rule.matches.iter().map(one_match).collect(),
        filters: filters(&rule.filters, resolver),
        backends: rule.backends.iter().map(|b| backend(b, resolver)).collect(),
        request_timeout_ms: milliseconds(rule.request_timeout),
        backend_request_timeout_ms: milliseconds(rule.backend_timeout),
        retry: rule.retry.as_ref().map(|retry| pb::RouteRetry {
            codes: retry.codes.iter().map(|c| u32::from(*c)).collect(),
            attempts: retry.attempts,
            backoff_ms: milliseconds(retry.backoff),
        }),
    }
}

fn backend(backend: &BackendRef, resolver: &mut Resolver<'_>) -> pb::RouteBackend {
    pb::RouteBackend {
        target: resolver.resolve(&backend.target),
        weight: backend.weight,
        filters: filters(&backend.filters, resolver),
    }
}

fn one_match(one: &RouteMatch) -> pb::RouteMatch {
    use pb::route_match::Path;
    let path = match &one.path {
        PathMatch::Exact(text) => Path::Exact(text.clone()),
        PathMatch::Prefix(text) => Path::Prefix(text.clone()),
        PathMatch::Pattern(text) => Path::Pattern(text.clone()),
        PathMatch::GrpcMethod(text) => Path::GrpcMethod(text.clone()),
    };
    pb::RouteMatch {
        path: Some(path),
        method: one.method.clone().unwrap_or_default(),
        headers: one.headers.iter().map(value).collect(),
        query: one.query.iter().map(value).collect(),
    }
}

fn value((name, value): &(String, ValueMatch)) -> pb::NameMatch {
    use pb::name_match::Value;
    pb::NameMatch {
        name: name.clone(),
        value: Some(match value {
            ValueMatch::Exact(text) => Value::Exact(text.clone()),
            ValueMatch::Pattern(text) => Value::Pattern(text.clone()),
        }),
    }
}

fn filters(filters: &RouteFilters, resolver: &mut Resolver<'_>) -> Option<pb::RouteFilters> {
    if *filters == RouteFilters::default() {
        return None;
    }
    let mirrors = filters.mirrors.iter().filter_map(|mirror| {
        // A copy that has nowhere to go is not made; the condition says so.
        Some(pb::RouteMirror {
            backend: Some(resolver.resolve(&mirror.target)?),
            share: mirror.share,
            out_of: mirror.out_of,
        })
    });
    Some(pb::RouteFilters {
        mirrors: mirrors.collect(),
        request_headers: edit(&filters.request_headers),
        response_headers: edit(&filters.response_headers),
        redirect: filters.redirect.as_ref().map(|redirect| pb::RouteRedirect {
            scheme: redirect.scheme.clone().unwrap_or_default(),
            hostname: redirect.hostname.clone().unwrap_or_default(),
            path: redirect.path.as_ref().map(change),
            port: redirect.port.unwrap_or_default().into(),
            status: redirect.status.into(),
        }),
        rewrite: filters.rewrite.as_ref().map(|rewrite| pb::RouteRewrite {
            hostname: rewrite.hostname.clone().unwrap_or_default(),
            path: rewrite.path.as_ref().map(change),
        }),
    })
}

fn edit(edit: &HeaderEdit) -> Option<pb::HeaderEdit> {
    let pairs = |pairs: &[(String, String)]| {
        let pairs = pairs.iter().cloned();
        pairs
            .map(|(name, value)| pb::HeaderValue { name, value })
            .collect()
    };
    (*edit != HeaderEdit::default()).then(|| pb::HeaderEdit {
        set: pairs(&edit.set),
        add: pairs(&edit.add),
        remove: edit.remove.clone(),
    })
}

fn change(change: &PathChange) -> pb::PathChange {
    use pb::path_change::Change;
    pb::PathChange {
        change: Some(match change {
            PathChange::Full(text) => Change::Full(text.clone()),
            PathChange::Prefix(text) => Change::Prefix(text.clone()),
        }),
    }
}
