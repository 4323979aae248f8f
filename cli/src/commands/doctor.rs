//! `weft doctor`: what this machine can and cannot do for a node, each line with its meaning and the
//! remedy. Kernel features are tried, in a namespace and a cgroup of their own, and not guessed.

mod kernel;
mod machine;

use crate::{
    connect::AgentArgs,
    output::{Format, print_text, print_value, table},
};
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use std::{path::PathBuf, process::ExitCode};

/// Say what this machine can and cannot do for a node.
///
/// Exit code 0: nothing that is required is missing; 1: something is. Without root, what could not be
/// checked is said.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// The bpf file system that the node uses
    #[arg(long, env = "WEFT_BPFFS", value_name = "PATH", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// The subtree of cgroup v2 that the node's programs are attached to [default: <cgroup2>/weft]
    #[arg(long, env = "WEFT_CGROUP_ROOT", value_name = "PATH")]
    cgroup_root: Option<PathBuf>,
    #[command(flatten)]
    agent: AgentArgs,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    /// It works, and could be better.
    Note,
    /// Required and not there.
    Missing,
    /// Not with this user's rights.
    Unchecked,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Note => "note",
            Self::Missing => "MISSING",
            Self::Unchecked => "unchecked",
        }
    }
}

/// One line.
#[derive(Debug, Clone)]
struct Check {
    name: String,
    state: State,
    /// What was seen.
    found: String,
    /// What it is for, or what does not work.
    meaning: String,
    /// What to do; empty when nothing is.
    remedy: String,
}

impl Check {
    fn new(name: impl Into<String>, state: State, found: impl Into<String>, meaning: &str) -> Self {
        Self {
            name: name.into(),
            state,
            found: found.into(),
            meaning: meaning.into(),
            remedy: String::new(),
        }
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

impl Doctor {
    /// Checks and prints.
    pub fn run(self) -> Result<ExitCode> {
        let mut checks = kernel::checks(&self.bpffs, self.cgroup_root.as_deref());
        checks.extend(machine::checks(&self.agent.dir()));
        match self.output {
            Format::Table => print_text(&page(&checks))?,
            format => print_value(&value(&checks), format)?,
        }
        Ok(if passed(&checks) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

fn passed(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.state != State::Missing)
}

fn page(checks: &[Check]) -> String {
    let rows: Vec<Vec<String>> = checks
        .iter()
        .map(|check| {
            let mut text = check.meaning.clone();
            if !check.remedy.is_empty() {
                text = format!("{text}: {}", check.remedy);
            }
            vec![
                check.state.word().to_owned(),
                check.name.clone(),
                check.found.clone(),
                text,
            ]
        })
        .collect();
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    format!(
        "{}\n\n{} ok, {} noted, {} missing, {} unchecked",
        table(&["STATE", "CHECK", "FOUND", "MEANING AND REMEDY"], &rows),
        count(State::Good),
        count(State::Note),
        count(State::Missing),
        count(State::Unchecked)
    )
}

fn value(checks: &[Check]) -> Value {
    json!({
        "passed": passed(checks),
        "checks": checks.iter().map(|check| json!({
            "name": check.name,
            "state": check.state.word().to_lowercase(),
            "found": check.found,
            "meaning": check.meaning,
            "remedy": check.remedy,
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_fails() {
        let mut checks = vec![
            Check::new("a", State::Good, "x", "for a"),
            Check::new("b", State::Note, "y", "for b").remedy("do b"),
            Check::new("c", State::Unchecked, "z", "for c"),
        ];
        assert!(passed(&checks));
        assert!(page(&checks).contains("for b: do b"));
        checks.push(Check::new("d", State::Missing, "", "for d"));
        assert!(!passed(&checks) && value(&checks)["passed"] == false);
        assert!(page(&checks).ends_with("1 ok, 1 noted, 1 missing, 1 unchecked"));
    }
}
