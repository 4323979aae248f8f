//! What is desired, in the terms of this crate: who is here, who is elsewhere, which nodes and
//! Services there are, which policies.
//!
//! Owns the types that cross the border and the joins that a change needs: from a policy to the
//! endpoints it governs, from a workload to the Services it serves.

use ipnet::IpNet;
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};
use weft_bpf::Transport;
use weft_model::NumericIdentity;
use weft_policy_engine::PolicySet;

/// A workload of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// The number by which the kernel's programs know it.
    pub number: u32,
    /// With addresses of its own; otherwise a process, which shares the node's.
    pub pod: bool,
    /// A pod's own; the node's for processes.
    pub addresses: Vec<IpAddr>,
    /// Where it listens, for Services that name no port.
    pub app_port: u16,
    /// Holds a valid certificate.
    pub proven: bool,
    /// Its capture listener is served.
    pub capture: bool,
    /// What policy refuses it passes, and is told.
    pub audit: bool,
    /// What the policy service derived. `None`: not told yet; what the kernel holds from before is kept.
    pub governed: Option<Governed>,
}

/// What the policy service says of a workload of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Governed {
    /// Its security identity.
    pub identity: NumericIdentity,
    /// The policy that governs it.
    pub set: Arc<str>,
}

/// A workload of another node, or a shared endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct There {
    /// Its node.
    pub node: Arc<str>,
    /// With addresses of its own.
    pub pod: bool,
    /// A pod's own; its node's for processes.
    pub addresses: Vec<IpAddr>,
    /// Where it listens.
    pub app_port: u16,
    /// Its security identity.
    pub identity: NumericIdentity,
    /// A shared endpoint, of this node or another: its node's agent answers in its place.
    pub shared: bool,
}

/// A node of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The one this process runs on.
    pub own: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Where its pods have theirs.
    pub pod_cidrs: Vec<IpNet>,
    /// Where shared endpoints of all nodes have theirs.
    pub shared_cidrs: Vec<IpNet>,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Ids of the workloads that serve it.
    pub endpoints: Vec<Arc<str>>,
}

/// A port of a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// As callers use it.
    pub port: u16,
    /// At the workload; 0 for its app port.
    pub target: u16,
    /// Its protocol.
    pub transport: Transport,
    /// Requests are routed one by one, so connections go to the proxy.
    pub capture: bool,
}

/// What changed. `None` for what is gone.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// This is all there is: what is not in it is gone.
    pub complete: bool,
    /// Policies by the id that [`Governed`] names, which is not their own where they name names. They come before, and stay longer than, the endpoints they govern.
    pub sets: Vec<(Arc<str>, Option<Arc<PolicySet>>)>,
    /// Workloads of this node by id.
    pub here: Vec<(Arc<str>, Option<Here>)>,
    /// Workloads of other nodes, and shared endpoints, by id.
    pub there: Vec<(Arc<str>, Option<There>)>,
    /// Nodes by name.
    pub nodes: Vec<(Arc<str>, Option<Node>)>,
    /// Services by "namespace/name".
    pub services: Vec<(Arc<str>, Option<Service>)>,
}

/// Everything that is desired.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) sets: HashMap<Arc<str>, Arc<PolicySet>>,
    pub(crate) here: HashMap<Arc<str>, Here>,
    pub(crate) by_number: HashMap<u32, Arc<str>>,
    pub(crate) there: HashMap<Arc<str>, There>,
    pub(crate) nodes: HashMap<Arc<str>, Node>,
    pub(crate) services: HashMap<Arc<str>, Service>,
    /// Numbers of endpoints of this node by the set that governs them.
    governed_by: HashMap<Arc<str>, BTreeSet<u32>>,
    /// Services by the workloads that serve them.
    served_by: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
}

/// What a change may have touched.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// Endpoints of this node, by number.
    pub(crate) endpoints: BTreeSet<u32>,
    /// Prefixes of the address cache.
    pub(crate) addresses: BTreeSet<IpNet>,
    /// Services.
    pub(crate) services: BTreeSet<Arc<str>>,
}

impl Update {
    /// Adds what is gone to a complete update.
    pub(crate) fn complement(&mut self, facts: &Facts) {
        if !std::mem::take(&mut self.complete) {
            return;
        }
        fn gone<T, U>(told: &mut Vec<(Arc<str>, Option<T>)>, known: &HashMap<Arc<str>, U>) {
            let there: BTreeSet<Arc<str>> = told.iter().map(|(id, _)| id.clone()).collect();
            let gone = known.keys().filter(|id| !there.contains(*id));
            told.extend(gone.map(|id| (id.clone(), None)).collect::<Vec<_>>());
        }
        gone(&mut self.sets, &facts.sets);
        gone(&mut self.here, &facts.here);
        gone(&mut self.there, &facts.there);
        gone(&mut self.nodes, &facts.nodes);
        gone(&mut self.services, &facts.services);
    }
}

