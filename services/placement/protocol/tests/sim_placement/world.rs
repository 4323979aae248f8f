//! Everything together: time, the network, what goes wrong, and who keeps the record.
//!
//! One seed decides all. True time is in milliseconds; every machine's clock runs at its own speed.

use crate::{
    faults::Fault,
    node::{Call, Node},
    service::Replica,
    stores::{Actor, Answer, Database, Op, Save, Store},
    wire::ToService,
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    ops::Range,
    sync::Arc,
    time::Duration,
};
use weft_placement_protocol::{
    Ask, LeaderRow, Registration, Reminder, Saved, SlotCount, TableView, Time, TypeKey,
};

/// One step.
const STEP: u64 = 50;
const TYPES: [&str; 2] = ["Cart", "Order"];
const ACTORS: u32 = 10;

/// How long there are faults, and how long everything has to heal after that.
pub const FAULTS: u64 = 60_000;
pub const HEAL: u64 = 40_000;

/// What happens to a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// All that can go wrong.
    Storm,
    /// Apps come and go as they should; nothing fails. No call may.
    Calm,
    /// As calm, and the service is away now and then, up to five seconds in all.
    Away,
}

#[derive(Debug)]
pub enum DbOp {
    Ask(Ask),
    Load(u64),
    Save(Save),
}

#[derive(Debug)]
pub enum DbAnswer {
    Row(LeaderRow),
    Loaded(Option<(Saved, Vec<Reminder>)>),
    Saved(bool),
}

#[derive(Debug)]
pub enum Peer {
    Call(Call),
    Done { call: Call, ok: bool },
}

enum Event {
    DbApply {
        r: usize,
        start: u64,
        token: u64,
        op: DbOp,
    },
    DbAnswer {
        r: usize,
        start: u64,
        token: u64,
        answer: Option<DbAnswer>,
    },
    StoreApply {
        i: usize,
        token: u64,
        actor: Actor,
        op: Op,
    },
    StoreAnswer {
        i: usize,
        token: u64,
        answer: Answer,
    },
    Peer {
        from: usize,
        to: usize,
        message: Peer,
    },
}

/// Links that are cut, each direction on its own, and when.
#[derive(Debug, Default)]
pub struct Net {
    up: BTreeMap<(usize, usize), Range<u64>>,
    down: BTreeMap<(usize, usize), Range<u64>>,
    peer: BTreeMap<(usize, usize), Range<u64>>,
    database: BTreeMap<usize, Range<u64>>,
    store: BTreeMap<usize, Range<u64>>,
}

impl Net {
    pub fn up_cut(&self, r: usize, i: usize, now: u64) -> bool {
        self.up.get(&(r, i)).is_some_and(|cut| cut.contains(&now))
    }

    pub fn down_cut(&self, r: usize, i: usize, now: u64) -> bool {
        self.down.get(&(r, i)).is_some_and(|cut| cut.contains(&now))
    }
}

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

pub struct World {
    pub rng: StdRng,
    pub now: u64,
    pub fault: Option<Fault>,
    pub weather: Weather,
    pub db: Database,
    pub store: Store,
    pub replicas: Vec<Replica>,
    pub nodes: Vec<Node>,
    pub net: Net,
    pub counts: BTreeMap<&'static str, u64>,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    held: HashMap<u64, Event>,
    last_token: u64,
    next_host: u32,
    db_down_until: u64,
    store_down_until: u64,
    away_until: u64,
    violation: Option<Violation>,
    /// Who runs turns of an actor.
    running: BTreeMap<Actor, Vec<(usize, u64)>>,
    /// Who was ever seen as the owner of a slot under an epoch.
    ever: HashMap<(TypeKey, u32, u64), Arc<str>>,
    acked: BTreeMap<String, u64>,
    fired: BTreeSet<String>,
}

pub fn time(ms: u64) -> Time {
    Time::since_start(Duration::from_millis(ms))
}

/// A clock that runs so many thousandths fast or slow.
pub fn clock(now: u64, drift: i64) -> Time {
    time(now * (1000 + drift).unsigned_abs() / 1000)
}

pub fn slots() -> SlotCount {
    SlotCount::new(8).unwrap_or_default()
}

