//! Bringing the kernel to what is desired, one change at a time.
//!
//! Owns the order in which a change is written, so that no packet in between is judged by something
//! that was never desired:
//!
//! 1. where pods are; addresses that are nobody's any more, then endpoints that are gone or must be
//!    closed;
//! 2. what policies say of identities that are new to them, and new policies; then the addresses of
//!    ranges that new policies name, of which all others say what they said before;
//! 3. endpoints: moved to their policy by one write each;
//! 4. addresses: an identity gets its address when every policy that names it knows it;
//! 5. ranges that no policy names, then entries and policies that nobody uses.
//!
//! An address that changes hands while a policy forgets its former identity is "not known yet" in
//! between. What can not be written is closed, told, and tried again when there may be room.

mod addresses;

use crate::{
    claims::{self, Claims, Rank},
    facts::{Facts, Here, Touched, Update},
    rules::RuleNames,
    services::{Removed, Services},
    sets::{Limits, Sets},
    tables::{AddressEntry, CLOSED, EndpointEntry, Tables, Write, WriteError, endpoint},
    writer::{Subject, Writer},
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use weft_model::NumericIdentity;

/// Who claims the ranges that policies name.
const POLICIES: &str = "policies";

/// What an update led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What of it could not be done, each line for the operator, once.
    pub problems: Vec<String>,
    /// Backends whose sockets are to be closed.
    pub removed: Vec<Removed>,
}

/// What the kernel holds, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Endpoints of this node.
    pub endpoints: usize,
    /// Addresses and ranges.
    pub addresses: usize,
    /// Policy sets.
    pub sets: usize,
    /// Their entries.
    pub entries: usize,
    /// Writes since the start.
    pub writes: u64,
}

/// The only writer of a node's policy tables.
#[derive(Debug)]
pub struct Datapath<T> {
    writer: Writer<T>,
    facts: Facts,
    claims: Claims,
    sets: Sets,
    services: Services,
    policies: Arc<str>,
    /// Addresses for which there was no room.
    homeless: BTreeSet<IpNet>,
    /// Endpoints whose entry could not be written.
    unwritten: BTreeSet<u32>,
    /// Whether what was there before the start has been sorted out.
    reconciled: bool,
}

impl<T: Tables> Datapath<T> {
    /// Takes note of what the kernel holds and changes nothing. The first update should be complete.
    pub fn adopt(mut tables: T, limits: Limits) -> Result<Self, WriteError> {
        let held = tables.read()?;
        Ok(Self {
            sets: Sets::new(limits, &held),
            writer: Writer::new(tables, &held),
            facts: Facts::default(),
            claims: Claims::default(),
            services: Services::default(),
            policies: POLICIES.into(),
            homeless: BTreeSet::new(),
            unwritten: BTreeSet::new(),
            reconciled: false,
        })
    }

    /// Names of rules by the numbers that events show.
    pub fn rule_names(&self) -> RuleNames {
        self.sets.rule_names()
    }

    /// What the kernel holds.
    pub fn counts(&self) -> Counts {
        let (sets, entries) = self.sets.counts();
        Counts {
            endpoints: self.writer.endpoints.len(),
            addresses: self.writer.addresses.len(),
            sets,
            entries,
            writes: self.writer.writes,
        }
    }

    /// What can not be done as desired, until it can.
    pub fn problems(&self) -> Vec<String> {
        self.writer.problems().cloned().collect()
    }

    /// Whether an endpoint of this node is in the kernel as desired; one whose policy can not be
    /// used is, closed.
    pub fn is_in_place(&self, number: u32) -> bool {
        self.wanted_endpoint(number).is_some_and(|wanted| {
            self.writer
                .endpoints
                .get(&number)
                .is_some_and(|e| same(e, &wanted))
        })
    }

    /// The tables, for tests.
    pub fn tables(&mut self) -> &mut T {
        &mut self.writer.tables
    }

    /// Tries again what failed.
    pub fn retry(&mut self) -> Outcome {
        self.writer.freed = true;
        self.apply(Update::default())
    }

