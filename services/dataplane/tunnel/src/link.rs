//! One connection of the opening side: its task drives HTTP/2, asks the peer for signs of life, and
//! ends the connection when its certificate does.

use crate::{
    Limits,
    life::{Acks, Heard, Watchdog},
    stuck::Stuck,
};
use bytes::Bytes;
use h2::client;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use weft_tls::{PeerIdentity, Trust};

/// Probes that may wait for the same PING.
const MAX_WAITING: usize = 64;

/// What callers of [`crate::Client::open`] see of a connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub sender: client::SendRequest<Bytes>,
    pub retired: Arc<AtomicBool>,
    pub stuck: Stuck,
    streams: AtomicUsize,
    closed: AtomicBool,
    /// It did not answer in time; nothing new is put on it until it is heard again.
    suspect: AtomicBool,
    heard: Mutex<Instant>,
    probes: mpsc::Sender<oneshot::Sender<()>>,
}

/// Counts one stream on a connection until dropped.
#[derive(Debug)]
pub(crate) struct StreamCount(Arc<Link>);

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Link {
    /// Whether another stream may be put on it, and would not wait for those that are.
    pub fn has_room(&self, limits: &Limits) -> bool {
        let windows = (limits.connection_window / limits.stream_window.max(1)).max(1);
        self.has_streams(limits) && self.stuck.count() < windows as usize
    }

    /// Whether another stream may be put on it.
    pub fn has_streams(&self, limits: &Limits) -> bool {
        self.is_open()
            && !self.suspect.load(Ordering::Acquire)
            && self.streams.load(Ordering::Acquire) < limits.streams_per_connection
    }

    /// Neither ended nor to be ended.
    pub fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Acquire) && !self.retired.load(Ordering::Acquire)
    }

    pub fn count_stream(self: &Arc<Self>) -> StreamCount {
        self.streams.fetch_add(1, Ordering::AcqRel);
        StreamCount(self.clone())
    }

    /// No further streams; those that are may be finished.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    pub fn note_heard(&self) {
        *self.heard.lock() = Instant::now();
        self.suspect.store(false, Ordering::Release);
    }

    /// Nothing new is put on it until it is heard again.
    pub fn suspect(&self) {
        self.suspect.store(true, Ordering::Release);
    }

    /// Whether the peer lives: heard from within [`Limits::fresh`], or answers a PING now.
    pub async fn is_alive(&self, limits: &Limits) -> bool {
        if !self.is_open() {
            return false;
        }
        if self.heard.lock().elapsed() < limits.fresh {
            return true;
        }
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.probes.send(answer).await.ok()?;
            answered.await.ok()
        };
        // The task gives up by itself after `ping_timeout`; the rest is for a tick that is late.
        matches!(
            tokio::time::timeout(limits.ping_timeout + limits.tick * 2, asked).await,
            Ok(Some(()))
        )
    }
}

/// What a connection's life depends on.
pub(crate) struct Terms {
    /// Both certificates, of which the peer's is known after the handshake only.
    certificates: Vec<PeerIdentity>,
    /// What the peer showed, to be judged anew under another bundle.
    shown: Vec<CertificateDer<'static>>,
    trust: Trust,
    svid_changed: watch::Receiver<u64>,
    bundle_changed: watch::Receiver<u64>,
    revocations: watch::Receiver<u64>,
}

impl Terms {
    /// Made before the handshake, so that no change is missed.
    pub fn new(own: PeerIdentity, trust: &Trust, svid_changed: watch::Receiver<u64>) -> Self {
        Self {
            certificates: vec![own],
            shown: Vec::new(),
            trust: trust.clone(),
            svid_changed,
            bundle_changed: trust.subscribe(),
            revocations: trust.revocations(),
        }
    }

