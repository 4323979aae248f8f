//! A replica of the placement service: stands for the lease row, and while it leads, keeps
//! everything in memory, writes it, tells it.

use crate::{
    faults::Fault,
    stores::Save,
    wire::{ToNode, ToService},
    world::{DbAnswer, DbOp, World, slots, time},
};
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use weft_placement_protocol::{
    Candidate, Done, Limits, Placement, Reminder, Reminders, SavedTable, Settled, Time, TypeKey,
};

/// A write that has no answer for this long has failed, as far as the leader knows.
const SAVE_TIMEOUT: u64 = 900;

#[derive(Debug)]
pub struct Replica {
    /// Rises with each start: answers to an earlier one are nobody's.
    pub start: u64,
    pub down_until: u64,
    pub paused_until: u64,
    pub drift: i64,
    pub candidate: Candidate,
    asked: Option<u64>,
    pub led: Option<Led>,
}

#[derive(Debug)]
pub struct Led {
    pub term: u64,
    /// `None` until everything is read.
    pub state: Option<State>,
    load: Option<(u64, u64)>,
}

/// Id, the row (none to remove it), and what to say to which node.
type RowChange = (String, Option<Reminder>, Option<(usize, ToNode)>);

#[derive(Debug)]
pub struct State {
    pub placement: Placement,
    pub reminders: Reminders,
    pub sessions: BTreeMap<usize, Session>,
    since: u64,
    unwritten: Settled,
    /// Rows to be written, and what to say then.
    rows: Vec<RowChange>,
    saving: Option<(u64, u64, Settled, usize)>,
    failed_until: u64,
}

#[derive(Debug)]
pub struct Session {
    pub stream: u64,
    held: BTreeMap<TypeKey, u64>,
    stale: BTreeSet<TypeKey>,
    told: BTreeMap<(TypeKey, u32), (u64, String)>,
    welcome: bool,
    renewed: Option<Time>,
    silent: Vec<String>,
    replies: Vec<ToNode>,
}

impl Replica {
    pub fn new(id: usize, start: u64, now: u64, drift: i64) -> Self {
        let mut replica = Self {
            start,
            down_until: 0,
            paused_until: 0,
            drift,
            candidate: Candidate::new(1, time(0)),
            asked: None,
            led: None,
        };
        let id = start * 10 + id as u64 + 1;
        replica.candidate = Candidate::new(id, replica.clock(now));
        replica
    }

    pub fn clock(&self, now: u64) -> Time {
        crate::world::clock(now, self.drift)
    }

    pub fn is_up(&self, now: u64) -> bool {
        now >= self.down_until
    }
}

impl World {
    pub fn replica_step(&mut self, r: usize) {
        let now = self.now;
        let replica = &mut self.replicas[r];
        if !replica.is_up(now) || now < replica.paused_until {
            return;
        }
        let clock = replica.clock(now);
        if let Some(ask) = replica.candidate.poll(clock) {
            let token = self.token();
            self.replicas[r].asked = Some(token);
            self.db_send(r, token, DbOp::Ask(ask));
        }
        let replica = &mut self.replicas[r];
        let mut leads = replica.candidate.leads(clock);
        if self.fault == Some(Fault::LeaderNeverStops) {
            leads = leads.or(replica.led.as_ref().map(|led| led.term));
        }
        if replica.led.as_ref().map(|led| led.term) != leads && replica.led.is_some() {
            self.stop_leading(r);
        }
        let Some(term) = leads else {
            // Others lead: whoever comes here is sent on.
            for i in 0..self.nodes.len() {
                for (stream, _) in self.received(r, i) {
                    self.reply(r, i, stream, vec![ToNode::End]);
                }
            }
            return;
        };
        if self.replicas[r].led.is_none() {
            let token = self.token();
            self.replicas[r].led = Some(Led {
                term,
                state: None,
                load: Some((token, now)),
            });
            self.db_send(r, token, DbOp::Load(term));
            self.count("leader");
        }
        let Some(led) = &mut self.replicas[r].led else {
            return;
        };
        if let Some((_, asked)) = led.load {
            if now > asked + SAVE_TIMEOUT {
                self.replicas[r].led = None;
            }
            return;
        }
        let Some(mut state) = led.state.take() else { return };
        self.lead(r, term, clock, &mut state);
        if let Some(led) = &mut self.replicas[r].led {
            led.state = Some(state);
        }
    }

