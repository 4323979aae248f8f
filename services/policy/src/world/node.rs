//! What one node should have, what it was sent, and what it acknowledged.
//!
//! Memory per node is bounded by what the node should have: changes that a slow or absent node has not
//! taken yet are kept as keys, and the value is read when there is room to send it.

use super::{Key, Shared};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use weft_proto::weft::policy::v1 as pb;

/// Updates that may be on the way to a node without its answer.
pub(crate) const WINDOW: usize = 4;
/// Resources in one delta; more are sent as several, in order.
const MAX_DELTA: usize = 2_000;

/// The open stream of a node.
#[derive(Debug)]
pub(crate) struct Session {
    pub number: u64,
    pub updates: mpsc::Sender<pb::SubscribeResponse>,
    pub software: String,
    pub connected_at: std::time::SystemTime,
    /// Dropped with the session: tells the stream's reader that another one took over.
    pub _held: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Sent {
    version: u64,
    /// Absent for a snapshot.
    keys: Option<Vec<Key>>,
}

/// How far a node is in taking a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taking {
    /// Not sent yet.
    Queued,
    /// Sent with this version, not answered yet.
    Sent(u64),
}

/// How a node stands with what it should have at a key. What is worse comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Its stream ended.
    Away,
    /// It could not apply it.
    Refused,
    /// It has not confirmed it yet.
    Waiting,
    /// It confirmed it.
    Has,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Node {
    /// What it should have.
    pub desired: BTreeMap<Key, Shared>,
    /// Where `desired` may differ from what was sent.
    pending: BTreeSet<Key>,
    /// What it refused; sent again with the next change.
    refused: BTreeSet<Key>,
    in_flight: VecDeque<Sent>,
    version: u64,
    acked: u64,
    pub nack_reasons: Vec<String>,
    pub session: Option<Session>,
    /// When its stream ended.
    pub lost_at: Option<Instant>,
}

impl Node {
    /// Replaces what the node should have at one key.
    pub(crate) fn set(&mut self, key: &Key, wanted: Option<Shared>) {
        match wanted {
            Some(resource) => {
                if self.desired.get(key) != Some(&resource) {
                    self.desired.insert(key.clone(), resource);
                    self.pending.insert(key.clone());
                }
            }
            None => {
                if self.desired.remove(key).is_some() {
                    self.pending.insert(key.clone());
                }
            }
        }
    }

    /// Replaces all that the node should have.
    pub(crate) fn set_all(&mut self, wanted: BTreeMap<Key, Shared>) {
        let gone: Vec<Key> = self
            .desired
            .keys()
            .filter(|k| !wanted.contains_key(*k))
            .cloned()
            .collect();
        for key in gone {
            self.set(&key, None);
        }
        for (key, resource) in wanted {
            self.set(&key, Some(resource));
        }
    }

    /// Begins a stream. A node that says what it holds of this epoch goes on from there; any other one
    /// gets everything.
    pub(crate) fn connect(&mut self, session: Session, held: Option<u64>, epoch: &str) {
        self.session = Some(session);
        self.lost_at = None;
        let known = held.filter(|held| {
            *held != 0 && (*held == self.acked || self.in_flight.iter().any(|sent| sent.version == *held))
        });
        let Some(held) = known else {
            self.send_snapshot(epoch);
            return;
        };
        self.acked = self.acked.max(held);
        let mut all = false;
        for sent in std::mem::take(&mut self.in_flight) {
            if sent.version <= held {
                continue;
            }
            match sent.keys {
                Some(keys) => self.pending.extend(keys),
                None => all = true,
            }
        }
        self.pending.append(&mut self.refused);
        if all {
            self.send_snapshot(epoch);
        } else {
            self.flush(epoch);
        }
    }

    /// How far it is in taking what it should have at `key`; `None`: it has it, refused it, or is away.
    pub(crate) fn taking(&self, key: &Key) -> Option<Taking> {
        self.session.as_ref()?;
        if self.pending.contains(key) {
            return Some(Taking::Queued);
        }
        let with = |sent: &&Sent| sent.keys.as_ref().is_none_or(|keys| keys.contains(key));
        let sent = self.in_flight.iter().rev().find(with)?;
        Some(Taking::Sent(sent.version))
    }

