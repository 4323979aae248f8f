//! What the core knows of one node's stream: what the node holds and what it has yet to be told.
//!
//! Nothing is queued. A node that reads slowly has a set of names of tables that changed; when it
//! reads again it gets one delta per table, or the whole table, however many changes there were.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};
use tokio::sync::Notify;
use weft_placement_client::wire;
use weft_placement_protocol::{Placement, TypeKey};
use weft_proto::weft::placement::v1::{self as pb, join_response::Message};

/// Tables are collected for one pull until their messages are about this long.
const PULL_BYTES: usize = 64 * 1024;
/// Refusals that wait for a node that does not read; further ones are only logged.
const MAX_REFUSED: usize = 256;

#[derive(Debug)]
pub(crate) struct Session {
    pub number: u64,
    pub wake: Arc<Notify>,
    welcome: Option<pb::Welcome>,
    /// Version of each table that the node has, as far as it was sent.
    held: HashMap<TypeKey, u64>,
    stale: BTreeSet<TypeKey>,
    renewed: Option<u64>,
    refused: BTreeMap<String, String>,
}

impl Session {
    pub fn new(
        number: u64,
        welcome: pb::Welcome,
        held: HashMap<TypeKey, u64>,
        placement: &Placement,
    ) -> Self {
        // What the node holds and the service does not know is stale too.
        let stale = placement.tables().keys().chain(held.keys()).cloned().collect();
        let session = Self {
            number,
            wake: Arc::new(Notify::new()),
            welcome: Some(welcome),
            held,
            stale,
            // The hello counts as number 0.
            renewed: Some(0),
            refused: BTreeMap::new(),
        };
        session.wake.notify_one();
        session
    }

    pub fn changed<'a>(&mut self, types: impl Iterator<Item = &'a TypeKey>) {
        self.stale.extend(types.cloned());
        self.wake.notify_one();
    }

    pub fn renewed(&mut self, sequence: u64) {
        self.renewed = Some(sequence);
        self.wake.notify_one();
    }

    pub fn refused(&mut self, id: String, reason: String) {
        if self.refused.len() < MAX_REFUSED {
            self.refused.insert(id, reason);
            self.wake.notify_one();
        }
    }

    /// The next messages; none when the node has been told everything. `tables` says whether it may
    /// be told of tables now. The answer to a renewal waits until there is nothing else to tell: who has
    /// it knows all that was there before.
    pub fn pull(&mut self, placement: &Placement, tables: bool) -> Vec<pb::JoinResponse> {
        let mut messages: Vec<Message> = self.welcome.take().map(Message::Welcome).into_iter().collect();
        let refused = std::mem::take(&mut self.refused).into_iter();
        messages.extend(refused.map(|(id, reason)| Message::Refused(pb::Refused { id, reason })));
        let mut bytes = 0;
        while tables && bytes < PULL_BYTES {
            let Some(key) = self.stale.pop_first() else { break };
            if let Some((message, size)) = self.table(placement, key) {
                bytes += size;
                messages.push(message);
            }
        }
        if self.stale.is_empty() {
            let renewed = self.renewed.take();
            messages.extend(renewed.map(|sequence| Message::Renewed(pb::Renewed { sequence })));
        }
        messages
            .into_iter()
            .map(|message| pb::JoinResponse {
                message: Some(message),
            })
            .collect()
    }

    /// What brings the node's copy of one table up to date, and about how long that is.
    fn table(&mut self, placement: &Placement, key: TypeKey) -> Option<(Message, usize)> {
        let table = placement.tables().get(&key);
        let held = self.held.get(&key).copied();
        let version = table.map_or(0, |t| t.version());
        let Some(table) = table.filter(|t| !t.is_empty()) else {
            self.held.remove(&key)?;
            let gone = pb::TableGone {
                namespace: key.namespace.to_string(),
                actor_type: key.actor_type.to_string(),
                version,
            };
            return Some((Message::Gone(gone), 64));
        };
        if held == Some(version) {
            return None;
        }
        let delta = held.and_then(|from| table.delta(from));
        let (message, size) = match delta {
            Some(delta) => {
                let size = delta.moves.len() * 24 + delta.hosts_up.len() * 128 + delta.hosts_down.len() * 32;
                (Message::Delta(wire::delta_message(&key, &delta)), size)
            }
            None => {
                let whole = table.snapshot()?;
                let size = whole.owners.len() * 10 + whole.hosts.len() * 128;
                (Message::Table(wire::table_message(&key, &whole)), size)
            }
        };
        self.held.insert(key, version);
        Some((message, size))
    }
}
