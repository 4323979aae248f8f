//! Accepting connections: TLS handshakes run beside each other, bounded in number and time, so a
//! caller that stalls holds up nobody. A connection ends with the certificate it was opened with:
//! when that expires, and when it is revoked.

use crate::{
    Caller,
    gate::{Gate, Place},
    refused::ConnectionObserver,
    roles::Connection,
};
use rustls::time_provider::TimeProvider;
use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;
use weft_drain::Watcher;
use weft_tls::{PeerIdentity, Trust};

/// Open connections of one local socket; more wait in the kernel's backlog.
const MAX_LOCAL: usize = 1024;
/// A handshake that takes longer is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A caller without a certificate has this long for what it came for.
const ANONYMOUS_LIFETIME: Duration = Duration::from_secs(60);

/// An accepted connection with what is known of its other end.
#[derive(Debug)]
pub(crate) struct Accepted<T> {
    io: T,
    connection: Connection,
    until: Option<Until>,
    revoked: Option<Revocation>,
    _slot: Slot,
}

/// Ends when the caller's certificate is revoked.
struct Revocation(Pin<Box<dyn Future<Output = ()> + Send>>);

impl std::fmt::Debug for Revocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Revocation")
    }
}

impl Revocation {
    fn of(peer: PeerIdentity, trust: Trust) -> Self {
        Self(Box::pin(async move {
            let mut changes = trust.revocations();
            while !trust.is_revoked(&peer) {
                if changes.changed().await.is_err() {
                    // Nobody can revoke any more.
                    std::future::pending::<()>().await;
                }
            }
        }))
    }
}

/// The place that a connection takes, until it ends.
#[derive(Debug)]
enum Slot {
    Tls { _place: Place },
    Local { _permit: OwnedSemaphorePermit },
}

/// When a connection must end, by the clock that judged its certificate.
#[derive(Debug)]
struct Until {
    clock: Arc<dyn TimeProvider>,
    unix_seconds: u64,
}

impl Until {
    fn is_over(&self) -> bool {
        // Without a clock nothing can be judged: closed.
        self.clock
            .current_time()
            .is_none_or(|now| now.as_secs() > self.unix_seconds)
    }
}

impl<T> Connected for Accepted<T> {
    type ConnectInfo = Connection;
    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Accepted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Looked at by each read. An idle connection reads the answers to keep-alive pings.
        if self.until.as_ref().is_some_and(Until::is_over) {
            let over = "the certificate that the connection was opened with has expired";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, over)));
        }
        // Polled with each read, so its waker is the connection's: also an idle one ends at once.
        if let Some(Revocation(revoked)) = &mut self.revoked
            && revoked.as_mut().poll(cx).is_ready()
        {
            let revoked = "the certificate that the connection was opened with is revoked";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, revoked)));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Accepted<T> {
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

pub(crate) type Incoming<T> = tokio_stream::wrappers::ReceiverStream<io::Result<Accepted<T>>>;

/// A failure of accept itself (out of descriptors, say) is retried after this pause.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// TLS connections of `listener`, until the drain starts.
pub(crate) fn tls(
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    trust: Trust,
    observer: ConnectionObserver,
    mut drain: Watcher,
) -> Incoming<TlsStream<TcpStream>> {
    let (tx, rx) = mpsc::channel(16);
    let gate = Gate::default();
    let clock = config.time_provider.clone();
    let acceptor = TlsAcceptor::from(config);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = drain.draining() => return,
                () = tx.closed() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, from) = match accepted {
                Ok((stream, from)) => (stream, from.ip()),
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Who is over the limit is closed rather than kept waiting: waiting would be a place too.
            let Some(place) = gate.handshake(from) else {
                observer.too_many_handshakes(from);
                continue;
            };
            let (acceptor, clock, gate, tx) = (acceptor.clone(), clock.clone(), gate.clone(), tx.clone());
            let (trust, observer) = (trust.clone(), observer.clone());
            tokio::spawn(async move {
                let shaking = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(&acceptor, stream));
                let (shaken, refused) = weft_tls::with_refused(shaking).await;
                drop(place);
                match shaken {
                    Ok(Ok((io, caller))) => match gate.connection(&caller, from) {
                        Some(place) => {
                            if let Some(accepted) = admit(io, (caller, from), place, clock, trust) {
                                let _ = tx.send(Ok(accepted)).await;
                            }
                        }
                        None => observer.too_many_connections(from, &caller),
                    },
                    Ok(Err(error)) => observer.failed(from, refused, &error),
                    Err(_) => observer.timed_out(from),
                }
            });
        }
    });
    rx.into()
}

