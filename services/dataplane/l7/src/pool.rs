//! Keep-alive connections to one peer: an app of this node, or an app behind a tunnel.
//!
//! The last connection used is the first used again, so that what a quiet time does not need goes
//! idle and is closed. A request is sent a second time only if nothing of it was sent the first.

use crate::{Body, InFlight, drive::Driver};
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{self, SendRequest},
    },
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::unconstrained,
};

/// A request's body that is longer, or does not say how long it is, is sent by a task: its answer may
/// come and be read first.
const SHORT_BODY: usize = 64 * 1024;

/// Bounds of one pool.
#[derive(Debug, Clone)]
pub struct PoolLimits {
    /// Requests under way at once; more are refused.
    pub max_in_use: usize,
    /// Idle connections kept; more are closed.
    pub max_idle: usize,
    /// How long a connection may be idle.
    pub idle_timeout: Duration,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self {
            max_in_use: 1024,
            max_idle: 128,
            idle_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
        }
    }
}

/// Makes connections for a pool.
pub trait Connector: Send + Sync + 'static {
    /// Connects and does HTTP's part by [`Connection::handshake`].
    fn connect(&self) -> BoxFuture<'static, io::Result<Connection>>;
}

/// A connection that takes one request at a time.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Body>,
    driver: Driver,
    /// Set by whoever knows that it must not be used for further requests.
    retired: Option<Arc<AtomicBool>>,
}

impl Connection {
    /// Speaks HTTP/1.1 over `io`. Once `retired` is set, no further request is sent on it.
    pub async fn handshake<T>(io: T, retired: Option<Arc<AtomicBool>>) -> io::Result<Self>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = http1::Builder::new();
        builder
            .max_headers(100)
            .max_header_size(64 * 1024)
            .max_buf_size(64 * 1024);
        let (sender, driver) = builder
            .handshake(TokioIo::new(io))
            .await
            .map_err(io::Error::other)?;
        let driver = Driver::new(async move {
            if let Err(e) = driver.with_upgrades().await {
                tracing::debug!(error = %e, "connection to a peer ended");
            }
        });
        Ok(Self {
            sender,
            driver,
            retired,
        })
    }

    async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        if !request.body().is_short(SHORT_BODY) {
            self.driver.send_away();
        }
        // Without a budget: what has used it up would ask to be woken, and here nobody listens.
        let mut answer = pin!(unconstrained(self.sender.try_send_request(request)));
        poll_fn(|cx| self.driver.poll(cx, |cx| answer.as_mut().poll(cx))).await
    }

    fn is_usable(&self) -> bool {
        !self.sender.is_closed() && !self.retired.as_ref().is_some_and(|r| r.load(Ordering::Acquire))
    }
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendFailure {
    /// No connection.
    #[error("connecting failed: {0}")]
    Connect(#[source] io::Error),
    /// No connection in time.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// Too many requests under way.
    #[error("{0} requests are under way already, which is the bound")]
    Overloaded(usize),
    /// The connection ended before the answer's head.
    #[error("no answer: {0}")]
    Broken(#[source] hyper::Error),
}

/// A [`SendFailure`], with the request if nothing of it was sent: it may go elsewhere.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct SendError {
    /// What happened.
    #[source]
    pub failure: SendFailure,
    /// The untouched request.
    pub request: Option<Request<Body>>,
}

impl SendError {
    pub(crate) fn untouched(failure: SendFailure, request: Request<Body>) -> Box<Self> {
        Box::new(Self {
            failure,
            request: Some(request),
        })
    }
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// Connections to one peer.
pub struct Pool {
    connector: Box<dyn Connector>,
    limits: PoolLimits,
    idle: Mutex<Vec<Idle>>,
    in_use: AtomicUsize,
    made: AtomicUsize,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("in_use", &self.in_use.load(Ordering::Relaxed))
            .field("idle", &self.idle.lock().len())
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// Of connections that `connector` makes.
    pub fn new(connector: impl Connector, limits: PoolLimits) -> Arc<Self> {
        Arc::new(Self {
            connector: Box::new(connector),
            limits,
            idle: Mutex::default(),
            in_use: AtomicUsize::new(0),
            made: AtomicUsize::new(0),
        })
    }

    /// Sends one request. The answer's body gives the connection back at its end; `counted` goes
    /// with it.
    pub async fn send(
        self: &Arc<Self>,
        mut request: Request<Body>,
        counted: Option<InFlight>,
    ) -> Result<Response<Body>, Box<SendError>> {
        let slot = match Slot::take(self) {
            Ok(slot) => slot,
            Err(failure) => return Err(SendError::untouched(failure, request)),
        };
        loop {
            let (mut connection, fresh) = match self.take_idle() {
                Some(connection) => (connection, false),
                None => match self.connect().await {
                    Ok(connection) => (connection, true),
                    Err(failure) => return Err(SendError::untouched(failure, request)),
                },
            };
            match connection.send(request).await {
                Ok(response) => {
                    // One that becomes something else is used for no further request.
                    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                    if switched {
                        connection.driver.send_away();
                    }
                    let lease = Lease {
                        connection: (!switched).then_some(connection),
                        slot: Some(slot),
                        _counted: [counted, None, None],
                    };
                    return Ok(response.map(|incoming| match switched {
                        true => Body::holding(lease),
                        false => Body::leased(incoming, lease),
                    }));
                }
                Err(mut e) => match e.take_message() {
                    // It was closed in the same moment; nothing was sent.
                    Some(unsent) if !fresh => request = unsent,
                    unsent => {
                        let failure = SendFailure::Broken(e.into_error());
                        return Err(Box::new(SendError {
                            failure,
                            request: unsent,
                        }));
                    }
                },
            }
        }
    }

    /// Closes what was idle for too long, and what its peer has closed. Call now and then.
    pub fn sweep(&self) {
        let now = Instant::now();
        let mut closed = Vec::new();
        let mut idle = self.idle.lock();
        let mut at = 0;
        while at < idle.len() {
            let there = &mut idle[at];
            // Reads at most what came unasked: two system calls that do not wait.
            there
                .connection
                .driver
                .drive(&mut Context::from_waker(Waker::noop()));
            if there.connection.is_usable() && now.duration_since(there.since) < self.limits.idle_timeout {
                at += 1;
            } else {
                closed.push(idle.remove(at));
            }
        }
        drop(idle);
        drop(closed);
    }

    /// Whether it holds no connection and no request.
    pub fn is_unused(&self) -> bool {
        self.in_use.load(Ordering::Acquire) == 0 && self.idle.lock().is_empty()
    }

    /// How many connections were ever made.
    pub fn connections_made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            if !idle[at].connection.is_usable() {
                idle.remove(at);
            } else if idle[at].connection.sender.is_ready() {
                let taken = idle.remove(at);
                if taken.since.elapsed() < self.limits.idle_timeout {
                    return Some(taken.connection);
                }
                // All below are older.
                idle.truncate(at);
                return None;
            }
            // Otherwise its last exchange is not quite over (a body still being sent): leave it.
        }
        None
    }

    async fn connect(&self) -> Result<Connection, SendFailure> {
        let limit = self.limits.connect_timeout;
        self.made.fetch_add(1, Ordering::Relaxed);
        match tokio::time::timeout(limit, self.connector.connect()).await {
            Ok(connected) => connected.map_err(SendFailure::Connect),
            Err(_) => Err(SendFailure::ConnectTimeout(limit)),
        }
    }

    fn give_back(&self, mut connection: Connection) {
        if !connection.is_usable() {
            return;
        }
        if !connection.sender.is_ready() {
            // Its request is not sent to the end, and nobody waits for that any more.
            connection.driver.send_away();
        }
        let idle = Idle {
            connection,
            since: Instant::now(),
        };
        let mut all = self.idle.lock();
        let surplus = (all.len() >= self.limits.max_idle).then(|| all.remove(0));
        all.push(idle);
        drop(all);
        drop(surplus);
    }
}

