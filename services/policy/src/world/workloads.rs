//! Workloads, and the numbers given to their label sets.

mod plan;
mod registry;

pub(crate) use plan::{Pending, Planned};

use super::{
    Key, Kind, Shared,
    former::Former,
    policies::Governed,
    ports::{named_ports, to_wire},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};
use weft_model::{Labels, NumericIdentity};
use weft_policy_engine::{Cluster, NamedPorts};
use weft_proto::weft::policy::v1 as pb;

/// One workload.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    /// With what was derived.
    pub message: pb::Workload,
    pub identity: NumericIdentity,
    ports: Arc<NamedPorts>,
    /// As other nodes get it.
    pub as_peer: Shared,
}

impl Workload {
    pub(crate) fn new(message: pb::Workload) -> Self {
        // They were checked when it came.
        let ports = named_ports(&message).unwrap_or_default();
        // Annotations are for the agent beside the workload; its peers have no use for them.
        let peer = pb::Workload {
            annotations: Default::default(),
            named_ports: to_wire(&ports),
            ..message.clone()
        };
        let endpoint = pb::Endpoint {
            workload: Some(peer),
            policy_set: String::new(),
        };
        let key = Key::new(Kind::Endpoint, message.id.clone());
        let (_, as_peer) = key.with(pb::resource::Body::Endpoint(endpoint));
        Self {
            identity: NumericIdentity(message.identity),
            ports: Arc::new(ports),
            message,
            as_peer,
        }
    }

    /// What decides which set it is under.
    pub(crate) fn governed(&self) -> Governed {
        Governed {
            identity: self.identity,
            ports: Arc::clone(&self.ports),
        }
    }

    fn pod_addresses(&self) -> impl Iterator<Item = IpAddr> {
        pod_addresses(&self.message)
    }
}

fn labels(message: &pb::Workload) -> Labels {
    let own = message.labels.iter().map(|(k, v)| (k.as_str(), v.as_str()));
    Labels::for_workload(own, &message.namespace, &message.app_id, &message.service_account)
}

/// A number's labels, and since when nobody has them (seconds since the Unix epoch).
#[derive(Debug, Clone)]
struct Given {
    labels: Labels,
    /// With those of the namespace: what policies are about.
    all_labels: Labels,
    resource: Shared,
    released_at: Option<u64>,
    workloads: BTreeSet<String>,
    /// What the workloads call their ports, and how many do so.
    ports: BTreeMap<Arc<NamedPorts>, usize>,
}

impl Given {
    /// As many ways to name ports as there are sets to compile: one at least.
    fn ports(&self) -> Vec<Arc<NamedPorts>> {
        if self.ports.is_empty() {
            return vec![Arc::default()];
        }
        self.ports.keys().cloned().collect()
    }
}

