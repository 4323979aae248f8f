//! Routes as the policy service sends them, read into what `weft-route` matches with. What does not
//! fit is refused with the field that is wrong: a rule that is half understood would send requests
//! where nobody meant them to go.

use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use std::{sync::Arc, time::Duration};
use weft_proto::weft::policy::v1::{
    self as pb, attachment::Parent as Attached, name_match::Value, path_change::Change, route_match::Path,
};
use weft_route::{
    Hostname, Pattern, TextMatch,
    spec::{
        Backend, BackendRef, Filters, HeaderEdit, Match, Mirror, PathChange, PathMatch, Redirect, Retry,
        Rewrite, Route, Rule, Timeouts,
    },
};

/// Bounds, each at least what the Gateway API allows in one object.
const MAX_ATTACHMENTS: usize = 256;
const MAX_HOSTNAMES: usize = 64;
const MAX_RULES: usize = 64;
const MAX_MATCHES: usize = 256;
const MAX_CONDITIONS: usize = 64;
const MAX_BACKENDS: usize = 64;
const MAX_EDITS: usize = 64;
const MAX_MIRRORS: usize = 16;
const MAX_WEIGHT: u32 = 1_000_000;
const MAX_ATTEMPTS: u32 = 16;
const MAX_PATH: usize = 1024;
/// A pause or a bound in time that is longer means a mistake in units.
const MAX_TIME: Duration = Duration::from_secs(100 * 24 * 3600);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// A route that is not used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("route {route}: {field}: {problem}")]
pub struct RouteError {
    route: String,
    field: String,
    problem: String,
}

/// Where a route is attached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Parent {
    Service {
        namespace: Box<str>,
        name: Box<str>,
    },
    Listener {
        namespace: Box<str>,
        gateway: Box<str>,
        listener: Box<str>,
    },
}

/// A route at one of its parents.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    pub parent: Parent,
    /// Of a Service: `None` for all of its ports.
    pub port: Option<u16>,
    pub route: Arc<Route>,
}

struct Problem {
    field: String,
    problem: String,
}

impl Problem {
    fn new(field: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        Self {
            field: field.into(),
            problem: problem.to_string(),
        }
    }

    fn under(self, outer: &str) -> Self {
        let field = match self.field.is_empty() {
            true => outer.to_owned(),
            false => format!("{outer}.{}", self.field),
        };
        Self { field, ..self }
    }
}

type Read<T> = Result<T, Problem>;

/// Reads a route, once for each parent it has.
pub(crate) fn read(wire: &pb::Route) -> Result<Vec<Attachment>, RouteError> {
    attachments(wire).map_err(|Problem { field, problem }| RouteError {
        route: format!("{}/{}/{}", wire.kind, wire.namespace, wire.name),
        field,
        problem,
    })
}

fn attachments(wire: &pb::Route) -> Read<Vec<Attachment>> {
    let kind = match wire.kind.as_str() {
        "HTTPRoute" => "HTTPRoute",
        "GRPCRoute" => "GRPCRoute",
        "Ingress" => "Ingress",
        other => return Err(Problem::new("kind", format!("{other:?} is not known here"))),
    };
    for (field, text) in [("namespace", &wire.namespace), ("name", &wire.name)] {
        weft_model::check_name(text).map_err(|e| Problem::new(field, e))?;
    }
    let rules = list("rules", &wire.rules, MAX_RULES, |r| rule(r).map(Arc::new))?;
    let label: Arc<str> = format!("{kind}/{}/{}", wire.namespace, wire.name).into();
    let (namespace, name): (Arc<str>, Arc<str>) = (wire.namespace.as_str().into(), wire.name.as_str().into());
    list("attachments", &wire.attachments, MAX_ATTACHMENTS, |attachment| {
        let (parent, port) = parent(attachment)?;
        let hostnames = list("hostnames", &attachment.hostnames, MAX_HOSTNAMES, |text| {
            text.parse::<Hostname>().map_err(|e| Problem::new("", e))
        })?;
        let route = Route {
            kind,
            label: label.clone(),
            namespace: namespace.clone(),
            name: name.clone(),
            created: wire.created,
            hostnames,
            rules: rules.clone(),
        };
        Ok(Attachment {
            parent,
            port,
            route: Arc::new(route),
        })
    })
}

