//! What becomes of a request before it is sent: the rule it meets, its filters, its backend.

use crate::{Backends, Speaks, To, answer::Failure, head::Head, record::Record, served::Served, way::Goal};
use http::{HeaderValue, Request, Response, Uri, Version, header, uri::PathAndQuery};
use rand::Rng;
use std::{net::SocketAddr, sync::Arc};
use weft_l7::Body;
use weft_route::{
    Arrival, Asked, Pick, RouteTable, host_of,
    spec::{BackendRef, Filters, Mirror, Redirect, Rewrite, Rule},
};

/// Who may answer.
pub(crate) enum Goals {
    Any(Arc<Backends>),
    One(Goal),
}

impl Goals {
    pub fn pick(&self, tried: &[SocketAddr]) -> Option<Goal> {
        match self {
            Self::Any(backends) => {
                let member = backends.pick(rand::rng().random(), tried)?;
                Some(Goal::Workload(member.clone()))
            }
            Self::One(goal) => (!tried.contains(&goal.address())).then(|| goal.clone()),
        }
    }

    /// Whether it is to be sent by HTTP/2.
    pub fn two(&self, came_by_two: bool) -> bool {
        match self {
            Self::Any(backends) => came_by_two || backends.speaks() == Speaks::Http2,
            Self::One(_) => came_by_two,
        }
    }
}

/// A request ready to be sent, but for its endpoint.
pub(crate) struct Outgoing {
    pub goals: Goals,
    /// The rule it met, and which of its backends was picked.
    pub rule: Option<(Arc<Rule>, usize)>,
    /// Who gets a copy.
    pub mirrors: Vec<BackendRef>,
}

pub(crate) enum Plan {
    Send(Outgoing),
    /// The route answers.
    Answer(Box<Response<Body>>),
}

impl Served {
    /// Finds the rule that a request meets and does what its filters say.
    pub(crate) fn plan(
        &self,
        request: &mut Request<Body>,
        head: &mut Head,
        record: &mut Record,
    ) -> Result<Plan, Failure> {
        let Some(table) = self.table(head)? else {
            return Ok(Plan::Send(Outgoing {
                goals: self.goals()?,
                rule: None,
                mirrors: Vec::new(),
            }));
        };
        let asked = Asked {
            host: head.host.to_str().unwrap_or_default(),
            method: request.method(),
            path: head.path.path(),
            query: head.path.query(),
            headers: request.headers(),
        };
        let matched = table.find(&asked).ok_or(Failure::NoRoute)?;
        record.route = Some(matched.route.label.clone());
        let rule = matched.rule;
        if let Some(redirect) = &rule.filters.redirect {
            return Ok(Plan::Answer(Box::new(self.redirect(
                redirect,
                head,
                matched.prefix,
                &rule.filters,
            ))));
        }
        let mut random = rand::rng();
        let picked = match rule.pick(random.random()) {
            Pick::Backend(backend) => backend,
            Pick::Invalid | Pick::Nobody => return Err(Failure::NoBackend),
        };
        if let Some(redirect) = &picked.filters.redirect {
            return Ok(Plan::Answer(Box::new(self.redirect(
                redirect,
                head,
                matched.prefix,
                &picked.filters,
            ))));
        }
        let target = picked.target.as_ref().ok_or(Failure::NoBackend)?;
        let backends = self.backends(target).ok_or(Failure::NoBackend)?;
        let mut mirrors = Vec::new();
        for filters in [&rule.filters, &picked.filters] {
            filters.request_headers.apply(request.headers_mut());
            if let Some(rewrite) = &filters.rewrite {
                apply(rewrite, head, matched.prefix)?;
            }
            let chosen = |mirror: &&Mirror| random.random_range(0..mirror.out_of) < mirror.share;
            mirrors.extend(filters.mirrors.iter().filter(chosen).map(|m| m.backend.clone()));
        }
        let number = rule.backends.iter().position(|b| std::ptr::eq(b, picked));
        Ok(Plan::Send(Outgoing {
            goals: Goals::Any(backends),
            rule: Some((rule.clone(), number.unwrap_or_default())),
            mirrors,
        }))
    }

    /// The routes that a request is held against; `None` where there are none.
    fn table(&self, head: &Head) -> Result<Option<Arc<RouteTable>>, Failure> {
        match &self.front.to {
            To::Service { service, routes } => Ok(routes.table(service.port)),
            To::Gateway(listeners) => {
                let host = host_of(head.host.to_str().unwrap_or_default());
                let found = listeners.for_host(&host);
                let table = found.and_then(|slot| slot.table(self.front.address.port()));
                table.map(Some).ok_or(Failure::NoRoute)
            }
            To::Workload(_) | To::Outside(..) => Ok(None),
        }
    }

    fn goals(&self) -> Result<Goals, Failure> {
        match &self.front.to {
            To::Service { service, .. } => {
                let backends = self.backends(service).ok_or(Failure::NoEndpoint)?;
                Ok(Goals::Any(backends))
            }
            To::Workload(member) => {
                let member = self.present(member).ok_or(Failure::NoEndpoint)?;
                Ok(Goals::One(Goal::Workload(member)))
            }
            To::Outside(party, address) => Ok(Goals::One(Goal::Outside(party.clone(), *address))),
            To::Gateway(_) => Err(Failure::NoRoute),
        }
    }

    fn redirect(&self, redirect: &Redirect, head: &Head, matched: &str, filters: &Filters) -> Response<Body> {
        let authority = head.host.to_str().unwrap_or_default();
        let location = redirect.location(&Arrival {
            scheme: "http",
            host: &host_of(authority),
            port: self.front.address.port(),
            path: head.path.path(),
            query: head.path.query(),
            matched,
        });
        let mut response = Response::new(Body::empty());
        // All parts of it were checked, or came in a request line.
        match HeaderValue::try_from(location) {
            Ok(location) => {
                *response.status_mut() = redirect.status;
                response.headers_mut().insert(header::LOCATION, location);
            }
            Err(_) => *response.status_mut() = Failure::NoBackend.status(),
        }
        filters.response_headers.apply(response.headers_mut());
        response
    }
}

fn apply(rewrite: &Rewrite, head: &mut Head, matched: &str) -> Result<(), Failure> {
    if let Some(hostname) = &rewrite.hostname {
        head.host = hostname.clone();
    }
    if let Some(change) = &rewrite.path {
        let mut path = change.apply(head.path.path(), matched);
        if let Some(query) = head.path.query() {
            path.push('?');
            path.push_str(query);
        }
        head.path = PathAndQuery::try_from(path).map_err(|_| Failure::NoBackend)?;
    }
    Ok(())
}

/// Writes the request line as the next hop's version of HTTP has it.
pub(crate) fn address(request: &mut Request<Body>, head: &Head, two: bool) -> Result<(), Failure> {
    if !two {
        *request.version_mut() = Version::HTTP_11;
        *request.uri_mut() = Uri::from(head.path.clone());
        request.headers_mut().insert(header::HOST, head.host.clone());
        return Ok(());
    }
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(header::HOST);
    let uri = Uri::builder()
        .scheme("http")
        .authority(head.host.as_bytes())
        .path_and_query(head.path.clone());
    *request.uri_mut() = uri.build().map_err(|_| Failure::Malformed("the host is none"))?;
    Ok(())
}
