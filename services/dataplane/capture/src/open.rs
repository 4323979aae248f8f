//! The connections that are open: counted per workload, written down as flows, and judged anew
//! when the mesh changes.

use crate::{
    CaptureLimits, Mesh,
    case::{Case, Judged},
    relay::{Carried, End, relay},
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_drain::Watcher;
use weft_flows::{Direction, DropReason, Flow, FlowLog, Kind, Traffic, Verdict};
use weft_proxy::Proxy;
use weft_runtime::Tunnels;
use weft_tunnel::Client;

/// Judged in one go before others get their turn.
const AT_ONCE: usize = 256;

/// Connections that were not carried, by reason, since the start.
#[derive(Debug, Default)]
pub struct Refused {
    /// By policy.
    pub denied: AtomicU64,
    /// The workload had as many as it may.
    pub too_many: AtomicU64,
    /// The destination could not be reached, or nobody serves it.
    pub unreachable: AtomicU64,
    /// Closed while open: policy allows them no more.
    pub closed: AtomicU64,
}

/// All captured connections of a node.
pub struct Capture {
    pub(crate) mesh: Arc<dyn Mesh>,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) tunnels: Tunnels,
    pub(crate) limits: CaptureLimits,
    flows: FlowLog,
    refused: Refused,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    last: u64,
    all: HashMap<u64, Arc<Entry>>,
    /// Per workload and direction.
    counts: HashMap<(Arc<str>, Direction), usize>,
}

struct Entry {
    case: Case,
    /// Set, then told, when policy allows it no more.
    refused: OnceLock<Judged>,
    told: CancellationToken,
}

/// A place among a workload's connections; given back when dropped.
pub(crate) struct Place<'a> {
    capture: &'a Capture,
    key: (Arc<str>, Direction),
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut open = self.capture.open.lock();
        if let Some(count) = open.counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                open.counts.remove(&self.key);
            }
        }
    }
}

/// Removes a connection from those that are judged anew.
struct Listed<'a>(&'a Capture, u64);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.0.open.lock().all.remove(&self.1);
    }
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture")
            .field("open", &self.open())
            .finish_non_exhaustive()
    }
}

impl Capture {
    /// With nothing open. What is to be read request by request is given to `proxy`.
    pub fn new(
        mesh: Arc<dyn Mesh>,
        proxy: Arc<Proxy>,
        tunnels: Client,
        flows: FlowLog,
        limits: CaptureLimits,
    ) -> Arc<Self> {
        Arc::new(Self {
            mesh,
            proxy,
            tunnels: Tunnels::new(tunnels),
            limits,
            flows,
            refused: Refused::default(),
            open: Mutex::default(),
        })
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.open.lock().all.len()
    }

    /// What was not carried.
    pub fn refused(&self) -> &Refused {
        &self.refused
    }

    /// Judges what is open anew after each change of the mesh, until the drain starts.
    pub async fn maintain<T>(self: Arc<Self>, mut changed: watch::Receiver<T>, drain: Watcher) {
        let judging = async {
            while changed.changed().await.is_ok() {
                self.judge_anew().await;
                // Many changes at once cost one round.
                tokio::time::sleep(self.limits.rejudge_pause).await;
            }
        };
        let _: Option<()> = drain.until_draining(judging).await;
    }

