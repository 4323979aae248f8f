//! Who leads: one replica after the other, with the times of the real thing.
#![allow(clippy::unwrap_used)]

use std::time::Duration;
use weft_placement_protocol::{Ask, Candidate, LEADER_BEAT, LeaderRow, Time};

const STEP: u64 = 10;

fn time(ms: u64) -> Time {
    Time::since_start(Duration::from_millis(ms))
}

/// A database that answers at once.
fn round(row: &mut LeaderRow, candidate: &mut Candidate, now: u64) {
    let Some(ask) = candidate.poll(time(now)) else {
        return;
    };
    if let Ask::Swap { from, to } = ask
        && *row == from
    {
        *row = to;
    }
    candidate.answer(time(now), *row);
}

#[test]
fn the_next_leader_is_there_within_two_seconds() {
    for killed_at in (3_000..4_000).step_by(70) {
        let mut row = LeaderRow::default();
        let mut all = [
            Candidate::new(1, time(0)),
            Candidate::new(2, time(0)),
            Candidate::new(3, time(0)),
        ];
        let mut first = None;
        let mut now = 0;
        let took = loop {
            now += STEP;
            for candidate in &mut all {
                round(&mut row, candidate, now);
            }
            let leaders: Vec<_> = all.iter().filter_map(|c| c.leads(time(now))).collect();
            assert!(leaders.len() <= 1, "{leaders:?} at {now}");
            if now == killed_at {
                first = leaders.first().copied();
                let holder = row.holder;
                // Its process is gone; another candidate stands in its place and never asks.
                let place = usize::try_from(holder - 1).unwrap();
                all[place] = Candidate::new(9, time(1_000_000));
            }
            if now > killed_at && leaders.first().is_some_and(|term| Some(*term) != first) {
                break now - killed_at;
            }
            assert!(now < killed_at + 10_000, "nobody took over");
        };
        assert!(took < 2_000, "{took} ms");
    }
}

#[test]
fn a_leader_that_gives_up_is_followed_at_once() {
    let mut row = LeaderRow::default();
    let mut one = Candidate::new(1, time(0));
    let mut two = Candidate::new(2, time(0));
    for now in (0..2_000).step_by(10) {
        round(&mut row, &mut one, now);
        round(&mut row, &mut two, now + 5);
    }
    assert_eq!(one.leads(time(2_000)), Some(1));
    let Some(Ask::Swap { from, to }) = one.give_up() else {
        panic!("the leader has something to give")
    };
    assert_eq!(from, row);
    row = to;
    assert_eq!(one.leads(time(2_000)), None);
    assert!(two.give_up().is_none());
    let beats = 2 * u64::try_from(LEADER_BEAT.as_millis()).unwrap();
    for now in (2_000..2_000 + beats + 10).step_by(10) {
        round(&mut row, &mut two, now);
    }
    assert_eq!(two.leads(time(2_000 + beats)), Some(2));
}

#[test]
fn a_term_is_led_once() {
    let mut row = LeaderRow::default();
    let mut one = Candidate::new(1, time(0));
    for now in (0..1_000).step_by(10) {
        round(&mut row, &mut one, now);
    }
    assert_eq!(one.leads(time(1_000)), Some(1));
    let mut stopped = one.clone();
    let mut again = row;
    // It goes on, and it was stopped until its time was over.
    for now in (1_000..3_500).step_by(10) {
        round(&mut row, &mut one, now);
    }
    assert_eq!(one.leads(time(3_500)), Some(1));
    assert_eq!(stopped.leads(time(3_000)), None);
    for now in (3_000..3_500).step_by(10) {
        round(&mut again, &mut stopped, now);
    }
    assert_eq!(stopped.leads(time(3_500)), Some(2));
}
