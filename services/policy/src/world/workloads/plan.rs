//! Registrations and removals before they are made: what they derive, and what is to be stored for them.

use super::{Workloads, labels, named_ports, pod_addresses, to_wire};
use crate::{
    store::Write,
    world::check::{RegisterError, check, invalid, spiffe_id},
};
use std::{collections::BTreeSet, net::IpAddr};
use weft_model::{Labels, NumericIdentity, SvidForm, TrustDomain};
use weft_proto::weft::policy::v1 as pb;

const MAX_WORKLOADS: usize = 50_000;
const MAX_PER_NODE: usize = 4_096;

/// A change that was checked and not made yet: what to store, and the workload as it will be.
#[derive(Debug)]
pub(crate) struct Planned {
    pub writes: Vec<Write>,
    pub message: pb::Workload,
    pub(super) labels: Labels,
}

/// What other registrations will take that were planned and not made yet.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    numbers: BTreeSet<NumericIdentity>,
    labels: BTreeSet<Labels>,
    addresses: BTreeSet<IpAddr>,
    count: usize,
}

impl Pending {
    pub(crate) fn add(&mut self, planned: &Planned) {
        self.numbers.insert(NumericIdentity(planned.message.identity));
        self.labels.insert(planned.labels.clone());
        self.addresses.extend(pod_addresses(&planned.message));
        self.count += 1;
    }

    /// Whether one of them would have made this plan another one.
    pub(crate) fn meets(&self, planned: &Planned) -> bool {
        let number = NumericIdentity(planned.message.identity);
        // The same labels: fine where they have had that number before.
        let renamed = self.labels.contains(&planned.labels) && !self.numbers.contains(&number);
        renamed || pod_addresses(&planned.message).any(|a| self.addresses.contains(&a))
    }
}

impl Workloads {
    fn free_number(&self, pending: &Pending) -> Option<NumericIdentity> {
        let (first, last) = (
            NumericIdentity::FIRST_ALLOCATED.0,
            NumericIdentity::LAST_ALLOCATED.0,
        );
        let from = self.last.max(first - 1) + 1;
        (from..=last)
            .chain(first..from.min(last + 1))
            .map(NumericIdentity)
            .find(|n| !self.given.contains_key(n) && !pending.numbers.contains(n))
    }

    /// Checks a registration by `node` and works out what it derives. Changes nothing.
    pub(crate) fn plan(
        &self,
        node: &str,
        mut message: pb::Workload,
        (domain, form): (&TrustDomain, SvidForm),
        now: u64,
        pending: &Pending,
    ) -> Result<Planned, RegisterError> {
        check(node, &message)?;
        if let Some(old) = self.all.get(&message.id)
            && old.message.node != node
        {
            return Err(RegisterError::NotYours {
                id: message.id,
                owner: old.message.node.clone(),
            });
        }
        let pod = message.kind() == pb::WorkloadKind::Pod;
        for text in &message.addresses {
            let address: IpAddr = text.parse().map_err(invalid("addresses"))?;
            let other = self.by_address.get(&address).and_then(|id| self.all.get(id));
            if let Some(other) = other.filter(|o| pod && o.message.node != node) {
                let (by, node) = (other.message.id.clone(), other.message.node.clone());
                return Err(RegisterError::AddressInUse { address, by, node });
            }
        }
        if !self.all.contains_key(&message.id) {
            if self.all.len() + pending.count >= MAX_WORKLOADS {
                return Err(RegisterError::Full(format!(
                    "the registry is full with {MAX_WORKLOADS} workloads"
                )));
            }
            if self
                .by_node
                .get(node)
                .is_some_and(|ids| ids.len() + pending.count >= MAX_PER_NODE)
            {
                return Err(RegisterError::Full(format!(
                    "node {node} has its {MAX_PER_NODE} workloads already"
                )));
            }
        }
        message.named_ports = to_wire(&named_ports(&message).unwrap_or_default());
        let labels = labels(&message);
        let identity = self
            .by_labels
            .get(&labels)
            .copied()
            .or_else(|| self.free_number(pending))
            .ok_or_else(|| {
                RegisterError::Full("every security identity is in use by another label set".into())
            })?;
        message.identity = identity.0;
        message.spiffe_id = spiffe_id(&message, domain, form)?;
        let mut writes = vec![
            Write::identity(identity, &labels, None),
            Write::Workload {
                id: message.id.clone(),
                node: node.to_owned(),
                message: Box::new(message.clone()),
            },
        ];
        writes.extend(self.release(&message.id, Some(identity), now));
        Ok(Planned {
            writes,
            message,
            labels,
        })
    }

    /// The write that a workload's leaving its identity takes, if it is the last one there.
    fn release(&self, id: &str, stays_with: Option<NumericIdentity>, now: u64) -> Option<Write> {
        let old = self.all.get(id)?.identity;
        let given = self.given.get(&old)?;
        let last = given.workloads.len() == 1 && given.workloads.contains(id);
        (last && stays_with != Some(old)).then(|| Write::identity(old, &given.labels, Some(now)))
    }

    /// What removing a workload stores.
    pub(crate) fn plan_removal(&self, id: &str, now: u64) -> Vec<Write> {
        if !self.all.contains_key(id) {
            return Vec::new();
        }
        let mut writes = vec![Write::RemoveWorkload { id: id.to_owned() }];
        writes.extend(self.release(id, None, now));
        writes
    }
}
