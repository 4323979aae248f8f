//! Serving one accepted connection: bounds on heads, time and idleness, and refusal of ambiguous
//! framing.
//!
//! Time is watched by one coarse tick per connection instead of a timer per request: the reading
//! side notes the tick at which a head began, the tick looks how long ago that was.

use crate::{
    Body,
    detect::{Version, detect},
    scan::HeadScan,
    server2::serve_http2,
};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{MissedTickBehavior, interval},
};
use weft_drain::Watcher;

/// What one connection may take.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Headers of one request.
    pub max_headers: usize,
    /// Bytes of one head.
    pub max_head_bytes: usize,
    /// Time from the first byte of a head to its last.
    pub head_timeout: Duration,
    /// Time without a request after which the connection is closed.
    pub idle_timeout: Duration,
    /// How often the two times above are looked at.
    pub tick: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            max_headers: 100,
            max_head_bytes: 64 * 1024,
            head_timeout: Duration::from_secs(10),
            // Longer than the clients' own, so that it is they who close.
            idle_timeout: Duration::from_secs(300),
            tick: Duration::from_secs(1),
        }
    }
}

/// Why a connection ended other than by its own end.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The bytes were no HTTP, or the socket failed.
    #[error("connection failed: {0}")]
    Http(#[from] hyper::Error),
    /// A head was begun and not ended in time.
    #[error("no complete request head within {0:?}")]
    HeadTimeout(Duration),
    /// The drain's deadline passed.
    #[error("closed by shutdown with a request under way")]
    Forced,
}

const NEVER: u32 = u32::MAX;
/// Ticks that a connection without a request under way is kept open after the drain started: what
/// its client has sent meanwhile is answered, with the word that it was the last.
const LAST_TICKS: u32 = 1;

/// What the reading side, the service and the tick tell each other.
#[derive(Debug)]
struct Watch {
    now: AtomicU32,
    /// Tick at which the head being read began; [`NEVER`] when none is.
    head_since: AtomicU32,
    /// Tick at which the last response ended.
    idle_since: AtomicU32,
    /// Bodies of the request under way that have not ended: its own, and its response's.
    busy: AtomicU32,
    /// Bytes came after the request's body had ended: the head of the next, pipelined.
    read_while_busy: AtomicBool,
    /// Only ever locked by this connection's own task.
    scan: Mutex<HeadScan>,
}

