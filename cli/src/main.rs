//! The `weft` command: runs apps in the mesh, shows what happens, and hands out credentials.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 `weft status` when manifests were rejected; `weft run`
//! returns its app's own code, and those of `weft explain` and `weft diff` are their answers: 0 allowed or the
//! same, 1 denied or different, 2 none.

mod commands;
mod connect;
mod kinds;
mod manifests;
mod output;
mod policy;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// Building blocks and service mesh from one agent per node.
///
/// Start with `weft dev` in one terminal and `weft run --app-id hello -- <command>` in another.
#[derive(Debug, Parser)]
#[command(
    name = "weft",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 2 wrong usage, 3 manifests are not in force (weft status), 1 everything \
                  else; `weft run` returns its app's own."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run all services in this process, on SQLite, for development
    #[cfg(feature = "dev")]
    Dev(commands::dev::Dev),
    /// Run an app in the mesh
    Run(commands::run::Run),
    /// Register the containers of this machine's Docker engine as workloads
    Containers(commands::containers::Containers),
    /// Show the agent of this node: what it enforces, its workloads, its connections
    Status(commands::status::Status),
    /// Show objects that were read and their status: Services, Gateways, routes, policies, Components
    Get(commands::get::Get),
    /// Write objects into the policy service's own store, as they stand in files
    Apply(commands::apply::Apply),
    /// Remove objects that were applied
    Delete(commands::delete::Delete),
    /// Show what apply would change. Exit code 0: nothing, 1: something, 2: it could not be told
    Diff(commands::diff::Diff),
    /// Show flows: who called whom, what was decided, and by which rule
    Observe(Box<commands::observe::Observe>),
    /// Check manifests: what is wrong, by file and line
    Validate(commands::validate::Validate),
    /// Say whether policy lets somebody reach somebody, and by which rules
    Explain(commands::explain::Explain),
    /// Ask the certificate authority of this machine
    #[command(subcommand)]
    Identity(commands::identity::Identity),
    /// Say what this machine can and cannot do for a node
    Doctor(commands::doctor::Doctor),
    /// Remove what a node left in the kernel and on this machine
    Uninstall(commands::uninstall::Uninstall),
    /// Operators' own credentials
    #[command(subcommand)]
    Admin(commands::admin::Admin),
}

/// Help and the version as they are, a mistake in one line.
fn not_parsed(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !error.use_stderr() || error.kind() == DisplayHelpOnMissingArgumentOrSubcommand {
        // A reader that went away does not matter.
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    let text = error.to_string();
    // Below the message clap shows usage and advice, which `--help` shows better.
    let message = text.split("\nUsage:").next().unwrap_or(&text);
    let message = message.split("\nFor more information").next().unwrap_or(message);
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    eprintln!(
        "weft: {}; see {} --help",
        line.trim_start_matches("error: "),
        subcommand(std::env::args_os().skip(1))
    );
    ExitCode::from(2)
}

/// The command whose help explains a mistake: as many words as name one.
fn subcommand(arguments: impl Iterator<Item = std::ffi::OsString>) -> String {
    let root = Cli::command();
    let (mut command, mut name) = (&root, root.get_name().to_owned());
    for word in arguments {
        let Some(next) = word.to_str().and_then(|w| command.find_subcommand(w)) else {
            break;
        };
        command = next;
        name = format!("{name} {}", command.get_name());
    }
    name
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error),
    };
    weft_tls::install_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("weft: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        match cli.command {
            #[cfg(feature = "dev")]
            Command::Dev(c) => c.run().await,
            Command::Run(c) => c.run().await,
            Command::Containers(c) => c.run().await,
            Command::Status(c) => c.run().await,
            Command::Get(c) => c.run().await,
            Command::Apply(c) => c.run().await,
            Command::Delete(c) => c.run().await,
            Command::Diff(c) => Ok(c.run().await),
            Command::Observe(c) => c.run().await.map(|()| ExitCode::SUCCESS),
            Command::Validate(c) => c.run(),
            Command::Explain(c) => Ok(c.run().await),
            Command::Identity(c) => c.run().await.map(|()| ExitCode::SUCCESS),
            Command::Doctor(c) => c.run(),
            Command::Uninstall(c) => c.run(),
            Command::Admin(c) => c.run().await.map(|()| ExitCode::SUCCESS),
        }
    });
    // Nothing of a finished command is worth waiting for (a stuck name lookup, say).
    runtime.shutdown_background();
    done.unwrap_or_else(|error| {
        // One line: the causes, outermost first, without those that repeat the one before.
        let mut line = String::new();
        for cause in error.chain().map(ToString::to_string) {
            if !line.contains(&cause) {
                line = if line.is_empty() {
                    cause
                } else {
                    format!("{line}: {cause}")
                };
            }
        }
        eprintln!("weft: {}", line.replace('\n', " "));
        ExitCode::FAILURE
    })
}
