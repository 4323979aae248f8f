//! The task that owns the world: everything that happens reaches it by one channel, one thing at a time,
//! registrations and removals at the end of what waits ([`crate::registrations`]).
//!
//! What must outlive a restart is stored before the world changes; if it can not be stored, nothing
//! changes and the caller is told.

mod events;
mod orders;
mod periods;
mod shared;

pub(crate) use events::{Event, First, OrderError, Refused};
pub(crate) use orders::{Deletion, Order};

use crate::{
    Config,
    cluster::key_of,
    files::{Change, Files, Reading},
    hosts::Hosts,
    listing,
    metrics::Counts,
    registrations::Batch,
    starts::Starts,
    store::{State, Write},
    world::{ObjectKey, World},
};
use std::{
    collections::BTreeSet,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::{Notify, mpsc, watch},
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
        if files.is_of_cluster() {
            if !stored.applied.is_empty() {
                let count = stored.applied.len();
                tracing::warn!(
                    count,
                    "what was applied is not in force while the source is a cluster"
                );
            }
        } else {
            for (key, resource) in files.restore_applied(stored.applied) {
                world.set_object(&key, Some(&resource));
            }
        }
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
            Event::Apply { order, reply } => {
                // What was planned was planned with the objects as they are.
                self.commit(batch).await;
                let _ = reply.send(self.apply(*order).await);
            }
            Event::Delete { deletion, reply } => {
                self.commit(batch).await;
                let _ = reply.send(self.delete(deletion).await);
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

    /// Takes over what the folder says. If it can not be stored, it is in force all the same: only a bad
    /// file at the next start would miss it.
    async fn read(&mut self, readings: Vec<Reading>) {
        let paths: BTreeSet<String> = readings.iter().map(|r| r.path.clone()).collect();
        let (changes, writes) = self.files.apply(readings);
        for problem in self.files.problems_of(&paths) {
            tracing::error!("{problem}");
        }
        self.take_over(&changes, &writes).await;
        if !changes.is_empty() {
            tracing::info!(files = paths.len(), objects = changes.len(), "resources read");
        }
    }

    /// Brings the world to objects that changed, and stores what follows from them.
    async fn take_over(&mut self, changes: &[Change], writes: &[Write]) {
        self.world.set_time(now());
        for (key, resource) in changes {
            self.world.set_object(key, resource.as_ref());
        }
        if let Err(error) = self.state.write(writes).await {
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
        }
    }

    /// If they can not be stored they are in force all the same: a restart finds the same ones by the
    /// Services' names, unless another Service has them by then.
    async fn store_addresses(&mut self) {
        let writes = self.world.address_writes();
        if let Err(error) = self.state.write(&writes).await {
            tracing::error!(%error, "addresses given to Services could not be stored");
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
