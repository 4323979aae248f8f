//! The kernel's tables as a model that judges as the programs do.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    rc::Rc,
};
use weft_bpf::{Backend, Frontend};
use weft_datapath::tables::{AddressEntry, Held, SetEntry, Tables, Write, WriteError, address};
use weft_model::NumericIdentity;
use weft_policy_engine::{
    Direction, Image, Verdict,
    image::{DENY_IN, DENY_OUT, Step},
};

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    Passes,
    Dropped,
    /// The endpoint or its peer is not known yet, or its policy can not be used.
    Closed,
}

/// A direction, a peer and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    pub endpoint: u32,
    pub direction: Direction,
    pub peer: IpAddr,
    pub port: u16,
}

pub const TCP: u8 = 6;

#[derive(Debug, Clone, Default)]
pub struct Room {
    pub policies: Option<usize>,
    pub addresses: Option<usize>,
    pub endpoints: Option<usize>,
}

#[derive(Debug, Default)]
pub struct State {
    pub held: Held,
    pub services: BTreeMap<Frontend, Vec<Backend>>,
    pub room: Room,
    pub writes: usize,
}

fn empty() -> Image {
    Image {
        flags: 0,
        shapes: [0; 2],
        entries: HashMap::new(),
        allow: BTreeMap::new(),
        deny: BTreeMap::new(),
        rules: Vec::new(),
    }
}

impl State {
    fn entries(&self) -> usize {
        self.held.policies.values().map(Image::len).sum()
    }

    pub fn who(&self, peer: IpAddr) -> AddressEntry {
        let nets = self.held.addresses.iter().filter(|(net, _)| net.contains(&peer));
        let longest = nets.max_by_key(|(net, _)| net.prefix_len());
        longest.map_or(
            AddressEntry {
                identity: NumericIdentity::WORLD.0,
                flags: 0,
                endpoint: 0,
                node: 0,
            },
            |(_, entry)| *entry,
        )
    }

    pub fn judge(&self, probe: &Probe) -> Fate {
        let Some(endpoint) = self.held.endpoints.get(&probe.endpoint) else {
            return Fate::Closed;
        };
        let Some(set) = self.held.sets.get(&endpoint.set) else {
            return Fate::Closed;
        };
        let mut image = self
            .held
            .policies
            .get(&endpoint.set)
            .cloned()
            .unwrap_or_else(empty);
        (image.flags, image.shapes) = (set.flags, set.shapes);
        let who = self.who(probe.peer);
        let default_deny = match probe.direction {
            Direction::Ingress => DENY_IN,
            Direction::Egress => DENY_OUT,
        };
        let shapes = image.shapes[usize::from(probe.direction == Direction::Egress)];
        let unknown = who.flags & address::AGGREGATE != 0 && (set.flags & default_deny != 0 || shapes != 0);
        if unknown {
            // A rule must allow it; that none refuses it is not enough.
            image.flags |= default_deny;
        }
        let verdict = image.judge(probe.direction, NumericIdentity(who.identity), TCP, probe.port);
        match verdict {
            Verdict::Allowed { .. } => Fate::Passes,
            Verdict::Denied { .. } if unknown => Fate::Closed,
            Verdict::Denied { .. } => Fate::Dropped,
        }
    }
}

type Check = Box<dyn Fn(&State, &Write)>;

/// Shared, so that a second planner finds what the first one left.
#[derive(Clone, Default)]
pub struct Kernel {
    pub state: Rc<RefCell<State>>,
    check: Rc<RefCell<Option<Check>>>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kernel")
    }
}

impl Kernel {
    /// Looks at the tables after each write, until the next call.
    pub fn watch(&self, check: impl Fn(&State, &Write) + 'static) {
        *self.check.borrow_mut() = Some(Box::new(check));
    }
}

fn full(table: &'static str, room: Option<usize>, used: usize, new: bool) -> Result<(), WriteError> {
    match room {
        Some(max) if new && used >= max => Err(WriteError::Full {
            table,
            max: max as u32,
        }),
        _ => Ok(()),
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

impl Tables for Kernel {
    fn read(&mut self) -> Result<Held, WriteError> {
        Ok(self.state.borrow().held.clone())
    }

    fn write(&mut self, write: &Write) -> Result<(), WriteError> {
        let mut state = self.state.borrow_mut();
        let room = state.room.clone();
        let used = state.entries();
        let held = &mut state.held;
        match *write {
            Write::Endpoint(number, entry) => {
                let new = entry.is_some() && !held.endpoints.contains_key(&number);
                full("endpoints", room.endpoints, held.endpoints.len(), new)?;
                put(&mut held.endpoints, number, entry);
            }
            Write::Address(net, entry) => {
                let new = entry.is_some() && !held.addresses.contains_key(&net);
                full("addresses", room.addresses, held.addresses.len(), new)?;
                put(&mut held.addresses, net, entry);
            }
            Write::Set(number, entry) => put::<u32, SetEntry>(&mut held.sets, number, entry),
            Write::Policy(number, step) => {
                let image = held.policies.entry(number).or_insert_with(empty);
                match step {
                    Step::Entry(key, Some(value)) => {
                        full("policy", room.policies, used, !image.entries.contains_key(&key))?;
                        image.entries.insert(key, value);
                    }
                    Step::Entry(key, None) => drop(image.entries.remove(&key)),
                    Step::Allow(key, value) => {
                        full("range_allow", room.policies, used, value.is_some())?;
                        put(&mut image.allow, key, value);
                    }
                    Step::Deny(key, value) => {
                        full("range_deny", room.policies, used, value.is_some())?;
                        put(&mut image.deny, key, value);
                    }
                }
                if held.policies.get(&number).is_some_and(Image::is_empty) {
                    held.policies.remove(&number);
                }
            }
        }
        state.writes += 1;
        drop(state);
        if let Some(check) = &*self.check.borrow() {
            check(&self.state.borrow(), write);
        }
        Ok(())
    }

    fn services(&self) -> Vec<Frontend> {
        self.state.borrow().services.keys().copied().collect()
    }

    fn set_service(
        &mut self,
        frontend: Frontend,
        _: bool,
        backends: &[Backend],
    ) -> Result<Vec<SocketAddr>, WriteError> {
        let mut state = self.state.borrow_mut();
        let old = state
            .services
            .insert(frontend, backends.to_vec())
            .unwrap_or_default();
        let gone = old
            .iter()
            .filter(|b| backends.iter().all(|n| n.address != b.address));
        Ok(gone.map(|b| b.address).collect())
    }

    fn remove_service(&mut self, frontend: Frontend) -> Result<Vec<SocketAddr>, WriteError> {
        let old = self
            .state
            .borrow_mut()
            .services
            .remove(&frontend)
            .unwrap_or_default();
        Ok(old.iter().map(|b| b.address).collect())
    }
}
