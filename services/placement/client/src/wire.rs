//! Between the protocol's types and the messages of `weft.placement.v1`. Everything that comes in
//! is checked: lengths here, meaning in [`weft_placement_protocol`].

use std::sync::Arc;
use weft_placement_protocol::{
    Delta, HostInfo, Move, Registration, SlotCount, SlotCountError, Snapshot, TypeKey,
};
use weft_proto::weft::placement::v1 as pb;

/// Hosts of one table, at most.
const MAX_HOSTS: usize = 100_000;

/// Why a message can not be a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// No legal number of slots.
    #[error(transparent)]
    Slots(#[from] SlotCountError),
    /// A list beyond any sense.
    #[error("{0} hosts in one message, {MAX_HOSTS} are allowed")]
    Hosts(usize),
}

/// A host as the node reports it.
pub fn registration(host: pb::Host) -> Registration {
    Registration {
        id: host.id,
        namespace: host.namespace,
        app_id: host.app_id,
        actor_types: host.actor_types,
        capacity: host.capacity,
        leaving: false,
    }
}

/// A report of a host.
pub fn registration_message(host: &Registration) -> pb::Host {
    pb::Host {
        id: host.id.clone(),
        namespace: host.namespace.clone(),
        app_id: host.app_id.clone(),
        actor_types: host.actor_types.clone(),
        capacity: host.capacity,
        node: String::new(),
    }
}

/// A host as everybody sees it, without its actor types.
pub fn host_message(host: &HostInfo) -> pb::Host {
    pb::Host {
        id: host.id.to_string(),
        namespace: host.namespace.to_string(),
        app_id: host.app_id.to_string(),
        actor_types: Vec::new(),
        capacity: host.capacity,
        node: host.node.to_string(),
    }
}

fn host(host: pb::Host) -> HostInfo {
    HostInfo {
        id: host.id.into(),
        namespace: host.namespace.into(),
        app_id: host.app_id.into(),
        node: host.node.into(),
        capacity: host.capacity.max(1),
    }
}

/// A whole table.
pub fn table_message(key: &TypeKey, table: &Snapshot) -> pb::Table {
    pb::Table {
        namespace: key.namespace.to_string(),
        actor_type: key.actor_type.to_string(),
        version: table.version,
        slots: table.slots.get(),
        hosts: table.hosts.iter().map(|h| host_message(h)).collect(),
        owners: table.owners.clone(),
        epochs: table.epochs.clone(),
    }
}

/// Reads a whole table.
pub fn table(message: pb::Table) -> Result<(TypeKey, Snapshot), WireError> {
    if message.hosts.len() > MAX_HOSTS {
        return Err(WireError::Hosts(message.hosts.len()));
    }
    let snapshot = Snapshot {
        version: message.version,
        slots: SlotCount::new(message.slots)?,
        hosts: message.hosts.into_iter().map(|h| Arc::new(host(h))).collect(),
        owners: message.owners,
        epochs: message.epochs,
    };
    Ok((TypeKey::new(&message.namespace, &message.actor_type), snapshot))
}

/// A change of a table.
pub fn delta_message(key: &TypeKey, delta: &Delta) -> pb::TableDelta {
    pb::TableDelta {
        namespace: key.namespace.to_string(),
        actor_type: key.actor_type.to_string(),
        from_version: delta.from,
        version: delta.version,
        hosts_up: delta.hosts_up.iter().map(|h| host_message(h)).collect(),
        hosts_down: delta.hosts_down.iter().map(|id| id.to_string()).collect(),
        moves: delta
            .moves
            .iter()
            .map(|m| pb::Move {
                slot: m.slot,
                owner: m.owner.as_deref().unwrap_or_default().to_owned(),
                epoch: m.epoch,
            })
            .collect(),
    }
}

/// Reads a change of a table.
pub fn delta(message: pb::TableDelta) -> Result<(TypeKey, Delta), WireError> {
    if message.hosts_up.len() > MAX_HOSTS {
        return Err(WireError::Hosts(message.hosts_up.len()));
    }
    let delta = Delta {
        from: message.from_version,
        version: message.version,
        hosts_up: message.hosts_up.into_iter().map(|h| Arc::new(host(h))).collect(),
        hosts_down: message.hosts_down.into_iter().map(Into::into).collect(),
        moves: message
            .moves
            .into_iter()
            .map(|m| Move {
                slot: m.slot,
                owner: (!m.owner.is_empty()).then(|| m.owner.into()),
                epoch: m.epoch,
            })
            .collect(),
    };
    Ok((TypeKey::new(&message.namespace, &message.actor_type), delta))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_placement_protocol::TableView;

    fn any_host() -> impl Strategy<Value = pb::Host> {
        ("[a-z/0-9]{0,6}", "[a-z]{1,3}", any::<u32>(), "[a-z]{0,3}").prop_map(
            |(id, namespace, capacity, node)| pb::Host {
                id,
                app_id: namespace.clone(),
                namespace,
                actor_types: Vec::new(),
                capacity,
                node,
            },
        )
    }

    fn any_move() -> impl Strategy<Value = pb::Move> {
        (any::<u32>(), "[a-z]{0,3}", any::<u64>()).prop_map(|(slot, owner, epoch)| pb::Move {
            slot,
            owner,
            epoch,
        })
    }

    proptest! {
        #[test]
        fn any_table_is_refused_or_sound_and_survives_the_way_back(
            slots in prop_oneof![Just(2u32), Just(4), any::<u32>()],
            hosts in prop::collection::vec(any_host(), 0..4),
            owners in prop::collection::vec(0u32..6, 0..5),
            epochs in prop::collection::vec(any::<u64>(), 0..5),
            version in any::<u64>(),
        ) {
            let message = pb::Table {
                namespace: "n".into(), actor_type: "T".into(), version, slots, hosts, owners, epochs,
            };
            if let Ok((key, snapshot)) = table(message) {
                let (again_key, again) = table(table_message(&key, &snapshot)).unwrap();
                prop_assert_eq!((again_key, &again), (key, &snapshot));
                if let Ok(view) = TableView::new(snapshot) {
                    let owned = (0..view.slots().get()).filter_map(|slot| view.slot(slot));
                    prop_assert!(owned.count() <= view.slots().len());
                }
            }
        }

        #[test]
        fn any_delta_survives_the_way_back(
            hosts_up in prop::collection::vec(any_host(), 0..4),
            hosts_down in prop::collection::vec("[a-z]{0,3}", 0..4),
            moves in prop::collection::vec(any_move(), 0..5),
            from_version in any::<u64>(),
            version in any::<u64>(),
        ) {
            let message = pb::TableDelta {
                namespace: "n".into(), actor_type: "T".into(), from_version, version, hosts_up, hosts_down, moves,
            };
            let (key, read) = delta(message).unwrap();
            prop_assert_eq!(delta(delta_message(&key, &read)).unwrap(), (key, read));
        }
    }
}
