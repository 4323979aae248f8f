//! Which members follow the bundle here, and which version each has said to verify by.

use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::Notify;

#[derive(Debug)]
struct Follower {
    name: String,
    acked: u64,
}

#[derive(Debug, Default)]
struct Inner {
    followers: Mutex<BTreeMap<u64, Follower>>,
    changed: Notify,
}

/// The followers of this process. Clones share.
#[derive(Debug, Clone, Default)]
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
    /// The oldest version that one of them verifies by; the present one when there are none.
    pub min_acked: u64,
    /// One that has not acknowledged the present version.
    pub lagging: Option<String>,
}

impl Acks {
    /// Counts a member that holds version `held`.
    pub fn follow(&self, name: String, held: u64) -> Following {
        let id = rand::random::<u64>().max(1);
        let follower = Follower { name, acked: held };
        self.0.followers.lock().insert(id, follower);
        Following {
            acks: self.clone(),
            id,
        }
    }

    /// Notes what a member says. False when it has no such stream.
    pub fn ack(&self, id: u64, name: &str, version: u64) -> bool {
        let mut followers = self.0.followers.lock();
        let Some(follower) = followers.get_mut(&id).filter(|f| f.name == name) else {
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
        let slowest = followers.values().min_by_key(|f| f.acked);
        Standing {
            members: followers.len(),
            // A member may hold more than we know: of a restored database.
            min_acked: slowest.map_or(present, |f| f.acked.min(present)),
            lagging: slowest.filter(|f| f.acked < present).map(|f| f.name.clone()),
        }
    }

    /// Waits for the next acknowledgement or the end of a stream.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.acks.0.followers.lock().remove(&self.id);
        self.acks.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_counts_as_long_as_it_is_there() {
        let acks = Acks::default();
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
        assert_eq!(
            acks.standing(4),
            Standing {
                members: 1,
                min_acked: 4,
                lagging: None
            }
        );
        assert!(acks.ack(fast.id, "n1", 9));
        assert_eq!(acks.standing(4).min_acked, 4);
    }
}
