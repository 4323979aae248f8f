//! Two ends of tunnels in one process, over real sockets and with real certificates.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, Method, Request, StatusCode};
use proptest::{prelude::*, strategy::ValueTree};
use rustls::pki_types::ServerName;
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use support::{Ca, spiffe};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use weft_tls::{Clock, Expect, ManualClock, SvidCell, Trust, client_config};
use weft_tunnel::{
    Client, Destination, Dialer, Handler, Incoming, Limits, Local, OpenError, SharedIdentities, Source,
    TunnelStream, serve, sni_of,
};

const SOON: Duration = Duration::from_secs(10);

fn quick() -> Limits {
    Limits {
        tick: Duration::from_millis(20),
        ping_interval: Duration::from_secs(1),
        ping_timeout: Duration::from_millis(300),
        handshake_timeout: Duration::from_secs(5),
        ..Limits::default()
    }
}

/// Hands accepted streams to the test, or refuses what asks for `refused.default:50002`.
struct ToTest(mpsc::Sender<(Incoming2, TunnelStream)>);

struct Incoming2 {
    peer: String,
    node: String,
    local: String,
    authority: String,
    trace: Option<String>,
}

impl Handler for ToTest {
    async fn handle(self: Arc<Self>, incoming: Incoming) {
        let seen = Incoming2 {
            peer: incoming.peer.id.to_string(),
            node: incoming.peer.node.clone().unwrap(),
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
        let stream = incoming.accept().unwrap();
        self.0.send((seen, stream)).await.ok();
        // The handler is the stream's task; the test has the stream, so wait for the tunnel's end.
        std::future::pending::<()>().await;
    }
}

#[derive(Default)]
struct Direct(AtomicUsize);

impl Dialer for Direct {
    fn dial(&self, _: &str, to: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        TcpStream::connect(to).boxed()
    }
}

struct Rig {
    ca: Ca,
    trust: Trust,
    server_trust: Trust,
    client: Client,
    dials: Arc<Direct>,
    source: Source,
    destination: Destination,
    accepted: mpsc::Receiver<(Incoming2, TunnelStream)>,
    trigger: weft_drain::Trigger,
    server: tokio::task::JoinHandle<()>,
}

async fn rig(limits: Limits) -> Rig {
    rig_with(limits, weft_tls::SystemClock::shared(), None).await
}

async fn rig_with(limits: Limits, clock: Clock, local: Option<Local>) -> Rig {
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
    async fn open(&mut self) -> (TunnelStream, Incoming2, TunnelStream) {
        let stream = self.try_open().await.unwrap();
        let (seen, other) = timeout(SOON, self.accepted.recv()).await.unwrap().unwrap();
        (stream, seen, other)
    }

    async fn try_open(&self) -> Result<TunnelStream, OpenError> {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", "00-x".parse().unwrap());
        let opening = self
            .client
            .open(&self.source, &self.destination, "cart.default:50002", headers);
        timeout(SOON, opening).await.unwrap()
    }

    fn dials(&self) -> usize {
        self.dials.0.load(Ordering::SeqCst)
    }
}

async fn ends(mut stream: TunnelStream) {
    let mut sink = Vec::new();
    timeout(SOON, stream.read_to_end(&mut sink))
        .await
        .expect("the stream goes on")
        .ok();
}

#[tokio::test]
async fn both_ends_know_each_other_and_each_direction_ends_by_itself() {
    let mut rig = rig(quick()).await;
    let (mut here, seen, mut there) = rig.open().await;
    assert_eq!((seen.peer, seen.node.as_str()), (spiffe("shop"), "n1"));
    assert_eq!(
        (seen.local, seen.authority.as_str()),
        (spiffe("cart"), "cart.default:50002")
    );
    assert_eq!(seen.trace.as_deref(), Some("00-x"));

    here.write_all(b"question").await.unwrap();
    here.shutdown().await.unwrap();
    let mut question = Vec::new();
    there.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    // The other direction is still open.
    there.write_all(b"answer").await.unwrap();
    let mut answer = [0; 6];
    here.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"answer");
    there.shutdown().await.unwrap();
    assert_eq!(here.read(&mut answer).await.unwrap(), 0);
    assert!(here.write_all(b"more").await.is_err());
}

