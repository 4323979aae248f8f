//! The node's subtree of cgroup v2: `<root>/_node` for this process and the agent, and one folder
//! per workload.
//!
//! Nothing here ends an app: a folder with processes in it stays, until they are gone or their
//! launcher registers them again.

use crate::NodeError;
use nix::fcntl::{Flock, FlockArg};
use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Where this process and the agent live. No workload can have this name: namespaces have no `_`.
const OWN: &str = "_node";
/// How long killed processes of an earlier agent may take to go.
const REAP_WITHIN: Duration = Duration::from_secs(5);

/// What a workload's folder is for. A pod never takes over the folder of a process of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Process,
    Pod,
}

/// The subtree, locked for this process.
#[derive(Debug)]
pub(crate) struct Cgroups {
    root: PathBuf,
    /// Whether programs at the node's root see the whole hierarchy.
    whole: bool,
    /// Where this process was before, in which it returns at the end.
    home: PathBuf,
    used: HashSet<PathBuf>,
    next: u64,
    _lock: Flock<fs::File>,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NodeError {
    move |source| NodeError::Cgroup {
        action,
        path: path.to_owned(),
        source,
    }
}

impl Cgroups {
    /// Makes the subtree and moves this process into it. What an earlier node left is cleared:
    /// its agent is killed, empty folders go, folders with apps in them stay.
    ///
    /// When `attached` is the whole hierarchy, the node's folders are in `root` below it.
    pub(crate) fn prepare(root: &Path, attached: &Path, cgroup2: &Path) -> Result<Self, NodeError> {
        let home = own_cgroup(cgroup2)?;
        if home.file_name().is_some_and(|name| name == OWN) {
            return Err(NodeError::Busy { path: home });
        }
        let own = root.join(OWN);
        fs::create_dir_all(&own).map_err(failed("make", &own))?;
        let folder = fs::File::open(root).map_err(failed("open", root))?;
        let lock = Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|_| NodeError::Busy {
            path: root.to_owned(),
        })?;
        kill_all(&own)?;
        write(&own.join("cgroup.procs"), &std::process::id().to_string()).map_err(failed("enter", &own))?;
        let mut cgroups = Self {
            root: root.to_owned(),
            whole: attached == cgroup2,
            home,
            used: HashSet::new(),
            next: 1,
            _lock: lock,
        };
        cgroups.sweep();
        Ok(cgroups)
    }

    /// Whether every process of the machine is below the node's programs.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Removes what is empty and continues counting after what is not.
    fn sweep(&mut self) {
        for (path, number) in self.folders() {
            if remove_tree(&path).is_err() {
                self.next = self.next.max(number.saturating_add(1));
            }
        }
    }

