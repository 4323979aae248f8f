//! The opening side: a pool of tunnels.
//!
//! A pool entry is a security boundary before it is a cache: its key holds everything that the
//! handshake proved, so a stream never travels on a connection that was made for another source,
//! another destination, an older certificate or an older bundle.

use crate::{
    ALPN, Limits, MAX_RULE, RULE_HEADER, TunnelStream,
    life::{Acks, Listening},
    link::{self, Link, Terms},
    sni_of,
    stream::io_error,
};
use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use http::{HeaderMap, Method, Request, StatusCode, Uri, uri::Authority};
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use weft_model::SpiffeId;
use weft_tls::{Expect, SvidCell, Trust, client_config, peer_identity};

/// Makes the TCP connections under tunnels.
pub trait Dialer: Send + Sync + 'static {
    /// Connects to `to`, from wherever the node's tunnels begin.
    fn dial(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>>;
}

/// Who opens.
#[derive(Debug, Clone)]
pub struct Source {
    /// The workload's id.
    pub workload: Arc<str>,
    /// Its tunnel certificate.
    pub svid: SvidCell,
}

/// Who must answer.
#[derive(Debug, Clone)]
pub struct Destination {
    /// Where its tunnel listens.
    pub address: SocketAddr,
    /// The identity that must answer.
    pub id: SpiffeId,
    /// The node that it must answer from.
    pub node: Arc<str>,
}

/// Why no stream could be opened. Nothing of a request has been sent in any of these cases.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The source has no certificate yet.
    #[error("{0} has no certificate yet: is the identity service reachable from this node?")]
    NoCertificate(Arc<str>),
    /// The source's certificate is revoked.
    #[error("the certificate of {0} (serial {1}) is revoked")]
    Revoked(Arc<str>, String),
    /// TCP failed.
    #[error("tunnel to {0}: {1} (a firewall or network policy may block TCP 15008)")]
    Connect(SocketAddr, Arc<io::Error>),
    /// TLS or HTTP/2 failed.
    #[error("tunnel to {0}: {1}")]
    Handshake(SocketAddr, Arc<str>),
    /// Something took too long.
    #[error("tunnel to {0}: {1} took longer than {2:?}")]
    Timeout(SocketAddr, &'static str, std::time::Duration),
    /// The right identity answered from the wrong node, or with a certificate that is not for tunnels.
    #[error("tunnel to {address}: {id} must answer from node {expected}, its certificate names {found}")]
    WrongNode {
        /// Where.
        address: SocketAddr,
        /// Who.
        id: SpiffeId,
        /// The node that was expected.
        expected: Arc<str>,
        /// What the certificate says.
        found: Arc<str>,
    },
    /// The other side refused the stream; by a rule of its policy, where it names one.
    #[error("tunnel to {0}: the other side refused the stream with {1}")]
    Refused(SocketAddr, StatusCode, Option<Arc<str>>),
    /// The destination can not be written as an authority, or a header not as a header.
    #[error("{0} can not be asked for: {1}")]
    Request(String, Arc<str>),
    /// All connections that may be made are full.
    #[error("tunnel to {0}: {1} connections are full")]
    Full(SocketAddr, usize),
}

impl From<OpenError> for io::Error {
    fn from(e: OpenError) -> Self {
        let kind = match &e {
            OpenError::Connect(_, e) => e.kind(),
            OpenError::Timeout(..) => io::ErrorKind::TimedOut,
            OpenError::Refused(..) => io::ErrorKind::ConnectionRefused,
            OpenError::WrongNode { .. } | OpenError::NoCertificate(_) | OpenError::Revoked(..) => {
                io::ErrorKind::PermissionDenied
            }
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, e)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    source: Arc<str>,
    serial: Arc<str>,
    id: SpiffeId,
    node: Arc<str>,
    address: SocketAddr,
    bundle: u64,
}

type Connecting = Shared<BoxFuture<'static, Result<Arc<Link>, OpenError>>>;

/// What became of the tunnels that were to be opened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Opened {
    /// Connections made, with both certificates verified.
    pub done: u64,
    /// Connections that could not be made, or that the other side ended before their first stream.
    pub failed: u64,
}

#[derive(Default)]
struct Entry {
    links: Vec<Arc<Link>>,
    /// Several callers that need a connection at once wait for the same one.
    connecting: Option<Connecting>,
}

struct Inner {
    trust: Trust,
    dialer: Arc<dyn Dialer>,
    limits: Limits,
    entries: Mutex<HashMap<Key, Entry>>,
    done: AtomicU64,
    failed: AtomicU64,
}

