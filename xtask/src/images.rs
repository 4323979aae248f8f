//! `cargo xtask images`: the images of docker-compose.yml from binaries that are compiled here, and a
//! trial of all of it on a Docker engine.
//!
//! Owns which binaries, with which flags, and where the Dockerfile finds them. What is asked of the running
//! services is in `trial`.

mod trial;

use crate::{run::succeed, workspace::Workspace};
use anyhow::{Context, Result};
use std::{fs, path::Path, process::Command, process::ExitCode};

/// Where the Dockerfile takes binaries from when it is told to: in its build context.
const BINARIES: &str = "target/images";
/// Packages and the binaries they make.
const PROGRAMS: [(&str, &str); 7] = [
    ("weft-cli", "weft"),
    ("weft-identity", "weft-identity"),
    ("weft-placement", "weft-placement"),
    ("weft-policy", "weft-policy"),
    ("weft-node", "weft-node"),
    ("weft-agent", "weft-agent"),
    ("weft-example-whoami", "weft-example-whoami"),
];

/// What to do.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Compile without optimisation, which takes a third of the time
    #[arg(long)]
    dev: bool,
    /// Only compile: leave static binaries in target/images
    #[arg(long, conflicts_with = "trial")]
    binaries: bool,
    /// Then start everything, ask through the gateway while routes change and the dataplane restarts, and
    /// remove everything again
    #[arg(long = "try")]
    trial: bool,
    /// Take the binaries and images that are there
    #[arg(long, requires = "trial")]
    no_build: bool,
}

/// Carries it out.
pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    if !args.no_build {
        compile(workspace, args.dev)?;
    }
    if !args.binaries && !args.no_build {
        succeed(compose(workspace, &["build"]))?;
    }
    if args.trial {
        trial::run(workspace)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// docker-compose as the images here were built with; the engine is that of the environment.
fn compose(workspace: &Workspace, args: &[&str]) -> Command {
    let mut command = Command::new("docker-compose");
    command.args(args).current_dir(&workspace.root);
    command.env("WEFT_BINARIES", BINARIES);
    if std::env::var_os("WEFT_BUILDER_IMAGE").is_none() {
        // Nothing is compiled in there.
        let base = std::env::var("WEFT_BASE_IMAGE").unwrap_or_else(|_| "debian:bookworm-slim".into());
        command.env("WEFT_BUILDER_IMAGE", base);
    }
    command
}

fn compile(workspace: &Workspace, dev: bool) -> Result<()> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = workspace.cargo(&["build", "--locked", "--bins", "--target", &target]);
    // With --target, so that build scripts and macros, which can not be static, are not.
    build.env("RUSTFLAGS", "-C target-feature=+crt-static");
    build.env("CARGO_PROFILE_DEV_DEBUG", "0");
    if !dev {
        build.arg("--release");
    }
    for (package, _) in PROGRAMS {
        build.args(["--package", package]);
    }
    succeed(build)?;
    let made = workspace
        .target
        .join(target)
        .join(if dev { "debug" } else { "release" });
    let folder = workspace.root.join(BINARIES);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (_, binary) in PROGRAMS {
        strip(&made.join(binary), &folder.join(binary))?;
    }
    println!("static binaries are in {}", folder.display());
    Ok(())
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(to).arg(from);
    succeed(strip).map(drop)
}
