//! Agents in one process, with apps behind them: real sockets, real tunnels, a directory and a
//! judge that do as the test says.

#![allow(clippy::unwrap_used, dead_code)]

#[path = "../../../tunnel/tests/support/mod.rs"]
pub mod certs;

use certs::{Ca, spiffe};
use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use weft_components_api::Drivers;
use weft_flows::{Direction, DropReason, Flow, FlowLog, Party, Proof};
use weft_model::NumericIdentity;
use weft_runtime::{
    AppChannel, AppContext, AppDialer, AppHealth, AppSettings, AppSpec, Decision, Directory, Endpoint,
    Environment, Judge, Place, Question, Runtime, RuntimeLimits, Target, Token, Tunnels,
};
use weft_tls::{PeerIdentity, Trust};
use weft_tunnel::{Client, Dialer, Limits, Local, serve};

pub const SOON: Duration = Duration::from_secs(20);

/// Who is where, the same for all agents of a world.
#[derive(Default)]
pub struct Registry {
    /// (app-id, node, app port, tunnel address)
    workloads: Mutex<Vec<Known>>,
    /// Pairs of app-id and node that no tunnel may claim.
    pub banned: Mutex<Vec<(String, String)>>,
}

#[derive(Clone)]
struct Known {
    id: Arc<str>,
    party: Arc<Party>,
    app_port: u16,
    tunnel: SocketAddr,
}

/// One agent's view of the registry. Targets are kept, as the agent does.
pub struct View {
    node: String,
    registry: Arc<Registry>,
    endpoints: Mutex<HashMap<Arc<str>, Arc<Endpoint>>>,
    targets: Mutex<HashMap<(String, String), Arc<Target>>>,
}

impl View {
    fn endpoint(&self, known: &Known) -> Arc<Endpoint> {
        let place = if *known.party.node == *self.node {
            Place::Local {
                app_port: known.app_port,
            }
        } else {
            Place::Remote { tunnel: known.tunnel }
        };
        let make = || Endpoint::new(known.id.clone(), known.party.clone(), place);
        self.endpoints
            .lock()
            .entry(known.id.clone())
            .or_insert_with(make)
            .clone()
    }
}

impl Directory for View {
    fn resolve(&self, _: &str, namespace: &str, app_id: &str) -> Option<Arc<Target>> {
        let key = (namespace.to_owned(), app_id.to_owned());
        if let Some(target) = self.targets.lock().get(&key) {
            return Some(target.clone());
        }
        let all = self.registry.workloads.lock();
        let these = all
            .iter()
            .filter(|k| *k.party.namespace == *namespace && *k.party.app_id == *app_id);
        let endpoints: Vec<_> = these.map(|k| self.endpoint(k)).collect();
        if endpoints.is_empty() {
            return None;
        }
        Some(
            self.targets
                .lock()
                .entry(key)
                .or_insert(Target::new(endpoints))
                .clone(),
        )
    }

    fn local(&self, workload: &str) -> Option<Arc<Endpoint>> {
        let known = self
            .registry
            .workloads
            .lock()
            .iter()
            .find(|k| *k.id == *workload)
            .cloned()?;
        Some(self.endpoint(&known))
    }

    fn tunnel_peer(&self, peer: &PeerIdentity, claimed: Option<&str>) -> Option<Arc<Party>> {
        let node = peer.node.as_deref()?;
        let all = self.registry.workloads.lock();
        let fits = |k: &&Known| *k.party.spiffe_id == *peer.id.as_str() && *k.party.node == *node;
        let known = all
            .iter()
            .filter(fits)
            .find(|k| claimed.is_none_or(|c| *k.id == *c))?;
        let banned = self.registry.banned.lock();
        let is_banned = banned
            .iter()
            .any(|(app, on)| **app == *known.party.app_id && on == node);
        (!is_banned).then(|| known.party.clone())
    }
}

/// Refuses what it is told to.
#[derive(Default)]
pub struct Rules {
    /// (direction, caller, callee, rule)
    pub denied: Mutex<Vec<(Direction, String, String, String)>>,
    pub asked: Mutex<Vec<(Direction, String, u16, bool)>>,
}

impl Judge for Rules {
    fn judge(&self, q: &Question<'_>) -> Decision {
        self.asked
            .lock()
            .push((q.direction, q.workload.to_owned(), q.port, q.authenticated));
        let denied = self.denied.lock();
        let hit = denied.iter().find(|(d, from, to, _)| {
            *d == q.direction && **from == *q.source.app_id && **to == *q.destination.app_id
        });
        match hit {
            Some((.., rule)) => Decision::refuse(DropReason::PolicyDenied, Some(rule.as_str().into())),
            None => Decision::allow(Some("default".into())),
        }
    }
}

struct ToLoopback;

