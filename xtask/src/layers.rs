//! How the tests fall into layers.
//!
//! The name of an integration test says where it belongs: `tests/net_*.rs` needs root and the
//! kernel, `tests/clients_*.rs` needs programs of other people, `tests/sim_*.rs` plays out many random
//! histories, everything else runs anywhere.

use crate::{
    Layer, Story,
    run::{Prepare, Stage, Work},
    setup::{self, Purpose},
    workspace::{Workspace, user_id},
};
use std::{
    path::Path,
    process::{Command, Stdio},
};

pub const FMT: &[&str] = &["fmt", "--all", "--check"];
pub const CLIPPY: &[&str] = &[
    "clippy",
    "--workspace",
    "--all-targets",
    "--",
    "--deny",
    "warnings",
];
/// How long each fuzz target runs.
pub const FUZZ_SECONDS: u64 = 60;
/// One set of features for binaries and tests, so that nothing is compiled twice.
const BUILD: &[&str] = &["build", "--workspace", "--all-targets"];

/// The stages for what was asked for, in order; nothing named is everything.
pub fn plan(
    workspace: &Workspace,
    layers: &[Layer],
    filter: Option<&str>,
    seeds: Option<u64>,
    strict: bool,
) -> Vec<Stage> {
    let all = layers.is_empty() || layers.contains(&Layer::All);
    let wanted = |layer| layers.contains(&layer);
    let mut stages = Vec::new();
    let mut stage = |name, work| stages.push(Stage { name, work });
    // Unit tests and simulations alone need nothing but Rust.
    let plain = |layer: &Layer| matches!(layer, Layer::Unit | Layer::Sim);
    if all || !layers.iter().all(plain) {
        let purpose = if layers == [Layer::Demo] {
            Purpose::Demo
        } else {
            Purpose::Tests
        };
        let (root, target) = (workspace.root.clone(), workspace.target.clone());
        stage(
            "setup",
            Work::Prepare(Prepare(Box::new(move || {
                setup::install(&Workspace { root, target }, purpose)
            }))),
        );
    }
    if all && filter.is_none() {
        stage("fmt", Work::Check(vec![workspace.cargo(FMT)]));
        stage("clippy", Work::Check(vec![workspace.cargo(CLIPPY)]));
    }
    // Simulations are crates of their own, with few dependencies.
    if all || layers != [Layer::Sim] {
        stage("build", Work::Check(vec![workspace.cargo(BUILD)]));
    }
    if all || wanted(Layer::Unit) {
        stage("unit", unit(workspace, filter, strict));
    }
    if all || wanted(Layer::Sim) {
        stage("sim", sim(workspace, filter, seeds, strict));
    }
    if wanted(Layer::Fuzz) || all && filter.is_none() {
        stage("fuzz", fuzz(workspace, filter, strict));
    }
    if all || wanted(Layer::Net) {
        stage("net", named(workspace, "net_", filter, strict, kernel()));
    }
    if all || wanted(Layer::Clients) {
        stage("clients", named(workspace, "clients_", filter, strict, None));
    }
    if wanted(Layer::Demo) || all && filter.is_none() {
        stage("demo", demo(workspace, strict));
    }
    stages
}

fn unit(workspace: &Workspace, filter: Option<&str>, strict: bool) -> Work {
    let mut code = vec!["--lib", "--bins"];
    let names = match workspace.integration_tests() {
        Ok(names) => names,
        Err(error) => return Work::Skip(format!("{error:#}")),
    };
    for name in names.iter().filter(|n| {
        !["net_", "clients_", "sim_"]
            .iter()
            .any(|layer| n.starts_with(layer))
    }) {
        code.extend(["--test", name]);
    }
    Work::Count(vec![
        cargo_test(workspace, &code, filter, &[], strict),
        cargo_test(workspace, &["--doc"], filter, &[], strict),
    ])
}

/// By this program itself, which prints sums.
fn fuzz(workspace: &Workspace, filter: Option<&str>, strict: bool) -> Work {
    match std::env::current_exe() {
        Ok(own) => {
            let mut command = Command::new(own);
            command.arg("fuzz").args(filter).current_dir(&workspace.root);
            if strict {
                same_inputs(&mut command);
            }
            Work::Count(vec![command])
        }
        Err(error) => Work::Skip(format!("this program is not where it was: {error}")),
    }
}

