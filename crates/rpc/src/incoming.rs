//! Accepting connections: TLS handshakes run beside each other, bounded in number and time, so a
//! caller that stalls holds up nobody.

use crate::Caller;
use std::{
    io,
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

/// Open connections of one server; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 4096;
/// A handshake that takes longer is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// An accepted connection with what is known of its other end.
#[derive(Debug)]
pub(crate) struct Accepted<T> {
    io: T,
    caller: Caller,
    _slot: OwnedSemaphorePermit,
}

impl<T> Connected for Accepted<T> {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Accepted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
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
    mut drain: Watcher,
) -> Incoming<TlsStream<TcpStream>> {
    let (tx, rx) = mpsc::channel(16);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let acceptor = TlsAcceptor::from(config);
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
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (acceptor, tx) = (acceptor.clone(), tx.clone());
            tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(&acceptor, stream)).await {
                    Ok(Ok((io, caller))) => {
                        let _ = tx
                            .send(Ok(Accepted {
                                io,
                                caller,
                                _slot: slot,
                            }))
                            .await;
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "TLS handshake refused"),
                    Err(_) => tracing::debug!("TLS handshake timed out"),
                }
            });
        }
    });
    rx.into()
}

async fn handshake(acceptor: &TlsAcceptor, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Caller)> {
    stream.set_nodelay(true)?;
    let io = acceptor.accept(stream).await?;
    let peer = weft_tls::peer_identity(io.get_ref().1).map_err(io::Error::other)?;
    let caller = peer.map_or(Caller::Anonymous, Caller::Tls);
    Ok((io, caller))
}

/// Connections of a unix socket from root or this process's own user, until the drain starts.
pub(crate) fn local(listener: UnixListener, mut drain: Watcher) -> Incoming<UnixStream> {
    let (tx, rx) = mpsc::channel(16);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
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
                            caller: Caller::Local { uid },
                            _slot: slot,
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
