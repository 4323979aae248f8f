//! Notices that a workload is gone: its namespace was deleted, its process exited, or its cgroup
//! became empty after there had been processes in it; and that a pod's interfaces changed.
//!
//! Each workload has one task that ends with the handle; folders of namespaces are watched by one
//! inotify instance, since the kernel allows few of them.

use crate::{
    NodeError, cgroup,
    namespace::{Namespace, Place},
    netlink,
};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::{
    fs,
    io::{self, Read as _, Seek as _},
    os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, watch},
    task::AbortHandle,
};

/// How long changes of a namespace are gathered.
const BURST: Duration = Duration::from_millis(10);

/// What happened to a workload.
#[derive(Debug)]
pub(crate) enum Report {
    /// It is gone, and why.
    Gone { id: String, reason: String },
    /// Interfaces or addresses of its namespace may be others now.
    Changed { id: String },
}

/// Ends the watch when dropped.
#[derive(Debug)]
pub(crate) struct Watching(AbortHandle);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn process(action: &'static str) -> impl FnOnce(io::Error) -> NodeError {
    move |source| NodeError::Process { action, source }
}

/// Starts watches and tells what is gone over its channel.
#[derive(Debug)]
pub(crate) struct Watches {
    reports: mpsc::Sender<Report>,
    folders: Folders,
}

impl Watches {
    /// Must be called in a runtime.
    pub(crate) fn start(reports: mpsc::Sender<Report>) -> Result<Self, NodeError> {
        Ok(Self {
            reports,
            folders: Folders::start().map_err(process("watch folders (inotify)"))?,
        })
    }

    /// Watches a pod's namespace, and what `changes` (a netlink subscription) tells of it.
    pub(crate) fn namespace(
        &self,
        id: &str,
        namespace: Arc<Namespace>,
        changes: OwnedFd,
    ) -> Result<Vec<Watching>, NodeError> {
        let report = End {
            reports: self.reports.clone(),
            id: id.to_owned(),
        };
        let changes = register(changes, Interest::READABLE).map_err(process("watch interfaces"))?;
        let (reports, name) = (self.reports.clone(), id.to_owned());
        let following = Watching(tokio::spawn(follow(changes, reports, name)).abort_handle());
        let task = match &namespace.place {
            // It stays.
            Place::Own => return Ok(vec![following]),
            Place::Process { pid, pidfd } => {
                let reason = format!("process {pid}, whose network namespace it was, exited");
                let pidfd = pidfd.try_clone().map_err(process("watch a process"))?;
                let pidfd = register(pidfd, Interest::READABLE).map_err(process("watch a process"))?;
                tokio::spawn(async move {
                    let ended = pidfd.readable().await.is_ok();
                    if ended {
                        report.send(reason).await;
                    }
                })
            }
            Place::Path(path) => {
                let reason = format!("network namespace {} was deleted", path.display());
                let folder = path.parent().unwrap_or(Path::new("/"));
                let mut changes = self
                    .folders
                    .watch(folder)
                    .map_err(process("watch the namespace's folder"))?;
                tokio::spawn(async move {
                    loop {
                        // Checked after each change, and first of all: it may have gone already.
                        if !namespace.is_there() {
                            break report.send(reason).await;
                        }
                        if changes.changed().await.is_err() {
                            break;
                        }
                    }
                })
            }
        };
        Ok(vec![following, Watching(task.abort_handle())])
    }

    /// Watches a process workload's cgroup. One that nothing has entered yet is left alone.
    pub(crate) fn cgroup(&self, id: &str, path: &Path) -> Result<Watching, NodeError> {
        let report = End {
            reports: self.reports.clone(),
            id: id.to_owned(),
        };
        let events = fs::File::open(path.join("cgroup.events")).map_err(|source| NodeError::Cgroup {
            action: "watch",
            path: path.to_owned(),
            source,
        })?;
        let mut events = register(events, Interest::PRIORITY).map_err(process("watch a cgroup"))?;
        let task = tokio::spawn(async move {
            let mut had_processes = false;
            loop {
                match read_again(events.get_mut()) {
                    Ok(text) => match cgroup::populated_in(&text) {
                        true => had_processes = true,
                        false if had_processes => {
                            break report.send("its last process exited".to_owned()).await;
                        }
                        false => {}
                    },
                    // Removed behind our back: then there is nobody in it either.
                    Err(error) => {
                        break report
                            .send(format!("its cgroup cannot be read any more: {error}"))
                            .await;
                    }
                }
                // The kernel marks a change as urgent data (and an error) until it is read.
                match events.ready(Interest::PRIORITY).await {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(_) => break,
                }
            }
        });
        Ok(Watching(task.abort_handle()))
    }
}

