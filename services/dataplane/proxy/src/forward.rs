//! One request from its arrival to the head of its answer: planned, judged, sent, tried again where
//! that is allowed, and written down.

use crate::{
    Caller, To,
    answer::{Failure, is_grpc},
    gateway,
    head::{self, Head},
    outgoing::{Outgoing, Plan, address},
    record::{Asked, Record},
    served::Served,
    way::{Goal, Sides, Source, Way},
};
use futures::future::{BoxFuture, Either, select};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};
use weft_flows::{DropReason, bounded_path};
use weft_l7::{Body, SendFailure, Upgrade, hygiene};
use weft_route::spec::Retry;
use weft_runtime::RequestLine;
use weft_tunnel::OpenError;

impl Served {
    /// Answers one request.
    pub(crate) async fn handle(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        let grpc = is_grpc(request.headers());
        let answered = self.respond(request).await;
        answered.unwrap_or_else(|failure| failure.answer(grpc))
    }

    /// The same, with the reason where there is no answer.
    pub(crate) async fn respond(
        self: Arc<Self>,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Failure> {
        let mut record = Record::new(&request, self.front.source_port, self.service.clone());
        let Some(source) = self.source() else {
            // Its connection ends with it; this request was on its way.
            return Err(Failure::Denied(DropReason::UnknownCaller));
        };
        let upgrade = Upgrade::asked(&mut request);
        let planned = self.prepare(&mut request, &mut record);
        let (plan, mut head) = match planned {
            Ok(planned) => planned,
            Err(failure) => {
                record.path = bounded_path(request.uri().path());
                record.answered_here(&self.proxy, &source, self.asked(), Err(failure));
                return Err(failure);
            }
        };
        match plan {
            Plan::Answer(response) => {
                record.answered_here(&self.proxy, &source, self.asked(), Ok(response.status()));
                Ok(*response)
            }
            Plan::Send(outgoing) => {
                self.send(&source, outgoing, &mut head, request, &mut record, upgrade)
                    .await
            }
        }
    }

    fn prepare(&self, request: &mut Request<Body>, record: &mut Record) -> Result<(Plan, Head), Failure> {
        let mut head = head::read(request).map_err(Failure::Malformed)?;
        record.authority = self.authority(&head.host);
        let headers = request.headers_mut();
        record.forged = match &self.front.caller {
            Caller::Gateway { client, .. } => gateway::enter(headers, *client, &head.host),
            Caller::Workload(context) => gateway::claims(headers, Some(context.party())),
            // This or the other agent has seen to it.
            Caller::Runtime(_) | Caller::Tunnel { .. } => Vec::new(),
        };
        record.trace_id = weft_l7::trace::trace(headers);
        let plan = self.plan(request, &mut head, record)?;
        record.path = bounded_path(head.path.path());
        Ok((plan, head))
    }

    fn asked(&self) -> Asked<'_> {
        let address = self.front.address;
        let (namespace, name) = match &self.front.to {
            To::Service { service, .. } => (&*service.namespace, &*service.name),
            To::Workload(member) => {
                let party = member.endpoint.party();
                (&*party.namespace, &*party.workload)
            }
            To::Outside(..) | To::Gateway(_) => ("", ""),
        };
        Asked {
            namespace,
            name,
            address: Some(address.ip()),
            port: address.port(),
        }
    }

