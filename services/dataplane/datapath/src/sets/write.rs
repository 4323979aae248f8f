//! Writing what was prepared: before endpoints use it, and after nobody does any more.

use super::{Before, Prepared, Retired, Sets, Slot, rules_of};
use crate::{
    image::{self, empty_image, forget},
    tables::{CLOSED, Tables, Write},
    writer::{Subject, Writer},
};
use ipnet::IpNet;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};
use weft_model::NumericIdentity;
use weft_policy_engine::{Authentication, Image, PolicySet, image::Step};

impl Sets {
    /// Closes a slot that is in use: without its entry in the kernel nothing of it is read.
    fn fail<T: Tables>(&mut self, id: &Arc<str>, problem: &str, writer: &mut Writer<T>) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        slot.failed = true;
        let number = slot.number;
        slot.number = CLOSED;
        let image = std::mem::replace(&mut slot.image, empty_image());
        let set = slot.set.clone();
        writer.problem(
            Subject::Set(id.to_string()),
            format!("policy set {id}: {problem}; the workloads it governs are closed"),
        );
        writer.remove(&Write::Set(number, None));
        clear(number, &image, writer);
        self.unreleased.push(set);
    }

    fn let_go(&mut self, set: &PolicySet) -> Vec<(IpNet, NumericIdentity)> {
        for rule in rules_of(set) {
            self.rules.release(&rule);
        }
        self.cidrs.release(set)
    }

    /// Writes what endpoints need before they use it.
    pub(crate) fn write_before<T: Tables>(&mut self, prepared: &mut Prepared, writer: &mut Writer<T>) {
        for before in std::mem::take(&mut prepared.before) {
            match before {
                Before::New(id) => self.write_new(&id, writer),
                Before::Grow(id, steps) => self.grow(&id, &steps, prepared, writer),
                Before::Copy(number, id, steps) => self.write_copy(number, id, &steps, prepared, writer),
            }
        }
    }

    fn write_new<T: Tables>(&mut self, id: &Arc<str>, writer: &mut Writer<T>) {
        let Some(slot) = self.slots.get_mut(id).filter(|s| !s.failed) else {
            return;
        };
        slot.generation = writer.next_generation();
        let entry = slot.entry();
        let number = slot.number;
        let steps: Vec<Step> = slot.image.steps().collect();
        let entries = steps.into_iter().map(|step| Write::Policy(number, step));
        let failed = entries
            .chain([Write::Set(number, Some(entry))])
            .find_map(|write| writer.write(&write).err());
        match failed {
            Some(error) => self.fail(id, &error.to_string(), writer),
            None => writer.solved(&Subject::Set(id.to_string())),
        }
    }

    fn write_copy<T: Tables>(
        &mut self,
        number: u32,
        id: Option<Arc<str>>,
        steps: &[Step],
        prepared: &mut Prepared,
        writer: &mut Writer<T>,
    ) {
        let failed = steps
            .iter()
            .find_map(|step| writer.write(&Write::Policy(number, *step)).err());
        let Some(error) = failed else { return };
        match id {
            Some(id) => {
                prepared.endpoints.extend(slot_users(&self.slots, &id));
                self.fail(&id, &error.to_string(), writer);
            }
            // It is on its way out: closed for the rest of it.
            None => writer.remove(&Write::Set(number, None)),
        }
    }

    fn grow<T: Tables>(
        &mut self,
        id: &Arc<str>,
        steps: &[Step],
        prepared: &mut Prepared,
        writer: &mut Writer<T>,
    ) {
        let Some(slot) = self.slots.get(id).filter(|s| !s.failed) else {
            return;
        };
        let number = slot.number;
        let (mut refused, mut lacking) = (false, None);
        let strict =
            |step: &Step| image::value(step).is_some_and(|v| v.deny || v.auth == Authentication::Required);
        for step in steps {
            if !refused && !strict(step) {
                // All refusals are there: what passes by an older verdict is judged anew.
                refused = true;
                self.renew(id, writer);
            }
            let Err(error) = writer.write(&Write::Policy(number, *step)) else {
                continue;
            };
            if strict(step) {
                let users = slot_users(&self.slots, id);
                prepared.endpoints.extend(users);
                return self.fail(id, &error.to_string(), writer);
            }
            lacking = Some(error);
        }
        if !refused && !steps.is_empty() {
            self.renew(id, writer);
        }
        if let Some(error) = lacking {
            writer.problem(
                Subject::Set(id.to_string()),
                format!("policy set {id}: {error}; it does not allow all that it should"),
            );
            if let Some(slot) = self.slots.get_mut(id) {
                slot.partial = true;
            }
        }
    }

    /// Has every connection under a set judged anew.
    fn renew<T: Tables>(&mut self, id: &Arc<str>, writer: &mut Writer<T>) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        slot.generation = writer.next_generation();
        let write = Write::Set(slot.number, Some(slot.entry()));
        if let Err(error) = writer.write(&write) {
            self.fail(id, &error.to_string(), writer);
        }
    }

    /// The ranges that nobody names once what was prepared is done. Their addresses go before
    /// [`Sets::write_after`].
    pub(crate) fn release(&mut self, prepared: &mut Prepared) -> Vec<(IpNet, NumericIdentity)> {
        let mut sets = std::mem::take(&mut prepared.released);
        sets.append(&mut self.unreleased);
        sets.iter().flat_map(|set| self.let_go(set)).collect()
    }

    /// Removes what nobody uses any more.
    pub(crate) fn write_after<T: Tables>(
        &mut self,
        prepared: Prepared,
        released: &[(IpNet, NumericIdentity)],
        writer: &mut Writer<T>,
    ) {
        let gone: HashSet<u32> = released.iter().map(|(_, identity)| identity.0).collect();
        for slot in self.slots.values_mut().filter(|s| !s.failed && !gone.is_empty()) {
            // They have no address any more: no verdict changes.
            for step in forget(&mut slot.image, &gone) {
                writer.remove(&Write::Policy(slot.number, step));
            }
        }
        for (id, steps) in prepared.shrink {
            if steps.is_empty() || self.slots.get(&id).is_none_or(|s| s.failed) {
                continue;
            }
            let number = self.slots.get(&id).map_or(CLOSED, |s| s.number);
            for step in &steps {
                writer.remove(&Write::Policy(number, *step));
            }
            self.renew(&id, writer);
        }
        for Retired { number, image } in prepared.retired {
            writer.remove(&Write::Set(number, None));
            clear(number, &image, writer);
        }
    }

    /// Removes what is left of the time before the start and that no endpoint in `kept` uses.
    pub(crate) fn sweep<T: Tables>(&mut self, kept: &BTreeSet<u32>, writer: &mut Writer<T>) {
        let gone: Vec<u32> = self
            .adopted
            .keys()
            .filter(|n| !kept.contains(*n))
            .copied()
            .collect();
        for number in gone {
            if let Some((_, image)) = self.adopted.remove(&number) {
                writer.remove(&Write::Set(number, None));
                clear(number, &image, writer);
            }
        }
    }

    /// Whether anything is left of the time before the start.
    pub(crate) fn is_swept(&self) -> bool {
        self.adopted.is_empty()
    }

    /// Ranges that have numbers from before the start and that no set names.
    pub(crate) fn sweep_ranges(&mut self) -> Vec<(IpNet, NumericIdentity)> {
        self.cidrs.sweep()
    }

    /// All ranges with their numbers.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (IpNet, NumericIdentity)> {
        self.cidrs.iter()
    }
}

fn slot_users(slots: &HashMap<Arc<str>, Slot>, id: &Arc<str>) -> BTreeSet<u32> {
    slots.get(id).map(|s| s.users.clone()).unwrap_or_default()
}

/// Removes all entries of a set that nobody reads.
fn clear<T: Tables>(number: u32, image: &Image, writer: &mut Writer<T>) {
    for step in image.steps() {
        writer.remove(&Write::Policy(number, image::removed(&step)));
    }
}