    fn folders(&self) -> Vec<(PathBuf, u64)> {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return Vec::new();
        };
        entries
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != OWN)
            .map(|entry| {
                let number = entry
                    .file_name()
                    .to_str()
                    .and_then(|n| n.rsplit('_').next()?.parse().ok());
                (entry.path(), number.unwrap_or(0))
            })
            .collect()
    }

    /// A folder for a workload with legal names: one that an earlier node made for it and that has
    /// processes, otherwise a new one. Answers with the path and its kernel id.
    pub(crate) fn make(&mut self, of: Of, namespace: &str, name: &str) -> Result<(PathBuf, u64), NodeError> {
        let prefix = match of {
            Of::Process => format!("{namespace}_{name}_"),
            Of::Pod => format!("{namespace}_{name}_pod_"),
        };
        let left = self.folders().into_iter().map(|(path, _)| path).find(|path| {
            !self.used.contains(path)
                && path
                    .file_name()
                    .and_then(|n| n.to_str())
                    .and_then(|n| n.strip_prefix(&prefix))
                    .is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()))
                && populated(path).unwrap_or(false)
        });
        let path = match left {
            Some(path) => path,
            None => {
                let path = self.root.join(format!("{prefix}{}", self.next));
                self.next += 1;
                fs::create_dir(&path).map_err(failed("make", &path))?;
                path
            }
        };
        let id = weft_bpf::cgroup_id(&path)?;
        self.used.insert(path.clone());
        Ok((path, id))
    }

    /// Lets go of a workload's folder; removes it when it is empty, and says whether it was.
    pub(crate) fn release(&mut self, path: &Path) -> bool {
        self.used.remove(path);
        remove_tree(path).is_ok()
    }

    /// The kernel ids of all folders that are there.
    pub(crate) fn ids(&self) -> HashSet<u64> {
        self.folders()
            .iter()
            .filter_map(|(path, _)| weft_bpf::cgroup_id(path).ok())
            .collect()
    }

    /// Returns this process to where it came from and removes what is empty. With `keep_root` the
    /// subtree stays for the programs that are attached to it.
    pub(crate) fn leave(&mut self, keep_root: bool) -> Result<(), NodeError> {
        write(&self.home.join("cgroup.procs"), &std::process::id().to_string())
            .map_err(failed("return to", &self.home))?;
        for (path, _) in self.folders() {
            if remove_tree(&path).is_err() {
                tracing::warn!(cgroup = %path.display(), "left in place: there are processes in it");
            }
        }
        let own = self.root.join(OWN);
        kill_all(&own)?;
        remove_tree(&own).map_err(failed("remove", &own))?;
        if keep_root {
            return Ok(());
        }
        // Others may be there: workloads that still run, other nodes.
        let _ = fs::remove_dir(&self.root);
        if let Some(parent) = self.root.parent().filter(|parent| parent.ends_with("weft")) {
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

/// Whether there are processes in a cgroup or below it.
pub(crate) fn populated(cgroup: &Path) -> io::Result<bool> {
    Ok(populated_in(&fs::read_to_string(cgroup.join("cgroup.events"))?))
}

/// Reads the kernel's `cgroup.events`.
pub(crate) fn populated_in(events: &str) -> bool {
    events.lines().any(|line| line.trim_end() == "populated 1")
}

fn own_cgroup(cgroup2: &Path) -> Result<PathBuf, NodeError> {
    let path = Path::new("/proc/self/cgroup");
    let text = fs::read_to_string(path).map_err(failed("read", path))?;
    let inside = text
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or("/");
    Ok(cgroup2.join(inside.trim_start_matches('/')))
}

/// Kills whatever is in the node's own cgroup: agents of an earlier node.
fn kill_all(own: &Path) -> Result<(), NodeError> {
    let deadline = Instant::now() + REAP_WITHIN;
    if !populated(own).map_err(failed("read", own))? {
        return Ok(());
    }
    tracing::warn!(cgroup = %own.display(), "ending processes that an earlier weft-node left");
    write(&own.join("cgroup.kill"), "1").map_err(failed("end the processes in", own))?;
    while populated(own).map_err(failed("read", own))? {
        if Instant::now() > deadline {
            return Err(failed("end the processes in", own)(
                io::ErrorKind::TimedOut.into(),
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// cgroupfs files are written in one call and never made.
fn write(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    fs::File::options()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

/// Removes a cgroup and those below it, all or nothing: fails when one has processes.
fn remove_tree(path: &Path) -> io::Result<()> {
    if populated(path).unwrap_or(false) {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    remove_folders(path)
}

fn remove_folders(path: &Path) -> io::Result<()> {
    match fs::read_dir(path) {
        Ok(entries) => {
            for entry in entries.filter_map(Result::ok) {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove_folders(&entry.path())?;
                }
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    match fs::remove_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_kernels_events_are_read() {
        assert!(populated_in("populated 1\nfrozen 0\n"));
        assert!(!populated_in("populated 0\nfrozen 1\n"));
        assert!(!populated_in(""));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(populated|[01 ]|\n|\\PC){0,8}") {
            let _ = populated_in(&text);
        }
    }
}
