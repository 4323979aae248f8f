//! The kernel's tables behind [`Tables`].

use crate::{
    image::empty_image,
    tables::{AddressEntry, EndpointEntry, Held, SetEntry, Tables, Write, WriteError, address, endpoint},
};
use std::{collections::HashMap, net::SocketAddr, os::fd::OwnedFd};
use weft_bpf::{Address, Backend, Endpoint, Entry, Error, Frontend, PolicyKey, RangeKey, Services, Set};
use weft_policy_engine::{
    Authentication,
    image::{Key, RangeKey as Block, Step, Value},
};

/// The tables of this node.
#[derive(Debug)]
pub struct Kernel {
    policy: weft_bpf::Datapath,
    services: Services,
}

impl Kernel {
    /// Takes the tables that are already open.
    pub fn new(policy: weft_bpf::Datapath, services: Services) -> Self {
        Self { policy, services }
    }

    /// Takes its maps out of descriptors that were handed over by name. Needs no capability.
    pub fn from_fds(fds: &mut HashMap<String, OwnedFd>) -> Result<Self, Error> {
        let policy = weft_bpf::Datapath::from_fds(fds)?;
        Ok(Self::new(policy, Services::from_named_fds(fds)?))
    }

    /// The tables of policy.
    pub fn policy(&self) -> &weft_bpf::Datapath {
        &self.policy
    }

    fn write_step(&self, set: u32, step: &Step) -> Result<(), Error> {
        let table = &self.policy.policy;
        match *step {
            Step::Entry(key, Some(value)) => table.set(policy_key(set, key), entry(value)),
            Step::Entry(key, None) => table.remove(policy_key(set, key)).map(drop),
            Step::Allow(key, Some(value)) => table.set_range(range_key(set, key), entry(value)),
            Step::Deny(key, Some(value)) => table.set_range(range_key(set, key), entry(value)),
            Step::Allow(key, None) => table.remove_range(range_key(set, key), false).map(drop),
            Step::Deny(key, None) => table.remove_range(range_key(set, key), true).map(drop),
        }
    }

    fn held(&self) -> Result<Held, Error> {
        let mut held = Held::default();
        for (number, endpoint) in self.policy.endpoints.list()? {
            held.endpoints.insert(number, from_endpoint(endpoint));
        }
        for (net, address) in self.policy.addresses.list()? {
            held.addresses.insert(net, from_address(address));
        }
        for (number, set) in self.policy.sets.list()? {
            let entry = SetEntry {
                shapes: [set.shapes_in, set.shapes_out],
                flags: set.flags,
                generation: set.generation,
            };
            held.sets.insert(number, entry);
        }
        for (key, entry) in self.policy.policy.list()? {
            let image = held.policies.entry(key.set).or_insert_with(empty_image);
            let of_set = Key {
                identity: key.identity,
                egress: key.direction == weft_bpf::Direction::Out,
                protocol: key.protocol,
                port: key.port,
            };
            image.entries.insert(of_set, value(entry));
        }
        for (key, entry) in self.policy.policy.list_ranges()? {
            let image = held.policies.entry(key.set).or_insert_with(empty_image);
            let block = Block {
                identity: key.identity,
                egress: key.direction == weft_bpf::Direction::Out,
                protocol: key.protocol,
                port: key.port,
                length: key.length,
            };
            let table = if entry.deny {
                &mut image.deny
            } else {
                &mut image.allow
            };
            table.insert(block, value(entry));
        }
        Ok(held)
    }
}

impl Tables for Kernel {
    fn read(&mut self) -> Result<Held, WriteError> {
        self.held().map_err(failed)
    }

    fn write(&mut self, write: &Write) -> Result<(), WriteError> {
        let policy = &self.policy;
        match *write {
            Write::Endpoint(number, Some(entry)) => policy.endpoints.set(number, to_endpoint(entry)),
            Write::Endpoint(number, None) => policy.endpoints.remove(number).map(drop),
            Write::Address(net, Some(entry)) => policy.addresses.set(net, to_address(entry)),
            Write::Address(net, None) => policy.addresses.remove(net).map(drop),
            Write::Set(number, Some(entry)) => {
                let [shapes_in, shapes_out] = entry.shapes;
                let set = Set {
                    shapes_in,
                    shapes_out,
                    flags: entry.flags,
                    generation: entry.generation,
                };
                policy.sets.set(number, set)
            }
            Write::Set(number, None) => policy.sets.remove(number).map(drop),
            Write::Policy(set, step) => self.write_step(set, &step),
        }
        .map_err(failed)
    }

