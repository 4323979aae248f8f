//! A node: its agent's gate and tables, its apps with their actors, and the calls that it carries.

use crate::{
    faults::Fault,
    stores::{Actor, Answer, Op},
    wire::{Pipe, Stream, ToNode, ToService},
    world::{Peer, World, clock, slots, time},
};
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use weft_placement_protocol::{
    Closed, Gate, LEASE, LEASE_MARGIN, RENEW, Registration, Reminder, Step, TableView, Time, TypeKey,
};

/// A stream on which nothing came for this long is dead.
const DEAD: Duration = Duration::from_secs(6);
/// The state store's answer is waited for so long.
const STORE_TIMEOUT: u64 = 1_000;
/// A call that was sent to another node is sent again after this.
const PEER_TIMEOUT: u64 = 5_000;

#[derive(Debug, Clone)]
pub struct Call {
    pub id: u64,
    pub actor: Actor,
    /// Who waits for the answer; nobody for a reminder, which has the time it was due instead.
    pub origin: Option<usize>,
    pub reminder: Option<(String, Time)>,
    pub begun: u64,
    pub deadline: u64,
    /// Not before.
    pub again: u64,
    pub hops: u32,
}

#[derive(Debug)]
enum Phase {
    Reading { token: u64, since: u64 },
    Thinking { until: u64, base: u64 },
    Writing { token: u64, since: u64 },
}

#[derive(Debug)]
struct Turn {
    call: Call,
    epoch: u64,
    host: String,
    phase: Phase,
}

#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub hosts: BTreeMap<String, Registration>,
    pub stream: Option<Stream>,
    /// Streams it gave up, whose messages may still arrive.
    pub old: Vec<Stream>,
    next_replica: usize,
    retry_at: u64,
    backoff: u64,
    pub drift: i64,
    pub paused_until: u64,
    pub down_until: u64,
    /// It has run since its last pause.
    pub awake: bool,
    renew_at: Time,
    heard: Time,
    hello_sent: Time,
    welcomed: bool,
    pub gate: Gate,
    pub views: BTreeMap<TypeKey, TableView>,
    silent: BTreeSet<String>,
    turns: BTreeMap<u64, Turn>,
    pub calls: Vec<Call>,
    sent: BTreeMap<u64, (Call, u64)>,
    claims: BTreeMap<(TypeKey, u32), (u64, u64, u64)>,
    /// What apps hold in memory: the epoch it was read under, and the value.
    cache: BTreeMap<Actor, (u64, u64)>,
}

impl Node {
    pub fn new(i: usize, drift: i64) -> Self {
        let name = format!("n{i}");
        Self {
            gate: Gate::new(&name),
            name,
            hosts: BTreeMap::new(),
            stream: None,
            old: Vec::new(),
            next_replica: i,
            retry_at: 0,
            backoff: 200,
            drift,
            paused_until: 0,
            down_until: 0,
            awake: true,
            renew_at: Time::default(),
            heard: Time::default(),
            hello_sent: Time::default(),
            welcomed: false,
            views: BTreeMap::new(),
            silent: BTreeSet::new(),
            turns: BTreeMap::new(),
            calls: Vec::new(),
            sent: BTreeMap::new(),
            claims: BTreeMap::new(),
            cache: BTreeMap::new(),
        }
    }

    pub fn clock(&self, now: u64) -> Time {
        clock(now, self.drift)
    }

    pub fn lease_holds(&self, now: u64) -> bool {
        self.clock(now) < self.gate.lease_until()
    }

    fn tell(&mut self, at: u64, message: ToService) {
        if let Some(stream) = &mut self.stream {
            stream.up.send(at, message);
        }
    }
}

impl World {
    pub fn node_step(&mut self, i: usize) {
        let now = self.now;
        let node = &mut self.nodes[i];
        if now < node.down_until {
            return;
        }
        if now < node.paused_until {
            node.awake = false;
            return;
        }
        self.poll(i);
        self.nodes[i].awake = true;
        self.connect(i);
        self.listen(i);
        self.poll(i);
        self.leave(i);
        self.turns(i);
        self.carry(i);
    }