struct End {
    reports: mpsc::Sender<Report>,
    id: String,
}

impl End {
    async fn send(self, reason: String) {
        // Fails only when the node shuts down.
        let _ = self.reports.send(Report::Gone { id: self.id, reason }).await;
    }
}

/// Reports changes until the workload goes. What comes in a burst is reported once: whoever makes an
/// interface gives it addresses and sets it up within the pause.
async fn follow(changes: AsyncFd<OwnedFd>, reports: mpsc::Sender<Report>, id: String) {
    let read = |socket: &OwnedFd| netlink::changed(socket);
    while changes.async_io(Interest::READABLE, read).await.is_ok() {
        tokio::time::sleep(BURST).await;
        while netlink::changed(changes.get_ref()).is_ok() {}
        if reports.send(Report::Changed { id: id.clone() }).await.is_err() {
            return;
        }
    }
}

fn read_again(file: &mut fs::File) -> io::Result<String> {
    let mut text = String::new();
    file.rewind()?;
    file.take(4096).read_to_string(&mut text)?;
    Ok(text)
}

fn register<T: AsRawFd>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: callers pass owned descriptors, which the `AsyncFd` keeps open and never replaces.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// One inotify instance for all folders; a folder's watchers get a tick per batch of changes.
#[derive(Debug)]
struct Folders {
    inotify: Arc<AsyncFd<Instance>>,
    changes: watch::Sender<u64>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Instance(Inotify);

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Folders {
    fn start() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let inotify = Arc::new(register(Instance(inotify), Interest::READABLE)?);
        let (changes, _) = watch::channel(0u64);
        let (ticks, reader) = (changes.clone(), Arc::clone(&inotify));
        let task = tokio::spawn(async move {
            let read = |instance: &Instance| Ok(instance.0.read_events()?);
            // What changed does not matter: whoever watches looks at its own path again.
            while reader.async_io(Interest::READABLE, read).await.is_ok() {
                ticks.send_modify(|n| *n = n.wrapping_add(1));
            }
        });
        Ok(Self {
            inotify,
            changes,
            task: task.abort_handle(),
        })
    }

    /// Ticks from now on whenever something in `folder` (or in another watched one) goes away.
    fn watch(&self, folder: &Path) -> io::Result<watch::Receiver<u64>> {
        let events = AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        // Adding a folder again changes nothing, and watches the new one if it was made anew.
        self.inotify.get_ref().0.add_watch(folder, events)?;
        Ok(self.changes.subscribe())
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_noticed() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let namespace = Arc::new(Namespace::by_pid(child.id()).unwrap());
        let (gone, mut told) = mpsc::channel(1);
        let watches = Watches::start(gone).unwrap();
        let _watching = watches
            .namespace("a", namespace, netlink::subscribe().unwrap())
            .unwrap();
        assert!(
            tokio::time::timeout(Duration::from_millis(50), told.recv())
                .await
                .is_err()
        );
        child.kill().unwrap();
        let gone = tokio::time::timeout(Duration::from_secs(5), told.recv())
            .await
            .unwrap()
            .unwrap();
        assert!(
            matches!(&gone, Report::Gone { id, reason } if id == "a" && reason.contains("exited")),
            "{gone:?}"
        );
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn changes_in_a_folder_tick() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        fs::write(&file, "").unwrap();
        let folders = Folders::start().unwrap();
        let mut changes = folders.watch(folder.path()).unwrap();
        fs::write(folder.path().join("y"), "").unwrap();
        assert!(
            tokio::time::timeout(Duration::from_millis(50), changes.changed())
                .await
                .is_err()
        );
        fs::remove_file(&file).unwrap();
        tokio::time::timeout(Duration::from_secs(5), changes.changed())
            .await
            .unwrap()
            .unwrap();
    }
}
