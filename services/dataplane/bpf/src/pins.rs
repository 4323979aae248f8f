//! The node's pin folder: `links/<program>` and `maps-v<layout>/<map>`. What an upgrade takes over from maps
//! of another layout, and what goes away.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::layout::RawWorkload;
use crate::layout::packet::RawSource;
use crate::links::{self, PROCESS_PROGRAMS, PROGRAMS};
use crate::sys::{self, Map};
use crate::tcx;

/// Detaches the node's programs and removes everything under its pin folder. Needs no loaded
/// [`Kernel`]: it also clears up after a process that is gone. Removing what isn't there is no error.
pub fn uninstall(bpffs_dir: &Path) -> Result<(), Error> {
    let links = links_dir(bpffs_dir);
    tcx::remove_all(&links)?;
    for (name, _) in PROGRAMS.into_iter().chain(PROCESS_PROGRAMS) {
        links::remove(&links, name)?;
    }
    remove_dir(&links)?;
    for dir in map_dirs(bpffs_dir) {
        remove_dir(&dir)?;
    }
    remove_dir(bpffs_dir)
}

pub(crate) fn maps_dir(folder: &Path, layout: u32) -> PathBuf {
    folder.join(format!("maps-v{layout}"))
}

pub(crate) fn layout_of(dir: &Path) -> Option<u32> {
    dir.file_name()?.to_str()?.strip_prefix("maps-v")?.parse().ok()
}

pub(crate) fn links_dir(folder: &Path) -> PathBuf {
    folder.join("links")
}

pub(crate) fn map_dirs(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("maps-v"))
        })
        .collect()
}

/// Once the links run this layout's programs, the maps of other layouts serve nobody.
pub(crate) fn remove_older_maps(folder: &Path, layout: u32) -> Result<(), Error> {
    let current = maps_dir(folder, layout);
    map_dirs(folder)
        .iter()
        .filter(|dir| **dir != current)
        .try_for_each(|dir| remove_dir(dir))
}

/// bpffs removes folders only when they are empty. One that isn't there is fine.
pub(crate) fn remove_dir(dir: &Path) -> Result<(), Error> {
    let failed = |source| Error::Pin {
        path: dir.to_path_buf(),
        action: "remove",
        source,
    };
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

pub(crate) fn typed<K: sys::Plain, V: sys::Plain>(
    folder: &Path,
    name: &'static str,
) -> Result<Map<K, V>, Error> {
    let path = folder.join(name);
    let fd = sys::open_pin(&path, false).map_err(|source| Error::Pin {
        path,
        action: "open",
        source,
    })?;
    Map::new(fd).map_err(|source| Error::Layout {
        map: name.into(),
        detail: source.to_string(),
    })
}

/// Copies from maps of another layout who is whose: what was judged stays judged, though nobody knows yet
/// by which policy. Otherwise processes would be the node's own meanwhile, and interfaces nobody's. A map
/// whose own layout is another one now begins empty.
pub(crate) fn carry_over(from: &Path, to: &Path) -> Result<(), Error> {
    carry::<u64, RawWorkload>(from, to, "workloads", |value| value)?;
    // Nothing is on its way in the new maps.
    carry::<u64, i32>(from, to, "shares", |_| 0)?;
    carry::<u64, u32>(from, to, "namespaces", |value| value)?;
    carry::<u32, u32>(from, to, "interfaces", |value| value)?;
    carry::<RawSource, u32>(from, to, "endpoint_addresses", |value| value)
}

fn carry<K: sys::Plain, V: sys::Plain>(
    from: &Path,
    to: &Path,
    name: &'static str,
    as_new: impl Fn(V) -> V,
) -> Result<(), Error> {
    let Ok(old) = typed::<K, V>(from, name) else {
        return Ok(());
    };
    let new = typed::<K, V>(to, name)?;
    let failed = |source| Error::Map {
        map: name,
        action: "copy",
        source,
    };
    for key in old.keys().map_err(failed)? {
        if let Some(value) = old.lookup(&key).map_err(failed)? {
            new.update(&key, &as_new(value), 0).map_err(failed)?;
        }
    }
    Ok(())
}
