//! Who addresses are, in the kernel: what is written first, and what when there is no room.

use super::Datapath;
use crate::{
    claims::{self, UNKNOWN},
    facts::Touched,
    tables::{AddressEntry, Tables, Write, address},
    writer::Subject,
};
use ipnet::IpNet;
use std::collections::BTreeSet;

impl<T: Tables> Datapath<T> {
    pub(super) fn wanted_address(&self, net: IpNet) -> Option<AddressEntry> {
        if !self.homeless.is_empty() && self.claims.is_outside(net) {
            return Some(UNKNOWN);
        }
        let wanted = self.claims.wanted(net);
        if wanted.is_none()
            && let Some(there) = self.writer.addresses.get(&net)
            && there.endpoint != 0
            && self.is_held_over(there.endpoint)
        {
            return Some(*there);
        }
        wanted
    }

    /// Whether the kernel says "not known" of what lies around a range.
    pub(super) fn is_among_pods(&self, net: IpNet) -> bool {
        let mut wider = std::iter::successors(net.supernet(), IpNet::supernet);
        wider.any(|w| {
            let held = self.writer.addresses.get(&w);
            held.is_some_and(|entry| entry.flags & address::AGGREGATE != 0 && !self.claims.is_outside(w))
        })
    }

    /// Where pods are: an address that is nobody's any more is then not known, not the outside.
    pub(super) fn write_unknown(&mut self, touched: &BTreeSet<IpNet>) {
        let unknown = touched.iter().filter(|net| {
            let wanted = self.wanted_address(**net);
            wanted.is_some_and(|w| w.flags & address::AGGREGATE != 0)
        });
        let unknown: BTreeSet<IpNet> = unknown.copied().collect();
        self.write_addresses(&unknown);
    }

    /// Removes addresses that are nobody's. Where policies change too, those that are to change hands
    /// are not known until all policies know the new owner and none is asked about the old one any
    /// more; these are answered.
    pub(super) fn drop_addresses(&mut self, touched: &Touched, policies_change: bool) -> Vec<IpNet> {
        let mut changing = Vec::new();
        for net in &touched.addresses {
            let Some(there) = self.writer.addresses.get(net).copied() else {
                continue;
            };
            match self.wanted_address(*net) {
                // What says "not known yet" stays until those who are known have their addresses.
                None if there.flags & address::AGGREGATE != 0 => {}
                None => self.writer.remove(&Write::Address(*net, None)),
                Some(new)
                    if policies_change && new.identity != there.identity && !self.claims.is_outside(*net) =>
                {
                    let unknown = AddressEntry {
                        endpoint: new.endpoint,
                        ..UNKNOWN
                    };
                    // If not, it is what it was for a little longer.
                    let _ = self.writer.write(&Write::Address(*net, Some(unknown)));
                    changing.push(*net);
                }
                Some(_) => {}
            }
        }
        changing
    }

    pub(super) fn write_addresses(&mut self, touched: &BTreeSet<IpNet>) {
        let was_full = !self.homeless.is_empty();
        let mut gone = Vec::new();
        // The narrow ones come first and go last: what is said of a range must not be said of what
        // is excepted from it.
        let mut nets: Vec<&IpNet> = touched.iter().collect();
        nets.sort_by_key(|net| std::cmp::Reverse(net.prefix_len()));
        for net in nets {
            self.homeless.remove(net);
            let wanted = self.wanted_address(*net);
            if self.writer.addresses.get(net).copied() == wanted {
                self.writer.solved(&Subject::Address(*net));
                continue;
            }
            let Some(entry) = wanted else {
                gone.push(*net);
                continue;
            };
            if let Err(error) = self.writer.write(&Write::Address(*net, Some(entry))) {
                self.homeless.insert(*net);
                let text = format!("address {net}: {error}; addresses that are not written are not known");
                self.writer.problem(Subject::Address(*net), text);
                // Before anything else: what has no entry must not be taken for the outside.
                self.write_everywhere();
            } else {
                self.writer.solved(&Subject::Address(*net));
            }
        }
        for net in gone.into_iter().rev() {
            self.writer.remove(&Write::Address(net, None));
        }
        if was_full && self.homeless.is_empty() {
            self.write_everywhere();
        }
    }

    /// What addresses are that nobody has: the outside, or not known while there is something that
    /// could not be written.
    pub(super) fn write_everywhere(&mut self) {
        for net in self.claims.outside().collect::<Vec<_>>() {
            let wanted = self.wanted_address(net);
            let held = self.writer.addresses.get(&net).copied();
            // One that is not there is not needed to say that it is not known, but for all there is.
            if held == wanted || (held.is_none() && !claims::EVERYWHERE.contains(&net)) {
                continue;
            }
            let Some(entry) = wanted else { continue };
            if let Err(error) = self.writer.write(&Write::Address(net, Some(entry))) {
                let text = format!("address {net}: {error}; what is not known may be taken for the outside");
                self.writer.problem(Subject::Address(net), text);
            }
        }
    }
}