    fn stop_leading(&mut self, r: usize) {
        let Some(led) = self.replicas[r].led.take() else {
            return;
        };
        self.replicas[r].candidate.step_down();
        let sessions = led.state.map(|s| s.sessions).unwrap_or_default();
        for (node, session) in sessions {
            self.reply(r, node, session.stream, vec![ToNode::End]);
        }
    }

    /// Puts messages on a stream if it is still there.
    fn reply(&mut self, r: usize, node: usize, stream: u64, messages: Vec<ToNode>) {
        let at = self.now + self.delay();
        if let Some(open) = &mut self.nodes[node].stream
            && open.number == stream
            && open.replica == r
        {
            messages.into_iter().for_each(|m| open.down.send(at, m));
        }
    }

    /// One round of the leader.
    fn lead(&mut self, r: usize, term: u64, clock: Time, state: &mut State) {
        let now = self.now;
        if let Some((_, at, _, _)) = state.saving {
            if now < at + SAVE_TIMEOUT {
                return;
            }
            // It may be written or not; it is written again.
            let (_, _, settled, _) = state.saving.take().unwrap_or((0, 0, Settled::default(), 0));
            state.unwritten.merge(settled);
            state.failed_until = now + 500;
            self.count("unknown commit");
        }
        for node in state.placement.tick(clock) {
            self.count("lease over");
            if let Some(i) = self.node_index(&node)
                && let Some(session) = state.sessions.remove(&i)
            {
                self.reply(r, i, session.stream, vec![ToNode::End]);
            }
        }
        let silent: Vec<String> = state.placement.silent().map(|n| n.to_string()).collect();
        if self.fault == Some(Fault::LeaseNotWaitedFor) {
            for node in &silent {
                state.placement.hello(node, Vec::new());
                let Some(i) = self.node_index(node) else { continue };
                if let Some(session) = state.sessions.remove(&i) {
                    self.reply(r, i, session.stream, vec![ToNode::End]);
                }
            }
        }
        if self.fault == Some(Fault::NoGraceAfterFailover) && now > state.since + 2_000 {
            for i in 0..self.nodes.len() {
                if !state.sessions.contains_key(&i) {
                    let name = self.nodes[i].name.clone();
                    state.placement.hello(&name, Vec::new());
                }
            }
        }
        for i in 0..self.nodes.len() {
            self.hear(r, i, state);
        }
        let settled = state.placement.settle();
        if self.fault == Some(Fault::ToldBeforeWritten) {
            mark(state, &settled);
        }
        state.unwritten.merge(settled);
        let early = self.fault == Some(Fault::ToldBeforeWritten);
        if (!state.unwritten.is_empty() || !state.rows.is_empty()) && now >= state.failed_until {
            if early {
                self.tell(r, state, &silent, true);
            }
            self.save(r, term, state);
            return;
        }
        let certain = state.unwritten.is_empty() || early;
        for row in state.reminders.due(time(now), 10) {
            let owner = state.placement.tables().get(&row.key);
            let node = owner.and_then(|t| Some(t.owner(row.slot).0?.node.clone()));
            let Some(i) = node.and_then(|n| self.node_index(&n)) else {
                continue;
            };
            if self.fault == Some(Fault::RemovedBeforeRun) {
                state.rows.push((row.id.to_string(), None, None));
                state.reminders.remove(&row.id);
            }
            if let Some(session) = state.sessions.get_mut(&i) {
                session.replies.push(ToNode::Fire(row));
            }
        }
        self.tell(r, state, &silent, certain);
    }

    fn save(&mut self, r: usize, term: u64, state: &mut State) {
        let settled = std::mem::take(&mut state.unwritten);
        let serial = self.token();
        let placement = &state.placement;
        let table = |key: &TypeKey| {
            let table = placement.tables().get(key)?;
            Some(SavedTable {
                key: key.clone(),
                slots: table.slots(),
                version: table.version(),
                floor: table.floor(),
                owners: table.slots_raw().map(|(o, e, _)| (o, e)).collect(),
            })
        };
        let save = Save {
            term,
            serial,
            hosts: settled
                .hosts
                .iter()
                .map(|id| (id.to_string(), placement.saved_host(id)))
                .collect(),
            tables: settled.types.iter().filter_map(table).collect(),
            reminders: state
                .rows
                .iter()
                .map(|(id, row, _)| (id.clone(), row.clone()))
                .collect(),
        };
        let token = save.serial;
        state.saving = Some((token, self.now, settled, state.rows.len()));
        self.db_send(r, token, DbOp::Save(save));
    }