    /// Brings the kernel to what is desired now.
    pub fn apply(&mut self, mut update: Update) -> Outcome {
        let complete = update.complete;
        update.complement(&self.facts);
        let mut touched = Touched::default();
        self.merge(update, &mut touched);
        let reconcile = complete && !self.reconciled;
        if reconcile {
            self.touch_all(&mut touched);
        }
        if !claims::EVERYWHERE
            .iter()
            .all(|net| self.writer.addresses.contains_key(net))
        {
            // Before anything could take the last room.
            self.write_everywhere();
        }
        let again = std::mem::take(&mut self.writer.freed);
        if again {
            touched.endpoints.extend(self.sets.unfinished());
            touched.endpoints.append(&mut self.unwritten);
            touched.addresses.append(&mut self.homeless);
        }
        touched.endpoints.retain(|n| !self.is_held_over(*n));

        let policies = touched
            .endpoints
            .iter()
            .filter(|n| self.facts.endpoint(**n).is_some());
        let mut policies: BTreeMap<_, _> = policies.map(|n| (*n, self.facts.set_of(*n).cloned())).collect();
        // Those that are gone leave their sets.
        let gone = touched
            .endpoints
            .iter()
            .filter(|n| self.facts.endpoint(**n).is_none());
        policies.extend(gone.map(|n| (*n, None)));
        let mut prepared = self.sets.prepare(&policies, again, &mut self.writer);
        touched.endpoints.append(&mut prepared.endpoints);
        let mut ranges = Touched::default();
        for (net, identity) in std::mem::take(&mut prepared.ranges) {
            self.claim_range(net, identity, &mut ranges);
        }

        self.write_unknown(&touched.addresses);
        let changing = self.drop_addresses(&touched, prepared.changes_policies() || reconcile);
        self.drop_endpoints(&touched.endpoints);
        self.sets.write_before(&mut prepared, &mut self.writer);
        touched.endpoints.append(&mut prepared.endpoints);
        // One among the pods of a node that is leaving waits until the pods that stay have their addresses.
        let (later, now) = ranges
            .addresses
            .into_iter()
            .partition(|net| self.is_among_pods(*net));
        touched.addresses.append(&mut { later });
        self.write_addresses(&now);
        self.write_endpoints(&touched.endpoints);
        touched.addresses.extend(changing);
        self.write_addresses(&touched.addresses);

        let mut released = self.sets.release(&mut prepared);
        if reconcile && !self.is_anything_held_over() {
            released.extend(self.sets.sweep_ranges());
        }
        let mut freed = Touched::default();
        for (net, _) in &released {
            self.claims.remove(*net, Rank::Range, &self.policies, &mut freed);
        }
        self.write_addresses(&freed.addresses);
        self.sets.write_after(prepared, &released, &mut self.writer);
        let mut removed = self
            .services
            .sync(&self.facts, &touched.services, &mut self.writer);
        if !self.reconciled && (reconcile || complete) {
            removed.extend(self.sweep());
        }
        Outcome {
            problems: self.writer.news(),
            removed,
        }
    }

    fn merge(&mut self, update: Update, touched: &mut Touched) {
        let (facts, claims) = (&mut self.facts, &mut self.claims);
        for (id, set) in update.sets {
            facts.set_set(id, set, touched);
        }
        for (name, node) in update.nodes {
            let Some(old) = facts.set_node(&name, node.clone()) else {
                continue;
            };
            let of = |node: &Option<crate::facts::Node>| {
                node.iter()
                    .flat_map(|n| claims::of_node(&name, n))
                    .collect::<Vec<_>>()
            };
            reclaim(claims, &name, of(&old), of(&node), touched);
        }
        for (id, there) in update.there {
            let Some(old) = facts.set_there(&id, there.clone(), touched) else {
                continue;
            };
            let of =
                |t: &Option<crate::facts::There>| t.iter().flat_map(claims::of_there).collect::<Vec<_>>();
            reclaim(claims, &id, of(&old), of(&there), touched);
        }
        for (id, here) in update.here {
            let Some(old) = facts.set_here(&id, here.clone(), touched) else {
                continue;
            };
            let of = |h: &Option<Here>| h.iter().flat_map(claims::of_here).collect::<Vec<_>>();
            reclaim(claims, &id, of(&old), of(&here), touched);
        }
        for (name, service) in update.services {
            facts.set_service(&name, service, touched);
        }
    }

    /// Everything that the kernel holds or should hold.
    fn touch_all(&mut self, touched: &mut Touched) {
        touched.endpoints.extend(self.writer.endpoints.keys());
        touched.addresses.extend(self.writer.addresses.keys());
        touched.addresses.extend(self.claims.nets());
        for (net, identity) in self.sets.ranges().collect::<Vec<_>>() {
            self.claim_range(net, identity, touched);
        }
    }

    fn claim_range(&mut self, net: IpNet, identity: NumericIdentity, touched: &mut Touched) {
        let entry = AddressEntry {
            identity: identity.0,
            flags: 0,
            endpoint: 0,
            node: 0,
        };
        self.claims.put(net, Rank::Range, &self.policies, entry, touched);
    }

