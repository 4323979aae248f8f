//! Requests of a workload of this node that come by no connection: the agent sends them in its place.

use crate::{Front, Proxy, answer::Failure, served::Served};
use http::{Request, Response};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use weft_l7::Body;

/// Where such requests enter: each is routed, judged and written down as on a connection.
#[derive(Clone)]
pub struct Outlet(Arc<Served>);

/// Why a request that entered so got no answer. It is written down already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// Policy.
    Denied,
    /// It can not be understood.
    Malformed(&'static str),
    /// Nobody is there, no route wants it, or it broke off on its way.
    Unreachable(&'static str),
}

impl std::fmt::Debug for Outlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outlet").field("front", &self.0.front).finish()
    }
}

impl Proxy {
    /// Lets requests enter as `front` says. None of them becomes anything but HTTP, so no drain is waited
    /// for.
    pub fn outlet(self: &Arc<Self>, front: Front) -> Outlet {
        Outlet(Served::new(self.clone(), front, CancellationToken::new(), None))
    }
}

impl Outlet {
    /// Sends one.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Unanswered> {
        let answer = self.0.clone().respond(request).await;
        answer.map_err(|failure| match failure {
            Failure::Denied(_) => Unanswered::Denied,
            Failure::Malformed(why) => Unanswered::Malformed(why),
            Failure::NoRoute => Unanswered::Unreachable("no route wants the request"),
            Failure::NoBackend => Unanswered::Unreachable("its route has no backend that may be used"),
            Failure::NoEndpoint => Unanswered::Unreachable("nobody serves it"),
            Failure::Overloaded => Unanswered::Unreachable("too many requests are under way to it"),
            Failure::Unreachable => Unanswered::Unreachable("it can not be reached"),
            Failure::Broken => Unanswered::Unreachable("it closed the connection before it answered"),
            Failure::Timeout => Unanswered::Unreachable("it did not answer in time"),
        })
    }
}
