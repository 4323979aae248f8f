//! Policy sets in the kernel: which number stands for which policy, and what is written before and
//! after the endpoints that use it.
//!
//! Owns the slots. A slot is one policy in the kernel, shared by all endpoints that it governs. When
//! a policy changes only in which identities it names, the slot is changed in place: refusals first,
//! allowances last. Any other change is a new slot; endpoints are moved by one write each, and the
//! old slot is removed when nobody uses it.

mod write;

use crate::{
    image::{copy, empty_image, identities},
    rules::{RuleNames, Rules},
    tables::{CLOSED, Held, SetEntry, Tables},
    writer::{Subject, Writer},
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};
use weft_model::NumericIdentity;
use weft_policy_engine::{
    CidrIdentities, Image, PolicySet,
    image::{Change, Step, Value},
};

/// Bounds of what one node writes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Entries of one policy set.
    pub entries_per_set: usize,
    /// Address ranges that policies name.
    pub ranges: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries_per_set: 131_072,
            ranges: 16_384,
        }
    }
}

#[derive(Debug)]
struct Slot {
    number: u32,
    set: Arc<PolicySet>,
    /// With rules' numbers as the kernel has them.
    image: Image,
    users: BTreeSet<u32>,
    generation: u32,
    /// Why it is closed.
    failed: bool,
    /// Lacks something that it should allow.
    partial: bool,
}

/// A number that nobody will use any more, and what it holds.
#[derive(Debug)]
struct Retired {
    number: u32,
    image: Image,
}

/// What is to be written for a slot before endpoints use it.
#[derive(Debug)]
enum Before {
    /// All of it.
    New(Arc<str>),
    /// In place.
    Grow(Arc<str>, Vec<Step>),
    /// In place, without a change of any verdict: new ranges as what they lie in. With the set, if
    /// it goes on being used.
    Copy(u32, Option<Arc<str>>, Vec<Step>),
}

/// What [`Sets::prepare`] worked out.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    before: Vec<Before>,
    /// Removed from slots in place, once the identities' addresses are gone.
    shrink: Vec<(Arc<str>, Vec<Step>)>,
    retired: Vec<Retired>,
    /// Sets whose ranges are not needed any more.
    released: Vec<Arc<PolicySet>>,
    /// Endpoints whose entry may change.
    pub(crate) endpoints: BTreeSet<u32>,
    /// Ranges that have a number now.
    pub(crate) ranges: Vec<(IpNet, NumericIdentity)>,
}

impl Prepared {
    /// Whether any policy in the kernel changes.
    pub(crate) fn changes_policies(&self) -> bool {
        !(self.before.is_empty() && self.shrink.is_empty() && self.retired.is_empty())
    }
}

/// Sets that endpoints left, with these endpoints.
type Left = BTreeMap<Arc<str>, BTreeSet<u32>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Sets {
    limits: Limits,
    cidrs: CidrIdentities,
    slots: HashMap<Arc<str>, Slot>,
    /// The slot of each endpoint.
    of: HashMap<u32, Arc<str>>,
    rules: Rules,
    /// What the kernel held at the start, by number, until it is taken over or removed.
    adopted: BTreeMap<u32, (SetEntry, Image)>,
    /// Of slots that failed while they were in use: their ranges are to be let go of.
    unreleased: Vec<Arc<PolicySet>>,
    last: u32,
}

