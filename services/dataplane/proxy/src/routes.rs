//! The tables of all parents, kept as the policy service says.
//!
//! Owns which route is attached where. One writer; a change costs the tables of the parents that it
//! touches, and swaps each in one step. Connections hold the [`Slot`] of their parent, so the next
//! request on them takes the new table.

use crate::convert::{self, Attachment, Parent};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};
use weft_proto::weft::policy::v1 as pb;
use weft_route::{RouteTable, spec::Route};

/// Most routes that are held: several times what the largest published benchmark of gateways uses.
const MAX_ROUTES: usize = 50_000;

/// The routes of one parent, as they are now.
#[derive(Debug, Default)]
pub struct Slot(ArcSwapOption<Tables>);

#[derive(Debug)]
struct Tables {
    any: Arc<RouteTable>,
    /// Of ports that have routes of their own, with those for all ports.
    ports: HashMap<u16, Arc<RouteTable>>,
}

impl Slot {
    /// The routes of a port; `None` when the parent has none there.
    pub fn table(&self, port: u16) -> Option<Arc<RouteTable>> {
        let tables = self.0.load();
        let tables = tables.as_ref()?;
        let table = tables.ports.get(&port).unwrap_or(&tables.any);
        (!table.is_empty()).then(|| table.clone())
    }
}

#[derive(Debug, Default)]
struct Held {
    /// Where each route is attached, by its key.
    routes: BTreeMap<String, Vec<Attachment>>,
    /// Which routes each parent has.
    parents: HashMap<Parent, BTreeSet<String>>,
    slots: HashMap<Parent, Arc<Slot>>,
}

/// The tables.
#[derive(Debug, Default)]
pub struct Routes(Mutex<Held>);

impl Routes {
    /// Applies an update: all there is (`snapshot`) or what changed. A route that can not be used is
    /// named and stays as it was before. Answers the problems, and the Services (`<namespace>/<name>`)
    /// that got their first route or lost their last.
    pub(crate) fn apply<'a>(
        &self,
        snapshot: bool,
        upserts: impl Iterator<Item = (&'a str, &'a pb::Route)>,
        removes: impl Iterator<Item = &'a str>,
    ) -> (Vec<String>, BTreeSet<String>) {
        // Read before the lock is taken.
        let read: Vec<_> = upserts.map(|(key, route)| (key, convert::read(route))).collect();
        let (mut problems, mut services) = (Vec::new(), BTreeSet::new());
        let mut touched = BTreeSet::new();
        let mut held = self.0.lock();
        let gone: Vec<String> = match snapshot {
            true => {
                let named: BTreeSet<&str> = read.iter().map(|(key, _)| *key).collect();
                let keys = held.routes.keys();
                keys.filter(|key| !named.contains(key.as_str()))
                    .cloned()
                    .collect()
            }
            false => removes.map(str::to_owned).collect(),
        };
        for key in gone {
            held.remove(&key, &mut touched);
        }
        for (key, read) in read {
            match read {
                Ok(_) if !held.routes.contains_key(key) && held.routes.len() >= MAX_ROUTES => {
                    let problem = format!("route {key}: more than {MAX_ROUTES} routes");
                    problems.push(problem);
                }
                Ok(attachments) => held.put(key, attachments, &mut touched),
                Err(error) => problems.push(error.to_string()),
            }
        }
        for parent in touched {
            let had = held
                .slots
                .get(&parent)
                .is_some_and(|slot| slot.0.load().is_some());
            if let Err(problem) = held.rebuild(&parent) {
                problems.push(problem);
            }
            let has = held.parents.contains_key(&parent);
            if let Parent::Service { namespace, name } = &parent
                && had != has
            {
                services.insert(format!("{namespace}/{name}"));
            }
        }
        let unused = |slot: &Arc<Slot>| Arc::strong_count(slot) == 1 && slot.0.load().is_none();
        held.slots.retain(|_, slot| !unused(slot));
        (problems, services)
    }

    /// Whether a Service has routes.
    pub fn has_service(&self, namespace: &str, name: &str) -> bool {
        let parent = Parent::Service {
            namespace: namespace.into(),
            name: name.into(),
        };
        self.0.lock().parents.contains_key(&parent)
    }

    /// The routes of a Service, now and as they change.
    pub fn service(&self, namespace: &str, name: &str) -> Arc<Slot> {
        self.slot(Parent::Service {
            namespace: namespace.into(),
            name: name.into(),
        })
    }

    /// The routes of a gateway's listener, now and as they change.
    pub fn listener(&self, namespace: &str, gateway: &str, listener: &str) -> Arc<Slot> {
        self.slot(Parent::Listener {
            namespace: namespace.into(),
            gateway: gateway.into(),
            listener: listener.into(),
        })
    }

    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.0.lock().routes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn slot(&self, parent: Parent) -> Arc<Slot> {
        self.0.lock().slots.entry(parent).or_default().clone()
    }
}

impl Held {
    fn put(&mut self, key: &str, attachments: Vec<Attachment>, touched: &mut BTreeSet<Parent>) {
        self.remove(key, touched);
        for attachment in &attachments {
            let parent = attachment.parent.clone();
            self.parents
                .entry(parent.clone())
                .or_default()
                .insert(key.to_owned());
            touched.insert(parent);
        }
        self.routes.insert(key.to_owned(), attachments);
    }

    fn remove(&mut self, key: &str, touched: &mut BTreeSet<Parent>) {
        for attachment in self.routes.remove(key).unwrap_or_default() {
            if let Some(keys) = self.parents.get_mut(&attachment.parent) {
                keys.remove(key);
                if keys.is_empty() {
                    self.parents.remove(&attachment.parent);
                }
            }
            touched.insert(attachment.parent);
        }
    }

    /// Makes a parent's tables anew. One that is too large stays as it was.
    fn rebuild(&mut self, parent: &Parent) -> Result<(), String> {
        let keys = self.parents.get(parent).into_iter().flatten();
        let attached: Vec<&Attachment> = keys
            .filter_map(|key| self.routes.get(key))
            .flatten()
            .filter(|attachment| attachment.parent == *parent)
            .collect();
        if attached.is_empty() {
            if let Some(slot) = self.slots.get(parent) {
                slot.0.store(None);
            }
            return Ok(());
        }
        let table = |port: Option<u16>| {
            let routes = attached.iter().filter(|a| a.port.is_none() || a.port == port);
            let routes: Vec<Arc<Route>> = routes.map(|a| a.route.clone()).collect();
            RouteTable::new(&routes)
                .map(Arc::new)
                .map_err(|e| format!("{}: {e}", parent.text()))
        };
        let numbers: BTreeSet<u16> = attached.iter().filter_map(|a| a.port).collect();
        let ports = numbers.into_iter().map(|port| Ok((port, table(Some(port))?)));
        let tables = Tables {
            any: table(None)?,
            ports: ports.collect::<Result<_, String>>()?,
        };
        let slot = self.slots.entry(parent.clone()).or_default();
        slot.0.store(Some(Arc::new(tables)));
        Ok(())
    }
}

impl Parent {
    fn text(&self) -> String {
        match self {
            Self::Service { namespace, name } => format!("Service {namespace}/{name}"),
            Self::Listener {
                namespace,
                gateway,
                listener,
            } => format!("listener {listener} of Gateway {namespace}/{gateway}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "routes_tests.rs"]
mod tests;
