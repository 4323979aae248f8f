//! Who calls, and which methods admit whom. What is in no table is refused.

use crate::{
    Limiter, RPC_DOMAIN, Refusal,
    refusal::{complete, too_late, unread},
};
use futures::{FutureExt as _, future::Map};
use http::{Request, Response};
use std::{
    fmt,
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Timeout, error::Elapsed, timeout};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::instrument::{Instrument as _, Instrumented};
use weft_model::{Principal, SpiffeId};
use weft_tls::PeerIdentity;

/// One kind of caller that a method admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// Anybody who completes the TLS handshake, with or without a certificate.
    Anonymous,
    /// The control service of this name.
    Service(&'static str),
    /// Any control service.
    AnyService,
    /// Any node.
    Node,
    /// Any operator's certificate.
    Admin,
    /// A process of the permitted users on this machine's local socket.
    Local,
    /// Any process of this machine, where a server takes connections without TLS on loopback.
    Loopback,
}

/// Methods (`/package.Service/Method`) and whom each admits.
#[derive(Debug, Clone, Copy)]
pub struct MethodRoles(pub &'static [(&'static str, &'static [Admit])]);

/// Health and reflection admit every role of Weft, and no workload.
const COMMON: &[&str] = &[
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.",
    "/grpc.reflection.v1alpha.",
];
const ANY_ROLE: &[Admit] = &[
    Admit::AnyService,
    Admit::Node,
    Admit::Admin,
    Admit::Local,
    Admit::Loopback,
];

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Showed a verified certificate of this trust domain.
    Tls(PeerIdentity),
    /// Completed TLS without a certificate (only where a server allows it).
    Anonymous,
    /// Came by the local socket, with this user id.
    Local {
        /// The peer's user id as the kernel says.
        uid: u32,
    },
    /// Came without TLS by loopback: some process of this machine.
    Loopback,
}

/// What is known of a connection, for each request on it.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub caller: Caller,
    /// None for the local socket.
    pub from: Option<IpAddr>,
}

impl Caller {
    /// The verified SPIFFE ID.
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        if let Self::Tls(peer) = self {
            Some(&peer.id)
        } else {
            None
        }
    }

    /// The name of the calling node, when it is one.
    pub fn node(&self) -> Option<String> {
        match self.spiffe_id()?.principal() {
            Principal::Node(name) => Some(name),
            _ => None,
        }
    }

    fn is(&self, admit: Admit) -> bool {
        match (self, admit) {
            (_, Admit::Anonymous) => true,
            (Self::Local { .. }, Admit::Local) | (Self::Loopback, Admit::Loopback) => true,
            (Self::Tls(peer), admit) => match (peer.id.principal(), admit) {
                (Principal::Service(_), Admit::AnyService) => true,
                (Principal::Service(name), Admit::Service(wanted)) => name == wanted,
                (Principal::Node(_), Admit::Node) => true,
                (Principal::Admin(_), Admit::Admin) => true,
                _ => false,
            },
            _ => false,
        }
    }
}

impl fmt::Display for Caller {
    /// As audit records and refusals name a caller.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls(peer) => peer.id.fmt(f),
            Self::Anonymous => f.write_str("a caller without a certificate"),
            Self::Local { uid } => write!(f, "local user {uid}"),
            Self::Loopback => f.write_str("a process of this machine"),
        }
    }
}

impl MethodRoles {
    /// Whom `path` admits; nobody when it is in no table.
    pub fn admits(&self, path: &str) -> &'static [Admit] {
        if let Some((_, admits)) = self.0.iter().find(|(p, _)| *p == path) {
            return admits;
        }
        if COMMON.iter().any(|p| path.starts_with(p)) {
            ANY_ROLE
        } else {
            &[]
        }
    }

    /// Whether `caller` may use `path`.
    pub fn check(&self, path: &str, caller: &Caller) -> Result<(), Status> {
        self.judge(path, caller).map_err(|no| no.status(path))
    }

    fn judge(&self, path: &str, caller: &Caller) -> Result<(), NotAdmitted> {
        let admits = self.admits(path);
        if admits.iter().any(|a| caller.is(*a)) {
            return Ok(());
        }
        let (code, reason, text) = if admits.is_empty() {
            let text = format!("{path} is not a method of this service");
            (Code::Unimplemented, "METHOD_UNKNOWN", text)
        } else if *caller == Caller::Anonymous {
            let text =
                format!("{path} needs a client certificate; `weft admin cert` makes one for operators");
            (Code::Unauthenticated, "CERTIFICATE_REQUIRED", text)
        } else {
            let text = format!("{path} does not admit {caller}");
            (Code::PermissionDenied, "ROLE_NOT_ADMITTED", text)
        };
        Err(NotAdmitted { code, reason, text })
    }
}

