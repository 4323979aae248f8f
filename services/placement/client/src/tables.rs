//! All tables that a node holds, as one immutable value that readers share.

use std::{collections::HashMap, sync::Arc};
use weft_placement_protocol::{HostInfo, TableView, TypeKey};

/// Copies of all tables. Replaced as a whole by each change; what a reader holds stays as it is.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    // Two levels, so that a lookup borrows both names.
    namespaces: HashMap<Arc<str>, HashMap<Arc<str>, Arc<TableView>>>,
}

/// Where an actor lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The id's slot.
    pub slot: u32,
    /// The slot's epoch, which fences the owner's writes.
    pub epoch: u64,
    /// The owner.
    pub host: Arc<HostInfo>,
}

impl Tables {
    /// One type's table; `None` when no host runs the type.
    pub fn get(&self, namespace: &str, actor_type: &str) -> Option<&Arc<TableView>> {
        self.namespaces.get(namespace)?.get(actor_type)
    }

    /// Who owns an actor; `None` when nobody does, or the type is not known.
    pub fn lookup(&self, namespace: &str, actor_type: &str, actor_id: &str) -> Option<Placed> {
        let owner = self.get(namespace, actor_type)?.lookup(actor_id)?;
        Some(Placed {
            slot: owner.slot,
            epoch: owner.epoch,
            host: owner.host.clone(),
        })
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (TypeKey, &Arc<TableView>)> {
        self.namespaces.iter().flat_map(|(namespace, types)| {
            types.iter().map(|(actor_type, view)| {
                (
                    TypeKey {
                        namespace: namespace.clone(),
                        actor_type: actor_type.clone(),
                    },
                    view,
                )
            })
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.namespaces.values().map(HashMap::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
    }

    pub(crate) fn insert(&mut self, key: TypeKey, view: Arc<TableView>) {
        self.namespaces
            .entry(key.namespace)
            .or_default()
            .insert(key.actor_type, view);
    }

    pub(crate) fn remove(&mut self, key: &TypeKey) {
        if let Some(types) = self.namespaces.get_mut(&key.namespace) {
            types.remove(&key.actor_type);
            if types.is_empty() {
                self.namespaces.remove(&key.namespace);
            }
        }
    }
}
