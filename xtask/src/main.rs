//! Everything a developer runs, as `cargo xtask <command>`.
//!
//! Owns the order of things: what a machine needs, how tests fall into layers, what counts as a
//! run. It builds in seconds because it depends on nothing of the workspace; what it starts are
//! cargo, the tests and the demo, as processes.

mod fuzz;
mod images;
mod layers;
mod run;
mod setup;
mod workspace;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use run::Tally;
use setup::Purpose;
use std::{os::unix::process::CommandExt, process::ExitCode};
use workspace::Workspace;

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Builds, tests and shows Weft"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what tests and the demo need: Debian packages, Python and npm packages, grpcurl
    Setup {
        /// Only say what is missing; exit 1 when something is
        #[arg(long)]
        check: bool,
    },
    /// Format all sources
    Fmt,
    /// Check formatting and clippy, warnings denied
    Lint,
    /// Run the tests, layer by layer
    Test(TestArgs),
    /// Run the fuzz targets, unit tests whose names begin with fuzz_
    Fuzz {
        /// How long each
        #[arg(long, default_value_t = layers::FUZZ_SECONDS)]
        seconds: u64,
        /// How many at a time [default: half of them]
        #[arg(long)]
        jobs: Option<usize>,
        /// Only targets whose name contains this
        #[arg(default_value = "")]
        filter: String,
    },
    /// Two nodes and their apps: every claim shown and checked
    Demo {
        /// Which story
        #[arg(value_enum, default_value = "walkthrough")]
        story: Story,
        /// Leave everything running and print how to use it
        #[arg(long)]
        keep: bool,
        /// More arguments for the demo itself
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// Measure an area against its peers, release build; writes target/bench/<area>.json
    Bench {
        /// The area
        #[arg(value_parser = layers::BENCHES)]
        area: String,
        /// More arguments for the benchmark itself
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// The published gRPC descriptors
    #[command(subcommand)]
    Proto(Proto),
    /// The images of docker-compose.yml, from static binaries that are compiled here
    Images(images::Args),
    /// What CI runs: all tests, nothing may be left out
    Ci,
    /// Remove everything that was built or downloaded into the target folder
    Clean,
}

/// The demo's stories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Story {
    /// What the mesh does between two nodes
    Walkthrough,
    /// Events through Dapr's building blocks, apps in Python and JavaScript
    Pipeline,
}

#[derive(Debug, Default, Args)]
struct TestArgs {
    /// Which layers [default: all]
    #[arg(value_enum)]
    layers: Vec<Layer>,
    /// Only tests whose name contains this (lint and demo are left out then)
    #[arg(long)]
    filter: Option<String>,
    /// How many random histories the simulations play [default: their own, 500 at most]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
}

/// The layers a developer can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Layer {
    /// Formatting, clippy and every layer below
    All,
    /// Unit, integration and documentation tests; no privileges needed
    Unit,
    /// Random histories of the protocols, each from its seed; WEFT_SIM_SEED=<n> plays one again
    Sim,
    /// Mutated inputs for every parser of outside bytes, a minute each
    Fuzz,
    /// Network namespaces, cgroups and eBPF; needs root
    Net,
    /// Unmodified clients from the public registries
    Clients,
    /// The demo
    Demo,
}

#[derive(Debug, Subcommand)]
enum Proto {
    /// Fail when something published was removed, renumbered, renamed or retyped
    Check,
    /// Publish the current descriptors
    Publish {
        /// Also when peers of the published version would break
        #[arg(long)]
        breaking: bool,
    },
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match command {
        Command::Setup { check: true } => {
            let missing = setup::missing(&workspace, Purpose::Tests);
            for need in &missing {
                println!("missing: {need}");
            }
            if missing.is_empty() {
                println!("nothing is missing");
            }
            Ok(if missing.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        Command::Setup { check: false } => {
            setup::install(&workspace, Purpose::Tests)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Fmt => run::succeed(workspace.cargo(&["fmt", "--all"])),
        Command::Lint => {
            run::succeed(workspace.cargo(layers::FMT))?;
            run::succeed(workspace.cargo(layers::CLIPPY))
        }
        Command::Test(args) => test(&workspace, &args, in_ci()),
        Command::Ci => test(&workspace, &TestArgs::default(), true),
        Command::Fuzz {
            seconds,
            jobs,
            filter,
        } => fuzz::run(&workspace, seconds, jobs, &filter),
        Command::Demo { story, keep, rest } => demo(&workspace, story, keep, &rest),
        Command::Bench { area, rest } => {
            setup::install(&workspace, Purpose::Bench)?;
            let what = [
                "build",
                "--release",
                "--workspace",
                "--bins",
                "--example",
                "tunnel",
            ];
            run::succeed(workspace.cargo(&what))?;
            replace_with(layers::bench_command(&workspace, &area), &rest)
        }
        Command::Proto(Proto::Check) => {
            run::succeed(workspace.cargo(&["test", "--package", "weft-proto", "--test", "published"]))
        }
        Command::Proto(Proto::Publish { breaking }) => {
            let mut publish = workspace.cargo(&[
                "run",
                "--quiet",
                "--package",
                "weft-proto",
                "--example",
                "publish",
                "--",
            ]);
            if breaking {
                publish.arg("--breaking");
            }
            run::succeed(publish)
        }
        Command::Images(args) => images::run(&workspace, &args),
        Command::Clean => run::succeed(workspace.cargo(&["clean"])),
    }
}

fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|v| !v.is_empty() && v != "false" && v != "0")
}

/// Runs the layers in order, stops at the first that fails, and ends with the sums.
fn test(workspace: &Workspace, args: &TestArgs, strict: bool) -> Result<ExitCode> {
    let mut tally = Tally::new(strict);
    let plan = layers::plan(
        workspace,
        &args.layers,
        args.filter.as_deref(),
        args.seeds,
        strict,
    );
    tally.run(plan);
    Ok(if tally.close() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn demo(workspace: &Workspace, story: Story, keep: bool, rest: &[String]) -> Result<ExitCode> {
    if let Err(error) = setup::install(workspace, Purpose::Demo) {
        // The demo plays what works and says itself what it had to leave out.
        eprintln!("setup is not complete: {error:#}");
    }
    run::succeed(workspace.cargo(&["build", "--workspace", "--bins"])).context("the demo was not built")?;
    let mut demo = layers::demo_command(workspace, story, in_ci());
    if keep {
        demo.arg("--keep");
    }
    replace_with(demo, rest)
}

/// Becomes another program: signals must reach it itself, so that it tidies up.
fn replace_with(mut command: std::process::Command, rest: &[String]) -> Result<ExitCode> {
    let error = command.args(rest).exec();
    bail!(
        "cannot start {}: {error}",
        command.get_program().to_string_lossy()
    )
}
