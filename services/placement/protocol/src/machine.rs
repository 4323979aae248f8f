//! All of the service's state: nodes with their leases, hosts, and one table per actor type.
//!
//! Events come in ([`Placement::hello`], [`Placement::host_up`], …), then one
//! [`Placement::settle`] gives the slots of every type they touched to the hosts that are there
//! now. Many events before one settle cost one assignment.

use crate::{HostInfo, LEASE, PAUSE, Registration, SlotCount, Table, Time, TypeKey};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What one node, and all of them together, may register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Hosts of one node.
    pub hosts_per_node: usize,
    /// Actor types of one host.
    pub types_per_host: usize,
    /// Actor types of all namespaces, also those without hosts now: their epochs are kept.
    pub types: usize,
    /// Largest capacity of a host.
    pub capacity: u32,
    /// Longest id, app-id, namespace or type name in bytes.
    pub name_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hosts_per_node: 1000,
            types_per_host: 200,
            types: 20_000,
            capacity: 10_000,
            name_bytes: 253,
        }
    }
}

/// Why a host was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A name that is empty, too long or has control characters.
    #[error("{what} {value:?} must be 1 to {max} bytes without control characters or '/'")]
    Name {
        /// Which name.
        what: &'static str,
        /// Its beginning.
        value: String,
        /// The limit.
        max: usize,
    },
    /// Capacity beyond the limit.
    #[error("capacity {0} is above {1}")]
    Capacity(u32, u32),
    /// Another node registered the id.
    #[error("host {id} is registered by node {node}")]
    OtherNode {
        /// The id.
        id: String,
        /// Who has it.
        node: Arc<str>,
    },
    /// The node's hosts are too many.
    #[error("node already has {0} hosts, the most there may be")]
    Hosts(usize),
    /// The host's types are too many.
    #[error("host has {0} actor types, {1} are allowed")]
    HostTypes(usize, usize),
    /// All actor types together are too many.
    #[error("there are {0} actor types in all namespaces, the most there may be")]
    Types(usize),
    /// The node has no lease.
    #[error("node {0} has no lease: it must say hello first")]
    NoLease(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    expires: Time,
    /// When it was last heard of.
    pub(crate) heard: Time,
    /// Whether it runs turns, and so must be asked to stop them.
    pub(crate) drains: bool,
    hosts: BTreeSet<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Host {
    number: u32,
    info: Arc<HostInfo>,
    types: BTreeSet<TypeKey>,
    leaving: bool,
}

/// A host as it is saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedHost {
    /// The number that saved slots refer to.
    pub number: u32,
    /// What everybody sees of it.
    pub info: HostInfo,
    /// Names of the actor types it runs, in its namespace.
    pub actor_types: Vec<String>,
}

/// A table as it is saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedTable {
    /// Whose table it is.
    pub key: TypeKey,
    /// Number of slots.
    pub slots: SlotCount,
    /// Version.
    pub version: u64,
    /// [`Table::floor`].
    pub floor: u64,
    /// Per slot the owner's number and the epoch; empty without hosts.
    pub owners: Vec<(u32, u64)>,
}

/// All that is saved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// Hosts.
    pub hosts: Vec<SavedHost>,
    /// Tables.
    pub tables: Vec<SavedTable>,
}

/// What a settle changed: to be saved before anybody is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Settled {
    /// Types whose version rose.
    pub types: BTreeSet<TypeKey>,
    /// Types of which other slots than before are to be handed over: not saved, but told.
    pub moving: BTreeSet<TypeKey>,
    /// Hosts that came, changed or left.
    pub hosts: BTreeSet<Arc<str>>,
}

impl Settled {
    /// Whether there is nothing to save and nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.types.is_empty() && self.hosts.is_empty() && self.moving.is_empty()
    }

    /// Adds what another settle changed.
    pub fn merge(&mut self, other: Self) {
        self.types.extend(other.types);
        self.moving.extend(other.moving);
        self.hosts.extend(other.hosts);
    }
}