    /// Takes the other side's certificate, and the chain it came in.
    pub fn add(&mut self, peer: PeerIdentity, shown: &[CertificateDer<'_>]) {
        self.certificates.push(peer);
        self.shown = shown.iter().map(|c| c.clone().into_owned()).collect();
    }

    /// Seconds until the first certificate ends.
    fn left(&self) -> u64 {
        let ends = self.certificates.iter().map(|c| c.not_after).min().unwrap_or(0);
        ends.saturating_sub(self.trust.clock().unix_seconds())
    }

    fn is_revoked(&self) -> bool {
        self.certificates.iter().any(|c| self.trust.is_revoked(c))
    }
}

/// The handle of a connection and the task that drives it, which is to be spawned.
pub(crate) fn new<T>(
    sender: client::SendRequest<Bytes>,
    connection: client::Connection<T, Bytes>,
    signs: (Heard, Acks),
    terms: Terms,
    limits: Limits,
) -> (Arc<Link>, impl Future<Output = ()> + Send)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (probes, asked) = mpsc::channel(MAX_WAITING);
    let link = Arc::new(Link {
        sender,
        retired: Arc::default(),
        stuck: Stuck::default(),
        streams: AtomicUsize::new(0),
        closed: AtomicBool::new(false),
        suspect: AtomicBool::new(false),
        heard: Mutex::new(Instant::now()),
        probes,
    });
    let end = EndGuard(link.clone());
    let task = async move {
        let ended = drive(&end.0, connection, signs, terms, limits, asked).await;
        tracing::debug!(reason = ended, "tunnel ended");
    };
    (link, task)
}

/// Marks the connection as over, also when its task is dropped.
struct EndGuard(Arc<Link>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.retire();
        self.0.closed.store(true, Ordering::Release);
    }
}

async fn drive<T>(
    link: &Link,
    mut connection: client::Connection<T, Bytes>,
    signs: (Heard, Acks),
    mut terms: Terms,
    limits: Limits,
    mut asked: mpsc::Receiver<oneshot::Sender<()>>,
) -> &'static str
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let Some(pings) = connection.ping_pong() else {
        return "no PING handle";
    };
    let mut watchdog = Watchdog::new(pings, signs);
    let mut waiting: Vec<oneshot::Sender<()>> = Vec::new();
    let mut distrusted_at: Option<Instant> = None;
    let mut idle_since = Instant::now();
    let mut tick = interval(limits.tick);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            ended = &mut connection => return if ended.is_ok() { "closed" } else { "failed" },
            () = watchdog.answered() => note_heard(link, &mut watchdog, &mut waiting),
            Some(answer) = asked.recv(), if waiting.len() < MAX_WAITING => {
                waiting.push(answer);
                watchdog.ask();
            }
            // The SVID shown, or the roots it was checked with, are no longer the present ones.
            // Streams may go on for as long as what was shown is good.
            Ok(()) = terms.svid_changed.changed() => link.retire(),
            Ok(()) = terms.bundle_changed.changed() => {
                link.retire();
                distrusted_at = match terms.trust.accepts_server(&terms.shown) {
                    true => None,
                    false => distrusted_at.or_else(|| Some(Instant::now())),
                };
            }
            Ok(()) = terms.revocations.changed() => {
                if terms.is_revoked() {
                    return "a certificate was revoked";
                }
            }
            _ = tick.tick() => {
                let now = Instant::now();
                if watchdog.is_dead(limits.ping_interval, limits.ping_timeout) {
                    return "the peer does not answer";
                }
                if watchdog.last_heard() > *link.heard.lock() {
                    note_heard(link, &mut watchdog, &mut waiting);
                }
                let left = terms.left();
                if left == 0 {
                    return "a certificate expired";
                }
                if left <= limits.retire_grace.as_secs() {
                    link.retire();
                }
                let streams = link.streams.load(Ordering::Acquire);
                if streams > 0 {
                    idle_since = now;
                } else if now - idle_since >= limits.idle {
                    link.retire();
                }
                if distrusted_at.is_some_and(|at| now - at >= limits.retire_grace) {
                    return "its root is trusted no more";
                }
                if streams == 0 && link.retired.load(Ordering::Acquire) {
                    return "retired";
                }
            }
        }
    }
}

fn note_heard(link: &Link, watchdog: &mut Watchdog, waiting: &mut Vec<oneshot::Sender<()>>) {
    *link.heard.lock() = watchdog.last_heard();
    link.suspect.store(false, Ordering::Release);
    for answer in waiting.drain(..) {
        // Whoever asked may have gone away.
        let _ = answer.send(());
    }
}