fn list<T, U>(field: &str, all: &[T], most: usize, read: impl Fn(&T) -> Read<U>) -> Read<Vec<U>> {
    if all.len() > most {
        return Err(Problem::new(
            field,
            format!("{} of them; {most} are allowed", all.len()),
        ));
    }
    let read = |(at, one): (usize, &T)| read(one).map_err(|e| e.under(&format!("{field}[{at}]")));
    all.iter().enumerate().map(read).collect()
}

fn port(field: &str, port: u32) -> Read<u16> {
    u16::try_from(port).map_err(|_| Problem::new(field, format!("{port} is no port")))
}

fn parent(wire: &pb::Attachment) -> Read<(Parent, Option<u16>)> {
    let name = |field: &str, text: &str| {
        weft_model::check_name(text).map_err(|e| Problem::new(field, e))?;
        Ok(Box::from(text))
    };
    match &wire.parent {
        Some(Attached::Service(service)) => {
            let at = port("service.port", service.port)?;
            let parent = Parent::Service {
                namespace: name("service.namespace", &service.namespace)?,
                name: name("service.name", &service.name)?,
            };
            Ok((parent, (at != 0).then_some(at)))
        }
        Some(Attached::Listener(listener)) => {
            let parent = Parent::Listener {
                namespace: name("listener.gateway_namespace", &listener.gateway_namespace)?,
                gateway: name("listener.gateway", &listener.gateway)?,
                listener: name("listener.listener", &listener.listener)?,
            };
            Ok((parent, None))
        }
        None => Err(Problem::new(
            "parent",
            "is missing, or of a kind that this agent does not know",
        )),
    }
}

fn rule(wire: &pb::RouteRule) -> Read<Rule> {
    let time = |field: &str, ms: u64| {
        let time = Duration::from_millis(ms);
        match time > MAX_TIME {
            true => Err(Problem::new(field, "is longer than 100 days")),
            false => Ok((ms != 0).then_some(time)),
        }
    };
    Ok(Rule {
        name: wire.name.as_str().into(),
        matches: list("matches", &wire.matches, MAX_MATCHES, conditions)?,
        filters: filters(wire.filters.as_ref()).map_err(|e| e.under("filters"))?,
        backends: list("backends", &wire.backends, MAX_BACKENDS, backend)?,
        timeouts: Timeouts {
            request: time("request_timeout_ms", wire.request_timeout_ms)?,
            backend_request: time("backend_request_timeout_ms", wire.backend_request_timeout_ms)?,
        },
        retry: wire
            .retry
            .as_ref()
            .map(retry)
            .transpose()
            .map_err(|e| e.under("retry"))?,
    })
}

fn retry(wire: &pb::RouteRetry) -> Read<Retry> {
    if wire.attempts > MAX_ATTEMPTS {
        return Err(Problem::new(
            "attempts",
            format!("{} is above {MAX_ATTEMPTS}", wire.attempts),
        ));
    }
    let backoff = Duration::from_millis(wire.backoff_ms);
    if backoff > MAX_PAUSE {
        return Err(Problem::new("backoff_ms", "is longer than a minute"));
    }
    Ok(Retry {
        codes: list("codes", &wire.codes, 200, |code| {
            let code = u16::try_from(*code).ok().filter(|code| (400..600).contains(code));
            let code = code.and_then(|code| StatusCode::from_u16(code).ok());
            code.ok_or_else(|| Problem::new("", "must be 400 to 599"))
        })?,
        attempts: wire.attempts,
        backoff,
    })
}

fn path(field: &str, text: &str) -> Read<Box<str>> {
    let sound = text.starts_with('/') && text.len() <= MAX_PATH && text.bytes().all(|b| b.is_ascii_graphic());
    match sound {
        true => Ok(text.into()),
        false => Err(Problem::new(
            field,
            format!("must begin with / and be at most {MAX_PATH} visible characters"),
        )),
    }
}