/// How many slots of one type a host owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The host.
    pub host: Arc<HostInfo>,
    /// The type.
    pub key: TypeKey,
    /// How many slots.
    pub slots: u32,
}

/// The whole state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Placement {
    limits: Limits,
    slots: SlotCount,
    /// Epochs of new types begin above this.
    epoch_base: u64,
    pub(crate) now: Time,
    pub(crate) nodes: BTreeMap<Arc<str>, Node>,
    hosts: BTreeMap<Arc<str>, Host>,
    pub(crate) tables: BTreeMap<TypeKey, Table>,
    last_number: u32,
    touched: Settled,
}

impl Placement {
    /// Empty. New types get `slots` slots and epochs above `epoch_base`.
    pub fn new(limits: Limits, slots: SlotCount, epoch_base: u64, now: Time) -> Self {
        Self {
            limits,
            slots,
            epoch_base,
            now,
            nodes: BTreeMap::new(),
            hosts: BTreeMap::new(),
            tables: BTreeMap::new(),
            last_number: 0,
            touched: Settled::default(),
        }
    }

    /// As it was saved. Every node has a full lease from now on to come back in; until then, its
    /// hosts keep their slots.
    pub fn restore(limits: Limits, slots: SlotCount, epoch_base: u64, now: Time, saved: Saved) -> Self {
        let mut all = Self::new(limits, slots, epoch_base, now);
        let mut members: BTreeMap<TypeKey, Vec<(u32, Arc<HostInfo>)>> = BTreeMap::new();
        for SavedHost {
            number,
            info,
            actor_types,
        } in saved.hosts
        {
            let info = Arc::new(info);
            let types: BTreeSet<_> = actor_types
                .iter()
                .map(|t| TypeKey::new(&info.namespace, t))
                .collect();
            for key in &types {
                members
                    .entry(key.clone())
                    .or_default()
                    .push((number, info.clone()));
            }
            let expires = now + LEASE;
            let node = all.nodes.entry(info.node.clone()).or_insert(Node {
                expires,
                heard: now,
                // Not known yet: better ask in vain than move what runs.
                drains: true,
                hosts: BTreeSet::new(),
            });
            node.hosts.insert(info.id.clone());
            all.last_number = all.last_number.max(number);
            let host = Host {
                number,
                info: info.clone(),
                types,
                leaving: false,
            };
            all.hosts.insert(info.id.clone(), host);
        }
        for SavedTable {
            key,
            slots,
            version,
            floor,
            owners,
        } in saved.tables
        {
            let hosts = members.remove(&key).unwrap_or_default();
            all.touched.types.insert(key.clone());
            all.tables
                .insert(key, Table::restore(slots, version, floor, hosts, &owners));
        }
        // Hosts whose table is missing get one now.
        for (key, hosts) in members {
            let mut table = Table::new(slots, epoch_base);
            hosts
                .into_iter()
                .for_each(|(number, info)| table.join(number, info, false));
            all.touched.types.insert(key.clone());
            all.tables.insert(key, table);
        }
        all
    }