    /// The agent alone starts anew: it forgets what it knew, and calls to apps break off.
    pub fn restart_agent(&mut self, i: usize) {
        let turns: Vec<_> = self.nodes[i].turns.keys().copied().collect();
        turns.into_iter().for_each(|turn| self.end(i, turn, false));
        let node = &mut self.nodes[i];
        let mut fresh = Node::new(i, node.drift);
        fresh.hosts = std::mem::take(&mut node.hosts);
        // Callers have their own patience.
        fresh.calls = std::mem::take(&mut node.calls);
        fresh.sent = std::mem::take(&mut node.sent);
        fresh.next_replica = node.next_replica;
        fresh.paused_until = node.paused_until;
        fresh.down_until = node.down_until;
        fresh.old = std::mem::take(&mut node.old);
        fresh.old.extend(node.stream.take());
        *node = fresh;
    }

    /// An app dies, and its actors with it.
    pub fn kill_host(&mut self, i: usize, id: &str) {
        let of = |t: &Turn| t.host == id;
        let turns: Vec<_> = self.nodes[i]
            .turns
            .iter()
            .filter(|(_, t)| of(t))
            .map(|(n, _)| *n)
            .collect();
        turns.into_iter().for_each(|turn| self.end(i, turn, false));
        let at = self.now + self.delay();
        let node = &mut self.nodes[i];
        node.gate.host_down(id);
        node.hosts.remove(id);
        node.tell(at, ToService::Down(id.into()));
    }

    fn poll(&mut self, i: usize) {
        let clock = self.nodes[i].clock(self.now);
        for step in self.nodes[i].gate.poll(clock) {
            match step {
                Step::Cancel(turn) => {
                    self.count("turn cancelled");
                    self.end(i, turn, false);
                }
                Step::Drained { key, slot, epoch } => {
                    let at = self.now + self.delay();
                    self.count("drained");
                    self.nodes[i].tell(at, ToService::Drained { key, slot, epoch });
                }
            }
        }
    }

    fn drop_stream(&mut self, i: usize) {
        let wait = self.nodes[i].backoff;
        let wait = self.rng.random_range(0..=wait);
        let now = self.now;
        let node = &mut self.nodes[i];
        let holds = node.lease_holds(now);
        node.old.extend(node.stream.take());
        node.gate.disconnected();
        node.next_replica += 1;
        node.retry_at = now + wait;
        // Who still has a lease has something to lose.
        node.backoff = (node.backoff * 2).min(if holds { 800 } else { 5_000 });
    }

    fn connect(&mut self, i: usize) {
        let now = self.now;
        let clock = self.nodes[i].clock(now);
        if let Some(stream) = &self.nodes[i].stream {
            let replica = &self.replicas[stream.replica];
            let reset = replica.start != stream.start || !replica.is_up(now);
            let reset = reset && !self.net.down_cut(stream.replica, i, now);
            if reset || clock.since(self.nodes[i].heard) > DEAD {
                self.drop_stream(i);
            }
        }
        if self.nodes[i].stream.is_none() && now >= self.nodes[i].retry_at {
            let r = self.nodes[i].next_replica % self.replicas.len();
            if !self.replicas[r].is_up(now) || self.net.up_cut(r, i, now) {
                self.drop_stream(i);
                return;
            }
            let number = self.token();
            let at = now + self.delay();
            let start = self.replicas[r].start;
            let node = &mut self.nodes[i];
            let mut up = Pipe::new();
            let hello = ToService::Hello {
                hosts: node.hosts.values().cloned().collect(),
                held: node.views.iter().map(|(k, v)| (k.clone(), v.version())).collect(),
                sent: clock,
            };
            up.send(at, hello);
            node.stream = Some(Stream {
                number,
                replica: r,
                start,
                up,
                down: Pipe::new(),
            });
            node.heard = clock;
            node.hello_sent = clock;
            node.welcomed = false;
            node.renew_at = clock + RENEW;
        } else if self.nodes[i].welcomed && clock >= self.nodes[i].renew_at {
            let at = now + self.delay();
            let node = &mut self.nodes[i];
            node.renew_at = clock + RENEW;
            node.tell(at, ToService::Renew(clock));
        }
    }

