//! What is shown: each check with its outcome as it happens, then a summary.

use std::{
    fmt::Display,
    io::{IsTerminal, Write},
    time::Instant,
};

/// Collects outcomes. A check that failed does not stop the story.
#[derive(Debug)]
pub struct Report {
    begun: Instant,
    passed: u32,
    failed: Vec<String>,
    left_out: Vec<String>,
    colour: bool,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            passed: 0,
            failed: Vec::new(),
            left_out: Vec::new(),
            colour: std::io::stdout().is_terminal(),
        }
    }
}

impl Report {
    /// A new part of the story.
    pub fn chapter(&self, title: &str) {
        self.say(&format!("\n{}", self.paint("1", title)));
    }

    /// What happens between checks.
    pub fn note(&self, text: impl Display) {
        self.say(&format!("     {text}"));
    }

    /// One check: what must hold, whether it did, and what was seen.
    pub fn check(&mut self, what: &str, holds: bool, seen: impl Display) {
        if holds {
            self.passed += 1;
            self.say(&format!("{} {what}  [{seen}]", self.paint("32", "  ok")));
        } else {
            self.failed.push(what.to_owned());
            self.say(&format!("{} {what}  [{seen}]", self.paint("31", "FAIL")));
        }
    }

    /// A check whose measurement itself may fail.
    pub fn check_result<T>(
        &mut self,
        what: &str,
        result: anyhow::Result<T>,
        judge: impl FnOnce(&T) -> (bool, String),
    ) {
        match result {
            Ok(value) => {
                let (holds, seen) = judge(&value);
                self.check(what, holds, seen);
            }
            Err(error) => self.check(what, false, format!("{error:#}")),
        }
    }

    /// What can not be shown here, why, and how to get it.
    pub fn left_out(&mut self, what: &str, why: &str) {
        self.left_out.push(what.to_owned());
        self.say(&format!("{} {what}: {why}", self.paint("33", "skip")));
    }

    /// Prints the summary; true when everything held.
    pub fn summary(&self) -> bool {
        self.say(&format!(
            "\n{} passed, {} failed, {} skipped  ({} s)",
            self.passed,
            self.failed.len(),
            self.left_out.len(),
            self.begun.elapsed().as_secs()
        ));
        for failed in &self.failed {
            self.say(&format!("  failed: {failed}"));
        }
        self.failed.is_empty() && self.passed > 0
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn say(&self, text: &str) {
        // A reader that went away (`| head`) must not end the demo before it has tidied up.
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }
}