/// The tunnels of a node to others. Clones share.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// With no connections yet.
    pub fn new(trust: Trust, dialer: Arc<dyn Dialer>, limits: Limits) -> Self {
        Self(Arc::new(Inner {
            trust,
            dialer,
            limits,
            entries: Mutex::default(),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }))
    }

    /// Opens a stream to `destination`, asking it for `authority`. Makes a connection if there is
    /// none with room, and makes sure that the one used is alive. Cancellation-safe.
    pub async fn open(
        &self,
        source: &Source,
        destination: &Destination,
        authority: &str,
        headers: HeaderMap,
    ) -> Result<TunnelStream, OpenError> {
        let address = destination.address;
        let request = connect_request(authority, headers)?;
        loop {
            let (link, fresh) = self.link(source, destination).await?;
            // Before anything is put on a connection that was silent, its peer must answer.
            if !fresh && !link.is_alive(&self.0.limits).await {
                link.suspect();
                continue;
            }
            let counted = link.count_stream();
            let limit = self.0.limits.handshake_timeout;
            let opened = match timeout(limit, send_connect(&link, &request)).await {
                Ok(opened) => opened,
                Err(_) => {
                    link.suspect();
                    return Err(OpenError::Timeout(address, "the answer to CONNECT", limit));
                }
            };
            match opened {
                Ok((status, send, recv, _)) if status == StatusCode::OK => {
                    link.note_heard();
                    let held = Some(Box::new(counted) as _);
                    return Ok(TunnelStream::new(
                        send,
                        recv,
                        link.retired.clone(),
                        link.stuck.clone(),
                        held,
                    ));
                }
                Ok((status, _, recv, headers)) => {
                    drop(recv);
                    return Err(OpenError::Refused(address, status, rule(status, &headers)));
                }
                Err(e) => {
                    // Nothing but the CONNECT was sent, so it may be said again elsewhere.
                    link.retire();
                    if fresh {
                        self.0.failed.fetch_add(1, Ordering::Relaxed);
                        return Err(OpenError::Handshake(address, io_error(e).to_string().into()));
                    }
                }
            }
        }
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        let entries = self.0.entries.lock();
        entries
            .values()
            .map(|e| e.links.iter().filter(|l| l.is_open()).count())
            .sum()
    }

    /// What became of the connections so far.
    pub fn opened(&self) -> Opened {
        Opened {
            done: self.0.done.load(Ordering::Relaxed),
            failed: self.0.failed.load(Ordering::Relaxed),
        }
    }

    /// A connection with room, and whether it was made just now.
    async fn link(&self, source: &Source, destination: &Destination) -> Result<(Arc<Link>, bool), OpenError> {
        // Subscribed before reading, so that no change is missed.
        let svid_changed = source.svid.subscribe();
        let svid = source
            .svid
            .get()
            .ok_or_else(|| OpenError::NoCertificate(source.workload.clone()))?;
        // The other side may not have heard of it yet.
        if self.0.trust.is_revoked(svid.identity()) {
            let serial = svid.identity().serial.clone();
            return Err(OpenError::Revoked(source.workload.clone(), serial));
        }
        let key = Key {
            source: source.workload.clone(),
            serial: svid.identity().serial.as_str().into(),
            id: destination.id.clone(),
            node: destination.node.clone(),
            address: destination.address,
            bundle: self.0.trust.version(),
        };
        let connecting = {
            let mut entries = self.0.entries.lock();
            let entry = entries.entry(key.clone()).or_default();
            entry.links.retain(|link| link.is_open());
            let (limits, links) = (&self.0.limits, &entry.links);
            let most = limits.max_connections_per_destination;
            let mut roomy = links.iter().filter(|link| link.has_room(limits));
            let mut other = links
                .iter()
                .filter(|link| links.len() >= most && link.has_streams(limits));
            if let Some(link) = roomy.next().or_else(|| other.next()) {
                return Ok((link.clone(), false));
            }
            match &entry.connecting {
                Some(under_way) => under_way.clone(),
                None if entry.links.len() >= most => {
                    return Err(OpenError::Full(destination.address, most));
                }
                None => {
                    let terms = Terms::new(svid.identity().clone(), &self.0.trust, svid_changed);
                    let made = make(Arc::downgrade(&self.0), key.clone(), source.clone(), terms);
                    // A task of its own: it goes on if the one who asked first goes away.
                    let task = tokio::spawn(made);
                    let address = destination.address;
                    let shared = async move {
                        task.await
                            .unwrap_or_else(|e| Err(OpenError::Handshake(address, e.to_string().into())))
                    }
                    .boxed()
                    .shared();
                    entry.connecting.insert(shared).clone()
                }
            }
        };
        Ok((connecting.await?, true))
    }
}

fn connect_request(authority: &str, headers: HeaderMap) -> Result<Request<()>, OpenError> {
    let bad = |e: &dyn std::fmt::Display| OpenError::Request(authority.to_owned(), e.to_string().into());
    let named: Authority = authority.parse().map_err(|e: http::uri::InvalidUri| bad(&e))?;
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = Uri::builder().authority(named).build().map_err(|e| bad(&e))?;
    *request.headers_mut() = headers;
    Ok(request)
}

