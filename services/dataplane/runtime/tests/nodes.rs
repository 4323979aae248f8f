//! Calls between two agents over real tunnels, and what happens to bodies and connections.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use std::{
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
    sync::mpsc,
    time::timeout,
};
use weft_flows::{Direction, DropReason, Proof, Verdict, Via};
use world::{Agent, SOON, Workload, World, app, echo, get};

struct Two {
    world: World,
    here: Agent,
    there: Agent,
    shop: Workload,
    served: Arc<AtomicUsize>,
}

/// App shop on node n1, cart on n2.
async fn two() -> Two {
    let mut world = World::new();
    let (here, there) = (world.agent("n1"), world.agent("n2"));
    let (port, served) = echo().await;
    let shop = world.workload(&here, "shop", 0).await;
    world.workload(&there, "cart", port).await;
    Two {
        world,
        here,
        there,
        shop,
        served,
    }
}

#[tokio::test]
async fn a_call_crosses_the_tunnel_and_both_agents_write_it_down() {
    let two = two().await;
    let forged =
        "dapr-caller-app-id: admin\r\nx-forwarded-for: 1.2.3.4\r\nconnection: x-mine\r\nx-mine: 1\r\n";
    let answer = get(two.shop.api, "/v1.0/invoke/cart/method//a?b=1", forged).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.line("request").unwrap(), "GET /a?b=1");
    assert_eq!(answer.line("dapr-caller-app-id").as_deref(), Some("shop"));
    assert_eq!(answer.line("dapr-callee-app-id").as_deref(), Some("cart"));
    assert_eq!(answer.line("x-forwarded-for").as_deref(), Some("10.0.0.0"));
    assert!(answer.line("host").unwrap().starts_with("127.0.0.1:"));

    let (out, into) = (two.here.flows(), two.there.flows());
    let ([out], [into]) = (&out[..], &into[..]) else {
        panic!("{out:?} {into:?}")
    };
    for flow in [out, into] {
        assert_eq!(
            (flow.verdict, flow.status, &*flow.path),
            (Verdict::Forwarded, 200, "/a")
        );
        assert_eq!(
            (&*flow.source.workload, &*flow.destination.workload),
            ("shop-0", "cart-1")
        );
        assert_eq!((&*flow.source.node, &*flow.destination.node), ("n1", "n2"));
        assert_eq!((flow.via, flow.destination_port), (Some(Via::Tunnel), 50002));
        assert_eq!(flow.source.identity.0, 300);
    }
    assert_eq!(
        (out.direction, out.caller_proof),
        (Direction::Egress, Some(Proof::PodListener))
    );
    assert_eq!(
        (into.direction, into.caller_proof),
        (Direction::Ingress, Some(Proof::TunnelSvid))
    );
    assert_eq!(out.trace_id, into.trace_id);
    assert_eq!(
        two.there.rules.asked.lock()[..],
        [(Direction::Ingress, "n2/default/cart-1/1".into(), 50002, true)]
    );
}

#[tokio::test]
async fn each_side_of_a_tunnel_refuses_by_its_own_policy() {
    let two = two().await;
    let (port, _) = echo().await;
    let other = two.world.workload(&two.here, "other", port).await;
    let target = "/v1.0/invoke/cart/method/a";
    two.there.deny(
        Direction::Ingress,
        "shop",
        "cart",
        "CiliumNetworkPolicy default/cart ingressDeny[0]",
    );
    let refused = get(two.shop.api, target, "").await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (403, "ERR_DIRECT_INVOKE")
    );
    assert!(!refused.text().contains("CiliumNetworkPolicy"));
    let flow = two.there.flows().pop().unwrap();
    assert_eq!(
        (flow.verdict, flow.drop_reason),
        (Verdict::Dropped, Some(DropReason::PolicyDenied))
    );
    assert_eq!(
        flow.rule.as_deref(),
        Some("CiliumNetworkPolicy default/cart ingressDeny[0]")
    );
    assert_eq!(two.here.flows().pop().unwrap().status, 403);
    assert_eq!(two.served.load(Ordering::SeqCst), 0);
    // The twin.
    assert_eq!(get(other.api, target, "").await.status, 200);

    two.here.deny(
        Direction::Egress,
        "other",
        "cart",
        "CiliumNetworkPolicy default/other egressDeny[0]",
    );
    let seen = two.there.flows().len();
    assert_eq!(get(other.api, target, "").await.status, 403);
    let flow = two.here.flows().pop().unwrap();
    assert_eq!(
        (flow.direction, flow.verdict),
        (Direction::Egress, Verdict::Dropped)
    );
    assert_eq!(two.there.flows().len(), seen, "nothing went to the other node");
}

