//! Running cargo, and counting what its tests say.

use crate::place;
use anyhow::{Context, Result};
use std::{
    env,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

/// Tests counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl Counts {
    /// Adds another count.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// A cargo command in the workspace, with the tests' tools in its environment.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(args)
        .current_dir(place::root())
        .env("WEFT_GRPCURL", place::tools().join("grpcurl"))
        .env("WEFT_PYTHON", place::python());
    // A toolchain chosen for xtask itself is chosen for what it runs as well.
    command
}

/// Runs cargo with its output shown; whether it succeeded.
pub fn run(args: &[&str]) -> Result<bool> {
    println!("$ cargo {}", args.join(" "));
    Ok(command(args).status().context("cannot run cargo")?.success())
}

/// Runs cargo's tests with their output shown and counts the results. A command that fails without
/// a failed test (one that does not compile, say) counts as one failure.
pub fn test(args: &[&str]) -> Result<Counts> {
    println!("$ cargo {}", args.join(" "));
    counted(command(args))
}

/// Runs a command with its output shown and counts the results it prints.
pub fn counted(mut command: Command) -> Result<Counts> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let mut counts = Counts::default();
    if let Some(out) = child.stdout.take() {
        let mut lines = BufReader::new(out);
        let mut line = Vec::new();
        // Tests may print what is no UTF-8.
        while lines.read_until(b'\n', &mut line)? > 0 {
            let text = String::from_utf8_lossy(&line);
            print!("{text}");
            counts.add(parse(text.trim()).unwrap_or_default());
            line.clear();
        }
    }
    let ended = child.wait()?;
    if !ended.success() && counts.failed == 0 {
        counts.failed = 1;
    }
    Ok(counts)
}

/// `test result: ok. 5 passed; 0 failed; 1 ignored; …`, or `5 passed, 0 failed, 1 skipped`.
fn parse(line: &str) -> Option<Counts> {
    let (rest, separator) = match line.strip_prefix("test result: ") {
        Some(rest) => (rest.split_once(". ")?.1, "; "),
        None => (line.split_once("  (").map_or(line, |(l, _)| l), ", "),
    };
    let mut counts = Counts::default();
    let mut seen = 0;
    for part in rest.split(separator) {
        let Some((number, what)) = part.split_once(' ') else {
            continue;
        };
        let slot = match what {
            "passed" => &mut counts.passed,
            "failed" => &mut counts.failed,
            "ignored" | "skipped" => &mut counts.skipped,
            _ => continue,
        };
        *slot = number.parse().ok()?;
        seen += 1;
    }
    (seen >= 2).then_some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read() {
        let cargo = "test result: FAILED. 5 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.1s";
        assert_eq!(
            parse(cargo),
            Some(Counts {
                passed: 5,
                failed: 2,
                skipped: 1
            })
        );
        let demo = "31 passed, 0 failed, 2 skipped  (90 s)";
        assert_eq!(
            parse(demo),
            Some(Counts {
                passed: 31,
                failed: 0,
                skipped: 2
            })
        );
        for other in [
            "",
            "running 5 tests",
            "test a ... ok",
            "3 passed by, others failed",
            "x passed, y failed",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
