//! Questions of workloads to resolvers, where policy speaks of names: judged, asked on, and the addresses in the
//! answers let through before anybody hears of them.
//!
//! Owns what is under way and the life of what was learned. The kernel sends a workload's questions here: by UDP to
//! a socket in its namespace, with a record of whom it was for; by TCP to the capture listener. Resolvers are asked
//! from the node's namespace: what they see is the node.

use crate::{
    agent::Shared,
    listen,
    locals::Local,
    metrics::Outcome,
    view::{Query, View},
};
use arc_swap::ArcSwapOption;
use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;
use weft_bpf::{Connection, Conntrack, Questions};
use weft_capture::{Asked, Found, Mesh as _};
use weft_dns::{
    message::{Answer, MAX_MESSAGE, Question, Unreadable},
    upstream::{self, Transport},
};
use weft_drain::Watcher;
use weft_flows::{Direction, Dns as Told, DropReason, Flow, Kind, Party, Verdict};

/// So long an answer is held back at most until the kernel knows its addresses. Cilium's
/// `tofqdns-proxy-response-max-delay` is 100 ms; then the app's first packets may be lost.
const MAX_DELAY: Duration = Duration::from_secs(1);
/// A connection on which nothing is asked for so long ends (RFC 7766 wants seconds).
const IDLE: Duration = Duration::from_secs(10);
/// So often it is looked for addresses whose time is over.
const LOOK: Duration = Duration::from_secs(2);
/// A connection that one end has ended, and on which nothing came for so many nanoseconds, is over.
const CLOSING: u64 = 10_000_000_000;
/// The port of resolvers.
const PORT: u16 = 53;

/// What the agent has for questions.
#[derive(Debug)]
pub struct Dns {
    /// The kernel's records of whom they were for; none where it keeps none.
    pub questions: ArcSwapOption<Questions>,
    /// The connections that the kernel knows, to look at.
    pub conntrack: ArcSwapOption<Conntrack>,
    /// Changes of names so far, and how many of them are in the kernel.
    changes: AtomicU64,
    written: AtomicU64,
}

impl Dns {
    /// With what was handed over.
    pub fn new(questions: Option<Arc<Questions>>, conntrack: Option<Arc<Conntrack>>) -> Self {
        Self {
            questions: ArcSwapOption::new(questions),
            conntrack: ArcSwapOption::new(conntrack),
            changes: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }
}

/// As tokio's; the hand-over left it non-blocking, which is made sure of.
pub fn to_tokio(socket: &std::net::UdpSocket) -> io::Result<UdpSocket> {
    let socket = socket.try_clone()?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Answers on the socket in a pod's namespace, until the drain or until the pod is gone.
pub async fn own(shared: Arc<Shared>, local: Arc<Local>, socket: UdpSocket) {
    let gone = local.gone.clone();
    answer_datagrams(&shared, socket, gone, Some(&local)).await;
}

/// Answers on one of the node's, for its processes, until the drain or until `replaced`.
pub async fn attributed(shared: Arc<Shared>, socket: UdpSocket, replaced: CancellationToken) {
    answer_datagrams(&shared, socket, replaced, None).await;
}

fn count(shared: &Shared, outcome: &'static str) {
    shared.counters.queries.get_or_create(&Outcome { outcome }).inc();
}

async fn answer_datagrams(
    shared: &Arc<Shared>,
    socket: UdpSocket,
    ended: CancellationToken,
    owner: Option<&Arc<Local>>,
) {
    let netns = match weft_bpf::netns_of(&socket) {
        Ok(netns) => netns,
        Err(error) => return tracing::error!(%error, "questions to resolvers are not answered"),
    };
    let socket = Arc::new(socket);
    let mut drain = shared.drain.clone();
    let mut buffer = vec![0; MAX_MESSAGE + 1];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            () = ended.cancelled() => return,
            () = drain.draining() => return,
        };
        match received {
            // Reading the record is one system call that does not wait.
            Ok((length, from)) => {
                let message = buffer.get(..length).unwrap_or_default();
                take(shared, &socket, (netns, from), owner, message);
            }
            Err(error) => listen::pause(&error).await,
        }
    }
}