fn unlist<K: std::hash::Hash + Eq, V: Ord>(index: &mut HashMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = index.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(key);
        }
    }
}

impl Facts {
    pub(crate) fn set_set(&mut self, id: Arc<str>, set: Option<Arc<PolicySet>>, touched: &mut Touched) {
        let users = self.governed_by.get(&id).into_iter().flatten();
        // One that is there changes with the addresses of the names in it, and then has another id of its own.
        let changed = match set {
            Some(set) => {
                let new = set.id().to_owned();
                self.sets.insert(id, set).is_none_or(|old| *old.id() != *new)
            }
            None => self.sets.remove(&id).is_some(),
        };
        if changed {
            touched.endpoints.extend(users);
        }
    }

    /// Answers what there was; `None` when nothing changed.
    pub(crate) fn set_here(
        &mut self,
        id: &Arc<str>,
        new: Option<Here>,
        touched: &mut Touched,
    ) -> Option<Option<Here>> {
        if self.here.get(id) == new.as_ref() {
            return None;
        }
        let old = match new.clone() {
            Some(new) => self.here.insert(id.clone(), new),
            None => self.here.remove(id),
        };
        if let Some(old) = &old {
            touched.endpoints.insert(old.number);
            // Another workload may have the number by now.
            if self.by_number.get(&old.number) == Some(id) {
                self.by_number.remove(&old.number);
            }
            if let Some(governed) = &old.governed {
                unlist(&mut self.governed_by, &governed.set, &old.number);
            }
        }
        if let Some(new) = &new {
            touched.endpoints.insert(new.number);
            self.by_number.insert(new.number, id.clone());
            if let Some(governed) = &new.governed {
                let users = self.governed_by.entry(governed.set.clone()).or_default();
                users.insert(new.number);
            }
        }
        self.touch_services_of(id, touched);
        Some(old)
    }

    /// As [`Facts::set_here`].
    pub(crate) fn set_there(
        &mut self,
        id: &Arc<str>,
        new: Option<There>,
        touched: &mut Touched,
    ) -> Option<Option<There>> {
        if self.there.get(id) == new.as_ref() {
            return None;
        }
        let old = match new {
            Some(new) => self.there.insert(id.clone(), new),
            None => self.there.remove(id),
        };
        self.touch_services_of(id, touched);
        Some(old)
    }

    /// As [`Facts::set_here`].
    pub(crate) fn set_node(&mut self, name: &Arc<str>, new: Option<Node>) -> Option<Option<Node>> {
        if self.nodes.get(name) == new.as_ref() {
            return None;
        }
        Some(match new {
            Some(new) => self.nodes.insert(name.clone(), new),
            None => self.nodes.remove(name),
        })
    }

    pub(crate) fn set_service(&mut self, name: &Arc<str>, new: Option<Service>, touched: &mut Touched) {
        if self.services.get(name) == new.as_ref() {
            return;
        }
        for id in new.iter().flat_map(|s| &s.endpoints) {
            let services = self.served_by.entry(id.clone()).or_default();
            services.insert(name.clone());
        }
        let kept: BTreeSet<Arc<str>> = new.iter().flat_map(|s| s.endpoints.clone()).collect();
        let old = match new {
            Some(new) => self.services.insert(name.clone(), new),
            None => self.services.remove(name),
        };
        for id in old
            .iter()
            .flat_map(|s| &s.endpoints)
            .filter(|id| !kept.contains(*id))
        {
            unlist(&mut self.served_by, id, name);
        }
        touched.services.insert(name.clone());
    }

    fn touch_services_of(&self, id: &Arc<str>, touched: &mut Touched) {
        let services = self.served_by.get(id).into_iter().flatten();
        touched.services.extend(services.cloned());
    }

    /// The endpoint of this node with a number.
    pub(crate) fn endpoint(&self, number: u32) -> Option<&Here> {
        self.here.get(self.by_number.get(&number)?)
    }

    /// The policy that is to govern an endpoint; `None` when it is not here.
    pub(crate) fn set_of(&self, number: u32) -> Option<&Arc<PolicySet>> {
        let governed = self.endpoint(number)?.governed.as_ref()?;
        self.sets.get(&governed.set)
    }
}
