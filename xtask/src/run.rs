//! Running commands and adding up what they say.

use anyhow::{Context, Result, bail};
use std::{
    fmt,
    io::{BufRead, BufReader},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

/// Runs a command to its end; an error when it fails.
pub fn succeed(mut command: Command) -> Result<ExitCode> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(&command));
    }
    Ok(ExitCode::SUCCESS)
}

/// As one would type it.
pub fn shown(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let program = program.rsplit('/').next().unwrap_or_default();
    command.get_args().fold(program.to_owned(), |line, arg| {
        format!("{line} {}", arg.to_string_lossy())
    })
}

/// Marks a test that is no test but a process which others start; it is not left out.
const HELPER: &str = " ... ignored, started by ";

/// Sums of tests or checks.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
    helpers: u64,
}

impl Counts {
    /// Adds what a line of output says, if it is one that sums up.
    pub fn read(&mut self, line: &str) {
        if line.starts_with("test ") && line.contains(HELPER) {
            self.helpers += 1;
            return;
        }
        let sums = match line.strip_prefix("test result: ") {
            // `ok. 3 passed; 0 failed; 1 ignored; …`
            Some(rest) => rest.split_once(". ").map_or("", |(_, sums)| sums),
            // The demo's: `12 passed, 0 failed, 1 skipped  (80 s)`
            None if line.starts_with(|c: char| c.is_ascii_digit()) && line.contains(" passed, ") => line,
            None => return,
        };
        for sum in sums.split([';', ',']) {
            let mut words = sum.split_whitespace();
            let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" | "skipped" => self.ignored += count,
                _ => {}
            }
        }
    }

    /// What should have run and did not.
    fn left_out(&self) -> u64 {
        self.ignored.saturating_sub(self.helpers)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// What a layer does when its turn comes.
#[derive(Debug)]
pub enum Work {
    /// Succeeds or not; counts nothing.
    Check(Vec<Command>),
    /// Prints sums; under CI it must have run something and left out nothing.
    Count(Vec<Command>),
    /// Is left out, with the reason.
    Skip(String),
    /// Prepares the machine.
    Prepare(Prepare),
}

/// A preparation, so that it runs in its turn.
pub struct Prepare(pub Box<dyn FnOnce() -> Result<()>>);

impl fmt::Debug for Prepare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prepare")
    }
}

/// One stage with its name.
#[derive(Debug)]
pub struct Stage {
    pub name: &'static str,
    pub work: Work,
}

/// The outcome of all stages.
#[derive(Debug)]
pub struct Tally {
    strict: bool,
    lines: Vec<String>,
    total: Counts,
    failed: Option<&'static str>,
}

impl Tally {
    /// With `strict`, nothing may be left out.
    pub fn new(strict: bool) -> Self {
        Self {
            strict,
            lines: Vec::new(),
            total: Counts::default(),
            failed: None,
        }
    }

    /// Runs stages in order up to the first that fails.
    pub fn run(&mut self, stages: Vec<Stage>) {
        for stage in stages {
            if self.failed.is_some() {
                self.note(stage.name, "not reached", Duration::ZERO);
                continue;
            }
            self.stage(stage);
        }
    }

    fn stage(&mut self, stage: Stage) {
        let name = stage.name;
        println!("\n== {name} ==");
        let begun = Instant::now();
        let (counts, outcome) = match stage.work {
            Work::Skip(why) if self.strict => (Counts::default(), Err(format!("left out: {why}"))),
            Work::Skip(why) => (Counts::default(), Ok(format!("skipped: {why}"))),
            Work::Prepare(Prepare(prepare)) => match prepare() {
                Ok(()) => (Counts::default(), Ok("ok".into())),
                Err(error) if self.strict => (Counts::default(), Err(format!("{error:#}"))),
                Err(error) => (Counts::default(), Ok(format!("not complete: {error:#}"))),
            },
            Work::Check(commands) => {
                let first = commands.into_iter().find_map(|c| succeed(c).err());
                let outcome = first.map_or(Ok("ok".into()), |e| Err(format!("{e:#}")));
                (Counts::default(), outcome)
            }
            Work::Count(commands) => count(commands, self.strict),
        };
        self.total.passed += counts.passed;
        self.total.failed += counts.failed;
        match outcome {
            Ok(text) => self.note(name, &text, begun.elapsed()),
            Err(text) => {
                println!("{name}: {text}");
                self.note(name, &format!("FAILED: {text}"), begun.elapsed());
                self.failed = Some(name);
                // A stage that counts nothing, or broke off before its sums, is one failure.
                if counts.failed == 0 {
                    self.total.failed += 1;
                }
            }
        }
    }

    fn note(&mut self, name: &str, text: &str, took: Duration) {
        self.lines
            .push(format!("  {name:<9} {:>5} s  {text}", took.as_secs()));
    }