/// One datagram. Of whom the kernel tells nothing is not answered.
fn take(
    shared: &Arc<Shared>,
    socket: &Arc<UdpSocket>,
    (netns, from): (u64, SocketAddr),
    owner: Option<&Arc<Local>>,
    message: &[u8],
) {
    let questions = shared.dns.questions.load_full();
    let record = match questions.map(|questions| questions.find(netns, from)) {
        Some(Ok(record)) => record,
        Some(Err(error)) => {
            tracing::warn!(%error, "a question to a resolver is not answered");
            None
        }
        None => None,
    };
    let known = record.and_then(|record| {
        let local = match owner {
            Some(owner) => Some(owner.clone()).filter(|own| own.seat.number == record.endpoint),
            None => shared.view.locals.of_number(record.endpoint),
        };
        Some((record, local?))
    });
    let Some((record, local)) = known else {
        return count(shared, "unknown");
    };
    let Ok(slot) = local.questions.clone().try_acquire_owned() else {
        count(shared, "too_many");
        return;
    };
    let (shared, socket, message) = (shared.clone(), socket.clone(), message.to_vec());
    tokio::spawn(async move {
        let asked = Asking {
            local: &local,
            resolver: record.target,
            source_port: from.port(),
            transport: Transport::Udp,
        };
        let answer = tokio::select! {
            answer = asked.answer(&shared, &message) => answer,
            () = local.gone.cancelled() => None,
        };
        if let Some(answer) = answer
            && let Err(error) = socket.send_to(&answer, from).await
        {
            tracing::debug!(%error, workload = %local.id, "a resolver's answer does not reach its asker");
        }
        drop(slot);
    });
}

/// Whether a captured connection is to a resolver that is asked name by name.
pub fn is_for(shared: &Shared, local: &Local, asked: &Asked) -> bool {
    let at = asked.target.unwrap_or(asked.destination);
    at.port() == PORT
        && who(&shared.view, &local.id, at).is_some_and(|party| {
            shared.view.judges_queries(&Query {
                workload: &local.id,
                resolver: &party,
                at,
                protocol: number(Transport::Tcp),
                name: "",
            })
        })
}

/// Answers what is asked on a connection, one question after the other, until its end, the workload's, or the drain.
pub async fn connection(shared: Arc<Shared>, local: Arc<Local>, mut stream: TcpStream, asked: Asked) {
    let Ok(_slot) = local.questions.clone().try_acquire_owned() else {
        count(&shared, "too_many");
        let _ = stream.set_zero_linger();
        return;
    };
    let asked = Asking {
        local: &local,
        resolver: asked.target.unwrap_or(asked.destination),
        source_port: stream.peer_addr().map_or(0, |from| from.port()),
        transport: Transport::Tcp,
    };
    let mut drain = shared.drain.clone();
    let served = async {
        while let Ok(Ok(Some(message))) = tokio::time::timeout(IDLE, upstream::read(&mut stream)).await {
            let Some(answer) = asked.answer(&shared, &message).await else {
                return;
            };
            let written = tokio::time::timeout(IDLE, upstream::write(&mut stream, &answer)).await;
            if !matches!(written, Ok(Ok(()))) {
                return;
            }
        }
    };
    tokio::select! {
        () = served => {}
        () = local.gone.cancelled() => {}
        () = drain.forced() => {}
    }
}

fn number(transport: Transport) -> u8 {
    match transport {
        Transport::Udp => 17,
        Transport::Tcp => 6,
    }
}

fn who(view: &View, workload: &str, at: SocketAddr) -> Option<Arc<Party>> {
    match view.find(workload, at) {
        Found::Workload { endpoint, .. } => Some(endpoint.party().clone()),
        Found::Other(party) => Some(party),
        Found::Nobody => None,
    }
}

/// A question that was taken in a resolver's place.
struct Asking<'a> {
    local: &'a Local,
    /// Who is asked.
    resolver: SocketAddr,
    source_port: u16,
    transport: Transport,
}

