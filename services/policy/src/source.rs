//! A folder of manifests: read at the start, then again whenever something in it changes.
//!
//! The kernel's notifications only say when to look; what changed is found by comparing each file's
//! stamp, every few seconds also without a notification (network file systems send none).

use crate::files::{Content, Reading};
use notify::{
    EventKind, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tokio::sync::mpsc;
use weft_drain::Watcher;
use weft_resources::{MAX_FILE_BYTES, Problem};

const MAX_FILES: usize = 10_000;
const MAX_FOLDERS_DEEP: usize = 8;
/// Looked at this often also when nothing is notified.
const POLL: Duration = Duration::from_secs(2);
/// A file is read when nothing has changed for this long, so that it is not read half written.
const QUIET: Duration = Duration::from_millis(50);
/// ... but after this long at the latest.
const PATIENCE: Duration = Duration::from_secs(1);

/// What tells a changed file from an unchanged one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The folder and what was seen in it.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    seen: BTreeMap<PathBuf, Stamp>,
    full: bool,
}

impl Folder {
    /// Fails when the folder can not be listed: a typo in its name must not mean "no policies".
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        fs::read_dir(root)?;
        Ok(Self {
            root: root.to_owned(),
            seen: BTreeMap::new(),
            full: false,
        })
    }

    /// Files that changed since the last call. An error leaves everything as it was.
    pub(crate) fn changes(&mut self) -> io::Result<Vec<Reading>> {
        let mut found = BTreeMap::new();
        list(&self.root, 0, &mut found)?;
        if found.len() > MAX_FILES && !std::mem::replace(&mut self.full, true) {
            tracing::error!(folder = %self.root.display(), "more than {MAX_FILES} files: the rest is not read");
        }
        let found: BTreeMap<_, _> = found.into_iter().take(MAX_FILES).collect();
        let mut readings = Vec::new();
        for (path, stamp) in &found {
            if self.seen.get(path) != Some(stamp) {
                readings.extend(read(path));
            }
        }
        let gone: BTreeSet<&PathBuf> = self.seen.keys().filter(|p| !found.contains_key(*p)).collect();
        readings.extend(gone.into_iter().map(|p| Reading {
            path: p.display().to_string(),
            content: None,
        }));
        self.seen = found;
        Ok(readings)
    }
}

fn list(folder: &Path, depth: usize, found: &mut BTreeMap<PathBuf, Stamp>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // Editors' and Kubernetes' own files (`..data`) begin with a dot.
        if name.starts_with('.') || found.len() > MAX_FILES {
            continue;
        }
        // Follows links, as ConfigMap volumes are made of them.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if metadata.is_dir() && depth < MAX_FOLDERS_DEEP {
            list(&path, depth + 1, found)?;
        }
        let manifest = [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end));
        if metadata.is_file() && manifest {
            let stamp = Stamp {
                inode: metadata.ino(),
                size: metadata.size(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            };
            found.insert(path, stamp);
        }
    }
    Ok(())
}

/// Nothing when the file went away meanwhile: the next look says so.
fn read(path: &Path) -> Option<Reading> {
    use io::Read;
    let name = path.display().to_string();
    let limit = MAX_FILE_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    let parsed = match fs::File::open(path).and_then(|f| f.take(limit).read_to_end(&mut bytes)) {
        Ok(_) => weft_resources::parse(&name, &bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(e) => Err(vec![Problem {
            file: name.clone(),
            line: 1,
            path: String::new(),
            text: format!("cannot be read: {e}; make it readable for this user"),
        }]),
    };
    Some(Reading {
        path: name,
        content: Some(Content { bytes, parsed }),
    })
}

/// Looking is itself an event: one that may not lead to the next look.
fn matters(kind: EventKind) -> bool {
    !kind.is_access() || kind == EventKind::Access(AccessKind::Close(AccessMode::Write))
}

/// Sends what changes until the drain.
pub(crate) async fn watch(mut folder: Folder, readings: mpsc::Sender<Vec<Reading>>, drain: Watcher) {
    let (wake, mut woken) = mpsc::channel::<()>(1);
    let notifier = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|e| !matters(e.kind)) {
            return;
        }
        // One wake-up waiting is enough.
        let _ = wake.try_send(());
    });
    let root = folder.root.clone();
    let _notifier = match notifier.and_then(|mut n| n.watch(&root, RecursiveMode::Recursive).map(|()| n)) {
        Ok(notifier) => Some(notifier),
        Err(error) => {
            tracing::warn!(folder = %root.display(), %error, "no notifications; looking every {POLL:?} instead");
            None
        }
    };
    let work = async {
        let mut failing = false;
        loop {
            let mut notified = false;
            tokio::select! {
                woke = woken.recv() => notified = woke.is_some(),
                () = tokio::time::sleep(POLL) => {}
            }
            let since = SystemTime::now();
            while notified
                && since.elapsed().is_ok_and(|e| e < PATIENCE)
                && matches!(tokio::time::timeout(QUIET, woken.recv()).await, Ok(Some(())))
            {}
            let looked = tokio::task::spawn_blocking(move || {
                let changes = folder.changes();
                (folder, changes)
            });
            let Ok((back, changes)) = looked.await else { return };
            folder = back;
            match changes {
                Ok(changes) => {
                    failing = false;
                    if !changes.is_empty() && readings.send(changes).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(folder = %root.display(), %error, "cannot be listed; the last good state stays");
                    }
                }
            }
        }
    };
    drain.until_draining(work).await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn looking_does_not_lead_to_looking() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), "x: 1").unwrap();
        let (events, mut seen) = mpsc::unbounded_channel();
        let mut notifier = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let _ = events.send(event.unwrap().kind);
        })
        .unwrap();
        notifier.watch(dir.path(), RecursiveMode::Recursive).unwrap();
        let mut folder = Folder::open(dir.path()).unwrap();
        folder.changes().unwrap();
        // A write is the first thing among what was notified that matters.
        fs::write(dir.path().join("b.yaml"), "x: 1").unwrap();
        let first = loop {
            let kind = seen.recv().await.unwrap();
            if matters(kind) {
                break kind;
            }
        };
        assert!(first.is_create(), "{first:?}");
    }

    #[test]
    fn only_what_changed_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a.yaml"), "x: 1").unwrap();
        fs::write(at("b.txt"), "x: 1").unwrap();
        fs::write(at(".c.yaml"), "x: 1").unwrap();
        fs::create_dir(at("deep")).unwrap();
        fs::write(at("deep/d.json"), "{}").unwrap();
        let mut folder = Folder::open(dir.path()).unwrap();
        let names = |readings: Vec<Reading>| -> Vec<(String, bool)> {
            let start = format!("{}/", dir.path().display());
            readings
                .into_iter()
                .map(|r| (r.path.replace(&start, ""), r.content.is_some()))
                .collect()
        };
        assert_eq!(
            names(folder.changes().unwrap()),
            [("a.yaml".into(), true), ("deep/d.json".into(), true)]
        );
        assert_eq!(names(folder.changes().unwrap()), []);
        fs::write(at("a.new"), "x: 2").unwrap();
        fs::rename(at("a.new"), at("a.yaml")).unwrap();
        fs::remove_file(at("deep/d.json")).unwrap();
        assert_eq!(
            names(folder.changes().unwrap()),
            [("a.yaml".into(), true), ("deep/d.json".into(), false)]
        );
        assert!(Folder::open(&at("nowhere")).is_err());
    }
}
