//! The writer of the tables of services: which backends an address stands for.
//!
//! The programs read while it writes. At every moment all slots below a service's count exist and
//! hold a backend of the old or of the new set, and once [`Services::set`] has returned none holds a
//! removed one:
//!
//! 1. new backends become members, then take the slots of removed ones or slots past the count;
//! 2. removed backends are members no more: a UDP socket that finds the next generation asks that;
//! 3. the service gets its new count and generation;
//! 4. slots past the count go.

mod plan;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use crate::error::Error;
use crate::layout::{RawBackend, RawBackendKey, RawMember, RawService, RawServiceKey, SERVICE_CAPTURE};
use crate::origin::place;
use crate::sockets::typed;
use crate::sys::Map;
use plan::{State, Step};

/// A transport protocol that services exist for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP: a backend per connection.
    Tcp,
    /// UDP: a backend per socket.
    Udp,
}

impl Transport {
    /// Its number in IP.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp]
            .into_iter()
            .find(|known| known.number() == number)
    }
}

/// What callers write: a service's address, port and protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Cluster address, external address or node port.
    pub address: SocketAddr,
    /// Its protocol.
    pub transport: Transport,
}

impl Frontend {
    fn canonical(self) -> Self {
        Self {
            address: canonical(self.address),
            ..self
        }
    }
}

/// Where a service's connections go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Backend {
    /// Of the frontend's family.
    pub address: SocketAddr,
    /// The endpoint's number if it is on this node, otherwise 0.
    pub endpoint: u32,
}

/// What a change did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Change {
    /// The addresses that are backends of this service no more.
    pub removed: Vec<SocketAddr>,
    /// How many of the new backends found no room in the table.
    pub left_out: usize,
}

/// The only writer of the tables. It adopts what an earlier one left.
#[derive(Debug)]
pub struct Services {
    services: Map<RawServiceKey, RawService>,
    backends: Map<RawBackendKey, RawBackend>,
    members: Map<RawMember, u32>,
    states: BTreeMap<Frontend, State>,
    ids: HashSet<u32>,
    /// Slots in use.
    used: usize,
    last_id: u32,
}

impl Services {
    /// Takes the descriptors of the three maps, adopts what they hold and clears up what a writer
    /// that died has left half done. Needs no capability.
    pub fn from_fds(services: OwnedFd, backends: OwnedFd, members: OwnedFd) -> Result<Self, Error> {
        let mut adopted = Self {
            services: typed(services, "services")?,
            backends: typed(backends, "backends")?,
            members: typed(members, "members")?,
            states: BTreeMap::new(),
            ids: HashSet::new(),
            used: 0,
            last_id: 0,
        };
        adopted.read()?;
        Ok(adopted)
    }

    /// The services that the kernel knows, with their backends.
    pub fn list(&self) -> impl Iterator<Item = (Frontend, bool, &[Backend])> {
        self.states
            .iter()
            .map(|(frontend, state)| (*frontend, state.capture, state.slots.as_slice()))
    }

    /// Makes these the service's backends. When it returns no connection begins to a removed one;
    /// sockets that have one already are for [`Closer::close`](crate::Closer::close).
    ///
    /// Cost follows change: what is there already is not written again.
    pub fn set(&mut self, frontend: Frontend, capture: bool, backends: &[Backend]) -> Result<Change, Error> {
        let frontend = frontend.canonical();
        let mut seen = HashSet::new();
        let mut wanted: Vec<Backend> = backends
            .iter()
            .map(|backend| Backend {
                address: canonical(backend.address),
                ..*backend
            })
            .filter(|backend| seen.insert(backend.address))
            .collect();
        let other = wanted
            .iter()
            .find(|backend| backend.address.is_ipv4() != frontend.address.is_ipv4());
        if let Some(other) = other {
            return Err(Error::BackendFamily {
                service: frontend.address,
                backend: other.address,
            });
        }
        let known = self.states.get(&frontend).cloned();
        if known.is_none() && self.states.len() >= self.services.max_entries() as usize {
            return Err(Error::ServicesFull {
                max: self.services.max_entries(),
            });
        }
        let held = known.as_ref().map_or(0, |state| state.slots.len());
        let room = (self.backends.max_entries() as usize).saturating_sub(self.used - held);
        let left_out = wanted.len().saturating_sub(room);
        wanted.truncate(room);
        let before = match known {
            Some(state) if is_same(&state, capture, &wanted) => {
                return Ok(Change {
                    left_out,
                    ..Change::default()
                });
            }
            Some(state) => state,
            None => State {
                id: self.next_id(),
                ..State::default()
            },
        };
        let (steps, after, removed) = plan::replace(&before, capture, &wanted);
        self.take(frontend, after.id, &steps)?;
        self.used = self.used - held + after.slots.len();
        self.ids.insert(after.id);
        self.states.insert(frontend, after);
        Ok(Change { removed, left_out })
    }

    /// Takes a service away and returns its backends' addresses. Calls to its address go where the
    /// network takes them.
    pub fn remove(&mut self, frontend: Frontend) -> Result<Vec<SocketAddr>, Error> {
        let frontend = frontend.canonical();
        let Some(state) = self.states.get(&frontend).cloned() else {
            return Ok(Vec::new());
        };
        self.take(frontend, state.id, &plan::remove(&state))?;
        self.states.remove(&frontend);
        self.ids.remove(&state.id);
        self.used -= state.slots.len();
        Ok(state.slots.iter().map(|backend| backend.address).collect())
    }

