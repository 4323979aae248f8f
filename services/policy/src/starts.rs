//! Workloads that are starting: a registration is answered when the nodes whose policies name the
//! new workload's identity have it, so that its first connection is not dropped there as "not known
//! yet"; and when no node takes its address for that of a workload that left it, by whose policy it
//! would be judged. Nobody waits for longer than the limit: such a node may be slow or cut off.

use crate::{
    owner::Refused,
    world::{Awaited, World},
};
use std::collections::{BTreeMap, BTreeSet};
use tokio::{
    sync::oneshot,
    time::{Duration, Instant},
};
use weft_proto::weft::policy::v1 as pb;

/// More than this wait for nobody.
const MAX_STARTS: usize = 16_384;

type Reply = oneshot::Sender<Result<pb::Workload, Refused>>;

#[derive(Debug)]
struct Start {
    reply: Reply,
    workload: pb::Workload,
    nodes: BTreeMap<String, Awaited>,
    until: Instant,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Starts {
    limit: Duration,
    next: u64,
    /// By number: also in the order of their deadlines.
    all: BTreeMap<u64, Start>,
    by_node: BTreeMap<String, BTreeSet<u64>>,
}

impl Starts {
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            next: 0,
            all: BTreeMap::new(),
            by_node: BTreeMap::new(),
        }
    }

    /// Answers now or later. What the registration changed has been sent.
    pub(crate) fn begin(&mut self, world: &World, workload: pb::Workload, reply: Reply) {
        let nodes = world.takers(&workload);
        if nodes.is_empty() || self.limit.is_zero() || self.all.len() >= MAX_STARTS {
            let _ = reply.send(Ok(workload));
            return;
        }
        let number = self.next;
        self.next += 1;
        for node in nodes.keys() {
            self.by_node.entry(node.clone()).or_default().insert(number);
        }
        let until = Instant::now() + self.limit;
        let start = Start {
            reply,
            workload,
            nodes,
            until,
        };
        self.all.insert(number, start);
    }

    /// A node acknowledged something, or its stream ended.
    pub(crate) fn heard_from(&mut self, world: &World, node: &str) {
        let Some(numbers) = self.by_node.get(node) else {
            return;
        };
        for number in numbers.clone() {
            let Some(start) = self.all.get_mut(&number) else {
                continue;
            };
            let awaited = start.nodes.remove(node);
            let awaited = awaited.and_then(|a| world.still_taking(node, a));
            if let Some(awaited) = awaited {
                start.nodes.insert(node.to_owned(), awaited);
                continue;
            }
            let last = start.nodes.is_empty();
            self.unlist(node, number);
            if last {
                self.answer(number);
            }
        }
    }

    /// Until when the one that waits longest does.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.all.values().next().map(|s| s.until)
    }

    /// Answers those that waited for long enough; returns how many and the nodes waited for.
    pub(crate) fn overdue(&mut self, now: Instant) -> (usize, BTreeSet<String>) {
        let (mut count, mut slow) = (0, BTreeSet::new());
        while let Some((&number, start)) = self.all.first_key_value() {
            if start.until > now {
                break;
            }
            let nodes: Vec<String> = start.nodes.keys().cloned().collect();
            for node in nodes {
                self.unlist(&node, number);
                slow.insert(node);
            }
            self.answer(number);
            count += 1;
        }
        (count, slow)
    }

    fn unlist(&mut self, node: &str, number: u64) {
        if let Some(numbers) = self.by_node.get_mut(node) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_node.remove(node);
            }
        }
    }

    fn answer(&mut self, number: u64) {
        if let Some(start) = self.all.remove(&number) {
            // Who asked may have given up.
            let _ = start.reply.send(Ok(start.workload));
        }
    }
}
