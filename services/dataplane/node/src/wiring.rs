//! What the kernel's maps hold of pods: the tables of interfaces, namespaces and source addresses.
//!
//! They are the store: what an earlier node wrote is read back, and whoever is still there keeps its
//! entries and its number.

use crate::{netlink, pod::Wired};
use std::collections::{HashMap, HashSet};
use weft_bpf::{Attached, Error, Interfaces, Kernel, Sources, Workload};

/// Writes the tables.
#[derive(Debug)]
pub(crate) struct Wiring {
    interfaces: Interfaces,
    sources: Sources,
}

impl Wiring {
    pub(crate) fn open(kernel: &Kernel) -> Result<Self, Error> {
        Ok(Self {
            interfaces: kernel.interfaces()?,
            sources: kernel.sources()?,
        })
    }

    /// Makes the maps hold `after` of a pod where they held `before`. What allows comes before what
    /// connects, and goes after it: in between the pod is closed.
    pub(crate) fn rewire(
        &self,
        kernel: &Kernel,
        endpoint: u32,
        before: Option<&Wired>,
        after: Option<&Wired>,
    ) -> Result<(), Error> {
        let nothing = Wired::default();
        let (old, new) = (before.unwrap_or(&nothing), after.unwrap_or(&nothing));
        for address in new.sources.iter().filter(|a| !old.sources.contains(a)) {
            self.sources.add(endpoint, *address)?;
        }
        if new.cookie != 0 {
            kernel.add_namespace(new.cookie, endpoint)?;
        }
        // Also those that were there: an interface that somebody took the programs off gets them again.
        for interface in &new.interfaces {
            self.interfaces.set(*interface, endpoint)?;
            tell_neighbours(*interface, &kernel.attach_interface(*interface)?);
        }
        for interface in old.interfaces.iter().filter(|i| !new.interfaces.contains(i)) {
            kernel.detach_interface(*interface)?;
            self.interfaces.remove(*interface)?;
        }
        if old.cookie != 0 && old.cookie != new.cookie {
            kernel.remove_namespace(old.cookie)?;
        }
        for address in old.sources.iter().filter(|a| !new.sources.contains(a)) {
            self.sources.remove(endpoint, *address)?;
        }
        Ok(())
    }

    /// Pods that an earlier node placed stay as they are as long as one of their interfaces is there:
    /// their launchers add them again, and their traffic goes on meanwhile.
    pub(crate) fn forget_gone_pods(&self, kernel: &Kernel) -> Result<(), Error> {
        let links = match netlink::Route::open().and_then(|route| route.links()) {
            Ok(links) => links.into_iter().map(|link| link.index).collect::<HashSet<u32>>(),
            Err(error) => {
                tracing::warn!(%error, "the node's interfaces cannot be read: everything adopted stays");
                return Ok(());
            }
        };
        let mut there = HashSet::new();
        let known: HashSet<u32> = self.interfaces.list()?.into_iter().map(|(i, _)| i).collect();
        // What was killed between the two writes. Where the table is a new one, who is not in it stays closed.
        for interface in kernel.attached_interfaces()? {
            if !known.contains(&interface) && kernel.replaced_layout().is_none() {
                kernel.detach_interface(interface)?;
            }
        }
        for (interface, endpoint) in self.interfaces.list()? {
            if links.contains(&interface) {
                there.insert(endpoint);
            } else {
                kernel.detach_interface(interface)?;
                self.interfaces.remove(interface)?;
            }
        }
        for (cookie, endpoint) in kernel.namespaces()? {
            if !there.contains(&endpoint) {
                kernel.remove_namespace(cookie)?;
            }
        }
        for (endpoint, address) in self.sources.list()? {
            if !there.contains(&endpoint) {
                self.sources.remove(endpoint, address)?;
            }
        }
        Ok(())
    }
}

/// Programs of others decide as well: that is said, once for each start and interface.
fn tell_neighbours(interface: u32, attached: &Attached) {
    for other in &attached.neighbours {
        let direction = other.direction;
        if other.before {
            tracing::warn!(interface, ?direction, program = %other.name, "another program runs before Weft's and may take packets past it");
        } else {
            tracing::info!(interface, ?direction, program = %other.name, "another program runs after Weft's");
        }
    }
}

/// The endpoint numbers that an earlier node gave: who is still there keeps its own.
#[derive(Debug, Default)]
pub(crate) struct Adopted {
    pub(crate) by_cgroup: HashMap<u64, Workload>,
    pub(crate) by_namespace: HashMap<u64, u32>,
    /// The highest that any map holds.
    pub(crate) last: u32,
}

impl Adopted {
    pub(crate) fn read(kernel: &Kernel) -> Result<Self, Error> {
        let by_cgroup: HashMap<_, _> = kernel.workloads()?.into_iter().collect();
        let by_namespace: HashMap<_, _> = kernel.namespaces()?.into_iter().collect();
        let with_policy = kernel.endpoints()?.list()?;
        // A number that policy still knows must not come back as another workload's.
        let last = by_cgroup
            .values()
            .map(|workload: &Workload| workload.index)
            .chain(by_namespace.values().copied())
            .chain(with_policy.iter().map(|(number, _)| *number))
            .max();
        Ok(Self {
            by_cgroup,
            by_namespace,
            last: last.unwrap_or(0),
        })
    }
}
