//! Files of manifests, as commands name them.

use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};
use weft_resources::MAX_FILE_BYTES;

/// More files are refused, so that a folder named by mistake ends.
const MAX_FILES: usize = 10_000;
const MAX_FOLDERS_DEEP: usize = 8;

/// A file as it is named, and the manifests of a folder, as the policy service lists them: with those of its
/// folders, or without.
pub fn list(path: &Path, recursive: bool, files: &mut Vec<PathBuf>) -> Result<()> {
    look(path, 0, if recursive { MAX_FOLDERS_DEEP } else { 0 }, files)
}

fn look(path: &Path, depth: usize, deepest: usize, files: &mut Vec<PathBuf>) -> Result<()> {
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
        if hidden || path.is_dir() && depth >= deepest || !path.is_dir() && !manifest {
            continue;
        }
        look(&path, depth + 1, deepest, files)?;
        if files.len() > MAX_FILES {
            bail!("more than {MAX_FILES} files");
        }
    }
    Ok(())
}

/// A file's name and content. One byte more than a manifest may have shows that it is too large.
pub fn read(path: &Path) -> Result<(String, Vec<u8>)> {
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
