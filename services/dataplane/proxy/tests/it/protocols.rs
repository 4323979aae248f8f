//! HTTP/2, gRPC's trailers, WebSockets, and how connections end.

use crate::world::{World, ask, send};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::{self, SendRequest},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{convert::Infallible, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use weft_flows::Direction;
use weft_l7::Upgrade;

const SOON: Duration = Duration::from_secs(20);

async fn two(stream: TcpStream) -> SendRequest<Full<Bytes>> {
    let (sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(driver);
    sender
}

fn get(path: &str) -> Request<Full<Bytes>> {
    let uri = format!("http://whoami{path}");
    Request::get(uri).body(Full::default()).unwrap()
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn http2_goes_on_as_http2_and_many_requests_share_connections() {
    let world = World::new();
    world.app("own").await;
    world.service("whoami", &["own"]);
    let sender = two(world.connect().await).await;
    let requests = (0..50).map(|n| {
        let mut sender = sender.clone();
        async move { text(sender.send_request(get(&format!("/{n}"))).await.unwrap()).await }
    });
    for (n, answer) in futures::future::join_all(requests).await.into_iter().enumerate() {
        assert!(
            answer.contains(&format!("line HTTP/2.0 GET http://whoami/{n}\n")),
            "{answer}"
        );
    }
    assert_eq!(world.dials(), 1);
    // A port that speaks HTTP/2 gets it from clients that do not.
    world.service_speaking("whoami", &["own"], "kubernetes.io/h2c");
    let answer = world.ask("/from-one").await;
    assert_eq!(answer.line("line "), "HTTP/2.0 GET http://whoami/from-one");
    assert_eq!(world.dials(), 1);
}

/// An app that answers gRPC: a message, then trailers.
async fn grpc() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = service_fn(|request: Request<Incoming>| async move {
        assert_eq!(request.headers()["te"], "trailers");
        let message = request.into_body().collect().await.unwrap().to_bytes();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let frames = [
            Ok::<_, Infallible>(Frame::data(message)),
            Ok(Frame::trailers(trailers)),
        ];
        let body: BoxBody<Bytes, Infallible> = StreamBody::new(futures::stream::iter(frames)).boxed();
        let answer = Response::builder()
            .header("content-type", "application/grpc")
            .body(body);
        Ok::<_, Infallible>(answer.unwrap())
    });
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(http.serve_connection(TokioIo::new(stream), answer));
        }
    });
    address
}

#[tokio::test]
async fn trailers_of_grpc_arrive_and_its_clients_are_told_in_its_words() {
    let world = World::new();
    world.place("own", grpc().await);
    world.service("whoami", &["own"]);
    world.rule(Direction::Ingress, "shop", "own", |line| {
        line.path == "/shop.Cart/Add"
    });
    let mut sender = two(world.connect().await).await;
    let call = |path: &str| {
        Request::post(format!("http://whoami{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::from("message"))
            .unwrap()
    };
    let answer = sender.send_request(call("/shop.Cart/Add")).await.unwrap();
    let collected = answer.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(collected.to_bytes(), "message");
    let refused = sender.send_request(call("/shop.Cart/Empty")).await.unwrap();
    assert_eq!(refused.status(), StatusCode::OK);
    assert_eq!(refused.headers()["grpc-status"], "7");
    assert_eq!(refused.headers()["grpc-message"], "Access denied");
    assert_eq!(world.flows_of("/shop.Cart/Empty").pop().unwrap().status, 403);
}

/// An app that speaks "WebSocket": after the switch it gives back what it gets.
async fn socket() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = service_fn(|mut request: Request<Incoming>| async move {
        if request.headers().get("upgrade").is_none() {
            return Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("no upgrade")));
        };
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut some = [0; 64];
            while let Ok(n @ 1..) = io.read(&mut some).await {
                io.write_all(&some[..n]).await.unwrap();
            }
        });
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        Upgrade::ask(response.headers_mut());
        Ok(response)
    });
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let http = hyper::server::conn::http1::Builder::new();
            let serving = http.serve_connection(TokioIo::new(stream), answer);
            tokio::spawn(serving.with_upgrades());
        }
    });
    address
}

const ASK: &str = "GET /ws HTTP/1.1\r\nhost: whoami\r\nconnection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\n\
                   sec-websocket-key: x\r\nsec-websocket-version: 13\r\n\r\n";

async fn echoed(stream: &mut TcpStream) {
    stream.write_all(b"frame").await.unwrap();
    let mut back = [0; 5];
    timeout(SOON, stream.read_exact(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&back, b"frame");
}

#[tokio::test]
async fn a_websocket_is_carried_until_policy_allows_it_no_more() {
    let world = World::new();
    world.place("own", socket().await);
    world.service("whoami", &["own"]);
    let mut stream = world.connect().await;
    let answer = send(&mut stream, ASK).await;
    assert_eq!(answer.status, 101);
    assert!(answer.head.contains("upgrade: websocket\r\n"), "{}", answer.head);
    assert_eq!(world.flows_of("/ws").pop().unwrap().status, 101);
    echoed(&mut stream).await;
    // A change that forbids nothing leaves it.
    world.service("other", &[]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    echoed(&mut stream).await;
    world.deny(Direction::Ingress, "shop", "own");
    assert_eq!(
        timeout(SOON, stream.read(&mut [0; 8]))
            .await
            .unwrap()
            .unwrap_or(0),
        0
    );
}

#[tokio::test]
async fn nothing_but_websocket_is_switched_to() {
    let world = World::new();
    world.place("own", socket().await);
    world.service("whoami", &["own"]);
    let mut stream = world.connect().await;
    let other = ASK.replace("upgrade: WebSocket", "upgrade: h2c");
    let answer = send(&mut stream, &other).await;
    assert_eq!((answer.status, &*answer.body), (200, "no upgrade"));
    // Its twin asks for a WebSocket, and the connection is still there for it.
    assert_eq!(send(&mut stream, ASK).await.status, 101);
    echoed(&mut stream).await;
}

#[tokio::test]
async fn a_connection_ends_with_its_workload_and_in_order_at_the_drain() {
    let world = World::new();
    world.app("own").await;
    world.service("whoami", &["own"]);
    let mut kept = world.connect().await;
    ask(&mut kept, "/").await;
    let mut sender = two(world.connect().await).await;
    text(sender.send_request(get("/")).await.unwrap()).await;
    let trigger = world.trigger.lock().take().unwrap();
    let draining = tokio::spawn(trigger.drain(Duration::from_secs(20)));
    // Idle connections end by themselves.
    assert_eq!(timeout(SOON, kept.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
    let closed = async {
        while sender.ready().await.is_ok() && !sender.is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, closed)
        .await
        .expect("the HTTP/2 connection is kept");
    drop(draining);

    let world = World::new();
    world.app("own").await;
    world.service("whoami", &["own"]);
    let mut kept = world.connect().await;
    ask(&mut kept, "/").await;
    world.gone.cancel();
    assert_eq!(
        timeout(SOON, kept.read(&mut [0; 8])).await.unwrap().unwrap_or(0),
        0
    );
}