/// Why a caller may not use a method.
struct NotAdmitted {
    code: Code,
    reason: &'static str,
    text: String,
}

impl NotAdmitted {
    fn status(self, path: &str) -> Status {
        let refusal = Refusal::new(self.code, self.reason, RPC_DOMAIN, self.text);
        refusal.resource("method", path).into()
    }
}

/// A call that no handler decided on: its caller has not the role, its request could not be read, or its
/// answer did not begin in time.
#[derive(Debug, Clone)]
pub struct TurnedAway {
    /// Who called.
    pub caller: Caller,
    /// The address; none for the local socket.
    pub from: Option<IpAddr>,
    /// The method it asked for; of a caller's choosing, and at most [`TurnedAway::MAX_METHOD`] bytes.
    pub method: String,
    /// Why, for programs.
    pub reason: &'static str,
    /// Why, for people.
    pub text: String,
}

impl TurnedAway {
    /// Bytes of a method's name.
    pub const MAX_METHOD: usize = 256;

    fn new(connection: &Connection, method: &str, reason: &'static str, text: &str) -> Self {
        let cut = |(at, c): &(usize, char)| at + c.len_utf8() <= Self::MAX_METHOD;
        let method = method.char_indices().take_while(cut).map(|(_, c)| c);
        Self {
            caller: connection.caller.clone(),
            from: connection.from,
            method: method.collect(),
            reason,
            text: text.to_owned(),
        }
    }
}

/// Hears of calls that are turned away. Called on the server's threads: it must not wait.
#[derive(Clone)]
pub(crate) struct Observer(pub Arc<dyn Fn(TurnedAway) + Send + Sync>);

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

/// The caller of a request that came through a [`crate::GrpcServer`].
pub fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    request
        .extensions()
        .get::<Connection>()
        .map(|connection| connection.caller.clone())
        .ok_or_else(|| Status::internal("the request did not come through Weft's server"))
}

/// Where a request came from; none for the local socket. Says nothing of who it is.
pub fn address<T>(request: &tonic::Request<T>) -> Option<IpAddr> {
    request.extensions().get::<Connection>()?.from
}

/// Puts the checks before every method, a span around what is let through, and details on what is
/// refused.
#[derive(Debug, Clone)]
pub(crate) struct RoleLayer {
    pub roles: MethodRoles,
    pub limiter: Option<Limiter>,
    pub observer: Option<Observer>,
    /// A call whose handler has not begun to answer by then ends.
    pub answer_within: Duration,
}

/// See [`RoleLayer`].
#[derive(Debug, Clone)]
pub(crate) struct RoleService<S> {
    inner: S,
    checks: RoleLayer,
}

impl RoleLayer {
    fn check(&self, connection: Option<&Connection>, path: &str) -> Result<(), Status> {
        let Some(Connection { caller, from }) = connection else {
            return Err(Status::unauthenticated("the connection has no caller"));
        };
        // First: also what is refused is work.
        if let Some(limiter) = &self.limiter {
            limiter.ask(caller, *from, path)?;
        }
        self.roles.judge(path, caller).map_err(|no| {
            tracing::warn!(method = path, reason = no.text, "call refused");
            if let (Some(Observer(told)), Some(connection)) = (&self.observer, connection) {
                told(TurnedAway::new(connection, path, no.reason, &no.text));
            }
            no.status(path)
        })
    }
}

/// A handler's answer, or that there was none in time.
type Answer<E> = Result<Result<Response<Body>, E>, Elapsed>;
/// What is done with it before it is sent.
type Finish<E> = Box<dyn FnOnce(Answer<E>) -> Result<Response<Body>, E> + Send>;