    fn listen(&mut self, i: usize) {
        let now = self.now;
        loop {
            let node = &mut self.nodes[i];
            let clock = node.clock(now);
            let Some(stream) = &mut node.stream else { return };
            let cut = self.net.down_cut(stream.replica, i, now);
            let Some(message) = stream.down.receive(now, cut) else {
                return;
            };
            node.heard = clock;
            match message {
                ToNode::Welcome => {
                    node.welcomed = true;
                    node.backoff = 200;
                    node.gate.welcome(match self.fault {
                        Some(Fault::MarginZero) => LEASE,
                        _ => LEASE - LEASE_MARGIN,
                    });
                    if self.fault == Some(Fault::WelcomeGivesLease) {
                        let sent = node.hello_sent;
                        node.gate.renewed(clock, sent);
                    }
                }
                ToNode::Renewed(sent) => {
                    let late = self.fault == Some(Fault::LeaseFromAnswer);
                    node.gate.renewed(clock, if late { clock } else { sent });
                }
                ToNode::Table(key, whole) => {
                    if let Some(old) = node.views.get(&key) {
                        let falls = (0..slots().get())
                            .any(|s| whole.epochs[s as usize] < old.epoch(s).unwrap_or_default());
                        if falls || whole.version < old.version() {
                            self.violate(format!("table: n{i} {key}: version or epoch went back"));
                            return;
                        }
                    }
                    match TableView::new(whole) {
                        Ok(view) => self.view(i, key, Some(view)),
                        Err(e) => self.violate(format!("table: n{i} {key}: {e}")),
                    }
                }
                ToNode::Delta(key, delta) => match node.views.get(&key).map(|v| v.apply(&delta)) {
                    Some(Ok(view)) => self.view(i, key, Some(view)),
                    other => self.violate(format!(
                        "table: n{i} {key}: delta does not fit: {:?}",
                        other.map(|r| r.err())
                    )),
                },
                ToNode::Gone(key) => self.view(i, key, None),
                ToNode::Drain { key, slot, epoch, to } => {
                    if self.fault == Some(Fault::DrainSkipped) {
                        let at = now + self.delay();
                        self.nodes[i].tell(at, ToService::Drained { key, slot, epoch });
                    } else {
                        node.gate.drain(clock, &key, slot, epoch, &to.id);
                    }
                }
                ToNode::Resume { key, slot, epoch } => node.gate.resume(&key, slot, epoch),
                ToNode::Silent(nodes) => node.silent = nodes.into_iter().collect(),
                ToNode::Reminded(id) => self.acked(id),
                ToNode::Fire(row) => self.fire(i, row),
                ToNode::End => self.drop_stream(i),
            }
        }
    }

    fn view(&mut self, i: usize, key: TypeKey, view: Option<TableView>) {
        self.nodes[i].gate.reconcile(&key, view.as_ref());
        match view {
            Some(view) => {
                self.seen(&key, &view);
                self.nodes[i].views.insert(key, view);
            }
            None => drop(self.nodes[i].views.remove(&key)),
        }
    }

    fn fire(&mut self, i: usize, row: Reminder) {
        let id = self.token();
        let actor = (row.key, row.slot, u32::MAX);
        self.nodes[i].calls.push(Call {
            id,
            actor,
            origin: None,
            reminder: Some((row.id.to_string(), row.due)),
            begun: self.now,
            deadline: self.now + 2_000,
            again: 0,
            hops: 0,
        });
    }

    /// Hosts that are to leave go when they own nothing more.
    fn leave(&mut self, i: usize) {
        let node = &self.nodes[i];
        let done = |host: &&Registration| {
            host.leaving
                && node.lease_holds(self.now)
                && node.welcomed
                && node
                    .views
                    .values()
                    .all(|v| (0..slots().get()).all(|s| v.slot(s).is_none_or(|o| *o.host.id != *host.id)))
        };
        let left: Vec<_> = node.hosts.values().filter(done).map(|h| h.id.clone()).collect();
        for id in left {
            self.count("host left");
            self.kill_host(i, &id);
        }
    }

