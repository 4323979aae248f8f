//! The registry as the rest of the world sees it: what follows from workloads that come, change and go.

use super::{Pending, Planned, Workload};
use crate::{
    store::Write,
    world::{
        Key, Kind, World,
        check::{RegisterError, check},
    },
};
use std::collections::BTreeMap;
use weft_model::{Labels, NumericIdentity};
use weft_proto::weft::policy::v1 as pb;

impl World {
    /// Takes over what was stored before a restart.
    pub(crate) fn restore(
        &mut self,
        identities: Vec<(NumericIdentity, Labels, Option<u64>)>,
        workloads: Vec<pb::Workload>,
        now: u64,
    ) {
        for (number, labels, released_at) in identities {
            self.workloads.give(number, &labels, released_at.or(Some(now)));
            self.identity_changed(number, &labels);
        }
        for message in workloads {
            self.node_facts
                .pods_changed(None, Some(&message), &mut self.dirty);
            self.workloads.insert(Workload::new(message), now);
        }
    }

    fn identity_changed(&mut self, number: NumericIdentity, labels: &Labels) {
        // What it is called in policies has more to it.
        let all = self.workloads.labels(number).unwrap_or(labels).clone();
        self.policies.identity_changed(number, &all, &self.workloads);
    }

    /// Adds, replaces or removes the labels of a namespace.
    pub(in crate::world) fn set_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) {
        for (identity, old) in self.workloads.set_namespace(name, labels) {
            self.policies.identity_changed(identity, &old, &self.workloads);
            self.identity_changed(identity, &old);
        }
    }

    /// Checks a registration and works out what it derives. Changes nothing.
    #[cfg(test)]
    pub(crate) fn plan_registration(
        &self,
        node: &str,
        message: pb::Workload,
        now: u64,
    ) -> Result<Planned, RegisterError> {
        self.plan_among(node, message, now, &Pending::default())
    }

    /// The same, where others are planned and not made yet.
    pub(crate) fn plan_among(
        &self,
        node: &str,
        message: pb::Workload,
        now: u64,
        pending: &Pending,
    ) -> Result<Planned, RegisterError> {
        // Nobody makes one by saying so.
        let message = pb::Workload {
            shared: None,
            ..message
        };
        check(node, &message)?;
        self.check_beside_shared(&message)?;
        let naming = (&self.trust_domain, self.svid_form);
        self.workloads.plan(node, message, naming, now, pending)
    }

    /// The same of a shared endpoint.
    pub(crate) fn plan_shared(&self, message: pb::Workload, now: u64) -> Result<Planned, RegisterError> {
        let (node, naming) = (message.node.clone(), (&self.trust_domain, self.svid_form));
        self.workloads
            .plan(&node, message, naming, now, &Pending::default())
    }

    /// Makes a planned registration, which has been stored.
    pub(crate) fn register(&mut self, planned: Planned, now: u64) -> pb::Workload {
        let Planned { message, labels, .. } = planned;
        let number = NumericIdentity(message.identity);
        if self.workloads.give(number, &labels, None) {
            self.identity_changed(number, &labels);
            self.dirty
                .keys
                .insert(Key::new(Kind::Identity, number.to_string()));
        }
        let workload = Workload::new(message.clone());
        let unchanged = self
            .workloads
            .get(&message.id)
            .is_some_and(|old| old.message == message);
        if unchanged {
            return message;
        }
        let old = self.workloads.insert(workload, now);
        self.workload_changed(&message.id, old.as_ref(), Some(&message));
        message
    }

    pub(crate) fn plan_removal(&self, id: &str, now: u64) -> Vec<Write> {
        self.workloads.plan_removal(id, now)
    }

    /// Makes a removal, which has been stored.
    pub(crate) fn deregister(&mut self, id: &str, now: u64) {
        if let Some(old) = self.workloads.remove(id, now) {
            self.workload_changed(id, Some(&old), None);
        }
    }

    fn workload_changed(&mut self, id: &str, old: Option<&Workload>, new: Option<&pb::Workload>) {
        self.dirty.keys.insert(Key::new(Kind::Endpoint, id));
        let before = old.map(|w| &w.message);
        for message in before.into_iter().chain(new) {
            self.dirty.nodes.insert(message.node.clone());
            self.redirects
                .workload_changed(&message.namespace, &mut self.dirty);
        }
        self.node_facts.pods_changed(before, new, &mut self.dirty);
        for identity in std::mem::take(&mut self.workloads.ports_changed) {
            self.policies.ports_changed(identity, &self.workloads);
        }
        self.objects
            .workload_changed(before, new, &self.workloads, &mut self.dirty);
        self.tell_followers(id);
    }

    /// The node that a workload is of.
    pub(crate) fn node_of(&self, id: &str) -> Option<&str> {
        self.workloads.get(id).map(|w| w.message.node.as_str())
    }

    pub(crate) fn ids_of_node(&self, node: &str) -> Vec<String> {
        self.workloads
            .of_node(node)
            .map(|w| w.message.id.clone())
            .collect()
    }

    pub(crate) fn expired_identities(&self, until: u64) -> Vec<NumericIdentity> {
        self.workloads.expired(until)
    }

    /// Takes a number back for good.
    pub(crate) fn take_back(&mut self, identity: NumericIdentity) {
        if let Some(labels) = self.workloads.take_back(identity) {
            self.policies.identity_changed(identity, &labels, &self.workloads);
            self.dirty
                .keys
                .insert(Key::new(Kind::Identity, identity.to_string()));
        }
    }

    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.workloads.len(), self.workloads.given.len())
    }
}
