//! Two replicas and the lease row. Questions and answers may be late or lost, replicas may stop at any
//! moment, and a write that was begun may land whenever it likes.

use stateright::{Model, Property};
use std::time::Duration;
use weft_placement_protocol::{Ask, Candidate, LEADER_LEASE, LEADER_MARGIN, LeaderRow, Time};

const STEP: u64 = 400;
const END: u64 = 1_600;
/// Answers that may get lost.
const LOSSES: u8 = 1;

/// What may be taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Missing {
    /// The row is overwritten, not compared.
    Compare,
    /// The leader believes in its term until it hears otherwise.
    OwnTime,
    /// The database does not compare a write's term.
    Term,
}

impl Missing {
    pub const ALL: [Self; 3] = [Self::Compare, Self::OwnTime, Self::Term];
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Way {
    Nothing,
    There(Ask),
    Back(LeaderRow),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    now: u64,
    row: LeaderRow,
    replicas: Vec<Candidate>,
    way: Vec<Way>,
    /// The term that each last believed in.
    believes: Vec<Option<u64>>,
    /// A write of each that is on its way: its term.
    writes: Vec<Option<u64>>,
    /// Term and replica of the last write that was taken.
    taken: (u64, usize),
    broken: bool,
    losses: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Tick,
    Poll(usize),
    Apply(usize),
    Answer(usize),
    Lose(usize),
    Write(usize),
    Land(usize),
}

pub struct Leaders {
    pub missing: Option<Missing>,
}

fn time(ms: u64) -> Time {
    Time::since_start(Duration::from_millis(ms))
}

impl Leaders {
    fn leads(&self, state: &State, r: usize) -> Option<u64> {
        match self.missing {
            Some(Missing::OwnTime) => state.believes[r],
            _ => state.replicas[r].leads(time(state.now)),
        }
    }
}

impl Model for Leaders {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            now: 0,
            row: LeaderRow::default(),
            replicas: (1..=2).map(|id| Candidate::new(id, time(0))).collect(),
            way: vec![Way::Nothing; 2],
            believes: vec![None; 2],
            writes: vec![None; 2],
            taken: (0, 0),
            broken: false,
            losses: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.now < END {
            actions.push(Action::Tick);
        }
        for r in 0..2 {
            match &state.way[r] {
                Way::Nothing => {}
                Way::There(_) => actions.push(Action::Apply(r)),
                Way::Back(_) => actions.push(Action::Answer(r)),
            }
            if state.way[r] != Way::Nothing && state.losses < LOSSES {
                actions.push(Action::Lose(r));
            }
            let mut candidate = state.replicas[r].clone();
            if state.way[r] == Way::Nothing && candidate.poll(time(state.now)).is_some() {
                actions.push(Action::Poll(r));
            }
            match state.writes[r] {
                Some(_) => actions.push(Action::Land(r)),
                None if self.leads(state, r).is_some() => actions.push(Action::Write(r)),
                None => {}
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        let now = time(next.now);
        match action {
            Action::Tick => next.now += STEP,
            Action::Poll(r) => next.way[r] = next.replicas[r].poll(now).map_or(Way::Nothing, Way::There),
            Action::Apply(r) => {
                let Way::There(ask) = next.way[r] else { return None };
                if let Ask::Swap { from, to } = ask
                    && (next.row == from || self.missing == Some(Missing::Compare))
                {
                    next.row = to;
                }
                next.way[r] = Way::Back(next.row);
            }
            Action::Answer(r) => {
                let Way::Back(row) = next.way[r] else { return None };
                next.way[r] = Way::Nothing;
                next.replicas[r].answer(now, row);
                next.believes[r] = next.replicas[r].leads(now);
            }
            Action::Lose(r) => {
                next.losses += 1;
                next.way[r] = Way::Nothing;
                next.replicas[r].failed();
            }
            Action::Write(r) => next.writes[r] = self.leads(&next, r),
            Action::Land(r) => {
                let term = next.writes[r].take()?;
                if term == next.row.term || self.missing == Some(Missing::Term) {
                    // Not after a later term's, and one term's from one replica.
                    next.broken |= term < next.taken.0 || term == next.taken.0 && r != next.taken.1;
                    next.taken = (term, r);
                }
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        debug_assert!(LEADER_MARGIN < LEADER_LEASE);
        vec![
            Property::always("at most one leads", |model: &Self, state: &State| {
                (0..2).filter(|r| model.leads(state, *r).is_some()).count() <= 1
            }),
            Property::always("writes in the order of terms", |_, state: &State| !state.broken),
            Property::sometimes("the second one takes over", |_, state: &State| state.taken.0 >= 2),
        ]
    }
}
