//! How much one caller may ask: so many calls at once, so many per second after that.
//!
//! A caller is its SPIFFE ID; without one it is its address. The table of callers is bounded:
//! callers that have all of their calls left are forgotten, and while the rest fill the table, all
//! newcomers share one allowance. Members of the mesh have a table of their own, so nobody else can
//! make them newcomers.

use crate::{Caller, Refusal, gate::block, refusal::RPC_DOMAIN};
use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tonic::{Code, Status};
use weft_model::Principal;
use weft_tls::Clock;

/// Callers that are known at once, members and others each.
const CALLERS: usize = 8192;
/// A caller that goes on asking is told of (see [`Limiter::on_refused`]) once in so many seconds.
const TELL: u64 = 60;

/// What one caller may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Calls at once.
    pub burst: u32,
    /// Calls that are given back each second.
    pub per_second: u32,
}

/// A caller that asked too much.
#[derive(Debug, Clone)]
pub struct Limited {
    /// Who it is.
    pub caller: Caller,
    /// The address, where the caller is known by nothing else.
    pub from: Option<IpAddr>,
    /// The method it asked for.
    pub method: String,
    /// Calls refused since it was told of last, with this one.
    pub refused: u64,
}

type Told = Box<dyn Fn(Limited) + Send + Sync>;

/// The limits of a server. Clones share.
#[derive(Clone)]
pub struct Limiter(Arc<Inner>);

struct Inner {
    clock: Clock,
    members: Class,
    strangers: Class,
    told: Told,
}

struct Class {
    rate: Rate,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    callers: HashMap<Key, Bucket>,
    /// Of all that found no room.
    rest: Option<Bucket>,
    swept_at: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Id(String),
    Address(IpAddr),
    Local(u32),
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: u64,
    at: u64,
    refused: u64,
    told_at: Option<u64>,
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("members", &self.0.members.rate)
            .field("strangers", &self.0.strangers.rate)
            .finish_non_exhaustive()
    }
}

impl Bucket {
    fn full(rate: Rate, now: u64) -> Self {
        Self {
            left: rate.burst.into(),
            at: now,
            refused: 0,
            told_at: None,
        }
    }

    /// What has been given back meanwhile. A clock that went back gives nothing, and goes on from there.
    fn refill(&mut self, rate: Rate, now: u64) {
        let back = now.saturating_sub(self.at).saturating_mul(rate.per_second.into());
        self.left = self.left.saturating_add(back).min(rate.burst.into());
        self.at = now;
    }

    fn is_full(mut self, rate: Rate, now: u64) -> bool {
        self.refill(rate, now);
        self.left >= rate.burst.into()
    }

    /// One call; otherwise how many were refused since this was told last, if it is to be told.
    fn take(&mut self, rate: Rate, now: u64) -> Result<(), Option<u64>> {
        self.refill(rate, now);
        if self.left > 0 {
            self.left -= 1;
            return Ok(());
        }
        self.refused += 1;
        if self.told_at.is_some_and(|at| now.abs_diff(at) < TELL) {
            return Err(None);
        }
        self.told_at = Some(now);
        Err(Some(std::mem::take(&mut self.refused)))
    }
}

impl Class {
    fn new(rate: Rate) -> Self {
        Self {
            rate,
            table: Mutex::default(),
        }
    }

    fn take(&self, key: Key, now: u64) -> Result<(), Option<u64>> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = table.callers.get_mut(&key) {
            return bucket.take(self.rate, now);
        }
        // Not with every newcomer: it looks at all.
        if table.callers.len() >= CALLERS && table.swept_at != now {
            table.swept_at = now;
            table.callers.retain(|_, bucket| !bucket.is_full(self.rate, now));
        }
        let fresh = Bucket::full(self.rate, now);
        if table.callers.len() >= CALLERS {
            return table.rest.get_or_insert(fresh).take(self.rate, now);
        }
        table.callers.entry(key).or_insert(fresh).take(self.rate, now)
    }
}

