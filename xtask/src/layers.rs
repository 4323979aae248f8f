//! The layers of tests, in the order in which they say most for least time.
//!
//! Which layer an integration test belongs to stands in its file's name: `tests/net_*.rs` need root
//! and the kernel, `tests/clients_*.rs` need real third-party clients, all others need nothing.

use crate::{
    cargo::{self, Counts},
    place,
    setup::{self, Need},
};
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};

/// One layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Layer {
    /// Every layer
    All,
    /// Formatting and clippy
    Lint,
    /// Unit, property and in-process integration tests
    Unit,
    /// Network namespaces, cgroups and BPF; needs root
    Net,
    /// Real third-party clients
    Clients,
    /// The demo as a test; needs root
    Demo,
}

const ORDER: [Layer; 5] = [Layer::Lint, Layer::Unit, Layer::Net, Layer::Clients, Layer::Demo];

struct Done {
    name: String,
    counts: Counts,
    took: Duration,
    left_out: Option<String>,
}

/// Runs the layers and prints what ran. With `strict`, a layer that is left out or ran nothing
/// fails.
pub fn test(layers: &[Layer], filter: Option<&str>, strict: bool) -> Result<bool> {
    let all = layers.is_empty() || layers.contains(&Layer::All);
    let begun = Instant::now();
    let mut done = Vec::new();
    for layer in ORDER.into_iter().filter(|l| all || layers.contains(l)) {
        let name = layer
            .to_possible_value()
            .map(|v| v.get_name().to_owned())
            .unwrap_or_default();
        println!("\n=== {name}");
        let start = Instant::now();
        let (counts, left_out) = match reason_to_leave_out(layer) {
            Some(reason) => (
                Counts {
                    skipped: 1,
                    ..Counts::default()
                },
                Some(reason),
            ),
            None => (run_layer(layer, filter)?, None),
        };
        done.push(Done {
            name,
            counts,
            took: start.elapsed(),
            left_out,
        });
    }
    Ok(summary(&done, begun.elapsed(), strict && filter.is_none()))
}

fn reason_to_leave_out(layer: Layer) -> Option<String> {
    let needs_root = matches!(layer, Layer::Net | Layer::Demo);
    (needs_root && !place::is_root())
        .then(|| "needs root for namespaces, cgroups and BPF; run it with sudo".to_owned())
}

fn run_layer(layer: Layer, filter: Option<&str>) -> Result<Counts> {
    match layer {
        Layer::All => Ok(Counts::default()),
        Layer::Lint => {
            let fine = lint()?;
            Ok(Counts {
                passed: u64::from(fine),
                failed: u64::from(!fine),
                skipped: 0,
            })
        }
        Layer::Unit => {
            setup::install(Need::NET)?;
            build()?;
            let targets = integration_tests()?;
            let mut args = vec!["test", "--workspace", "--no-fail-fast", "--lib", "--bins"];
            for target in targets
                .iter()
                .filter(|t| !t.starts_with("net_") && !t.starts_with("clients_"))
            {
                args.extend(["--test", target]);
            }
            let mut counts = cargo::test(&with_filter(args, filter, &[]))?;
            counts.add(cargo::test(&with_filter(
                vec!["test", "--workspace", "--doc"],
                filter,
                &[],
            ))?);
            Ok(counts)
        }
        Layer::Net => {
            setup::install(Need::NET)?;
            build()?;
            named("net_", filter)
        }
        Layer::Clients => {
            setup::install(Need::ALL)?;
            build()?;
            named("clients_", filter)
        }
        Layer::Demo => demo(false),
    }
}

/// Integration tests by prefix, two at a time: they share the machine's kernel.
fn named(prefix: &str, filter: Option<&str>) -> Result<Counts> {
    let targets = integration_tests()?;
    let mut args = vec!["test", "--workspace", "--no-fail-fast"];
    let mut any = false;
    for target in targets.iter().filter(|t| t.starts_with(prefix)) {
        args.extend(["--test", target]);
        any = true;
    }
    if !any {
        return Ok(Counts::default());
    }
    cargo::test(&with_filter(args, filter, &["--test-threads=2"]))
}

fn with_filter<'a>(mut args: Vec<&'a str>, filter: Option<&'a str>, own: &[&'a str]) -> Vec<&'a str> {
    if filter.is_some() || !own.is_empty() {
        args.push("--");
        args.extend(own);
        args.extend(filter);
    }
    args
}

/// The binaries that integration tests start.
fn build() -> Result<()> {
    anyhow::ensure!(
        cargo::run(&["build", "--workspace", "--bins"])?,
        "the workspace does not build"
    );
    Ok(())
}

/// Names of all integration test targets of the workspace.
fn integration_tests() -> Result<BTreeSet<String>> {
    let output = cargo::command(&["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cannot run cargo metadata")?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    Ok(list(&metadata["packages"])
        .iter()
        .flat_map(|package| list(&package["targets"]))
        .filter(|target| list(&target["kind"]).iter().any(|k| k == "test"))
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect())
}

/// Formatting and clippy with warnings denied.
pub fn lint() -> Result<bool> {
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "--deny",
        "warnings",
    ];
    Ok(cargo::run(&["fmt", "--all", "--check"])? && cargo::run(&clippy)?)
}

/// Builds and runs the demo; its checks are counted as tests.
pub fn demo(keep: bool) -> Result<Counts> {
    setup::install(Need::NET.and(Need::PYTHON))?;
    build()?;
    let bins = place::target().join("debug");
    let mut command = Command::new(bins.join("weft-demo"));
    command
        .current_dir(place::root())
        .arg("--bin-dir")
        .arg(&bins)
        .arg("--python")
        .arg(place::python());
    if keep {
        command.arg("--keep");
    }
    cargo::counted(command)
}

fn summary(done: &[Done], took: Duration, strict: bool) -> bool {
    println!("\n=== summary");
    let mut total = Counts::default();
    let mut fine = true;
    for layer in done {
        let c = layer.counts;
        total.add(c);
        let nothing = c.passed + c.failed == 0;
        let verdict = match &layer.left_out {
            Some(reason) => format!("LEFT OUT: {reason}"),
            None if nothing => "RAN NOTHING".into(),
            None => format!("{} passed, {} failed, {} skipped", c.passed, c.failed, c.skipped),
        };
        println!("{:<8} {:>5} s  {verdict}", layer.name, layer.took.as_secs());
        if c.failed > 0 || (strict && (nothing || c.skipped > 0)) {
            fine = false;
        }
    }
    if strict && !fine && total.failed == 0 {
        println!("under CI nothing may be left out");
        total.failed = 1;
    }
    println!(
        "in {} s\n{} passed, {} failed, {} skipped",
        took.as_secs(),
        total.passed,
        total.failed,
        total.skipped
    );
    fine
}