#[tokio::test]
async fn an_identity_from_a_node_that_may_not_have_it_is_refused() {
    let two = two().await;
    assert_eq!(
        get(two.shop.api, "/v1.0/invoke/cart/method/a", "").await.status,
        200
    );
    let served = two.served.load(Ordering::SeqCst);
    two.world
        .registry
        .banned
        .lock()
        .push(("shop".into(), "n1".into()));
    // On the stream that is there already, and on a new one.
    assert_eq!(
        get(two.shop.api, "/v1.0/invoke/cart/method/a", "").await.status,
        403
    );
    let again = two.world.workload(&two.here, "shop", 0).await;
    assert_eq!(get(again.api, "/v1.0/invoke/cart/method/a", "").await.status, 500);
    assert_eq!(two.served.load(Ordering::SeqCst), served);
    let flow = two.there.flows().pop().unwrap();
    assert_eq!(
        (flow.verdict, flow.drop_reason),
        (Verdict::Dropped, Some(DropReason::PeerMismatch))
    );
    assert_eq!(&*flow.source.spiffe_id, "spiffe://cluster.local/ns/default/shop");
}

async fn client(
    to: SocketAddr,
) -> hyper::client::conn::http1::SendRequest<http_body_util::combinators::BoxBody<Bytes, hyper::Error>> {
    let io = TokioIo::new(TcpStream::connect(to).await.unwrap());
    let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn empty() -> http_body_util::combinators::BoxBody<Bytes, hyper::Error> {
    http_body_util::Empty::new().map_err(|e| match e {}).boxed()
}

#[tokio::test]
async fn requests_of_one_pair_share_one_stream() {
    let two = two().await;
    let mut sender = client(two.shop.api).await;
    for n in 0..50 {
        let request = Request::get(format!("/v1.0/invoke/cart/method/{n}"))
            .body(empty())
            .unwrap();
        sender.ready().await.unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap();
    }
    assert_eq!(two.here.runtime.connections_made(), 1);
    assert_eq!(two.there.runtime.connections_made(), 1);
    assert_eq!(two.here.tunnels_dialed.0.load(Ordering::SeqCst), 1);
    assert_eq!(two.served.load(Ordering::SeqCst), 50);
    // Requests at the same time need as many streams as there are, and one tunnel.
    let many = (0..20).map(|n| {
        let api = two.shop.api;
        async move {
            get(api, &format!("/v1.0/invoke/cart/method/{n}"), "")
                .await
                .status
        }
    });
    assert!(futures::future::join_all(many).await.iter().all(|s| *s == 200));
    assert!(two.here.runtime.connections_made() <= 20);
    assert_eq!(two.here.tunnels_dialed.0.load(Ordering::SeqCst), 1);
}

/// An app that sends back what it gets while it gets it.
async fn mirror() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
                Ok::<_, hyper::Error>(Response::new(request.into_body()))
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service),
            );
        }
    });
    port
}

fn block(n: usize) -> Bytes {
    (0..64 * 1024)
        .map(|i| ((i * 31) ^ n) as u8)
        .collect::<Vec<_>>()
        .into()
}