impl RoleLayer {
    /// Gives details to a refusal, and tells the observer if no handler decided on it.
    fn finish<E>(&self, connection: Option<&Connection>, method: &str) -> Finish<E> {
        let within = self.answer_within;
        let (Some(Observer(told)), Some(connection)) = (&self.observer, connection) else {
            return Box::new(move |answer| in_time(answer, within).map(complete));
        };
        let (told, connection, method) = (told.clone(), connection.clone(), method.to_owned());
        Box::new(move |answer| {
            let response = in_time(answer, within)?;
            if let Some((reason, text)) = unread(&response) {
                told(TurnedAway::new(&connection, &method, reason, &text));
            }
            Ok(complete(response))
        })
    }
}

fn in_time<E>(answer: Answer<E>, within: Duration) -> Result<Response<Body>, E> {
    answer.unwrap_or_else(|_| Ok(too_late(within).into_http()))
}

impl<S> Layer<S> for RoleLayer {
    type Service = RoleService<S>;
    fn layer(&self, inner: S) -> Self::Service {
        RoleService {
            inner,
            checks: self.clone(),
        }
    }
}

impl<S> Service<Request<Body>> for RoleService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = futures::future::Either<
        std::future::Ready<Result<Response<Body>, S::Error>>,
        Map<Timeout<Instrumented<S::Future>>, Finish<S::Error>>,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let connection = request.extensions().get::<Connection>();
        match self.checks.check(connection, path) {
            Ok(()) => {
                let span = tracing::info_span!("rpc", otel.name = path, otel.kind = "server");
                let finish = self.checks.finish(connection, path);
                let answer = self.inner.call(request).instrument(span);
                futures::future::Either::Right(timeout(self.checks.answer_within, answer).map(finish))
            }
            Err(status) => {
                let refused = complete(status.into_http());
                futures::future::Either::Left(std::future::ready(Ok(refused)))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TABLE: MethodRoles = MethodRoles(&[
        ("/p.S/ForNodes", &[Admit::Node]),
        ("/p.S/ForIdentity", &[Admit::Service("identity")]),
        ("/p.S/Open", &[Admit::Anonymous]),
        ("/p.S/Local", &[Admit::Local]),
    ]);

    fn tls(path: &str) -> Caller {
        let id = format!("spiffe://td{path}").parse().unwrap();
        Caller::Tls(PeerIdentity {
            id,
            serial: "1".into(),
            node: None,
            not_before: 0,
            not_after: 1,
        })
    }

    #[test]
    fn each_role_gets_its_own_methods_only() {
        let node = tls("/weft/node/n1");
        let identity = tls("/weft/service/identity");
        let policy = tls("/weft/service/policy");
        let workload = tls("/ns/default/cart");
        let local = Caller::Local { uid: 0 };
        let ok = |path: &str, caller: &Caller| TABLE.check(path, caller).is_ok();

        assert!(ok("/p.S/ForNodes", &node));
        for other in [&identity, &workload, &local, &Caller::Anonymous] {
            assert!(!ok("/p.S/ForNodes", other), "{other} was admitted");
        }
        assert!(ok("/p.S/ForIdentity", &identity));
        assert!(!ok("/p.S/ForIdentity", &policy));
        assert!(ok("/p.S/Open", &Caller::Anonymous));
        assert!(ok("/p.S/Local", &local));
        assert!(!ok("/p.S/Local", &node));
        // Unknown methods are closed, also to those who may use others.
        assert_eq!(
            TABLE.check("/p.S/New", &node).unwrap_err().code(),
            tonic::Code::Unimplemented
        );
    }

    #[test]
    fn workloads_get_neither_health_nor_reflection() {
        let path = "/grpc.health.v1.Health/Check";
        assert!(TABLE.check(path, &tls("/weft/admin/ops")).is_ok());
        assert!(TABLE.check(path, &tls("/ns/default/cart")).is_err());
        assert!(TABLE.check(path, &Caller::Anonymous).is_err());
        let path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
        assert!(TABLE.check(path, &tls("/weft/node/n1")).is_ok());
        assert!(TABLE.check(path, &tls("/ns/default/cart")).is_err());
    }
}