#[tokio::test]
async fn large_transfers_arrive_whole_in_both_directions() {
    let mut rig = rig(quick()).await;
    let (here, _, there) = rig.open().await;
    let data: Vec<u8> = (0..20_000_000u32).map(|n| (n ^ (n >> 8)) as u8).collect();
    let send = |mut half: tokio::io::WriteHalf<TunnelStream>, data: Vec<u8>| async move {
        half.write_all(&data).await.unwrap();
        half.shutdown().await.unwrap();
    };
    let receive = |mut half: tokio::io::ReadHalf<TunnelStream>| async move {
        let mut all = Vec::new();
        half.read_to_end(&mut all).await.unwrap();
        all
    };
    let ((here_r, here_w), (there_r, there_w)) = (tokio::io::split(here), tokio::io::split(there));
    let (_, _, a, b) = tokio::join!(
        tokio::spawn(send(here_w, data.clone())),
        tokio::spawn(send(there_w, data.clone())),
        tokio::spawn(receive(here_r)),
        tokio::spawn(receive(there_r))
    );
    assert!(a.unwrap() == data && b.unwrap() == data);
}

#[tokio::test]
async fn streams_share_a_connection_until_it_is_full() {
    let mut rig = rig(Limits {
        streams_per_connection: 3,
        ..quick()
    })
    .await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(rig.open().await);
    }
    assert_eq!(rig.dials(), 1);
    open.push(rig.open().await);
    assert_eq!(rig.dials(), 2);
    // Room on the first again.
    open.truncate(2);
    open.push(rig.open().await);
    assert_eq!(rig.dials(), 2);
}

#[tokio::test]
async fn many_first_callers_make_one_connection() {
    let rig = rig(quick()).await;
    let opened = futures::future::join_all((0..20).map(|_| rig.try_open())).await;
    assert!(opened.iter().all(Result::is_ok));
    assert_eq!(rig.dials(), 1);
}

#[tokio::test]
async fn another_source_or_certificate_never_shares_a_connection() {
    let mut rig = rig(quick()).await;
    let _first = rig.open().await;
    rig.source.workload = "n1/default/shop/2".into();
    let _second = rig.open().await;
    assert_eq!(rig.dials(), 2);
    rig.source.svid.set(rig.ca.svid(&spiffe("shop"), Some("n1")));
    let _third = rig.open().await;
    assert_eq!(rig.dials(), 3);
}