async fn bodies_stream(world: &World, caller: &Workload, callee_on: &Agent, app_id: &str) {
    world.workload(callee_on, app_id, mirror().await).await;
    let (blocks, feed) = mpsc::channel::<Result<Frame<Bytes>, hyper::Error>>(1);
    let body = StreamBody::new(futures::stream::unfold(feed, |mut feed| async move {
        feed.recv().await.map(|item| (item, feed))
    }));
    let mut sender = client(caller.api).await;
    let request = Request::post(format!("/v1.0/invoke/{app_id}/method/mirror"))
        .body(BodyExt::boxed(body))
        .unwrap();
    let answering = tokio::spawn(async move { sender.send_request(request).await.unwrap() });
    // The answer begins although the question goes on: nothing is collected on the way.
    blocks.send(Ok(Frame::data(block(0)))).await.unwrap();
    let response = timeout(SOON, answering)
        .await
        .expect("the head waits for the whole body")
        .unwrap();
    assert_eq!(response.status(), 200);
    let feeding = tokio::spawn(async move {
        for n in 1..160 {
            blocks.send(Ok(Frame::data(block(n)))).await.unwrap();
        }
    });
    let got = timeout(SOON, response.into_body().collect())
        .await
        .unwrap()
        .unwrap()
        .to_bytes();
    feeding.await.unwrap();
    let sent: Vec<u8> = (0..160).flat_map(|n| block(n).to_vec()).collect();
    assert_eq!(sent.len(), 10 << 20);
    assert!(got == sent);
}

#[tokio::test]
async fn ten_mebibytes_stream_both_ways_on_one_node() {
    let two = two().await;
    bodies_stream(&two.world, &two.shop, &two.here, "mirror").await;
}

#[tokio::test]
async fn ten_mebibytes_stream_both_ways_between_nodes() {
    let two = two().await;
    bodies_stream(&two.world, &two.shop, &two.there, "mirror").await;
}

/// An app that takes connections and never reads.
async fn deaf() -> (u16, mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (taken, accepted) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            taken.send(socket).await.ok();
        }
    });
    (port, accepted)
}

async fn upload_until_stuck(api: SocketAddr, app_id: &str) -> (TcpStream, usize) {
    let mut socket = TcpStream::connect(api).await.unwrap();
    let head = format!(
        "POST /v1.0/invoke/{app_id}/method/x HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000000\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let data = vec![1; 256 * 1024];
    let mut taken = 0;
    while let Ok(n) = timeout(Duration::from_millis(700), socket.write(&data)).await {
        taken += n.unwrap();
        assert!(
            taken < 200 << 20,
            "{taken} bytes were taken for an app that does not read"
        );
    }
    (socket, taken)
}

#[tokio::test]
async fn an_app_that_does_not_read_stops_its_caller_and_nobody_else() {
    let two = two().await;
    let (port, mut accepted) = deaf().await;
    two.world.workload(&two.there, "deaf", port).await;
    two.world.workload(&two.here, "deaf-here", port).await;
    let (_near, near) = upload_until_stuck(two.shop.api, "deaf-here").await;
    let (_far, far) = upload_until_stuck(two.shop.api, "deaf").await;
    // Kernel buffers on each hop (at most 6 MiB + 4 MiB each), and between nodes the tunnel's.
    assert!(near < 30 << 20, "{near}");
    assert!(far < 60 << 20, "{far}");
    assert_eq!(
        get(two.shop.api, "/v1.0/invoke/cart/method/a", "").await.status,
        200
    );
    let _held = (accepted.recv().await, accepted.recv().await);
}

#[tokio::test]
async fn an_app_that_is_gone_is_told_as_such_and_another_takes_its_place() {
    let mut world = World::new();
    let agent = world.agent("n1");
    let shop = world.workload(&agent, "shop", 0).await;
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    world.workload(&agent, "gone", gone).await;
    let answer = get(shop.api, "/v1.0/invoke/gone/method/a", "").await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (500, "ERR_DIRECT_INVOKE")
    );
    let flows = agent.flows();
    assert_eq!(
        (flows[0].verdict, flows[0].drop_reason),
        (Verdict::Error, Some(DropReason::Unreachable))
    );

    let (port, served) = echo().await;
    world.workload(&agent, "half", gone).await;
    world.workload(&agent, "half", port).await;
    for _ in 0..10 {
        let body = "POST /v1.0/invoke/half/method/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
        let answer = world::exchange(shop.api, body.as_bytes()).await.unwrap();
        assert_eq!(
            (answer.status, answer.line("body").as_deref()),
            (200, Some("Ok(5)")),
            "{answer:?}"
        );
    }
    assert_eq!(served.load(Ordering::SeqCst), 10);
}