impl Watch {
    fn on_bytes(&self, bytes: &[u8]) {
        if self.busy.load(Ordering::Relaxed) > 0 {
            self.read_while_busy.store(true, Ordering::Relaxed);
            return;
        }
        if self.head_since.load(Ordering::Relaxed) == NEVER {
            self.head_since
                .store(self.now.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.scan.lock().feed(bytes);
    }

    /// A request's head is complete. `false` when its framing is ambiguous, or when nobody looked
    /// at the head of a chunked request because it was pipelined behind another.
    fn begin(self: &Arc<Self>, chunked: bool) -> (Busy, bool) {
        let scan = std::mem::take(&mut *self.scan.lock());
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(NEVER, Ordering::Relaxed);
        // Bytes behind the head may have been read together with it.
        self.read_while_busy.store(false, Ordering::Relaxed);
        (
            Busy(self.clone()),
            !scan.is_ambiguous() && (!chunked || scan.transfer_encoding),
        )
    }

    fn end(&self) {
        let now = self.now.load(Ordering::Relaxed);
        self.idle_since.store(now, Ordering::Relaxed);
        self.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Marks the connection as busy until dropped with a body.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Watch>);

impl Busy {
    /// For the request's own body: what came while it was read was that body.
    fn with_body(&self) -> RequestBusy {
        self.0.busy.fetch_add(1, Ordering::Relaxed);
        RequestBusy(Self(self.0.clone()))
    }
}

/// As [`Busy`], for the body of the request.
#[derive(Debug)]
pub(crate) struct RequestBusy(Busy);

impl Drop for RequestBusy {
    fn drop(&mut self) {
        self.0.0.read_while_busy.store(false, Ordering::Relaxed);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The connection, with the reading side watched.
struct Watched<T> {
    io: T,
    watch: Arc<Watch>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.watch.on_bytes(&buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// `time` in ticks, at least one.
pub(crate) fn ticks(time: Duration, tick: Duration) -> u32 {
    let ticks = time.as_nanos().div_ceil(tick.as_nanos().max(1));
    u32::try_from(ticks).unwrap_or(NEVER - 1).max(1)
}

/// Serves HTTP/1.1 or, where the client begins with its preface, HTTP/2 on `io` until it ends. As
/// [`serve_connection`]; requests of one HTTP/2 connection are handled at the same time.
pub async fn serve_any<T, H, F>(
    io: T,
    limits: &ServerLimits,
    mut drain: Watcher,
    handle: H,
) -> Result<(), ServeError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Body>) -> F,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    match detect(io, limits, &mut drain).await? {
        None => Ok(()),
        Some((Version::One, io)) => serve_connection(io, limits, drain, handle).await,
        // Rare, and large.
        Some((Version::Two, io)) => Box::pin(serve_http2(io, limits, drain, handle)).await,
    }
}

/// Serves HTTP/1.1 on `io` until it ends. At the drain the request under way is finished and the
/// connection closed; without one, the next request is waited for a moment, so that none is lost
/// that was sent before its client could know. At the force signal all is dropped. A connection that
/// became something else (see [`crate::Upgrade`]) is not served any more: it goes on where that is
/// carried.
pub async fn serve_connection<T, H, F>(
    io: T,
    limits: &ServerLimits,
    mut drain: Watcher,
    handle: H,
) -> Result<(), ServeError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Body>) -> F,
    F: Future<Output = Response<Body>>,
{
    let watch = Arc::new(Watch {
        now: AtomicU32::new(0),
        head_since: AtomicU32::new(NEVER),
        idle_since: AtomicU32::new(0),
        busy: AtomicU32::new(0),
        read_while_busy: AtomicBool::new(false),
        scan: Mutex::default(),
    });
    let leaving = drain.clone();
    let service = service_fn(|request: Request<Incoming>| {
        let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
        let (busy, sound) = watch.begin(chunked);
        let request = request.map(|incoming| Body::received(incoming, || busy.with_body()));
        // Only made when it is used. On the heap: hyper keeps room for what is returned here with each
        // connection, also while it is idle, and moves it there.
        let answer = sound.then(|| Box::pin(handle(request)));
        let leaving = &leaving;
        async move {
            let mut response = match answer {
                Some(answer) => answer.await,
                None => ambiguous(),
            };
            if leaving.is_draining() {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            response.body_mut().busy = Some(busy);
            Ok::<_, Infallible>(response)
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.half_close(false)
        .header_read_timeout(None)
        .max_headers(limits.max_headers)
        .max_header_size(limits.max_head_bytes)
        // Also how much of a body is read ahead of who takes it.
        .max_buf_size(limits.max_head_bytes.max(8192));
    let watched = TokioIo::new(Watched {
        io,
        watch: watch.clone(),
    });
    let mut connection = pin!(http.serve_connection(watched, service).with_upgrades());
    let mut tick = interval(limits.tick);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (head_ticks, idle_ticks) = (
        ticks(limits.head_timeout, limits.tick),
        ticks(limits.idle_timeout, limits.tick),
    );
    let mut draining = false;
    let mut last_tick = NEVER;
    let mut force = drain.clone();
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return Ok(ended?),
            () = drain.draining(), if !draining => {
                draining = true;
                if watch.busy.load(Ordering::Relaxed) > 0 {
                    connection.as_mut().graceful_shutdown();
                } else {
                    last_tick = watch.now.load(Ordering::Relaxed).saturating_add(LAST_TICKS);
                }
            }
            () = force.forced(), if draining => return Err(ServeError::Forced),
            _ = tick.tick() => {
                let now = watch.now.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                if watch.busy.load(Ordering::Relaxed) > 0 {
                    continue;
                }
                if now > last_tick {
                    connection.as_mut().graceful_shutdown();
                }
                let head_since = watch.head_since.load(Ordering::Relaxed);
                if head_since != NEVER {
                    if now.saturating_sub(head_since) > head_ticks {
                        return Err(ServeError::HeadTimeout(limits.head_timeout));
                    }
                } else if watch.read_while_busy.swap(false, Ordering::Relaxed) {
                    // Perhaps the start of a head: counts from now.
                    watch.head_since.store(now, Ordering::Relaxed);
                } else if now.saturating_sub(watch.idle_since.load(Ordering::Relaxed)) > idle_ticks {
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

fn ambiguous() -> Response<Body> {
    let mut response = Response::new(Body::from("ambiguous message framing\n"));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
