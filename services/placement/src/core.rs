//! The task that owns all state. Streams and calls send it commands and pull what they are to send.
//!
//! One round: take the commands that wait, let time pass, assign the slots of every type that was
//! touched, write that to the database, and only then let anybody see it. While the database can
//! not be written, nobody is told of changes and lookups fail; leases go on being renewed.

use crate::{clock::Clock, metrics::CoreMetrics, session::Session, store::State};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Notify, mpsc, oneshot};
use weft_drain::Watcher;
use weft_placement_client::wire;
use weft_placement_protocol::{LEASE, Placement, RENEW, Registration, Settled, Time, TypeKey};
use weft_proto::weft::placement::v1 as pb;
use weft_telemetry::Health;

/// Commands that wait; more make their senders wait, and with them the nodes' streams.
const COMMANDS: usize = 1024;
/// Commands of one round.
const ROUND: usize = 256;
/// The longest time between two looks at the clock.
const TICK: Duration = Duration::from_millis(500);
/// What `/healthz` calls the database.
pub(crate) const HEALTH_PART: &str = "database";

/// One stream of one node. A newer stream of the same node makes an older one's number void.
#[derive(Debug, Clone)]
pub(crate) struct StreamId {
    pub node: Arc<str>,
    pub number: u64,
}

/// A node's first message.
#[derive(Debug)]
pub(crate) struct Hello {
    pub node: Arc<str>,
    pub held_epoch: String,
    pub held: Vec<(TypeKey, u64)>,
    pub hosts: Vec<Registration>,
}

/// What the core is asked.
#[derive(Debug)]
pub(crate) enum Command {
    Open {
        hello: Hello,
        reply: oneshot::Sender<(StreamId, Arc<Notify>)>,
    },
    Up {
        stream: StreamId,
        host: Registration,
    },
    Down {
        stream: StreamId,
        id: String,
    },
    Renew {
        stream: StreamId,
        sequence: u64,
    },
    Close {
        stream: StreamId,
    },
    /// The stream's next messages; `None` when the stream is void.
    Pull {
        stream: StreamId,
        reply: oneshot::Sender<Option<Vec<pb::JoinResponse>>>,
    },
    Lookup {
        key: TypeKey,
        actor_id: String,
        reply: oneshot::Sender<Result<pb::LookupResponse, CoreError>>,
    },
    List {
        namespace: Option<String>,
        reply: oneshot::Sender<Result<Vec<pb::HostShare>, CoreError>>,
    },
}

/// Why the core gives no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CoreError {
    #[error("no host runs actor type {0}")]
    NoHost(TypeKey),
    #[error("placement can not write its database, so no owner is certain: {0}")]
    Unwritten(String),
    #[error("placement is shutting down")]
    Stopped,
}

/// The way to the core.
#[derive(Debug, Clone)]
pub(crate) struct Core(mpsc::Sender<Command>);

impl Core {
    pub async fn send(&self, command: Command) -> Result<(), CoreError> {
        self.0.send(command).await.map_err(|_| CoreError::Stopped)
    }

    pub async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, CoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.map_err(|_| CoreError::Stopped)
    }
}

/// Everything, owned by one task.
pub(crate) struct Keeper {
    pub placement: Placement,
    pub state: State,
    /// Names the database, see [`pb::Welcome`].
    pub epoch: String,
    pub clock: Clock,
    pub health: Health,
    pub metrics: CoreMetrics,
}

/// Starts the task. It ends when the drain starts, after what it has taken is written; nodes then
/// have their full lease to find the next one.
pub(crate) fn start(keeper: Keeper, drain: Watcher) -> (Core, tokio::task::JoinHandle<()>) {
    let (tx, rx) = mpsc::channel(COMMANDS);
    let run = Run {
        keeper,
        sessions: HashMap::new(),
        unwritten: Settled::default(),
        failure: None,
        last: 0,
    };
    (Core(tx), tokio::spawn(run.run(rx, drain)))
}

struct Run {
    keeper: Keeper,
    sessions: HashMap<Arc<str>, Session>,
    /// Changes that the database does not have yet.
    unwritten: Settled,
    /// Why the last write failed, and when to try again.
    failure: Option<(String, Time)>,
    /// The last stream's number.
    last: u64,
}

