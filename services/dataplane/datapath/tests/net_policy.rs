//! Random policies, read, compiled, expanded and written as on a node, then asked in the kernel with
//! packets at a pod's interface; against the oracle, which reads the manifests. Needs root.
#![allow(clippy::unwrap_used)]

#[path = "net_policy/node.rs"]
mod node;
#[path = "net_policy/packet.rs"]
mod packet;

use node::{Fate, Node};
use proptest::{collection::vec, prelude::*, strategy::ValueTree, test_runner::TestRunner};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};
use weft_bpf::Entry;
use weft_policy_engine::PolicySet;
use weft_policy_oracle::{
    Answer, Direction, Peer,
    generate::{Question, objects, question, subject, surroundings, workloads},
};

const SETS: usize = 2_000;
const QUESTIONS: usize = 50;

#[derive(Debug)]
struct Scenario {
    manifests: Vec<Value>,
    subject: usize,
    questions: Vec<Question>,
}

fn scenario() -> impl Strategy<Value = Scenario> {
    let parts = (objects(), subject(), vec(askable(), QUESTIONS));
    parts.prop_map(|(manifests, subject, questions)| Scenario {
        manifests,
        subject,
        questions,
    })
}

/// Questions that one packet can ask.
fn askable() -> impl Strategy<Value = Question> {
    question().prop_filter("a packet", |q| {
        let number = q.traffic.number;
        let v6 = matches!(q.peer, Peer::Outside(address) if address.is_ipv6());
        let v4 = matches!(q.peer, Peer::Outside(address) if address.is_ipv4());
        match q.traffic.protocol {
            // Answers to echoes are judged as what they answer.
            1 => !v6 && number != 0,
            58 => !v4 && number != 129,
            // The agents' own port has rules of its own.
            6 | 17 | 132 => number != 15_008,
            // Without ports, what goes one way answers what went the other.
            _ => q.direction == Direction::Egress,
        }
    })
}

/// What the kernel has to do by the oracle's answer.
fn expected(node: &Node, set: &PolicySet, question: &Question, answer: Answer) -> Fate {
    let policy = match question.direction {
        Direction::Ingress => set.ingress(),
        Direction::Egress => set.egress(),
    };
    // Nobody is told of a peer that a rule may name as soon as it is known.
    let waits = question.peer == Peer::Unknown;
    match answer {
        Answer::Deny => Fate::Refused(181),
        Answer::DefaultDeny if waits => Fate::Silent,
        Answer::DefaultDeny => Fate::Refused(133),
        Answer::Allow { proxy: true, .. } => Fate::Refused(180),
        Answer::Allow { proof: true, .. } if !node.is_proven(&question.peer) => Fate::Refused(189),
        Answer::Allow { .. } if waits && !policy.entries.is_empty() && !node.names_unknown(set, question) => {
            Fate::Silent
        }
        Answer::Allow { .. } => Fate::Passed,
    }
}

#[test]
fn the_kernel_does_what_the_manifests_say() {
    let workloads = workloads();
    let mut node = Node::new();
    let mut runner = TestRunner::default();
    let strategy = scenario();
    let (mut counts, mut rules): (BTreeMap<Fate, u64>, u64) = (BTreeMap::new(), 0);
    let (mut changed, mut noticed) = (0, 0);
    let started = Instant::now();
    for number in 0..SETS {
        let scenario = strategy.new_tree(&mut runner).unwrap().current();
        let set = node.govern(&scenario.manifests, scenario.subject);
        let labels = &workloads[scenario.subject].1;
        let manifests = [&*scenario.manifests, &*surroundings()].concat();
        let mut asked = BTreeMap::new();
        for (at, question) in scenario.questions.iter().enumerate() {
            let Question {
                direction,
                peer,
                traffic,
                ..
            } = question;
            let answer = weft_policy_oracle::judge(&manifests, labels, *direction, peer, *traffic);
            let wanted = expected(&node, &set, question, answer);
            let (found, rule) = node.ask(question, at);
            assert_eq!(
                found, wanted,
                "the oracle says {answer:?} to {question:?} of {labels}, in {:#?}",
                scenario.manifests
            );
            // What a rule refuses is told with the rule's name.
            if wanted == Fate::Refused(181) {
                let name = rule.unwrap_or_else(|| panic!("no rule is told for {question:?}"));
                let known: BTreeSet<String> = set
                    .ingress()
                    .entries
                    .iter()
                    .chain(&set.egress().entries)
                    .filter(|e| e.deny)
                    .map(|e| e.rule.to_string())
                    .collect();
                assert!(known.contains(&*name), "{name} is none of {known:?}");
                rules += 1;
            }
            *counts.entry(wanted).or_default() += 1;
            asked.insert(at, wanted);
        }
        // Each entry turned around, every now and then: is it noticed?
        if number % 40 == 0 {
            for (key, entry) in node.entries() {
                let deny = !entry.deny;
                node.write(key, Entry { deny, ..entry });
                let mut questions = scenario.questions.iter().enumerate();
                changed += 1;
                noticed += usize::from(questions.any(|(at, q)| node.ask(q, at).0 != asked[&at]));
                node.write(key, entry);
            }
        }
    }
    let total = (SETS * QUESTIONS) as u64;
    println!("{SETS} policies, {total} packets in {:?}", started.elapsed());
    for (fate, count) in &counts {
        println!("{fate:?}: {count}, {} %", count * 100 / total);
    }
    println!("{rules} refusals named their rule; {noticed} of {changed} spoiled entries were noticed");
    for fate in [133, 180, 181, 189]
        .map(Fate::Refused)
        .into_iter()
        .chain([Fate::Passed])
    {
        let count = counts.get(&fate).copied().unwrap_or(0);
        assert!(
            count * 20 >= total,
            "{fate:?} is too rare to be tested: {count} of {total}"
        );
    }
    assert!(
        noticed > 100,
        "wrong entries are not noticed: {noticed} of {changed}"
    );
}
