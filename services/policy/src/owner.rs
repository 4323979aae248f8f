//! The task that owns the world: everything that happens reaches it by one channel, one thing at a time,
//! registrations and removals at the end of what waits ([`crate::registrations`]).
//!
//! What must outlive a restart is stored before the world changes; if it can not be stored, nothing
//! changes and the caller is told.

use crate::{
    Config,
    cluster::key_of,
    files::{Files, Reading},
    hosts::Hosts,
    listing,
    metrics::Counts,
    registrations::Batch,
    starts::Starts,
    store::{State, Write},
    world::{ExplainError, ObjectKey, RegisterError, Session, SharedChange, SharedNodes, World, Written},
};
use std::{
    collections::BTreeSet,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior},
};
use weft_drain::Watcher;
use weft_proto::weft::policy::v1 as pb;
use weft_store::StoreError;

/// How often waiting periods are looked at.
const TICK: Duration = Duration::from_millis(500);

/// Each follower costs memory for what it has not fetched yet.
const MAX_FOLLOWERS: usize = 4_096;

/// As many events are taken at once, so that no transaction is large.
const AT_ONCE: usize = 128;

/// Why a registration or its removal did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error(transparent)]
    Store(Arc<StoreError>),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// Everything that can happen.
#[derive(Debug)]
pub(crate) enum Event {
    Register {
        node: String,
        workload: Box<pb::Workload>,
        reply: oneshot::Sender<Result<pb::Workload, Refused>>,
    },
    Deregister {
        node: String,
        id: String,
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    /// Answered with a number for [`Event::News`] and a signal for when to ask.
    Follow {
        reply: oneshot::Sender<(u64, watch::Receiver<()>)>,
    },
    News {
        number: u64,
        reply: oneshot::Sender<Option<pb::WatchResponse>>,
    },
    Connect {
        node: String,
        session: Session,
        hello: pb::Hello,
    },
    AskFor {
        node: String,
        namespaces: Vec<String>,
    },
    Ack {
        node: String,
        session: u64,
        version: u64,
    },
    Nack {
        node: String,
        session: u64,
        version: u64,
        reasons: Vec<String>,
    },
    Disconnect {
        node: String,
        session: u64,
    },
    List {
        request: pb::ListRequest,
        reply: oneshot::Sender<pb::ListResponse>,
    },
    Rejected {
        reply: oneshot::Sender<pb::RejectedResponse>,
    },
    /// Statuses to be written into a cluster, some from after a key on; answered with where to go on.
    Statuses {
        after: Option<ObjectKey>,
        reply: oneshot::Sender<(Vec<Written>, Option<ObjectKey>)>,
    },
    Explain {
        request: Box<pb::ExplainRequest>,
        reply: oneshot::Sender<Result<pb::ExplainResponse, ExplainError>>,
    },
}

/// What there is at the start.
#[derive(Debug)]
pub(crate) enum First {
    /// All that the folder says.
    Folder(Vec<Reading>),
    /// Nothing yet: until the cluster is read, what was in force before is.
    Cluster,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) world: World,
    files: Files,
    pub(crate) state: State,
    grace: Duration,
    node_timeout: Duration,
    /// So long a node is away until what is there once for the cluster moves.
    move_after: Duration,
    /// What nodes may host.
    hosts: Hosts,
    /// Shared endpoints that could not be made, as they were wanted: said once.
    unmade: std::collections::BTreeMap<String, pb::Workload>,
    /// Followers' numbers with the signal that tells them of news.
    followers: Vec<(u64, watch::Sender<()>)>,
    next_follower: u64,
    /// Known nodes that have no stream, and since when.
    absent: std::collections::BTreeMap<String, Instant>,
    counts: Counts,
    pub(crate) starts: Starts,
    /// Says that statuses may have changed.
    news: Arc<Notify>,
}

/// Seconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