/// The addresses that a workload has to itself.
fn pod_addresses(message: &pb::Workload) -> impl Iterator<Item = IpAddr> {
    let pod = message.kind() == pb::WorkloadKind::Pod;
    let addresses = message.addresses.iter().filter(move |_| pod);
    addresses.filter_map(|a| a.parse().ok())
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Workloads {
    all: BTreeMap<String, Workload>,
    by_node: BTreeMap<String, BTreeSet<String>>,
    by_namespace: BTreeMap<String, BTreeSet<String>>,
    by_address: BTreeMap<IpAddr, String>,
    former: Former,
    given: BTreeMap<NumericIdentity, Given>,
    by_labels: BTreeMap<Labels, NumericIdentity>,
    identities_by_namespace: BTreeMap<String, BTreeSet<NumericIdentity>>,
    /// The same numbers in the form that the compiler reads.
    known: Cluster,
    /// Labels of namespaces that an object says.
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Identities whose ports have other names since somebody asked.
    ports_changed: BTreeSet<NumericIdentity>,
    /// The number given last: the next one is looked for above it, so that numbers are reused late.
    last: u32,
}

impl Workloads {
    pub(crate) fn get(&self, id: &str) -> Option<&Workload> {
        self.all.get(id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Workload> {
        self.all.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn of_node(&self, node: &str) -> impl Iterator<Item = &Workload> {
        self.by_node
            .get(node)
            .into_iter()
            .flatten()
            .filter_map(|id| self.all.get(id))
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &String> {
        self.by_node.keys()
    }

    pub(crate) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &String> {
        self.by_namespace.get(namespace).into_iter().flatten()
    }

    pub(crate) fn with_identity(&self, identity: NumericIdentity) -> impl Iterator<Item = &String> {
        self.given.get(&identity).into_iter().flat_map(|g| &g.workloads)
    }

    pub(crate) fn identities_of(&self, namespace: &str) -> impl Iterator<Item = NumericIdentity> {
        self.identities_by_namespace
            .get(namespace)
            .into_iter()
            .flatten()
            .copied()
    }

    pub(crate) fn identities(&self) -> impl Iterator<Item = (NumericIdentity, &Labels)> {
        self.given.iter().map(|(id, given)| (*id, &given.all_labels))
    }

    /// Those that an object of a namespace may be about; all of them for one of the cluster.
    pub(crate) fn subjects(&self, namespace: &str) -> impl Iterator<Item = (NumericIdentity, &Labels)> {
        let all = namespace.is_empty().then(|| self.identities());
        let some = self.identities_of(namespace);
        let some = some.filter_map(|id| Some((id, &self.given.get(&id)?.all_labels)));
        all.into_iter().flatten().chain(some)
    }

    /// The labels that numbers were given for.
    #[cfg(test)]
    pub(crate) fn own_labels(&self) -> impl Iterator<Item = (NumericIdentity, &Labels)> {
        self.given.iter().map(|(id, given)| (*id, &given.labels))
    }

    /// The labels of a number, with those of the namespace.
    pub(crate) fn labels(&self, identity: NumericIdentity) -> Option<&Labels> {
        self.given.get(&identity).map(|g| &g.all_labels)
    }

    /// Ids of those that left the addresses of a pod last.
    pub(crate) fn former<'a>(&'a self, message: &'a pb::Workload) -> impl Iterator<Item = &'a str> {
        let ids = pod_addresses(message).filter_map(|a| self.former.of(a));
        ids.filter(|id| *id != message.id)
    }

    /// In which ways workloads of an identity name their ports.
    pub(crate) fn ports_of(&self, identity: NumericIdentity) -> Vec<Arc<NamedPorts>> {
        self.given.get(&identity).map(Given::ports).unwrap_or_default()
    }

    pub(crate) fn known_mut(&mut self) -> &mut Cluster {
        &mut self.known
    }

    /// The workload that has an address.
    pub(crate) fn at(&self, address: IpAddr) -> Option<&Workload> {
        self.by_address.get(&address).and_then(|id| self.all.get(id))
    }

    /// Takes what an object says of a namespace. Returns the identities there with the labels that they had.
    fn set_namespace(
        &mut self,
        name: &str,
        labels: Option<BTreeMap<String, String>>,
    ) -> Vec<(NumericIdentity, Labels)> {
        let new = labels.clone();
        let old = match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
        if old == new {
            return Vec::new();
        }
        let mut changed = Vec::new();
        for identity in self.identities_of(name).collect::<Vec<_>>() {
            let Some(given) = self.given.get_mut(&identity) else {
                continue;
            };
            let all = all_labels(&self.namespaces, &given.labels);
            changed.push((identity, std::mem::replace(&mut given.all_labels, all.clone())));
            self.known.insert(identity, all);
        }
        changed
    }

    /// Counts what a workload calls its ports in or out, and notes who has to know.
    fn count_ports(&mut self, identity: NumericIdentity, ports: &Arc<NamedPorts>, there: bool) {
        let Some(given) = self.given.get_mut(&identity) else {
            return;
        };
        let before = given.ports();
        let count = given.ports.entry(Arc::clone(ports)).or_default();
        *count = if there {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
        given.ports.retain(|_, count| *count > 0);
        if given.ports() == before {
            return;
        }
        let mut all = NamedPorts::new();
        for ports in given.ports.keys() {
            for (name, numbers) in &**ports {
                all.entry(name.clone()).or_default().extend(numbers);
            }
        }
        self.known.set_ports(identity, all);
        self.ports_changed.insert(identity);
    }

    pub(crate) fn known(&self) -> &Cluster {
        &self.known
    }

    /// A number with its labels in the form in which nodes get it.
    pub(crate) fn identity_resource(&self, identity: NumericIdentity) -> Option<Shared> {
        self.given.get(&identity).map(|g| g.resource.clone())
    }

    /// Numbers that nobody has had since before `until`.
    pub(crate) fn expired(&self, until: u64) -> Vec<NumericIdentity> {
        let old = |g: &Given| g.workloads.is_empty() && g.released_at.is_some_and(|at| at <= until);
        self.given
            .iter()
            .filter(|(_, g)| old(g))
            .map(|(id, _)| *id)
            .collect()
    }

    fn give(&mut self, identity: NumericIdentity, labels: &Labels, released_at: Option<u64>) -> bool {
        self.last = self.last.max(identity.0);
        if let Some(given) = self.given.get_mut(&identity) {
            given.released_at = released_at;
            return false;
        }
        let texts = labels.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let body = pb::resource::Body::Identity(pb::Identity {
            id: identity.0,
            labels: texts,
        });
        let (_, resource) = Key::new(Kind::Identity, identity.to_string()).with(body);
        let all_labels = all_labels(&self.namespaces, labels);
        let given = Given {
            labels: labels.clone(),
            all_labels: all_labels.clone(),
            resource,
            released_at,
            workloads: BTreeSet::new(),
            ports: BTreeMap::new(),
        };
        self.given.insert(identity, given);
        self.by_labels.insert(labels.clone(), identity);
        if let Some(namespace) = labels.namespace() {
            self.identities_by_namespace
                .entry(namespace.to_owned())
                .or_default()
                .insert(identity);
        }
        self.known.insert(identity, all_labels);
        true
    }

    fn take_back(&mut self, identity: NumericIdentity) -> Option<Labels> {
        let given = self.given.remove(&identity)?;
        self.by_labels.remove(&given.labels);
        if let Some(namespace) = given.labels.namespace() {
            unlist(&mut self.identities_by_namespace, namespace, &identity);
        }
        self.known.remove(identity);
        Some(given.all_labels)
    }

    fn insert(&mut self, workload: Workload, now: u64) -> Option<Workload> {
        let id = workload.message.id.clone();
        let old = self.remove(&id, now);
        let message = &workload.message;
        self.by_node
            .entry(message.node.clone())
            .or_default()
            .insert(id.clone());
        self.by_namespace
            .entry(message.namespace.clone())
            .or_default()
            .insert(id.clone());
        for address in workload.pod_addresses() {
            self.by_address.insert(address, id.clone());
        }
        if let Some(given) = self.given.get_mut(&workload.identity) {
            given.workloads.insert(id.clone());
            given.released_at = None;
        }
        self.count_ports(workload.identity, &workload.ports, true);
        self.all.insert(id, workload);
        old
    }

    fn remove(&mut self, id: &str, now: u64) -> Option<Workload> {
        let old = self.all.remove(id)?;
        unlist(&mut self.by_node, &old.message.node, &id.to_owned());
        unlist(&mut self.by_namespace, &old.message.namespace, &id.to_owned());
        for address in old.pod_addresses() {
            if self.by_address.get(&address).is_some_and(|by| by == id) {
                self.by_address.remove(&address);
                self.former.left(address, id);
            }
        }
        if let Some(given) = self.given.get_mut(&old.identity) {
            given.workloads.remove(id);
            if given.workloads.is_empty() {
                given.released_at = Some(now);
            }
        }
        self.count_ports(old.identity, &old.ports, false);
        Some(old)
    }
}

/// With those of the namespace.
fn all_labels(namespaces: &BTreeMap<String, BTreeMap<String, String>>, labels: &Labels) -> Labels {
    let own = labels.namespace().and_then(|name| namespaces.get(name));
    let own = own.into_iter().flatten();
    labels.with_namespace(own.map(|(k, v)| (k.as_str(), v.as_str())))
}

fn unlist<V: Ord>(index: &mut BTreeMap<String, BTreeSet<V>>, key: &str, value: &V) {
    if let Some(set) = index.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
#[path = "workloads_tests.rs"]
mod tests;