impl Run {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, mut drain: Watcher) {
        self.keeper.health.ready(HEALTH_PART);
        let mut round = Vec::with_capacity(ROUND);
        // What was restored may have to be settled.
        self.settle().await;
        loop {
            let clock = self.keeper.clock.clone();
            tokio::select! {
                n = commands.recv_many(&mut round, ROUND) => if n == 0 { break },
                () = clock.sleep(TICK) => {}
                () = drain.draining() => break,
            }
            // Time first: a lease that is renewed now counts from now.
            for node in self.keeper.placement.tick(self.keeper.clock.now()) {
                tracing::warn!(%node, "lease is over; the node's slots go to others");
                self.keeper.metrics.leases_lost.inc();
                self.drop_session(&node);
            }
            let mut questions = Vec::new();
            for command in round.drain(..) {
                questions.extend(self.change(command));
            }
            self.settle().await;
            questions.into_iter().for_each(|question| self.answer(question));
        }
        self.sessions.values().for_each(|s| s.wake.notify_one());
        drop(commands);
        self.keeper.state.close().await;
    }

    fn drop_session(&mut self, node: &str) {
        if let Some(session) = self.sessions.remove(node) {
            // Its stream pulls, finds itself void, and ends.
            session.wake.notify_one();
        }
    }

    fn session(&mut self, stream: &StreamId) -> Option<&mut Session> {
        self.sessions
            .get_mut(&stream.node)
            .filter(|s| s.number == stream.number)
    }

    /// Carries out what changes something; gives back what has to see the change.
    fn change(&mut self, command: Command) -> Option<Command> {
        match command {
            Command::Open { hello, reply } => {
                let opened = self.open(hello);
                let _ = reply.send(opened);
            }
            Command::Up { stream, host } => {
                self.session(&stream)?;
                let id = host.id.clone();
                if let Err(reason) = self.keeper.placement.host_up(&stream.node, host) {
                    tracing::warn!(node = %stream.node, host = id, %reason, "host refused");
                    self.session(&stream)?.refused(id, reason.to_string());
                }
            }
            Command::Down { stream, id } => {
                self.session(&stream)?;
                self.keeper.placement.host_down(&stream.node, &id);
            }
            Command::Renew { stream, sequence } => {
                self.session(&stream)?;
                if self.keeper.placement.renew(&stream.node) {
                    self.session(&stream)?.renewed(sequence);
                }
            }
            Command::Close { stream } => {
                self.session(&stream)?;
                self.sessions.remove(&stream.node);
            }
            question => return Some(question),
        }
        None
    }

    fn open(&mut self, hello: Hello) -> (StreamId, Arc<Notify>) {
        let Hello {
            node,
            held_epoch,
            held,
            hosts,
        } = hello;
        self.drop_session(&node);
        self.last += 1;
        let held = if held_epoch == self.keeper.epoch {
            held.into_iter().collect()
        } else {
            HashMap::new()
        };
        let refused = self.keeper.placement.hello(&node, hosts);
        let millis = |d: Duration| u32::try_from(d.as_millis()).unwrap_or(u32::MAX);
        let welcome = pb::Welcome {
            epoch: self.keeper.epoch.clone(),
            lease_milliseconds: millis(LEASE),
            renew_milliseconds: millis(RENEW),
        };
        let mut session = Session::new(self.last, welcome, held, &self.keeper.placement);
        for (id, reason) in refused {
            tracing::warn!(%node, host = id, %reason, "host refused");
            session.refused(id, reason.to_string());
        }
        let opened = (
            StreamId {
                node: node.clone(),
                number: self.last,
            },
            session.wake.clone(),
        );
        self.sessions.insert(node, session);
        opened
    }

    /// Assigns, writes, and marks for sending.
    async fn settle(&mut self) {
        let settled = self.keeper.placement.settle();
        self.unwritten.merge(settled);
        let now = self.keeper.clock.now();
        let may_try = self.failure.as_ref().is_none_or(|(_, again)| now >= *again);
        if !self.unwritten.is_empty() && may_try {
            match self
                .keeper
                .state
                .save(&self.keeper.placement, &self.unwritten)
                .await
            {
                Ok(()) => {
                    if self.failure.take().is_some() {
                        tracing::info!("the database can be written again");
                        self.keeper.health.ready(HEALTH_PART);
                    }
                    let changed: BTreeSet<TypeKey> = std::mem::take(&mut self.unwritten).types;
                    self.keeper.metrics.versions.inc_by(changed.len() as u64);
                    self.sessions.values_mut().for_each(|s| s.changed(changed.iter()));
                }
                Err(error) => {
                    let reason = error.to_string();
                    if self.failure.as_ref().is_none_or(|(known, _)| *known != reason) {
                        tracing::error!(%error, "assignments are not written; nobody is told of them");
                    }
                    self.keeper.health.waiting(HEALTH_PART, reason.clone());
                    self.failure = Some((reason, now + TICK));
                }
            }
        }
        let metrics = &self.keeper.metrics;
        metrics.nodes.set(self.sessions.len() as i64);
        metrics.hosts.set(self.keeper.placement.host_count() as i64);
        metrics.types.set(self.keeper.placement.tables().len() as i64);
    }

    fn answer(&mut self, question: Command) {
        let uncertain = self
            .failure
            .clone()
            .map(|(reason, _)| CoreError::Unwritten(reason));
        match question {
            Command::Pull { stream, reply } => {
                let placement = &self.keeper.placement;
                let session = self
                    .sessions
                    .get_mut(&stream.node)
                    .filter(|s| s.number == stream.number);
                // Nobody is told what is not written.
                let _ = reply.send(session.map(|s| s.pull(placement, uncertain.is_none())));
            }
            Command::Lookup { key, actor_id, reply } => {
                let _ = reply.send(uncertain.map_or_else(|| self.lookup(key, &actor_id), Err));
            }
            Command::List { namespace, reply } => {
                let list = || {
                    let shares = self.keeper.placement.shares(namespace.as_deref());
                    let message = |s: weft_placement_protocol::Share| pb::HostShare {
                        host: Some(wire::host_message(&s.host)),
                        actor_type: s.key.actor_type.to_string(),
                        slots: s.slots,
                    };
                    Ok(shares.into_iter().map(message).collect())
                };
                let _ = reply.send(uncertain.map_or_else(list, Err));
            }
            // Carried out before.
            _ => {}
        }
    }

    fn lookup(&self, key: TypeKey, actor_id: &str) -> Result<pb::LookupResponse, CoreError> {
        let table = self.keeper.placement.tables().get(&key);
        let found = table.and_then(|table| {
            let slot = table.slots().slot_of(actor_id);
            let (owner, epoch) = table.owner(slot);
            Some(pb::LookupResponse {
                slot,
                epoch,
                owner: Some(wire::host_message(owner?)),
            })
        });
        found.ok_or(CoreError::NoHost(key))
    }
}
