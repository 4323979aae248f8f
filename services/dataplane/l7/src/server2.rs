//! Serving HTTP/2 without TLS on one accepted connection, in the same bounds as HTTP/1.1.
//!
//! hyper and h2 refuse what is malformed: connection-specific headers, bodies that are not as long
//! as they say, floods of resets. A stream is open until its response's body is sent.

use crate::{Body, InFlight, ServeError, ServerLimits, server::ticks};
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{MissedTickBehavior, interval},
};
use weft_drain::Watcher;

/// Requests of one connection under way at once.
const MAX_STREAMS: u32 = 256;
/// What of one stream, and of all of a connection, is taken before somebody reads it. The second is
/// larger, so that one stream that nobody reads does not stop the others.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What is kept of answers that the client does not read.
const SEND_BUFFER: usize = 256 * 1024;
/// A client that is gone without a word is noticed by this.
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_WITHIN: Duration = Duration::from_secs(20);

pub(crate) async fn serve_http2<T, H, F>(
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
    let open = Arc::new(AtomicU32::new(0));
    let begun = Arc::new(AtomicU32::new(0));
    let service = service_fn(|request: Request<Incoming>| {
        begun.fetch_add(1, Ordering::Relaxed);
        let stream = InFlight::begin(&open);
        let answer = handle(request.map(Body::from));
        async move {
            let mut response = answer.await;
            response.body_mut().stream = Some(stream);
            Ok::<_, Infallible>(response)
        }
    });
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(limits.max_head_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WITHIN);
    let mut connection = pin!(http.serve_connection(TokioIo::new(io), service));
    let mut tick = interval(limits.tick);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let idle_ticks = ticks(limits.idle_timeout, limits.tick);
    let (mut draining, mut idle, mut seen) = (false, 0_u32, 0);
    let mut force = drain.clone();
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return Ok(ended?),
            () = drain.draining(), if !draining => {
                draining = true;
                // GOAWAY: what is under way is finished, and what the client sent before it read
                // this is answered.
                connection.as_mut().graceful_shutdown();
            }
            () = force.forced(), if draining => return Err(ServeError::Forced),
            _ = tick.tick() => {
                let now = begun.load(Ordering::Relaxed);
                let quiet = open.load(Ordering::Relaxed) == 0 && now == std::mem::replace(&mut seen, now);
                idle = if quiet { idle.saturating_add(1) } else { 0 };
                if idle > idle_ticks {
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}
