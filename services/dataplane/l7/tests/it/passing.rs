//! What passes from one end to the other: a served connection whose requests go on by a pool, as a proxy's
//! do, between a client and an app that write bytes by hand.

use crate::server::{SOON, To};
use http::Request;
use http_body_util::BodyExt;
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Duration, sleep, timeout},
};
use weft_l7::{Body, Pool, PoolLimits, ServerLimits, hygiene, serve_connection};

/// A client's connection, the app's connections as they come, and the pool between.
struct Hop {
    client: TcpStream,
    app: mpsc::Receiver<TcpStream>,
    pool: Arc<Pool>,
    _drain: weft_drain::Trigger,
}

async fn hop() -> Hop {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pool = Pool::new(To(listener.local_addr().unwrap()), PoolLimits::default());
    let (give, app) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            socket.set_nodelay(true).unwrap();
            give.send(socket).await.ok();
        }
    });
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(front.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    let (accepted, _) = front.accept().await.unwrap();
    let (drain, watcher) = weft_drain::channel();
    let asked = pool.clone();
    tokio::spawn(async move {
        let limits = ServerLimits::default();
        serve_connection(accepted, &limits, watcher, move |mut request: Request<Body>| {
            let pool = asked.clone();
            async move {
                let method = request.method().clone();
                hygiene::prepare_request(&method, request.headers_mut()).unwrap();
                match pool.send(request, None).await {
                    Ok(mut response) => {
                        hygiene::strip_hop_by_hop(response.headers_mut()).unwrap();
                        *response.version_mut() = http::Version::HTTP_11;
                        response
                    }
                    Err(_) => {
                        let mut response = http::Response::new(Body::empty());
                        *response.status_mut() = http::StatusCode::BAD_GATEWAY;
                        response
                    }
                }
            }
        })
        .await
    });
    Hop {
        client,
        app,
        pool,
        _drain: drain,
    }
}

impl Hop {
    async fn ask(&mut self, text: &str) {
        self.client.write_all(text.as_bytes()).await.unwrap();
    }

    async fn app(&mut self) -> TcpStream {
        timeout(SOON, self.app.recv()).await.unwrap().unwrap()
    }
}

/// Reads until what came ends so.
async fn until(socket: &mut TcpStream, end: &str) -> String {
    let mut all = Vec::new();
    while !all.ends_with(end.as_bytes()) {
        let mut some = [0; 4096];
        let n = timeout(SOON, socket.read(&mut some)).await;
        let n = n.unwrap_or_else(|_| panic!("only {:?}", String::from_utf8_lossy(&all)));
        let n = n.unwrap();
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&some[..n]);
    }
    String::from_utf8(all).unwrap()
}

async fn to_end(socket: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let _ = timeout(SOON, socket.read_to_end(&mut all)).await.unwrap();
    String::from_utf8(all).unwrap()
}

const GET: &str = "GET /a?b=1 HTTP/1.1\r\nhost: x\r\nX-Own: 1\r\nconnection: keep-alive\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ndate: d\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn a_message_arrives_as_it_was_sent_but_for_this_hop_and_connections_are_kept() {
    let mut hop = hop().await;
    let mut app = None;
    for _ in 0..3 {
        hop.ask(GET).await;
        if app.is_none() {
            app = Some(hop.app().await);
        }
        let app = app.as_mut().unwrap();
        let got = until(app, "\r\n\r\n").await;
        assert_eq!(got, "GET /a?b=1 HTTP/1.1\r\nhost: x\r\nx-own: 1\r\n\r\n");
        let answer = "HTTP/1.1 299 Own Words\r\ndate: d\r\nSet-Cookie: a\r\nset-cookie: b\r\nkeep-alive: timeout=5\r\n\
                      content-length: 2\r\n\r\nok";
        app.write_all(answer.as_bytes()).await.unwrap();
        let got = until(&mut hop.client, "ok").await;
        assert_eq!(
            got,
            "HTTP/1.1 299 Own Words\r\ndate: d\r\nset-cookie: a\r\nset-cookie: b\r\ncontent-length: 2\r\n\r\nok"
        );
    }
    assert_eq!(hop.pool.connections_made(), 1);
}