    /// Prints the sums; true when nothing failed.
    pub fn close(&self) -> bool {
        println!("\n== summary ==");
        for line in &self.lines {
            println!("{line}");
        }
        if let Some(name) = self.failed {
            println!("stopped at {name}");
        }
        println!("{}", self.total);
        self.failed.is_none()
    }
}

/// Runs commands that print sums, all of them even if one fails.
fn count(commands: Vec<Command>, strict: bool) -> (Counts, Result<String, String>) {
    let mut counts = Counts::default();
    let mut broken = None;
    for command in commands {
        if let Err(error) = follow(command, &mut counts) {
            broken.get_or_insert(format!("{error:#}"));
        }
    }
    let left_out = match counts.left_out() {
        0 => String::new(),
        n => format!(", {n} left out"),
    };
    let outcome = if let Some(why) = broken {
        Err(format!("{counts}{left_out}: {why}"))
    } else if counts.failed > 0 {
        Err(format!("{counts}{left_out}"))
    } else if strict && counts.left_out() > 0 {
        Err(format!("{counts}{left_out}; under CI nothing may be"))
    } else if strict && counts.passed == 0 {
        Err("it ran nothing".into())
    } else {
        Ok(format!("{} passed{left_out}", counts.passed))
    };
    (counts, outcome)
}

/// Passes a command's output on line by line and reads the sums in it.
fn follow(mut command: Command, counts: &mut Counts) -> Result<()> {
    let text = shown(&command);
    println!("$ {text}");
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{text}`"))?;
    if let Some(stdout) = child.stdout.take() {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            // Tests may print anything; what is no UTF-8 is shown as such.
            let shown = String::from_utf8_lossy(&line);
            print!("{shown}");
            counts.read(shown.trim_end());
            line.clear();
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{text}` failed: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_read_from_cargo_and_from_the_demo() {
        let mut counts = Counts::default();
        counts.read("running 3 tests");
        counts.read(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s",
        );
        counts.read("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        counts.read("12 passed, 1 failed, 2 skipped  (80 s)");
        counts.read("all 12 passed, so they say");
        assert_eq!(
            counts,
            Counts {
                passed: 16,
                failed: 3,
                ignored: 3,
                helpers: 0
            }
        );
    }

    fn echo(text: &str, code: u8) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "printf '%s\\n' \"$0\"; exit $1", text, &code.to_string()]);
        command
    }

    const GOOD: &str = "test result: ok. 2 passed; 0 failed; 0 ignored;";

    fn outcome(strict: bool, work: Work) -> (bool, String) {
        let mut tally = Tally::new(strict);
        tally.run(vec![
            Stage { name: "first", work },
            Stage {
                name: "second",
                work: Work::Count(vec![echo(GOOD, 0)]),
            },
        ]);
        (tally.close(), tally.total.to_string())
    }

    #[test]
    fn the_first_failure_ends_the_run_and_is_counted() {
        assert_eq!(
            outcome(true, Work::Count(vec![echo(GOOD, 0)])),
            (true, "4 passed, 0 failed".into())
        );
        let bad = "test result: FAILED. 1 passed; 3 failed; 0 ignored;";
        assert_eq!(
            outcome(true, Work::Count(vec![echo(bad, 101)])),
            (false, "1 passed, 3 failed".into())
        );
        // A test process that dies prints no sums.
        assert_eq!(
            outcome(false, Work::Count(vec![echo("", 101)])),
            (false, "0 passed, 1 failed".into())
        );
        assert_eq!(
            outcome(false, Work::Check(vec![echo("", 1)])),
            (false, "0 passed, 1 failed".into())
        );
    }

    #[test]
    fn under_ci_nothing_may_be_left_out() {
        let skip = || Work::Skip("no root".into());
        assert_eq!(outcome(false, skip()), (true, "2 passed, 0 failed".into()));
        assert_eq!(outcome(true, skip()), (false, "0 passed, 1 failed".into()));
        let nothing = || Work::Count(vec![echo("test result: ok. 0 passed; 0 failed; 0 ignored;", 0)]);
        assert_eq!(outcome(false, nothing()), (true, "2 passed, 0 failed".into()));
        assert_eq!(outcome(true, nothing()), (false, "0 passed, 1 failed".into()));
        let ignored = || Work::Count(vec![echo("test result: ok. 5 passed; 0 failed; 1 ignored;", 0)]);
        assert_eq!(outcome(false, ignored()), (true, "7 passed, 0 failed".into()));
        assert_eq!(outcome(true, ignored()), (false, "5 passed, 1 failed".into()));
        let helper = "test child ... ignored, started by another test\n\
                      test result: ok. 5 passed; 0 failed; 1 ignored;";
        assert_eq!(
            outcome(true, Work::Count(vec![echo(helper, 0)])),
            (true, "7 passed, 0 failed".into())
        );
    }
}