    /// Ids come in order, so that a socket's record of an old service does not fit a new one.
    fn next_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1).max(1);
            if !self.ids.contains(&self.last_id) {
                return self.last_id;
            }
        }
    }

    /// Writes the steps. If one fails, what is known is read anew.
    fn take(&mut self, frontend: Frontend, id: u32, steps: &[Step]) -> Result<(), Error> {
        for step in steps {
            if let Err(error) = self.write(frontend, id, *step) {
                let _ = self.read();
                return Err(error);
            }
        }
        Ok(())
    }

    fn write(&self, frontend: Frontend, id: u32, step: Step) -> Result<(), Error> {
        let slot_key = |slot| RawBackendKey { service: id, slot };
        match step {
            Step::AddMember(address) => self
                .members
                .update(&raw_member(id, address), &0, 0)
                .map_err(failed("members", "add to")),
            Step::DropMember(address) => self
                .members
                .delete(&raw_member(id, address))
                .map(drop)
                .map_err(failed("members", "remove from")),
            Step::PutSlot(slot, backend) => self
                .backends
                .update(&slot_key(slot), &raw_backend(backend), 0)
                .map_err(failed("backends", "add to")),
            Step::DropSlot(slot) => self
                .backends
                .delete(&slot_key(slot))
                .map(drop)
                .map_err(failed("backends", "remove from")),
            Step::PutService {
                count,
                generation,
                capture,
            } => {
                let service = RawService {
                    id,
                    count,
                    flags: if capture { SERVICE_CAPTURE } else { 0 },
                    generation,
                };
                self.services
                    .update(&raw_frontend(frontend), &service, 0)
                    .map_err(failed("services", "add to"))
            }
            Step::DropService => self
                .services
                .delete(&raw_frontend(frontend))
                .map(drop)
                .map_err(failed("services", "remove from")),
        }
    }

    /// Reads the maps and makes them agree: services decide, what belongs to none goes.
    fn read(&mut self) -> Result<(), Error> {
        self.states.clear();
        self.ids.clear();
        let mut members = HashSet::new();
        let mut slots = HashSet::new();
        for key in self.services.keys().map_err(failed("services", "read"))? {
            let found = self.services.lookup(&key).map_err(failed("services", "read"))?;
            let (Some(raw), Some(frontend)) = (found, frontend(&key)) else {
                continue;
            };
            let mut state = State {
                id: raw.id,
                generation: raw.generation,
                capture: raw.flags & SERVICE_CAPTURE != 0,
                slots: Vec::new(),
            };
            for slot in 0..raw.count {
                let key = RawBackendKey {
                    service: raw.id,
                    slot,
                };
                let Some(found) = self.backends.lookup(&key).map_err(failed("backends", "read"))? else {
                    break;
                };
                let backend = Backend {
                    address: place(found.addr, found.port),
                    endpoint: found.endpoint,
                };
                slots.insert((raw.id, slot));
                if members.insert((state.id, backend.address)) {
                    self.write(frontend, state.id, Step::AddMember(backend.address))?;
                }
                state.slots.push(backend);
            }
            self.last_id = self.last_id.max(state.id);
            self.ids.insert(state.id);
            self.states.insert(frontend, state);
        }
        for key in self.backends.keys().map_err(failed("backends", "read"))? {
            if !slots.contains(&(key.service, key.slot)) {
                self.backends
                    .delete(&key)
                    .map_err(failed("backends", "remove from"))?;
            }
        }
        for key in self.members.keys().map_err(failed("members", "read"))? {
            if !members.contains(&(key.service, place(key.addr, key.port))) {
                self.members
                    .delete(&key)
                    .map_err(failed("members", "remove from"))?;
            }
        }
        self.used = self.states.values().map(|state| state.slots.len()).sum();
        Ok(())
    }
}

fn is_same(state: &State, capture: bool, wanted: &[Backend]) -> bool {
    let held: HashSet<&Backend> = state.slots.iter().collect();
    // No slot double, as one that died may have left it.
    state.capture == capture
        && held.len() == state.slots.len()
        && held.len() == wanted.len()
        && wanted.iter().all(|backend| held.contains(backend))
}

fn failed(map: &'static str, action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Map { map, action, source }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// An address as the maps write it.
pub(crate) fn octets(address: SocketAddr) -> [u8; 16] {
    match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A service's key.
pub(crate) fn raw_frontend(frontend: Frontend) -> RawServiceKey {
    RawServiceKey {
        addr: octets(frontend.address),
        port: frontend.address.port(),
        proto: frontend.transport.number(),
        zero: 0,
    }
}

fn frontend(key: &RawServiceKey) -> Option<Frontend> {
    Some(Frontend {
        address: place(key.addr, key.port),
        transport: Transport::from_number(key.proto)?,
    })
}

fn raw_backend(backend: Backend) -> RawBackend {
    RawBackend {
        addr: octets(backend.address),
        port: backend.address.port(),
        flags: 0,
        endpoint: backend.endpoint,
    }
}

/// The key of a service's backend, in whatever slot.
pub(crate) fn raw_member(service: u32, address: SocketAddr) -> RawMember {
    RawMember {
        addr: octets(address),
        service,
        port: address.port(),
        zero: 0,
    }
}
