//! What the runtime needs of its surroundings, as small traits. The agent implements them over
//! weft-node and the policy service; tests implement them in a few lines.
//!
//! [`Directory`] and [`Judge`] are asked on every request: they must answer from memory, without
//! waiting. The dialers are asked only when a new connection is needed.

use crate::AppContext;
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};
use tokio::net::TcpStream;
use weft_flows::{Direction, DropReason, Party};
use weft_l7::{Body, InFlight};
use weft_tls::PeerIdentity;
use weft_tunnel::TunnelStream;

/// Policy judges an invocation as a connection to this TCP port of the callee (Dapr's internal
/// gRPC port).
pub const INVOKE_PORT: u16 = 50002;

/// Where an endpoint runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// On this node; the app listens on this port of its own namespace.
    Local {
        /// The app's port.
        app_port: u16,
    },
    /// On another node.
    Remote {
        /// Where its tunnel listens: the pod's address, or the node's for a process.
        tunnel: SocketAddr,
    },
}

/// One running workload that serves an app-id. Make a new one when any of it changes.
#[derive(Debug)]
pub struct Endpoint {
    workload: Arc<str>,
    party: Arc<Party>,
    place: Place,
    host: HeaderValue,
    in_flight: Arc<AtomicU32>,
}

impl Endpoint {
    /// `workload` is the id that the registry knows it by.
    pub fn new(workload: Arc<str>, party: Arc<Party>, place: Place) -> Arc<Self> {
        let host = match &place {
            Place::Local { app_port } => format!("127.0.0.1:{app_port}"),
            Place::Remote { .. } => format!("{}.{}", party.app_id, party.namespace),
        };
        let host = HeaderValue::from_str(&host).unwrap_or(HeaderValue::from_static("app"));
        Arc::new(Self {
            workload,
            party,
            place,
            host,
            in_flight: Arc::default(),
        })
    }

    /// The workload's id.
    pub fn workload(&self) -> &Arc<str> {
        &self.workload
    }

    /// Who it is.
    pub fn party(&self) -> &Arc<Party> {
        &self.party
    }

    /// Where it runs.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Requests that this node has under way to it.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What the app sees as the host it is called by.
    pub(crate) fn host(&self) -> HeaderValue {
        self.host.clone()
    }

    /// Counts one request to it, until what is returned is dropped.
    pub fn begin(&self) -> InFlight {
        InFlight::begin(&self.in_flight)
    }
}

/// All ready endpoints of one app-id. The directory keeps one per app-id and replaces it when the
/// set changes.
#[derive(Debug)]
pub struct Target {
    endpoints: Box<[Arc<Endpoint>]>,
    shared: bool,
    turn: AtomicUsize,
}

impl Target {
    /// Of these endpoints.
    pub fn new(endpoints: Vec<Arc<Endpoint>>) -> Arc<Self> {
        Self::of(endpoints, false)
    }

    /// Of these shared endpoints, in whose place agents answer.
    pub fn shared(endpoints: Vec<Arc<Endpoint>>) -> Arc<Self> {
        Self::of(endpoints, true)
    }

    fn of(endpoints: Vec<Arc<Endpoint>>, shared: bool) -> Arc<Self> {
        Arc::new(Self {
            endpoints: endpoints.into(),
            shared,
            turn: AtomicUsize::new(0),
        })
    }

    /// Whether they are shared endpoints.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// The endpoints.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// The next endpoint: in turn, but of two neighbours the one with fewer requests under way.
    pub fn pick(&self) -> Option<&Arc<Endpoint>> {
        let n = self.endpoints.len();
        if n < 2 {
            return self.endpoints.first();
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let (one, other) = (
            &self.endpoints[turn % n],
            &self.endpoints[turn.wrapping_add(1) % n],
        );
        Some(if other.in_flight() < one.in_flight() {
            other
        } else {
            one
        })
    }
}

/// Who is there.
pub trait Directory: Send + Sync + 'static {
    /// The endpoints of an app-id; `None` when nobody serves it. `caller` is the id of the workload
    /// that asks.
    fn resolve(&self, caller: &str, namespace: &str, app_id: &str) -> Option<Arc<Target>>;

    /// The Service that an app-id names, for calls of `caller`; `None` when there is none. `other`: a
    /// workload has the app-id, so that a Service counts only if it has routes.
    fn app_service(
        &self,
        _caller: &Arc<AppContext>,
        _namespace: &str,
        _app_id: &str,
        _other: bool,
    ) -> Option<Arc<dyn Channel>> {
        None
    }

    /// A workload of this node, by its id.
    fn local(&self, workload: &str) -> Option<Arc<Endpoint>>;

    /// Whom a tunnel's certificate stands for. `claimed` is the workload id that the other agent
    /// names: take it only if that workload is known to have this SPIFFE ID and to run on this
    /// node. `None` refuses the call; a workload that is not known yet may be returned as a
    /// [`Party`] with identity `CLUSTER_UNKNOWN`.
    fn tunnel_peer(&self, peer: &PeerIdentity, claimed: Option<&str>) -> Option<Arc<Party>>;
}