impl Owner {
    /// Restores what was stored, then takes over what the folder says.
    pub(crate) async fn start(
        config: &Config,
        mut world: World,
        state: State,
        first: First,
        (hosts, counts): (Hosts, Counts),
    ) -> Result<Self, StoreError> {
        let stored = state.load().await?;
        world.set_time(now());
        for (key, created, generation, digest) in stored.objects {
            world.restore_object(key, created, generation, digest);
        }
        world.give_addresses_of(config.service_ranges());
        world.give_shared_addresses_of(config.shared_ranges());
        for node in stored.nodes {
            world.restore_node(node);
        }
        for (name, address) in stored.service_addresses {
            world.restore_address(name, address);
        }
        world.restore(stored.identities, stored.workloads, now());
        let (mut files, readings) = match first {
            First::Folder(readings) => (Files::default(), Some(readings)),
            First::Cluster => (Files::of_cluster(), None),
        };
        let present: Option<BTreeSet<&String>> =
            readings.as_ref().map(|all| all.iter().map(|r| &r.path).collect());
        let mut gone = Vec::new();
        for (path, content) in &stored.good_files {
            let still_there = match &present {
                Some(present) => present.contains(path),
                // What only another source had is not there.
                None => key_of(path).is_some(),
            };
            if still_there {
                for (key, resource) in files.restore(path, content) {
                    world.set_object(&key, resource.as_ref());
                }
            } else {
                gone.push(Write::RemoveGoodFile { path: path.clone() });
            }
        }
        state.write(&gone).await?;
        let mut owner = Self {
            world,
            files,
            state,
            grace: config.identity_grace(),
            node_timeout: config.node_timeout(),
            move_after: config.shared_move_after(),
            hosts,
            unmade: Default::default(),
            followers: Vec::new(),
            next_follower: 1,
            absent: Default::default(),
            counts,
            starts: Starts::new(config.start_wait()),
            news: Arc::default(),
        };
        owner.read(readings.unwrap_or_default()).await;
        owner.world.sweep_addresses();
        owner.store_addresses().await;
        owner.world.settle();
        owner.count();
        Ok(owner)
    }

    /// Objects that are in force.
    pub(crate) fn objects(&self) -> Vec<ObjectKey> {
        self.files.objects().cloned().collect()
    }

    /// Tells of statuses that may have changed from now on.
    pub(crate) fn news(&self) -> Arc<Notify> {
        self.news.clone()
    }

    /// Takes over what is read until `complete`.
    pub(crate) async fn read_until(
        &mut self,
        readings: &mut mpsc::Receiver<Vec<Reading>>,
        complete: impl Future<Output = ()>,
    ) {
        tokio::pin!(complete);
        loop {
            tokio::select! {
                Some(batch) = readings.recv() => self.read(batch).await,
                () = &mut complete => break,
            }
        }
        // Sent before it was complete.
        while let Ok(batch) = readings.try_recv() {
            self.read(batch).await;
        }
        self.world.sweep_addresses();
        self.store_addresses().await;
        self.world.settle();
        self.count();
    }