    /// An endpoint that is here, that the kernel knows from before, and of which the policy service
    /// has not told yet: it goes on as it was.
    fn is_held_over(&self, number: u32) -> bool {
        let told = self.facts.endpoint(number).map(|here| here.governed.is_some());
        told == Some(false) && self.writer.endpoints.contains_key(&number)
    }

    fn is_anything_held_over(&self) -> bool {
        self.facts.by_number.keys().any(|n| self.is_held_over(*n))
    }

    fn wanted_endpoint(&self, number: u32) -> Option<EndpointEntry> {
        let here = self.facts.endpoint(number)?;
        let governed = here.governed.as_ref()?;
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        Some(EndpointEntry {
            identity: governed.identity.0,
            set: self.sets.number_of(number),
            flags: flag(here.proven, endpoint::PROVEN)
                | flag(!here.pod, endpoint::PROCESS)
                | flag(here.capture, endpoint::CAPTURE)
                | flag(here.audit, endpoint::AUDIT),
            generation: 0,
        })
    }

    fn drop_endpoints(&mut self, touched: &BTreeSet<u32>) {
        for number in touched {
            let wanted = self.wanted_endpoint(*number);
            let Some(there) = self.writer.endpoints.get(number).copied() else {
                if wanted.is_none() {
                    self.unwritten.remove(number);
                    self.writer.solved(&Subject::Endpoint(*number));
                }
                continue;
            };
            match wanted {
                None => self.writer.remove(&Write::Endpoint(*number, None)),
                Some(wanted) if wanted.set == CLOSED && there.set != CLOSED => {
                    let closed = EndpointEntry { set: CLOSED, ..there };
                    self.put_endpoint(*number, closed);
                }
                Some(_) => {}
            }
        }
    }

    /// First those that keep their identity: when one gets another, all policies know it.
    fn write_endpoints(&mut self, touched: &BTreeSet<u32>) {
        let wanted = touched
            .iter()
            .filter_map(|n| Some((*n, self.wanted_endpoint(*n)?)));
        let (mut same_identity, mut others) = (Vec::new(), Vec::new());
        for (number, entry) in wanted {
            match self.writer.endpoints.get(&number) {
                Some(there) if same(there, &entry) => {}
                Some(there) if there.identity == entry.identity => same_identity.push((
                    number,
                    EndpointEntry {
                        generation: there.generation,
                        ..entry
                    },
                )),
                _ => others.push((number, entry)),
            }
        }
        for (number, entry) in same_identity {
            self.put_endpoint(number, entry);
        }
        for (number, entry) in others {
            let generation = self.writer.next_generation();
            self.put_endpoint(number, EndpointEntry { generation, ..entry });
        }
    }

    fn put_endpoint(&mut self, number: u32, entry: EndpointEntry) {
        match self.writer.write(&Write::Endpoint(number, Some(entry))) {
            Ok(()) => {
                self.unwritten.remove(&number);
                self.writer.solved(&Subject::Endpoint(number));
            }
            Err(error) => {
                self.unwritten.insert(number);
                let name = self.facts.by_number.get(&number).cloned().unwrap_or_default();
                let text = format!("workload {name} (endpoint {number}): {error}; it is closed");
                self.writer.problem(Subject::Endpoint(number), text);
            }
        }
    }

    /// Removes what is left of the time before the start, once nothing goes on as it was then.
    fn sweep(&mut self) -> Vec<Removed> {
        let held = self
            .writer
            .endpoints
            .iter()
            .filter(|(n, _)| self.is_held_over(**n));
        let kept: BTreeSet<u32> = held.map(|(_, e)| e.set).collect();
        let removed = self.services.sweep(&mut self.writer);
        self.sets.sweep(&kept, &mut self.writer);
        self.reconciled = kept.is_empty() && self.sets.is_swept();
        removed
    }
}

/// But for the generation, which only says how often it changed.
fn same(a: &EndpointEntry, b: &EndpointEntry) -> bool {
    (a.identity, a.set, a.flags) == (b.identity, b.set, b.flags)
}

fn reclaim(
    claims: &mut Claims,
    by: &Arc<str>,
    old: Vec<(IpNet, Rank, AddressEntry)>,
    new: Vec<(IpNet, Rank, AddressEntry)>,
    touched: &mut Touched,
) {
    let kept: BTreeSet<(IpNet, Rank)> = new.iter().map(|(net, rank, _)| (*net, *rank)).collect();
    for (net, rank, _) in old.iter().filter(|(net, rank, _)| !kept.contains(&(*net, *rank))) {
        claims.remove(*net, *rank, by, touched);
    }
    for claim in new {
        if !old.contains(&claim) {
            let (net, rank, entry) = claim;
            claims.put(net, rank, by, entry, touched);
        }
    }
}
