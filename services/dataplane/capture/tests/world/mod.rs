//! Nodes in one process, with apps behind them: real sockets and tunnels, a mesh that is as the
//! test says, and origins as the kernel would have recorded them.

#![allow(clippy::unwrap_used, dead_code, missing_docs)]

#[path = "../../../tunnel/tests/support/mod.rs"]
pub mod certs;

use certs::{Ca, spiffe};
use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use weft_capture::{Asked, Capture, CaptureLimits, Found, Mesh, Streams};
use weft_drain::{Trigger, Watcher};
use weft_flows::{Direction, DropReason, Flow, FlowLog, Kind, Party, Proof};
use weft_model::NumericIdentity;
use weft_proxy::{Backends, Member, Mesh as _, Proxy, ProxyLimits, Speaks};
use weft_route::spec::BackendRef;
use weft_runtime::{
    AppChannel, AppContext, AppSpec, Decision, Directory, Endpoint, Judge, Place, Question, RequestLine,
    Target, Tunnels,
};
use weft_tls::{PeerIdentity, SvidCell, Trust};
use weft_tunnel::{Client, Dialer, Handler, Incoming, Limits, Local, serve};

pub const SOON: Duration = Duration::from_secs(20);

/// A workload, the same for all nodes.
#[derive(Clone)]
pub struct Known {
    pub id: Arc<str>,
    pub party: Arc<Party>,
    /// Where its apps listen.
    pub addresses: Vec<SocketAddr>,
    pub tunnel: SocketAddr,
    pub svid: SvidCell,
    pub gone: CancellationToken,
}

/// Who is there and who may not, the same for all nodes.
pub struct Registry {
    pub workloads: Mutex<Vec<Known>>,
    /// A service's address and its backends.
    pub services: Mutex<HashMap<SocketAddr, Vec<SocketAddr>>>,
    /// Direction, app-id of the source, and of the destination (an address outside).
    pub denied: Mutex<HashSet<(Direction, String, String)>>,
    /// Of whom rules at L7 speak: only requests for paths that begin with `/public` may pass.
    pub ruled: Mutex<HashSet<(Direction, String, String)>>,
    /// As whom gateways call.
    pub ingress: Mutex<Option<Arc<str>>>,
    /// Addresses of services that have a name.
    pub names: Mutex<HashMap<String, SocketAddr>>,
    pub changed: watch::Sender<u64>,
}

/// One node's view of it.
#[derive(Clone)]
pub struct View {
    node: Arc<str>,
    registry: Arc<Registry>,
}

impl View {
    fn known(&self, which: impl Fn(&Known) -> bool) -> Option<Known> {
        self.registry.workloads.lock().iter().find(|k| which(k)).cloned()
    }

    fn make(&self, known: &Known) -> Arc<Endpoint> {
        let place = if *known.party.node == *self.node {
            Place::Local { app_port: 0 }
        } else {
            Place::Remote { tunnel: known.tunnel }
        };
        Endpoint::new(known.id.clone(), known.party.clone(), place)
    }
}

impl Directory for View {
    fn resolve(&self, _: &str, _: &str, _: &str) -> Option<Arc<Target>> {
        None
    }
    fn local(&self, workload: &str) -> Option<Arc<Endpoint>> {
        let known = self.known(|k| *k.id == *workload && *k.party.node == *self.node)?;
        Some(self.make(&known))
    }
    fn tunnel_peer(&self, peer: &PeerIdentity, _: Option<&str>) -> Option<Arc<Party>> {
        let node = peer.node.as_deref()?;
        let known = self.known(|k| *k.party.spiffe_id == *peer.id.as_str() && *k.party.node == *node);
        known.map(|k| k.party)
    }
}

impl Judge for View {
    fn judge(&self, question: &Question<'_>) -> Decision {
        let name = |party: &Party| {
            if party.app_id.is_empty() {
                party.address.unwrap().to_string()
            } else {
                party.app_id.to_string()
            }
        };
        let asked = (
            question.direction,
            name(question.source),
            name(question.destination),
        );
        if self.registry.denied.lock().contains(&asked) {
            return Decision::refuse(DropReason::PolicyDenied, Some("denied by the test".into()));
        }
        if self.registry.ruled.lock().contains(&asked) {
            return Decision::by_request(Some("by request".into()));
        }
        Decision::allow(Some(if question.authenticated {
            "allowed, authenticated".into()
        } else {
            "allowed".into()
        }))
    }

