//! Writing to the kernel, with a memory of what it holds and of what went wrong.
//!
//! Owns the mirror of endpoints and addresses, the counter of generations, and the problems that
//! operators are told of, each until it is solved.

use crate::{
    image,
    tables::{AddressEntry, EndpointEntry, Held, Tables, Write, WriteError},
};
use ipnet::IpNet;
use std::collections::{BTreeMap, HashMap};

/// Problems that are named one by one; more are counted.
const MAX_PROBLEMS: usize = 1000;

/// What a problem is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Set(String),
    Endpoint(u32),
    Address(IpNet),
    Service(String),
    Removal,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Writer<T> {
    pub(crate) tables: T,
    pub(crate) endpoints: HashMap<u32, EndpointEntry>,
    pub(crate) addresses: HashMap<IpNet, AddressEntry>,
    generation: u32,
    problems: BTreeMap<Subject, String>,
    unnamed: u64,
    news: Vec<String>,
    /// Writes made, by kind: what a change cost.
    pub(crate) writes: u64,
    /// Something was removed since the last time anybody looked: there may be room again.
    pub(crate) freed: bool,
}

impl<T: Tables> Writer<T> {
    pub(crate) fn new(tables: T, held: &Held) -> Self {
        let sets = held.sets.values().map(|s| s.generation);
        let endpoints = held.endpoints.values().map(|e| e.generation);
        Self {
            tables,
            endpoints: held.endpoints.iter().map(|(n, e)| (*n, *e)).collect(),
            addresses: held.addresses.iter().map(|(n, e)| (*n, *e)).collect(),
            generation: sets.chain(endpoints).max().unwrap_or(0),
            problems: BTreeMap::new(),
            unnamed: 0,
            news: Vec::new(),
            writes: 0,
            freed: false,
        }
    }

    /// A number that no set and no endpoint had before.
    pub(crate) fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1).max(1);
        self.generation
    }

    pub(crate) fn write(&mut self, write: &Write) -> Result<(), WriteError> {
        self.writes += 1;
        self.tables.write(write)?;
        match *write {
            Write::Endpoint(number, Some(entry)) => drop(self.endpoints.insert(number, entry)),
            Write::Endpoint(number, None) => drop(self.endpoints.remove(&number)),
            Write::Address(net, Some(entry)) => drop(self.addresses.insert(net, entry)),
            Write::Address(net, None) => drop(self.addresses.remove(&net)),
            Write::Set(..) | Write::Policy(..) => {}
        }
        let removes = match write {
            Write::Endpoint(_, entry) => entry.is_none(),
            Write::Address(_, entry) => entry.is_none(),
            Write::Set(_, entry) => entry.is_none(),
            Write::Policy(_, step) => image::value(step).is_none(),
        };
        self.freed |= removes;
        Ok(())
    }

    /// Removes; what can not be removed is reported and stays, which never opens anything that its
    /// order would not have opened anyway.
    pub(crate) fn remove(&mut self, write: &Write) {
        if let Err(error) = self.write(write) {
            self.problem(
                Subject::Removal,
                format!("what is not needed any more stays in the kernel: {error}"),
            );
        }
    }

    /// Tells of a problem, once until it is solved.
    pub(crate) fn problem(&mut self, subject: Subject, text: String) {
        if self.problems.get(&subject) == Some(&text) {
            return;
        }
        if self.problems.len() >= MAX_PROBLEMS && !self.problems.contains_key(&subject) {
            self.unnamed += 1;
            return;
        }
        self.news.push(text.clone());
        self.problems.insert(subject, text);
    }

    pub(crate) fn solved(&mut self, subject: &Subject) {
        self.problems.remove(subject);
    }

    /// What nobody was told of yet.
    pub(crate) fn news(&mut self) -> Vec<String> {
        let unnamed = std::mem::take(&mut self.unnamed);
        if unnamed > 0 {
            self.news.push(format!("{unnamed} more problems of this kind"));
        }
        std::mem::take(&mut self.news)
    }

    pub(crate) fn problems(&self) -> impl Iterator<Item = &String> {
        self.problems.values()
    }
}
