//! The demo: the whole of Weft on one machine, as two nodes with pods and a control plane apart, and
//! every claim checked with its opposite. Each check is printed with its outcome; the exit code is
//! 1 if any failed.
//!
//! Nodes and pods are network namespaces. All of it is gone when the demo ends, also after Ctrl-C
//! or a panic; what a `kill -9` leaves, the next run removes first.

use anyhow::Result;
use clap::Parser;
use std::{path::PathBuf, process::ExitCode};
use tokio::signal::unix::{SignalKind, signal};
use weft_demo::{report::Report, rootless, stage::StageOptions, story};

/// Two nodes, two apps, every claim checked.
#[derive(Debug, Parser)]
#[command(name = "weft-demo")]
struct Options {
    /// Folder with the built binaries
    #[arg(long, value_name = "DIR")]
    bin_dir: PathBuf,
    /// A Python with the `dapr` package; its app is left out without it
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// Leave everything running at the end, with a cheat-sheet, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("weft-demo: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(async {
        tokio::select! {
            // Leaving this block drops the stage, and that removes everything it made.
            done = play(options) => done,
            signal = stopped() => {
                eprintln!("\nweft-demo: {signal}: removing everything");
                Ok(ExitCode::from(130))
            }
        }
    });
    code.unwrap_or_else(|error| {
        eprintln!("weft-demo: {error:#}");
        ExitCode::FAILURE
    })
}

async fn stopped() -> &'static str {
    let (Ok(mut int), Ok(mut term), Ok(mut hup)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = int.recv() => "interrupted",
        _ = term.recv() => "terminated",
        _ = hup.recv() => "the terminal went away",
    }
}

async fn play(options: Options) -> Result<ExitCode> {
    let mut report = Report::default();
    let stage = StageOptions {
        bin_dir: options.bin_dir,
        python: options.python,
    };
    if nix::unistd::geteuid().is_root() {
        let mut stage = story::play(&stage, &mut report).await?;
        let fine = report.summary();
        if options.keep {
            println!("{}", stage.cheat_sheet());
            std::future::pending::<()>().await;
        }
        stage.stop().await;
        return Ok(if fine {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    report.left_out(
        "two nodes, kernel attribution, mTLS between nodes, kill -9 of the agent",
        "they need root for network namespaces, cgroups and BPF; run `sudo cargo xtask demo`",
    );
    rootless::play(&stage, &mut report).await?;
    Ok(if report.summary() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