/// Gives a connection its end; none when there is no clock to tell it.
fn admit(
    io: TlsStream<TcpStream>,
    (caller, from): (Caller, IpAddr),
    place: Place,
    clock: Arc<dyn TimeProvider>,
    trust: Trust,
) -> Option<Accepted<TlsStream<TcpStream>>> {
    let unix_seconds = match &caller {
        Caller::Tls(peer) => peer.not_after,
        Caller::Anonymous | Caller::Local { .. } | Caller::Loopback => {
            clock.current_time()?.as_secs() + ANONYMOUS_LIFETIME.as_secs()
        }
    };
    let revoked = match &caller {
        Caller::Tls(peer) => Some(Revocation::of(peer.clone(), trust)),
        Caller::Anonymous | Caller::Local { .. } | Caller::Loopback => None,
    };
    Some(Accepted {
        io,
        connection: Connection {
            caller,
            from: Some(from),
        },
        revoked,
        until: Some(Until { clock, unix_seconds }),
        _slot: Slot::Tls { _place: place },
    })
}

async fn handshake(acceptor: &TlsAcceptor, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Caller)> {
    stream.set_nodelay(true)?;
    let io = acceptor.accept(stream).await?;
    let peer = weft_tls::peer_identity(io.get_ref().1).map_err(io::Error::other)?;
    let caller = peer.map_or(Caller::Anonymous, Caller::Tls);
    Ok((io, caller))
}

/// Connections without TLS from this machine, until the drain starts. Others are closed: the listener
/// is on loopback, and a route may still lead to it.
pub(crate) fn loopback(listener: TcpListener, mut drain: Watcher) -> Incoming<TcpStream> {
    let (tx, rx) = mpsc::channel(16);
    let slots = Arc::new(Semaphore::new(MAX_LOCAL));
    tokio::spawn(async move {
        loop {
            let next = async {
                let slot = slots.clone().acquire_owned().await.ok()?;
                Some((listener.accept().await, slot))
            };
            let (accepted, slot) = tokio::select! {
                () = drain.draining() => return,
                () = tx.closed() => return,
                next = next => match next { Some(next) => next, None => return },
            };
            match accepted {
                Ok((io, from)) if from.ip().to_canonical().is_loopback() => {
                    let _ = tx
                        .send(Ok(Accepted {
                            io,
                            connection: Connection {
                                caller: Caller::Loopback,
                                from: Some(from.ip()),
                            },
                            until: None,
                            revoked: None,
                            _slot: Slot::Local { _permit: slot },
                        }))
                        .await;
                }
                Ok((_, from)) => tracing::warn!(%from, "connection without TLS refused: not of this machine"),
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    rx.into()
}

/// Connections of a unix socket from root or this process's own user, until the drain starts.
pub(crate) fn local(listener: UnixListener, mut drain: Watcher) -> Incoming<UnixStream> {
    let (tx, rx) = mpsc::channel(16);
    let slots = Arc::new(Semaphore::new(MAX_LOCAL));
    tokio::spawn(async move {
        loop {
            let next = async {
                let slot = slots.clone().acquire_owned().await.ok()?;
                Some((listener.accept().await, slot))
            };
            let (accepted, slot) = tokio::select! {
                () = drain.draining() => return,
                () = tx.closed() => return,
                next = next => match next { Some(next) => next, None => return },
            };
            let uid = match accepted.and_then(|(io, _)| Ok((io.peer_cred()?.uid(), io))) {
                Ok((uid, io)) if crate::local::permitted(uid) => {
                    let _ = tx
                        .send(Ok(Accepted {
                            io,
                            connection: Connection {
                                caller: Caller::Local { uid },
                                from: None,
                            },
                            until: None,
                            revoked: None,
                            _slot: Slot::Local { _permit: slot },
                        }))
                        .await;
                    continue;
                }
                Ok((uid, _)) => uid,
                Err(error) => {
                    tracing::warn!(%error, "accept on the local socket failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            tracing::warn!(uid, "local socket: user refused");
        }
    });
    rx.into()
}
