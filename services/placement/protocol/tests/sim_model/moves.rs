//! One service, two nodes, the state store: a host joins, and a slot moves to it. Messages may be
//! late, streams may break, nodes may stop at any moment, the service may start anew, and a write
//! that was begun may land whenever it likes.

use stateright::{Model, Property};
use std::time::Duration;
use weft_placement_protocol::{
    Fence, Gate, LEASE, LEASE_MARGIN, Limits, Placement, Registration, SlotCount, Snapshot, Step, TableView,
    Time, TypeKey,
};

const STEP: u64 = 2_000;
/// The slot that moves.
const SLOT: u32 = 0;

/// How far to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bounds {
    end: u64,
    breaks: u8,
    restarts: u8,
    renewals: u8,
    turns: u8,
    writes: u8,
    /// The node that gets the slot has no trouble: all it sends and is sent arrives at once.
    well: bool,
}

impl Bounds {
    pub const ALL: [Self; 3] = [
        // A move, with turns and writes at every moment.
        Self {
            end: 2_000,
            breaks: 0,
            restarts: 0,
            renewals: 1,
            turns: 1,
            writes: 1,
            well: false,
        },
        // Streams break and the service starts anew in the middle of it.
        Self {
            end: 2_000,
            breaks: 1,
            restarts: 1,
            renewals: 0,
            turns: 1,
            writes: 0,
            well: false,
        },
        // A node that is not heard of until its lease is over, and longer.
        Self {
            end: 16_000,
            breaks: 0,
            restarts: 0,
            renewals: 1,
            turns: 1,
            writes: 0,
            well: true,
        },
    ];
}

/// What may be taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Missing {
    /// The store takes every write.
    Fence,
    /// Slots move without their owner being asked.
    Drain,
    /// A silent node's slots move before its lease is over.
    LeaseWait,
    /// Renewals are answered before what changed was told.
    Order,
    /// A new stream gives a lease before it has told what changed.
    Sync,
}

impl Missing {
    pub const ALL: [Self; 5] = [Self::Fence, Self::Drain, Self::LeaseWait, Self::Order, Self::Sync];