    fn judge_request(&self, _: &Question<'_>, request: &RequestLine<'_>) -> Decision {
        match request.path.starts_with("/public") {
            true => Decision::allow(Some("public".into())),
            false => Decision::refuse(DropReason::PolicyDenied, Some("not public".into())),
        }
    }
}

impl weft_proxy::Mesh for View {
    fn changes(&self) -> watch::Receiver<u64> {
        self.registry.changed.subscribe()
    }
    fn backends(&self, service: &BackendRef, _: bool) -> Option<Arc<Backends>> {
        let at = *self.registry.names.lock().get(&*service.name)?;
        let addresses = self.registry.services.lock().get(&at).cloned()?;
        let member = |address: &SocketAddr| {
            let known = self.known(|k| k.addresses.contains(address))?;
            Some(Member {
                endpoint: self.make(&known),
                address: *address,
            })
        };
        Some(Backends::new(
            addresses.iter().filter_map(member).collect(),
            Speaks::AsAsked,
        ))
    }
    fn caller(&self, workload: &str) -> Option<Arc<AppContext>> {
        let known = self.known(|k| *k.id == *workload)?;
        Some(AppContext::new(AppSpec {
            workload: known.id.clone(),
            party: known.party.clone(),
            proof: Proof::PodListener,
            token: None,
            svid: Some(known.svid.clone()),
            channel: AppChannel::default(),
            health: Arc::default(),
        }))
    }
    fn endpoint(&self, workload: &str) -> Option<Arc<Endpoint>> {
        let known = self.known(|k| *k.id == *workload)?;
        Some(self.make(&known))
    }
    fn connect(&self, _: &str, to: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> {
        TcpStream::connect(to).boxed()
    }
}

impl Mesh for View {
    fn ingress(&self) -> Option<Arc<AppContext>> {
        let id = self.registry.ingress.lock().clone()?;
        weft_proxy::Mesh::caller(self, &id)
    }
    fn service(&self, at: SocketAddr) -> Option<BackendRef> {
        let names = self.registry.names.lock();
        let (name, at) = names.iter().find(|(_, address)| **address == at)?;
        Some(BackendRef {
            namespace: "default".into(),
            name: name.as_str().into(),
            port: at.port(),
        })
    }
    fn find(&self, _: &str, to: SocketAddr) -> Found {
        let backends = self.registry.services.lock().get(&to).cloned();
        let to = match backends {
            Some(backends) => match backends.first() {
                Some(backend) => *backend,
                None => return Found::Nobody,
            },
            None => to,
        };
        match self.known(|k| k.addresses.contains(&to)) {
            Some(known) => Found::Workload {
                endpoint: self.make(&known),
                address: to,
            },
            None => Found::Other(outside(to.ip())),
        }
    }
    fn answers_at(&self, workload: &str, address: SocketAddr) -> bool {
        self.known(|k| *k.id == *workload && k.addresses.contains(&address))
            .is_some()
    }
}

fn outside(address: IpAddr) -> Arc<Party> {
    Arc::new(Party {
        namespace: "".into(),
        workload: "".into(),
        app_id: "".into(),
        identity: NumericIdentity::WORLD,
        spiffe_id: "".into(),
        address: Some(address),
        node: "".into(),
    })
}

#[derive(Default)]
pub struct Dials(AtomicUsize);

impl Dialer for Dials {
    fn dial(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        TcpStream::connect(to).boxed()
    }
}

/// Calls of apps, of which there are none here.
struct NoCalls;

impl Handler for NoCalls {
    async fn handle(self: Arc<Self>, incoming: Incoming) {
        incoming.refuse(http::StatusCode::IM_A_TEAPOT);
    }
}

pub struct World {
    pub ca: Arc<Ca>,
    pub registry: Arc<Registry>,
}

/// A node: its capture listeners, its tunnels, its flows.
pub struct Node {
    pub name: Arc<str>,
    pub view: View,
    pub capture: Arc<Capture>,
    pub proxy: Arc<Proxy>,
    pub tunnels: Client,
    pub trust: Trust,
    pub flows: FlowLog,
    pub dials: Arc<Dials>,
    pub trigger: Option<Trigger>,
    drain: Watcher,
    limits: Limits,
}

impl World {
    pub fn new() -> Self {
        Self {
            ca: Arc::new(Ca::new()),
            registry: Arc::new(Registry {
                workloads: Mutex::default(),
                services: Mutex::default(),
                denied: Mutex::default(),
                ruled: Mutex::default(),
                names: Mutex::default(),
                ingress: Mutex::default(),
                changed: watch::Sender::new(0),
            }),
        }
    }

