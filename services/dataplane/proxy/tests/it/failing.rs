//! What a client is told when nobody answers, and what is tried before.

use crate::world::{World, ask, backend, send, serve, to};
use futures::FutureExt;
use http::{Response, StatusCode};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{io::AsyncReadExt, net::TcpListener, time::timeout};
use weft_flows::{DropReason, Verdict};
use weft_l7::Body;
use weft_proto::weft::policy::v1 as pb;

/// Nobody listens there.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

#[tokio::test]
async fn who_can_not_be_reached_is_passed_over() {
    let world = World::new();
    world.place("dead", nobody().await);
    world.service("whoami", &["dead"]);
    let answer = world.ask("/dead").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.ends_with("connection failure"), "{}", answer.body);
    let flow = world.flows_of("/dead").pop().unwrap();
    assert_eq!(
        (flow.verdict, flow.drop_reason),
        (Verdict::Error, Some(DropReason::Unreachable))
    );
    // With another endpoint each request comes through, whichever is picked first.
    world.app("own").await;
    world.service("whoami", &["dead", "own"]);
    let mut stream = world.connect().await;
    for n in 0..20 {
        assert_eq!(ask(&mut stream, &format!("/{n}")).await.app(), "own");
    }
    let unreachable = world
        .flows()
        .iter()
        .filter(|f| f.drop_reason == Some(DropReason::Unreachable))
        .count();
    assert!(unreachable > 1, "the dead one was never picked");
}

#[tokio::test]
async fn what_was_sent_is_not_sent_again() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.place("rude", listener.local_addr().unwrap());
    world.place("rude2", listener.local_addr().unwrap());
    world.service("whoami", &["rude", "rude2"]);
    let taken = Arc::new(AtomicUsize::new(0));
    let count = taken.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            // It reads the request and goes away.
            let _ = stream.read(&mut [0; 1024]).await;
        }
    });
    let answer = world.ask("/rude").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.ends_with("connection termination"), "{}", answer.body);
    assert_eq!(taken.load(Ordering::SeqCst), 1);
    assert_eq!(
        world.flows_of("/rude").pop().unwrap().drop_reason,
        Some(DropReason::UpstreamFailed)
    );
}

/// An app that answers so often with 503 before it answers with 200.
async fn flaky(times: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let address = serve(move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        async move {
            let mut response = Response::new(Body::from("done"));
            if number < times {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            response
        }
        .boxed()
    })
    .await;
    (address, asked)
}

#[tokio::test]
async fn a_route_says_what_is_tried_again() {
    let retried = |attempts| pb::RouteRule {
        retry: Some(pb::RouteRetry {
            codes: vec![503],
            attempts,
            backoff_ms: 1,
        }),
        ..to(vec![backend("flaky", 1)])
    };
    for (attempts, status, asked) in [(0, 503, 1), (1, 503, 2), (2, 200, 3), (5, 200, 3)] {
        let world = World::new();
        let (address, count) = flaky(2).await;
        world.place("flaky", address);
        world.service("flaky", &["flaky"]);
        world.service("whoami", &["flaky"]);
        world.route("retry", vec![retried(attempts)]);
        let answer = world.ask("/again").await;
        assert_eq!(
            (answer.status, count.load(Ordering::SeqCst)),
            (status, asked),
            "{attempts}"
        );
    }
    // A short body is kept for it, a long one is sent once.
    for (length, status, asked) in [(10, 200, 3), (100_000, 503, 1)] {
        let world = World::new();
        let (address, count) = flaky(2).await;
        world.place("flaky", address);
        world.service("flaky", &["flaky"]);
        world.route("retry", vec![retried(3)]);
        let body = "x".repeat(length);
        let request = format!("POST / HTTP/1.1\r\nhost: whoami\r\ncontent-length: {length}\r\n\r\n{body}");
        let answer = send(&mut world.connect().await, &request).await;
        assert_eq!(
            (answer.status, count.load(Ordering::SeqCst)),
            (status, asked),
            "{length}"
        );
    }
}

#[tokio::test]
async fn a_request_has_the_time_that_its_rule_gives_it() {
    let world = World::new();
    // It takes the connection and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.place("silent", silent.local_addr().unwrap());
    world.service("silent", &["silent"]);
    let timed = |request, backend_request| pb::RouteRule {
        request_timeout_ms: request,
        backend_request_timeout_ms: backend_request,
        ..to(vec![backend("silent", 1)])
    };
    for rule in [timed(50, 0), timed(0, 50), timed(20_000, 50)] {
        world.route("timed", vec![rule]);
        let answer = timeout(Duration::from_secs(10), world.ask("/slow"))
            .await
            .unwrap();
        assert_eq!((answer.status, &*answer.body), (504, "upstream request timeout"));
    }
    let flow = world.flows_of("/slow").pop().unwrap();
    assert_eq!((flow.verdict, flow.status), (Verdict::Error, 504));
    // Without a bound it is waited for: the twin answers late.
    let late = serve(|_| {
        async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            Response::new(Body::from("late"))
        }
        .boxed()
    })
    .await;
    world.place("silent", late);
    world.route("timed", vec![timed(0, 0)]);
    assert_eq!(world.ask("/late").await.body, "late");
}
