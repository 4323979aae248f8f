//! cgroup v2: where it is, and emptying and removing a subtree.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, at};

/// Where cgroup v2 is mounted, alone or beside version 1.
pub(crate) fn root() -> Result<PathBuf, Error> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").map_err(at("read", Path::new("/proc/self/mounts")))?;
    mounts
        .lines()
        .find_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let (target, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(target))
        })
        .ok_or(Error::NoCgroup2)
}

/// Kills every process below `cgroup` but this one, waits until they are gone and removes the
/// folders. A subtree that isn't there is fine.
pub(crate) fn remove(cgroup: &Path) -> Result<(), Error> {
    if !cgroup.exists() {
        return Ok(());
    }
    let own = std::process::id().to_string();
    for folder in tree(cgroup) {
        let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        if procs.lines().any(|pid| pid == own) {
            let outside = root()?.join("cgroup.procs");
            fs::write(&outside, &own).map_err(at("leave for", &outside))?;
        }
    }
    let kill = cgroup.join("cgroup.kill");
    fs::write(&kill, "1").map_err(at("write", &kill))?;

    // Killed processes leave one by one. A process that the kernel holds for longer shows as an error.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match remove_folders(cgroup) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            result => return result.map_err(at("remove", cgroup)),
        }
    }
}

fn remove_folders(cgroup: &Path) -> io::Result<()> {
    for folder in tree(cgroup) {
        match fs::remove_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The folder and all below, the deepest first.
fn tree(cgroup: &Path) -> Vec<PathBuf> {
    let mut found = vec![cgroup.to_path_buf()];
    let mut next = 0;
    while let Some(folder) = found.get(next).cloned() {
        next += 1;
        let Ok(entries) = fs::read_dir(folder) else {
            continue;
        };
        found.extend(
            entries
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.is_dir()),
        );
    }
    found.reverse();
    found
}
