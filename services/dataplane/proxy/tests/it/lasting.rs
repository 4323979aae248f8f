//! Requests that last: what policy says of them while they do.

use crate::world::{SOON, World};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Duration, timeout},
};
use weft_flows::{Direction, DropReason, Verdict};

/// An app that tells what it reads, and answers a request for `/events` without end and others not at all.
async fn endless() -> (SocketAddr, mpsc::UnboundedReceiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (read, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let read = read.clone();
            tokio::spawn(async move {
                let mut some = vec![0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut some).await {
                    let _ = read.send(n);
                    if !some.starts_with(b"GET /events ") {
                        continue;
                    }
                    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                    stream.write_all(head).await?;
                    loop {
                        stream.write_all(b"6\r\nevent\n\r\n").await?;
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
                Ok::<_, std::io::Error>(())
            });
        }
    });
    (address, seen)
}

/// Until some more events came.
async fn more(stream: &mut TcpStream) {
    let (mut count, mut some) = (0, [0; 256]);
    while count < 5 {
        let n = timeout(SOON, stream.read(&mut some)).await.unwrap().unwrap();
        assert!(n > 0, "the answer has ended");
        count += some[..n].windows(5).filter(|w| w == b"event").count();
    }
}

#[tokio::test]
async fn a_long_answer_goes_on_until_policy_refuses_its_request() {
    let world = World::new();
    let (address, _seen) = endless().await;
    world.place("own", address);
    world.service("whoami", &["own"]);
    world.rule(Direction::Ingress, "shop", "own", |line| {
        line.path == "/events" && line.headers.contains_key("x-key")
    });
    let mut stream = world.connect().await;
    let request = b"GET /events HTTP/1.1\r\nhost: whoami\r\nx-key: 1\r\n\r\n";
    stream.write_all(request).await.unwrap();
    more(&mut stream).await;
    // Changes that leave it: one of something else, and one of the rules that means it still.
    world.service("other", &[]);
    more(&mut stream).await;
    world.rule(Direction::Ingress, "shop", "own", |line| {
        line.method == "GET" && line.headers.contains_key("x-key")
    });
    more(&mut stream).await;
    let told = world.flows_of("/events");
    assert!(
        told.iter().all(|flow| flow.verdict == Verdict::Forwarded),
        "{told:?}"
    );
    world.rule(Direction::Ingress, "shop", "own", |line| line.method == "POST");
    let mut rest = Vec::new();
    // A reset is as good an end, as long as it does not look like that of a complete answer.
    let _ = timeout(SOON, stream.read_to_end(&mut rest))
        .await
        .expect("it goes on");
    assert!(!rest.ends_with(b"0\r\n\r\n"), "it looks complete");
    let last = world.flows_of("/events").pop().unwrap();
    assert_eq!(
        (last.verdict, last.drop_reason, last.rule.as_deref()),
        (
            Verdict::Dropped,
            Some(DropReason::PolicyDenied),
            Some("no such request")
        )
    );
}

#[tokio::test]
async fn a_long_request_goes_on_until_policy_refuses_it() {
    let world = World::new();
    let (address, mut seen) = endless().await;
    world.place("own", address);
    world.service("whoami", &["own"]);
    let mut stream = world.connect().await;
    let head = b"POST /upload HTTP/1.1\r\nhost: whoami\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head).await.unwrap();
    for _ in 0..3 {
        stream.write_all(b"4\r\nmore\r\n").await.unwrap();
        timeout(SOON, seen.recv()).await.unwrap().unwrap();
        // It is judged again, and may.
        world.service("other", &[]);
    }
    world.deny(Direction::Ingress, "shop", "own");
    let mut answer = [0; 12];
    timeout(SOON, stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
    let last = world.flows_of("/upload").pop().unwrap();
    assert_eq!(
        (last.verdict, last.rule.as_deref()),
        (Verdict::Dropped, Some("denied by the test"))
    );
}
