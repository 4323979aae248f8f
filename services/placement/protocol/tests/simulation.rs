//! Several nodes, one service, a bad network: joins, leaves, cuts in one or both directions, delays,
//! pauses, restarts, clocks that run at different speeds. Everything random comes from one seed.
//!
//! `WEFT_SIM_SEED=<n>` runs one seed, `WEFT_SIM_SEEDS=<n>` so many from 0 on.
#![allow(clippy::unwrap_used)]

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use weft_placement_protocol::{
    Delta, LEASE, LEASE_MARGIN, Limits, Placement, RENEW, Registration, SlotCount, Snapshot, TableView, Time,
    TypeKey,
};

/// One step of the simulation.
const STEP: u64 = 100;
/// How long there are faults; afterwards everything heals and must agree.
const FAULTS: u64 = 120_000;
const HEAL: u64 = 60_000;
const TYPES: [&str; 3] = ["Cart", "Order", "User"];

enum ToServer {
    Hello {
        hosts: Vec<Registration>,
        held: BTreeMap<TypeKey, u64>,
    },
    Up(Registration),
    Down(String),
    /// When the node sent it, by its own clock.
    Renew(u64),
}

enum ToNode {
    Welcome,
    Renewed(u64),
    Table(TypeKey, Snapshot),
    Delta(TypeKey, Delta),
    Gone(TypeKey),
}

/// One direction of a stream: in order, each message not before its time.
struct Pipe<T> {
    queue: VecDeque<(u64, T)>,
    stuck: bool,
}

impl<T> Pipe<T> {
    fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            stuck: false,
        }
    }

    fn send(&mut self, at: u64, message: T) {
        let after = self.queue.back().map_or(0, |(t, _)| *t);
        self.queue.push_back((at.max(after), message));
    }

    fn receive(&mut self, now: u64) -> Option<T> {
        let due = !self.stuck && self.queue.front().is_some_and(|(at, _)| *at <= now);
        due.then(|| self.queue.pop_front().unwrap().1)
    }
}

struct Stream {
    up: Pipe<ToServer>,
    down: Pipe<ToNode>,
    stuck_since: Option<u64>,
}

struct Node {
    name: String,
    hosts: BTreeMap<String, Registration>,
    stream: Option<Stream>,
    retry_at: u64,
    /// Its clock runs so many thousandths fast or slow.
    drift: i64,
    paused_until: u64,
    renew_at: u64,
    hello_sent: u64,
    /// Until when the node takes itself to be the owner, by its own clock.
    lease_until: u64,
    views: BTreeMap<TypeKey, TableView>,
}

impl Node {
    fn clock(&self, now: u64) -> u64 {
        (now as i64 + now as i64 * self.drift / 1000) as u64
    }
}

/// What the service knows of one stream.
#[derive(Default)]
struct Session {
    sent: BTreeMap<TypeKey, u64>,
}

struct World {
    rng: StdRng,
    now: u64,
    placement: Placement,
    sessions: BTreeMap<String, Session>,
    server_paused_until: u64,
    nodes: Vec<Node>,
    next_host: u32,
    /// Who was ever seen to own a slot under an epoch: the rule that must never break.
    ever: BTreeMap<(TypeKey, u32, u64), Arc<str>>,
    counts: BTreeMap<&'static str, u32>,
}

fn time(ms: u64) -> Time {
    Time::since_start(Duration::from_millis(ms))
}

fn ms(d: Duration) -> u64 {
    d.as_millis() as u64
}