fn conditions(wire: &pb::RouteMatch) -> Read<Match> {
    let pattern = |field: &str, text: &str| Pattern::new(text).map_err(|e| Problem::new(field, e));
    let path = match &wire.path {
        None => PathMatch::everything(),
        Some(Path::Exact(text)) => PathMatch::Exact(path("exact", text)?),
        Some(Path::Prefix(text)) => PathMatch::Prefix(path("prefix", text)?),
        Some(Path::Pattern(text)) => PathMatch::Pattern(pattern("pattern", text)?),
        Some(Path::GrpcMethod(text)) => {
            path("grpc_method", &format!("/{text}"))?;
            PathMatch::GrpcMethod(text.as_str().into())
        }
    };
    let method = match wire.method.as_str() {
        "" => None,
        text => Some(Method::from_bytes(text.as_bytes()).map_err(|e| Problem::new("method", e))?),
    };
    let value = |wire: &pb::NameMatch| match &wire.value {
        None => Err(Problem::new("value", "is missing")),
        Some(Value::Exact(text)) => Ok(TextMatch::Exact(text.as_str().into())),
        Some(Value::Pattern(text)) => Ok(TextMatch::Pattern(pattern("pattern", text)?)),
    };
    Ok(Match {
        path,
        method,
        headers: list("headers", &wire.headers, MAX_CONDITIONS, |wire| {
            let name = HeaderName::try_from(&wire.name).map_err(|e| Problem::new("name", e))?;
            Ok((name, value(wire)?))
        })?,
        query: list("query", &wire.query, MAX_CONDITIONS, |wire| {
            Ok((wire.name.as_str().into(), value(wire)?))
        })?,
    })
}

fn backend_ref(wire: &pb::RouteBackendRef) -> Read<BackendRef> {
    for (field, text) in [("namespace", &wire.namespace), ("service", &wire.service)] {
        weft_model::check_name(text).map_err(|e| Problem::new(field, e))?;
    }
    let at = port("port", wire.port)?;
    if at == 0 {
        return Err(Problem::new("port", "is missing"));
    }
    Ok(BackendRef {
        namespace: wire.namespace.as_str().into(),
        name: wire.service.as_str().into(),
        port: at,
    })
}

fn backend(wire: &pb::RouteBackend) -> Read<Backend> {
    if wire.weight > MAX_WEIGHT {
        return Err(Problem::new(
            "weight",
            format!("{} is above {MAX_WEIGHT}", wire.weight),
        ));
    }
    let target = wire.target.as_ref().map(backend_ref).transpose();
    Ok(Backend {
        target: target.map_err(|e| e.under("target"))?,
        weight: wire.weight,
        filters: filters(wire.filters.as_ref()).map_err(|e| e.under("filters"))?,
    })
}

fn filters(wire: Option<&pb::RouteFilters>) -> Read<Filters> {
    let Some(wire) = wire else {
        return Ok(Filters::default());
    };
    let edit = |field: &str, wire: &Option<pb::HeaderEdit>| match wire {
        None => Ok(HeaderEdit::default()),
        Some(wire) => header_edit(wire).map_err(|e| e.under(field)),
    };
    let redirect = wire.redirect.as_ref().map(redirect).transpose();
    let rewrite = wire.rewrite.as_ref().map(rewrite).transpose();
    Ok(Filters {
        request_headers: edit("request_headers", &wire.request_headers)?,
        response_headers: edit("response_headers", &wire.response_headers)?,
        redirect: redirect.map_err(|e| e.under("redirect"))?,
        rewrite: rewrite.map_err(|e| e.under("rewrite"))?,
        mirrors: list("mirrors", &wire.mirrors, MAX_MIRRORS, mirror)?,
    })
}