    /// Calls that wait: to a turn here, or to another node.
    fn carry(&mut self, i: usize) {
        let now = self.now;
        let waiting = std::mem::take(&mut self.nodes[i].calls);
        for mut call in waiting {
            if now >= call.deadline {
                self.finish(i, &call, false);
            } else if now < call.again || !self.dispatch(i, &mut call) {
                self.nodes[i].calls.push(call);
            }
        }
        let late: Vec<u64> = (self.nodes[i].sent.iter())
            .filter(|(_, (call, at))| now > at + PEER_TIMEOUT || now >= call.deadline)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            if let Some((mut call, _)) = self.nodes[i].sent.remove(&id) {
                call.hops = 0;
                self.nodes[i].calls.push(call);
            }
        }
    }

    /// False if the call has to wait.
    fn dispatch(&mut self, i: usize, call: &mut Call) -> bool {
        let now = self.now;
        let node = &self.nodes[i];
        let clock = node.clock(now);
        let (key, slot, _) = call.actor.clone();
        let Some(view) = node.views.get(&key) else {
            return false;
        };
        let Some(owner) = view.slot(slot) else {
            return false;
        };
        let (epoch, host) = (owner.epoch, owner.host.clone());
        if *host.node != *node.name {
            if call.reminder.is_some() {
                // The service sends it again.
                return true;
            }
            let Some(j) = self.node_index(&host.node) else {
                return false;
            };
            if self.nodes[i].silent.contains(&*host.node) {
                self.count("silent owner");
                return false;
            }
            if call.hops > 8 {
                call.hops = 0;
                call.again = now + 200;
                return false;
            }
            call.hops += 1;
            self.peer_send(i, j, Peer::Call(call.clone()));
            if call.origin == Some(i) {
                self.nodes[i].sent.insert(call.id, (call.clone(), now));
            }
            return true;
        }
        if !node.hosts.contains_key(&*host.id) || node.turns.values().any(|t| t.call.actor == call.actor) {
            return false;
        }
        let mut begun = self.begin(i, clock, &key, slot);
        if let (Err(Closed::NotClaimed(_)), Some(Fault::ClaimSkipped)) = (&begun, self.fault) {
            self.nodes[i].gate.claimed(&key, slot, epoch);
            begun = self.begin(i, clock, &key, slot);
        }
        match begun {
            Ok(turn) => {
                self.begun(i, turn, &call.actor, epoch);
                let node = &mut self.nodes[i];
                let cached = node
                    .cache
                    .get(&call.actor)
                    .filter(|(e, _)| *e == epoch)
                    .map(|(_, v)| *v);
                let phase = match cached {
                    Some(base) => Phase::Thinking {
                        until: now + self.rng.random_range(20..600),
                        base,
                    },
                    None => {
                        let token = self.token();
                        self.store_send(i, token, call.actor.clone(), Op::Read);
                        Phase::Reading { token, since: now }
                    }
                };
                let turn_now = Turn {
                    call: call.clone(),
                    epoch,
                    host: host.id.to_string(),
                    phase,
                };
                self.nodes[i].turns.insert(turn, turn_now);
                true
            }
            Err(Closed::NotClaimed(epoch)) => {
                let place = (key.clone(), slot);
                let asked = self.nodes[i].claims.get(&place).copied();
                if asked.is_none_or(|(e, _, at)| e != epoch || now > at + STORE_TIMEOUT) {
                    let token = self.token();
                    self.nodes[i].claims.insert(place, (epoch, token, now));
                    self.store_send(i, token, call.actor.clone(), Op::Claim { epoch });
                }
                false
            }
            Err(_) => false,
        }
    }

    fn begin(&mut self, i: usize, clock: Time, key: &TypeKey, slot: u32) -> Result<u64, Closed> {
        let Node { views, gate, .. } = &mut self.nodes[i];
        match views.get(key).and_then(|v| v.slot(slot)) {
            Some(owner) => gate.begin(clock, key, owner),
            None => Err(Closed::NoLease),
        }
    }

    pub fn peer_heard(&mut self, i: usize, message: Peer) {
        if self.now < self.nodes[i].down_until {
            return;
        }
        match message {
            Peer::Call(call) => {
                // A call that came twice is worked on once at a time.
                let node = &self.nodes[i];
                let known = node.calls.iter().any(|c| c.id == call.id)
                    || node.turns.values().any(|t| t.call.id == call.id);
                if !known {
                    self.nodes[i].calls.push(call);
                }
            }
            Peer::Done { call, ok } => {
                if let Some((sent, _)) = self.nodes[i].sent.remove(&call.id) {
                    if ok {
                        self.finish(i, &sent, true);
                    } else {
                        self.nodes[i].calls.push(sent);
                    }
                }
            }
        }
    }

    /// The answer goes to whoever asked.
    fn finish(&mut self, i: usize, call: &Call, ok: bool) {
        if let Some((id, due)) = &call.reminder {
            if ok {
                self.fired(id);
                let at = self.now + self.delay();
                let (id, due) = (id.clone(), *due);
                self.nodes[i].tell(at, ToService::Fired { id, due });
            }
            return;
        }
        match call.origin {
            Some(origin) if origin != i => {
                let call = call.clone();
                self.peer_send(i, origin, Peer::Done { call, ok });
            }
            _ => self.answered(call, ok),
        }
    }

    /// Turns that run: apps think, then write once.
    fn turns(&mut self, i: usize) {
        let now = self.now;
        let numbers: Vec<u64> = self.nodes[i].turns.keys().copied().collect();
        for number in numbers {
            let Some(turn) = self.nodes[i].turns.get(&number) else {
                continue;
            };
            match turn.phase {
                Phase::Thinking { until, base } if now >= until => {
                    let clock = self.nodes[i].clock(now);
                    let actor = turn.call.actor.clone();
                    match self.nodes[i].gate.may_write(clock, number) {
                        Ok(epoch) => {
                            let token = self.token();
                            self.store_send(i, token, actor, Op::Write { epoch, base });
                            if let Some(turn) = self.nodes[i].turns.get_mut(&number) {
                                turn.phase = Phase::Writing { token, since: now };
                            }
                        }
                        Err(_) => self.end(i, number, false),
                    }
                }
                Phase::Reading { since, .. } | Phase::Writing { since, .. }
                    if now > since + STORE_TIMEOUT =>
                {
                    // It may be written or not: what the app holds in memory is worth nothing.
                    let actor = turn.call.actor.clone();
                    self.nodes[i].cache.remove(&actor);
                    self.count("store timeout");
                    self.end(i, number, false);
                }
                _ => {}
            }
        }
    }

    pub fn store_answered(&mut self, i: usize, token: u64, answer: Answer) {
        let now = self.now;
        let node = &mut self.nodes[i];
        if now < node.down_until {
            return;
        }
        let claim = node.claims.iter().find(|(_, (_, t, _))| *t == token);
        if let Some((place, (epoch, _, _))) = claim.map(|(p, c)| (p.clone(), *c)) {
            node.claims.remove(&place);
            let current = node.views.get(&place.0).and_then(|v| v.epoch(place.1));
            if answer == Answer::Claimed(epoch) && current == Some(epoch) {
                node.gate.claimed(&place.0, place.1, epoch);
            }
            return;
        }
        let mine = |t: &Turn| match t.phase {
            Phase::Reading { token: t, .. } | Phase::Writing { token: t, .. } => t == token,
            Phase::Thinking { .. } => false,
        };
        let Some(number) = node.turns.iter().find(|(_, t)| mine(t)).map(|(n, _)| *n) else {
            return;
        };
        let Some(turn) = node.turns.get_mut(&number) else {
            return;
        };
        let (actor, epoch) = (turn.call.actor.clone(), turn.epoch);
        match answer {
            Answer::Value(base) => {
                node.cache.insert(actor, (epoch, base));
                turn.phase = Phase::Thinking {
                    until: now + self.rng.random_range(20..600),
                    base,
                };
            }
            Answer::Written(value) => {
                node.cache.insert(actor, (epoch, value));
                self.end(i, number, true);
            }
            Answer::Fenced | Answer::Conflict | Answer::Claimed(_) => {
                node.cache.remove(&actor);
                self.end(i, number, false);
            }
        }
    }

    /// A turn is over. What did not work is tried again within the caller's patience.
    fn end(&mut self, i: usize, number: u64, ok: bool) {
        let Some(mut turn) = self.nodes[i].turns.remove(&number) else {
            return;
        };
        self.nodes[i].gate.end(number);
        self.ended(i, number, &turn.call.actor);
        if ok {
            self.finish(i, &turn.call, true);
        } else {
            // What it had in memory may not be what is stored.
            self.nodes[i].cache.remove(&turn.call.actor);
            turn.call.again = self.now + 100;
            turn.call.hops = 0;
            self.nodes[i].calls.push(turn.call);
        }
    }

    /// Asks for a reminder of an actor that lives here.
    pub fn remind(&mut self, i: usize) {
        let now = self.now;
        let node = &self.nodes[i];
        let clock = node.clock(now);
        let mut own = Vec::new();
        for (key, view) in &node.views {
            for slot in 0..slots().get() {
                if let Some(owner) = view.slot(slot)
                    && node.gate.open(clock, key, owner).is_ok()
                {
                    own.push((key.clone(), slot, owner.epoch));
                }
            }
        }
        if own.is_empty() {
            return;
        }
        let (key, slot, epoch) = own.swap_remove(self.rng.random_range(0..own.len()));
        let id = format!("r{}", self.token());
        let row = Reminder {
            id: id.as_str().into(),
            key,
            slot,
            due: time(now + self.rng.random_range(500..15_000)),
            period: None,
        };
        let at = now + self.delay();
        self.nodes[i].tell(at, ToService::Remind { row, epoch });
    }
}