impl Limiter {
    /// For members of the mesh (services, nodes, operators, the local socket) and for all others.
    pub fn new(clock: Clock, members: Rate, strangers: Rate) -> Self {
        Self::on_refused(clock, members, strangers, |_| ())
    }

    /// The same; `told` hears of each caller that is refused, at most once a minute.
    pub fn on_refused(
        clock: Clock,
        members: Rate,
        strangers: Rate,
        told: impl Fn(Limited) + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            clock,
            members: Class::new(members),
            strangers: Class::new(strangers),
            told: Box::new(told),
        }))
    }

    /// One call, or the refusal.
    pub(crate) fn ask(&self, caller: &Caller, from: Option<IpAddr>, method: &str) -> Result<(), Status> {
        let (class, key) = self.place(caller, from);
        let now = self.0.clock.unix_seconds();
        let Err(told) = class.take(key, now) else {
            return Ok(());
        };
        let from = from.filter(|_| *caller == Caller::Anonymous);
        if let Some(refused) = told {
            tracing::warn!(%caller, ?from, method, refused, "calls refused: the caller asks too often");
            (self.0.told)(Limited {
                caller: caller.clone(),
                from,
                method: method.to_owned(),
                refused,
            });
        }
        let who = from.map_or_else(|| caller.to_string(), |from| from.to_string());
        let Rate { burst, per_second } = class.rate;
        let text = format!(
            "{who} asks too often: {burst} calls at once and then {per_second} per second are answered; ask \
             again in a second"
        );
        let refusal = Refusal::new(Code::ResourceExhausted, "RATE_LIMITED", RPC_DOMAIN, text);
        Err(refusal.quota(&who).retry_after(Duration::from_secs(1)).into())
    }

    fn place(&self, caller: &Caller, from: Option<IpAddr>) -> (&Class, Key) {
        let inner = &*self.0;
        match caller {
            Caller::Local { uid } => (&inner.members, Key::Local(*uid)),
            Caller::Tls(peer) => {
                let class = match peer.id.principal() {
                    Principal::Service(_) | Principal::Node(_) | Principal::Admin(_) => &inner.members,
                    Principal::Workload { .. } | Principal::ServiceAccount { .. } | Principal::Other => {
                        &inner.strangers
                    }
                };
                (class, Key::Id(peer.id.to_string()))
            }
            Caller::Anonymous | Caller::Loopback => {
                let address = from.unwrap_or(IpAddr::from([0, 0, 0, 0]));
                (&inner.strangers, Key::Address(block(address)))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tonic_types::StatusExt as _;
    use weft_tls::{ManualClock, PeerIdentity};

    const MEMBERS: Rate = Rate {
        burst: 10,
        per_second: 2,
    };
    const STRANGERS: Rate = Rate {
        burst: 3,
        per_second: 1,
    };

    fn peer(path: &str) -> Caller {
        Caller::Tls(PeerIdentity {
            id: format!("spiffe://td{path}").parse().unwrap(),
            serial: "1".into(),
            node: None,
            not_before: 0,
            not_after: 1,
        })
    }

    struct Rig {
        clock: ManualClock,
        limiter: Limiter,
        told: Arc<Mutex<Vec<u64>>>,
    }

    impl Rig {
        fn new() -> Self {
            let (clock, told) = (ManualClock::at(1000), Arc::new(Mutex::new(Vec::new())));
            let heard = told.clone();
            let limiter = Limiter::on_refused(clock.shared(), MEMBERS, STRANGERS, move |limited| {
                heard.lock().unwrap().push(limited.refused);
            });
            Self { clock, limiter, told }
        }

        /// How many of so many calls are answered.
        fn answered(&self, caller: &Caller, from: [u8; 4], calls: usize) -> usize {
            let from = Some(IpAddr::from(from));
            (0..calls)
                .filter(|_| self.limiter.ask(caller, from, "/p.S/M").is_ok())
                .count()
        }
    }

    #[test]
    fn a_burst_is_answered_and_then_a_rate() {
        let rig = Rig::new();
        let node = peer("/weft/node/n1");
        assert_eq!(rig.answered(&node, [10, 0, 0, 1], 50), 10);
        let status = rig.limiter.ask(&node, None, "/p.S/M").unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "RATE_LIMITED");
        assert_eq!(
            details.retry_info().unwrap().retry_delay,
            Some(Duration::from_secs(1))
        );
        assert_eq!(
            details.quota_failure().unwrap().violations[0].subject,
            "spiffe://td/weft/node/n1"
        );
        // As long as it was told to wait.
        rig.clock.advance(Duration::from_secs(1));
        assert_eq!(rig.answered(&node, [10, 0, 0, 1], 50), 2);
        rig.clock.advance(Duration::from_secs(1000));
        assert_eq!(
            rig.answered(&node, [10, 0, 0, 1], 50),
            10,
            "no more than a burst is kept"
        );
        // A clock that goes back gives nothing away, and holds up nobody for ever.
        rig.clock.set(500);
        assert_eq!(rig.answered(&node, [10, 0, 0, 1], 50), 0);
        rig.clock.advance(Duration::from_secs(2));
        assert_eq!(rig.answered(&node, [10, 0, 0, 1], 50), 4);
    }

    #[test]
    fn callers_do_not_share() {
        let rig = Rig::new();
        let here = [10, 0, 0, 1];
        assert_eq!(rig.answered(&peer("/weft/node/n1"), here, 50), 10);
        assert_eq!(rig.answered(&peer("/weft/node/n2"), here, 50), 10);
        assert_eq!(rig.answered(&Caller::Local { uid: 0 }, here, 50), 10);
        assert_eq!(rig.answered(&peer("/ns/default/cart"), here, 50), 3);
        // Known by the address alone.
        assert_eq!(rig.answered(&Caller::Anonymous, here, 50), 3);
        assert_eq!(rig.answered(&Caller::Anonymous, here, 50), 0);
        assert_eq!(rig.answered(&Caller::Anonymous, [10, 0, 0, 2], 50), 3);
    }

    #[test]
    fn the_table_is_bounded_and_members_keep_their_places() {
        let rig = Rig::new();
        let fill = |from: usize| {
            (from..from + CALLERS).for_each(|i| {
                rig.answered(&peer(&format!("/ns/default/a{i}")), [10, 0, 0, 1], 1);
            });
        };
        let size = || rig.limiter.0.strangers.table.lock().unwrap().callers.len();
        fill(0);
        assert_eq!(size(), CALLERS);
        // All of them have asked just now: newcomers share.
        assert_eq!(rig.answered(&peer("/ns/default/b1"), [10, 0, 0, 1], 2), 2);
        assert_eq!(rig.answered(&peer("/ns/default/b2"), [10, 0, 0, 1], 2), 1);
        assert_eq!(size(), CALLERS);
        assert_eq!(rig.answered(&peer("/weft/node/n1"), [10, 0, 0, 1], 50), 10);
        // Who has everything left again is forgotten.
        rig.clock.advance(Duration::from_secs(1));
        assert_eq!(rig.answered(&peer("/ns/default/b3"), [10, 0, 0, 1], 50), 3);
        assert_eq!(size(), 1);
    }

    #[test]
    fn a_flood_is_told_of_once_a_minute() {
        let rig = Rig::new();
        rig.answered(&Caller::Anonymous, [10, 0, 0, 1], 100);
        assert_eq!(*rig.told.lock().unwrap(), [1]);
        rig.clock.advance(Duration::from_secs(TELL - 1));
        rig.answered(&Caller::Anonymous, [10, 0, 0, 1], 100);
        assert_eq!(*rig.told.lock().unwrap(), [1]);
        rig.clock.advance(Duration::from_secs(1));
        rig.answered(&Caller::Anonymous, [10, 0, 0, 1], 5);
        assert_eq!(rig.told.lock().unwrap()[1..], [96 + 97 + 1]);
    }
}