/// Headers by which a message is framed or routed are not a route's to change: two readers would
/// understand it differently. The host has a filter of its own.
fn is_framing(name: &HeaderName) -> bool {
    let framing = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::HOST,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    framing.contains(name) || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

fn header_edit(wire: &pb::HeaderEdit) -> Read<HeaderEdit> {
    let name = |text: &str| {
        let name = HeaderName::try_from(text).map_err(|e| Problem::new("name", e))?;
        match is_framing(&name) {
            true => Err(Problem::new("name", format!("{name} is not a route's to change"))),
            false => Ok(name),
        }
    };
    let pair = |wire: &pb::HeaderValue| {
        let value = HeaderValue::try_from(&wire.value).map_err(|e| Problem::new("value", e))?;
        Ok((name(&wire.name)?, value))
    };
    Ok(HeaderEdit {
        set: list("set", &wire.set, MAX_EDITS, pair)?,
        add: list("add", &wire.add, MAX_EDITS, pair)?,
        remove: list("remove", &wire.remove, MAX_EDITS, |text| name(text))?,
    })
}

fn path_change(wire: &pb::PathChange) -> Read<Option<PathChange>> {
    let legal = |field: &str, text: &str| {
        let short = text.len() <= MAX_PATH
            && text
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#');
        match short {
            true => Ok(Box::from(text)),
            false => Err(Problem::new(
                field,
                format!("must be at most {MAX_PATH} characters of a path"),
            )),
        }
    };
    Ok(match &wire.change {
        None => None,
        Some(Change::Full(text)) => {
            path("full", text)?;
            Some(PathChange::Full(legal("full", text)?))
        }
        Some(Change::Prefix(text)) => Some(PathChange::Prefix(legal("prefix", text)?)),
    })
}

fn optional_path(wire: Option<&pb::PathChange>) -> Read<Option<PathChange>> {
    let change = wire.map(path_change).transpose();
    Ok(change.map_err(|e| e.under("path"))?.flatten())
}

fn redirect(wire: &pb::RouteRedirect) -> Read<Redirect> {
    let scheme = match wire.scheme.as_str() {
        "" => None,
        scheme @ ("http" | "https") => Some(scheme.into()),
        other => {
            return Err(Problem::new(
                "scheme",
                format!("{other:?} is neither http nor https"),
            ));
        }
    };
    let hostname = match wire.hostname.as_str() {
        "" => None,
        text => match text.parse::<Hostname>() {
            Ok(Hostname::Exact(name)) => Some(name),
            Ok(Hostname::Below(_)) => return Err(Problem::new("hostname", "is no name of one host")),
            Err(e) => return Err(Problem::new("hostname", e)),
        },
    };
    let status = match wire.status {
        0 => StatusCode::FOUND,
        code @ (301 | 302 | 303 | 307 | 308) => {
            StatusCode::from_u16(code as u16).map_err(|e| Problem::new("status", e))?
        }
        other => return Err(Problem::new("status", format!("{other} is no redirect"))),
    };
    let at = port("port", wire.port)?;
    Ok(Redirect {
        scheme,
        hostname,
        path: optional_path(wire.path.as_ref())?,
        port: (at != 0).then_some(at),
        status,
    })
}

fn rewrite(wire: &pb::RouteRewrite) -> Read<Rewrite> {
    let hostname = match wire.hostname.as_str() {
        "" => None,
        text => match text.parse::<Hostname>() {
            Ok(Hostname::Exact(name)) => {
                Some(HeaderValue::try_from(&*name).map_err(|e| Problem::new("hostname", e))?)
            }
            Ok(Hostname::Below(_)) => return Err(Problem::new("hostname", "is no name of one host")),
            Err(e) => return Err(Problem::new("hostname", e)),
        },
    };
    Ok(Rewrite {
        hostname,
        path: optional_path(wire.path.as_ref())?,
    })
}

fn mirror(wire: &pb::RouteMirror) -> Read<Mirror> {
    let backend = wire
        .backend
        .as_ref()
        .ok_or_else(|| Problem::new("backend", "is missing"))?;
    if wire.out_of == 0 || wire.share > wire.out_of {
        return Err(Problem::new(
            "share",
            format!("{} of {} is no share", wire.share, wire.out_of),
        ));
    }
    Ok(Mirror {
        backend: backend_ref(backend).map_err(|e| e.under("backend"))?,
        share: wire.share,
        out_of: wire.out_of,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "convert_tests.rs"]
mod tests;