impl Sets {
    /// Takes note of what the kernel holds.
    pub(crate) fn new(limits: Limits, held: &Held) -> Self {
        let mut cidrs = CidrIdentities::new(limits.ranges);
        for (net, entry) in &held.addresses {
            cidrs.adopt(*net, NumericIdentity(entry.identity));
        }
        // A range among a node's pods has a number and no address: what its entries mean is not known.
        for identity in held.policies.values().flat_map(identities) {
            cidrs.skip(NumericIdentity(identity));
        }
        let numbers = held.sets.keys().chain(held.policies.keys());
        let endpoints = held.endpoints.values().map(|e| &e.set);
        let last = numbers.clone().chain(endpoints).max().copied().unwrap_or(0);
        let adopted = numbers.collect::<BTreeSet<_>>().into_iter().map(|number| {
            // Entries without their set: a writer that died. They only wait for their removal.
            let entry = held.sets.get(number).copied().unwrap_or(SetEntry {
                shapes: [0; 2],
                flags: 0,
                generation: 0,
            });
            let mut image = held.policies.get(number).cloned().unwrap_or_else(empty_image);
            (image.flags, image.shapes) = (entry.flags, entry.shapes);
            (*number, (entry, image))
        });
        Self {
            limits,
            cidrs,
            slots: HashMap::new(),
            of: HashMap::new(),
            rules: Rules::default(),
            adopted: adopted.collect(),
            unreleased: Vec::new(),
            last,
        }
    }

    pub(crate) fn rule_names(&self) -> RuleNames {
        self.rules.names()
    }

    /// The number that an endpoint's entry is to have.
    pub(crate) fn number_of(&self, endpoint: u32) -> u32 {
        let slot = self.of.get(&endpoint).and_then(|id| self.slots.get(id));
        slot.filter(|s| !s.failed).map_or(CLOSED, |s| s.number)
    }