    /// Runs until the drain.
    pub(crate) async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut readings: mpsc::Receiver<Vec<Reading>>,
        mut drain: Watcher,
    ) {
        let mut hosts = self.hosts.changes();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut taken = Vec::with_capacity(AT_ONCE);
        loop {
            let overdue = self.starts.deadline();
            tokio::select! {
                count = events.recv_many(&mut taken, AT_ONCE) => match count {
                    0 => break,
                    _ => {
                        let mut batch = Batch::default();
                        for event in taken.drain(..) {
                            self.handle(event, &mut batch).await;
                        }
                        self.commit(&mut batch).await;
                    }
                },
                () = tokio::time::sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => {
                    let (count, nodes) = self.starts.overdue(Instant::now());
                    if count > 0 {
                        tracing::warn!(count, ?nodes, "workloads start before these nodes know them");
                        self.counts.slow_starts.inc_by(count as u64);
                    }
                }
                Some(batch) = readings.recv() => self.read(batch).await,
                _ = tick.tick() => self.look_at_periods().await,
                Ok(()) = hosts.changed() => self.world.look_at_shared(),
                () = drain.draining() => break,
            }
            if self.world.is_shared_due() {
                self.make_shared().await;
            }
            self.world.settle();
            self.signal();
            self.count();
        }
        self.state.close().await;
    }

    async fn handle(&mut self, event: Event, batch: &mut Batch) {
        // A caller that went away meanwhile does not want its answer any more.
        match event {
            Event::Register {
                node,
                workload,
                reply,
            } => self.register(batch, &node, *workload, reply).await,
            Event::Deregister { node, id, reply } => self.deregister(batch, &node, id, reply).await,
            Event::Follow { reply } => {
                if self.followers.len() >= MAX_FOLLOWERS {
                    // The dropped reply says so.
                    return tracing::warn!(
                        "more than {MAX_FOLLOWERS} follow the registry; one more is refused"
                    );
                }
                let number = self.next_follower;
                self.next_follower += 1;
                let (signal, follower) = watch::channel(());
                self.world.follow(number);
                self.followers.push((number, signal));
                let _ = reply.send((number, follower));
            }
            Event::News { number, reply } => {
                let _ = reply.send(self.world.news(number));
            }
            Event::Connect { node, session, hello } => {
                tracing::info!(node, held = hello.held_version, "node connected");
                let (writes, problems) = self.world.node_told(&node, &hello);
                for problem in problems {
                    tracing::error!(node, problem, "part of what the node says of itself is not taken");
                }
                if let Err(error) = self.state.write(&writes).await {
                    // In force all the same; after a restart the node is there again before long.
                    tracing::error!(%error, node, "what the node says of itself could not be stored");
                }
                self.world.connect(&node, session, &hello);
                self.world.look_at_shared();
                self.starts.heard_from(&self.world, &node);
            }
            Event::AskFor { node, namespaces } => self.world.ask_for(&node, namespaces),
            Event::Ack {
                node,
                session,
                version,
            } => {
                self.world.ack(&node, session, version);
                self.starts.heard_from(&self.world, &node);
            }
            Event::Nack {
                node,
                session,
                version,
                reasons,
            } => {
                tracing::warn!(node, version, ?reasons, "node could not apply an update");
                self.counts.nacks.inc();
                self.world.nack(&node, session, version, reasons);
                self.starts.heard_from(&self.world, &node);
            }
            Event::Disconnect { node, session } => {
                tracing::info!(node, "node disconnected");
                self.world.disconnect(&node, session);
                self.starts.heard_from(&self.world, &node);
            }
            Event::Statuses { after, reply } => {
                let _ = reply.send(self.world.statuses(after.as_ref()));
            }
            Event::Rejected { reply } => {
                let _ = reply.send(self.files.rejected());
            }
            Event::Explain { request, reply } => {
                let _ = reply.send(self.world.explain(&request));
            }
            Event::List { request, reply } if request.objects => {
                self.world.set_time(now());
                if self.world.note_programmed() {
                    self.news.notify_one();
                }
                let (mut resources, next) = listing::page(&self.world, &request);
                if next.is_empty() {
                    resources.extend(self.files.rejected_statuses());
                }
                let _ = reply.send(pb::ListResponse {
                    resources,
                    nodes: Vec::new(),
                    next,
                });
            }
            Event::List { request, reply } => {
                let mut resources = self.files.statuses(&request.kind, &request.namespace);
                resources.retain(|r| request.name.is_empty() || r.name == request.name || !r.accepted);
                let _ = reply.send(pb::ListResponse {
                    resources,
                    nodes: self.world.node_statuses(),
                    next: String::new(),
                });
            }
        }
    }

    async fn remove(&mut self, ids: &[String]) -> Result<(), StoreError> {
        let now = now();
        // There may be room for what there was none for.
        self.unmade.clear();
        for id in ids {
            self.state.write(&self.world.plan_removal(id, now)).await?;
            self.world.deregister(id, now);
        }
        Ok(())
    }

    /// Takes over what the folder says. If it can not be stored, it is in force all the same: only a bad
    /// file at the next start would miss it.
    async fn read(&mut self, readings: Vec<Reading>) {
        self.world.set_time(now());
        let paths: BTreeSet<String> = readings.iter().map(|r| r.path.clone()).collect();
        let (changes, writes) = self.files.apply(readings);
        for problem in self.files.problems_of(&paths) {
            tracing::error!("{problem}");
        }
        for (key, resource) in &changes {
            self.world.set_object(key, resource.as_ref());
        }
        if let Err(error) = self.state.write(&writes).await {
            tracing::error!(%error, "the last good state of the resources could not be stored");
        }
        let writes = self.world.seen_writes();
        if let Err(error) = self.state.write(&writes).await {
            tracing::error!(%error, "when objects were first seen could not be stored");
        }
        // Gateways have Services made for them, which get addresses.
        self.world.judge_routing();
        self.store_addresses().await;
        if !changes.is_empty() {
            self.news.notify_one();
            tracing::info!(files = paths.len(), objects = changes.len(), "resources read");
        }
    }

    /// Brings shared endpoints to what Services ask for, on the nodes that are there for them.
    async fn make_shared(&mut self) {
        let clock = Instant::now();
        let away = self.absent.iter();
        let away = away.filter(|(_, since)| clock.duration_since(**since) >= self.move_after);
        let away: BTreeSet<String> = away.map(|(node, _)| node.clone()).collect();
        let hosts = self.hosts.clone();
        let changes = self.world.shared_changes(&SharedNodes {
            may_host: &|node, namespace, name| hosts.may_host(node, namespace, name),
            away: &away,
        });
        for change in changes {
            let (id, made) = match change {
                SharedChange::Remove(id) => {
                    let removed = self.remove(std::slice::from_ref(&id)).await;
                    (id, removed.map_err(Refused::from))
                }
                SharedChange::Put(message) => {
                    if self.unmade.get(&message.id) == Some(&*message) {
                        continue;
                    }
                    let (id, wanted) = (message.id.clone(), (*message).clone());
                    let made = self.put_shared(*message).await;
                    if let Err(Refused::Register(_)) = &made {
                        self.unmade.insert(id.clone(), wanted);
                    }
                    (id, made)
                }
            };
            match made {
                Ok(()) => {
                    self.unmade.remove(&id);
                    tracing::info!(workload = id, "shared endpoint changed");
                }
                Err(error) => {
                    tracing::error!(workload = id, %error, "a shared endpoint is not as desired");
                    // What can not be stored now can be later.
                    if matches!(error, Refused::Store(_)) {
                        self.world.look_at_shared();
                        return;
                    }
                }
            }
        }
    }

    async fn put_shared(&mut self, message: pb::Workload) -> Result<(), Refused> {
        let now = now();
        let planned = self.world.plan_shared(message, now)?;
        self.state.write(&planned.writes).await?;
        self.world.register(planned, now);
        Ok(())
    }

    /// If they can not be stored they are in force all the same: a restart finds the same ones by the
    /// Services' names, unless another Service has them by then.
    async fn store_addresses(&mut self) {
        let writes = self.world.address_writes();
        if let Err(error) = self.state.write(&writes).await {
            tracing::error!(%error, "addresses given to Services could not be stored");
        }
    }

    async fn look_at_periods(&mut self) {
        self.world.set_time(now());
        self.world.note_programmed();
        for identity in self
            .world
            .expired_identities(now().saturating_sub(self.grace.as_secs()))
        {
            match self
                .state
                .write(&[Write::RemoveIdentity { number: identity }])
                .await
            {
                Ok(()) => self.world.take_back(identity),
                Err(error) => {
                    tracing::error!(%error, identity = identity.0, "a released identity could not be removed");
                    break;
                }
            }
        }
        self.world.forget_lost_nodes(self.node_timeout);
        let known = self.world.known_nodes();
        self.absent.retain(|node, _| known.contains(node));
        let now = Instant::now();
        let mut over = Vec::new();
        for node in known {
            if self.world.is_connected(&node) {
                self.absent.remove(&node);
            } else if now.duration_since(*self.absent.entry(node.clone()).or_insert(now)) >= self.node_timeout
            {
                over.push(node);
            }
        }
        if !self.absent.is_empty() {
            self.world.look_at_shared();
        }
        for node in over {
            tracing::warn!(node, "node has been away for too long; its workloads are removed");
            if let Err(error) = self.remove(&self.world.ids_of_node(&node)).await {
                tracing::error!(%error, node, "workloads of a lost node could not be removed");
            }
            let writes = self.world.node_gone(&node);
            if let Err(error) = self.state.write(&writes).await {
                tracing::error!(%error, node, "a lost node is remembered after a restart");
            }
        }
    }

    /// Tells followers that there may be news, and forgets those that went away.
    fn signal(&mut self) {
        let gone: Vec<u64> = self
            .followers
            .iter()
            .filter(|(_, s)| s.is_closed())
            .map(|(n, _)| *n)
            .collect();
        for number in gone {
            self.world.unfollow(number);
            self.followers.retain(|(n, _)| *n != number);
        }
        for (number, signal) in &self.followers {
            if self.world.has_news(*number) {
                signal.send_replace(());
            }
        }
    }

    fn count(&self) {
        let (workloads, identities) = self.world.counts();
        self.counts.workloads.set(workloads as i64);
        self.counts.identities.set(identities as i64);
        self.counts.nodes.set(self.world.connected_nodes() as i64);
        self.counts.bad_files.set(self.files.bad_files() as i64);
    }
}
