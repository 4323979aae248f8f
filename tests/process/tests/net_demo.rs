//! Ctrl-C in the middle of the demo: what it made is gone, whatever it was about to do. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

use nix::sys::signal::Signal;
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use weft_process_tests::{Home, SOON, Serving, binary};

/// What a demo with this process id has on the machine.
#[derive(Debug, Default)]
struct Traces {
    folders: Vec<PathBuf>,
    cgroups: Vec<PathBuf>,
    mounts: Vec<String>,
    namespaces: usize,
    pins: usize,
    /// Names of its processes.
    processes: Vec<String>,
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| e.path()).collect()
}

fn below(folder: &Path) -> usize {
    entries(folder)
        .iter()
        .map(|p| if p.is_dir() { below(p) } else { 1 })
        .sum()
}

impl Traces {
    fn of(pid: u32) -> Self {
        let own = |path: &PathBuf| {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            name.starts_with(&format!("{pid}-"))
        };
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let cgroup2 = mounts.lines().find(|l| l.split(' ').nth(2) == Some("cgroup2"));
        let cgroup2 = PathBuf::from(cgroup2.unwrap().split(' ').nth(1).unwrap());
        let folders: Vec<PathBuf> = entries("/run/weft-test".as_ref())
            .into_iter()
            .filter(own)
            .collect();
        let folder = format!("/run/weft-test/{pid}-");
        let processes = entries("/proc".as_ref()).into_iter().filter_map(|p| {
            let line = fs::read(p.join("cmdline")).ok()?;
            let ours = String::from_utf8_lossy(&line).contains(&folder);
            ours.then(|| fs::read_to_string(p.join("comm")).ok())?
        });
        Self {
            cgroups: entries(&cgroup2.join("weft-test"))
                .into_iter()
                .filter(own)
                .collect(),
            mounts: mounts
                .lines()
                .filter(|l| l.contains(&folder))
                .map(str::to_owned)
                .collect(),
            namespaces: folders.iter().map(|f| entries(&f.join("ns")).len()).sum(),
            pins: folders.iter().map(|f| below(&f.join("bpffs"))).sum(),
            processes: processes.map(|name| name.trim().to_owned()).collect(),
            folders,
        }
    }

    fn runs(&self, name: &str) -> usize {
        self.processes.iter().filter(|p| *p == name).count()
    }
}

/// What `cargo xtask test` says where it has installed it.
fn installed(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable);
    path.unwrap_or_else(|| panic!("{variable}: run this by `cargo xtask test net`"))
        .into()
}

/// Interrupts a demo once it has come that far.
fn interrupted(signal: Signal, far: impl Fn(&Traces) -> bool) {
    interrupted_with(&[], signal, far);
}

fn interrupted_with(arguments: &[&OsStr], signal: Signal, far: impl Fn(&Traces) -> bool) {
    let home = Home::new();
    let mut command = home.bare("weft-demo");
    command
        .arg("--bin-dir")
        .arg(binary("weft-demo").parent().unwrap())
        .args(arguments);
    let mut demo = Serving::start(&mut command);
    let pid = demo.pid();
    let begun = Instant::now();
    loop {
        let traces = Traces::of(pid);
        if far(&traces) {
            break;
        }
        assert!(demo.runs(), "it ended before: {:#?}", demo.ended());
        assert!(begun.elapsed() < SOON * 6, "it never came that far: {traces:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    demo.signal(signal);
    let ended = demo.ended();
    assert_eq!(ended.code, Some(130), "{ended:#?}");
    assert!(ended.stderr.contains("removing everything"), "{ended:#?}");
    // A process that was killed with it is reaped by whoever inherited it.
    let begun = Instant::now();
    let left = loop {
        let left = Traces::of(pid);
        if left.processes.is_empty() || begun.elapsed() > SOON {
            break left;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let none = left.processes.is_empty()
        && left.folders.is_empty()
        && left.cgroups.is_empty()
        && left.mounts.is_empty();
    assert!(none, "{left:#?}");
}

#[test]
fn ctrl_c_while_the_control_plane_starts_leaves_nothing() {
    interrupted(Signal::SIGINT, |t| {
        t.runs("weft-identity") == 1 && !t.cgroups.is_empty() && t.namespaces >= 1
    });
}

#[test]
fn ctrl_c_in_the_middle_leaves_nothing() {
    interrupted(Signal::SIGINT, |t| {
        t.runs("weft-node") == 2
            && t.runs("weft-agent") >= 1
            && t.runs("weft-example-ca") >= 1
            && t.namespaces >= 4
            && t.pins > 0
            && t.mounts.len() > t.namespaces
    });
}

#[test]
fn ctrl_c_behind_the_gateway_leaves_nothing() {
    let python = installed("WEFT_PYTHON");
    // Both versions of whoami are up on both nodes; gateway, shared endpoints and load come then. The name is cut
    // off by the kernel.
    interrupted_with(&["--python".as_ref(), python.as_ref()], Signal::SIGINT, |t| {
        t.runs("weft-node") == 2 && t.runs("weft-example-wh") == 4
    });
}

#[test]
fn ctrl_c_in_the_pipeline_leaves_nothing() {
    let (python, modules) = (installed("WEFT_PYTHON"), installed("WEFT_NODE_MODULES"));
    let arguments: [&OsStr; 5] = [
        "--python".as_ref(),
        python.as_ref(),
        "--node-modules".as_ref(),
        modules.as_ref(),
        "pipeline".as_ref(),
    ];
    // Its apps are interpreters, which name themselves.
    interrupted_with(&arguments, Signal::SIGINT, |t| {
        let apps = t.processes.iter().filter(|name| !name.starts_with("weft-"));
        t.runs("weft-node") == 2 && t.runs("weft-agent") == 2 && apps.count() >= 3
    });
}
