//! Both ends of tunnels in one process, over real sockets and with real certificates.

#![allow(clippy::unwrap_used, dead_code)]

#[path = "../support/mod.rs"]
pub mod support;

use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, StatusCode};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use support::{Ca, spiffe};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use weft_tls::{Clock, Trust};
use weft_tunnel::{
    Client, Destination, Dialer, Handler, Incoming, Limits, Local, OpenError, Source, TunnelStream, serve,
};

pub const SOON: Duration = Duration::from_secs(10);

pub fn quick() -> Limits {
    Limits {
        tick: Duration::from_millis(20),
        ping_interval: Duration::from_secs(1),
        ping_timeout: Duration::from_millis(300),
        handshake_timeout: Duration::from_secs(5),
        ..Limits::default()
    }
}

/// Hands accepted streams to the test, or refuses what asks for `refused.default:50002`, and by a
/// rule of so many letters what asks for `denied-<n>.default:50002`.
pub struct ToTest(mpsc::Sender<(Seen, TunnelStream)>);

pub struct Seen {
    pub peer: String,
    pub node: Option<String>,
    pub local: String,
    pub authority: String,
    pub trace: Option<String>,
}

impl Handler for ToTest {
    async fn handle(self: Arc<Self>, incoming: Incoming) {
        let seen = Seen {
            peer: incoming.peer.id.to_string(),
            node: incoming.peer.node.clone(),
            local: incoming.local.to_string(),
            authority: incoming.authority.to_string(),
            trace: incoming
                .headers
                .get("traceparent")
                .map(|v| v.to_str().unwrap().to_owned()),
        };
        if seen.authority.starts_with("refused.") {
            return incoming.refuse(StatusCode::FORBIDDEN);
        }
        if let Some(many) = seen.authority.strip_prefix("denied-") {
            let many = many.split('.').next().unwrap().parse().unwrap();
            return incoming.deny(Some(&"r".repeat(many)));
        }
        let stream = incoming.accept().unwrap();
        self.0.send((seen, stream)).await.ok();
        // The handler is the stream's task; the test has the stream, so wait for the tunnel's end.
        std::future::pending::<()>().await;
    }
}

#[derive(Default)]
pub struct Direct(AtomicUsize);

impl Dialer for Direct {
    fn dial(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        TcpStream::connect(to).boxed()
    }
}

pub struct Rig {
    pub ca: Ca,
    pub trust: Trust,
    pub server_trust: Trust,
    pub client: Client,
    pub dials: Arc<Direct>,
    pub source: Source,
    pub destination: Destination,
    pub accepted: mpsc::Receiver<(Seen, TunnelStream)>,
    pub trigger: weft_drain::Trigger,
    pub server: tokio::task::JoinHandle<()>,
}

pub async fn rig(limits: Limits) -> Rig {
    rig_with(limits, weft_tls::SystemClock::shared(), None).await
}

pub async fn rig_with(limits: Limits, clock: Clock, local: Option<Local>) -> Rig {
    let ca = Ca::new();
    let (trust, server_trust) = (ca.trust_with(clock.clone()), ca.trust_with(clock));
    let local = local.unwrap_or_else(|| Local::One(ca.cell("cart", "n2")));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (to_test, accepted) = mpsc::channel(256);
    let (trigger, drain) = weft_drain::channel();
    let handler = Arc::new(ToTest(to_test));
    let serving = serve(
        listener,
        local,
        server_trust.clone(),
        limits.clone(),
        handler,
        drain,
    );
    let server = tokio::spawn(async move { serving.await.unwrap() });
    let dials = Arc::new(Direct::default());
    Rig {
        client: Client::new(trust.clone(), dials.clone(), limits),
        source: Source {
            workload: "n1/default/shop/1".into(),
            svid: ca.cell("shop", "n1"),
        },
        destination: Destination {
            address,
            id: spiffe("cart").parse().unwrap(),
            node: "n2".into(),
        },
        ca,
        trust,
        server_trust,
        dials,
        accepted,
        trigger,
        server,
    }
}

impl Rig {
    pub async fn open(&mut self) -> (TunnelStream, Seen, TunnelStream) {
        let stream = self.try_open().await.unwrap();
        let (seen, other) = timeout(SOON, self.accepted.recv()).await.unwrap().unwrap();
        (stream, seen, other)
    }

    pub async fn try_open(&self) -> Result<TunnelStream, OpenError> {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", "00-x".parse().unwrap());
        let opening = self
            .client
            .open(&self.source, &self.destination, "cart.default:50002", headers);
        timeout(SOON, opening).await.unwrap()
    }

    pub fn dials(&self) -> usize {
        self.dials.0.load(Ordering::SeqCst)
    }
}

pub async fn ends(mut stream: TunnelStream) {
    let mut sink = Vec::new();
    timeout(SOON, stream.read_to_end(&mut sink))
        .await
        .expect("the stream goes on")
        .ok();
}