    /// Sets in the kernel and the entries that they have.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let usable = self.slots.values().filter(|s| !s.failed);
        usable.fold((0, 0), |(sets, entries), s| (sets + 1, entries + s.image.len()))
    }

    /// Endpoints whose set is closed or incomplete, to try again.
    pub(crate) fn unfinished(&self) -> BTreeSet<u32> {
        let slots = self.slots.values().filter(|s| s.failed || s.partial);
        slots.flat_map(|s| &s.users).copied().collect()
    }

    fn build(&mut self, set: &PolicySet) -> Result<Image, String> {
        let image = Image::new(set, &self.cidrs, self.limits.entries_per_set).map_err(|e| e.to_string())?;
        Ok(self.numbered(image))
    }

    /// With the kernel's numbers for rules. Every rule is held once by [`Sets::prepare`].
    fn numbered(&self, mut image: Image) -> Image {
        let rules = std::mem::take(&mut image.rules);
        let numbers: Vec<u32> = rules.iter().map(|rule| self.rules.number(rule)).collect();
        let put = |value: &mut Value| {
            let at = (value.rule as usize).checked_sub(1);
            value.rule = at.and_then(|at| numbers.get(at)).copied().unwrap_or(0);
        };
        image.entries.values_mut().for_each(put);
        image.allow.values_mut().for_each(put);
        image.deny.values_mut().for_each(put);
        image
    }

    fn hold(&mut self, set: &PolicySet) -> Result<Vec<(IpNet, NumericIdentity)>, String> {
        let new = self.cidrs.hold(set).map_err(|e| e.to_string())?;
        for rule in rules_of(set) {
            self.rules.hold(&rule);
        }
        Ok(new)
    }

    fn next_number(&mut self) -> u32 {
        loop {
            self.last = self.last.wrapping_add(1).max(CLOSED + 1);
            let taken =
                self.adopted.contains_key(&self.last) || self.slots.values().any(|s| s.number == self.last);
            if !taken {
                return self.last;
            }
        }
    }

    /// Assigns policies to endpoints (`None`: closed) and works out what that takes. `again`: what
    /// failed before is tried again. `held`: the number that the kernel has for an endpoint.
    pub(crate) fn prepare<T: Tables>(
        &mut self,
        wanted: &BTreeMap<u32, Option<Arc<PolicySet>>>,
        again: bool,
        writer: &mut Writer<T>,
    ) -> Prepared {
        let mut prepared = Prepared::default();
        // Whose users have left, with those who were there.
        let mut left = Left::new();
        let mut arriving: BTreeMap<Arc<str>, Arc<PolicySet>> = BTreeMap::new();
        for (endpoint, set) in wanted {
            prepared.endpoints.insert(*endpoint);
            let old = self.of.get(endpoint).cloned();
            let new: Option<Arc<str>> = set.as_ref().map(|s| s.id().into());
            if let (Some(id), Some(set)) = (&new, set) {
                let retry = again && self.slots.get(id).is_some_and(|s| s.failed || s.partial);
                if !self.slots.contains_key(id) || retry {
                    arriving.insert(id.clone(), set.clone());
                }
            }
            if old == new {
                continue;
            }
            if let Some(slot) = old.as_ref().and_then(|id| self.slots.get_mut(id)) {
                slot.users.remove(endpoint);
            }
            if let Some(old) = old {
                left.entry(old).or_default().insert(*endpoint);
            }
            if let Some(slot) = new.as_ref().and_then(|id| self.slots.get_mut(id)) {
                slot.users.insert(*endpoint);
            }
            match new {
                Some(new) => self.of.insert(*endpoint, new),
                None => self.of.remove(endpoint),
            };
        }
        // What fails again or was incomplete makes room for its new try first.
        for id in arriving.keys() {
            if let Some(old) = self.slots.remove(id) {
                prepared.endpoints.extend(&old.users);
                self.retire(old, &mut prepared);
            }
        }
        let mut leaving: Vec<(Arc<str>, Slot)> = Vec::new();
        for id in left.keys() {
            if self.slots.get(id).is_some_and(|s| s.users.is_empty())
                && let Some(slot) = self.slots.remove(id)
            {
                leaving.push((id.clone(), slot));
            }
        }
        let mut usable = Vec::new();
        for (id, set) in arriving {
            match self.hold(&set) {
                Ok(ranges) => {
                    prepared.ranges.extend(ranges);
                    usable.push((id, set));
                }
                Err(problem) => self.close(id, set, problem, writer),
            }
        }
        if !prepared.ranges.is_empty() {
            self.widen(&mut leaving, &mut prepared);
        }
        for (id, set) in usable {
            match self.build(&set) {
                Ok(image) => self.place(id, set, image, (&mut leaving, &left), writer, &mut prepared),
                Err(problem) => {
                    prepared.released.push(set.clone());
                    self.close(id, set, problem, writer);
                }
            }
        }
        for (id, slot) in leaving {
            writer.solved(&Subject::Set(id.to_string()));
            self.retire(slot, &mut prepared);
        }
        prepared
    }

    fn retire(&mut self, slot: Slot, prepared: &mut Prepared) {
        if !slot.failed {
            prepared.released.push(slot.set);
        }
        if slot.number != CLOSED {
            prepared.retired.push(Retired {
                number: slot.number,
                image: slot.image,
            });
        }
    }

    /// A set that can not be used: its endpoints are closed.
    fn close<T: Tables>(
        &mut self,
        id: Arc<str>,
        set: Arc<PolicySet>,
        problem: String,
        writer: &mut Writer<T>,
    ) {
        writer.problem(
            Subject::Set(id.to_string()),
            format!("{problem}; the workloads it governs are closed"),
        );
        let users = self.users_of(&id);
        let slot = Slot {
            number: CLOSED,
            set,
            image: empty_image(),
            users,
            generation: 0,
            failed: true,
            partial: false,
        };
        self.slots.insert(id, slot);
    }

    fn users_of(&self, id: &Arc<str>) -> BTreeSet<u32> {
        let of = self.of.iter().filter(|(_, set)| *set == id);
        of.map(|(endpoint, _)| *endpoint).collect()
    }

    /// Finds a number for a set: one whose entries are nearly these, or a new one.
    fn place<T: Tables>(
        &mut self,
        id: Arc<str>,
        set: Arc<PolicySet>,
        image: Image,
        (leaving, left): (&mut Vec<(Arc<str>, Slot)>, &Left),
        writer: &mut Writer<T>,
        prepared: &mut Prepared,
    ) {
        let users = self.users_of(&id);
        prepared.endpoints.extend(&users);
        let mut slot = Slot {
            number: CLOSED,
            set,
            image,
            users,
            generation: 0,
            failed: false,
            partial: false,
        };
        // One that all users leave for this one, or for nowhere.
        let all_come = |old: &Arc<str>| {
            let here = |e: &u32| self.of.get(e).is_none_or(|now| *now == id);
            left.get(old).is_some_and(|users| users.iter().all(here))
        };
        let near = leaving.iter().enumerate().find_map(|(at, (old, before))| {
            if before.failed || before.partial || !all_come(old) {
                return None;
            }
            // What is removed at last must have been said of all who use it meanwhile.
            let all_came = || left.get(old).is_some_and(|users| slot.users.is_subset(users));
            match before.image.diff(&slot.image) {
                Change::Rules => None,
                Change::Identities { remove, .. } if !remove.is_empty() && !all_came() => None,
                change => Some((at, change)),
            }
        });
        if let Some((at, change)) = near {
            writer.solved(&Subject::Set(id.to_string()));
            let (old_id, old) = leaving.swap_remove(at);
            writer.solved(&Subject::Set(old_id.to_string()));
            (slot.number, slot.generation) = (old.number, old.generation);
            prepared.released.push(old.set);
            self.slots.insert(id.clone(), slot);
            if let Change::Identities { add, remove } = change {
                prepared.before.push(Before::Grow(id.clone(), add));
                prepared.shrink.push((id, remove));
            }
            return;
        }
        // One from before a restart.
        let held = slot
            .users
            .iter()
            .filter_map(|e| writer.endpoints.get(e))
            .map(|e| e.set);
        for number in held.collect::<BTreeSet<_>>() {
            let same = self.adopted.get(&number).is_some_and(|(entry, there)| {
                entry.generation != 0 && there.diff(&slot.image) == Change::None
            });
            if let Some((entry, _)) = self.adopted.get(&number).filter(|_| same) {
                (slot.number, slot.generation) = (number, entry.generation);
                writer.solved(&Subject::Set(id.to_string()));
                self.adopted.remove(&number);
                self.slots.insert(id, slot);
                return;
            }
        }
        slot.number = self.next_number();
        self.slots.insert(id.clone(), slot);
        prepared.before.push(Before::New(id));
    }

    /// New ranges lie in wider ones, or in the world: every set in the kernel says of them what it
    /// says of those, until it says otherwise. None of them names the new ranges, or they were not new.
    fn widen(&mut self, leaving: &mut [(Arc<str>, Slot)], prepared: &mut Prepared) {
        let new: HashSet<IpNet> = prepared.ranges.iter().map(|(net, _)| *net).collect();
        let mut copies = Vec::with_capacity(new.len());
        for (net, identity) in &prepared.ranges {
            let around = self
                .cidrs
                .iter()
                .filter(|(n, _)| n.contains(net) && !new.contains(n));
            let nearest = around.max_by_key(|(n, _)| n.prefix_len());
            let from = nearest.map_or(NumericIdentity::WORLD, |(_, identity)| identity);
            copies.push((from.0, identity.0));
        }
        let slots = self.slots.iter_mut().map(|(id, slot)| (Some(id.clone()), slot));
        let leaving = leaving.iter_mut().map(|(_, slot)| (None, slot));
        let slots = slots.chain(leaving).filter(|(_, slot)| !slot.failed);
        let images = slots.map(|(id, slot)| (id, slot.number, &mut slot.image));
        let adopted = self
            .adopted
            .iter_mut()
            .map(|(number, (_, image))| (None, *number, image));
        for (id, number, image) in images.chain(adopted) {
            let steps = copy(image, &copies);
            if !steps.is_empty() {
                prepared.before.push(Before::Copy(number, id, steps));
            }
        }
    }
}

impl Slot {
    fn entry(&self) -> SetEntry {
        SetEntry {
            shapes: self.image.shapes,
            flags: self.image.flags,
            generation: self.generation,
        }
    }
}

fn rules_of(set: &PolicySet) -> BTreeSet<Arc<weft_policy_engine::RuleRef>> {
    let entries = set.ingress().entries.iter().chain(&set.egress().entries);
    entries.map(|e| e.rule.clone()).collect()
}