    /// Sends a request to one of its endpoints.
    pub(crate) async fn send(
        self: &Arc<Self>,
        source: &Arc<Source>,
        outgoing: Outgoing,
        head: &mut Head,
        mut request: Request<Body>,
        record: &mut Record,
        upgrade: Option<Upgrade>,
    ) -> Result<Response<Body>, Failure> {
        let Outgoing { goals, rule, mirrors } = outgoing;
        let two = goals.two(head.two) && upgrade.is_none();
        if let Err(failure) = address(&mut request, head, two) {
            record.answered_here(&self.proxy, source, self.asked(), Err(failure));
            return Err(failure);
        }
        let rule_of = rule.as_ref().map(|(rule, _)| rule);
        let timeouts = rule_of.map(|rule| rule.timeouts).unwrap_or_default();
        let arrived = Instant::from_std(record.started());
        let deadline = timeouts.request.map(|time| arrived + time);
        let mut tries = Tries {
            retry: rule_of.and_then(|rule| rule.retry.as_ref()),
            left: rule_of
                .and_then(|rule| rule.retry.as_ref())
                .map_or(0, |retry| retry.attempts),
            deadline,
        };
        if tries.left > 0 || !mirrors.is_empty() {
            // Rare, and large.
            request = Box::pin(self.keep(request)).await;
        }
        if !mirrors.is_empty() {
            self.mirror(source, &mirrors, head, &request, record);
        }
        if upgrade.is_some() {
            Upgrade::ask(request.headers_mut());
        }
        let mut tried = Vec::new();
        let mut last = None;
        loop {
            let Some(goal) = goals.pick(&tried) else {
                // What failed before is written down already.
                return Err(last.unwrap_or_else(|| {
                    record.answered_here(&self.proxy, source, self.asked(), Err(Failure::NoEndpoint));
                    Failure::NoEndpoint
                }));
            };
            let way = self.way(source, goal, two);
            let (mut sides, allowed) = way.ask(&self.proxy, &line(&request, head));
            let peer = match (allowed, &way.peer) {
                (Ok(()), Some(peer)) => peer,
                (Ok(()), None) => {
                    record.judged(&self.proxy, &way, sides, Err(Failure::Unreachable));
                    return Err(Failure::Unreachable);
                }
                (Err(failure), _) => {
                    record.judged(&self.proxy, &way, sides, Err(failure));
                    return Err(failure);
                }
            };
            let counted = match &way.goal {
                Goal::Workload(member) => Some(member.endpoint.begin()),
                Goal::Outside(..) => None,
            };
            let copy = (tries.left > 0).then(|| again(&request)).flatten().map(Box::new);
            let is_long = !request.body().is_short(LONG);
            let needed = upgrade.is_some() || way.is_by_request();
            // From a short request by HTTP/1.1 they come back with the answer.
            let mut asked = Remembered::of(&request, needed && (is_long || !peer.gives_back()));
            let until = timeouts.backend_request.map(|time| Instant::now() + time);
            let until = until.into_iter().chain(deadline).min();
            let sending = within(until, peer.send(request, counted));
            let sent = if is_long {
                // Perhaps for hours: policy may change its mind meanwhile.
                let forbidden = Box::pin(self.clone().forbidden(way.clone(), asked.with(head)));
                match select(pin!(sending), forbidden).await {
                    Either::Left((sent, _)) => sent,
                    Either::Right(((sides, failure), _)) => {
                        record.judged(&self.proxy, &way, sides, Err(failure));
                        return Err(failure);
                    }
                }
            } else {
                sending.await
            };
            let (failure, unsent) = match sent {
                Some(Ok(mut response)) => {
                    if needed && asked.headers.is_none() {
                        asked.headers = response.body_mut().take_asked();
                    }
                    if let Some(copy) = copy
                        && tries.wants(response.status())
                    {
                        record.judged(&self.proxy, &way, sides, Ok(response.status()));
                        drop(response);
                        tries.pause().await;
                        request = *copy;
                        continue;
                    }
                    let known = (&way, (&asked, &*head), &*record);
                    let ended = self.finish(response, upgrade, rule.as_ref(), deadline, known);
                    let end = ended.as_ref().map(Response::status).map_err(|failure| *failure);
                    record.judged(&self.proxy, &way, sides, end);
                    return ended;
                }
                Some(Err(mut error)) => {
                    let (failure, rule) = failure_of(&error.failure);
                    sides.refused_there = rule;
                    (failure, error.request.take())
                }
                None => (Failure::Timeout, None),
            };
            record.judged(&self.proxy, &way, sides, Err(failure));
            last = Some(failure);
            if let Some(unsent) = unsent
                && tried.len() + 1 < self.proxy.limits.connect_tries
                && !matches!(failure, Failure::Denied(_))
            {
                tried.push(way.goal.address());
                request = unsent;
                continue;
            }
            let Some(copy) = copy.filter(|_| tries.wants(failure.status()) && !tries.is_over()) else {
                return Err(failure);
            };
            tries.pause().await;
            tried.clear();
            request = *copy;
        }
    }