fn slots() -> SlotCount {
    SlotCount::new(32).unwrap()
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let nodes = (0..rng.random_range(2..7))
            .map(|i| Node {
                name: format!("n{i}"),
                hosts: BTreeMap::new(),
                stream: None,
                retry_at: 0,
                drift: rng.random_range(-40..=40),
                paused_until: 0,
                renew_at: 0,
                hello_sent: 0,
                lease_until: 0,
                views: BTreeMap::new(),
            })
            .collect();
        Self {
            rng,
            now: 0,
            placement: Placement::new(Limits::default(), slots(), 0, time(0)),
            sessions: BTreeMap::new(),
            server_paused_until: 0,
            nodes,
            next_host: 0,
            ever: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    fn delay(&mut self) -> u64 {
        if self.rng.random_bool(0.02) {
            self.rng.random_range(0..2_000)
        } else {
            self.rng.random_range(0..80)
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn fault(&mut self) {
        let i = self.rng.random_range(0..self.nodes.len());
        match self.rng.random_range(0..1000) {
            0..40 => {
                self.next_host += 1;
                let types = (0..self.rng.random_range(1..=TYPES.len()))
                    .map(|_| (*TYPES.choose(&mut self.rng).unwrap()).to_owned())
                    .collect();
                let host = Registration {
                    id: format!("h{}", self.next_host),
                    namespace: (*["a", "b"].choose(&mut self.rng).unwrap()).into(),
                    app_id: "app".into(),
                    actor_types: types,
                    capacity: self.rng.random_range(0..4),
                };
                let delay = self.delay();
                let node = &mut self.nodes[i];
                node.hosts.insert(host.id.clone(), host.clone());
                if let Some(stream) = &mut node.stream {
                    stream.up.send(self.now + delay, ToServer::Up(host));
                }
                self.count("host up");
            }
            40..70 => {
                let Some(id) = self.nodes[i].hosts.keys().next().cloned() else {
                    return;
                };
                let delay = self.delay();
                let node = &mut self.nodes[i];
                node.hosts.remove(&id);
                if let Some(stream) = &mut node.stream {
                    stream.up.send(self.now + delay, ToServer::Down(id));
                }
                self.count("host down");
            }
            70..76 => {
                self.nodes[i].stream = None;
                self.nodes[i].retry_at = self.now + self.rng.random_range(0..20_000);
                self.count("cut");
            }
            76..84 => {
                let (up, down): (bool, bool) = self.rng.random();
                let now = self.now;
                if let Some(stream) = &mut self.nodes[i].stream {
                    stream.up.stuck |= up;
                    stream.down.stuck |= down;
                    stream.stuck_since.get_or_insert(now);
                    self.count("stall");
                }
            }
            84..88 => {
                self.nodes[i].paused_until = self.now + self.rng.random_range(0..25_000);
                self.count("node pause");
            }
            88..90 => {
                self.server_paused_until = self.now + self.rng.random_range(0..15_000);
                self.count("service pause");
            }
            90..92 => {
                let away = if self.rng.random() {
                    200
                } else {
                    self.rng.random_range(0..15_000)
                };
                self.restart(away);
                self.count("service restart");
            }
            _ => {}
        }
    }

    /// What was not settled was not saved, and nobody was told of it.
    fn restart(&mut self, away: u64) {
        self.settle();
        let saved = self.placement.saved();
        self.placement = Placement::restore(Limits::default(), slots(), 0, time(self.now + away), saved);
        self.server_paused_until = self.now + away;
        self.sessions.clear();
        for node in &mut self.nodes {
            node.stream = None;
            node.retry_at = self.now + away + self.rng.random_range(0..1000);
        }
    }

    fn node_step(&mut self, i: usize) {
        let now = self.now;
        let delay = self.delay();
        let jitter = self.rng.random_range(0..500);
        let node = &mut self.nodes[i];
        if now < node.paused_until {
            return;
        }
        let clock = node.clock(now);
        // Keep-alives find a stream that is stuck.
        if node
            .stream
            .as_ref()
            .is_some_and(|s| s.stuck_since.is_some_and(|t| now > t + 3_000))
        {
            node.stream = None;
            node.retry_at = now + jitter;
        }
        if node.stream.is_none() && now >= node.retry_at {
            let held = node.views.iter().map(|(k, v)| (k.clone(), v.version())).collect();
            let mut up = Pipe::new();
            up.send(
                now + delay,
                ToServer::Hello {
                    hosts: node.hosts.values().cloned().collect(),
                    held,
                },
            );
            node.hello_sent = clock;
            node.renew_at = clock + ms(RENEW);
            node.stream = Some(Stream {
                up,
                down: Pipe::new(),
                stuck_since: None,
            });
        }
        let Some(stream) = &mut node.stream else { return };
        if clock >= node.renew_at {
            stream.up.send(now + delay, ToServer::Renew(clock));
            node.renew_at = clock + ms(RENEW);
        }
        let lease = ms(LEASE - LEASE_MARGIN);
        while let Some(message) = stream.down.receive(now) {
            match message {
                ToNode::Welcome => node.lease_until = node.lease_until.max(node.hello_sent + lease),
                ToNode::Renewed(sent) => node.lease_until = node.lease_until.max(sent + lease),
                ToNode::Table(key, snapshot) => {
                    if let Some(old) = node.views.get(&key) {
                        assert!(snapshot.version >= old.version(), "{key}: version went back");
                        for slot in 0..slots().get() {
                            assert!(snapshot.epochs[slot as usize] >= old.epoch(slot).unwrap());
                        }
                    }
                    node.views.insert(key, TableView::new(snapshot).unwrap());
                }
                ToNode::Delta(key, delta) => {
                    let next = node.views[&key].apply(&delta).unwrap();
                    node.views.insert(key, next);
                }
                ToNode::Gone(key) => drop(node.views.remove(&key)),
            }
        }
        for (key, view) in &self.nodes[i].views {
            for slot in 0..slots().get() {
                let Some(owner) = view.slot(slot) else { continue };
                let first = self
                    .ever
                    .entry((key.clone(), slot, owner.epoch))
                    .or_insert(owner.host.id.clone());
                assert_eq!(
                    *first, owner.host.id,
                    "{key} slot {slot}: two owners of epoch {}",
                    owner.epoch
                );
            }
        }
    }

    fn settle(&mut self) {
        // Before slots are given away, those who lost them by silence must know it themselves.
        let owners: Vec<_> = self
            .placement
            .tables()
            .iter()
            .flat_map(|(k, t)| (0..slots().get()).map(move |s| ((k.clone(), s), t.owner(s).0.cloned())))
            .collect();
        self.placement.settle();
        for ((key, slot), before) in owners {
            let table = &self.placement.tables()[&key];
            let (after, epoch) = table.owner(slot);
            let Some(before) = before else { continue };
            if after.is_some_and(|a| a.id == before.id) {
                continue;
            }
            let first = after.map(|a| {
                self.ever
                    .entry((key.clone(), slot, epoch))
                    .or_insert(a.id.clone())
                    .clone()
            });
            assert_eq!(
                first,
                after.map(|a| a.id.clone()),
                "{key} slot {slot}: epoch {epoch} came again"
            );
        }
    }

    fn server_step(&mut self) {
        if self.now < self.server_paused_until {
            return;
        }
        let names: Vec<String> = self.nodes.iter().map(|n| n.name.clone()).collect();
        for name in self.placement.tick(time(self.now)) {
            let i = names.iter().position(|n| **n == *name).unwrap();
            let node = &self.nodes[i];
            assert!(
                node.lease_until <= node.clock(self.now),
                "{name} still takes itself for an owner when its slots are given away"
            );
            // The stream ends; the node will notice and say hello.
            if self.sessions.remove(&*name).is_some() {
                self.nodes[i].stream = None;
                self.nodes[i].retry_at = self.now + self.rng.random_range(0..500);
            }
            self.count("lease over");
        }
        for (i, name) in names.iter().enumerate() {
            if self.nodes[i].stream.is_none() {
                self.sessions.remove(name);
            }
            let mut replies = Vec::new();
            let mut close = false;
            while let Some(message) = self.nodes[i].stream.as_mut().and_then(|s| s.up.receive(self.now)) {
                match message {
                    ToServer::Hello { hosts, held } => {
                        let refused = self.placement.hello(name, hosts);
                        assert!(refused.is_empty(), "{refused:?}");
                        self.sessions.insert(name.clone(), Session { sent: held });
                        replies.push(ToNode::Welcome);
                    }
                    ToServer::Up(host) => close |= self.placement.host_up(name, host).is_err(),
                    ToServer::Down(id) => drop(self.placement.host_down(name, &id)),
                    ToServer::Renew(sent) => {
                        if self.placement.renew(name) {
                            replies.push(ToNode::Renewed(sent));
                        } else {
                            close = true;
                        }
                    }
                }
            }
            if close {
                self.nodes[i].stream = None;
                self.sessions.remove(name);
                continue;
            }
            for reply in replies {
                let at = self.now + self.delay();
                self.nodes[i].stream.as_mut().unwrap().down.send(at, reply);
            }
        }
        self.settle();
        for (i, name) in names.iter().enumerate() {
            // A slow reader gets less often, and then all of it at once.
            let slow = self.rng.random_bool(0.3);
            let at = self.now + self.delay();
            let (Some(session), Some(stream)) = (self.sessions.get_mut(name), &mut self.nodes[i].stream)
            else {
                continue;
            };
            if slow || stream.down.stuck {
                continue;
            }
            for (key, table) in self.placement.tables() {
                let sent = session.sent.get(key).copied();
                if sent == Some(table.version()) || (sent.is_none() && table.is_empty()) {
                    continue;
                }
                let message = match (sent.and_then(|v| table.delta(v)), table.snapshot()) {
                    (Some(delta), _) => ToNode::Delta(key.clone(), delta),
                    (None, Some(whole)) => ToNode::Table(key.clone(), whole),
                    (None, None) => ToNode::Gone(key.clone()),
                };
                if table.is_empty() {
                    session.sent.remove(key);
                } else {
                    session.sent.insert(key.clone(), table.version());
                }
                stream.down.send(at, message);
            }
        }
    }

    fn run(&mut self) {
        while self.now < FAULTS + HEAL {
            self.now += STEP;
            if self.now < FAULTS {
                self.fault();
            } else if self.now == FAULTS {
                self.nodes.iter_mut().for_each(|n| n.paused_until = 0);
                self.server_paused_until = 0;
            }
            for i in 0..self.nodes.len() {
                self.node_step(i);
            }
            self.server_step();
        }
        // Healed: everybody holds what the service holds, and it holds what the nodes registered.
        let hosts: usize = self.nodes.iter().map(|n| n.hosts.len()).sum();
        assert_eq!(self.placement.host_count(), hosts);
        for node in &self.nodes {
            assert!(
                node.lease_until > node.clock(self.now),
                "{} has no lease",
                node.name
            );
            let full = self.placement.tables().iter().filter(|(_, t)| !t.is_empty());
            assert_eq!(node.views.len(), full.clone().count(), "{}", node.name);
            for (key, table) in full {
                let whole = TableView::new(table.snapshot().unwrap()).unwrap();
                let view = &node.views[key];
                assert_eq!(view.version(), whole.version(), "{} {key}", node.name);
                for slot in 0..slots().get() {
                    assert_eq!(view.slot(slot), whole.slot(slot), "{} {key}", node.name);
                    assert!(view.slot(slot).is_some());
                }
            }
        }
    }
}

#[test]
fn nodes_agree_whatever_the_network_does() {
    let number = |name| std::env::var(name).ok().map(|v| v.parse::<u64>().unwrap());
    let seeds = match number("WEFT_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("WEFT_SIM_SEEDS").unwrap_or(24),
    };
    let mut totals: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in seeds.clone() {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.run();
            world.counts
        });
        match outcome {
            Ok(counts) => counts
                .into_iter()
                .for_each(|(what, n)| *totals.entry(what).or_default() += n),
            Err(cause) => {
                eprintln!("failed with WEFT_SIM_SEED={seed}");
                std::panic::resume_unwind(cause);
            }
        }
    }
    println!("seeds {seeds:?}: {totals:?}");
    // A run in which nothing bad happened shows nothing.
    if seeds.end - seeds.start >= 20 {
        for what in [
            "host up",
            "host down",
            "cut",
            "stall",
            "node pause",
            "service pause",
            "service restart",
            "lease over",
        ] {
            assert!(
                totals.get(what).is_some_and(|n| *n > 10),
                "{what} hardly happened: {totals:?}"
            );
        }
    }
}
