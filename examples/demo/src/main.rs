//! The demo: the whole of Weft on one machine, as two nodes with pods and a control plane apart, and
//! every claim checked with its opposite. Each check is printed with its outcome; the exit code is
//! 1 if any failed.
//!
//! Nodes and pods are network namespaces. All of it is gone when the demo ends, also after Ctrl-C
//! or a panic; what a `kill -9` leaves, the next run removes first.

use anyhow::Result;
use clap::Parser;
use std::{io::Write, path::PathBuf, process::ExitCode};
use tokio::signal::unix::{SignalKind, signal};
use weft_demo::{client, report::Report, rootless, stage::StageOptions, story, trial};

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
    /// Folder `node_modules` with `@dapr/dapr`, for the pipeline
    #[arg(long, value_name = "DIR")]
    node_modules: Option<PathBuf>,
    /// Which story
    #[arg(value_enum, default_value = "walkthrough")]
    story: Story,
    /// Leave everything running at the end, with a cheat-sheet, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Story {
    /// Two nodes and what the mesh does between their apps
    Walkthrough,
    /// Events from a timer through state, another app and a broker to a viewer, with Dapr's own SDKs
    Pipeline,
}

fn main() -> ExitCode {
    if let Some(plan) = client::asked(std::env::args().skip(1)) {
        return client::main(&plan);
    }
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
        // Before anything is made: a signal that nobody catches ends the process and leaves it all.
        let stopped = stopped()?;
        tokio::select! {
            // Leaving this block drops the stage, and that removes everything it made.
            done = play(options) => done,
            signal = stopped => {
                // With the terminal gone nobody reads this; the rest must be done all the same.
                let _ = writeln!(std::io::stderr(), "\nweft-demo: {signal}: removing everything");
                Ok(ExitCode::from(130))
            }
        }
    });
    code.unwrap_or_else(|error| {
        eprintln!("weft-demo: {error:#}");
        ExitCode::FAILURE
    })
}

/// Signals are caught from here on.
fn stopped() -> Result<impl Future<Output = &'static str>> {
    let (mut int, mut term, mut hup) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    );
    Ok(async move {
        tokio::select! {
            _ = int.recv() => "interrupted",
            _ = term.recv() => "terminated",
            _ = hup.recv() => "the terminal went away",
        }
    })
}

async fn play(options: Options) -> Result<ExitCode> {
    let mut report = Report::default();
    let stage = StageOptions {
        bin_dir: options.bin_dir,
        python: options.python,
    };
    match root_and_kernel() {
        Ok(()) => {
            let mut stage = match options.story {
                Story::Walkthrough => story::play(&stage, &mut report).await?,
                Story::Pipeline => {
                    let modules = options.node_modules.unwrap_or_default();
                    story::pipeline::play(&stage, &modules, &mut report).await?
                }
            };
            let fine = report.summary();
            if options.keep {
                let _ = writeln!(std::io::stdout(), "{}", stage.cheat_sheet());
                std::future::pending::<()>().await;
            }
            stage.stop().await;
            return Ok(if fine {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Err(why) if options.story == Story::Pipeline => {
            report.left_out("the pipeline", &why);
            return Ok(ExitCode::FAILURE);
        }
        Err(why) => report.left_out(
            "two nodes, the Python app, kernel attribution, mTLS between nodes, kill -9 of each service",
            &why,
        ),
    }
    rootless::play(&stage, &mut report).await?;
    Ok(if report.summary() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether the whole story can be played here; otherwise why not, and what would help.
fn root_and_kernel() -> Result<(), String> {
    if nix::unistd::geteuid().is_root() {
        return trial::everything().map_err(|error| {
            // Each error names its cause itself; `ip` answers in several lines.
            let error = error.to_string();
            let words: Vec<&str> = error.split_whitespace().collect();
            format!(
                "this machine does not give root network namespaces, cgroups and BPF: {}",
                words.join(" ")
            )
        });
    }
    // sudo finds no cargo in a user's home, and with everything built none is needed.
    let again: Vec<String> = std::env::args().map(|word| quoted(&word)).collect();
    Err(format!(
        "they need root for network namespaces, cgroups and BPF; now that all is built: sudo {}",
        again.join(" ")
    ))
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_survive_a_shell() {
        for word in ["--bin-dir", "/a b/it's", "", "$HOME", "--x=1"] {
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quoted(word))])
                .output();
            assert_eq!(output.ok().map(|o| o.stdout), Some(word.as_bytes().to_vec()));
        }
        assert_eq!(quoted("/target/debug"), "/target/debug");
    }
}