    /// Everything that came from one node.
    fn hear(&mut self, r: usize, i: usize, state: &mut State) {
        let name = self.nodes[i].name.clone();
        for (stream, message) in self.received(r, i) {
            if let ToService::Hello { hosts, held, sent } = message {
                let refused = state.placement.hello(&name, hosts);
                if !refused.is_empty() {
                    self.violate(format!("{name}: hosts refused: {refused:?}"));
                }
                state
                    .placement
                    .set_drains(&name, self.fault != Some(Fault::DrainNotAsked));
                let stale = state
                    .placement
                    .tables()
                    .keys()
                    .chain(held.keys())
                    .cloned()
                    .collect();
                let session = Session {
                    stream,
                    held,
                    stale,
                    told: BTreeMap::new(),
                    welcome: true,
                    renewed: Some(sent),
                    silent: Vec::new(),
                    replies: Vec::new(),
                };
                state.sessions.insert(i, session);
                continue;
            }
            // An older stream's messages count no more.
            let Some(session) = state.sessions.get_mut(&i).filter(|s| s.stream == stream) else {
                continue;
            };
            match message {
                ToService::Hello { .. } => {}
                ToService::Up(host) => drop(state.placement.host_up(&name, host)),
                ToService::Down(id) => drop(state.placement.host_down(&name, &id)),
                ToService::Renew(sent) => {
                    if state.placement.renew(&name) {
                        session.renewed = Some(sent);
                    }
                }
                ToService::Drained { key, slot, epoch } => {
                    state.placement.drained(&name, &key, slot, epoch);
                }
                ToService::Remind { row, epoch } => {
                    if state.placement.is_current(&name, &row.key, row.slot, epoch) {
                        let id = row.id.to_string();
                        let mut answer = Some((i, ToNode::Reminded(id.clone())));
                        if self.fault == Some(Fault::AckBeforeCommit) {
                            session.replies.extend(answer.take().map(|(_, m)| m));
                        }
                        state.rows.push((id, Some(row), answer));
                    }
                }
                ToService::Fired { id, due } => {
                    if state.reminders.done(&id, due, time(self.now)) == Done::Remove {
                        state.rows.push((id, None, None));
                    }
                }
            }
        }
    }

    fn tell(&mut self, r: usize, state: &mut State, silent: &[String], certain: bool) {
        let State {
            placement, sessions, ..
        } = state;
        for (i, session) in sessions {
            // A slow reader gets less often, and then all of it at once.
            if self.rng.random_bool(0.2) {
                continue;
            }
            let mut out = Vec::new();
            if std::mem::take(&mut session.welcome) {
                out.push(ToNode::Welcome);
            }
            let name = &self.nodes[*i].name;
            let early = self.fault == Some(Fault::RenewedBeforeTables);
            let mut tables = certain && (!early || self.rng.random_bool(0.004));
            while tables {
                let Some(key) = session.stale.pop_first() else {
                    break;
                };
                table(&mut out, session, placement, name, &key);
                // As if what goes out at once were full.
                tables = self.rng.random_bool(0.8);
            }
            if session.silent != silent {
                session.silent = silent.to_vec();
                out.push(ToNode::Silent(silent.to_vec()));
            }
            if session.stale.is_empty() || early {
                out.append(&mut session.replies);
                out.extend(session.renewed.take().map(ToNode::Renewed));
            }
            let stream = session.stream;
            if !out.is_empty() {
                let at = self.now + self.delay();
                if let Some(open) = &mut self.nodes[*i].stream
                    && open.number == stream
                    && open.replica == r
                {
                    out.into_iter().for_each(|m| open.down.send(at, m));
                }
            }
        }
    }

