//! What the cluster has that policies name: identities with their labels and ports, groups of address
//! ranges, Services.

use crate::{
    fault::{Fault, made},
    selector::matches,
};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use weft_model::{Labels, NumericIdentity};
use weft_resources::{CidrRange, ServiceRule, Services};

/// The ports that a workload names: protocol and number of each, by name.
pub type NamedPorts = BTreeMap<String, BTreeSet<(u8, u16)>>;

/// The numbers below 256 of peers in the cluster that label selectors can match, by their label
/// `reserved:<name>`. Peers outside have theirs by their address.
const RESERVED: [(NumericIdentity, &str); 7] = [
    (NumericIdentity::HOST, "reserved:host"),
    (NumericIdentity::UNMANAGED, "reserved:unmanaged"),
    (NumericIdentity::HEALTH, "reserved:health"),
    (NumericIdentity::INIT, "reserved:init"),
    (NumericIdentity::REMOTE_NODE, "reserved:remote-node"),
    (NumericIdentity::KUBE_APISERVER, "reserved:kube-apiserver"),
    (NumericIdentity::INGRESS, "reserved:ingress"),
];

/// A CiliumCIDRGroup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// The object's labels, `cidrgroup:<key>`.
    pub labels: Labels,
    /// Its ranges.
    pub cidrs: Vec<IpNet>,
}

/// A Service, as far as rules name it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backed {
    /// The object's labels, `k8s:<key>`.
    pub labels: Labels,
    /// Labels of the workloads behind it, without source; nobody is when there are none.
    pub selector: BTreeMap<String, String>,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    allocated: BTreeMap<NumericIdentity, Labels>,
    /// The same, by the namespace in their labels.
    by_namespace: BTreeMap<String, BTreeSet<NumericIdentity>>,
    ports: BTreeMap<NumericIdentity, NamedPorts>,
    groups: BTreeMap<String, Group>,
    /// By namespace and name.
    services: BTreeMap<(String, String), Backed>,
    reserved: Vec<(NumericIdentity, Labels)>,
    /// The labels of what is outside: by IPv4, by IPv6.
    outside: [Labels; 2],
}

impl Default for Cluster {
    fn default() -> Self {
        let labels = |names: &[&str]| names.iter().map(|n| (String::from(*n), String::new())).collect();
        Self {
            allocated: BTreeMap::new(),
            by_namespace: BTreeMap::new(),
            ports: BTreeMap::new(),
            groups: BTreeMap::new(),
            services: BTreeMap::new(),
            reserved: RESERVED
                .iter()
                .map(|(id, label)| (*id, labels(&[label])))
                .collect(),
            outside: ["reserved:world-ipv4", "reserved:world-ipv6"]
                .map(|family| labels(&["reserved:world", family])),
        }
    }
}

impl Cluster {
    /// Adds or replaces an identity.
    pub fn insert(&mut self, id: NumericIdentity, labels: Labels) {
        self.unlist(id);
        if let Some(namespace) = labels.namespace() {
            self.by_namespace
                .entry(namespace.to_owned())
                .or_default()
                .insert(id);
        }
        self.allocated.insert(id, labels);
    }

    fn unlist(&mut self, id: NumericIdentity) {
        let Some(namespace) = self.allocated.get(&id).and_then(Labels::namespace) else {
            return;
        };
        if let Some(all) = self.by_namespace.get_mut(namespace) {
            all.remove(&id);
            if all.is_empty() {
                self.by_namespace.remove(namespace);
            }
        }
    }

    /// The allocated identities of a namespace, ascending.
    pub(crate) fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = (NumericIdentity, &Labels)> {
        let ids = self.by_namespace.get(namespace).into_iter().flatten();
        ids.filter_map(|id| Some((*id, self.allocated.get(id)?)))
    }

    /// Removes an identity, with its ports.
    pub fn remove(&mut self, id: NumericIdentity) {
        self.unlist(id);
        self.allocated.remove(&id);
        self.ports.remove(&id);
    }

    /// The labels of an allocated identity.
    pub fn get(&self, id: NumericIdentity) -> Option<&Labels> {
        self.allocated.get(&id)
    }

    /// The allocated identities, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (NumericIdentity, &Labels)> {
        self.allocated.iter().map(|(id, labels)| (*id, labels))
    }

    /// Says which ports workloads of an identity name. Where they differ, a name means any of theirs.
    pub fn set_ports(&mut self, id: NumericIdentity, ports: NamedPorts) {
        if ports.is_empty() {
            self.ports.remove(&id);
        } else {
            self.ports.insert(id, ports);
        }
    }

    /// Adds, replaces or removes a group of address ranges.
    pub fn set_group(&mut self, name: &str, group: Option<Group>) {
        match group {
            Some(group) => self.groups.insert(name.to_owned(), group),
            None => self.groups.remove(name),
        };
    }

    /// Adds, replaces or removes a Service; answers whether that changed anything.
    pub fn set_service(&mut self, namespace: &str, name: &str, service: Option<Backed>) -> bool {
        let key = (namespace.to_owned(), name.to_owned());
        let new = service.clone();
        let old = match service {
            Some(service) => self.services.insert(key, service),
            None => self.services.remove(&key),
        };
        old != new
    }

    pub(crate) fn reserved(&self) -> impl Iterator<Item = (NumericIdentity, &Labels)> {
        self.reserved.iter().map(|(id, labels)| (*id, labels))
    }

    pub(crate) fn outside(&self) -> &[Labels; 2] {
        &self.outside
    }

    pub(crate) fn ports(&self) -> impl Iterator<Item = (NumericIdentity, &NamedPorts)> {
        self.ports.iter().map(|(id, ports)| (*id, ports))
    }

    /// The address ranges that are meant; none of a group that is not there.
    pub(crate) fn ranges(&self, range: &CidrRange) -> Vec<IpNet> {
        let groups: Vec<&Group> = match range {
            CidrRange::Net(net) => return vec![*net],
            CidrRange::Group(name) => self.groups.get(name).into_iter().collect(),
            CidrRange::Groups(_) if made(Fault::GroupsByLabelAreForgotten) => Vec::new(),
            CidrRange::Groups(selector) => {
                let all = self.groups.values();
                all.filter(|g| matches(selector, &g.labels)).collect()
            }
        };
        groups.iter().flat_map(|g| &g.cidrs).copied().collect()
    }

    /// Whether a workload with these labels is behind one of the Services that are meant.
    pub(crate) fn is_behind(&self, rule: &ServiceRule, workload: &Labels) -> bool {
        let meant = |(namespace, name): &(String, String), service: &Backed| {
            let here = rule.namespace.as_ref().is_none_or(|wanted| wanted == namespace);
            here && match &rule.which {
                Services::Named(wanted) => wanted == name,
                Services::Labelled(selector) => matches(selector, &service.labels),
            }
        };
        let selects = |(namespace, _): &(String, String), service: &Backed| {
            let same = |(key, value): (&String, &String)| workload.get(&format!("k8s:{key}")) == Some(value);
            !service.selector.is_empty()
                && (workload.namespace() == Some(namespace) || made(Fault::ServicesReachEverywhere))
                && service.selector.iter().all(same)
        };
        self.services
            .iter()
            .any(|(key, service)| meant(key, service) && selects(key, service))
    }
}

impl FromIterator<(NumericIdentity, Labels)> for Cluster {
    fn from_iter<T: IntoIterator<Item = (NumericIdentity, Labels)>>(iter: T) -> Self {
        let mut cluster = Self::default();
        for (id, labels) in iter {
            cluster.insert(id, labels);
        }
        cluster
    }
}
