//! Keep-alive connections to one peer: an app of this node, or an app behind a tunnel.
//!
//! The last connection used is the first used again, so that what a quiet time does not need goes
//! idle and is closed. A request is sent a second time only if nothing of it was sent the first.

use crate::{Body, InFlight, h1::exchange::Exchange};
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::SizeHint;
use parking_lot::Mutex;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::io::{AsyncRead, AsyncWrite};

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
    exchange: Box<Exchange>,
    /// Set by whoever knows that it must not be used for further requests.
    retired: Option<Arc<AtomicBool>>,
}

impl Connection {
    /// Speaks HTTP/1.1 over `io`. Once `retired` is set, no further request is sent on it.
    pub async fn handshake<T>(io: T, retired: Option<Arc<AtomicBool>>) -> io::Result<Self>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Ok(Self {
            exchange: Box::new(Exchange::new(io)),
            retired,
        })
    }

    /// Looks at what came unasked, which costs no system call unless something did.
    fn is_usable(&mut self) -> bool {
        !self.retired.as_ref().is_some_and(|r| r.load(Ordering::Acquire)) && !self.exchange.is_dead()
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
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
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
            match connection.exchange.send(request).await {
                Ok((head, asked)) => {
                    // One that becomes something else is used for no further request.
                    let switched = head.status() == StatusCode::SWITCHING_PROTOCOLS;
                    let mut lease = Lease {
                        connection: Some(connection),
                        slot: Some(slot),
                        asked: Some(asked),
                        _counted: [counted, None, None],
                    };
                    let body = match lease.connection.take_if(|_| switched) {
                        Some(connection) => Body::handed(lease, connection.exchange.hand_over()),
                        None => Body::answered(lease),
                    };
                    return Ok(head.map(|()| body));
                }
                // It was closed in the same moment; nothing was sent.
                Err((_, Some(unsent))) if !fresh => request = unsent,
                Err((error, unsent)) => {
                    return Err(Box::new(SendError {
                        failure: SendFailure::Broken(error.into()),
                        request: unsent,
                    }));
                }
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
        let mut closed = Vec::new();
        let mut idle = self.idle.lock();
        while let Some(mut taken) = idle.pop() {
            if taken.since.elapsed() >= self.limits.idle_timeout {
                // All below are older.
                closed.push(taken);
                closed.append(&mut idle);
                break;
            }
            if taken.connection.is_usable() {
                return Some(taken.connection);
            }
            closed.push(taken);
        }
        drop(idle);
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

    fn give_back(self: &Arc<Self>, mut connection: Connection) {
        if connection.exchange.is_sending() {
            // Its answer came first, and nobody waits for the rest of the request any more.
            let pool = self.clone();
            tokio::spawn(async move {
                match connection.exchange.finish_sending().await {
                    Ok(()) => pool.keep(connection),
                    Err(error) => tracing::debug!(%error, "a request ended after its answer"),
                }
            });
            return;
        }
        self.keep(connection);
    }

    fn keep(&self, mut connection: Connection) {
        if !connection.exchange.is_reusable() || !connection.is_usable() {
            return;
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
    /// The headers of the request.
    pub asked: Option<HeaderMap>,
    _counted: [Option<InFlight>; 3],
}

impl Lease {
    /// Of a stream of a connection that has many, which only counts.
    pub fn of_stream(open: InFlight, under_way: InFlight, counted: Option<InFlight>) -> Self {
        Self {
            connection: None,
            slot: None,
            asked: None,
            _counted: [Some(open), Some(under_way), counted],
        }
    }

    /// What brings the answer's body.
    pub fn exchange(&mut self) -> Option<&mut Exchange> {
        self.connection
            .as_mut()
            .map(|connection| &mut *connection.exchange)
    }

    pub fn is_ended(&self) -> bool {
        self.connection
            .as_ref()
            .is_none_or(|connection| connection.exchange.is_ended())
    }

    pub fn size_hint(&self) -> SizeHint {
        let connection = self.connection.as_ref();
        connection.map_or_else(SizeHint::default, |connection| connection.exchange.size_hint())
    }

    /// The answer is complete: the connection may be used again. Dropping the lease without this
    /// closes the connection.
    pub fn finish(&mut self) {
        if let (Some(connection), Some(slot)) = (self.connection.take(), &self.slot) {
            slot.0.give_back(connection);
        }
    }
}