/// The integration tests whose name begins so; `hindrance` is why they can not run here.
fn named(
    workspace: &Workspace,
    prefix: &str,
    filter: Option<&str>,
    strict: bool,
    hindrance: Option<String>,
) -> Work {
    if let Some(why) = hindrance {
        return Work::Skip(why);
    }
    let names = match workspace.integration_tests() {
        Ok(names) => names,
        Err(error) => return Work::Skip(format!("{error:#}")),
    };
    if !names.iter().any(|name| name.starts_with(prefix)) {
        return Work::Skip(format!("there is no tests/{prefix}*.rs"));
    }
    let pattern = format!("{prefix}*");
    // Two at a time: they compete for the kernel's own locks, and for two cores.
    Work::Count(vec![cargo_test(
        workspace,
        &["--test", &pattern],
        filter,
        &["--test-threads=2"],
        strict,
    )])
}

/// Simulations: they print the seed of a history that breaks a rule, and play it again when told to.
fn sim(workspace: &Workspace, filter: Option<&str>, seeds: Option<u64>, strict: bool) -> Work {
    let mut command = cargo_test(
        workspace,
        &["--test", "sim_*"],
        filter,
        &["--nocapture", "--test-threads=1"],
        strict,
    );
    if let Some(seeds) = seeds {
        command.env("WEFT_SIM_SEEDS", seeds.to_string());
    }
    Work::Count(vec![command])
}

fn cargo_test(
    workspace: &Workspace,
    targets: &[&str],
    filter: Option<&str>,
    harness: &[&str],
    strict: bool,
) -> Command {
    let mut command = workspace.cargo(&["test", "--workspace", "--no-fail-fast"]);
    command.args(targets).arg("--").args(filter).args(harness);
    environment(workspace, &mut command, strict);
    command
}

/// What tests and the demo may rely on: see CONTRIBUTING.md.
fn environment(workspace: &Workspace, command: &mut Command, strict: bool) {
    command.env("WEFT_PYTHON", workspace.python());
    command.env("WEFT_NODE_MODULES", workspace.node().join("node_modules"));
    if let Some(grpcurl) = setup::grpcurl(workspace) {
        command.env("WEFT_GRPCURL", grpcurl);
    }
    if strict {
        command.env("CI", "true");
        same_inputs(command);
    }
}

/// Random inputs that follow from one number: whether a change passes depends on the change alone. Other
/// runs try others.
fn same_inputs(command: &mut Command) {
    for name in ["WEFT_FUZZ_SEED", "PROPTEST_RNG_SEED"] {
        if std::env::var_os(name).is_none() {
            command.env(name, "1");
        }
    }
}

/// Why tests that use the kernel can not run here.
fn kernel() -> Option<String> {
    if user_id() != 0 {
        return Some("needs root: run it with sudo".into());
    }
    let namespaces = Command::new("unshare")
        .args(["--net", "--mount", "true"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success());
    if !namespaces {
        return Some("this machine allows no new network namespaces".into());
    }
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    if !mounts.lines().any(|l| l.split(' ').nth(2) == Some("cgroup2")) {
        return Some("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified".into());
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("the kernel has no BTF".into());
    }
    None
}

/// The demo's program with the paths it needs.
pub fn demo_command(workspace: &Workspace, story: Story, strict: bool) -> Command {
    let mut command = staged(workspace, "weft-demo", "debug", strict);
    if story == Story::Pipeline {
        let modules = workspace.node().join("node_modules");
        command.arg("--node-modules").arg(modules).arg("pipeline");
    }
    command
}

/// The areas that weft-bench measures; a wrong one is said before a long build.
pub const BENCHES: [&str; 5] = ["baseline", "identity", "mesh", "policy", "walkthrough"];

/// The benchmarks' program for an area.
pub fn bench_command(workspace: &Workspace, area: &str) -> Command {
    let mut command = staged(workspace, "weft-bench", "release", false);
    command.arg("--out").arg(workspace.target.join("bench")).arg(area);
    command
}

/// A program that starts ours as processes.
fn staged(workspace: &Workspace, name: &str, profile: &str, strict: bool) -> Command {
    let bin_dir = workspace.bin_dir(profile);
    let mut command = Command::new(bin_dir.join(name));
    command.current_dir(&workspace.root).arg("--bin-dir").arg(bin_dir);
    // Commands are planned before setup has run; whether it is there, the program looks itself.
    command.arg("--python").arg(workspace.python());
    environment(workspace, &mut command, strict);
    command
}

fn demo(workspace: &Workspace, strict: bool) -> Work {
    let stories = [Story::Walkthrough, Story::Pipeline];
    Work::Count(stories.map(|story| demo_command(workspace, story, strict)).into())
}