impl AppDialer for ToLoopback {
    fn egress(
        &self,
        _: &Arc<AppContext>,
        host: &str,
        port: u16,
    ) -> BoxFuture<'static, io::Result<TcpStream>> {
        let host = host.to_owned();
        async move { TcpStream::connect((host.as_str(), port)).await }.boxed()
    }

    fn connect(&self, endpoint: Arc<Endpoint>) -> BoxFuture<'static, io::Result<TcpStream>> {
        let Place::Local { app_port } = *endpoint.place() else {
            panic!("{endpoint:?} is not local")
        };
        TcpStream::connect(("127.0.0.1", app_port)).boxed()
    }
}

#[derive(Default)]
pub struct Direct(pub AtomicUsize);

impl Dialer for Direct {
    fn dial(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        TcpStream::connect(to).boxed()
    }
}

pub struct World {
    pub ca: Ca,
    pub registry: Arc<Registry>,
    _triggers: Vec<weft_drain::Trigger>,
}

pub struct Agent {
    pub node: String,
    pub runtime: Arc<Runtime>,
    pub flows: FlowLog,
    pub rules: Arc<Rules>,
    pub tunnels_dialed: Arc<Direct>,
    pub trust: Trust,
    drain: weft_drain::Watcher,
}

impl World {
    pub fn new() -> Self {
        Self {
            ca: Ca::new(),
            registry: Arc::default(),
            _triggers: Vec::new(),
        }
    }

    pub fn agent(&mut self, node: &str) -> Agent {
        self.agent_with(node, RuntimeLimits::default())
    }

    pub fn agent_with(&mut self, node: &str, limits: RuntimeLimits) -> Agent {
        self.agent_with_components(node, limits, Drivers::default(), "/nonexistent".into())
    }

    pub fn agent_with_components(
        &mut self,
        node: &str,
        limits: RuntimeLimits,
        drivers: Drivers,
        files: PathBuf,
    ) -> Agent {
        let trust = self.ca.trust_with(weft_tls::SystemClock::shared());
        let view = View {
            node: node.into(),
            registry: self.registry.clone(),
            endpoints: Mutex::default(),
            targets: Mutex::default(),
        };
        let (flows, rules) = (FlowLog::new(node), Arc::new(Rules::default()));
        let tunnels_dialed = Arc::new(Direct::default());
        let client = Client::new(trust.clone(), tunnels_dialed.clone(), Limits::default());
        let env = Environment {
            directory: Arc::new(view),
            judge: rules.clone(),
            apps: Arc::new(ToLoopback),
            tunnels: Arc::new(Tunnels::new(client)),
            flows: flows.clone(),
        };
        let (trigger, drain) = weft_drain::channel();
        self._triggers.push(trigger);
        Agent {
            node: node.into(),
            runtime: Runtime::with_components(env, limits, drivers, files),
            flows,
            rules,
            tunnels_dialed,
            trust,
            drain,
        }
    }

    /// A workload of `agent` whose app listens on `app_port`, with its runtime's HTTP port and its
    /// tunnel's.
    pub async fn workload(&self, agent: &Agent, app_id: &str, app_port: u16) -> Workload {
        self.workload_with(agent, app_id, app_port, None).await
    }

    pub async fn workload_with(
        &self,
        agent: &Agent,
        app_id: &str,
        app_port: u16,
        token: Option<&str>,
    ) -> Workload {
        let none = AppSettings::default();
        self.workload_that(agent, app_id, app_port, token, none).await
    }

    pub async fn workload_that(
        &self,
        agent: &Agent,
        app_id: &str,
        app_port: u16,
        token: Option<&str>,
        settings: AppSettings,
    ) -> Workload {
        let tunnel = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let number = self.registry.workloads.lock().len() as u32;
        let id: Arc<str> = format!("{}/default/{app_id}-{number}/1", agent.node).into();
        let party = Arc::new(Party {
            namespace: "default".into(),
            workload: format!("{app_id}-{number}").into(),
            app_id: app_id.into(),
            identity: NumericIdentity(300 + number),
            spiffe_id: spiffe(app_id).into(),
            address: Some([10, 0, 0, number as u8].into()),
            node: agent.node.as_str().into(),
        });
        let known = Known {
            id: id.clone(),
            party: party.clone(),
            app_port,
            tunnel: tunnel.local_addr().unwrap(),
        };
        self.registry.workloads.lock().push(known);
        let svid = self.ca.cell(app_id, &agent.node);
        let handler = agent.runtime.tunnel_handler(agent.drain.clone());
        let local = Local::One(svid.clone());
        tokio::spawn(serve(
            tunnel,
            local,
            agent.trust.clone(),
            Limits::default(),
            handler,
            agent.drain.clone(),
        ));
        let health = Arc::new(AppHealth::default());
        health.set_app(true);
        health.set_outbound(true);
        let local = Place::Local { app_port };
        let endpoint = Endpoint::new(id.clone(), party.clone(), local);
        let spec = AppSpec {
            workload: id.clone(),
            party,
            proof: if token.is_some() {
                Proof::PortToken
            } else {
                Proof::PodListener
            },
            token: token.map(Token::new),
            svid: Some(svid),
            channel: AppChannel {
                port: app_port,
                protocol: "http".into(),
            },
            health: health.clone(),
        };
        let context = AppContext::with_settings(spec, settings);
        let grpc_context = context.clone();
        agent.runtime.blocks().app_here(&context).await;
        agent.runtime.blocks().app_ready(&context, &endpoint);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = listener.local_addr().unwrap();
        let (runtime, drain) = (agent.runtime.clone(), agent.drain.clone());
        tokio::spawn(
            runtime
                .clone()
                .serve_listener(context.clone(), listener, drain.clone()),
        );
        {
            let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let grpc_api = grpc.local_addr().unwrap();
            let (runtime, drain) = (agent.runtime.clone(), agent.drain.clone());
            tokio::spawn(async move {
                while let Ok((socket, _)) = grpc.accept().await {
                    let (runtime, context, drain) = (runtime.clone(), grpc_context.clone(), drain.clone());
                    tokio::spawn(async move { runtime.serve_grpc(&context, socket, drain).await });
                }
            });
            Workload {
                id,
                api,
                grpc: grpc_api,
                health,
            }
        }
    }
}