    pub fn node(&self, name: &str) -> Node {
        self.node_with(name, Limits::default(), CaptureLimits::default())
    }

    pub fn node_with(&self, name: &str, tunnel: Limits, limits: CaptureLimits) -> Node {
        let tunnel = Limits {
            tick: Duration::from_millis(20),
            ..tunnel
        };
        let view = View {
            node: name.into(),
            registry: self.registry.clone(),
        };
        let trust = self.ca.trust_with(weft_tls::SystemClock::shared());
        let dials = Arc::new(Dials::default());
        let tunnels = Client::new(trust.clone(), dials.clone(), tunnel.clone());
        let flows = FlowLog::new(name);
        let proxy = Proxy::new(
            Arc::new(view.clone()),
            Arc::default(),
            Tunnels::new(tunnels.clone()),
            flows.clone(),
            ProxyLimits::default(),
        );
        let capture = Capture::new(
            Arc::new(view.clone()),
            proxy.clone(),
            tunnels.clone(),
            flows.clone(),
            limits,
        );
        let (trigger, drain) = weft_drain::channel();
        tokio::spawn(
            capture
                .clone()
                .maintain(self.registry.changed.subscribe(), drain.clone()),
        );
        Node {
            name: name.into(),
            view,
            capture,
            proxy,
            tunnels,
            trust,
            flows,
            dials,
            trigger: Some(trigger),
            drain,
            limits: tunnel,
        }
    }

    /// A workload on `node` whose apps listen on these addresses.
    pub async fn workload(&self, node: &Node, app: &str, addresses: &[SocketAddr]) -> Known {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tunnel = listener.local_addr().unwrap();
        let svid = self.ca.cell(app, &node.name);
        let known = Known {
            id: format!("{}/default/{app}/1", node.name).into(),
            party: Arc::new(Party {
                namespace: "default".into(),
                workload: app.into(),
                app_id: app.into(),
                identity: NumericIdentity(300),
                spiffe_id: spiffe(app).into(),
                address: addresses.first().map(|a| a.ip()),
                node: node.name.clone(),
            }),
            addresses: addresses.to_vec(),
            tunnel,
            svid: svid.clone(),
            gone: CancellationToken::new(),
        };
        self.registry.workloads.lock().push(known.clone());
        let handler = Streams::new(node.capture.clone(), Arc::new(NoCalls), node.drain.clone());
        tokio::spawn(serve(
            listener,
            Local::One(svid),
            node.trust.clone(),
            node.limits.clone(),
            handler,
            node.drain.clone(),
        ));
        known
    }

    pub fn remove(&self, known: &Known) {
        self.registry.workloads.lock().retain(|k| k.id != known.id);
        known.gone.cancel();
        self.change();
    }

    pub fn deny(&self, direction: Direction, from: &str, to: &str) {
        self.registry
            .denied
            .lock()
            .insert((direction, from.into(), to.into()));
        self.change();
    }

    /// Rules at L7 speak of it from now on.
    pub fn rule(&self, direction: Direction, from: &str, to: &str) {
        self.registry
            .ruled
            .lock()
            .insert((direction, from.into(), to.into()));
        self.change();
    }