impl World {
    pub fn new(seed: u64, weather: Weather, fault: Option<Fault>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        // Two machines' clocks differ by up to 9%: nearly all that the margin is for.
        let mut drift = || rng.random_range(-45..=45);
        let drifts: Vec<i64> = (0..10).map(|_| drift()).collect();
        let replicas = (0..rng.random_range(1..=3))
            .map(|r| Replica::new(r, 1, 0, drifts[r]))
            .collect();
        let nodes = (0..rng.random_range(2..=4))
            .map(|i| Node::new(i, drifts[4 + i]))
            .collect();
        let mut world = Self {
            rng,
            now: 0,
            fault,
            weather,
            db: Database::default(),
            store: Store::default(),
            replicas,
            nodes,
            net: Net::default(),
            counts: BTreeMap::new(),
            events: BinaryHeap::new(),
            held: HashMap::new(),
            last_token: 0,
            next_host: 0,
            db_down_until: 0,
            store_down_until: 0,
            // Who has no lease yet has nothing to live on.
            away_until: 10_000,
            violation: None,
            running: BTreeMap::new(),
            ever: HashMap::new(),
            acked: BTreeMap::new(),
            fired: BTreeSet::new(),
        };
        for i in 0..world.nodes.len() {
            world.add_host(i);
        }
        world
    }

    pub fn token(&mut self) -> u64 {
        self.last_token += 1;
        self.last_token
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn violate(&mut self, what: String) {
        let at = self.now;
        self.violation
            .get_or_insert(Violation(format!("at {at} ms: {what}")));
    }

    pub fn node_index(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|n| n.name == name)
    }

    fn stormy(&self) -> bool {
        self.weather == Weather::Storm && self.now < FAULTS
    }

    pub fn delay(&mut self) -> u64 {
        if self.stormy() && self.rng.random_bool(0.02) {
            self.rng.random_range(0..2_000)
        } else {
            self.rng.random_range(0..40)
        }
    }

    fn at(&mut self, after: u64, event: Event) {
        let token = self.token();
        self.events.push(Reverse((self.now + after, token)));
        self.held.insert(token, event);
    }

    pub fn db_send(&mut self, r: usize, token: u64, op: DbOp) {
        let (after, start) = (self.delay(), self.replicas[r].start);
        self.at(after, Event::DbApply { r, start, token, op });
    }

    pub fn store_send(&mut self, i: usize, token: u64, actor: Actor, op: Op) {
        let after = self.delay();
        self.at(after, Event::StoreApply { i, token, actor, op });
    }

    pub fn peer_send(&mut self, from: usize, to: usize, message: Peer) {
        let after = self.delay();
        self.at(after, Event::Peer { from, to, message });
    }