    async fn judge_anew(&self) {
        let all: Vec<_> = self.open.lock().all.values().cloned().collect();
        for some in all.chunks(AT_ONCE) {
            for entry in some {
                let judged = entry.case.judge(&*self.mesh);
                if judged.is_refused() && entry.refused.set(judged).is_ok() {
                    entry.told.cancel();
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// One of a workload's places.
    pub(crate) fn place(&self, workload: &Arc<str>, direction: Direction) -> Option<Place<'_>> {
        let most = match direction {
            Direction::Egress => self.limits.opened_per_workload,
            Direction::Ingress => self.limits.accepted_per_workload,
        };
        let key = (workload.clone(), direction);
        let mut open = self.open.lock();
        let count = open.counts.entry(key.clone()).or_default();
        // It was there before when it is not zero, so nothing is left behind.
        if *count >= most {
            return None;
        }
        *count += 1;
        drop(open);
        Some(Place { capture: self, key })
    }

    /// Carries a connection that may pass, until it has ended, must end, or `stop`.
    pub(crate) async fn carry(
        &self,
        case: Case,
        judged: Judged,
        opener: End,
        answerer: End,
        stop: impl Future<Output = ()>,
    ) {
        let started = Instant::now();
        self.write_down(&case, &judged, None, Duration::ZERO);
        let entry = Arc::new(Entry {
            case,
            refused: OnceLock::new(),
            told: CancellationToken::new(),
        });
        let listed = {
            let mut open = self.open.lock();
            open.last += 1;
            let number = open.last;
            open.all.insert(number, entry.clone());
            Listed(self, number)
        };
        // What changed since it was judged has not been asked of it.
        let again = entry.case.judge(&*self.mesh);
        if again.is_refused() && entry.refused.set(again).is_ok() {
            entry.told.cancel();
        }
        let carried = Carried::default();
        {
            let relayed = relay(opener, answerer, &carried);
            tokio::select! {
                biased;
                () = entry.told.cancelled() => {}
                () = stop => {}
                ended = relayed => if let Err(error) = ended {
                    tracing::debug!(%error, "captured connection broke off");
                }
            }
        }
        drop(listed);
        if let Some(refused) = entry.refused.get() {
            self.refused.closed.fetch_add(1, Ordering::Relaxed);
            self.write_down(&entry.case, refused, None, started.elapsed());
        }
        let traffic = Traffic {
            sent: carried.sent.load(Ordering::Relaxed),
            received: carried.received.load(Ordering::Relaxed),
        };
        self.write_down(&entry.case, &judged, Some(traffic), started.elapsed());
    }

    /// A connection that was refused by policy.
    pub(crate) fn deny(&self, case: &Case, judged: &Judged) {
        self.refused.denied.fetch_add(1, Ordering::Relaxed);
        self.write_down(case, judged, None, Duration::ZERO);
    }

    /// A connection that may pass and can not be made; `status` is what the other node said.
    pub(crate) fn fail(&self, case: &Case, judged: &Judged, reason: DropReason, status: u16) {
        let counter = match reason {
            DropReason::Overloaded => &self.refused.too_many,
            _ => &self.refused.unreachable,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let Some((direction, decision)) = judged.sides.last() else {
            return;
        };
        self.flows.record(Flow {
            verdict: Verdict::Error,
            drop_reason: Some(reason),
            rule: decision.rule.clone(),
            status,
            ..flow(case, judged, *direction)
        });
    }

    /// A connection that may pass here, and that the callee's node refuses by a rule of its policy.
    pub(crate) fn denied_there(&self, case: &Case, judged: &Judged, rule: Arc<str>, status: u16) {
        self.refused.denied.fetch_add(1, Ordering::Relaxed);
        self.flows.record(Flow {
            verdict: Verdict::Dropped,
            drop_reason: Some(DropReason::PolicyDenied),
            rule: Some(rule),
            rule_of_callee: true,
            status,
            ..flow(case, judged, Direction::Egress)
        });
    }

    /// Its decisions, or with `closed` that it has ended after so long.
    fn write_down(&self, case: &Case, judged: &Judged, closed: Option<Traffic>, after: Duration) {
        for (direction, decision) in &judged.sides {
            self.flows.record(Flow {
                verdict: match (decision.refused, decision.audited) {
                    (Some(_), _) => Verdict::Dropped,
                    (None, Some(_)) => Verdict::Audit,
                    (None, None) => Verdict::Forwarded,
                },
                kind: match closed {
                    Some(_) => Kind::Closed,
                    None => Kind::Connection,
                },
                drop_reason: decision.refused.or(decision.audited),
                rule: decision.rule.clone(),
                latency: after,
                traffic: closed,
                ..flow(case, judged, *direction)
            });
        }
    }
}

fn flow(case: &Case, judged: &Judged, direction: Direction) -> Flow {
    let (source, destination) = (judged.source.clone(), judged.destination.clone());
    Flow {
        via: case.via(),
        caller_proof: Some(case.proof()),
        ..Flow::new(Kind::Connection, direction, source, destination, case.port())
    }
}