/// One of the requests that may be under way.
#[derive(Debug)]
struct Slot(Arc<Pool>);

impl Slot {
    fn take(pool: &Arc<Pool>) -> Result<Self, SendFailure> {
        if pool.in_use.fetch_add(1, Ordering::AcqRel) >= pool.limits.max_in_use {
            pool.in_use.fetch_sub(1, Ordering::AcqRel);
            return Err(SendFailure::Overloaded(pool.limits.max_in_use));
        }
        Ok(Self(pool.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.in_use.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A connection in use by one answer's body.
#[derive(Debug)]
pub(crate) struct Lease {
    connection: Option<Connection>,
    slot: Option<Slot>,
    _counted: [Option<InFlight>; 3],
}

impl Lease {
    /// Of a stream of a connection that has many, which only counts.
    pub fn of_stream(open: InFlight, under_way: InFlight, counted: Option<InFlight>) -> Self {
        Self {
            connection: None,
            slot: None,
            _counted: [Some(open), Some(under_way), counted],
        }
    }

    /// Lets the connection go on, then polls what comes of it.
    pub fn poll<T>(&mut self, cx: &mut Context<'_>, wait: impl FnOnce(&mut Context<'_>) -> T) -> T {
        match &mut self.connection {
            Some(connection) => connection.driver.poll(cx, wait),
            None => wait(cx),
        }
    }

    /// The answer is complete: the connection may be used again. Dropping the lease without this
    /// closes the connection.
    pub fn finish(&mut self) {
        if let (Some(connection), Some(slot)) = (self.connection.take(), &self.slot) {
            slot.0.give_back(connection);
        }
    }
}
