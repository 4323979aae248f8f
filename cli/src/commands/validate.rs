//! `weft validate`: reads manifests as the policy service would, and says everything that is wrong with them.

use crate::{
    manifests::{list, read},
    output::print_text,
};
use anyhow::Result;
use clap::Args;
use std::{path::PathBuf, process::ExitCode};
use weft_resources::Problem;

/// Exit code when something is wrong with a manifest.
const INVALID: u8 = 1;

/// Check manifests, without a cluster.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 all is well, 1 something is wrong, 2 wrong usage.\n\nExamples:\n  \
    weft validate -f policies/\n  cat policy.yaml | weft validate -f -"
)]
pub struct Validate {
    /// File or folder of YAML or JSON, or - for standard input; may be given several times
    #[arg(long, short = 'f', value_name = "FILE", required = true)]
    filename: Vec<PathBuf>,
}

impl Validate {
    /// Prints what is wrong, each with file and line, and a last line that sums it up.
    pub fn run(self) -> Result<ExitCode> {
        let (mut objects, mut problems) = (0, Vec::<Problem>::new());
        let mut files = Vec::new();
        for name in &self.filename {
            list(name, true, &mut files)?;
        }
        for path in &files {
            let (name, bytes) = read(path)?;
            match weft_resources::parse(&name, &bytes) {
                Ok(resources) => objects += resources.len(),
                Err(found) => problems.extend(found),
            }
        }
        for problem in &problems {
            print_text(&problem.to_string())?;
        }
        let (files, found) = (files.len(), problems.len());
        if found > 0 {
            eprintln!("weft: {found} problems in {files} files");
            return Ok(ExitCode::from(INVALID));
        }
        print_text(&format!("{objects} objects in {files} files are valid"))?;
        Ok(ExitCode::SUCCESS)
    }
}
