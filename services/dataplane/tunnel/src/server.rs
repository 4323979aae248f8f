//! The accepting side: who connects is verified by its certificate, what it asks for is handed to
//! a [`Handler`].

use crate::{
    ALPN, Limits, Local, MAX_RULE, RULE_HEADER, TunnelStream,
    life::{Acks, Heard, Listening, Watchdog},
    share::{Share, Shares},
    stuck::Stuck,
};
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, request::Parts, uri::Authority};
use rustls_pki_types::CertificateDer;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use weft_drain::Watcher;
use weft_model::SpiffeId;
use weft_tls::{ClientAuth, PeerIdentity, TlsError, Trust, peer_identity, server_config};

/// Bytes of the headers of one CONNECT.
const MAX_HEADERS: u32 = 16 * 1024;

/// Takes the streams that come out of tunnels.
pub trait Handler: Send + Sync + 'static {
    /// Deals with one stream to its end. Dropped when its tunnel ends.
    fn handle(self: Arc<Self>, incoming: Incoming) -> impl Future<Output = ()> + Send + 'static;
}

/// A CONNECT that waits for an answer.
pub struct Incoming {
    /// The verified certificate of the other side; names a node.
    pub peer: Arc<PeerIdentity>,
    /// The identity that this side answered with.
    pub local: SpiffeId,
    /// Where the connection comes from.
    pub remote: SocketAddr,
    /// What is asked for, `<app-id>.<namespace>:<port>`.
    pub authority: Authority,
    /// The headers of the CONNECT.
    pub headers: HeaderMap,
    respond: SendResponse<Bytes>,
    recv: RecvStream,
    retired: Arc<AtomicBool>,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("peer", &self.peer.id)
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

impl Incoming {
    /// Takes the stream.
    pub fn accept(mut self) -> io::Result<TunnelStream> {
        let send = self
            .respond
            .send_response(Response::new(()), false)
            .map_err(crate::stream::io_error)?;
        Ok(TunnelStream::new(
            send,
            self.recv,
            self.retired,
            Stuck::default(),
            None,
        ))
    }

    /// Refuses it.
    pub fn refuse(mut self, status: StatusCode) {
        refuse(&mut self.respond, status);
    }

    /// Refuses it by policy, and tells which rule of it.
    pub fn deny(mut self, rule: Option<&str>) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::FORBIDDEN;
        let rule = rule.filter(|rule| rule.len() <= MAX_RULE);
        if let Some(rule) = rule.and_then(|rule| HeaderValue::from_str(rule).ok()) {
            response.headers_mut().insert(RULE_HEADER, rule);
        }
        // It fails only if the other side is gone.
        let _ = self.respond.send_response(response, true);
    }
}

fn refuse(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    // It fails only if the other side is gone.
    let _ = respond.send_response(response, true);
}