impl Asking<'_> {
    /// What is answered; nothing to what is no question.
    async fn answer(&self, shared: &Shared, message: &[u8]) -> Option<Vec<u8>> {
        let question = match Question::read(message) {
            Ok(question) => question,
            Err(unreadable) => {
                count(shared, "malformed");
                return match unreadable {
                    Unreadable::Answered(answer) => Some(answer),
                    Unreadable::Silent => None,
                };
            }
        };
        let member = self.local.member()?;
        let source = member.context.party().clone();
        let Some(resolver) = who(&shared.view, &self.local.id, self.resolver) else {
            count(shared, "failed");
            return Some(question.unanswered());
        };
        let decision = shared.view.judge_query(&Query {
            workload: &self.local.id,
            resolver: &resolver,
            at: self.resolver,
            protocol: number(self.transport),
            name: &question.name,
        });
        let flow = |told: Told| Flow {
            rule: decision.rule.clone(),
            source_port: self.source_port,
            caller_proof: Some(self.local.proof),
            dns: Some(Box::new(told)),
            ..Flow::new(
                Kind::Dns,
                Direction::Egress,
                source.clone(),
                resolver.clone(),
                self.resolver.port(),
            )
        };
        if let Some(reason) = decision.refused {
            count(shared, "refused");
            shared.flows.record(Flow {
                verdict: Verdict::Dropped,
                drop_reason: Some(reason),
                ..flow(self.tell(&question, None))
            });
            return Some(question.refused());
        }
        let verdict = match decision.audited {
            Some(_) => Verdict::Audit,
            None => Verdict::Forwarded,
        };
        let begun = Instant::now();
        match upstream::ask(self.resolver, self.transport, &question, message).await {
            Ok((said, answer)) => {
                let latency = begun.elapsed();
                learn(shared, &question, &answer).await;
                count(shared, "answered");
                shared.flows.record(Flow {
                    verdict,
                    drop_reason: decision.audited,
                    latency,
                    ..flow(self.tell(&question, Some(&answer)))
                });
                Some(said)
            }
            Err(error) => {
                tracing::debug!(%error, resolver = %self.resolver, "a resolver does not answer");
                count(shared, "failed");
                shared.flows.record(Flow {
                    verdict: Verdict::Error,
                    drop_reason: Some(DropReason::Unreachable),
                    ..flow(self.tell(&question, None))
                });
                Some(question.unanswered())
            }
        }
    }

    fn tell(&self, question: &Question, answer: Option<&Answer>) -> Told {
        let said = answer.cloned().unwrap_or_default();
        Told {
            protocol: number(self.transport),
            query: question.name.as_str().into(),
            kind: question.kind(),
            answered: answer.is_some(),
            code: said.code,
            addresses: said.addresses,
            ttl: said.ttl,
            aliases: said.aliases,
            kinds: said.kinds,
        }
    }
}

/// Lets through where an answer leads, as far as policies name it, before it is passed on: an app that connects at
/// once must not be refused.
async fn learn(shared: &Shared, question: &Question, answer: &Answer) {
    if answer.addresses.is_empty() {
        return;
    }
    let dns = &shared.dns;
    let ttl = Duration::from_secs(answer.ttl.into());
    // Counted before anybody else may find that there is nothing new.
    shared.view.mesh.change_names(|names| {
        let learned = names.learn(&question.name, &answer.addresses, ttl, SystemTime::now());
        if learned.refused > 0 {
            tracing::warn!(
                name = question.name,
                refused = learned.refused,
                "addresses of a name are not let through: too many are known; name fewer in toFQDNs"
            );
        }
        let changed = learned.changed.then(|| question.name.clone());
        if learned.changed {
            dns.changes.fetch_add(1, Ordering::AcqRel);
        }
        (changed.into_iter().collect(), ())
    });
    // Somebody else's question may have brought it, and wait for the kernel as well.
    let due = dns.changes.load(Ordering::Acquire);
    let Some(kernel) = &shared.kernel else { return };
    if dns.written.load(Ordering::Acquire) >= due {
        return;
    }
    match tokio::time::timeout(MAX_DELAY, kernel.flush()).await {
        Ok(()) => {
            dns.written.fetch_max(due, Ordering::AcqRel);
        }
        Err(_) => tracing::warn!(
            name = question.name,
            "an answer goes to its asker before the kernel knows its addresses: writing takes too long"
        ),
    }
}

/// Until the drain: forgets addresses whose time is over, but for those that are in use.
pub async fn maintain(shared: Arc<Shared>, mut drain: Watcher) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = drain.draining() => return,
        }
        let now = SystemTime::now();
        let expired = shared.view.mesh.names.expired(now);
        if expired.is_empty() {
            continue;
        }
        let Some(alive) = in_use(&shared, expired).await else {
            continue;
        };
        shared
            .view
            .mesh
            .change_names(|names| (names.forget(&alive, now), ()));
    }
}

/// Those to which there are connections. `None`: it can not be told now.
async fn in_use(shared: &Shared, addresses: HashSet<IpAddr>) -> Option<HashSet<IpAddr>> {
    let Some(conntrack) = shared.dns.conntrack.load_full() else {
        return Some(HashSet::new());
    };
    let listed = tokio::task::spawn_blocking(move || conntrack.list()).await.ok()?;
    let connections = match listed {
        Ok(connections) => connections,
        Err(error) => {
            tracing::warn!(%error, "addresses of names stay known: the kernel's connections can not be read");
            return None;
        }
    };
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).ok()?;
    let now = u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX);
    let ended = |c: &Connection| c.closing && c.used + CLOSING < now;
    let open = connections
        .into_iter()
        .filter(|c| c.expires > now && !c.refused && !ended(c));
    let remote = open.map(|c| c.remote.ip().to_canonical());
    Some(remote.filter(|address| addresses.contains(address)).collect())
}
