//! Policy objects, and the set they compile to for each identity in use.

use super::{Dirty, Key, Kind, ObjectKey, Shared, workloads::Workloads};
use std::collections::{BTreeMap, BTreeSet};
use weft_model::{Labels, NumericIdentity};
use weft_policy_engine::{PolicyObject, PolicySet, compile};
use weft_proto::weft::policy::v1 as pb;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    /// By namespace, kind and name: an object is about workloads of its own namespace only, those without
    /// one about all.
    objects: BTreeMap<String, BTreeMap<(&'static str, String), PolicyObject>>,
    /// With the form in which nodes get it.
    sets: BTreeMap<NumericIdentity, (PolicySet, Shared)>,
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
        for (identity, labels) in workloads.identities() {
            if [&old, &object].into_iter().flatten().any(|o| o.selects(labels)) {
                self.stale.insert(identity);
            }
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
        let naming: Vec<&PolicyObject> = self
            .objects
            .values()
            .flat_map(BTreeMap::values)
            .filter(|o| o.names_peer(labels))
            .collect();
        if naming.is_empty() {
            return;
        }
        for (subject, labels) in workloads.identities() {
            if naming.iter().any(|o| o.selects(labels)) {
                self.stale.insert(subject);
            }
        }
    }

    /// Compiles what is stale.
    pub(crate) fn recompile(&mut self, workloads: &Workloads, dirty: &mut Dirty) {
        for identity in std::mem::take(&mut self.stale) {
            let set = workloads.labels(identity).map(|labels| {
                let namespaces = labels.namespace().into_iter().chain([""]);
                let objects = namespaces.filter_map(|n| self.objects.get(n));
                compile(objects.flat_map(BTreeMap::values), labels, workloads.known())
            });
            let old = self.sets.get(&identity);
            if old.map(|(s, _)| s.id()) == set.as_ref().map(|s| s.id()) {
                continue;
            }
            match set {
                Some(set) => {
                    let body = pb::resource::Body::PolicySet(pb::PolicySet::from(&set));
                    let (_, wire) = Key::new(Kind::PolicySet, set.id()).with(body);
                    self.sets.insert(identity, (set, wire))
                }
                None => self.sets.remove(&identity),
            };
            let nodes = workloads
                .with_identity(identity)
                .filter_map(|id| workloads.get(id));
            dirty.nodes.extend(nodes.map(|w| w.message.node.clone()));
        }
    }

    pub(crate) fn set(&self, identity: NumericIdentity) -> Option<&PolicySet> {
        self.sets.get(&identity).map(|(set, _)| set)
    }

    /// The set in the form in which nodes get it.
    pub(crate) fn resource(&self, identity: NumericIdentity) -> Option<Shared> {
        self.sets.get(&identity).map(|(_, wire)| wire.clone())
    }
}
