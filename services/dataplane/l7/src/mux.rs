//! HTTP/2 connections to one peer, without TLS: many requests on one connection, another when that
//! has enough, and none kept that nobody uses.

use crate::{Body, InFlight, PoolLimits, SendError, SendFailure, pool::Lease};
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::io::{AsyncRead, AsyncWrite};

/// Requests under way on one connection before another is made. Servers take 100 at least
/// (RFC 9113, section 6.5.2).
const STREAMS: u32 = 100;
/// As when serving: what is taken before somebody reads it.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const SEND_BUFFER: usize = 256 * 1024;
const HEADER_LIST: u32 = 64 * 1024;
/// A peer that is gone without a word is noticed by this, while requests are under way.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_WITHIN: Duration = Duration::from_secs(10);

/// Makes connections for a [`MuxPool`].
pub trait MuxConnector: Send + Sync + 'static {
    /// Connects and does HTTP's part by [`MuxConnection::handshake`].
    fn connect(&self) -> BoxFuture<'static, io::Result<MuxConnection>>;
}

/// A connection that takes many requests at a time.
#[derive(Debug, Clone)]
pub struct MuxConnection {
    sender: SendRequest<Body>,
    open: Arc<AtomicU32>,
    /// Set by whoever knows that it must not be used for further requests.
    retired: Option<Arc<AtomicBool>>,
}

impl MuxConnection {
    /// Speaks HTTP/2 over `io`, driven by a task that ends with the connection.
    pub async fn handshake<T>(io: T, retired: Option<Arc<AtomicBool>>) -> io::Result<Self>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(HEADER_LIST)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WITHIN);
        let (sender, driver) = builder
            .handshake(TokioIo::new(io))
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(async move {
            if let Err(e) = driver.await {
                tracing::debug!(error = %e, "connection to a peer ended");
            }
        });
        Ok(Self {
            sender,
            open: Arc::default(),
            retired,
        })
    }

    fn is_usable(&self) -> bool {
        !self.sender.is_closed() && !self.retired.as_ref().is_some_and(|r| r.load(Ordering::Acquire))
    }
}

struct Kept {
    connection: MuxConnection,
    used: Instant,
}

/// HTTP/2 connections to one peer.
pub struct MuxPool {
    connector: Box<dyn MuxConnector>,
    limits: PoolLimits,
    kept: Mutex<Vec<Kept>>,
    /// Several requests that need a connection at once wait for the same one.
    connecting: tokio::sync::Mutex<()>,
    in_use: Arc<AtomicU32>,
    made: AtomicUsize,
}

impl std::fmt::Debug for MuxPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MuxPool")
            .field("in_use", &self.in_use.load(Ordering::Relaxed))
            .field("connections", &self.kept.lock().len())
            .finish_non_exhaustive()
    }
}

impl MuxPool {
    /// Of connections that `connector` makes.
    pub fn new(connector: impl MuxConnector, limits: PoolLimits) -> Arc<Self> {
        Arc::new(Self {
            connector: Box::new(connector),
            limits,
            kept: Mutex::default(),
            connecting: tokio::sync::Mutex::new(()),
            in_use: Arc::default(),
            made: AtomicUsize::new(0),
        })
    }

    /// Sends one request. `counted` goes with the answer's body.
    pub async fn send(
        &self,
        mut request: Request<Body>,
        counted: Option<InFlight>,
    ) -> Result<Response<Body>, Box<SendError>> {
        let under_way = InFlight::begin(&self.in_use);
        let most = self.limits.max_in_use;
        if self.in_use.load(Ordering::Relaxed) as usize > most {
            return Err(SendError::untouched(SendFailure::Overloaded(most), request));
        }
        loop {
            let (mut connection, open, fresh) = match self.connection().await {
                Ok(found) => found,
                Err(failure) => return Err(SendError::untouched(failure, request)),
            };
            match connection.sender.try_send_request(request).await {
                Ok(response) => {
                    let lease = Lease::of_stream(open, under_way, counted);
                    return Ok(response.map(|incoming| Body::leased(incoming, lease)));
                }
                Err(mut e) => match e.take_message() {
                    // It was closed in the same moment; nothing was sent.
                    Some(unsent) if !fresh => request = unsent,
                    unsent => {
                        let failure = SendFailure::Broken(e.into_error().into());
                        return Err(Box::new(SendError {
                            failure,
                            request: unsent,
                        }));
                    }
                },
            }
        }
    }

    /// Forgets what is idle for too long. Call now and then.
    pub fn sweep(&self) {
        let (now, timeout) = (Instant::now(), self.limits.idle_timeout);
        let mut closed = Vec::new();
        let mut kept = self.kept.lock();
        let mut at = 0;
        while at < kept.len() {
            let there = &mut kept[at];
            if there.connection.open.load(Ordering::Relaxed) > 0 {
                there.used = now;
            }
            if there.connection.is_usable() && now.duration_since(there.used) < timeout {
                at += 1;
            } else {
                closed.push(kept.swap_remove(at));
            }
        }
        drop(kept);
        drop(closed);
    }

    /// Whether it holds no connection and no request.
    pub fn is_unused(&self) -> bool {
        self.in_use.load(Ordering::Acquire) == 0 && self.kept.lock().is_empty()
    }

    /// How many connections were ever made.
    pub fn connections_made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    fn roomy(&self) -> Option<(MuxConnection, InFlight)> {
        let mut kept = self.kept.lock();
        kept.retain(|k| k.connection.is_usable());
        let roomy = |k: &&mut Kept| k.connection.open.load(Ordering::Relaxed) < STREAMS;
        let found = kept.iter_mut().find(roomy)?;
        found.used = Instant::now();
        let connection = found.connection.clone();
        let open = InFlight::begin(&connection.open);
        Some((connection, open))
    }

    /// A connection with room, and whether it was made just now.
    async fn connection(&self) -> Result<(MuxConnection, InFlight, bool), SendFailure> {
        if let Some((connection, open)) = self.roomy() {
            return Ok((connection, open, false));
        }
        let limit = self.limits.connect_timeout;
        let _one = self.connecting.lock().await;
        if let Some((connection, open)) = self.roomy() {
            return Ok((connection, open, false));
        }
        self.made.fetch_add(1, Ordering::Relaxed);
        let connection = match tokio::time::timeout(limit, self.connector.connect()).await {
            Ok(connected) => connected.map_err(SendFailure::Connect)?,
            Err(_) => return Err(SendFailure::ConnectTimeout(limit)),
        };
        let open = InFlight::begin(&connection.open);
        self.kept.lock().push(Kept {
            connection: connection.clone(),
            used: Instant::now(),
        });
        Ok((connection, open, true))
    }
}