    pub fn db_answered(&mut self, r: usize, token: u64, answer: Option<DbAnswer>) {
        let now = self.now;
        let fault = self.fault;
        let replica = &mut self.replicas[r];
        let clock = replica.clock(now);
        if replica.asked == Some(token) {
            replica.asked = None;
            match answer {
                Some(DbAnswer::Row(row)) => replica.candidate.answer(clock, row),
                _ => replica.candidate.failed(),
            }
            return;
        }
        let Some(led) = &mut replica.led else { return };
        if led.load.is_some_and(|(t, _)| t == token) {
            let Some(DbAnswer::Loaded(Some((mut saved, rows)))) = answer else {
                replica.led = None;
                return;
            };
            led.load = None;
            if fault == Some(Fault::EpochsForgotten) {
                for table in &mut saved.tables {
                    table
                        .owners
                        .iter_mut()
                        .for_each(|(_, epoch)| *epoch = epoch.saturating_sub(1));
                }
            }
            led.state = Some(State {
                placement: Placement::restore(Limits::default(), slots(), 0, clock, saved),
                reminders: Reminders::restore(rows),
                sessions: BTreeMap::new(),
                since: now,
                unwritten: Settled::default(),
                rows: Vec::new(),
                saving: None,
                failed_until: 0,
            });
            return;
        }
        let Some(state) = &mut led.state else { return };
        if state.saving.as_ref().is_none_or(|(t, _, _, _)| *t != token) {
            return;
        }
        let Some((_, _, settled, rows)) = state.saving.take() else {
            return;
        };
        match answer {
            Some(DbAnswer::Saved(true)) => {
                mark(state, &settled);
                state.placement.told(&settled);
                for (id, row, reply) in state.rows.drain(..rows) {
                    match row {
                        Some(row) => state.reminders.put(row),
                        None => state.reminders.remove(&id),
                    }
                    if let Some((i, reply)) = reply
                        && let Some(session) = state.sessions.get_mut(&i)
                    {
                        session.replies.push(reply);
                    }
                }
            }
            Some(_) => self.stop_leading(r),
            None => {
                self.counts
                    .entry("unknown commit")
                    .and_modify(|n| *n += 1)
                    .or_insert(1);
                state.unwritten.merge(settled);
                state.failed_until = now + 500;
            }
        }
    }
}

fn mark(state: &mut State, settled: &Settled) {
    for session in state.sessions.values_mut() {
        session.stale.extend(settled.types.iter().cloned());
        session.stale.extend(settled.moving.iter().cloned());
    }
}

/// What brings a node up to date with one type.
fn table(out: &mut Vec<ToNode>, session: &mut Session, placement: &Placement, node: &str, key: &TypeKey) {
    let table = placement.tables().get(key);
    let held = session.held.get(key).copied();
    match table.filter(|t| !t.is_empty()) {
        None => {
            if session.held.remove(key).is_some() {
                out.push(ToNode::Gone(key.clone()));
            }
        }
        Some(table) if held == Some(table.version()) => {}
        Some(table) => {
            match (held.and_then(|v| table.delta(v)), table.snapshot()) {
                (Some(delta), _) => out.push(ToNode::Delta(key.clone(), delta)),
                (None, Some(whole)) => out.push(ToNode::Table(key.clone(), whole)),
                (None, None) => {}
            }
            session.held.insert(key.clone(), table.version());
        }
    }
    let wanted: BTreeMap<u32, (u64, std::sync::Arc<weft_placement_protocol::HostInfo>)> = table
        .map(|t| t.handovers(node).map(|h| (h.slot, (h.epoch, h.to))).collect())
        .unwrap_or_default();
    let told: Vec<_> = session
        .told
        .iter()
        .filter(|((k, slot), _)| k == key && !wanted.contains_key(slot))
        .map(|((_, slot), (epoch, _))| (*slot, *epoch))
        .collect();
    for (slot, epoch) in told {
        session.told.remove(&(key.clone(), slot));
        out.push(ToNode::Resume {
            key: key.clone(),
            slot,
            epoch,
        });
    }
    for (slot, (epoch, to)) in wanted {
        let now = (epoch, to.id.to_string());
        if session.told.get(&(key.clone(), slot)) != Some(&now) {
            session.told.insert((key.clone(), slot), now);
            out.push(ToNode::Drain {
                key: key.clone(),
                slot,
                epoch,
                to,
            });
        }
    }
}