#[tokio::test]
async fn bodies_go_both_ways_in_either_framing() {
    let mut hop = hop().await;
    let long = "0123456789".repeat(30_000);
    let posts = [
        format!("content-length: {}\r\n\r\n{long}", long.len()),
        format!(
            "transfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nhello\r\n{:x};e\r\n{long}\r\n0\r\nX-Sum: 7\r\n\r\n",
            long.len()
        ),
    ];
    hop.ask(&format!("POST /one HTTP/1.1\r\nhost: x\r\n{}", posts[0]))
        .await;
    let mut app = hop.app().await;
    let got = until(&mut app, &long).await;
    assert!(got.contains(&format!("\r\ncontent-length: {}\r\n", long.len())));
    // Its answer is chunked, with trailers that the client takes or does not.
    let chunked =
        "HTTP/1.1 200 OK\r\ndate: d\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n";
    app.write_all(chunked.as_bytes()).await.unwrap();
    let got = until(&mut hop.client, "0\r\n\r\n").await;
    assert!(
        got.ends_with("\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        "{got}"
    );
    let te = format!("POST /two HTTP/1.1\r\nhost: x\r\nte: trailers\r\n{}", posts[1]);
    hop.ask(&te).await;
    let got = until(&mut app, "0\r\nx-sum: 7\r\n\r\n").await;
    assert!(got.contains("\r\ntransfer-encoding: chunked\r\n") && !got.contains("content-length"));
    app.write_all(chunked.as_bytes()).await.unwrap();
    let got = until(&mut hop.client, "x-sum: 7\r\n\r\n").await;
    assert!(got.contains("\r\n2\r\nok\r\n0\r\n"), "{got}");
    assert_eq!(hop.pool.connections_made(), 1);
    // Until the end: the client learns by chunks where that is.
    hop.ask(GET).await;
    until(&mut app, "\r\n\r\n").await;
    app.write_all(format!("HTTP/1.1 200 OK\r\n\r\n{long}").as_bytes())
        .await
        .unwrap();
    drop(app);
    let got = until(&mut hop.client, "\r\n0\r\n\r\n").await;
    assert!(got.len() > long.len(), "{}", got.len());
    // Not to its end: nor does it look so.
    hop.ask(GET).await;
    let mut app = hop.app().await;
    until(&mut app, "\r\n\r\n").await;
    app.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
        .await
        .unwrap();
    drop(app);
    let got = to_end(&mut hop.client).await;
    assert!(got.ends_with("2\r\nok\r\n"), "{got}");
}

#[tokio::test]
async fn what_has_no_body_has_none() {
    let mut hop = hop().await;
    let mut app = None;
    for (method, answer, length) in [
        ("HEAD", "200 OK\r\ncontent-length: 9", "content-length: 9\r\n"),
        ("GET", "204 No Content", ""),
        ("GET", "204 No Content\r\ncontent-length: 0", ""),
        (
            "GET",
            "304 Not Modified\r\ncontent-length: 9",
            "content-length: 9\r\n",
        ),
        ("GET", "200 OK\r\ncontent-length: 0", "content-length: 0\r\n"),
    ] {
        hop.ask(&format!("{method} / HTTP/1.1\r\nhost: x\r\n\r\n")).await;
        if app.is_none() {
            app = Some(hop.app().await);
        }
        let app = app.as_mut().unwrap();
        until(app, "\r\n\r\n").await;
        // Interim answers end here.
        let early = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
        app.write_all(format!("{early}HTTP/1.1 {answer}\r\ndate: d\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let got = until(&mut hop.client, "\r\n\r\n").await;
        let (status, rest) = got.split_once("\r\n").unwrap();
        assert!(answer.starts_with(&status[9..]), "{got}");
        assert!(rest.contains("date: d\r\n") && rest.contains(length), "{got}");
        assert_eq!(rest.contains("content-length"), !length.is_empty(), "{got}");
    }
    // A POST that says it has none goes on saying so.
    hop.ask("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        .await;
    let app = app.as_mut().unwrap();
    assert!(until(app, "\r\n\r\n").await.contains("content-length: 0\r\n"));
    assert_eq!(hop.pool.connections_made(), 1);
}

#[tokio::test]
async fn connections_end_when_either_side_says_so() {
    // The client, in its two ways; the app's connection is kept.
    let mut app = None;
    for (line, fields, told) in [
        ("HTTP/1.1", "connection: close\r\n", Some("connection: close")),
        ("HTTP/1.0", "", Some("connection: close")),
        ("HTTP/1.0", "connection: keep-alive\r\n", None),
    ] {
        let mut hop = hop().await;
        hop.ask(&format!("GET / {line}\r\nhost: x\r\n{fields}\r\n")).await;
        let mut socket = hop.app().await;
        until(&mut socket, "\r\n\r\n").await;
        socket.write_all(OK.as_bytes()).await.unwrap();
        let got = match told {
            Some(_) => to_end(&mut hop.client).await,
            None => until(&mut hop.client, "ok").await,
        };
        assert!(got.starts_with(&format!("{line} 200 OK\r\n")), "{got}");
        assert!(got.contains(told.unwrap_or("connection: keep-alive")), "{got}");
        sleep(Duration::from_millis(20)).await;
        assert!(!hop.pool.is_unused());
        app = Some(socket);
    }
    drop(app);
    // The app: the next request goes by another connection, and the client's stays.
    let mut hop = hop().await;
    for n in 1..=3 {
        hop.ask(GET).await;
        let mut app = hop.app().await;
        until(&mut app, "\r\n\r\n").await;
        let close = OK.replace("date: d", "date: d\r\nConnection: close");
        app.write_all(close.as_bytes()).await.unwrap();
        let got = until(&mut hop.client, "ok").await;
        assert!(!got.contains("connection"), "{got}");
        assert_eq!(hop.pool.connections_made(), n);
    }
}

#[tokio::test]
async fn a_connection_that_its_app_has_closed_is_not_used() {
    let mut hop = hop().await;
    for n in 1..=3 {
        hop.ask(GET).await;
        let mut app = hop.app().await;
        until(&mut app, "\r\n\r\n").await;
        app.write_all(OK.as_bytes()).await.unwrap();
        until(&mut hop.client, "ok").await;
        drop(app);
        sleep(Duration::from_millis(30)).await;
        assert_eq!(hop.pool.connections_made(), n);
    }
    // One that speaks unasked is no better: what it said would be taken for the next answer.
    hop.ask(GET).await;
    let mut app = hop.app().await;
    until(&mut app, "\r\n\r\n").await;
    app.write_all(format!("{OK}HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother").as_bytes())
        .await
        .unwrap();
    until(&mut hop.client, "ok").await;
    hop.ask(GET).await;
    let mut app = hop.app().await;
    until(&mut app, "\r\n\r\n").await;
    app.write_all(OK.as_bytes()).await.unwrap();
    assert!(until(&mut hop.client, "ok").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn who_waits_to_be_asked_for_a_body_is_asked_and_an_early_answer_ends_it() {
    let mut hop = hop().await;
    let head = "POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";
    hop.ask(head).await;
    let mut app = hop.app().await;
    assert_eq!(
        until(&mut hop.client, "\r\n\r\n").await,
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    hop.ask("body").await;
    assert!(!until(&mut app, "body").await.contains("expect"));
    app.write_all(OK.as_bytes()).await.unwrap();
    assert!(until(&mut hop.client, "ok").await.starts_with("HTTP/1.1 200"));
    // The answer comes before the request has ended, which goes on all the same; then both are used again.
    hop.ask("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        .await;
    until(&mut app, "one\r\n").await;
    app.write_all(OK.as_bytes()).await.unwrap();
    until(&mut hop.client, "ok").await;
    hop.ask("3\r\ntwo\r\n0\r\n\r\n").await;
    assert_eq!(until(&mut app, "0\r\n\r\n").await, "3\r\ntwo\r\n0\r\n\r\n");
    hop.ask(GET).await;
    until(&mut app, "\r\n\r\n").await;
    app.write_all(OK.as_bytes()).await.unwrap();
    until(&mut hop.client, "ok").await;
    assert_eq!(hop.pool.connections_made(), 1);
    // An app that answers and reads no further: its answer arrives, and nothing is taken for a request.
    hop.ask("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 30000000\r\n\r\nGET / HTTP/1.1\r\n")
        .await;
    until(&mut app, "GET / HTTP/1.1\r\n").await;
    let close = OK.replace("200 OK", "413 Content Too Large");
    app.write_all(close.as_bytes()).await.unwrap();
    drop(app);
    let got = until(&mut hop.client, "ok").await;
    assert!(got.starts_with("HTTP/1.1 413"), "{got}");
}

#[tokio::test]
async fn a_client_that_goes_ends_its_request_and_one_that_waits_does_not() {
    let mut hop = hop().await;
    hop.ask(GET).await;
    let mut app = hop.app().await;
    until(&mut app, "\r\n\r\n").await;
    let none = timeout(Duration::from_millis(100), app.read(&mut [0; 1])).await;
    assert!(none.is_err(), "{none:?}");
    let (client, _keep) = (hop.client, hop._drain);
    drop(client);
    assert_eq!(timeout(SOON, app.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    assert!(hop.pool.is_unused());
}

#[tokio::test]
async fn a_slow_reader_holds_the_writer_back() {
    let mut hop = hop().await;
    hop.ask(GET).await;
    let mut app = hop.app().await;
    until(&mut app, "\r\n\r\n").await;
    app.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        .await
        .unwrap();
    let piece = vec![b'x'; 1 << 20];
    let mut taken = 0;
    // Until nothing is taken any more: what the sockets hold, and no more than that.
    while let Ok(n) = timeout(Duration::from_millis(300), app.write(&piece)).await {
        taken += n.unwrap();
        assert!(
            taken < 100 << 20,
            "{taken} bytes are kept for a client that reads none"
        );
    }
    let mut read = 0;
    let mut some = vec![0; 1 << 20];
    while read < taken {
        read += timeout(SOON, hop.client.read(&mut some)).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn answers_with_two_meanings_are_no_answers() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 2x0 OK\r\n\r\n",
    ] {
        let mut hop = hop().await;
        hop.ask(GET).await;
        let mut app = hop.app().await;
        until(&mut app, "\r\n\r\n").await;
        app.write_all(answer.as_bytes()).await.unwrap();
        let got = until(&mut hop.client, "\r\n\r\n").await;
        assert!(got.starts_with("HTTP/1.1 502"), "{answer:?}: {got}");
        sleep(Duration::from_millis(20)).await;
        assert!(hop.pool.is_unused());
    }
}

#[tokio::test]
async fn a_body_that_is_kept_is_all_of_it() {
    let (_drain, watcher) = weft_drain::channel();
    let (near, far) = tokio::io::duplex(64);
    let serving = tokio::spawn(async move {
        serve_connection(
            far,
            &ServerLimits::default(),
            watcher,
            |request: Request<Body>| async {
                let body = request.into_body().keep(1000).await;
                let text = match body {
                    Ok(body) => body.collect().await.unwrap().to_bytes(),
                    Err(error) => error.to_string().into(),
                };
                http::Response::new(Body::full(text))
            },
        )
        .await
    });
    let (mut read, mut write) = tokio::io::split(near);
    let asking = tokio::spawn(async move {
        let body = "y".repeat(900);
        let head = "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 900\r\n\r\n";
        write.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        write
    });
    // A connection that takes one piece at a time gets the same bytes.
    let mut all = String::new();
    timeout(SOON, read.read_to_string(&mut all))
        .await
        .unwrap()
        .unwrap();
    assert!(
        all.ends_with(&"y".repeat(900)) && all.contains("content-length: 900"),
        "{all}"
    );
    drop(asking.await);
    serving.await.unwrap().unwrap();
}
