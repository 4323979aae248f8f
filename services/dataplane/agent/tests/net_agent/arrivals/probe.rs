//! The truth about addresses, and the prober that asks a node's programs and compares.

use super::node::Programs;
use parking_lot::RwLock;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// So many addresses are used again and again.
pub const ADDRESSES: u8 = 192;
/// Port 80 is for the front, 443 for the outside.
pub const PORTS: [u16; 2] = [80, 443];
/// After so many addresses others may work as well.
const AT_ONCE: u8 = 8;
const PAUSE: Duration = Duration::from_millis(2);

/// A pod that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pod {
    pub role: &'static str,
    /// 0 or 1.
    pub node: usize,
    pub number: u32,
    pub identity: u32,
}

/// Who may have an address.
#[derive(Debug, Clone, Default)]
struct Seen {
    version: u64,
    /// It runs: what comes from the address is its.
    runs: Option<Pod>,
    /// Roles that nodes may take the address for while nobody runs there; it may be nobody's too.
    roles: BTreeSet<&'static str>,
    /// A start is under way.
    starts: bool,
}

/// Of all addresses. A pod runs from when its start was answered until it is told to stop; nobody's
/// packets come from its address before and after.
#[derive(Debug, Default)]
pub struct Truth(RwLock<BTreeMap<u8, Seen>>);

impl Truth {
    fn change(&self, last: u8, change: impl FnOnce(&mut Seen)) {
        let mut all = self.0.write();
        let seen = all.entry(last).or_default();
        seen.version += 1;
        change(seen);
    }

    pub fn begin(&self, last: u8, role: &'static str) {
        self.change(last, |seen| {
            seen.roles.insert(role);
            seen.starts = true;
        });
    }

    pub fn started(&self, last: u8, pod: Pod) {
        self.change(last, |seen| {
            seen.runs = Some(pod);
            seen.roles = [pod.role].into();
            seen.starts = false;
        });
    }

    pub fn leaves(&self, last: u8) {
        self.change(last, |seen| seen.runs = None);
    }

    fn of(&self, last: u8) -> Seen {
        self.0.read().get(&last).cloned().unwrap_or_default()
    }

    fn starting(&self) -> Vec<u8> {
        let all = self.0.read();
        all.iter()
            .filter(|(_, s)| s.starts)
            .map(|(last, _)| *last)
            .collect()
    }
}

pub fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 1, 0, last).into()
}

pub fn cart(node: usize) -> IpAddr {
    Ipv4Addr::new(10, 1, 1, 1 + node as u8).into()
}

/// What the policies say of somebody at a port of a node's cart.
pub fn allowed(node: usize, role: &str, port: u16) -> bool {
    match node {
        0 => role == "front" && port == 80,
        _ => role != "bad",
    }
}

/// A TCP SYN with an Ethernet header.
pub fn syn(from: IpAddr, port: u16, to: IpAddr, target: u16) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else {
        panic!("IPv4 only")
    };
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 7, 0, 0, 64, 6, 0, 0]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(port.to_be_bytes());
    frame.extend(target.to_be_bytes());
    frame.extend([0; 8]);
    frame.extend([5 << 4, 2, 0, 0, 0, 0, 0, 0]);
    frame
}

#[derive(Debug, Default)]
pub struct Answers {
    pub asked: u64,
    pub passed: u64,
    pub dropped: u64,
    /// Of started pods.
    pub settled_passed: u64,
    pub settled_dropped: u64,
    /// Asked while a start at the address was under way.
    pub during: u64,
    /// Dropped though allowed: the node said itself that it does not know the address yet.
    pub early: u64,
    pub wrong: Vec<String>,
}

impl Answers {
    fn wrong(&mut self, text: String) {
        if self.wrong.len() < 20 {
            self.wrong.push(text);
        }
    }
}

/// Asks node `at` until it is over.
pub fn probe(at: usize, programs: &Programs, truth: &Truth, over: &AtomicBool) -> Answers {
    let mut answers = Answers::default();
    let mut source_port = 1_024u16;
    while !over.load(Ordering::Acquire) {
        for last in 1..=ADDRESSES {
            // Those that change hands are asked as often as all others.
            for last in truth.starting().into_iter().take(1).chain([last]) {
                for port in PORTS {
                    // A port is not used again: what is known of a connection is another question.
                    source_port = source_port.wrapping_add(1).max(1_024);
                    ask(&mut answers, at, programs, truth, last, (source_port, port));
                }
            }
            if last % AT_ONCE == 0 {
                std::thread::sleep(PAUSE);
            }
        }
        // The outside is who it always was.
        let outside = Ipv4Addr::new(198, 51, 100, 1).into();
        if !programs.pass(&syn(outside, source_port, cart(at), 443), None) {
            answers.wrong("the outside was refused at 443".into());
        }
    }
    answers
}

fn ask(
    answers: &mut Answers,
    at: usize,
    programs: &Programs,
    truth: &Truth,
    last: u8,
    (source_port, port): (u16, u16),
) {
    let before = truth.of(last);
    let known = programs.identity_of(ip(last));
    let own = before.runs.filter(|pod| pod.node == at).map(|pod| pod.number);
    let passed = programs.pass(&syn(ip(last), source_port, cart(at), port), own);
    let after = truth.of(last);
    if after.version > before.version + 1 {
        return;
    }
    answers.asked += 1;
    answers.during += u64::from(before.starts || after.starts);
    answers.passed += u64::from(passed);
    answers.dropped += u64::from(!passed);
    let Some(pod) = before.runs.filter(|_| after.version == before.version) else {
        let mut roles = before.roles.iter().chain(&after.roles);
        if passed && !roles.any(|role| allowed(at, role, port)) {
            answers.wrong(format!("{last}:{port} passed, of {before:?} and {after:?}"));
        }
        return;
    };
    answers.settled_passed += u64::from(passed);
    answers.settled_dropped += u64::from(!passed);
    if known.is_some_and(|identity| identity != pod.identity) {
        answers.wrong(format!("{last} is taken for {known:?}, it is {pod:?}"));
    }
    match (passed, allowed(at, pod.role, port)) {
        (true, false) => answers.wrong(format!("{last}:{port} passed, of {pod:?}")),
        (false, true) if known.is_some() => answers.wrong(format!("{last}:{port} was dropped, of {pod:?}")),
        (false, true) => answers.early += 1,
        _ => {}
    }
}
