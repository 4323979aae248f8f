//! Which members follow the bundle here, and which version each has said to verify by.

use crate::{
    core::{Core, Decision},
    reason::Reason,
    refused::Refused,
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::Notify;
use weft_rpc::Caller;
use weft_tls::Clock;

/// A member whose stream broke goes on verifying by what it had, and is back in a moment. For so long
/// it is waited for, in seconds, as if it were here: several times a member's pause between two tries.
const MAY_RETURN: u64 = 10;

#[derive(Debug)]
struct Follower {
    name: String,
    acked: u64,
}

#[derive(Debug, Default)]
struct Followers {
    /// By stream.
    here: BTreeMap<u64, Follower>,
    /// By name: what it had acknowledged, and when its last stream ended (Unix seconds).
    gone: BTreeMap<String, (u64, u64)>,
}

impl Followers {
    /// Names and versions of all that count.
    fn counted(&self, now: u64) -> impl Iterator<Item = (&str, u64)> {
        let here = self.here.values().map(|f| (f.name.as_str(), f.acked));
        let gone = self.gone.iter();
        let gone = gone.filter(move |(_, (_, since))| now.saturating_sub(*since) < MAY_RETURN);
        here.chain(gone.map(|(name, (acked, _))| (name.as_str(), *acked)))
    }
}

#[derive(Debug)]
struct Inner {
    followers: Mutex<Followers>,
    changed: Notify,
    clock: Clock,
}

/// The followers of this process. Clones share.
#[derive(Debug, Clone)]
pub struct Acks(Arc<Inner>);

/// One follower's stream; it counts until this is dropped.
#[derive(Debug)]
pub struct Following {
    acks: Acks,
    /// Names the stream.
    pub id: u64,
}

/// What all followers together have acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// How many there are.
    pub members: usize,
    /// The oldest version that one of them, or one that left just now, verifies by; the present one when
    /// there are none.
    pub min_acked: u64,
    /// One that has not acknowledged the present version.
    pub lagging: Option<String>,
}

impl Acks {
    /// Nobody follows yet.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner {
            followers: Mutex::default(),
            changed: Notify::new(),
            clock,
        }))
    }

    /// Counts a member that holds version `held`.
    pub fn follow(&self, name: String, held: u64) -> Following {
        let id = rand::random::<u64>().max(1);
        let mut followers = self.0.followers.lock();
        followers.gone.remove(&name);
        followers.here.insert(id, Follower { name, acked: held });
        drop(followers);
        Following {
            acks: self.clone(),
            id,
        }
    }

    /// Notes what a member says. False when it has no such stream.
    pub fn ack(&self, id: u64, name: &str, version: u64) -> bool {
        let mut followers = self.0.followers.lock();
        let Some(follower) = followers.here.get_mut(&id).filter(|f| f.name == name) else {
            return false;
        };
        follower.acked = version.max(follower.acked);
        drop(followers);
        self.0.changed.notify_one();
        true
    }

    /// Where the followers stand while `present` is the version they were sent.
    pub fn standing(&self, present: u64) -> Standing {
        let followers = self.0.followers.lock();
        let slowest = followers
            .counted(self.0.clock.unix_seconds())
            .min_by_key(|(_, acked)| *acked);
        Standing {
            members: followers.here.len(),
            // A member may hold more than we know: of a restored database.
            min_acked: slowest.map_or(present, |(_, acked)| acked.min(present)),
            lagging: slowest
                .filter(|(_, acked)| *acked < present)
                .map(|(name, _)| name.to_owned()),
        }
    }

    /// Waits for the next acknowledgement or the end of a stream.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }
}

impl Core {
    /// Notes that a member verifies by a version of the bundle.
    pub(crate) async fn acknowledge(&self, caller: &Caller, watch_id: u64, version: u64) -> Decision<()> {
        let name = caller.spiffe_id().map(ToString::to_string).unwrap_or_default();
        if self.acks.ack(watch_id, &name, version) {
            return Ok(());
        }
        let text = "you have no such stream of the bundle here; it may have ended";
        let refused = Refused::missing(Reason::StreamUnknown, text).about("stream", &watch_id.to_string());
        let asked = self.asked("ack-bundle", caller, &name);
        self.or_record(&asked, Err(refused)).await
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let now = self.acks.0.clock.unix_seconds();
        let mut followers = self.acks.0.followers.lock();
        followers
            .gone
            .retain(|_, (_, since)| now.saturating_sub(*since) < MAY_RETURN);
        if let Some(Follower { name, acked }) = followers.here.remove(&self.id)
            && followers.here.values().all(|f| f.name != name)
        {
            followers.gone.insert(name, (acked, now));
        }
        drop(followers);
        self.acks.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use weft_tls::ManualClock;

    fn acks() -> (Acks, ManualClock) {
        let clock = ManualClock::at(1_000_000);
        (Acks::new(Arc::new(clock.clone())), clock)
    }

    #[test]
    fn the_slowest_counts_as_long_as_it_is_there() {
        let (acks, clock) = acks();
        assert_eq!(acks.standing(4).min_acked, 4);
        let fast = acks.follow("n1".into(), 4);
        let slow = acks.follow("n2".into(), 2);
        let standing = acks.standing(4);
        assert_eq!((standing.members, standing.min_acked), (2, 2));
        assert_eq!(standing.lagging.as_deref(), Some("n2"));
        assert!(!acks.ack(slow.id, "n1", 4), "another's stream");
        assert!(!acks.ack(0, "n2", 4), "no stream");
        assert_eq!(acks.standing(4).min_acked, 2);
        assert!(acks.ack(slow.id, "n2", 3));
        assert!(acks.ack(slow.id, "n2", 1), "said late, nothing is taken back");
        assert_eq!(acks.standing(4).min_acked, 3);
        drop(slow);
        let without = |members| Standing {
            members,
            min_acked: 4,
            lagging: None,
        };
        // Its stream broke, and what it verifies by did not change with that.
        let standing = acks.standing(4);
        assert_eq!((standing.members, standing.min_acked), (1, 3));
        assert_eq!(standing.lagging.as_deref(), Some("n2"));
        clock.advance(Duration::from_secs(MAY_RETURN));
        assert_eq!(acks.standing(4), without(1));
        assert!(acks.ack(fast.id, "n1", 9));
        assert_eq!(acks.standing(4).min_acked, 4);
    }

    #[test]
    fn who_is_back_counts_once_and_with_what_it_says() {
        let (acks, _) = acks();
        let before = acks.follow("n1".into(), 2);
        let beside = acks.follow("n1".into(), 3);
        drop(before);
        assert_eq!(acks.standing(4).min_acked, 3, "the other stream speaks for it");
        drop(beside);
        assert_eq!(acks.standing(4).min_acked, 3);
        let back = acks.follow("n1".into(), 4);
        assert_eq!(acks.standing(4).lagging, None);
        drop(back);
    }
}