#[tokio::test]
async fn the_wrong_identity_and_the_wrong_node_are_refused() {
    let mut rig = rig(quick()).await;
    assert!(rig.try_open().await.is_ok());
    rig.destination.node = "n3".into();
    assert!(matches!(rig.try_open().await, Err(OpenError::WrongNode { .. })));
    rig.destination.node = "n2".into();
    rig.destination.id = spiffe("other").parse().unwrap();
    let refused = rig.try_open().await.unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("expected spiffe://cluster.local/ns/default/other"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_workloads_own_certificate_opens_no_tunnel() {
    let mut rig = rig(quick()).await;
    rig.source.svid.set(rig.ca.svid(&spiffe("shop"), None));
    assert!(rig.try_open().await.is_err());
    // The twin: the same with the node in it.
    rig.source.svid.set(rig.ca.svid(&spiffe("shop"), Some("n1")));
    assert!(rig.try_open().await.is_ok());
    // One of another root.
    rig.source.svid.set(Ca::new().svid(&spiffe("shop"), Some("n1")));
    assert!(rig.try_open().await.is_err());
    rig.source.svid = SvidCell::new();
    assert!(matches!(rig.try_open().await, Err(OpenError::NoCertificate(_))));
}

#[tokio::test]
async fn a_refused_stream_leaves_its_connection_alone() {
    let mut rig = rig(quick()).await;
    let (mut here, _, mut there) = rig.open().await;
    let refused = rig.client.open(
        &rig.source,
        &rig.destination,
        "refused.default:50002",
        HeaderMap::new(),
    );
    assert!(matches!(
        refused.await,
        Err(OpenError::Refused(_, StatusCode::FORBIDDEN))
    ));
    here.write_all(b"x").await.unwrap();
    assert_eq!(there.read_u8().await.unwrap(), b'x');
    assert_eq!(rig.dials(), 1);
}

#[tokio::test]
async fn sni_chooses_among_identities_of_one_address() {
    let ca = Ca::new();
    let shared = SharedIdentities::new();
    for app in ["cart", "pay"] {
        shared.insert(&spiffe(app).parse().unwrap(), ca.cell(app, "n2"));
    }
    let mut rig = rig_with(
        quick(),
        weft_tls::SystemClock::shared(),
        Some(Local::Shared(shared.clone())),
    )
    .await;
    ca.publish(&rig.trust, 2);
    ca.publish(&rig.server_trust, 2);
    rig.source.svid = ca.cell("shop", "n1");
    for app in ["cart", "pay"] {
        rig.destination.id = spiffe(app).parse().unwrap();
        let (_here, seen, _there) = rig.open().await;
        assert_eq!(seen.local, spiffe(app));
    }
    rig.destination.id = spiffe("nobody").parse().unwrap();
    assert!(rig.try_open().await.is_err());
    shared.remove(&spiffe("pay").parse().unwrap());
    rig.destination.id = spiffe("pay").parse().unwrap();
    rig.source.workload = "n1/default/shop/2".into();
    assert!(rig.try_open().await.is_err());
}

/// Writes until nothing more is taken for a while; says how much was.
async fn fill(stream: &mut TunnelStream) -> usize {
    let block = vec![7; 64 * 1024];
    let mut taken = 0;
    while let Ok(n) = timeout(Duration::from_millis(300), stream.write(&block)).await {
        taken += n.unwrap();
        assert!(
            taken < 64 << 20,
            "no back-pressure: {taken} bytes were taken for a reader that does not read"
        );
    }
    taken
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_its_writer_and_nobody_else() {
    let limits = quick();
    let bound = limits.stream_window as usize + limits.send_buffer + (1 << 20);
    let mut rig = rig(limits).await;
    let (mut stuck, _, mut stuck_there) = rig.open().await;
    let (mut other, _, mut other_there) = rig.open().await;
    assert_eq!(rig.dials(), 1);
    let taken = fill(&mut stuck).await;
    assert!(taken <= bound, "{taken} bytes were taken, the bound is {bound}");
    // Towards the opening side as well.
    let taken_back = fill(&mut stuck_there).await;
    assert!(
        taken_back <= bound,
        "{taken_back} bytes were taken, the bound is {bound}"
    );
    other.write_all(b"free").await.unwrap();
    let mut got = [0; 4];
    timeout(SOON, other_there.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
    // What was held back arrives once it is read.
    stuck.shutdown().await.unwrap();
    let mut all = Vec::new();
    timeout(SOON, stuck_there.read_to_end(&mut all))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(all.len(), taken);
}

/// A TCP relay that can stop passing anything on, as a network that lost its way does.
async fn relay(to: SocketAddr) -> (SocketAddr, watch::Sender<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Connections with a number below this one are frozen.
    let (freeze, frozen) = watch::channel(0);
    tokio::spawn(async move {
        for number in 0.. {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(to).await.unwrap();
            let mut frozen = frozen.clone();
            tokio::spawn(async move {
                let (near, far) = (near.into_split(), far.into_split());
                let (mut a, mut b) = (near, far);
                tokio::select! {
                    _ = tokio::io::copy(&mut a.0, &mut b.1) => {}
                    _ = tokio::io::copy(&mut b.0, &mut a.1) => {}
                    () = async { drop(frozen.wait_for(|below| *below > number).await) } => {
                        // Nothing passes, nothing is closed.
                        std::future::pending::<()>().await;
                    }
                }
            });
        }
    });
    (address, freeze)
}

#[tokio::test]
async fn a_dead_tunnel_is_noticed_before_it_is_used_again() {
    let mut rig = rig(Limits {
        fresh: Duration::ZERO,
        ..quick()
    })
    .await;
    let (address, freeze) = relay(rig.destination.address).await;
    rig.destination.address = address;
    let (mut old, _, mut old_there) = rig.open().await;
    old.write_all(b"x").await.unwrap();
    assert_eq!(old_there.read_u8().await.unwrap(), b'x');
    // Alive: it is used again.
    drop(rig.open().await);
    assert_eq!(rig.dials(), 1);

    freeze.send_replace(1);
    let (mut new, _, mut new_there) = rig.open().await;
    assert_eq!(rig.dials(), 2);
    new.write_all(b"y").await.unwrap();
    assert_eq!(new_there.read_u8().await.unwrap(), b'y');
    // What was on the dead one ends with an error instead of waiting for ever.
    assert!(timeout(SOON, old.read_u8()).await.unwrap().is_err());
}

#[tokio::test]
async fn a_dead_peer_ends_the_streams_of_both_sides_without_anyone_asking() {
    let mut rig = rig(quick()).await;
    let (address, freeze) = relay(rig.destination.address).await;
    rig.destination.address = address;
    let (here, _, there) = rig.open().await;
    freeze.send_replace(1);
    tokio::join!(ends(here), ends(there));
    assert_eq!(rig.client.connections(), 0);
}

#[tokio::test]
async fn a_new_bundle_retires_connections_made_under_the_old_one() {
    let mut rig = rig(Limits {
        retire_grace: Duration::from_millis(500),
        ..quick()
    })
    .await;
    let (mut here, _, mut there) = rig.open().await;
    rig.ca.publish(&rig.trust, 2);
    let retired = here.retired();
    timeout(SOON, async {
        while !retired.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    // What is under way is finished, what is new goes elsewhere.
    here.write_all(b"x").await.unwrap();
    assert_eq!(there.read_u8().await.unwrap(), b'x');
    let _new = rig.open().await;
    assert_eq!(rig.dials(), 2);
    ends(here).await;
}

#[tokio::test]
async fn a_root_that_is_trusted_no_more_ends_what_was_made_under_it() {
    let mut rig = rig(Limits {
        retire_grace: Duration::from_millis(200),
        ..quick()
    })
    .await;
    let (here, _, there) = rig.open().await;
    Ca::new().publish(&rig.server_trust, 2);
    tokio::join!(ends(here), ends(there));
    assert!(rig.try_open().await.is_err());
}

#[tokio::test]
async fn an_expired_certificate_ends_its_connections() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let clock = ManualClock::at(now);
    let mut rig = rig_with(quick(), clock.shared(), None).await;
    let until = SystemTime::now() + Duration::from_secs(600);
    rig.source
        .svid
        .set(rig.ca.svid_until(&spiffe("shop"), Some("n1"), until));
    let (here, _, there) = rig.open().await;
    clock.advance(Duration::from_secs(601));
    tokio::join!(ends(here), ends(there));
    assert!(rig.try_open().await.is_err());
    clock.set(now);
    assert!(rig.try_open().await.is_ok());
}

#[tokio::test]
async fn the_drain_lets_streams_finish_and_the_listener_is_closed() {
    let mut rig = rig(quick()).await;
    let (mut here, _, mut there) = rig.open().await;
    let draining = tokio::spawn(rig.trigger.drain(Duration::from_millis(500)));
    here.write_all(b"x").await.unwrap();
    assert_eq!(timeout(SOON, there.read_u8()).await.unwrap().unwrap(), b'x');
    // The handler never ends by itself here, so the deadline does it.
    assert_eq!(draining.await.unwrap(), weft_drain::Outcome::Forced);
    timeout(SOON, rig.server).await.unwrap().unwrap();
    assert!(TcpStream::connect(rig.destination.address).await.is_err());
}

/// A TLS connection with a tunnel certificate, on which a test says what it likes.
async fn raw(rig: &Rig) -> tokio_rustls::client::TlsStream<TcpStream> {
    let tcp = TcpStream::connect(rig.destination.address).await.unwrap();
    let config = client_config(Some(&rig.source.svid), &rig.trust, Expect::Member, &[b"h2"]).unwrap();
    let name = ServerName::try_from(sni_of(&rig.destination.id)).unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .unwrap()
}

#[tokio::test]
async fn other_methods_than_connect_are_refused() {
    let rig = rig(quick()).await;
    let (sender, connection) = h2::client::handshake(raw(&rig).await).await.unwrap();
    tokio::spawn(connection);
    let ask = |method: Method, uri: &'static str| {
        let mut sender = sender.clone();
        async move {
            let request = Request::builder().method(method).uri(uri).body(()).unwrap();
            let (response, _) = sender.send_request(request, true).unwrap();
            response.await.unwrap().status()
        }
    };
    assert_eq!(
        ask(Method::GET, "https://cart.default:50002/").await,
        StatusCode::METHOD_NOT_ALLOWED
    );
    assert_eq!(
        ask(Method::CONNECT, "refused.default:50002").await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(ask(Method::CONNECT, "cart.default:50002").await, StatusCode::OK);
}

#[tokio::test]
async fn more_streams_than_allowed_wait_or_are_refused() {
    let rig = rig(Limits {
        max_streams: 5,
        ..quick()
    })
    .await;
    let (sender, connection) = h2::client::handshake(raw(&rig).await).await.unwrap();
    tokio::spawn(connection);
    let mut open: Vec<h2::SendStream<Bytes>> = Vec::new();
    for _ in 0..5 {
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri("cart.default:1")
            .body(())
            .unwrap();
        let (response, send) = sender
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(request, false)
            .unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
        open.push(send);
    }
    assert!(
        timeout(Duration::from_millis(200), sender.clone().ready())
            .await
            .is_ok()
    );
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("cart.default:1")
        .body(())
        .unwrap();
    let (sixth, _send) = sender.clone().send_request(request, false).unwrap();
    let answered = timeout(Duration::from_millis(200), sixth).await;
    assert!(!matches!(answered, Ok(Ok(_))), "a sixth stream was taken");
}

#[tokio::test]
async fn garbage_ends_its_own_connection_only() {
    let mut rig = rig(Limits {
        handshake_timeout: Duration::from_millis(500),
        ..quick()
    })
    .await;
    let any = (
        proptest::collection::vec(any::<u8>(), 0..400),
        any::<bool>(),
        any::<bool>(),
    );
    let mut cases = Vec::new();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..40 {
        cases.push(any.new_tree(&mut runner).unwrap().current());
    }
    for (bytes, in_tls, preface) in cases {
        let mut message = if preface {
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()
        } else {
            Vec::new()
        };
        message.extend_from_slice(&bytes);
        if in_tls {
            let mut tls = raw(&rig).await;
            tls.write_all(&message).await.ok();
            tls.shutdown().await.ok();
        } else {
            let mut tcp = TcpStream::connect(rig.destination.address).await.unwrap();
            tcp.write_all(&message).await.ok();
        }
    }
    let (mut here, _, mut there) = rig.open().await;
    here.write_all(b"x").await.unwrap();
    assert_eq!(there.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn who_says_nothing_is_cut_off() {
    let rig = rig(Limits {
        handshake_timeout: Duration::from_millis(200),
        ..quick()
    })
    .await;
    let mut tcp = TcpStream::connect(rig.destination.address).await.unwrap();
    assert!(matches!(
        timeout(SOON, tcp.read(&mut [0; 1])).await.unwrap(),
        Ok(0) | Err(_)
    ));
}