/// What policy is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Whose policy: egress of the caller, or ingress of the callee.
    pub direction: Direction,
    /// Id of the workload whose policy it is.
    pub workload: &'a str,
    /// Who calls.
    pub source: &'a Party,
    /// Who is called.
    pub destination: &'a Party,
    /// The TCP port that counts.
    pub port: u16,
    /// Whether both ends are proven: by the kernel on one node, by both SVIDs between nodes.
    pub authenticated: bool,
}

/// What policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// `None` when allowed.
    pub refused: Option<DropReason>,
    /// Allowed only because the workload's policy is under audit: why it would have been refused.
    pub audited: Option<DropReason>,
    /// The rule that spoke; `None` when none did (the default).
    pub rule: Option<Arc<str>>,
    /// Rules at L7 speak of single requests here. As a whole it is refused; who reads requests asks
    /// [`Judge::judge_request`] of each.
    pub by_request: bool,
}

impl Decision {
    /// Allowed, by a rule or by default.
    pub fn allow(rule: Option<Arc<str>>) -> Self {
        Self {
            refused: None,
            audited: None,
            rule,
            by_request: false,
        }
    }

    /// Refused, by a rule or by default.
    pub fn refuse(reason: DropReason, rule: Option<Arc<str>>) -> Self {
        Self {
            refused: Some(reason),
            audited: None,
            rule,
            by_request: false,
        }
    }

    /// Refused as a whole: rules speak of single requests.
    pub fn by_request(rule: Option<Arc<str>>) -> Self {
        Self {
            by_request: true,
            ..Self::refuse(DropReason::PolicyDenied, rule)
        }
    }

    /// The same under audit: what was refused passes, and is told.
    #[must_use]
    pub fn under_audit(self) -> Self {
        Self {
            refused: None,
            audited: self.refused,
            ..self
        }
    }
}

/// Who may call whom.
pub trait Judge: Send + Sync + 'static {
    /// Judges one direction of one call or connection as a whole.
    fn judge(&self, question: &Question<'_>) -> Decision;

    /// Judges one direction of one HTTP request, where [`Decision::by_request`] says so. Who knows no
    /// rules at L7 refuses as [`Judge::judge`] does.
    fn judge_request(&self, question: &Question<'_>, _request: &RequestLine<'_>) -> Decision {
        self.judge(question)
    }

    /// The same for all requests that the question is asked of, as long as nothing of the mesh changes: what
    /// they have in common is looked up once. `None`: each is to be asked by [`Judge::judge_request`].
    fn requests(&self, _question: &Question<'_>) -> Option<Arc<dyn RequestJudge>> {
        None
    }
}

/// Judges the requests of one question.
pub trait RequestJudge: Send + Sync {
    /// Judges one.
    fn judge(&self, request: &RequestLine<'_>) -> Decision;
}

/// What rules at L7 are held against: a request as it is forwarded.
#[derive(Debug, Clone, Copy)]
pub struct RequestLine<'a> {
    /// Its method.
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// The authority it is for, as the client wrote it.
    pub host: &'a str,
    /// Its headers.
    pub headers: &'a http::HeaderMap,
}

/// Why an app that is reached by the proxy did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelError {
    /// By policy.
    Denied,
    /// It can not be reached, in words for the caller.
    Unreachable(&'static str),
}

/// The way to an app that is no workload of this runtime: the proxy's, with its routes and policies. What
/// becomes of a request there is written down there.
pub trait Channel: Send + Sync + 'static {
    /// Sends a request on.
    fn send(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, ChannelError>>;
}

/// Connections to apps of this node, made in the app's own network namespace.
pub trait AppDialer: Send + Sync + 'static {
    /// The app behind a shared endpoint of this node; `None` where the workload itself is the app. `from`
    /// is who calls it.
    fn remote(&self, _endpoint: &Endpoint, _from: &Party) -> Option<Arc<dyn Channel>> {
        None
    }

    /// A connection of the app's own to somewhere outside it, as its components need it: judged by the
    /// app's policy and made from where the app is.
    fn egress(
        &self,
        _app: &Arc<AppContext>,
        host: &str,
        port: u16,
    ) -> BoxFuture<'static, io::Result<TcpStream>> {
        let error = format!("there is no way to {host}:{port} from here");
        Box::pin(std::future::ready(Err(io::Error::new(
            io::ErrorKind::Unsupported,
            error,
        ))))
    }

    /// Connects to the app's port on its loopback.
    fn connect(&self, endpoint: Arc<Endpoint>) -> BoxFuture<'static, io::Result<TcpStream>>;
}

/// Streams to endpoints on other nodes. [`crate::Tunnels`] implements it over `weft-tunnel`.
pub trait TunnelDialer: Send + Sync + 'static {
    /// Opens a stream as `caller` that is answered by `endpoint` and nobody else.
    fn connect(
        &self,
        caller: Arc<AppContext>,
        endpoint: Arc<Endpoint>,
    ) -> BoxFuture<'static, io::Result<TunnelStream>>;
}