#[tokio::test]
async fn a_request_that_reached_an_app_is_never_sent_twice() {
    let mut world = World::new();
    let agent = world.agent("n1");
    let shop = world.workload(&agent, "shop", 0).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let got = Arc::new(AtomicUsize::new(0));
    let count = got.clone();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            if socket.read(&mut head).await.unwrap_or(0) > 0 {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    world.workload(&agent, "dies", port).await;
    world.workload(&agent, "dies", port).await;
    let answer = get(shop.api, "/v1.0/invoke/dies/method/a", "").await;
    assert_eq!(answer.status, 500);
    assert_eq!(got.load(Ordering::SeqCst), 1);
    let flow = agent
        .flows()
        .into_iter()
        .find(|f| f.direction == Direction::Ingress)
        .unwrap();
    assert_eq!(flow.drop_reason, Some(DropReason::UpstreamFailed));
}

#[tokio::test]
async fn connections_that_the_app_closes_are_not_used_again() {
    let mut world = World::new();
    let agent = world.agent("n1");
    let shop = world.workload(&agent, "shop", 0).await;
    let port = app(|_| async {
        let mut response = Response::new(Full::from("bye"));
        response
            .headers_mut()
            .insert(header::CONNECTION, "close".parse().unwrap());
        response
    })
    .await;
    world.workload(&agent, "curt", port).await;
    let mut sender = client(shop.api).await;
    for _ in 0..20 {
        sender.ready().await.unwrap();
        let request = Request::get("/v1.0/invoke/curt/method/a").body(empty()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        // The app's wish to close is for its own hop.
        assert_eq!(
            (response.status(), response.headers().get(header::CONNECTION)),
            (StatusCode::OK, None)
        );
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "bye");
    }
    assert_eq!(agent.runtime.connections_made(), 20);
}

#[tokio::test]
async fn answers_keep_their_form() {
    let mut world = World::new();
    let (here, there) = (world.agent("n1"), world.agent("n2"));
    let shop = world.workload(&here, "shop", 0).await;
    let port = app(|request| async move {
        let status: u16 = request.uri().path()[1..].parse().unwrap();
        let body = if matches!(status, 204 | 304) { "" } else { "text" };
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response.headers_mut().insert("x-own", "1".parse().unwrap());
        response
            .headers_mut()
            .append(header::SET_COOKIE, "a=1".parse().unwrap());
        response
            .headers_mut()
            .append(header::SET_COOKIE, "b=2".parse().unwrap());
        response
    })
    .await;
    for agent in [&here, &there] {
        let app_id = format!("form-{}", agent.node);
        world.workload(agent, &app_id, port).await;
        let mut sender = client(shop.api).await;
        for status in [200, 201, 204, 304, 404, 418, 500, 503] {
            for method in ["GET", "HEAD", "DELETE", "OPTIONS", "PATCH"] {
                sender.ready().await.unwrap();
                let uri = format!("/v1.0/invoke/{app_id}/method/{status}");
                let request = Request::builder().method(method).uri(uri).body(empty()).unwrap();
                let response = sender.send_request(request).await.unwrap();
                assert_eq!(response.status().as_u16(), status, "{method}");
                assert_eq!(response.headers()["x-own"], "1");
                assert_eq!(response.headers().get_all(header::SET_COOKIE).iter().count(), 2);
                let body = response.into_body().collect().await.unwrap().to_bytes();
                let has_body = method != "HEAD" && !matches!(status, 204 | 304);
                assert_eq!(
                    &body[..],
                    if has_body { &b"text"[..] } else { b"" },
                    "{method} {status}"
                );
            }
        }
    }
    assert_eq!(here.runtime.connections_made(), 2, "one to each app");
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_its_call() {
    let two = two().await;
    let (port, mut accepted) = deaf().await;
    two.world.workload(&two.there, "deaf", port).await;
    let mut socket = TcpStream::connect(two.shop.api).await.unwrap();
    socket
        .write_all(b"GET /v1.0/invoke/deaf/method/x HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut app_side = timeout(SOON, accepted.recv()).await.unwrap().unwrap();
    let mut head = [0; 4096];
    assert!(app_side.read(&mut head).await.unwrap() > 0);
    drop(socket);
    let left = timeout(SOON, async {
        while app_side.read(&mut head).await.is_ok_and(|n| n > 0) {}
    });
    left.await
        .expect("the app's connection stays although nobody waits for the answer");
}