    /// What has arrived at a replica from a node, with the number of its stream.
    pub fn received(&mut self, r: usize, i: usize) -> Vec<(u64, ToService)> {
        let now = self.now;
        let cut = self.net.up_cut(r, i, now);
        let start = self.replicas[r].start;
        let mut all = Vec::new();
        let node = &mut self.nodes[i];
        node.old.retain(|s| s.up.len() > 0);
        for stream in node.old.iter_mut().chain(&mut node.stream) {
            if stream.replica != r || stream.start != start {
                continue;
            }
            while let Some(message) = stream.up.receive(now, cut) {
                all.push((stream.number, message));
            }
        }
        all
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::DbApply { r, start, token, op } => {
                let cut = self.net.database.get(&r).is_some_and(|cut| cut.contains(&now));
                if cut && start == self.replicas[r].start && self.rng.random_bool(0.97) {
                    // On its way until the network heals.
                    return self.at(200, Event::DbApply { r, start, token, op });
                }
                let after = self.delay();
                if cut || now < self.db_down_until {
                    return self.at(
                        after,
                        Event::DbAnswer {
                            r,
                            start,
                            token,
                            answer: None,
                        },
                    );
                }
                let answer = match op {
                    DbOp::Ask(ask) => DbAnswer::Row(self.db.ask(ask, self.fault)),
                    DbOp::Load(term) => DbAnswer::Loaded(self.db.load(term)),
                    DbOp::Save(save) => DbAnswer::Saved(self.db.save(save, self.fault)),
                };
                let lost = self.stormy() && self.rng.random_bool(0.01);
                let answer = (!lost).then_some(answer);
                self.at(
                    after,
                    Event::DbAnswer {
                        r,
                        start,
                        token,
                        answer,
                    },
                );
            }
            Event::DbAnswer {
                r,
                start,
                token,
                answer,
            } => {
                let replica = &self.replicas[r];
                if start != replica.start || !replica.is_up(now) {
                    return;
                }
                if now < replica.paused_until {
                    return self.at(
                        STEP,
                        Event::DbAnswer {
                            r,
                            start,
                            token,
                            answer,
                        },
                    );
                }
                self.db_answered(r, token, answer);
            }
            Event::StoreApply { i, token, actor, op } => {
                if self.net.store.get(&i).is_some_and(|cut| cut.contains(&now)) {
                    return self.at(200, Event::StoreApply { i, token, actor, op });
                }
                if now < self.store_down_until {
                    return;
                }
                match self.store.apply(&actor, op, self.fault) {
                    Ok(answer) => {
                        if self.stormy() && self.rng.random_bool(0.01) {
                            return;
                        }
                        let after = self.delay();
                        self.at(after, Event::StoreAnswer { i, token, answer });
                    }
                    Err(what) => self.violate(format!("write: {what}")),
                }
            }
            Event::StoreAnswer { i, token, answer } => {
                if now < self.nodes[i].paused_until {
                    return self.at(STEP, Event::StoreAnswer { i, token, answer });
                }
                self.store_answered(i, token, answer);
            }
            Event::Peer { from, to, message } => {
                if self
                    .net
                    .peer
                    .get(&(from, to))
                    .is_some_and(|cut| cut.contains(&now))
                {
                    return;
                }
                if now < self.nodes[to].paused_until {
                    return self.at(STEP, Event::Peer { from, to, message });
                }
                self.peer_heard(to, message);
            }
        }
    }

    // --- The record: what is checked as it happens.

    /// A node learned a table.
    pub fn seen(&mut self, key: &TypeKey, view: &TableView) {
        for slot in 0..slots().get() {
            let Some(owner) = view.slot(slot) else { continue };
            let first = self
                .ever
                .entry((key.clone(), slot, owner.epoch))
                .or_insert_with(|| owner.host.id.clone());
            if *first != owner.host.id {
                let what = format!(
                    "epoch: {key} slot {slot}: {first} and {} own epoch {}",
                    owner.host.id, owner.epoch
                );
                return self.violate(what);
            }
        }
    }

    /// A node starts a turn.
    pub fn begun(&mut self, i: usize, turn: u64, actor: &Actor, epoch: u64) {
        self.count("turn");
        let (key, slot, id) = actor;
        let committed = self.db.owner(key, *slot).map(|(n, e)| (n.to_owned(), e));
        if committed
            .as_ref()
            .is_none_or(|(n, e)| *n != self.nodes[i].name || *e != epoch)
        {
            self.violate(format!(
                "turn: n{i} starts one of {key} {id} slot {slot} under epoch {epoch}, but owner and epoch are {committed:?}"
            ));
        }
        let others = self.running.entry(actor.clone()).or_default();
        let other = others.iter().find(|(n, _)| self.nodes[*n].awake).copied();
        if !others.is_empty() && other.is_none() {
            *self.counts.entry("turn beside a paused node's").or_default() += 1;
        }
        others.push((i, turn));
        if let Some((n, _)) = other {
            self.violate(format!(
                "overlap: n{i} starts a turn of {key} {id} while n{n}, which is awake, runs one"
            ));
        }
    }

    pub fn ended(&mut self, i: usize, turn: u64, actor: &Actor) {
        if let Some(all) = self.running.get_mut(actor) {
            all.retain(|t| *t != (i, turn));
        }
    }

    pub fn acked(&mut self, id: String) {
        self.count("reminder acknowledged");
        self.acked.insert(id, self.now);
    }

    pub fn fired(&mut self, id: &str) {
        self.fired.insert(id.to_owned());
    }

    pub fn answered(&mut self, call: &Call, ok: bool) {
        self.count(if ok { "call answered" } else { "call failed" });
        let took = self.now - call.begun;
        if !ok && self.weather != Weather::Storm {
            self.violate(format!("call: {:?} failed after {took} ms", call.actor));
        }
    }

    // --- What goes wrong.

    fn add_host(&mut self, i: usize) {
        self.next_host += 1;
        // In good weather there is always somebody for each type.
        let both = !self.stormy() || self.rng.random_bool(0.6);
        let one = (*TYPES.choose(&mut self.rng).unwrap_or(&"Cart")).to_owned();
        let host = Registration {
            id: format!("h{}", self.next_host),
            namespace: "default".into(),
            app_id: "app".into(),
            actor_types: if both {
                TYPES.map(str::to_owned).to_vec()
            } else {
                vec![one]
            },
            capacity: self.rng.random_range(0..4),
            leaving: false,
        };
        let at = self.now + self.delay();
        let node = &mut self.nodes[i];
        node.hosts.insert(host.id.clone(), host.clone());
        if let Some(stream) = &mut node.stream {
            stream.up.send(at, ToService::Up(host));
        }
        self.count("host up");
    }

    fn host_leaves(&mut self, i: usize) {
        let total: usize = self
            .nodes
            .iter()
            .map(|n| n.hosts.values().filter(|h| !h.leaving).count())
            .sum();
        if total < 2 && self.weather != Weather::Storm {
            return;
        }
        let at = self.now + self.delay();
        let node = &mut self.nodes[i];
        let Some(host) = node.hosts.values_mut().find(|h| !h.leaving) else {
            return;
        };
        host.leaving = true;
        let host = host.clone();
        if let Some(stream) = &mut node.stream {
            stream.up.send(at, ToService::Up(host));
        }
        self.count("host leaves");
    }

    fn traffic(&mut self) {
        for _ in 0..2 {
            if !self.rng.random_bool(0.25) {
                continue;
            }
            let i = self.rng.random_range(0..self.nodes.len());
            let key = TypeKey::new("default", TYPES.choose(&mut self.rng).unwrap_or(&"Cart"));
            let actor = self.rng.random_range(0..ACTORS);
            let slot = slots().slot_of(&format!("a{actor}"));
            let id = self.token();
            self.nodes[i].calls.push(Call {
                id,
                actor: (key, slot, actor),
                origin: Some(i),
                reminder: None,
                begun: self.now,
                // What a caller's policy allows.
                deadline: self.now + 15_000,
                again: 0,
                hops: 0,
            });
        }
        if self.rng.random_bool(0.1) {
            let i = self.rng.random_range(0..self.nodes.len());
            if self.now >= self.nodes[i].paused_until.max(self.nodes[i].down_until) {
                self.remind(i);
            }
        }
    }

    fn gentle(&mut self) {
        let i = self.rng.random_range(0..self.nodes.len());
        match self.rng.random_range(0..1000) {
            0..6 => self.add_host(i),
            6..11 => self.host_leaves(i),
            11..13 if self.weather == Weather::Away && self.now > self.away_until => {
                // Processes are away for a while, and a new leader has to be found.
                let away = self.rng.random_range(0..2_500);
                for r in 0..self.replicas.len() {
                    self.restart_replica(r, away);
                }
                self.count("service away");
                self.away_until = self.now + 20_000;
            }
            _ => {}
        }
    }

    fn storm(&mut self) {
        let i = self.rng.random_range(0..self.nodes.len());
        let r = self.rng.random_range(0..self.replicas.len());
        let now = self.now;
        let long = now
            + if self.rng.random_bool(0.5) {
                self.rng.random_range(0..3_000)
            } else {
                self.rng.random_range(0..25_000)
            };
        match self.rng.random_range(0..2000) {
            0..12 => self.add_host(i),
            12..18 => self.host_leaves(i),
            18..26 => {
                if let Some(id) = self.nodes[i].hosts.keys().next().cloned() {
                    self.kill_host(i, &id);
                    self.count("host killed");
                }
            }
            26..36 => {
                let (up, down) = (self.rng.random_bool(0.7), self.rng.random_bool(0.7));
                let everyone = self.rng.random_bool(0.6);
                for r in (0..self.replicas.len()).filter(|other| everyone || *other == r) {
                    if up {
                        self.net.up.insert((r, i), now..long);
                    }
                    if down {
                        self.net.down.insert((r, i), now..long);
                    }
                }
                self.count(if up && down {
                    "cut both ways"
                } else {
                    "cut one way"
                });
            }
            36..40 => {
                self.net.database.insert(r, now..long);
                self.count("replica cut from its database");
            }
            40..46 => {
                self.net.store.insert(i, now..long);
                self.count("node cut from the store");
            }
            46..50 => {
                let other = self.rng.random_range(0..self.nodes.len());
                self.net.peer.insert((i, other), now..long);
                self.count("nodes cut");
            }
            50..56 => {
                self.nodes[i].paused_until = long;
                self.count("node pause");
            }
            56..60 => {
                self.replicas[r].paused_until = long;
                self.count("service pause");
            }
            60..64 => {
                let away = self.rng.random_range(0..10_000);
                self.restart_replica(r, away);
                self.count("service restart");
            }
            64..67 => {
                self.restart_agent(i);
                self.count("agent restart");
            }
            67..69 => {
                for id in self.nodes[i].hosts.keys().cloned().collect::<Vec<_>>() {
                    self.kill_host(i, &id);
                }
                self.restart_agent(i);
                self.nodes[i].down_until = long;
                self.count("node crash");
            }
            69..71 => {
                self.db_down_until = now + self.rng.random_range(0..8_000);
                self.count("database down");
            }
            71..73 => {
                self.store_down_until = now + self.rng.random_range(0..5_000);
                self.count("store down");
            }
            73..75 => {
                // All at once: a node nobody hears, and whose writes are late.
                self.net.store.insert(i, now..now + 18_000);
                for r in 0..self.replicas.len() {
                    self.net.up.insert((r, i), now..now + 16_000);
                    self.net.down.insert((r, i), now..now + 16_000);
                }
                self.count("node alone");
            }
            75..78 => {
                // Answers come late, and then nothing comes any more.
                for r in 0..self.replicas.len() {
                    self.net.down.insert((r, i), now..now + 5_500);
                    self.net.up.insert((r, i), now + 3_000..now + 18_000);
                }
                self.count("late answers");
            }
            _ => {}
        }
    }

    fn restart_replica(&mut self, r: usize, away: u64) {
        let (start, drift) = (self.replicas[r].start + 1, self.replicas[r].drift);
        self.replicas[r] = Replica::new(r, start, self.now, drift);
        self.replicas[r].down_until = self.now + away;
    }

    fn heal(&mut self) {
        self.net = Net::default();
        (self.db_down_until, self.store_down_until) = (0, 0);
        for node in &mut self.nodes {
            node.paused_until = 0;
            node.down_until = 0;
        }
        for replica in &mut self.replicas {
            replica.paused_until = 0;
            replica.down_until = 0;
        }
        for i in 0..self.nodes.len() {
            if !self.nodes[i]
                .hosts
                .values()
                .any(|h| !h.leaving && h.actor_types.len() == TYPES.len())
            {
                self.add_host(i);
            }
        }
    }

    /// Runs to the end, or to the first thing that must not be.
    pub fn run(&mut self) -> Result<(), Violation> {
        while self.now < FAULTS + HEAL {
            self.now += STEP;
            if self.now < FAULTS {
                match self.weather {
                    Weather::Storm => self.storm(),
                    Weather::Calm | Weather::Away => self.gentle(),
                }
                self.traffic();
            } else if self.now == FAULTS {
                self.heal();
            }
            while self.events.peek().is_some_and(|Reverse((at, _))| *at <= self.now) {
                let Some(Reverse((_, token))) = self.events.pop() else {
                    break;
                };
                if let Some(event) = self.held.remove(&token) {
                    self.happen(event);
                }
            }
            for i in 0..self.nodes.len() {
                self.node_step(i);
            }
            for r in 0..self.replicas.len() {
                self.replica_step(r);
            }
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
        }
        self.in_the_end().map_err(Violation)
    }

    /// Healed: one leader, everybody knows the same, and that is what is written.
    fn in_the_end(&self) -> Result<(), String> {
        let leaders: Vec<_> = self
            .replicas
            .iter()
            .filter(|r| r.candidate.leads(r.clock(self.now)).is_some())
            .collect();
        if leaders.len() != 1 {
            return Err(format!("end: {} leaders", leaders.len()));
        }
        for (key, saved) in &self.db.tables {
            for node in &self.nodes {
                if !node.lease_holds(self.now) {
                    return Err(format!("end: {} has no lease", node.name));
                }
                if saved.owners.is_empty() {
                    if node.views.contains_key(key) {
                        return Err(format!("end: {} still knows {key}", node.name));
                    }
                    continue;
                }
                let view = node
                    .views
                    .get(key)
                    .ok_or(format!("end: {} does not know {key}", node.name))?;
                if view.version() != saved.version {
                    return Err(format!(
                        "end: {} {key} has version {}, not {}",
                        node.name,
                        view.version(),
                        saved.version
                    ));
                }
                for (slot, (_, epoch)) in (0..).zip(&saved.owners) {
                    let owner = view.slot(slot).map(|o| (&*o.host.node, o.epoch));
                    if owner.is_none()
                        || owner != self.db.owner(key, slot)
                        || view.epoch(slot) != Some(*epoch)
                    {
                        return Err(format!("end: {} {key} slot {slot}: {owner:?}", node.name));
                    }
                }
            }
        }
        for (id, at) in &self.acked {
            if !self.fired.contains(id) {
                let row = self.db.reminders.get(id);
                return Err(format!(
                    "reminder: {id}, acknowledged at {at} ms, never ran; its row is {row:?}"
                ));
            }
        }
        Ok(())
    }
}
