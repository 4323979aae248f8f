//! Policy objects, and the set they compile to for each identity in use. Workloads of one identity whose ports
//! have other names may be under different sets.

use super::{Dirty, Key, Kind, ObjectKey, Shared, workloads::Workloads};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use weft_model::{Labels, NumericIdentity};
use weft_policy_engine::{NamedPorts, PolicyObject, PolicySet, Subject, compile};
use weft_proto::weft::policy::v1 as pb;

/// The sets of one identity's workloads, by what these call their ports.
type Sets = BTreeMap<Arc<NamedPorts>, (Arc<PolicySet>, Shared)>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    /// By namespace, kind and name: an object is about workloads of its own namespace only, those without
    /// one about all.
    objects: BTreeMap<String, BTreeMap<(&'static str, String), PolicyObject>>,
    /// Those among them that may name workloads of other namespaces than their own.
    wide: BTreeSet<(String, (&'static str, String))>,
    /// By what workloads call their ports; each with the form in which nodes get it.
    sets: BTreeMap<NumericIdentity, Sets>,
    /// Identities whose set must be compiled again.
    stale: BTreeSet<NumericIdentity>,
}

impl Policies {
    /// Adds, replaces or removes an object. Workloads that neither the old nor the new one selects keep
    /// their sets untouched.
    pub(crate) fn set_object(
        &mut self,
        key: &ObjectKey,
        object: Option<PolicyObject>,
        workloads: &Workloads,
    ) {
        let objects = self.objects.entry(key.namespace.clone()).or_default();
        let name = (key.kind.name(), key.name.clone());
        let place = (key.namespace.clone(), name.clone());
        match &object {
            Some(object) if object.names_other_namespaces() => self.wide.insert(place),
            _ => self.wide.remove(&place),
        };
        let old = match &object {
            Some(object) => objects.insert(name, object.clone()),
            None => objects.remove(&name),
        };
        if objects.is_empty() {
            self.objects.remove(&key.namespace);
        }
        if old == object {
            return;
        }
        for (identity, labels) in workloads.subjects(&key.namespace) {
            if [&old, &object].into_iter().flatten().any(|o| o.selects(labels)) {
                self.stale.insert(identity);
            }
        }
    }

    /// The ports of an identity's workloads have other names.
    pub(crate) fn ports_changed(&mut self, identity: NumericIdentity, workloads: &Workloads) {
        self.stale.insert(identity);
        let Some(labels) = workloads.labels(identity) else {
            return;
        };
        self.stale_under(workloads, |o| {
            o.names_ports_of_peers() && o.names_peer(labels, workloads.known())
        });
    }

    /// A group of address ranges is another.
    pub(crate) fn groups_changed(&mut self, workloads: &Workloads) {
        self.stale_under(workloads, PolicyObject::names_groups);
    }

    /// A Service is another.
    pub(crate) fn services_changed(&mut self, workloads: &Workloads) {
        self.stale_under(workloads, PolicyObject::names_services);
    }

    /// Whoever is governed by such an object is to be compiled again.
    fn stale_under(&mut self, workloads: &Workloads, is: impl Fn(&PolicyObject) -> bool) {
        for (namespace, objects) in &self.objects {
            let objects: Vec<&PolicyObject> = objects.values().filter(|o| is(o)).collect();
            self.stale.extend(governed_by(&objects, namespace, workloads));
        }
    }

    /// An identity came or went: whoever is governed by an object that names it must know.
    pub(crate) fn identity_changed(
        &mut self,
        identity: NumericIdentity,
        labels: &Labels,
        workloads: &Workloads,
    ) {
        self.stale.insert(identity);
        let names = |o: &&PolicyObject| o.names_peer(labels, workloads.known());
        let own = labels.namespace().unwrap_or_default();
        let objects = self.objects.get(own).into_iter().flat_map(BTreeMap::values);
        let objects: Vec<&PolicyObject> = objects.filter(names).collect();
        self.stale.extend(governed_by(&objects, own, workloads));
        for (namespace, name) in self.wide.iter().filter(|(namespace, _)| namespace != own) {
            let object = self.objects.get(namespace).and_then(|all| all.get(name));
            if let Some(object) = object.filter(names) {
                self.stale.extend(governed_by(&[object], namespace, workloads));
            }
        }
    }

    /// Compiles what is stale.
    pub(crate) fn recompile(&mut self, workloads: &Workloads, dirty: &mut Dirty) {
        for identity in std::mem::take(&mut self.stale) {
            let mut sets = Sets::new();
            if let Some(labels) = workloads.labels(identity) {
                for ports in workloads.ports_of(identity) {
                    let subject = Subject {
                        labels,
                        ports: &ports,
                    };
                    let set = compile(self.objects_for(labels), subject, workloads.known());
                    let body = pb::resource::Body::PolicySet(pb::PolicySet::from(&set));
                    let (_, wire) = Key::new(Kind::PolicySet, set.id()).with(body);
                    sets.insert(ports, (Arc::new(set), wire));
                }
            }
            let ids = |sets: &Sets| -> Vec<(Arc<NamedPorts>, String)> {
                let all = sets.iter();
                all.map(|(ports, (set, _))| (Arc::clone(ports), set.id().to_owned()))
                    .collect()
            };
            if self.sets.get(&identity).map(ids).unwrap_or_default() == ids(&sets) {
                continue;
            }
            if sets.is_empty() {
                self.sets.remove(&identity);
            } else {
                self.sets.insert(identity, sets);
            }
            for id in workloads.with_identity(identity) {
                if let Some(workload) = workloads.get(id) {
                    dirty.nodes.insert(workload.message.node.clone());
                    // It says under which set it is.
                    dirty.keys.insert(Key::new(Kind::Endpoint, id));
                }
            }
        }
    }

    /// The objects that may be about a workload with these labels.
    fn objects_for<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a PolicyObject> {
        let namespaces = labels.namespace().into_iter().chain([""]);
        let objects = namespaces.filter_map(|n| self.objects.get(n));
        objects.flat_map(BTreeMap::values)
    }

    /// The set that governs workloads of an identity with such ports.
    pub(crate) fn set(&self, governed: &Governed) -> Option<&Arc<PolicySet>> {
        self.sets
            .get(&governed.identity)?
            .get(&governed.ports)
            .map(|(set, _)| set)
    }

    /// The set in the form in which nodes get it.
    pub(crate) fn resource(&self, governed: &Governed) -> Option<Shared> {
        let sets = self.sets.get(&governed.identity)?;
        sets.get(&governed.ports).map(|(_, wire)| wire.clone())
    }
}

/// The identities that one of some objects of a namespace is about.
fn governed_by(objects: &[&PolicyObject], namespace: &str, workloads: &Workloads) -> Vec<NumericIdentity> {
    if objects.is_empty() {
        return Vec::new();
    }
    let subjects = workloads.subjects(namespace);
    let governed = subjects.filter(|(_, labels)| objects.iter().any(|o| o.selects(labels)));
    governed.map(|(subject, _)| subject).collect()
}

/// What decides which set a workload is under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Governed {
    pub identity: NumericIdentity,
    pub ports: Arc<NamedPorts>,
}