    /// What of an answer is passed on.
    fn finish(
        self: &Arc<Self>,
        mut response: Response<Body>,
        upgrade: Option<Upgrade>,
        rule: Option<&(Arc<weft_route::spec::Rule>, usize)>,
        deadline: Option<Instant>,
        (way, (asked, head), record): (&Arc<Way>, (&Remembered, &Head), &Record),
    ) -> Result<Response<Body>, Failure> {
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let upgraded = match upgrade.map(|upgrade| upgrade.answered(&mut response)) {
            Some(Ok(upgraded)) => upgraded,
            None if !switched => None,
            // To something that was not asked for: nobody knows what comes then.
            None | Some(Err(_)) => return Err(Failure::Broken),
        };
        let headers = response.headers_mut();
        if hygiene::strip_hop_by_hop(headers).is_err() {
            // It names its hop-by-hop headers in a way that can not be read: none are known to be
            // meant for the caller.
            headers.remove(header::CONNECTION);
        }
        if let Some((rule, number)) = rule {
            if let Some(backend) = rule.backends.get(*number) {
                backend.filters.response_headers.apply(headers);
            }
            rule.filters.response_headers.apply(headers);
        }
        *response.version_mut() = Version::HTTP_11;
        if let Some(upgraded) = upgraded {
            Upgrade::ask(response.headers_mut());
            let forbidden = self
                .clone()
                .cut_off(way.clone(), asked.with(head), record.clone());
            tokio::spawn(self.clone().carry(upgraded, forbidden));
            return Ok(response);
        }
        let body = response.body_mut();
        if let Some(deadline) = deadline {
            body.set_deadline(deadline);
        }
        if !body.is_short(LONG) {
            body.cut_when(
                self.clone()
                    .cut_off(way.clone(), asked.with(head), record.clone()),
            );
        }
        Ok(response)
    }

    /// Carries a WebSocket until it ends, its workload is gone, policy allows it no more, or the time
    /// of the drain is over.
    async fn carry(self: Arc<Self>, upgraded: weft_l7::Upgraded, forbidden: impl Future<Output = ()>) {
        let forced = async {
            match self.drain.clone() {
                Some(mut drain) => drain.forced().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = upgraded.carry() => if let Err(error) = ended {
                tracing::debug!(%error, "a WebSocket broke off");
            },
            () = forbidden => {}
            () = self.gone.cancelled() => {}
            () = forced => {}
        }
    }

    /// Comes about when policy refuses a request that it has let pass; writes that down.
    async fn cut_off(self: Arc<Self>, way: Arc<Way>, asked: Asking, record: Record) {
        let (sides, failure) = self.clone().forbidden(way.clone(), asked).await;
        record.judged(&self.proxy, &way, sides, Err(failure));
    }

    /// Comes about when policy, as it is by then, refuses a request, and says what each side said.
    async fn forbidden(self: Arc<Self>, way: Arc<Way>, asked: Asking) -> (Sides, Failure) {
        let mut changes = self.changes();
        // What changed since the request was judged has not been asked of it.
        changes.mark_changed();
        while changes.changed().await.is_ok() {
            let Some(source) = self.source() else {
                return (Sides::default(), Failure::Denied(DropReason::UnknownCaller));
            };
            let now = self.way(&source, way.goal.clone(), way.two);
            if let (sides, Err(failure)) = now.ask(&self.proxy, &asked.line()) {
                return (sides, failure);
            }
        }
        // Nobody judges any more: the agent ends, and its connections with it.
        std::future::pending().await
    }

    /// With its body, where that is short: then it can be sent more than once.
    async fn keep(&self, request: Request<Body>) -> Request<Body> {
        let limit = self.proxy.limits.kept_body;
        if request.body().is_kept() || !request.body().is_short(limit) {
            return request;
        }
        let (parts, body) = request.into_parts();
        // A client that breaks off in the middle gets no answer in any case.
        let body = body.keep(limit).await.unwrap_or_default();
        Request::from_parts(parts, body)
    }
}

/// The tries that a route's `retry` allows.
struct Tries<'a> {
    retry: Option<&'a Retry>,
    left: u32,
    deadline: Option<Instant>,
}