    /// Moves time on: hosts of nodes whose lease is over leave. Gives those nodes. To be called at
    /// least once per second: a longer gap is taken for a pause of the server itself.
    pub fn tick(&mut self, now: Time) -> Vec<Arc<str>> {
        let gap = now.since(self.now);
        self.now = self.now.max(now);
        if gap > PAUSE {
            for node in self.nodes.values_mut() {
                node.expires = node.expires + gap;
            }
        }
        let expired: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, n)| n.expires <= self.now)
            .map(|(name, _)| name.clone())
            .collect();
        for name in &expired {
            let Some(node) = self.nodes.remove(name) else {
                continue;
            };
            node.hosts.iter().for_each(|id| self.remove(id));
        }
        self.overdue();
        expired
    }

    /// A node came (back) with exactly these hosts; others of its name have left. Gives the hosts
    /// that were not taken.
    pub fn hello(&mut self, node: &str, hosts: Vec<Registration>) -> Vec<(String, Refusal)> {
        let expires = self.now + LEASE;
        let entry = self.nodes.entry(node.into()).or_insert_with(|| Node {
            expires,
            heard: self.now,
            drains: false,
            hosts: BTreeSet::new(),
        });
        entry.expires = entry.expires.max(expires);
        entry.heard = self.now;
        // Until it says that it does.
        entry.drains = false;
        let left: Vec<_> = entry
            .hosts
            .iter()
            .filter(|id| !hosts.iter().any(|h| h.id == ***id))
            .cloned()
            .collect();
        for id in left {
            self.host_down(node, &id);
        }
        self.replan();
        hosts
            .into_iter()
            .filter_map(|host| {
                let id = host.id.clone();
                self.host_up(node, host).err().map(|refusal| (id, refusal))
            })
            .collect()
    }

    /// Prolongs a node's lease. False if it has none: it must say hello again.
    pub fn renew(&mut self, node: &str) -> bool {
        let expires = self.now + LEASE;
        let now = self.now;
        let Some(node) = self.nodes.get_mut(node) else {
            return false;
        };
        node.expires = node.expires.max(expires);
        node.heard = now;
        true
    }

    /// A host is there, or has changed. If it is refused, what was registered before stays.
    pub fn host_up(&mut self, node: &str, host: Registration) -> Result<(), Refusal> {
        let types = self.check(node, &host)?;
        let info = Arc::new(HostInfo {
            id: host.id.into(),
            namespace: host.namespace.into(),
            app_id: host.app_id.into(),
            node: node.into(),
            capacity: host.capacity.max(1),
        });
        let leaving = host.leaving;
        let (number, before) = match self.hosts.get(&info.id) {
            Some(known) if known.info == info && known.types == types && known.leaving == leaving => {
                return Ok(());
            }
            Some(known) => (known.number, known.types.clone()),
            None => {
                self.last_number = self.last_number.wrapping_add(1).max(1);
                (self.last_number, BTreeSet::new())
            }
        };
        for key in before.difference(&types) {
            self.table(key).leave(number);
        }
        for key in &types {
            self.table(key).join(number, info.clone(), leaving);
        }
        self.touched.hosts.insert(info.id.clone());
        if let Some(node) = self.nodes.get_mut(node) {
            node.hosts.insert(info.id.clone());
        }
        let id = info.id.clone();
        let host = Host {
            number,
            info,
            types,
            leaving,
        };
        self.hosts.insert(id, host);
        Ok(())
    }

    fn check(&self, node: &str, host: &Registration) -> Result<BTreeSet<TypeKey>, Refusal> {
        let max = self.limits.name_bytes;
        let name = |what, value: &str| {
            let legal = !value.is_empty()
                && value.len() <= max
                && !value.contains(|c: char| c.is_control() || c == '/');
            if legal {
                return Ok(());
            }
            Err(Refusal::Name {
                what,
                value: value.chars().take(80).collect(),
                max,
            })
        };
        // Host ids are workload ids, whose form others decide.
        if host.id.is_empty() || host.id.len() > max || host.id.contains(char::is_control) {
            let value = host.id.chars().take(80).collect();
            return Err(Refusal::Name {
                what: "host id",
                value,
                max,
            });
        }
        name("namespace", &host.namespace)?;
        name("app-id", &host.app_id)?;
        if host.actor_types.len() > self.limits.types_per_host {
            return Err(Refusal::HostTypes(
                host.actor_types.len(),
                self.limits.types_per_host,
            ));
        }
        for actor_type in &host.actor_types {
            name("actor type", actor_type)?;
        }
        if host.capacity > self.limits.capacity {
            return Err(Refusal::Capacity(host.capacity, self.limits.capacity));
        }
        let entry = self
            .nodes
            .get(node)
            .ok_or_else(|| Refusal::NoLease(node.into()))?;
        match self.hosts.get(host.id.as_str()) {
            Some(known) if *known.info.node != *node => {
                return Err(Refusal::OtherNode {
                    id: host.id.clone(),
                    node: known.info.node.clone(),
                });
            }
            None if entry.hosts.len() >= self.limits.hosts_per_node => {
                return Err(Refusal::Hosts(entry.hosts.len()));
            }
            _ => {}
        }
        let types: BTreeSet<_> = host
            .actor_types
            .iter()
            .map(|t| TypeKey::new(&host.namespace, t))
            .collect();
        let new = types.iter().filter(|key| !self.tables.contains_key(*key)).count();
        if self.tables.len() + new > self.limits.types {
            return Err(Refusal::Types(self.tables.len()));
        }
        Ok(types)
    }

    /// The app is gone: its slots are free at once. False if the node has no such host.
    pub fn host_down(&mut self, node: &str, id: &str) -> bool {
        let known = self.nodes.get_mut(node).is_some_and(|node| node.hosts.remove(id));
        if known {
            self.remove(id);
        }
        known
    }

    fn remove(&mut self, id: &str) {
        let Some(host) = self.hosts.remove(id) else { return };
        for key in &host.types {
            self.table(key).leave(host.number);
        }
        self.touched.hosts.insert(host.info.id.clone());
    }

    pub(crate) fn touch(&mut self, key: &TypeKey) {
        self.touched.types.insert(key.clone());
    }

    fn table(&mut self, key: &TypeKey) -> &mut Table {
        self.touched.types.insert(key.clone());
        let (slots, base) = (self.slots, self.epoch_base);
        self.tables
            .entry(key.clone())
            .or_insert_with(|| Table::new(slots, base))
    }

    /// Assigns the slots of every type that was touched, and says what changed.
    pub fn settle(&mut self) -> Settled {
        let mut settled = std::mem::take(&mut self.touched);
        let nodes = &self.nodes;
        let drains = |host: &HostInfo| nodes.get(&host.node).is_some_and(|node| node.drains);
        let moving = &mut settled.moving;
        settled.types.retain(|key| {
            let change = self.tables.get_mut(key).map(|table| table.settle(drains));
            if change.is_some_and(|c| c.moving) {
                moving.insert(key.clone());
            }
            change.is_some_and(|c| c.version)
        });
        settled
    }

    /// The tables, also of types without hosts.
    pub fn tables(&self) -> &BTreeMap<TypeKey, Table> {
        &self.tables
    }

    /// Names of the nodes that have a lease.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Arc<str>> {
        self.nodes.keys()
    }

    /// Number of hosts.
    pub fn host_count(&self) -> usize {
        self.hosts.len()
    }

    /// A host as it is to be saved; `None` when it has left.
    pub fn saved_host(&self, id: &str) -> Option<SavedHost> {
        self.hosts.get(id).map(|host| SavedHost {
            number: host.number,
            info: (*host.info).clone(),
            actor_types: host.types.iter().map(|key| key.actor_type.to_string()).collect(),
        })
    }

    /// All that is saved.
    pub fn saved(&self) -> Saved {
        let table = |(key, table): (&TypeKey, &Table)| SavedTable {
            key: key.clone(),
            slots: table.slots(),
            version: table.version(),
            floor: table.floor(),
            owners: table
                .slots_raw()
                .map(|(owner, epoch, _)| (owner, epoch))
                .collect(),
        };
        Saved {
            hosts: self.hosts.keys().filter_map(|id| self.saved_host(id)).collect(),
            tables: self.tables.iter().map(table).collect(),
        }
    }

    /// Hosts and how many slots of each type they own, in one namespace or in all.
    pub fn shares(&self, namespace: Option<&str>) -> Vec<Share> {
        self.tables
            .iter()
            .filter(|(key, _)| namespace.is_none_or(|n| n == &*key.namespace))
            .flat_map(|(key, table)| {
                let share = |(host, slots): (&Arc<HostInfo>, u32)| Share {
                    host: host.clone(),
                    key: key.clone(),
                    slots,
                };
                table.shares().into_iter().map(share).collect::<Vec<_>>()
            })
            .collect()
    }
}
