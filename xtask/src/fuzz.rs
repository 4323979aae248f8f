//! Fuzz targets: unit tests whose names begin with `fuzz_`, each in a process of its own for so many
//! seconds. Crate `weft-fuzz` says how one is written; cargo's own output says where they are.

use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// One target.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    program: PathBuf,
    test: String,
}

/// How one ended.
#[derive(Debug)]
struct Outcome {
    passed: bool,
    took: Duration,
    output: String,
}

/// Builds and runs all targets whose names contain `filter`; the last line has the sums.
pub fn run(workspace: &Workspace, seconds: u64, jobs: Option<usize>, filter: &str) -> Result<ExitCode> {
    let targets = targets(workspace, filter)?;
    if targets.is_empty() {
        bail!("there is no target whose name contains {filter:?}");
    }
    // Two rounds, so that all of them take twice the time of one.
    let jobs = jobs.unwrap_or_else(|| targets.len().div_ceil(2)).max(1);
    println!("{} targets, {seconds} s each, {jobs} at a time", targets.len());
    let outcomes = together(&targets, jobs, |target| {
        let outcome = fuzz(workspace, target, seconds);
        println!("{}", told(target, &outcome));
        outcome
    });
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    println!(
        "{} passed, {failed} failed  (fuzz targets)",
        outcomes.len() - failed
    );
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What is shown of one: the line that sums up, or everything when it failed.
fn told(target: &Target, outcome: &Outcome) -> String {
    let (name, seconds) = (target.name(), outcome.took.as_secs());
    if outcome.passed {
        let inputs = outcome
            .output
            .lines()
            .find_map(inputs)
            .unwrap_or("an unknown number of inputs");
        return format!("  {name}: ok, {inputs}, {seconds} s");
    }
    format!(
        "  {name}: FAILED after {seconds} s\n{}\n  the same again, beginning with that input: BOLERO_RANDOM_SEED=… \
         cargo xtask fuzz --seconds 1 {name}",
        outcome.output
    )
}

/// `… | rng inputs: 123 | …`
fn inputs(line: &str) -> Option<&str> {
    line.split(" | ").find(|part| part.starts_with("rng inputs: "))
}

impl Target {
    /// `weft_identity::csr::tests::fuzz_csr`
    fn name(&self) -> String {
        let file = self
            .program
            .file_stem()
            .and_then(|s| s.to_str())
            .unwrap_or_default();
        let package = file.rsplit_once('-').map_or(file, |(package, _)| package);
        format!("{package}::{}", self.test)
    }
}

fn targets(workspace: &Workspace, filter: &str) -> Result<Vec<Target>> {
    let build = workspace
        .cargo(&["test", "--workspace", "--lib", "--no-run"])
        .stdout(Stdio::inherit())
        .output()
        .context("cargo can not be started")?;
    let text = String::from_utf8_lossy(&build.stderr);
    if !build.status.success() {
        bail!("the targets do not build:\n{text}");
    }
    let mut targets = Vec::new();
    for program in programs(&text) {
        let program = workspace.root.join(program);
        let list = Command::new(&program)
            .args(["--list", "--format", "terse"])
            .output()
            .with_context(|| format!("{} can not be started", program.display()))?;
        let list = String::from_utf8_lossy(&list.stdout);
        let here = fuzz_tests(&list).map(|test| Target {
            program: program.clone(),
            test: test.to_owned(),
        });
        targets.extend(here.filter(|target| target.name().contains(filter)));
    }
    Ok(targets)
}

/// `  Executable unittests src/lib.rs (target/debug/deps/weft_identity-0123)`
fn programs(text: &str) -> impl Iterator<Item = &Path> {
    text.lines().filter_map(|line| {
        let rest = line.trim_start().strip_prefix("Executable ")?;
        let (_, path) = rest.rsplit_once(" (")?;
        Some(Path::new(path.strip_suffix(')')?))
    })
}

/// `csr::tests::fuzz_csr: test`
fn fuzz_tests(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter_map(|line| {
        let test = line.strip_suffix(": test")?;
        let name = test.rsplit("::").next()?;
        name.starts_with("fuzz_").then_some(test)
    })
}

fn fuzz(workspace: &Workspace, target: &Target, seconds: u64) -> Outcome {
    let begun = Instant::now();
    let ended = Command::new(&target.program)
        .args(["--exact", &target.test, "--nocapture"])
        .current_dir(&workspace.root)
        .env("BOLERO_RANDOM_TEST_TIME_MS", (seconds * 1000).to_string())
        .output();
    let (passed, output) = match ended {
        Ok(out) => {
            let text = [out.stdout, out.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            // A name that matches nothing would pass as well.
            (out.status.success() && text.contains("1 passed"), text)
        }
        Err(error) => (false, error.to_string()),
    };
    Outcome {
        passed,
        took: begun.elapsed(),
        output,
    }
}

/// Does something with each of many, so many at a time.
fn together<T: Sync, R: Send>(items: &[T], jobs: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = work(item);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_found_in_what_cargo_and_tests_print() {
        let built = "   Compiling weft-identity v0.1.0\n  Executable unittests src/lib.rs \
                     (target/debug/deps/weft_identity-01ab)\nwarning: (x)\n";
        let found: Vec<_> = programs(built).collect();
        assert_eq!(found, [Path::new("target/debug/deps/weft_identity-01ab")]);
        let list = "csr::tests::fuzz_csr: test\nfuzz_x::tests::other: test\nfuzz_y: benchmark\n\n3 tests";
        let found: Vec<_> = fuzz_tests(list).collect();
        assert_eq!(found, ["csr::tests::fuzz_csr"]);
        let target = Target {
            program: "target/debug/deps/weft_identity-01ab".into(),
            test: "csr::tests::fuzz_csr".into(),
        };
        assert_eq!(target.name(), "weft_identity::csr::tests::fuzz_csr");
    }

    #[test]
    fn what_fails_is_shown_whole() {
        let target = Target {
            program: "p-1".into(),
            test: "fuzz_a".into(),
        };
        let outcome = |passed| Outcome {
            passed,
            took: Duration::from_secs(60),
            output: "x ... run time: 1s | iterations/s: 5 | rng inputs: 300 | exit\nBOLERO_RANDOM_SEED=7"
                .into(),
        };
        assert_eq!(
            told(&target, &outcome(true)),
            "  p::fuzz_a: ok, rng inputs: 300, 60 s"
        );
        let failed = told(&target, &outcome(false));
        assert!(
            failed.contains("FAILED after 60 s") && failed.contains("BOLERO_RANDOM_SEED=7"),
            "{failed}"
        );
    }

    #[test]
    fn so_many_run_at_a_time() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let done = together(&[1, 2, 3, 4, 5], 2, |n| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5));
            now.fetch_sub(1, Ordering::SeqCst);
            *n
        });
        assert_eq!(done.iter().sum::<i32>(), 15);
        assert_eq!(most.into_inner(), 2);
    }
}
