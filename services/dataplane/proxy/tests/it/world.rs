//! A node with its proxy, apps behind it, and clients in front of it.

use futures::{FutureExt, future::BoxFuture};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use weft_drain::{Trigger, Watcher};
use weft_flows::{Direction, DropReason, Flow, FlowLog, Party, Proof};
use weft_l7::{Body, ServerLimits, serve_any};
use weft_model::NumericIdentity;
use weft_proto::weft::policy::v1::{self as pb, attachment::Parent, resource};
use weft_proxy::{Backends, Caller, Front, Member, Mesh, Proxy, ProxyLimits, Routing, Speaks, To};
use weft_route::spec::BackendRef;
use weft_runtime::{
    AppChannel, AppContext, AppSpec, Decision, Directory, Endpoint, Judge, Place, Question, RequestLine,
    Target, Tunnels,
};
use weft_tls::{PeerIdentity, SystemClock, Trust};

pub const SOON: Duration = Duration::from_secs(20);

#[derive(Clone)]
struct Known {
    endpoint: Arc<Endpoint>,
    address: SocketAddr,
}

type Key = (String, u16);
/// Whose side, source, destination.
type Pair = (Direction, String, String);
type Rule = Arc<dyn Fn(&RequestLine<'_>) -> bool + Send + Sync>;

#[derive(Default)]
struct State {
    workloads: HashMap<String, Known>,
    services: HashMap<Key, (Vec<String>, &'static str)>,
    denied: Vec<Pair>,
    /// Requests that may pass, where rules at L7 speak.
    rules: HashMap<Pair, Rule>,
}

pub struct View {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    dials: AtomicUsize,
}

fn party(name: &str) -> Arc<Party> {
    Arc::new(Party {
        namespace: "default".into(),
        workload: name.into(),
        app_id: name.into(),
        identity: NumericIdentity(300),
        spiffe_id: format!("spiffe://cluster.local/ns/default/{name}").into(),
        address: None,
        node: "n1".into(),
    })
}

fn context(name: &str) -> Arc<AppContext> {
    AppContext::new(AppSpec {
        workload: name.into(),
        party: party(name),
        proof: Proof::PodListener,
        token: None,
        svid: None,
        channel: AppChannel::default(),
        health: Arc::default(),
    })
}

impl Directory for View {
    fn resolve(&self, _: &str, _: &str, _: &str) -> Option<Arc<Target>> {
        None
    }
    fn local(&self, workload: &str) -> Option<Arc<Endpoint>> {
        self.endpoint(workload)
    }
    fn tunnel_peer(&self, peer: &PeerIdentity, _: Option<&str>) -> Option<Arc<Party>> {
        peer.node.as_ref()?;
        Some(party(peer.id.path().rsplit('/').next()?))
    }
}

fn pair(question: &Question<'_>) -> Pair {
    let (from, to) = (&question.source.app_id, &question.destination.app_id);
    (question.direction, from.to_string(), to.to_string())
}

impl Judge for View {
    fn judge(&self, question: &Question<'_>) -> Decision {
        let (state, pair) = (self.state.lock(), pair(question));
        if state.denied.contains(&pair) {
            return Decision::refuse(DropReason::PolicyDenied, Some("denied by the test".into()));
        }
        match state.rules.contains_key(&pair) {
            true => Decision::by_request(Some("by request".into())),
            false => Decision::allow(Some("allowed".into())),
        }
    }

    fn judge_request(&self, question: &Question<'_>, line: &RequestLine<'_>) -> Decision {
        let rule = self.state.lock().rules.get(&pair(question)).cloned();
        match rule.is_some_and(|rule| rule(line)) {
            true => Decision::allow(Some("this request".into())),
            false => Decision::refuse(DropReason::PolicyDenied, Some("no such request".into())),
        }
    }
}

impl Mesh for View {
    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
    fn caller(&self, workload: &str) -> Option<Arc<AppContext>> {
        Some(context(workload))
    }
    fn endpoint(&self, workload: &str) -> Option<Arc<Endpoint>> {
        Some(self.state.lock().workloads.get(workload)?.endpoint.clone())
    }
    fn backends(&self, service: &BackendRef, _v4: bool) -> Option<Arc<Backends>> {
        let state = self.state.lock();
        let (ids, speaks) = state.services.get(&(service.name.to_string(), service.port))?;
        let members = ids.iter().filter_map(|id| state.workloads.get(id));
        let members = members.map(|known| Member {
            endpoint: known.endpoint.clone(),
            address: known.address,
        });
        Some(Backends::new(members.collect(), Speaks::of(speaks)))
    }
    fn connect(&self, _: &str, to: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        TcpStream::connect(to).boxed()
    }
}

pub struct World {
    pub view: Arc<View>,
    pub proxy: Arc<Proxy>,
    pub flows: FlowLog,
    pub gone: CancellationToken,
    version: AtomicUsize,
    pub trigger: Mutex<Option<Trigger>>,
    drain: Watcher,
}

struct NoDialer;

impl weft_tunnel::Dialer for NoDialer {
    fn dial(&self, _: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> {
        futures::future::ready(Err(io::ErrorKind::HostUnreachable.into())).boxed()
    }
}

impl World {
    pub fn new() -> Self {
        weft_tls::install_provider();
        let view = Arc::new(View {
            state: Mutex::default(),
            changes: watch::Sender::new(0),
            dials: AtomicUsize::new(0),
        });
        let trust = Trust::new("cluster.local".parse().unwrap(), SystemClock::shared());
        let tunnels = weft_tunnel::Client::new(trust, Arc::new(NoDialer), weft_tunnel::Limits::default());
        let flows = FlowLog::new("n1");
        let limits = ProxyLimits {
            server: ServerLimits {
                tick: Duration::from_millis(20),
                ..ServerLimits::default()
            },
            ..ProxyLimits::default()
        };
        let routing = Arc::new(Routing::default());
        let proxy = Proxy::new(
            view.clone(),
            routing,
            Tunnels::new(tunnels),
            flows.clone(),
            limits,
        );
        let (trigger, drain) = weft_drain::channel();
        Self {
            view,
            proxy,
            flows,
            gone: CancellationToken::new(),
            version: AtomicUsize::new(0),
            trigger: Mutex::new(Some(trigger)),
            drain,
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.view.state.lock());
        self.view.changes.send_modify(|n| *n += 1);
    }

    /// A workload whose app listens there.
    pub fn place(&self, name: &str, address: SocketAddr) {
        let endpoint = Endpoint::new(name.into(), party(name), Place::Local { app_port: 0 });
        let known = Known { endpoint, address };
        self.change(|state| drop(state.workloads.insert(name.into(), known)));
    }

    /// A workload with an app that tells what came to it.
    pub async fn app(&self, name: &'static str) -> SocketAddr {
        let address = serve(move |request| tell(name, request).boxed()).await;
        self.place(name, address);
        address
    }

    pub fn service(&self, name: &str, endpoints: &[&str]) {
        self.service_speaking(name, endpoints, "");
    }

    pub fn service_speaking(&self, name: &str, endpoints: &[&str], protocol: &'static str) {
        let endpoints = endpoints.iter().map(ToString::to_string).collect();
        self.change(|state| drop(state.services.insert((name.into(), 80), (endpoints, protocol))));
    }

    pub fn deny(&self, direction: Direction, from: &str, to: &str) {
        self.change(|state| state.denied.push((direction, from.into(), to.into())));
    }

    pub fn rule(
        &self,
        direction: Direction,
        from: &str,
        to: &str,
        rule: impl Fn(&RequestLine<'_>) -> bool + Send + Sync + 'static,
    ) {
        let rule: Rule = Arc::new(rule);
        self.change(|state| drop(state.rules.insert((direction, from.into(), to.into()), rule)));
    }

    /// Puts a route of Service whoami, as the policy service would.
    pub fn route(&self, name: &str, rules: Vec<pb::RouteRule>) {
        let parent = Parent::Service(pb::ServiceParent {
            namespace: "default".into(),
            name: "whoami".into(),
            port: 0,
        });
        self.attach(name, parent, rules);
    }

    pub fn attach(&self, name: &str, parent: Parent, rules: Vec<pb::RouteRule>) {
        let route = pb::Route {
            kind: "HTTPRoute".into(),
            namespace: "default".into(),
            name: name.into(),
            attachments: vec![pb::Attachment {
                parent: Some(parent),
                hostnames: Vec::new(),
            }],
            rules,
            ..Default::default()
        };
        let body = resource::Body::Route(route);
        self.apply("route", &format!("HTTPRoute/default/{name}"), Some(body));
    }

    /// An update with one resource, or without it.
    pub fn apply(&self, kind: &str, name: &str, body: Option<resource::Body>) {
        let key = pb::ResourceKey {
            kind: kind.into(),
            name: name.into(),
        };
        let mut update = pb::SubscribeResponse {
            version: self.version.fetch_add(1, Ordering::SeqCst) as u64,
            ..Default::default()
        };
        match body {
            Some(_) => update.upserts.push(pb::Resource { key: Some(key), body }),
            None => update.removes.push(key),
        }
        let applied = self.proxy.routing().apply(&update);
        assert!(applied.problems.is_empty(), "{applied:?}");
        self.change(|_| {});
    }

    /// Connects as app shop to Service whoami.
    pub async fn connect(&self) -> TcpStream {
        self.connect_to(self.service_front()).await
    }

    pub fn service_front(&self) -> Front {
        let service = BackendRef {
            namespace: "default".into(),
            name: "whoami".into(),
            port: 80,
        };
        Front {
            caller: Caller::Workload(context("shop")),
            to: To::Service {
                routes: self.proxy.routing().routes().service("default", "whoami"),
                service,
            },
            address: "10.96.0.1:80".parse().unwrap(),
            source_port: 40_000,
        }
    }

    pub async fn connect_to(&self, front: Front) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (proxy, gone, drain) = (self.proxy.clone(), self.gone.clone(), self.drain.clone());
        tokio::spawn(async move { proxy.serve(stream, front, gone, drain).await });
        client
    }

    /// Asks once on a connection of its own.
    pub async fn ask(&self, path: &str) -> Answer {
        ask(&mut self.connect().await, path).await
    }

    pub fn flows(&self) -> Vec<Flow> {
        let past = self.flows.past();
        past.iter().map(|r| r.flow.clone()).collect()
    }

    /// Of one path, in the order in which they were written.
    pub fn flows_of(&self, path: &str) -> Vec<Flow> {
        let all = self.flows().into_iter();
        all.filter(|flow| &*flow.path == path).collect()
    }

    pub fn dials(&self) -> usize {
        self.view.dials.load(Ordering::SeqCst)
    }
}

pub fn gateway_context() -> Arc<AppContext> {
    context("gateway")
}

pub fn backend(name: &str, weight: u32) -> pb::RouteBackend {
    pb::RouteBackend {
        target: Some(target(name)),
        weight,
        filters: None,
    }
}

pub fn target(name: &str) -> pb::RouteBackendRef {
    pb::RouteBackendRef {
        namespace: "default".into(),
        service: name.into(),
        port: 80,
    }
}

pub fn to(backends: Vec<pb::RouteBackend>) -> pb::RouteRule {
    pb::RouteRule {
        backends,
        ..Default::default()
    }
}

pub fn below(prefix: &str) -> Vec<pb::RouteMatch> {
    vec![pb::RouteMatch {
        path: Some(pb::route_match::Path::Prefix(prefix.into())),
        ..Default::default()
    }]
}

pub fn header(name: &str, value: &str) -> pb::HeaderValue {
    pb::HeaderValue {
        name: name.into(),
        value: value.into(),
    }
}

/// Serves an app; it takes HTTP/1.1 and HTTP/2.
pub async fn serve<H>(handle: H) -> SocketAddr
where
    H: Fn(Request<Body>) -> BoxFuture<'static, Response<Body>> + Clone + Send + Sync + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (_trigger, drain) = weft_drain::channel();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (handle, drain) = (handle.clone(), drain.clone());
            tokio::spawn(async move { serve_any(stream, &ServerLimits::default(), drain, handle).await });
        }
    });
    address
}

