//! Load from a process of its own, so that it belongs to the workload in whose cgroup it was started:
//! the demo starts its own program again for that.
//!
//! Sends what a [`Plan`] says until its input is closed, then prints the [`Outcome`] as JSON.

use crate::load::{self, Outcome, Plan};
use anyhow::{Context, Result};
use std::{
    io::{Read, Write},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// The first argument of such a process; the second is the plan.
const WORD: &str = "_load";

/// What it says when it begins.
pub const BEGUN: &str = "begun";

/// The arguments that make this program a client.
pub fn arguments(plan: &Plan) -> Result<[String; 2]> {
    Ok([WORD.to_owned(), serde_json::to_string(plan)?])
}

/// The plan, if these arguments ask for a client.
pub fn asked(mut arguments: impl Iterator<Item = String>) -> Option<String> {
    arguments
        .next()
        .filter(|word| word == WORD)
        .map(|_| arguments.next().unwrap_or_default())
}

/// Runs the plan.
pub fn main(plan: &str) -> ExitCode {
    match run(plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(plan: &str) -> Result<()> {
    let plan: Plan = serde_json::from_str(plan).context("the plan can not be read")?;
    let stop = Arc::new(AtomicBool::new(false));
    let halt = stop.clone();
    std::thread::spawn(move || {
        // An input that breaks off ends it as well.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        halt.store(true, Ordering::Relaxed);
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut out = std::io::stdout();
    writeln!(out, "{BEGUN}")?;
    let outcome: Outcome = runtime.block_on(load::run(plan, stop));
    writeln!(out, "{}", serde_json::to_string(&outcome)?)?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_comes_through_the_arguments() {
        let plan = Plan {
            address: ([127, 0, 0, 1], 80).into(),
            path: "/?id=".into(),
            expect: Vec::new(),
            connections: 1,
            rate: 1,
            reconnect: false,
            answerers: vec!["Name: v1".into()],
        };
        let arguments = arguments(&plan).unwrap();
        let read: Plan = serde_json::from_str(&asked(arguments.into_iter()).unwrap()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{plan:?}"));
        assert_eq!(asked(["--bin-dir".to_owned()].into_iter()), None);
    }
}
