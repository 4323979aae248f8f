//! Routes as their authors wrote them, read and checked: `HTTPRoute` and `GRPCRoute` alike.

use crate::{Hostname, TextMatch};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use std::{sync::Arc, time::Duration};

/// One route, attached where its table is used.
#[derive(Debug, Clone)]
pub struct Route {
    /// `HTTPRoute`, `GRPCRoute` or `Ingress`.
    pub kind: &'static str,
    /// What flows call it: kind, namespace and name.
    pub label: Arc<str>,
    /// Namespace of the object.
    pub namespace: Arc<str>,
    /// Name of the object.
    pub name: Arc<str>,
    /// When it was created, in seconds since the Unix epoch: of two routes that are equally
    /// specific, the older one wins.
    pub created: u64,
    /// Hosts it is for, already cut down to what its listener serves; empty for every host.
    pub hostnames: Vec<Hostname>,
    /// In the order of the object.
    pub rules: Vec<Arc<Rule>>,
}

/// One rule: any of its matches, then its filters, then one of its backends.
#[derive(Debug, Clone, Default)]
pub struct Rule {
    /// For flows and logs; empty when it has none.
    pub name: Arc<str>,
    /// A request must meet one of these; without any, every request does.
    pub matches: Vec<Match>,
    /// What happens to request and response.
    pub filters: Filters,
    /// Where requests go. None, and no redirect: they are answered with 500.
    pub backends: Vec<Backend>,
    /// How long a request may take.
    pub timeouts: Timeouts,
    /// When another try is made.
    pub retry: Option<Retry>,
}

/// What a request must be. All of it.
#[derive(Debug, Clone)]
pub struct Match {
    /// Of the request line, without the query.
    pub path: PathMatch,
    /// `None` for any.
    pub method: Option<Method>,
    /// Headers; names are unique.
    pub headers: Vec<(HeaderName, TextMatch)>,
    /// Query parameters; names are unique.
    pub query: Vec<(Box<str>, TextMatch)>,
}

impl Default for Match {
    /// Every request.
    fn default() -> Self {
        Self {
            path: PathMatch::everything(),
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
        }
    }
}

/// How a path is compared. Most specific first: of two matches of different kinds that both meet a
/// request, the one further up here wins.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// Just this path. A gRPC service with its method is `/service/method`.
    Exact(Box<str>),
    /// All of the path fits the pattern.
    Pattern(crate::Pattern),
    /// The path begins with these elements: `/a` meets `/a`, `/a/` and `/a/b`, not `/ab`. A gRPC
    /// service is the prefix `/service`.
    Prefix(Box<str>),
    /// A gRPC method of any service.
    GrpcMethod(Box<str>),
}

impl PathMatch {
    /// Meets every path.
    pub fn everything() -> Self {
        Self::Prefix("/".into())
    }
}

/// What a rule or a backend does to what passes.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    /// Applied to requests.
    pub request_headers: HeaderEdit,
    /// Applied to responses.
    pub response_headers: HeaderEdit,
    /// Answers instead of forwarding.
    pub redirect: Option<Redirect>,
    /// Changes what the backend sees.
    pub rewrite: Option<Rewrite>,
    /// Who else gets a copy of each request.
    pub mirrors: Vec<Mirror>,
}

/// Changes of headers: first removed, then set, then added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderEdit {
    /// Replaces whatever values there are.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Added to whatever values there are.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Taken away.
    pub remove: Vec<HeaderName>,
}

/// What becomes of the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathChange {
    /// This, whatever it was.
    Full(Box<str>),
    /// This in the place of the prefix that matched.
    Prefix(Box<str>),
}

/// A changed host or path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The `Host` that the backend sees.
    pub hostname: Option<HeaderValue>,
    /// The path that the backend sees.
    pub path: Option<PathChange>,
}

/// An answer that sends the client elsewhere. What is not given stays as the client had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<Box<str>>,
    /// Another host.
    pub hostname: Option<Box<str>>,
    /// Another path.
    pub path: Option<PathChange>,
    /// Another port.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// A copy of requests whose answers nobody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// To whom.
    pub backend: BackendRef,
    /// How many of `out_of` requests.
    pub share: u32,
    /// Never zero.
    pub out_of: u32,
}

/// Names a backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BackendRef {
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub name: Arc<str>,
    /// Port of the Service.
    pub port: u16,
}

/// A backend with its part of the requests.
#[derive(Debug, Clone)]
pub struct Backend {
    /// `None` when the reference is not valid: its part of the requests is answered with 500.
    pub target: Option<BackendRef>,
    /// Its part, relative to the sum of all.
    pub weight: u32,
    /// Applied after the rule's, to requests that go here.
    pub filters: Filters,
}

/// Bounds in time; `None` for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's arrival to the end of the response, tries included.
    pub request: Option<Duration>,
    /// For one try.
    pub backend_request: Option<Duration>,
}

/// When and how often another try is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Answers that are worth another try.
    pub codes: Vec<StatusCode>,
    /// How many tries there are after the first.
    pub attempts: u32,
    /// The pause before each.
    pub backoff: Duration,
}