impl Tries<'_> {
    fn wants(&self, status: StatusCode) -> bool {
        self.left > 0 && !self.is_over() && self.retry.is_some_and(|retry| retry.codes.contains(&status))
    }

    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    async fn pause(&mut self) {
        self.left = self.left.saturating_sub(1);
        let pause = self.retry.map_or(Duration::ZERO, |retry| retry.backoff);
        let until = Instant::now() + pause;
        tokio::time::sleep_until(self.deadline.map_or(until, |deadline| deadline.min(until))).await;
    }
}

/// What is sent or answered within these bytes is not judged again on its way.
const LONG: usize = 64 * 1024;

async fn within<T>(until: Option<Instant>, sending: BoxFuture<'_, T>) -> Option<T> {
    match until {
        Some(until) => timeout_at(until, sending).await.ok(),
        None => Some(sending.await),
    }
}

/// What is kept of a request when it is sent; the rest is in its head.
struct Remembered {
    method: Method,
    /// Where rules speak of requests. Rules that come later and speak of headers find none.
    headers: Option<HeaderMap>,
}

impl Remembered {
    fn of(request: &Request<Body>, headers: bool) -> Self {
        Self {
            method: request.method().clone(),
            headers: headers.then(|| request.headers().clone()),
        }
    }

    fn with(&self, head: &Head) -> Asking {
        Asking {
            method: self.method.clone(),
            headers: self.headers.clone().unwrap_or_default(),
            head: head.clone(),
        }
    }
}

/// A request that was sent, to be judged again by.
struct Asking {
    method: Method,
    headers: HeaderMap,
    head: Head,
}

impl Asking {
    fn line(&self) -> RequestLine<'_> {
        RequestLine {
            method: self.method.as_str(),
            path: self.head.path.as_str(),
            host: self.head.host.to_str().unwrap_or_default(),
            headers: &self.headers,
        }
    }
}

fn line<'a>(request: &'a Request<Body>, head: &'a Head) -> RequestLine<'a> {
    RequestLine {
        method: request.method().as_str(),
        path: head.path.as_str(),
        host: head.host.to_str().unwrap_or_default(),
        headers: request.headers(),
    }
}

/// The same request once more, if its body is here.
pub(crate) fn again(request: &Request<Body>) -> Option<Request<Body>> {
    let mut copy = Request::new(request.body().again()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Why, and by which rule of the callee's node.
fn failure_of(failure: &SendFailure) -> (Failure, Option<Arc<str>>) {
    match failure {
        SendFailure::Overloaded(_) => (Failure::Overloaded, None),
        SendFailure::Broken(_) => (Failure::Broken, None),
        SendFailure::ConnectTimeout(_) => (Failure::Unreachable, None),
        SendFailure::Connect(error) => {
            let refused = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<OpenError>());
            match refused {
                // By the callee's policy, which its own node has asked.
                Some(OpenError::Refused(_, StatusCode::FORBIDDEN, rule)) => {
                    (Failure::Denied(DropReason::PolicyDenied), rule.clone())
                }
                _ => (Failure::Unreachable, None),
            }
        }
    }
}
