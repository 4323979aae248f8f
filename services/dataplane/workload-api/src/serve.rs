//! Accepting connections: each is known by its process from the first moment, and there are only
//! so many.

use crate::{Peer, PeerError, Source, api::Api, authority::Lenient};
use std::{
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Server, server::Connected};
use weft_drain::Watcher;
use weft_proto::spiffe::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use weft_tls::Trust;

/// Open connections in all; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 4096;
/// Calls of one connection at once. The standard has five methods, four of them streams.
const MAX_STREAMS: u32 = 32;
/// Requests are a token at most.
const MAX_REQUEST: usize = 64 * 1024;
/// A failure of accept itself (no descriptors left, say) is tried again after this pause.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the API is not served any more.
#[derive(Debug, thiserror::Error)]
#[error("the SPIFFE Workload API failed: {0}")]
pub struct ServeError(String);

/// A connection and the process that made it.
#[derive(Debug)]
struct Accepted {
    io: Lenient<UnixStream>,
    peer: Arc<Peer>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Accepted {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        self.peer.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Serves the API until the drain. `cgroup2` is where the hierarchy is mounted that
/// [`Source::find`] knows its cgroups by.
pub async fn serve<S: Source>(
    listener: UnixListener,
    source: Arc<S>,
    trust: Trust,
    cgroup2: PathBuf,
    drain: Watcher,
) -> Result<(), ServeError> {
    let incoming = accept(listener, drain.clone());
    let api = Api::new(source, trust, cgroup2, drain.clone());
    let service = SpiffeWorkloadApiServer::new(api).max_decoding_message_size(MAX_REQUEST);
    let mut stop = drain.clone();
    let served = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, async move { stop.draining().await });
    match drain.until_forced(served).await {
        Some(Err(error)) => Err(ServeError(error.to_string())),
        Some(Ok(())) | None => Ok(()),
    }
}

fn accept(listener: UnixListener, mut drain: Watcher) -> ReceiverStream<io::Result<Accepted>> {
    let (tx, rx) = mpsc::channel(16);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let next = async {
                let place = places.clone().acquire_owned().await.ok()?;
                Some((listener.accept().await, place))
            };
            let (accepted, place) = tokio::select! {
                () = drain.draining() => return,
                () = tx.closed() => return,
                next = next => match next { Some(next) => next, None => return },
            };
            match accepted.map(|(io, _)| (Peer::of(&io), io)) {
                Ok((Ok(peer), io)) => {
                    let accepted = Accepted {
                        io: Lenient::new(io),
                        peer: Arc::new(peer),
                        _place: place,
                    };
                    let _ = tx.send(Ok(accepted)).await;
                }
                // Gone before it was served.
                Ok((Err(PeerError::Ended), _)) => {}
                Ok((Err(error), _)) => {
                    tracing::warn!(%error, "connection to the SPIFFE Workload API refused")
                }
                Err(error) => {
                    tracing::warn!(%error, "accept on the SPIFFE Workload API's socket failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    rx.into()
}
