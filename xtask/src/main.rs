//! Everything a developer runs, as `cargo xtask <command>`. Depends on no other crate of the
//! workspace, so it builds in seconds on a clean clone.

mod cargo;
mod layers;
mod place;
mod setup;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Build, test and show Weft.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what tests and the demo need; says what and why first
    Setup {
        /// Only say what is missing; exit 1 if anything is
        #[arg(long)]
        check: bool,
    },
    /// Format the code
    Fmt,
    /// Formatting and clippy, warnings denied
    Lint,
    /// Run the tests: all layers, or the ones named
    Test {
        /// Layers to run [default: all]
        #[arg(value_enum)]
        layers: Vec<layers::Layer>,
        /// Only tests whose name contains this
        #[arg(long, value_name = "TEXT")]
        filter: Option<String>,
    },
    /// Two nodes, two apps, every claim checked
    Demo {
        /// Leave everything running at the end, with a cheat-sheet
        #[arg(long)]
        keep: bool,
    },
    /// Measure an area against its peers; writes target/bench/<area>.json
    Bench {
        /// The area
        #[arg(value_parser = ["baseline"])]
        area: String,
    },
    /// The published form of the gRPC packages
    #[command(subcommand)]
    Proto(Proto),
    /// What continuous integration runs: all layers, nothing left out
    Ci,
    /// Remove what builds and setup made
    Clean,
}

#[derive(Debug, Subcommand)]
enum Proto {
    /// Fail if a change would break a peer one version apart
    Check,
    /// Make the present packages the published ones
    Publish,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<bool> {
    match command {
        Command::Setup { check: true } => setup::check(),
        Command::Setup { check: false } => setup::install(setup::Need::ALL).map(|()| true),
        Command::Fmt => cargo::run(&["fmt", "--all"]),
        Command::Lint => layers::lint(),
        Command::Test { layers, filter } => layers::test(&layers, filter.as_deref(), place::in_ci()),
        Command::Demo { keep } => layers::demo(keep).map(|counts| counts.failed == 0),
        Command::Bench { area } => {
            setup::install(setup::Need::BENCH)?;
            Ok(cargo::run(&["build", "--release", "--workspace", "--bins"])?
                && cargo::run(&["run", "--release", "--package", "weft-bench", "--", &area])?)
        }
        Command::Proto(Proto::Check) => cargo::run(&["test", "--package", "weft-proto"]),
        Command::Proto(Proto::Publish) => {
            cargo::run(&["run", "--package", "weft-proto", "--example", "publish"])
        }
        Command::Ci => layers::test(&[], None, true),
        Command::Clean => {
            for path in [place::tools(), place::venv()] {
                if path.exists() {
                    std::fs::remove_dir_all(&path)?;
                }
            }
            cargo::run(&["clean"])
        }
    }
}
