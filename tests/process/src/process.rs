//! One process: run to its end, or while it serves.

use crate::SOON;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// `nobody` on Debian; no file of a test belongs to it.
const NOBODY: u32 = 65534;

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    /// Nothing when a signal ended it.
    pub code: Option<i32>,
    /// All of it.
    pub stdout: String,
    /// All of it.
    pub stderr: String,
}

impl Ended {
    /// Checks that it failed as users may expect: with this code, and with one line on standard
    /// error that begins with the binary's name. Returns the line.
    #[track_caller]
    pub fn refused(&self, binary: &str, code: i32) -> &str {
        let lines: Vec<&str> = self.stderr.lines().collect();
        assert_eq!(
            (self.code, lines.len()),
            (Some(code), 1),
            "not one line and exit code {code}: {self:#?}"
        );
        assert!(lines[0].starts_with(&format!("{binary}: ")), "{self:#?}");
        assert!(!lines[0].contains("panicked"), "{self:#?}");
        lines[0]
    }

    /// [`Ended::refused`], and that the line holds all of these words.
    #[track_caller]
    pub fn says(&self, binary: &str, code: i32, words: &[&str]) {
        let line = self.refused(binary, code);
        for word in words {
            assert!(line.contains(word), "no {word:?} in: {line}");
        }
    }
}

/// Runs a process that ends by itself.
#[track_caller]
pub fn run(command: &mut Command) -> Ended {
    Serving::start(command).ended()
}

/// [`run`] as a user without any rights. Without root it is run as who runs the test, who has none either.
#[track_caller]
pub fn run_as_nobody(command: &mut Command) -> Ended {
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    run(command)
}

#[derive(Debug, Default)]
struct Said {
    lines: Vec<String>,
    over: bool,
}

/// A process that runs. Killed when dropped.
#[derive(Debug)]
pub struct Serving {
    child: Child,
    said: Arc<(Mutex<Said>, Condvar)>,
    stderr: Option<JoinHandle<()>>,
    stdout: Option<JoinHandle<String>>,
}

impl Serving {
    /// Starts it.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let said = Arc::new((Mutex::new(Said::default()), Condvar::new()));
        let (mut out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let stdout = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = out.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let heard = said.clone();
        let stderr = std::thread::spawn(move || {
            let (lines, more) = &*heard;
            for line in BufReader::new(err).lines().map_while(Result::ok) {
                lines.lock().unwrap().lines.push(line);
                more.notify_all();
            }
            lines.lock().unwrap().over = true;
            more.notify_all();
        });
        Self {
            child,
            said,
            stderr: Some(stderr),
            stdout: Some(stdout),
        }
    }

    /// Waits for a line on standard error and returns what is found in it.
    #[track_caller]
    pub fn heard<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let (said, more) = &*self.said;
        let (mut said, deadline) = (said.lock().unwrap(), Instant::now() + SOON);
        loop {
            if let Some(found) = said.lines.iter().find_map(|line| find(line)) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !said.over && !left.is_zero(),
                "it never said {what}: {:#?}",
                said.lines
            );
            said = more.wait_timeout(said, left).unwrap().0;
        }
    }

    /// Waits for a JSON log line with this message (or a part of it) and returns one of its fields.
    #[track_caller]
    pub fn logged(&self, message: &str, field: &str) -> String {
        self.heard(&format!("{message:?} with {field}"), |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            let said = line["message"].as_str()?.contains(message);
            said.then(|| line[field].as_str().map(str::to_owned)).flatten()
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        // Not reaped before `ended`, so the id is still its own.
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(mut self) -> Ended {
        let deadline = Instant::now() + SOON;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "it does not end: {:#?}",
                self.said.0.lock().unwrap().lines
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        self.stderr.take().unwrap().join().unwrap();
        let stdout = self.stdout.take().unwrap().join().unwrap();
        let mut stderr = self.said.0.lock().unwrap().lines.join("\n");
        if !stderr.is_empty() {
            stderr.push('\n');
        }
        Ended {
            code: status.code(),
            stdout,
            stderr,
        }
    }

    /// Asks it to end and waits until it has.
    #[track_caller]
    pub fn terminate(self) -> Ended {
        self.signal(Signal::SIGTERM);
        self.ended()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
