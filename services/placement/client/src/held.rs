//! What the node holds of the service: its epoch and its tables.

use crate::{
    Tables,
    wire::{self, WireError},
};
use arc_swap::ArcSwap;
use std::{collections::HashMap, sync::Arc};
use weft_placement_protocol::{HostInfo, TableView, TypeKey, ViewError};
use weft_proto::weft::placement::v1 as pb;

/// Why a message of the service can not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeldError {
    #[error("{key}: {source}")]
    View { key: TypeKey, source: ViewError },
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("{0}: a delta for a table that is not held")]
    NotHeld(TypeKey),
}

impl HeldError {
    /// The table to ask for again as a whole.
    fn key(&self) -> Option<&TypeKey> {
        match self {
            Self::View { key, .. } => Some(key),
            Self::Wire(_) | Self::NotHeld(_) => None,
        }
    }
}

/// The node's copy of everything; one task owns it, readers see `shared`.
#[derive(Debug, Default)]
pub(crate) struct Held {
    epoch: String,
    shared: Arc<ArcSwap<Tables>>,
    /// Every host once, however many tables it is in.
    hosts: HashMap<Arc<str>, Arc<HostInfo>>,
    /// Tables that did not take a delta: their versions are not told at the next hello.
    doubted: Vec<TypeKey>,
}

impl Held {
    pub fn new(shared: Arc<ArcSwap<Tables>>) -> Self {
        Self {
            shared,
            ..Self::default()
        }
    }

    /// Epoch and versions for the next hello.
    pub fn hello(&self) -> (String, Vec<pb::HeldTable>) {
        let held = |(key, view): (TypeKey, &Arc<TableView>)| pb::HeldTable {
            namespace: key.namespace.to_string(),
            actor_type: key.actor_type.to_string(),
            // Version 0 never was: the service answers with all of it, or that it is gone.
            version: if self.doubted.contains(&key) {
                0
            } else {
                view.version()
            },
        };
        (self.epoch.clone(), self.shared.load().iter().map(held).collect())
    }

    /// The service's epoch. With another one than before, nothing held means anything.
    pub fn welcome(&mut self, epoch: String) {
        if epoch != self.epoch {
            if !self.epoch.is_empty() {
                tracing::warn!(
                    old = self.epoch,
                    new = epoch,
                    "placement has a new database; tables start over"
                );
            }
            self.shared.store(Arc::default());
            self.hosts.clear();
            self.epoch = epoch;
        }
        self.doubted.clear();
    }

    pub fn table(&mut self, message: pb::Table) -> Result<(), HeldError> {
        let (key, mut snapshot) = wire::table(message)?;
        snapshot.hosts.iter_mut().for_each(|host| self.intern(host));
        let view = TableView::new(snapshot).map_err(|source| HeldError::View {
            key: key.clone(),
            source,
        });
        self.put(key, view)
    }

    pub fn delta(&mut self, message: pb::TableDelta) -> Result<(), HeldError> {
        let (key, mut delta) = wire::delta(message)?;
        delta.hosts_up.iter_mut().for_each(|host| self.intern(host));
        let tables = self.shared.load();
        let view = tables
            .get(&key.namespace, &key.actor_type)
            .ok_or_else(|| HeldError::NotHeld(key.clone()))?
            .apply(&delta)
            .map_err(|source| HeldError::View {
                key: key.clone(),
                source,
            });
        self.put(key, view)
    }

    pub fn gone(&mut self, key: &TypeKey) {
        let mut tables = Tables::clone(&self.shared.load());
        tables.remove(key);
        self.shared.store(Arc::new(tables));
    }

    fn put(&mut self, key: TypeKey, view: Result<TableView, HeldError>) -> Result<(), HeldError> {
        let view = view.inspect_err(|e| self.doubted.extend(e.key().cloned()))?;
        let mut tables = Tables::clone(&self.shared.load());
        tables.insert(key, Arc::new(view));
        self.shared.store(Arc::new(tables));
        Ok(())
    }

    fn intern(&mut self, host: &mut Arc<HostInfo>) {
        match self.hosts.get(&host.id) {
            Some(known) if known == host => *host = known.clone(),
            _ => {
                // Forget those that no table has, each time the number has doubled.
                if self.hosts.len().is_power_of_two() && self.hosts.len() >= 1024 {
                    self.hosts.retain(|_, host| Arc::strong_count(host) > 1);
                }
                self.hosts.insert(host.id.clone(), host.clone());
            }
        }
    }
}