    /// How it stands with what it should have at `key`.
    pub(crate) fn standing(&self, key: &Key) -> Standing {
        if self.session.is_none() {
            Standing::Away
        } else if self.refused.contains(key) {
            Standing::Refused
        } else if self.taking(key).is_some() || !self.desired.contains_key(key) {
            Standing::Waiting
        } else {
            Standing::Has
        }
    }

    /// Whether a version was sent on the present stream and not answered.
    pub(crate) fn is_in_flight(&self, version: u64) -> bool {
        self.session.is_some() && self.in_flight.iter().any(|sent| sent.version == version)
    }

    /// Whether its present stream is the one with this number.
    pub(crate) fn is_on(&self, number: u64) -> bool {
        self.session.as_ref().is_some_and(|s| s.number == number)
    }

    /// Ends the stream with this number, unless another one took its place.
    pub(crate) fn disconnect(&mut self, number: u64) {
        if self.is_on(number) {
            self.session = None;
            self.lost_at = Some(Instant::now());
        }
    }

    fn send_snapshot(&mut self, epoch: &str) {
        self.pending.clear();
        self.refused.clear();
        self.nack_reasons.clear();
        self.in_flight.clear();
        let upserts = self.desired.values().map(|r| (**r).clone()).collect();
        self.send(epoch, true, upserts, Vec::new(), None);
    }

    /// Sends what is pending, as far as the window allows.
    pub(crate) fn flush(&mut self, epoch: &str) {
        while self.session.is_some() && self.in_flight.len() < WINDOW && !self.pending.is_empty() {
            self.pending.append(&mut self.refused);
            // What others refer to comes first; what refers to others goes first.
            let (there, gone): (Vec<&Key>, Vec<&Key>) =
                self.pending.iter().partition(|k| self.desired.contains_key(*k));
            let keys: Vec<Key> = there
                .into_iter()
                .chain(gone.into_iter().rev())
                .take(MAX_DELTA)
                .cloned()
                .collect();
            let (mut upserts, mut removes) = (Vec::new(), Vec::new());
            for key in &keys {
                self.pending.remove(key);
                match self.desired.get(key) {
                    Some(resource) => upserts.push((**resource).clone()),
                    None => removes.push(key.to_wire()),
                }
            }
            self.send(epoch, false, upserts, removes, Some(keys));
        }
    }

    fn send(
        &mut self,
        epoch: &str,
        snapshot: bool,
        upserts: Vec<pb::Resource>,
        removes: Vec<pb::ResourceKey>,
        keys: Option<Vec<Key>>,
    ) {
        self.version += 1;
        let version = self.version;
        self.in_flight.push_back(Sent { version, keys });
        let update = pb::SubscribeResponse {
            version,
            epoch: epoch.to_owned(),
            snapshot,
            upserts,
            removes,
        };
        // The channel has room for the window, so this fails only when the stream is gone; then what is
        // in flight is sent again at the next one.
        let sent = self.session.as_ref().map(|s| s.updates.try_send(update));
        if !matches!(sent, Some(Ok(()))) {
            self.session = None;
            self.lost_at = Some(Instant::now());
        }
    }

    /// The node applied everything up to `version`.
    pub(crate) fn ack(&mut self, version: u64, epoch: &str) {
        if version > self.version {
            return;
        }
        self.acked = self.acked.max(version);
        self.in_flight.retain(|sent| sent.version > version);
        if self.refused.is_empty() {
            self.nack_reasons.clear();
        }
        self.flush(epoch);
    }

    /// The node could not apply `version` and stays at what it had.
    pub(crate) fn nack(&mut self, version: u64, mut reasons: Vec<String>, epoch: &str) {
        let Some(at) = self.in_flight.iter().position(|sent| sent.version == version) else {
            return;
        };
        let keys = self.in_flight.remove(at).and_then(|sent| sent.keys);
        match keys {
            Some(keys) => self.refused.extend(keys),
            None => self.refused.extend(self.desired.keys().cloned()),
        }
        reasons.truncate(20);
        for reason in &mut reasons {
            *reason = reason.chars().take(500).collect();
        }
        self.nack_reasons = reasons;
        self.flush(epoch);
    }

