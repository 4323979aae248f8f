#![allow(clippy::unwrap_used)]
use super::*;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};

const LASTS: Duration = Duration::from_secs(15);

/// A store of one lease. What a replica asks may be held up, before it takes effect or after.
#[derive(Default)]
struct Store {
    lease: Option<Record>,
    version: u64,
    /// Whether the version that is replaced counts.
    careless: bool,
}

#[derive(Clone)]
struct Door {
    store: Arc<Mutex<Store>>,
    delays: Arc<Mutex<HashMap<String, (Duration, Duration)>>>,
    me: String,
}

impl Door {
    async fn wait(&self, after: bool) {
        let delay = self.delays.lock().get(&self.me).copied().unwrap_or_default();
        tokio::time::sleep(if after { delay.1 } else { delay.0 }).await;
    }
}

impl Leases for Door {
    async fn read(&self) -> Result<Option<Record>, Fault> {
        self.wait(false).await;
        let lease = self.store.lock().lease.clone();
        self.wait(true).await;
        Ok(lease)
    }

    async fn write(&self, record: &Record) -> Result<Record, Fault> {
        // What is on its way arrives also if the asker has given up.
        let (door, record) = (self.clone(), record.clone());
        tokio::spawn(async move {
            door.wait(false).await;
            let outcome = {
                let mut store = door.store.lock();
                let current = store
                    .lease
                    .as_ref()
                    .map(|l| l.version.clone())
                    .unwrap_or_default();
                if current != record.version && !store.careless {
                    Err(Fault::Conflict)
                } else {
                    store.version += 1;
                    let version = store.version.to_string();
                    let written = Record { version, ..record };
                    store.lease = Some(written.clone());
                    Ok(written)
                }
            };
            door.wait(true).await;
            outcome
        })
        .await
        .unwrap()
    }
}

struct Replicas {
    store: Arc<Mutex<Store>>,
    delays: Arc<Mutex<HashMap<String, (Duration, Duration)>>>,
    leading: Vec<watch::Receiver<Leading>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Replicas {
    fn new(careless: bool) -> Self {
        let store = Arc::new(Mutex::new(Store {
            careless,
            ..Store::default()
        }));
        let mut all = Self {
            store,
            delays: Arc::default(),
            leading: Vec::new(),
            tasks: Vec::new(),
        };
        for name in ["a", "b", "c"] {
            let door = Door {
                store: all.store.clone(),
                delays: all.delays.clone(),
                me: name.into(),
            };
            let (sender, receiver) = watch::channel(None);
            all.leading.push(receiver);
            all.tasks.push(tokio::spawn(async move {
                run(&door, &door.me, LASTS, &sender).await;
            }));
        }
        all
    }

    fn leaders(&self) -> Vec<usize> {
        let now = Instant::now();
        let leads = |at: &usize| self.leading[*at].borrow().is_some_and(|until| until > now);
        (0..self.leading.len()).filter(leads).collect()
    }

    /// The most that lead at one moment within `time`, and how long somebody led.
    async fn look(&self, time: Duration) -> (usize, Duration) {
        let (step, end) = (Duration::from_millis(50), Instant::now() + time);
        let (mut most, mut led) = (0, Duration::ZERO);
        while Instant::now() < end {
            let leaders = self.leaders().len();
            most = most.max(leaders);
            led += step * u32::from(leaders > 0);
            tokio::time::sleep(step).await;
        }
        (most, led)
    }

    fn delay(&self, at: usize, before: Duration, after: Duration) {
        let name = ["a", "b", "c"][at].to_owned();
        self.delays.lock().insert(name, (before, after));
    }
}

impl Drop for Replicas {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|t| t.abort());
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn one_of_three_leads_and_another_takes_over_when_it_is_gone() {
    let all = Replicas::new(false);
    assert_eq!(all.look(60 * SECOND).await.0, 1);
    let first = all.leaders()[0];
    all.tasks[first].abort();
    let (most, led) = all.look(60 * SECOND).await;
    assert_eq!(most, 1);
    let second = all.leaders();
    assert!(second.len() == 1 && second[0] != first, "{second:?}");
    // A gap of the lease's length and a turn at most.
    assert!(led >= 60 * SECOND - LASTS - LASTS / 3, "{led:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_hangs_stops_before_another_begins() {
    for (before, after) in [(60 * SECOND, Duration::ZERO), (Duration::ZERO, 60 * SECOND)] {
        let all = Replicas::new(false);
        all.look(10 * SECOND).await;
        let first = all.leaders()[0];
        all.delay(first, before, after);
        let (most, led) = all.look(40 * SECOND).await;
        let second = all.leaders();
        assert_eq!(most, 1);
        assert!(led >= 10 * SECOND);
        assert!(
            second.len() == 1 && second[0] != first,
            "{second:?} after {first}"
        );
        // What it sent before it hung arrives, and it is back.
        all.delay(first, Duration::ZERO, Duration::ZERO);
        assert_eq!(all.look(120 * SECOND).await.0, 1);
    }
}

/// Delays that change all the time, made from a seed.
async fn storm(careless: bool, seed: u64) -> (usize, Duration) {
    let all = Replicas::new(careless);
    let mut state = seed;
    let mut next = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let (mut most, mut led) = (0, Duration::ZERO);
    for _ in 0..60 {
        let at = usize::try_from(next(3)).unwrap();
        let long = |n: u64| Duration::from_millis([0, 300, 2_000, 4_500, 9_000, 25_000][n as usize]);
        all.delay(at, long(next(6)), long(next(6)));
        let (leaders, time) = all.look(Duration::from_millis(1_000 + next(20_000))).await;
        most = most.max(leaders);
        led += time;
    }
    (most, led)
}

#[tokio::test(start_paused = true)]
async fn whatever_is_held_up_two_never_lead() {
    let mut led = Duration::ZERO;
    for seed in 1..=20 {
        let (most, time) = storm(false, seed).await;
        assert!(most <= 1, "seed {seed}: {most} lead");
        led += time;
    }
    assert!(led > 1_000 * SECOND, "hardly anybody ever led: {led:?}");
}

/// The check itself: without the version's comparison there are two.
#[tokio::test(start_paused = true)]
async fn without_compare_and_swap_the_storm_finds_two_leaders() {
    for seed in 1..=20 {
        if storm(true, seed).await.0 > 1 {
            return;
        }
    }
    panic!("the storm finds nothing");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_let_go_of_is_taken_at_once_and_only_by_its_holder() {
    let all = Replicas::new(false);
    all.look(5 * SECOND).await;
    let first = all.leaders()[0];
    all.tasks[first].abort();
    let door = |at: usize| Door {
        store: all.store.clone(),
        delays: all.delays.clone(),
        me: ["a", "b", "c"][at].into(),
    };
    let other = (first + 1) % 3;
    release(&door(other), ["a", "b", "c"][other]).await.unwrap();
    assert_eq!(
        all.store.lock().lease.as_ref().unwrap().holder,
        ["a", "b", "c"][first]
    );
    release(&door(first), ["a", "b", "c"][first]).await.unwrap();
    tokio::time::sleep(LASTS / 3).await;
    let holder = all.store.lock().lease.clone().unwrap().holder;
    assert!(!holder.is_empty() && holder != ["a", "b", "c"][first], "{holder}");
}

#[test]
fn times_have_six_digits_behind_the_point() {
    let at = OffsetDateTime::from_unix_timestamp_nanos(1_000_000_000_000_007_000).unwrap();
    assert_eq!(micro_time(at), "2001-09-09T01:46:40.000007Z");
    assert!(record(&json!({"metadata": {}, "spec": {}})).is_err());
}
