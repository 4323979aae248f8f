//! `weft validate`: reads manifests as the policy service would, and says everything that is wrong with them.

use crate::output::print_text;
use anyhow::{Context, Result, bail};
use clap::Args;
use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
};
use weft_resources::{MAX_FILE_BYTES, Problem};

/// Exit code when something is wrong with a manifest.
const INVALID: u8 = 1;
/// More files are refused, so that a folder named by mistake ends.
const MAX_FILES: usize = 10_000;
const MAX_FOLDERS_DEEP: usize = 8;

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
            list(name, 0, &mut files)?;
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

/// A file as it is named, and the manifests of a folder, as the policy service lists them.
fn list(path: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    if path == Path::new("-") || !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        let manifest = path
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if hidden || path.is_dir() && depth >= MAX_FOLDERS_DEEP || !path.is_dir() && !manifest {
            continue;
        }
        list(&path, depth + 1, files)?;
        if files.len() > MAX_FILES {
            bail!("more than {MAX_FILES} files");
        }
    }
    Ok(())
}

/// One byte more than a manifest may have shows that it is too large.
fn read(path: &Path) -> Result<(String, Vec<u8>)> {
    let most = MAX_FILE_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_end(&mut bytes)?;
        return Ok(("<stdin>".to_owned(), bytes));
    }
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    file.take(most)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {name}"))?;
    Ok((name, bytes))
}
