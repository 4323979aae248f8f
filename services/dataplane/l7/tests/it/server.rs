//! Bounds of served connections and of pools, over real sockets.

use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    time::{Instant, timeout},
};
use weft_l7::{
    Body, Connection, Connector, InFlight, Pool, PoolLimits, SendFailure, ServeError, ServerLimits,
    serve_connection,
};

pub const SOON: Duration = Duration::from_secs(10);
const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

fn quick() -> ServerLimits {
    ServerLimits {
        head_timeout: Duration::from_millis(200),
        idle_timeout: Duration::from_millis(600),
        tick: Duration::from_millis(20),
        ..ServerLimits::default()
    }
}

/// One served connection: the client's end, and how serving it ended. `gate` holds answers back.
async fn served(gate: Option<Arc<Notify>>, drain: weft_drain::Watcher) -> (TcpStream, Ended) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let ended = tokio::spawn(async move {
        serve_connection(accepted, &quick(), drain, |request: Request<Body>| {
            let gate = gate.clone();
            async move {
                use http_body_util::BodyExt;
                if let Some(gate) = gate {
                    gate.notified().await;
                } else if request.uri() != "/early" {
                    request.into_body().collect().await.unwrap();
                } else {
                    // Goes on reading after it has answered.
                    tokio::spawn(request.into_body().collect());
                }
                Response::new(Body::from("ok"))
            }
        })
        .await
    });
    (socket, ended)
}

type Ended = tokio::task::JoinHandle<Result<(), ServeError>>;

async fn ended(task: Ended) -> Result<(), ServeError> {
    timeout(SOON, task).await.expect("still served").unwrap()
}

async fn answer(socket: &mut TcpStream) {
    let mut all = Vec::new();
    while !all.ends_with(b"\r\n\r\nok") {
        let mut some = [0; 512];
        let n = timeout(SOON, socket.read(&mut some)).await.unwrap().unwrap();
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&some[..n]);
    }
}

