//! What one network owns on this machine, and how it goes away: a folder `/run/weft-test/<key>`
//! with a lock, the namespaces' bind mounts and a bpf file system, and the cgroup
//! `<cgroup2>/weft-test/<key>`. Interfaces live in the namespaces and vanish with them.
//!
//! The lock says whether the owner lives: the kernel drops it with the process, however that ends.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cgroup;
use crate::error::{Error, at};

const FOLDER: &str = "/run/weft-test";
const CGROUPS: &str = "weft-test";

/// Distinguishes the networks of one process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The folder and the cgroup of one network; removed with it.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) key: String,
    pub(crate) dir: PathBuf,
    pub(crate) cgroup: PathBuf,
    bpffs: std::sync::Mutex<bool>,
    _lock: Flock<File>,
}

impl Home {
    pub(crate) fn new() -> Result<Self, Error> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let cgroups = cgroup::root()?.join(CGROUPS);
        // While this is held nobody sweeps, so a folder whose lock isn't taken yet is safe.
        let _guard = global_lock()?;
        sweep_locked(&cgroups)?;

        let key = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(FOLDER).join(&key);
        let cgroup = cgroups.join(&key);
        fs::create_dir(&dir).map_err(at("make", &dir))?;
        let lock = try_lock(&dir.join("lock"))?.ok_or_else(|| {
            at("lock", &dir)(io::Error::new(io::ErrorKind::WouldBlock, "held by someone else"))
        })?;
        fs::create_dir(dir.join("ns")).map_err(at("make", &dir))?;
        fs::create_dir_all(&cgroup).map_err(at("make", &cgroup))?;
        Ok(Self {
            key,
            dir,
            cgroup,
            bpffs: std::sync::Mutex::new(false),
            _lock: lock,
        })
    }

    /// The network's own bpf file system, mounted at the first call.
    pub(crate) fn bpffs(&self) -> Result<PathBuf, Error> {
        let path = self.dir.join("bpffs");
        let mut mounted = self
            .bpffs
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if !*mounted {
            fs::create_dir_all(&path).map_err(at("make", &path))?;
            mount(
                Some("bpf"),
                &path,
                Some("bpf"),
                MsFlags::empty(),
                Some("mode=0700"),
            )
            .map_err(|errno| at("mount a bpf file system at", &path)(errno.into()))?;
            *mounted = true;
        }
        Ok(path)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let parent = self.cgroup.parent().unwrap_or(Path::new("/"));
        // What takes time comes first: others need not wait for it.
        let removed = empty(&self.dir, &self.cgroup).and_then(|()| {
            let _guard = global_lock()?;
            remove_folder(&self.dir)?;
            remove_parent(parent);
            Ok(())
        });
        if let Err(error) = removed {
            // A panic here would hide the test's own; the next sweep tries again.
            eprintln!("weft-testnet: {} is not wholly removed: {error}", self.key);
        }
    }
}

/// Removes what networks left whose process is gone: processes, namespaces, interfaces, cgroups,
/// pins and mounts. Returns the keys of those it removed. [`Testnet::new`](crate::Testnet::new)
/// does this first.
pub fn sweep() -> Result<Vec<String>, Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let cgroups = cgroup::root()?.join(CGROUPS);
    let _guard = global_lock()?;
    sweep_locked(&cgroups)
}

fn sweep_locked(cgroups: &Path) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    for key in names(Path::new(FOLDER)) {
        let dir = Path::new(FOLDER).join(&key);
        if !dir.is_dir() {
            continue;
        }
        // Held until the folder is gone.
        let Some(_lock) = try_lock(&dir.join("lock"))? else {
            continue;
        };
        empty(&dir, &cgroups.join(&key))?;
        remove_folder(&dir)?;
        removed.push(key);
    }
    for key in names(cgroups) {
        let orphan = cgroups.join(&key);
        if orphan.is_dir() && !Path::new(FOLDER).join(&key).exists() {
            cgroup::remove(&orphan)?;
            removed.push(key);
        }
    }
    remove_parent(cgroups);
    Ok(removed)
}

/// It stays while other networks use it. Under the global lock: nobody is just about to.
fn remove_parent(cgroups: &Path) {
    let _ = fs::remove_dir(cgroups);
}

/// Takes away all that a network has on the machine but its folder.
fn empty(dir: &Path, cgroup: &Path) -> Result<(), Error> {
    cgroup::remove(cgroup)?;
    for target in mounts_below(dir)? {
        umount2(&target, MntFlags::MNT_DETACH).map_err(|errno| at("unmount", &target)(errno.into()))?;
    }
    Ok(())
}

/// The folder goes last: as long as it is there, a sweep comes back to the rest. Under the global
/// lock: nobody is just about to look whether its owner lives.
fn remove_folder(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// What is mounted below `dir`, the last mounted first.
fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let path = Path::new("/proc/thread-self/mounts");
    let table = fs::read_to_string(path).map_err(at("read", path))?;
    let targets = table
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(1))
        .map(PathBuf::from);
    let mut found: Vec<PathBuf> = targets.filter(|target| target.starts_with(dir)).collect();
    found.reverse();
    Ok(found)
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn global_lock() -> Result<Flock<File>, Error> {
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder).map_err(at("make", folder))?;
    // Unprivileged apps of a test may look for a socket in here, not write.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(at("open", folder))?;
    let path = folder.join("lock");
    let file = open_lock(&path)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| at("lock", &path)(errno.into()))
}

fn try_lock(path: &Path) -> Result<Option<Flock<File>>, Error> {
    match Flock::lock(open_lock(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(at("lock", path)(errno.into())),
    }
}

/// Close-on-exec, as everything std opens: a child that outlives its parent doesn't hold the lock.
fn open_lock(path: &Path) -> Result<File, Error> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(at("open", path))
}