    /// A service with a name, at an address, with these backends.
    pub fn service(&self, name: &str, at: SocketAddr, backends: &[SocketAddr]) {
        self.registry.names.lock().insert(name.into(), at);
        self.registry.services.lock().insert(at, backends.to_vec());
        self.change();
    }

    pub fn change(&self) {
        self.registry.changed.send_modify(|n| *n += 1);
    }
}

impl Node {
    /// A capture listener behind which everybody is `caller` and wants to go to `to`.
    pub async fn listen(&self, caller: &Known, to: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (capture, drain, gone) = (self.capture.clone(), self.drain.clone(), caller.gone.clone());
        let context = self.view.caller(&caller.id).unwrap();
        let asked = Asked {
            destination: to,
            target: None,
        };
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (capture, drain, gone, context) =
                    (capture.clone(), drain.clone(), gone.clone(), context.clone());
                tokio::spawn(async move { capture.captured(context, stream, asked, gone, drain).await });
            }
        });
        address
    }

    /// Connects as `caller` to what it wrote, by the capture listener.
    pub async fn connect(&self, caller: &Known, to: SocketAddr) -> TcpStream {
        self.connect_by(TcpSocket::new_v4().unwrap(), caller, to, None)
            .await
    }

    /// The same with a socket of one's own, and what the kernel chose.
    pub async fn connect_by(
        &self,
        socket: TcpSocket,
        caller: &Known,
        to: SocketAddr,
        target: Option<SocketAddr>,
    ) -> TcpStream {
        let listen = TcpSocket::new_v4().unwrap();
        listen.set_recv_buffer_size(64 * 1024).unwrap();
        listen.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = listen.listen(1).unwrap();
        let connecting = socket.connect(listener.local_addr().unwrap());
        let (connected, accepted) = tokio::join!(connecting, listener.accept());
        let asked = Asked {
            destination: to,
            target,
        };
        let (capture, drain, gone) = (self.capture.clone(), self.drain.clone(), caller.gone.clone());
        let context = self.view.caller(&caller.id).unwrap();
        let stream = accepted.unwrap().0;
        tokio::spawn(async move { capture.captured(context, stream, asked, gone, drain).await });
        connected.unwrap()
    }

    pub fn dials(&self) -> usize {
        self.dials.0.load(Ordering::SeqCst)
    }

    pub fn flows(&self) -> Vec<Flow> {
        let past = self.flows.past();
        past.iter().map(|r| r.flow.clone()).collect()
    }

    /// Waits for a flow of a kind and direction.
    pub async fn flow(&self, kind: Kind, direction: Direction) -> Flow {
        until("a flow", || {
            let found = self.flows().into_iter();
            found.rev().find(|f| f.kind == kind && f.direction == direction)
        })
        .await
    }
}

/// Waits until there is something.
pub async fn until<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            match get() {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    };
    timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("{what}"))
}

/// An app that hands its connections to the test.
pub async fn app(address: &str) -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind(address).await.unwrap();
    (listener.local_addr().unwrap(), listener)
}

/// An app that answers with what it is sent, then ends.
pub async fn echo(address: &str) -> SocketAddr {
    let (address, listener) = app(address).await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
                write.shutdown().await.ok();
            });
        }
    });
    address
}

/// The next connection of an app.
pub async fn accept(listener: &TcpListener) -> TcpStream {
    timeout(SOON, listener.accept()).await.unwrap().unwrap().0
}

/// All that comes until the end, or how it broke off.
pub async fn all(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    timeout(SOON, stream.read_to_end(&mut all))
        .await
        .expect("it goes on")?;
    Ok(all)
}

/// Sends and receives one byte each way.
pub async fn ping(one: &mut TcpStream, other: &mut TcpStream) {
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to): (&mut TcpStream, &mut TcpStream) = match (from, to) {
            (0, _) => (&mut *one, &mut *other),
            _ => (&mut *other, &mut *one),
        };
        from.write_all(b"x").await.unwrap();
        assert_eq!(timeout(SOON, to.read_u8()).await.unwrap().unwrap(), b'x');
    }
}