type Answered = (StatusCode, h2::SendStream<Bytes>, h2::RecvStream, HeaderMap);

async fn send_connect(link: &Link, request: &Request<()>) -> Result<Answered, h2::Error> {
    let mut sender = link.sender.clone().ready().await?;
    let (response, send) = sender.send_request(request.clone(), false)?;
    let (head, recv) = response.await?.into_parts();
    Ok((head.status, send, recv, head.headers))
}

/// The rule that an agent names, whose certificate was verified as the destination's.
fn rule(status: StatusCode, headers: &HeaderMap) -> Option<Arc<str>> {
    let rule = headers
        .get(RULE_HEADER)
        .filter(|_| status == StatusCode::FORBIDDEN)?;
    // Visible characters only, or it is none.
    rule.to_str()
        .ok()
        .filter(|rule| rule.len() <= MAX_RULE)
        .map(Arc::from)
}

/// Makes a connection, enters it and drives it in a task of its own.
async fn make(inner: Weak<Inner>, key: Key, source: Source, terms: Terms) -> Result<Arc<Link>, OpenError> {
    let made = match inner.upgrade() {
        Some(inner) => handshake(&inner, &key, &source, terms).await,
        None => Err(OpenError::Handshake(
            key.address,
            "the agent is shutting down".into(),
        )),
    };
    let Some(strong) = inner.upgrade() else {
        return made.map(|(link, _)| link);
    };
    let counter = if made.is_ok() {
        &strong.done
    } else {
        &strong.failed
    };
    counter.fetch_add(1, Ordering::Relaxed);
    let mut entries = strong.entries.lock();
    let entry = entries.entry(key.clone()).or_default();
    entry.connecting = None;
    let (link, driver) = match made {
        Ok(made) => made,
        Err(e) => {
            if entry.links.is_empty() {
                entries.remove(&key);
            }
            return Err(e);
        }
    };
    entry.links.push(link.clone());
    drop(entries);
    let ended = link.clone();
    tokio::spawn(async move {
        driver.await;
        let Some(inner) = inner.upgrade() else { return };
        let mut entries = inner.entries.lock();
        if let Some(entry) = entries.get_mut(&key) {
            entry.links.retain(|l| !Arc::ptr_eq(l, &ended));
            if entry.links.is_empty() && entry.connecting.is_none() {
                entries.remove(&key);
            }
        }
    });
    Ok(link)
}

async fn handshake(
    inner: &Inner,
    key: &Key,
    source: &Source,
    mut terms: Terms,
) -> Result<(Arc<Link>, BoxFuture<'static, ()>), OpenError> {
    let limits = &inner.limits;
    let address = key.address;
    let failed = |e: String| OpenError::Handshake(address, e.into());
    let steps = async {
        let tcp = inner.dialer.dial(address).await;
        let tcp = tcp.map_err(|e| OpenError::Connect(address, Arc::new(e)))?;
        let io = |e| OpenError::Connect(address, Arc::new(e));
        tcp.set_nodelay(true).map_err(io)?;
        let acks = Acks::of(&tcp).map_err(io)?;
        let tls = client_config(Some(&source.svid), &inner.trust, Expect::Id(key.id.clone()), ALPN)
            .map_err(|e| failed(e.to_string()))?;
        let name = ServerName::try_from(sni_of(&key.id)).map_err(|e| failed(e.to_string()))?;
        let tls = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await;
        let tls = tls.map_err(|e| failed(e.to_string()))?;
        let peer = peer_identity(tls.get_ref().1).map_err(|e| failed(e.to_string()))?;
        let peer = peer.ok_or_else(|| failed("the other side showed no certificate".into()))?;
        if peer.node.as_deref() != Some(&*key.node) {
            return Err(OpenError::WrongNode {
                address,
                id: peer.id,
                expected: key.node.clone(),
                found: peer.node.as_deref().unwrap_or("no node").into(),
            });
        }
        terms.add(peer, tls.get_ref().1.peer_certificates().unwrap_or_default());
        let (tls, heard) = Listening::new(tls);
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(limits.stream_window)
            .initial_connection_window_size(limits.connection_window)
            .max_frame_size(limits.max_frame)
            .max_send_buffer_size(limits.send_buffer)
            .max_header_list_size(16 * 1024)
            .initial_max_send_streams(limits.streams_per_connection)
            .enable_push(false)
            .handshake::<_, Bytes>(tls)
            .await
            .map_err(|e| failed(e.to_string()))?;
        let (link, driver) = link::new(sender, connection, (heard, acks), terms, limits.clone());
        Ok((link, driver.boxed()))
    };
    match timeout(limits.handshake_timeout, steps).await {
        Ok(done) => done,
        Err(_) => Err(OpenError::Timeout(
            address,
            "the handshake",
            limits.handshake_timeout,
        )),
    }
}