    /// Bounds within which it matters.
    pub fn bounds(self) -> Bounds {
        match self {
            Self::Fence | Self::Drain => Bounds::ALL[0],
            Self::Sync => Bounds::ALL[1],
            Self::LeaseWait | Self::Order => Bounds::ALL[2],
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Up {
    Hello {
        host: bool,
        version: Option<u64>,
        sent: Time,
    },
    Host,
    Renew(Time),
    Drained(u32, u64),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Down {
    Welcome(Time),
    Table(Snapshot),
    Drain(u32, u64),
    Renewed(Time),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Node {
    gate: Gate,
    view: Option<TableView>,
    host: bool,
    connected: bool,
    up: Vec<Up>,
    /// What goes out in one piece comes in one piece.
    down: Vec<Vec<Down>>,
    turn: Option<(u64, u64)>,
    turns: u8,
    renewals: u8,
    writes: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Session {
    version: Option<u64>,
    told: Vec<(u32, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    now: u64,
    placement: Placement,
    sessions: [Option<Session>; 2],
    nodes: [Node; 2],
    breaks: u8,
    restarts: u8,
    fence: Fence,
    /// Epochs of writes that are on their way.
    writes: Vec<u64>,
    taken: u64,
    moved: bool,
    broken: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Tick,
    HostUp,
    Renew(usize),
    ToService(usize),
    ToNode(usize),
    Run(usize),
    Begin(usize),
    Write(usize),
    End(usize),
    Land(usize),
    Break(usize),
    Connect(usize),
    Restart,
}

pub struct Moves {
    bounds: Bounds,
    missing: Option<Missing>,
}

fn time(ms: u64) -> Time {
    Time::since_start(Duration::from_millis(ms))
}

fn key() -> TypeKey {
    TypeKey::new("d", "T")
}

fn name(i: usize) -> &'static str {
    ["a", "b"][i]
}

fn registration(i: usize) -> Registration {
    Registration {
        id: name(i).into(),
        namespace: "d".into(),
        app_id: "app".into(),
        actor_types: vec!["T".into()],
        capacity: 1,
        leaving: false,
    }
}

impl Moves {
    pub fn new(bounds: Bounds, missing: Option<Missing>) -> Self {
        Self { bounds, missing }
    }

    /// What the service does after each event: assign, write, tell.
    fn settle(&self, state: &mut State) {
        let settled = state.placement.settle();
        state.placement.told(&settled);
        for i in 0..2 {
            self.tell(state, i, Vec::new());
        }
    }

    fn tell(&self, state: &mut State, i: usize, mut last: Vec<Down>) {
        let Some(session) = &mut state.sessions[i] else {
            return;
        };
        let mut out = Vec::new();
        if let Some(table) = state.placement.tables().get(&key()) {
            if session.version != Some(table.version()) {
                session.version = Some(table.version());
                out.extend(table.snapshot().map(Down::Table));
            }
            let wanted: Vec<_> = table.handovers(name(i)).map(|h| (h.slot, h.epoch)).collect();
            for (slot, epoch) in &wanted {
                if !session.told.contains(&(*slot, *epoch)) {
                    out.push(Down::Drain(*slot, *epoch));
                }
            }
            session.told = wanted;
        }
        // A welcome comes first, the answer to what was sent last.
        let first = usize::from(matches!(last.first(), Some(Down::Welcome(_))));
        let answers = last.split_off(first);
        last.append(&mut out);
        let node = &mut state.nodes[i];
        if self.missing == Some(Missing::Order) {
            // It overtakes everything.
            for answer in answers {
                node.down.insert(0, vec![answer]);
            }
        } else {
            last.extend(answers);
        }
        if self.missing == Some(Missing::Sync) {
            // Nothing makes them come together.
            node.down.extend(last.into_iter().map(|message| vec![message]));
        } else if !last.is_empty() {
            node.down.push(last);
        }
    }

    fn hear(&self, state: &mut State, i: usize, message: Up) {
        let mut answer = Vec::new();
        match message {
            Up::Hello { host, version, sent } => {
                let hosts = host.then(|| registration(i)).into_iter().collect();
                state.placement.hello(name(i), hosts);
                state
                    .placement
                    .set_drains(name(i), self.missing != Some(Missing::Drain));
                state.sessions[i] = Some(Session {
                    version,
                    told: Vec::new(),
                });
                answer = vec![Down::Welcome(sent), Down::Renewed(sent)];
            }
            _ if state.sessions[i].is_none() => return,
            Up::Host => drop(state.placement.host_up(name(i), registration(i))),
            Up::Renew(sent) => {
                if state.placement.renew(name(i)) {
                    answer.push(Down::Renewed(sent));
                }
            }
            Up::Drained(slot, epoch) => drop(state.placement.drained(name(i), &key(), slot, epoch)),
        }
        // What the event changes is told before it is answered.
        let settled = state.placement.settle();
        state.placement.told(&settled);
        if !answer.is_empty() {
            self.tell(state, i, answer);
        }
        self.settle(state);
    }

    fn receive(&self, state: &mut State, i: usize, message: Down) {
        let now = time(state.now);
        let node = &mut state.nodes[i];
        match message {
            Down::Welcome(sent) => {
                node.gate.welcome(LEASE - LEASE_MARGIN);
                if self.missing == Some(Missing::Sync) {
                    node.gate.renewed(now, sent);
                }
            }
            Down::Renewed(sent) => node.gate.renewed(now, sent),
            Down::Drain(slot, epoch) => node.gate.drain(now, &key(), slot, epoch, name(1 - i)),
            Down::Table(whole) => {
                let view = TableView::new(whole).unwrap();
                if view.slot(SLOT).is_some_and(|o| *o.host.id == *"b") {
                    state.moved = true;
                }
                node.gate.reconcile(&key(), Some(&view));
                node.view = Some(view);
            }
        }
    }

    fn run(&self, state: &mut State, i: usize) {
        let now = time(state.now);
        let node = &mut state.nodes[i];
        for step in node.gate.poll(now) {
            match step {
                Step::Cancel(turn) => {
                    if node.turn.is_some_and(|(t, _)| t == turn) {
                        node.turn = None;
                    }
                }
                Step::Drained { slot, epoch, .. } => node.up.push(Up::Drained(slot, epoch)),
            }
        }
    }

    /// Begins a turn if it may; the claim in the store comes first.
    fn begin(&self, state: &State, i: usize) -> Option<State> {
        let now = time(state.now);
        let view = state.nodes[i].view.as_ref()?;
        let owner = view.slot(SLOT)?;
        state.nodes[i].gate.open(now, &key(), owner).ok()?;
        let mut next = state.clone();
        let node = &mut next.nodes[i];
        let epoch = owner.epoch;
        if node.gate.begin(now, &key(), owner).is_err() {
            next.fence.claim(epoch).ok()?;
            node.gate.claimed(&key(), SLOT, epoch);
        }
        let turn = match node.gate.begin(now, &key(), owner) {
            Ok(turn) => turn,
            Err(_) => return None,
        };
        node.turn = Some((turn, epoch));
        node.turns += 1;
        let (current, is) = next.placement.tables().get(&key())?.owner(SLOT);
        if is != epoch || current.is_none_or(|o| *o.node != *name(i)) {
            next.broken = Some("a turn starts without the current owner's epoch");
        }
        Some(next)
    }
}

impl Moves {
    fn happen(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        let now = time(state.now);
        match action {
            Action::Begin(_) => return None,
            Action::Tick => {
                next.now += STEP;
                let gone = next.placement.tick(time(next.now));
                for i in 0..2 {
                    if gone.iter().any(|n| **n == *name(i)) {
                        next.sessions[i] = None;
                    }
                }
                if self.missing == Some(Missing::LeaseWait) {
                    let silent: Vec<_> = next.placement.silent().cloned().collect();
                    for node in silent {
                        next.placement.hello(&node, Vec::new());
                    }
                }
                self.settle(&mut next);
            }
            Action::HostUp => {
                next.nodes[1].host = true;
                next.nodes[1].up.push(Up::Host);
            }
            Action::Renew(i) => {
                next.nodes[i].renewals += 1;
                next.nodes[i].up.push(Up::Renew(now));
            }
            Action::ToService(i) => {
                let message = next.nodes[i].up.remove(0);
                self.hear(&mut next, i, message);
            }
            Action::ToNode(i) => {
                for message in next.nodes[i].down.remove(0) {
                    self.receive(&mut next, i, message);
                }
            }
            Action::Run(i) => self.run(&mut next, i),
            Action::Write(i) => {
                let (turn, _) = next.nodes[i].turn?;
                let epoch = next.nodes[i].gate.may_write(now, turn).ok()?;
                next.nodes[i].writes += 1;
                next.writes.push(epoch);
                next.writes.sort_unstable();
            }
            Action::End(i) => {
                let (turn, _) = next.nodes[i].turn.take()?;
                next.nodes[i].gate.end(turn);
            }
            Action::Land(k) => {
                let epoch = next.writes.remove(k);
                if next.fence.admit(epoch).is_ok() || self.missing == Some(Missing::Fence) {
                    if epoch < next.taken {
                        next.broken = Some("a write was taken after one of a later epoch");
                    }
                    next.taken = next.taken.max(epoch);
                }
            }
            Action::Break(i) => {
                next.breaks += 1;
                next.nodes[i].connected = false;
                next.nodes[i].gate.disconnected();
                next.nodes[i].down.clear();
            }
            Action::Connect(i) => {
                // What the old stream still carried is worth nothing once the new one is there.
                let node = &mut next.nodes[i];
                node.up.clear();
                node.down.clear();
                node.connected = true;
                node.up.push(Up::Hello {
                    host: node.host,
                    version: node.view.as_ref().map(TableView::version),
                    sent: now,
                });
            }
            Action::Restart => {
                next.restarts += 1;
                let saved = next.placement.saved();
                let slots = SlotCount::new(2).unwrap();
                next.placement = Placement::restore(Limits::default(), slots, 0, now, saved);
                next.sessions = [None, None];
                for node in &mut next.nodes {
                    node.connected = false;
                    node.gate.disconnected();
                    node.up.clear();
                    node.down.clear();
                }
                self.settle(&mut next);
            }
        }
        Some(next)
    }
}

impl Model for Moves {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let slots = SlotCount::new(2).unwrap();
        let node = |i: usize| Node {
            gate: Gate::new(name(i)),
            view: None,
            host: i == 0,
            connected: true,
            up: Vec::new(),
            down: Vec::new(),
            turn: None,
            turns: 0,
            renewals: 0,
            writes: 0,
        };
        let mut state = State {
            now: 0,
            placement: Placement::new(Limits::default(), slots, 0, time(0)),
            sessions: [None, None],
            nodes: [node(0), node(1)],
            breaks: 0,
            restarts: 0,
            fence: Fence::default(),
            writes: Vec::new(),
            taken: 0,
            moved: false,
            broken: None,
        };
        // Both are there, and a owns everything.
        for i in 0..2 {
            let hello = Up::Hello {
                host: i == 0,
                version: None,
                sent: time(0),
            };
            self.hear(&mut state, i, hello);
            for piece in std::mem::take(&mut state.nodes[i].down) {
                piece.into_iter().for_each(|m| self.receive(&mut state, i, m));
            }
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.now < self.bounds.end {
            actions.push(Action::Tick);
        }
        if !state.nodes[1].host && state.nodes[1].connected {
            actions.push(Action::HostUp);
        }
        if state.restarts < self.bounds.restarts {
            actions.push(Action::Restart);
        }
        for (i, node) in state.nodes.iter().enumerate() {
            if i == 1 && self.bounds.well {
                // Only its turns are left to chance.
            } else if node.connected {
                if node.renewals < self.bounds.renewals {
                    actions.push(Action::Renew(i));
                }
                if state.breaks < self.bounds.breaks {
                    actions.push(Action::Break(i));
                }
            } else {
                actions.push(Action::Connect(i));
            }
            if !node.up.is_empty() {
                actions.push(Action::ToService(i));
            }
            if !node.down.is_empty() {
                actions.push(Action::ToNode(i));
            }
            let mut gate = node.gate.clone();
            if !gate.poll(time(state.now)).is_empty() {
                actions.push(Action::Run(i));
            }
            match node.turn {
                None if node.turns < self.bounds.turns => actions.push(Action::Begin(i)),
                None => {}
                Some(_) => {
                    actions.push(Action::End(i));
                    if node.writes < self.bounds.writes {
                        actions.push(Action::Write(i));
                    }
                }
            }
        }
        actions.extend((0..state.writes.len()).map(Action::Land));
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        if let Action::Begin(i) = action {
            return self.begin(state, i);
        }
        let mut next = self.happen(state, action)?;
        if self.bounds.well {
            if action == Action::Tick {
                next.nodes[1].up.push(Up::Renew(time(next.now)));
            }
            loop {
                self.run(&mut next, 1);
                if !next.nodes[1].up.is_empty() {
                    let message = next.nodes[1].up.remove(0);
                    self.hear(&mut next, 1, message);
                } else if !next.nodes[1].down.is_empty() {
                    for message in next.nodes[1].down.remove(0) {
                        self.receive(&mut next, 1, message);
                    }
                } else {
                    break;
                }
            }
        }
        Some(next)
    }
    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is broken", |_, state: &State| state.broken.is_none()),
            Property::always("turns do not overlap", |_, state: &State| {
                let may = |node: &Node| {
                    node.turn
                        .is_some_and(|(turn, _)| node.gate.may_write(time(state.now), turn).is_ok())
                };
                state.nodes.iter().filter(|node| may(node)).count() <= 1
            }),
            Property::sometimes("the slot has moved", |_, state: &State| state.moved),
        ]
    }
}