/// What came, one thing per line.
async fn tell(name: &'static str, request: Request<Body>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let mut text = format!(
        "app {name}\nline {:?} {} {}\n",
        head.version, head.method, head.uri
    );
    for (name, value) in &head.headers {
        text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    let body = body.collect().await.unwrap().to_bytes();
    text.push_str(&format!("body {}\n", String::from_utf8_lossy(&body)));
    let mut response = Response::new(Body::from(text));
    if let Some(status) = head.headers.get("want-status") {
        *response.status_mut() = StatusCode::from_bytes(status.as_bytes()).unwrap();
    }
    response
        .headers_mut()
        .insert("x-app", HeaderValue::from_static(name));
    response
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// Which app told.
    pub fn app(&self) -> &str {
        self.line("app ")
    }

    /// The rest of the line that begins so.
    pub fn line(&self, start: &str) -> &str {
        let mut lines = self.body.lines().filter_map(|line| line.strip_prefix(start));
        lines
            .next()
            .unwrap_or_else(|| panic!("no line {start:?} in {self:?}"))
    }
}

pub async fn ask(stream: &mut TcpStream, path: &str) -> Answer {
    send(stream, &format!("GET {path} HTTP/1.1\r\nhost: whoami\r\n\r\n")).await
}

/// Sends a request and reads an answer whose length is told.
pub async fn send(stream: &mut TcpStream, request: &str) -> Answer {
    stream.write_all(request.as_bytes()).await.unwrap();
    timeout(SOON, answer(stream)).await.expect("no answer")
}

pub async fn answer(stream: &mut TcpStream) -> Answer {
    let mut all = Vec::new();
    let end = loop {
        if let Some(at) = all.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        let n = stream.read_buf(&mut all).await.unwrap();
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&all));
    };
    let head = String::from_utf8(all[..end].to_vec()).unwrap().to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |text| text.parse().unwrap());
    while all.len() < end + length {
        let n = stream.read_buf(&mut all).await.unwrap();
        assert!(n > 0, "closed in the body of {head}");
    }
    Answer {
        status: head[9..12].parse().unwrap(),
        head,
        body: String::from_utf8(all[end..].to_vec()).unwrap(),
    }
}