#[tokio::test]
async fn a_head_that_does_not_end_is_not_waited_for() {
    let (_trigger, drain) = weft_drain::channel();
    let (mut socket, task) = served(None, drain).await;
    socket.write_all(b"GET / HTTP/1.1\r\nhost:").await.unwrap();
    assert!(matches!(ended(task).await, Err(ServeError::HeadTimeout(_))));
    // Nor is one that comes a byte at a time, after a sound request.
    let (_trigger, drain) = weft_drain::channel();
    let (mut socket, task) = served(None, drain).await;
    socket.write_all(GET).await.unwrap();
    answer(&mut socket).await;
    let trickle = async {
        loop {
            if socket.write_all(b"x").await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (result, ()) = tokio::join!(ended(task), trickle);
    assert!(matches!(result, Err(ServeError::HeadTimeout(_))));
}

#[tokio::test]
async fn a_connection_without_requests_is_closed_in_order() {
    let (_trigger, drain) = weft_drain::channel();
    let (mut socket, task) = served(None, drain).await;
    // Used twice with a pause that is longer than a head may take: idleness is not slowness.
    socket.write_all(GET).await.unwrap();
    answer(&mut socket).await;
    tokio::time::sleep(Duration::from_millis(350)).await;
    socket.write_all(GET).await.unwrap();
    answer(&mut socket).await;
    let since = Instant::now();
    assert_eq!(timeout(SOON, socket.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    assert!(
        since.elapsed() >= Duration::from_millis(500),
        "{:?}",
        since.elapsed()
    );
    assert!(ended(task).await.is_ok());
}

#[tokio::test]
async fn a_body_that_comes_late_is_no_head() {
    let (_trigger, drain) = weft_drain::channel();
    let (mut socket, task) = served(None, drain).await;
    for path in ["/late", "/early"] {
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 40\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        if path == "/early" {
            answer(&mut socket).await;
        }
        for _ in 0..40 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            socket.write_all(b"x").await.unwrap();
        }
        if path == "/late" {
            answer(&mut socket).await;
        }
        // Longer than a head may take: it is idle, not in the middle of a head.
        tokio::time::sleep(Duration::from_millis(350)).await;
    }
    socket.write_all(GET).await.unwrap();
    answer(&mut socket).await;
    assert_eq!(timeout(SOON, socket.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    assert!(ended(task).await.is_ok());
}

#[tokio::test]
async fn a_slow_answer_is_no_reason_to_close() {
    let (_trigger, drain) = weft_drain::channel();
    let gate = Arc::new(Notify::new());
    let (mut socket, _task) = served(Some(gate.clone()), drain).await;
    socket.write_all(GET).await.unwrap();
    // Longer than every bound.
    tokio::time::sleep(Duration::from_millis(1000)).await;
    gate.notify_one();
    answer(&mut socket).await;
}

#[tokio::test]
async fn the_drain_lets_a_request_finish_and_closes() {
    let (trigger, drain) = weft_drain::channel();
    let gate = Arc::new(Notify::new());
    let (mut socket, task) = served(Some(gate.clone()), drain).await;
    socket.write_all(GET).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let draining = tokio::spawn(trigger.drain(SOON));
    tokio::time::sleep(Duration::from_millis(100)).await;
    gate.notify_one();
    answer(&mut socket).await;
    assert_eq!(socket.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(ended(task).await.is_ok());
    assert_eq!(draining.await.unwrap(), weft_drain::Outcome::Drained);
}

#[tokio::test]
async fn a_request_that_crosses_the_drain_is_answered_as_the_last() {
    for requests_before in [0, 1] {
        let (trigger, drain) = weft_drain::channel();
        let (mut socket, task) = served(None, drain).await;
        for _ in 0..requests_before {
            socket.write_all(GET).await.unwrap();
            answer(&mut socket).await;
        }
        let draining = tokio::spawn(trigger.drain(SOON));
        // The client can not know yet.
        tokio::task::yield_now().await;
        socket.write_all(GET).await.unwrap();
        let mut all = Vec::new();
        timeout(SOON, socket.read_to_end(&mut all))
            .await
            .unwrap()
            .unwrap();
        let text = String::from_utf8_lossy(&all).to_lowercase();
        assert!(
            text.starts_with("http/1.1 200") && text.contains("connection: close"),
            "{text}"
        );
        assert!(ended(task).await.is_ok());
        assert_eq!(draining.await.unwrap(), weft_drain::Outcome::Drained);
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_turn() {
    let (_trigger, drain) = weft_drain::channel();
    let (mut socket, _task) = served(None, drain).await;
    socket.write_all(&GET.repeat(3)).await.unwrap();
    let mut all = Vec::new();
    while all.windows(6).filter(|w| w == b"\r\n\r\nok").count() < 3 {
        let mut some = [0; 512];
        let n = timeout(SOON, socket.read(&mut some)).await.unwrap().unwrap();
        assert!(n > 0);
        all.extend_from_slice(&some[..n]);
    }
    // One with a body behind another is read as it is, and one that two could read differently is refused.
    let chunked = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n";
    let both = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n";
    socket
        .write_all(&[GET, chunked, GET, both, GET].concat())
        .await
        .unwrap();
    let mut rest = Vec::new();
    timeout(SOON, socket.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    let rest = String::from_utf8_lossy(&rest);
    assert_eq!(rest.matches("200 OK").count(), 3, "{rest}");
    let last = rest.rfind("HTTP/1.1 ").unwrap();
    assert!(rest[last..].starts_with("HTTP/1.1 400 Bad Request"), "{rest}");
}

pub struct To(pub SocketAddr);

impl Connector for To {
    fn connect(&self) -> BoxFuture<'static, io::Result<Connection>> {
        let to = self.0;
        async move { Connection::handshake(TcpStream::connect(to).await?, None).await }.boxed()
    }
}

/// A server whose connections the test holds: it answers by hand.
async fn by_hand(limits: PoolLimits) -> (Arc<Pool>, mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pool = Pool::new(To(listener.local_addr().unwrap()), limits);
    let (give, take) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            give.send(socket).await.ok();
        }
    });
    (pool, take)
}

fn request() -> Request<Body> {
    Request::get("/").header("host", "x").body(Body::empty()).unwrap()
}

async fn reply(socket: &mut TcpStream, text: &str) {
    let mut head = [0; 512];
    assert!(socket.read(&mut head).await.unwrap() > 0);
    socket.write_all(text.as_bytes()).await.unwrap();
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn more_requests_than_the_bound_are_refused_untouched() {
    let (pool, mut accepted) = by_hand(PoolLimits {
        max_in_use: 1,
        ..PoolLimits::default()
    })
    .await;
    let counter = Arc::new(AtomicU32::new(0));
    let first = tokio::spawn({
        let (pool, counter) = (pool.clone(), counter.clone());
        async move { pool.send(request(), Some(InFlight::begin(&counter))).await }
    });
    let mut socket = accepted.recv().await.unwrap();
    let refused = pool.send(request(), None).await.unwrap_err();
    assert!(matches!(refused.failure, SendFailure::Overloaded(1)) && refused.request.is_some());
    reply(&mut socket, OK).await;
    let response = first.await.unwrap().unwrap();
    assert_eq!(counter.load(Ordering::SeqCst), 1);
    // Still under way until its body is read.
    assert!(pool.send(request(), None).await.is_err());
    use http_body_util::BodyExt;
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    assert_eq!(counter.load(Ordering::SeqCst), 0);
    let (second, ()) = tokio::join!(pool.send(request(), None), reply(&mut socket, OK));
    assert!(second.is_ok());
    assert_eq!(pool.connections_made(), 1);
}

#[tokio::test]
async fn a_body_that_is_dropped_half_read_ends_its_connection() {
    let (pool, mut accepted) = by_hand(PoolLimits::default()).await;
    let sent = tokio::spawn({
        let pool = pool.clone();
        async move { pool.send(request(), None).await }
    });
    let mut socket = accepted.recv().await.unwrap();
    reply(
        &mut socket,
        "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nstart",
    )
    .await;
    drop(sent.await.unwrap().unwrap());
    let gone = timeout(SOON, async {
        while socket.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {}
    });
    gone.await.expect("the connection stays");
    assert!(pool.is_unused());
}

#[tokio::test]
async fn idle_connections_are_closed_after_their_time_and_beyond_their_number() {
    let limits = PoolLimits {
        idle_timeout: Duration::from_millis(100),
        ..PoolLimits::default()
    };
    let (pool, mut accepted) = by_hand(limits).await;
    let once = async {
        use http_body_util::BodyExt;
        let response = pool.send(request(), None).await.unwrap();
        response.into_body().collect().await.unwrap();
    };
    let mut socket = None;
    let answering = async {
        let mut accepted = accepted.recv().await.unwrap();
        reply(&mut accepted, OK).await;
        socket = Some(accepted);
    };
    tokio::join!(once, answering);
    pool.sweep();
    assert!(!pool.is_unused());
    tokio::time::sleep(Duration::from_millis(150)).await;
    pool.sweep();
    assert!(pool.is_unused());
    assert_eq!(
        timeout(SOON, socket.unwrap().read(&mut [0; 8]))
            .await
            .unwrap()
            .unwrap(),
        0
    );
}

#[tokio::test]
async fn an_answer_that_is_no_http_is_a_failure_and_nothing_is_sent_again() {
    for garbage in [
        "\0\0\0\0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        "",
    ] {
        let (pool, mut accepted) = by_hand(PoolLimits::default()).await;
        let answering = async {
            let mut socket = accepted.recv().await.unwrap();
            reply(&mut socket, garbage).await;
        };
        let (result, ()) = tokio::join!(pool.send(request(), None), answering);
        let e = result.err().unwrap_or_else(|| panic!("{garbage:?} was taken"));
        assert!(matches!(e.failure, SendFailure::Broken(_)) && e.request.is_none());
        assert_eq!(pool.connections_made(), 1);
    }
}

#[tokio::test]
async fn connecting_has_a_bound() {
    struct Never;
    impl Connector for Never {
        fn connect(&self) -> BoxFuture<'static, io::Result<Connection>> {
            std::future::pending().boxed()
        }
    }
    let limits = PoolLimits {
        connect_timeout: Duration::from_millis(50),
        ..PoolLimits::default()
    };
    let e = Pool::new(Never, limits).send(request(), None).await.unwrap_err();
    assert!(matches!(e.failure, SendFailure::ConnectTimeout(_)) && e.request.is_some());
}

/// What every idle connection takes, beside its socket.
#[test]
fn a_served_connection_takes_little_room() {
    let (_trigger, drain) = weft_drain::channel();
    let (far, _near) = tokio::io::duplex(1);
    let limits = quick();
    let answer = |_: Request<Body>| async { Response::new(Body::empty()) };
    let serving = weft_l7::serve_any(far, &limits, drain, answer);
    let size = std::mem::size_of_val(&serving);
    assert!(size <= 3072, "{size} bytes");
}