/// Accepts tunnels on `listener` until the drain starts, then lets those that are finish.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    local: Local,
    trust: Trust,
    limits: Limits,
    handler: Arc<H>,
    drain: Watcher,
) -> Result<(), TlsError> {
    let tls = server_config(Arc::new(local.clone()), &trust, ClientAuth::Required, ALPN)?;
    let shared = Arc::new(Shared {
        acceptor: TlsAcceptor::from(Arc::new(tls)),
        local,
        trust,
        limits,
        handler,
        nodes: Shares::default(),
    });
    let handshakes = Shares::default();
    let places = Arc::new(Semaphore::new(shared.limits.max_accepted));
    let mut connections = JoinSet::new();
    let mut draining = drain.clone();
    loop {
        // Beyond the bound, new connections wait in the listener's backlog.
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        tokio::select! {
            () = draining.draining() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            (accepted, place) = accepted => match accepted {
                Ok((tcp, remote)) => {
                    let most = shared.limits.max_handshakes_per_address;
                    let Some(handshake) = handshakes.take(remote.ip().to_canonical(), most) else {
                        tracing::debug!(%remote, "refused: too many handshakes from this address");
                        continue;
                    };
                    let (shared, drain) = (shared.clone(), drain.clone());
                    connections.spawn(async move {
                        let _place = place;
                        if let Err(e) = connection(&shared, tcp, remote, handshake, drain).await {
                            tracing::debug!(%remote, error = %e, "tunnel refused or ended");
                        }
                    });
                }
                Err(e) => {
                    // Out of descriptors, or a connection that was gone again: go on, not at full speed.
                    tracing::warn!(error = %e, "tunnel listener can not accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

struct Shared<H> {
    acceptor: TlsAcceptor,
    local: Local,
    trust: Trust,
    limits: Limits,
    handler: Arc<H>,
    /// Connections of each node.
    nodes: Shares<Arc<str>>,
}

#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("no complete handshake within {0:?}")]
    Slow(Duration),
    #[error("handshake: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("handshake: {0}")]
    Http2(#[from] h2::Error),
    #[error("{0} showed a certificate that is not for tunnels: it names no node")]
    NoNode(SpiffeId),
    #[error("no certificate was shown or chosen")]
    NoCertificate,
    #[error("the certificate of {0}, who was asked for, is revoked")]
    Revoked(SpiffeId),
    #[error("node {0} has {1} connections already")]
    TooMany(Arc<str>, usize),
}

async fn connection<H: Handler>(
    shared: &Shared<H>,
    tcp: TcpStream,
    remote: SocketAddr,
    place: Share<IpAddr>,
    drain: Watcher,
) -> Result<(), ConnectionError> {
    let limits = &shared.limits;
    let changes = Changes {
        bundle: shared.trust.subscribe(),
        revocations: shared.trust.revocations(),
    };
    let handshake = async {
        tcp.set_nodelay(true)?;
        let acks = Acks::of(&tcp)?;
        let tls = shared.acceptor.accept(tcp).await?;
        let (peer, local) = identities(shared, &tls)?;
        let shown = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let shown = shown.iter().map(|c| c.clone().into_owned()).collect();
        let node: Arc<str> = peer.node.as_deref().unwrap_or_default().into();
        let most = limits.max_accepted_per_node;
        let share = shared.nodes.take(node.clone(), most);
        let share = share.ok_or(ConnectionError::TooMany(node, most))?;
        let (tls, heard) = Listening::new(tls);
        let http2 = http2(limits).handshake::<_, Bytes>(tls).await?;
        Ok::<_, ConnectionError>((http2, (heard, acks), peer, shown, local, share))
    };
    let (http2, signs, peer, shown, local, _share) = match timeout(limits.handshake_timeout, handshake).await
    {
        Ok(done) => done?,
        Err(_) => return Err(ConnectionError::Slow(limits.handshake_timeout)),
    };
    drop(place);
    let served = Served {
        shared,
        peer: Arc::new(peer),
        shown,
        local,
        remote,
        retired: Arc::default(),
    };
    served.run(http2, signs, changes, drain).await;
    Ok(())
}

/// HTTP/2 as tunnels speak it.
fn http2(limits: &Limits) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_frame_size(limits.max_frame)
        .max_send_buffer_size(limits.send_buffer)
        .max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(limits.max_streams);
    builder
}

/// What a stream asks for: a CONNECT to an authority, and nothing else.
fn asked(head: Parts) -> Result<(Authority, HeaderMap), StatusCode> {
    if head.method != Method::CONNECT {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let authority = head.uri.into_parts().authority.ok_or(StatusCode::BAD_REQUEST)?;
    Ok((authority, head.headers))
}

/// Notices of what a connection's life depends on, from before its handshake.
struct Changes {
    bundle: watch::Receiver<u64>,
    revocations: watch::Receiver<u64>,
}

/// Who is at the other end, and who answered here.
fn identities<H>(
    shared: &Shared<H>,
    tls: &TlsStream<TcpStream>,
) -> Result<(PeerIdentity, PeerIdentity), ConnectionError> {
    let state = tls.get_ref().1;
    let peer = peer_identity(state)?.ok_or(ConnectionError::NoCertificate)?;
    if peer.node.is_none() {
        return Err(ConnectionError::NoNode(peer.id));
    }
    let cell = shared
        .local
        .cell(state.server_name())
        .ok_or(ConnectionError::NoCertificate)?;
    let svid = cell.get().ok_or(ConnectionError::NoCertificate)?;
    if shared.trust.is_revoked(svid.identity()) {
        return Err(ConnectionError::Revoked(svid.id().clone()));
    }
    Ok((peer, svid.identity().clone()))
}

type Http2 = h2::server::Connection<Listening<TlsStream<TcpStream>>, Bytes>;

/// A connection whose other side is known.
struct Served<'a, H> {
    shared: &'a Shared<H>,
    peer: Arc<PeerIdentity>,
    /// The chain it showed, to be judged anew under another bundle.
    shown: Vec<CertificateDer<'static>>,
    local: PeerIdentity,
    remote: SocketAddr,
    retired: Arc<AtomicBool>,
}

impl<H: Handler> Served<'_, H> {
    async fn run(&self, mut http2: Http2, signs: (Heard, Acks), mut changes: Changes, mut drain: Watcher) {
        let limits = &self.shared.limits;
        let trust = &self.shared.trust;
        let expires = self.peer.not_after.min(self.local.not_after);
        let Some(pings) = http2.ping_pong() else { return };
        let mut watchdog = Watchdog::new(pings, signs);
        let mut distrusted_at: Option<Instant> = None;
        let mut force = drain.clone();
        // Dropped, and so aborted, with the connection.
        let mut streams = JoinSet::new();
        let most = limits.max_streams as usize;
        let mut tick = interval(limits.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let retiring = self.retired.load(Ordering::Acquire);
            tokio::select! {
                biased;
                // Also drives everything else on the connection, so it is polled at all times.
                accepted = http2.accept() => match accepted {
                    Some(Ok((request, mut respond))) => {
                        // Streams reset at once still have tasks: those are bounded here.
                        if streams.len() >= most.saturating_mul(2) {
                            respond.send_reset(h2::Reason::REFUSED_STREAM);
                        } else if let Some(work) = self.stream(request, respond) {
                            streams.spawn(work);
                        }
                    }
                    Some(Err(e)) => {
                        tracing::debug!(peer = %self.peer.id, error = %e, "tunnel failed");
                        return;
                    }
                    None => return,
                },
                Some(_) = streams.join_next(), if !streams.is_empty() => {}
                () = watchdog.answered() => {}
                () = force.forced(), if retiring => return,
                () = drain.draining(), if !retiring => self.retire(&mut http2),
                Ok(()) = changes.bundle.changed() => {
                    self.retire(&mut http2);
                    distrusted_at = match trust.accepts_client(&self.shown) {
                        true => None,
                        false => distrusted_at.or_else(|| Some(Instant::now())),
                    };
                }
                Ok(()) = changes.revocations.changed() => {
                    if trust.is_revoked(&self.peer) || trust.is_revoked(&self.local) {
                        tracing::info!(peer = %self.peer.id, serial = self.peer.serial, "tunnel closed: revoked");
                        return;
                    }
                }
                _ = tick.tick() => {
                    if watchdog.is_dead(limits.ping_interval, limits.ping_timeout) {
                        return;
                    }
                    let left = expires.saturating_sub(trust.clock().unix_seconds());
                    if left == 0 {
                        return;
                    }
                    if left <= limits.retire_grace.as_secs() && !retiring {
                        self.retire(&mut http2);
                    }
                    if distrusted_at.is_some_and(|at| at.elapsed() >= limits.retire_grace) {
                        return;
                    }
                }
            }
        }
    }

    /// No new streams; those that are go on.
    fn retire(&self, http2: &mut Http2) {
        if !self.retired.swap(true, Ordering::AcqRel) {
            http2.graceful_shutdown();
        }
    }

    fn stream(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<impl Future<Output = ()> + Send + 'static> {
        let (head, recv) = request.into_parts();
        let (authority, headers) = match asked(head) {
            Ok(asked) => asked,
            Err(status) => {
                refuse(&mut respond, status);
                return None;
            }
        };
        let incoming = Incoming {
            peer: self.peer.clone(),
            local: self.local.id.clone(),
            remote: self.remote,
            authority,
            headers,
            respond,
            recv,
            retired: self.retired.clone(),
        };
        Some(self.shared.handler.clone().handle(incoming))
    }
}

#[cfg(test)]
mod fuzz;
