//! docker-compose.yml on a real engine: up, asked through the gateway while its routes change and while the
//! dataplane restarts, and down.
//!
//! Each request has a connection of its own and is not tried again. The manifests are a copy, so that the
//! trial may change them.

use super::compose;
use crate::{run::succeed, workspace::Workspace};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const GATEWAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 80);
const ANSWER: Duration = Duration::from_secs(5);
/// For a start that reads four databases and loads programs into the kernel.
const SOON: Duration = Duration::from_secs(120);
/// How long a changed route may take.
const CHANGE: Duration = Duration::from_secs(1);
/// Per count; the bounds below are five standard deviations of it.
const REQUESTS: u32 = 400;
const WORKERS: usize = 4;

/// Removes everything, however the trial ends.
struct Stack<'a> {
    workspace: &'a Workspace,
    manifests: PathBuf,
}

impl Stack<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = compose(self.workspace, &["--project-name", "weft-trial"]);
        command.args(args).env("WEFT_MANIFESTS", &self.manifests);
        command
    }

    /// Points one of the links at another manifest, at once.
    fn link(&self, name: &str, manifest: &str) -> Result<()> {
        let (new, link) = (
            self.manifests.join("compose/.new"),
            self.manifests.join("compose").join(name),
        );
        symlink(Path::new("..").join(manifest), &new)?;
        fs::rename(&new, &link).with_context(|| format!("cannot change {}", link.display()))
    }
}

impl Drop for Stack<'_> {
    fn drop(&mut self) {
        if let Err(error) = succeed(self.command(&["down", "--volumes"])) {
            eprintln!("xtask: {error:#}");
        }
        let _ = fs::remove_dir_all(&self.manifests);
    }
}

pub(super) fn run(workspace: &Workspace) -> Result<()> {
    let manifests = workspace.root.join("target/images-trial");
    let _ = fs::remove_dir_all(&manifests);
    fs::create_dir_all(manifests.with_file_name(""))?;
    let mut copy = Command::new("cp");
    copy.arg("--archive")
        .arg(workspace.root.join("examples/whoami"))
        .arg(&manifests);
    succeed(copy)?;
    let stack = Stack { workspace, manifests };
    succeed(stack.command(&["up", "--detach", "--no-build"]))?;

    let since = Instant::now();
    let first = loop {
        match ask() {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => break answer,
            Ok(_) | Err(_) if since.elapsed() < SOON => thread::sleep(Duration::from_millis(200)),
            Ok(answer) => bail!("the gateway answers {:?}", answer.lines().next()),
            Err(error) => bail!("nothing answers at {GATEWAY}: {error}"),
        }
    };
    println!("{}", first.trim_end());
    for (header, wanted) in [
        ("Dapr-Caller-App-Id", "ingress"),
        ("Dapr-Callee-App-Id", "whoami"),
    ] {
        let line = format!("{header}: {wanted}");
        ensure!(first.contains(&line), "the app saw no {line:?}");
    }
    // All four have to be known before shares mean anything.
    let known = Instant::now();
    while hosts()?.len() < 4 {
        ensure!(known.elapsed() < SOON, "not every whoami answers");
    }
    share("50/50", 150..=250)?;

    let load = Load::start();
    stack.link("split.yaml", "split-90-10.yaml")?;
    thread::sleep(CHANGE);
    share("90/10", 10..=70)?;
    let told = load.end();
    println!("changed under load: {told:?}");
    ensure!(
        told.failed.is_empty() && told.good > 100,
        "requests failed while the route changed"
    );

    let load = Load::start();
    thread::sleep(CHANGE);
    let restarted = Instant::now();
    succeed(stack.command(&["restart", "dataplane"]))?;
    while !ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
        ensure!(restarted.elapsed() < SOON, "the gateway does not come back");
        thread::sleep(Duration::from_millis(50));
    }
    let back = Instant::now();
    thread::sleep(Duration::from_secs(3));
    let told = load.end();
    let away = told.failed.last().zip(told.failed.first());
    let away = away.map_or(Duration::ZERO, |(last, first)| last.duration_since(*first));
    println!(
        "restarted under load: {} good, {} failed within {away:?}",
        told.good,
        told.failed.len()
    );
    ensure!(
        told.failed.iter().all(|at| *at < back + CHANGE),
        "requests fail after the dataplane is back"
    );
    share("90/10 after the restart", 10..=70)
}

/// One request, one connection.
fn ask() -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&GATEWAY, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// Who answers 40 requests.
fn hosts() -> Result<BTreeMap<String, u32>> {
    let mut hosts = BTreeMap::new();
    for _ in 0..40 {
        let answer = ask()?;
        if let Some(host) = field(&answer, "Hostname") {
            *hosts.entry(host.to_owned()).or_default() += 1;
        }
    }
    Ok(hosts)
}

/// Counts who answers, none of whom may fail.
fn share(what: &str, second: std::ops::RangeInclusive<u32>) -> Result<()> {
    let mut by = BTreeMap::<String, u32>::new();
    for _ in 0..REQUESTS {
        let answer = ask()?;
        ensure!(
            answer.starts_with("HTTP/1.1 200"),
            "a request failed: {:?}",
            answer.lines().next()
        );
        let name = field(&answer, "Name").context("an answer is not whoami's")?;
        *by.entry(name.to_owned()).or_default() += 1;
    }
    println!("{what}: {by:?}");
    let count = by.get("v2").copied().unwrap_or(0);
    ensure!(
        second.contains(&count),
        "v2 answered {count} of {REQUESTS}, not {second:?}"
    );
    Ok(())
}

/// What came of the requests under way in the background.
#[derive(Debug, Default)]
struct Told {
    good: u32,
    failed: Vec<Instant>,
}

struct Load {
    stop: Arc<AtomicBool>,
    told: Arc<Mutex<Told>>,
    workers: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start() -> Self {
        let (stop, told) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Told>>::default());
        let work = || {
            let (stop, told) = (Arc::clone(&stop), Arc::clone(&told));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let good = ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"));
                    // A worker that panicked has told what it had to.
                    let mut told = told.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    if good {
                        told.good += 1;
                    } else {
                        told.failed.push(Instant::now());
                    }
                }
            })
        };
        let workers = (0..WORKERS).map(|_| work()).collect();
        Self { stop, told, workers }
    }

    fn end(self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            let _ = worker.join();
        }
        std::mem::take(&mut *self.told.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}