impl Agent {
    pub fn flows(&self) -> Vec<Flow> {
        self.flows.past().into_iter().map(|r| r.flow).collect()
    }

    pub fn deny(&self, direction: Direction, from: &str, to: &str, rule: &str) {
        self.rules
            .denied
            .lock()
            .push((direction, from.into(), to.into(), rule.into()));
    }
}

pub struct Workload {
    pub id: Arc<str>,
    pub api: SocketAddr,
    pub grpc: SocketAddr,
    pub health: Arc<AppHealth>,
}

/// What came back: status, head as text, body.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body: String = String::from_utf8_lossy(&self.body).chars().take(500).collect();
        write!(f, "{}: {:?}", self.head, body)
    }
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// A header of the answer.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The error code of Dapr's error form.
    pub fn code(&self) -> String {
        self.json()["errorCode"].as_str().unwrap().to_owned()
    }

    /// A line of what [`echo`] says.
    pub fn line(&self, name: &str) -> Option<String> {
        let start = format!("{name}: ");
        let mut found = self
            .text()
            .lines()
            .filter_map(|l| l.strip_prefix(&start).map(str::to_owned));
        let first = found.next();
        assert!(found.next().is_none(), "{name} is there twice");
        first
    }
}

/// Sends exactly these bytes and reads until the other side closes.
pub async fn exchange(to: SocketAddr, bytes: &[u8]) -> Option<Answer> {
    let mut socket = TcpStream::connect(to).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut all = Vec::new();
    timeout(SOON, socket.read_to_end(&mut all))
        .await
        .expect("no end")
        .ok()?;
    let end = all.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8(all[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut body = all[end + 4..].to_vec();
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        body = dechunk(&body);
    }
    Some(Answer { status, head, body })
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let len = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if len == 0 {
            break;
        }
        out.extend_from_slice(&rest[end + 2..end + 2 + len]);
        rest = &rest[end + 2 + len + 2..];
    }
    out
}

/// `GET`, on a connection of its own.
pub async fn get(to: SocketAddr, target: &str, headers: &str) -> Answer {
    let bytes =
        format!("GET {target} HTTP/1.1\r\nhost: localhost:3500\r\nconnection: close\r\n{headers}\r\n");
    exchange(to, bytes.as_bytes()).await.unwrap()
}

/// A request with a body, on a connection of its own.
pub async fn send(to: SocketAddr, method: &str, target: &str, headers: &str, body: &str) -> Answer {
    let bytes = format!(
        "{method} {target} HTTP/1.1\r\nhost: localhost:3500\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    exchange(to, bytes.as_bytes()).await.unwrap()
}

/// An app that says what it got, one line each: method and target, headers, length of the body.
/// Counts its requests.
pub async fn echo() -> (u16, Arc<AtomicUsize>) {
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    let port = app(move |request| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(|b| b.to_bytes().len());
            let mut text = format!("request: {} {}\n", head.method, head.uri);
            for (name, value) in &head.headers {
                text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
            }
            text += &format!("body: {body:?}\n");
            Response::new(Full::from(text))
        }
    })
    .await;
    (port, served)
}

/// Any app, on a port of its own.
pub async fn app<F, R>(handle: F) -> u16
where
    F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Full<bytes::Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let handle = Arc::new(handle);
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let handle = handle.clone();
            let service = service_fn(move |request| handle(request).map(Ok::<_, io::Error>));
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service),
            );
        }
    });
    port
}