    pub(crate) fn status(&self, name: &str) -> pb::NodeStatus {
        let session = self.session.as_ref();
        pb::NodeStatus {
            node: name.to_owned(),
            sent_version: self.version,
            acked_version: self.acked,
            nack_reasons: self.nack_reasons.clone(),
            connected_at: session.map(|s| s.connected_at.into()),
            software: session.map(|s| s.software.clone()).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::world::Kind;
    use std::sync::Arc;

    fn key(name: &str) -> Key {
        Key {
            kind: Kind::Endpoint,
            name: name.into(),
        }
    }

    fn resource(name: &str, n: u32) -> Option<Shared> {
        let identity = pb::Identity {
            id: n,
            labels: Default::default(),
        };
        let body = Some(pb::resource::Body::Identity(identity));
        Some(Arc::new(pb::Resource {
            key: Some(key(name).to_wire()),
            body,
        }))
    }

    fn session(number: u64) -> (Session, mpsc::Receiver<pb::SubscribeResponse>) {
        let (updates, receiver) = mpsc::channel(WINDOW + 1);
        let connected_at = std::time::SystemTime::now();
        (
            Session {
                number,
                updates,
                software: String::new(),
                connected_at,
                _held: oneshot::channel().0,
            },
            receiver,
        )
    }

    fn names(update: &pb::SubscribeResponse) -> Vec<&str> {
        update
            .upserts
            .iter()
            .filter_map(|r| r.key.as_ref())
            .map(|k| k.name.as_str())
            .collect()
    }

    #[test]
    fn a_slow_node_gets_coalesced_state() {
        let mut node = Node::default();
        let (stream, mut updates) = session(1);
        node.connect(stream, None, "e");
        for n in 0..1000 {
            node.set(&key("a"), resource("a", n));
            node.flush("e");
        }
        let mut versions = Vec::new();
        while let Ok(update) = updates.try_recv() {
            versions.push(update.version);
        }
        assert_eq!(versions, [1, 2, 3, 4], "no more than the window is on the way");
        node.ack(4, "e");
        let last = updates.try_recv().unwrap();
        assert_eq!(last.upserts[0].body, resource("a", 999).unwrap().body);
        assert!(
            updates.try_recv().is_err(),
            "one update carries the last state only"
        );
    }

    #[test]
    fn a_node_that_comes_back_goes_on_where_it_was() {
        let mut node = Node::default();
        let (stream, mut updates) = session(1);
        node.set(&key("a"), resource("a", 1));
        node.connect(stream, None, "e");
        assert!(updates.try_recv().unwrap().snapshot);
        node.ack(1, "e");
        node.disconnect(1);
        node.set(&key("b"), resource("b", 1));
        node.flush("e");
        let (stream, mut updates) = session(2);
        node.connect(stream, Some(1), "e");
        let delta = updates.try_recv().unwrap();
        assert!(!delta.snapshot);
        assert_eq!(names(&delta), ["b"]);
        // Lost on the way: held is still 1, so it is sent again.
        let (stream, mut updates) = session(3);
        node.connect(stream, Some(1), "e");
        assert_eq!(names(&updates.try_recv().unwrap()), ["b"]);
        // Nothing new: nothing is sent.
        node.ack(3, "e");
        let (stream, mut updates) = session(4);
        node.connect(stream, Some(3), "e");
        assert!(updates.try_recv().is_err());
        // A version that was never sent is no version of ours.
        let (stream, mut updates) = session(5);
        node.connect(stream, Some(77), "e");
        assert!(updates.try_recv().unwrap().snapshot);
    }

    #[test]
    fn what_was_refused_comes_again_with_the_next_change() {
        let mut node = Node::default();
        let (stream, mut updates) = session(1);
        node.connect(stream, None, "e");
        node.ack(1, "e");
        node.set(&key("a"), resource("a", 1));
        node.flush("e");
        updates.try_recv().unwrap();
        assert_eq!(updates.try_recv().unwrap().version, 2);
        node.nack(2, vec!["no room".into()], "e");
        assert_eq!((node.acked, node.nack_reasons.len()), (1, 1));
        assert!(updates.try_recv().is_err(), "it was sent again without a change");
        node.set(&key("b"), resource("b", 1));
        node.flush("e");
        assert_eq!(names(&updates.try_recv().unwrap()), ["a", "b"]);
        node.ack(3, "e");
        assert!(node.nack_reasons.is_empty());
    }

    #[test]
    fn a_stream_that_was_replaced_does_not_end_the_new_one() {
        let mut node = Node::default();
        node.connect(session(1).0, None, "e");
        let (stream, _updates) = session(2);
        node.connect(stream, None, "e");
        node.disconnect(1);
        assert!(node.session.is_some());
        node.disconnect(2);
        assert!(node.session.is_none() && node.lost_at.is_some());
    }
}
