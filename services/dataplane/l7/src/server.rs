//! Serving one accepted connection within bounds of time: for a head, and without a request.
//!
//! Time is watched by one coarse tick per connection instead of a timer per request: who serves it
//! notes the tick at which a head began, the tick looks how long ago that was.

use crate::{
    Body, BodyError,
    beside::unless,
    detect::{Version, detect},
    h1::{head::HeadError, received::Shared, wire::Wire},
    server1::serve_http1,
    server2::serve_http2,
};
use bytes::BytesMut;
use http::{Request, Response};
use std::{
    io,
    pin::pin,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
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
    /// Of HTTP/2: the bytes were none, or the socket failed.
    #[error("connection failed: {0}")]
    Http(#[from] hyper::Error),
    /// The socket failed.
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
    /// What came is no request that is taken.
    #[error("a request was refused: {0}")]
    Head(#[from] HeadError),
    /// An answer broke off.
    #[error("an answer broke off: {0}")]
    Answer(#[source] BodyError),
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

/// What who serves a connection and the tick tell each other.
#[derive(Debug)]
pub(crate) struct Watch {
    now: AtomicU32,
    /// Tick at which the head being read began; [`NEVER`] when none is.
    head_since: AtomicU32,
    /// Tick at which the last response ended.
    idle_since: AtomicU32,
    /// A request is under way.
    busy: AtomicBool,
    /// No further request is waited for.
    leave: AtomicBool,
}

impl Watch {
    fn new() -> Self {
        Self {
            now: AtomicU32::new(0),
            head_since: AtomicU32::new(NEVER),
            idle_since: AtomicU32::new(0),
            busy: AtomicBool::new(false),
            leave: AtomicBool::new(false),
        }
    }

    /// Some of a head is here.
    pub fn reading(&self) {
        if self.head_since.load(Ordering::Relaxed) == NEVER {
            let now = self.now.load(Ordering::Relaxed);
            self.head_since.store(now, Ordering::Relaxed);
        }
    }

    /// All of it is.
    pub fn begin(&self) {
        self.head_since.store(NEVER, Ordering::Relaxed);
        self.busy.store(true, Ordering::Relaxed);
    }

    /// Its request is answered.
    pub fn end(&self) {
        self.idle_since
            .store(self.now.load(Ordering::Relaxed), Ordering::Relaxed);
        self.busy.store(false, Ordering::Relaxed);
    }

    pub fn leaves(&self) -> bool {
        self.leave.load(Ordering::Relaxed)
    }

    /// Counts the time, and says when it is over. All that it does otherwise is to note that the connection
    /// is to be left.
    async fn keep_time(&self, limits: &ServerLimits, mut drain: Watcher) -> ServeError {
        let mut tick = interval(limits.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (head_ticks, idle_ticks) = (
            ticks(limits.head_timeout, limits.tick),
            ticks(limits.idle_timeout, limits.tick),
        );
        let (mut draining, mut last_tick) = (false, NEVER);
        let mut force = drain.clone();
        loop {
            tokio::select! {
                biased;
                () = drain.draining(), if !draining => {
                    draining = true;
                    if self.busy.load(Ordering::Relaxed) {
                        self.leave.store(true, Ordering::Relaxed);
                    } else {
                        last_tick = self.now.load(Ordering::Relaxed).saturating_add(LAST_TICKS);
                    }
                }
                () = force.forced(), if draining => return ServeError::Forced,
                _ = tick.tick() => {
                    let now = self.now.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                    if self.busy.load(Ordering::Relaxed) {
                        continue;
                    }
                    let head_since = self.head_since.load(Ordering::Relaxed);
                    let idle_since = self.idle_since.load(Ordering::Relaxed);
                    if head_since != NEVER {
                        if now.saturating_sub(head_since) > head_ticks {
                            return ServeError::HeadTimeout(limits.head_timeout);
                        }
                    } else if now > last_tick || now.saturating_sub(idle_since) > idle_ticks {
                        self.leave.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
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
        Some((Version::One, io)) => {
            let (io, read) = io.into_parts();
            serve(io, read, limits, drain, handle).await
        }
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
    drain: Watcher,
    handle: H,
) -> Result<(), ServeError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Body>) -> F,
    F: Future<Output = Response<Body>>,
{
    serve(io, BytesMut::new(), limits, drain, handle).await
}

/// The same; `read` was read of it already.
async fn serve<T, H, F>(
    io: T,
    read: BytesMut,
    limits: &ServerLimits,
    drain: Watcher,
    handle: H,
) -> Result<(), ServeError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Body>) -> F,
    F: Future<Output = Response<Body>>,
{
    let watch = Watch::new();
    let shared = Shared::new(Wire::new(io, read));
    let serving = pin!(serve_http1(&shared, limits, &watch, &drain, &handle));
    let timing = pin!(watch.keep_time(limits, drain.clone()));
    match unless(serving, timing).await {
        Ok(served) => served,
        Err(over) => Err(over),
    }
}