    fn services(&self) -> Vec<Frontend> {
        self.services.list().map(|(frontend, _, _)| frontend).collect()
    }

    fn set_service(
        &mut self,
        frontend: Frontend,
        capture: bool,
        backends: &[Backend],
    ) -> Result<Vec<SocketAddr>, WriteError> {
        let change = self.services.set(frontend, capture, backends).map_err(failed)?;
        if change.left_out > 0 {
            return Err(WriteError::Failed(format!(
                "the kernel's table of backends is full: {} of {} are left out",
                change.left_out,
                backends.len()
            )));
        }
        Ok(change.removed)
    }

    fn remove_service(&mut self, frontend: Frontend) -> Result<Vec<SocketAddr>, WriteError> {
        self.services.remove(frontend).map_err(failed)
    }
}

fn failed(error: Error) -> WriteError {
    match error {
        Error::Full { map, max } => WriteError::Full { table: map, max },
        other => WriteError::Failed(other.to_string()),
    }
}

fn policy_key(set: u32, key: Key) -> PolicyKey {
    PolicyKey {
        set,
        identity: key.identity,
        direction: direction(key.egress),
        protocol: key.protocol,
        port: key.port,
    }
}

fn range_key(set: u32, key: Block) -> RangeKey {
    RangeKey {
        set,
        identity: key.identity,
        direction: direction(key.egress),
        protocol: key.protocol,
        port: key.port,
        length: key.length,
    }
}

fn direction(egress: bool) -> weft_bpf::Direction {
    if egress {
        weft_bpf::Direction::Out
    } else {
        weft_bpf::Direction::In
    }
}

fn entry(value: Value) -> Entry {
    Entry {
        deny: value.deny,
        redirect: value.redirect,
        auth: value.auth == Authentication::Required,
        free: value.auth == Authentication::Disabled,
        derived: value.derived,
        proxied: value.proxied,
        length: value.length,
        rule: value.rule,
    }
}

fn value(entry: Entry) -> Value {
    Value {
        deny: entry.deny,
        redirect: entry.redirect,
        proxied: entry.proxied,
        auth: match (entry.auth, entry.free) {
            (true, _) => Authentication::Required,
            (false, true) => Authentication::Disabled,
            (false, false) => Authentication::Unsaid,
        },
        derived: entry.derived,
        length: entry.length,
        rule: entry.rule,
    }
}

fn to_endpoint(entry: EndpointEntry) -> Endpoint {
    Endpoint {
        identity: entry.identity,
        set: entry.set,
        svid: entry.flags & endpoint::PROVEN != 0,
        audit: entry.flags & endpoint::AUDIT != 0,
        process: entry.flags & endpoint::PROCESS != 0,
        capture: entry.flags & endpoint::CAPTURE != 0,
        generation: entry.generation,
    }
}

fn from_endpoint(read: Endpoint) -> EndpointEntry {
    let flags = [
        (read.svid, endpoint::PROVEN),
        (read.audit, endpoint::AUDIT),
        (read.process, endpoint::PROCESS),
        (read.capture, endpoint::CAPTURE),
    ];
    EndpointEntry {
        identity: read.identity,
        set: read.set,
        flags: flags_of(&flags),
        generation: read.generation,
    }
}

fn to_address(entry: AddressEntry) -> Address {
    Address {
        identity: entry.identity,
        local: entry.flags & address::LOCAL != 0,
        tunnel: entry.flags & address::TUNNEL != 0,
        host: entry.flags & address::HOST != 0,
        aggregate: entry.flags & address::AGGREGATE != 0,
        agent: entry.flags & address::AGENT != 0,
        endpoint: entry.endpoint,
        node: entry.node,
    }
}

fn from_address(read: Address) -> AddressEntry {
    let flags = [
        (read.local, address::LOCAL),
        (read.tunnel, address::TUNNEL),
        (read.host, address::HOST),
        (read.aggregate, address::AGGREGATE),
        (read.agent, address::AGENT),
    ];
    AddressEntry {
        identity: read.identity,
        flags: flags_of(&flags),
        endpoint: read.endpoint,
        node: read.node,
    }
}

fn flags_of(flags: &[(bool, u32)]) -> u32 {
    flags.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_the_same(numbers: [u32; 3], flags in 0..16u32, of_address in 0..32u32) {
            let [identity, set, generation] = numbers;
            let entry = EndpointEntry { identity, set, flags, generation };
            prop_assert_eq!(from_endpoint(to_endpoint(entry)), entry);
            let entry = AddressEntry { identity, flags: of_address, endpoint: set, node: generation };
            prop_assert_eq!(from_address(to_address(entry)), entry);
        }
    }
}
