//! Gateways: which listeners a port of a node, or the Service that was made for a gateway, has.
//!
//! Owns the join of gateways at one port: a request is for the listener with the most specific
//! hostname, and then for its routes only.

use crate::routes::{Routes, Slot};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};
use weft_proto::weft::policy::v1 as pb;
use weft_route::Hostname;

/// Most gateways, and listeners of one.
const MAX_GATEWAYS: usize = 10_000;
const MAX_LISTENERS: usize = 64;

/// The listeners at one port. What is there is swapped when gateways change.
#[derive(Debug, Default)]
pub struct Listeners(ArcSwap<Vec<Listener>>);

#[derive(Debug, Clone)]
struct Listener {
    hostname: Option<Hostname>,
    routes: Arc<Slot>,
}

impl Listeners {
    /// The routes for a host (in lower case, without port).
    pub(crate) fn for_host(&self, host: &str) -> Option<Arc<Slot>> {
        let all = self.0.load();
        let meant = |l: &&Listener| l.hostname.as_ref().is_none_or(|name| name.matches(host));
        // They are sorted, the most specific first.
        Some(all.iter().find(meant)?.routes.clone())
    }
}

/// A gateway as it was read.
#[derive(Debug)]
struct Gateway {
    namespace: String,
    service: String,
    /// Name, port, hostname.
    listeners: Vec<(String, u16, Option<Hostname>)>,
}

#[derive(Debug, Default)]
struct Held {
    gateways: BTreeMap<String, Gateway>,
    /// `<namespace>/<service>` of a gateway and its port; an empty name for ports of the node.
    ports: HashMap<(Arc<str>, u16), Arc<Listeners>>,
}

/// All gateways.
#[derive(Debug, Default)]
pub(crate) struct Gateways(Mutex<Held>);

impl Gateways {
    /// Applies an update; answers what of it can not be used.
    pub fn apply<'a>(
        &self,
        routes: &Routes,
        snapshot: bool,
        upserts: impl Iterator<Item = (&'a str, &'a pb::Gateway)>,
        removes: impl Iterator<Item = &'a str>,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        let read: Vec<_> = upserts.map(|(key, gateway)| (key, read(key, gateway))).collect();
        let mut held = self.0.lock();
        if snapshot {
            let named: BTreeSet<&str> = read.iter().map(|(key, _)| *key).collect();
            held.gateways.retain(|key, _| named.contains(key.as_str()));
        }
        for key in removes {
            held.gateways.remove(key);
        }
        for (key, read) in read {
            match read {
                Ok(_) if held.gateways.len() >= MAX_GATEWAYS && !held.gateways.contains_key(key) => {
                    problems.push(format!("gateway {key}: more than {MAX_GATEWAYS} gateways"));
                }
                Ok(gateway) => drop(held.gateways.insert(key.to_owned(), gateway)),
                Err(problem) => problems.push(problem),
            }
        }
        held.rebuild(routes);
        problems
    }

    /// The listeners at a port of the Service made for a gateway.
    pub fn of_service(&self, namespace: &str, service: &str, port: u16) -> Option<Arc<Listeners>> {
        let held = self.0.lock();
        let key = (Arc::from(format!("{namespace}/{service}")), port);
        held.ports.get(&key).cloned()
    }

    /// The Services that were made for gateways, as `<namespace>/<name>`.
    pub fn services(&self) -> BTreeSet<String> {
        let held = self.0.lock();
        let all = held.gateways.values();
        all.map(|g| format!("{}/{}", g.namespace, g.service)).collect()
    }

    /// Whether a Service was made for a gateway.
    pub fn has_service(&self, namespace: &str, service: &str) -> bool {
        let held = self.0.lock();
        let mut all = held.gateways.values();
        all.any(|g| g.namespace == namespace && g.service == service)
    }

    /// The ports that gateways want of each node.
    pub fn ports(&self) -> BTreeSet<u16> {
        let held = self.0.lock();
        let all = held.gateways.values().flat_map(|g| &g.listeners);
        all.map(|(_, port, _)| *port).collect()
    }

    /// All listeners at a port of the node, now and as they change.
    pub fn of_node(&self, port: u16) -> Arc<Listeners> {
        self.0
            .lock()
            .ports
            .entry((Arc::default(), port))
            .or_default()
            .clone()
    }
}

impl Held {
    fn rebuild(&mut self, routes: &Routes) {
        let mut all: HashMap<(Arc<str>, u16), Vec<Listener>> = HashMap::new();
        for (key, gateway) in &self.gateways {
            let (namespace, name) = key.split_once('/').unwrap_or_default();
            let service: Arc<str> = format!("{namespace}/{}", gateway.service).into();
            for (listener, port, hostname) in &gateway.listeners {
                let one = Listener {
                    hostname: hostname.clone(),
                    routes: routes.listener(namespace, name, listener),
                };
                for at in [service.clone(), Arc::default()] {
                    all.entry((at, *port)).or_default().push(one.clone());
                }
            }
        }
        for listeners in all.values_mut() {
            // Stable: of the same hostname, the gateway first in alphabetical order.
            listeners.sort_by_key(|l| rank(l.hostname.as_ref()));
        }
        for (key, listeners) in &self.ports {
            if !all.contains_key(key) {
                listeners.0.store(Arc::default());
            }
        }
        self.ports
            .retain(|key, there| all.contains_key(key) || Arc::strong_count(there) > 1);
        for (key, listeners) in all {
            let there = self.ports.entry(key).or_default();
            there.0.store(Arc::new(listeners));
        }
    }
}

/// Lower is more specific.
fn rank(hostname: Option<&Hostname>) -> (u8, std::cmp::Reverse<usize>) {
    match hostname {
        Some(Hostname::Exact(name)) => (0, std::cmp::Reverse(name.len())),
        Some(Hostname::Below(suffix)) => (1, std::cmp::Reverse(suffix.len())),
        None => (2, std::cmp::Reverse(0)),
    }
}

fn read(key: &str, wire: &pb::Gateway) -> Result<Gateway, String> {
    let problem = |what: &dyn std::fmt::Display| format!("gateway {key}: {what}");
    if key != format!("{}/{}", wire.namespace, wire.name) {
        return Err(problem(&"is named otherwise than its key"));
    }
    for name in [&wire.namespace, &wire.name, &wire.service] {
        weft_model::check_name(name).map_err(|e| problem(&e))?;
    }
    if wire.listeners.len() > MAX_LISTENERS {
        return Err(problem(&format!("more than {MAX_LISTENERS} listeners")));
    }
    let mut listeners = Vec::with_capacity(wire.listeners.len());
    for listener in &wire.listeners {
        let port = u16::try_from(listener.port).ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| problem(&format!("{} is no port", listener.port)))?;
        if listener.protocol != "HTTP" {
            let what = format!(
                "listener {}: {} is not served here",
                listener.name, listener.protocol
            );
            return Err(problem(&what));
        }
        let hostname = match listener.hostname.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|e: weft_route::HostnameError| problem(&e))?),
        };
        listeners.push((listener.name.clone(), port, hostname));
    }
    Ok(Gateway {
        namespace: wire.namespace.clone(),
        service: wire.service.clone(),
        listeners,
    })
}
