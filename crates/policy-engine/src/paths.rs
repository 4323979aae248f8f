//! Rules about requests by what the paths that they mean begin with, so that a hundred of them cost a
//! request as much as the few that could mean it.
//!
//! Beginnings are sorted, and each knows the longest other one that it begins with itself. All beginnings
//! of a path are then the last one that sorts before it, or what that one begins with. Expressions with the
//! same beginning are matched in one pass over the path.

use std::collections::BTreeMap;
use weft_resources::{ExpressionSet, expressions};

const NONE: u32 = u32::MAX;
/// From so many expressions with the same beginning on, one pass for all of them costs less than one each.
const TOGETHER: usize = 3;

/// A rule, and how its expression of the path is asked about there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    /// Its number; rules are tried in the order of these.
    pub rule: u32,
    /// Its place among the expressions that are asked together; [`NONE`]: it is asked by itself.
    expression: u32,
}

#[derive(Debug, Clone)]
struct Node {
    beginning: String,
    /// The longest other beginning that this one begins with.
    shorter: u32,
    candidates: Vec<Candidate>,
    together: Option<ExpressionSet>,
}

/// The index.
#[derive(Debug, Clone, Default)]
pub(crate) struct Paths(Vec<Node>);

/// What a rule says of paths.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said<'a> {
    /// All paths that it means begin so.
    pub beginning: &'a str,
    /// And fit this expression, where there is one.
    pub expression: Option<&'a str>,
}

impl Paths {
    /// Of rules and what each says, in the order of the rules; a rule may say several things, of which one
    /// suffices.
    pub fn new<'a>(rules: impl Iterator<Item = (u32, Said<'a>)>) -> Self {
        let mut beginnings: BTreeMap<&str, Vec<(u32, Option<&str>)>> = BTreeMap::new();
        for (rule, said) in rules {
            let there = beginnings.entry(said.beginning).or_default();
            there.push((rule, said.expression));
        }
        let mut nodes: Vec<Node> = Vec::with_capacity(beginnings.len());
        let mut shorter: Vec<u32> = Vec::new();
        for (beginning, rules) in beginnings {
            while let Some(last) = shorter.last()
                && !beginning.starts_with(&*nodes[*last as usize].beginning)
            {
                shorter.pop();
            }
            let (together, candidates) = together(&rules);
            nodes.push(Node {
                beginning: beginning.to_owned(),
                shorter: shorter.last().copied().unwrap_or(NONE),
                candidates,
                together,
            });
            shorter.push(u32::try_from(nodes.len() - 1).unwrap_or(NONE));
        }
        Self(nodes)
    }

    /// The first rule that may mean a path and of which `is_meant` says so; it is told whether what the rule
    /// says of the path is known to hold.
    pub fn first(&self, path: &str, mut is_meant: impl FnMut(u32, bool) -> bool) -> Option<u32> {
        let sorted_before = self.0.partition_point(|node| *node.beginning <= *path);
        let mut at = u32::try_from(sorted_before).unwrap_or(NONE).checked_sub(1)?;
        let mut first = None;
        while let Some(node) = self.0.get(at as usize) {
            if path.starts_with(&*node.beginning) {
                first = node.first(path, first, &mut is_meant).or(first);
            }
            at = node.shorter;
        }
        first
    }
}

impl Node {
    /// The same among its rules, of those before `best`.
    fn first(
        &self,
        path: &str,
        best: Option<u32>,
        is_meant: &mut impl FnMut(u32, bool) -> bool,
    ) -> Option<u32> {
        let mut matched = None;
        let mut before = self
            .candidates
            .iter()
            .take_while(|c| best.is_none_or(|b| c.rule < b));
        let found = before.find(|candidate| match &self.together {
            Some(together) if candidate.expression != NONE => {
                let matched = matched.get_or_insert_with(|| together.matches(path.as_bytes()));
                matched.matched(candidate.expression as usize) && is_meant(candidate.rule, true)
            }
            _ => is_meant(candidate.rule, false),
        });
        found.map(|candidate| candidate.rule)
    }
}

/// The expressions of rules, to be asked together where there are enough of them and they fit into the
/// bounds of one.
fn together(rules: &[(u32, Option<&str>)]) -> (Option<ExpressionSet>, Vec<Candidate>) {
    let mut distinct: BTreeMap<&str, u32> = BTreeMap::new();
    for (_, expression) in rules {
        if let Some(expression) = expression {
            let next = u32::try_from(distinct.len()).unwrap_or(NONE);
            distinct.entry(expression).or_insert(next);
        }
    }
    let mut texts = vec![""; distinct.len()];
    for (text, at) in &distinct {
        texts[*at as usize] = text;
    }
    let set = (texts.len() >= TOGETHER).then(|| expressions(&texts)).flatten();
    let place = |expression: &Option<&str>| {
        let place = expression.and_then(|text| distinct.get(text).copied());
        place.filter(|_| set.is_some()).unwrap_or(NONE)
    };
    let candidates = rules
        .iter()
        .map(|(rule, expression)| Candidate {
            rule: *rule,
            expression: place(expression),
        })
        .collect();
    (set, candidates)
}
