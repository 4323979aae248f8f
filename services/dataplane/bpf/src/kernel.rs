//! The node's programs and maps: loading them, adopting what an earlier process left pinned, the
//! registry of workloads and the counters.
//!
//! Owns everything under the node's pin folder (`pins`). What the kernel holds outlives a [`Kernel`]; only
//! [`uninstall`](crate::uninstall) takes it away.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::{MapData, PerCpuArray};
use aya::programs::{CgroupSkb, CgroupSock, CgroupSockAddr, Program, SchedClassifier, SockOps};
use aya::{Ebpf, EbpfLoader};

use crate::error::Error;
use crate::fs as filesystems;
use crate::layout::{COUNTERS, LAYOUT, PASSING, RawProcess, RawWorkload};
use crate::links::{self, PROCESS_PROGRAMS, PROGRAMS};
use crate::pins::{carry_over, layout_of, links_dir, map_dirs, maps_dir, remove_older_maps, typed};
use crate::processes::Processes;
use crate::sys::{self, Map};
use crate::tcx::{self, Classifiers};

/// The object, compiled at build time or taken from `prebuilt/`.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft.bpf.o"));

/// The most workloads a node can have: the size of the map.
pub const MAX_WORKLOADS: u32 = 4096;

/// What to load, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// The node's subtree of cgroup v2, `<cgroup2>/weft/<node>`; it must exist. Programs attach here
    /// and see nothing that happens elsewhere.
    pub cgroup_root: PathBuf,
    /// The node's folder for pins, `<bpffs>/weft/<node>` ([`pin_dir`](crate::pin_dir)); made if missing.
    pub bpffs_dir: PathBuf,
    /// How many connections may be on their way from connect(2) to a listener at once. Adopted
    /// maps keep the size they were made with.
    pub max_pending: u32,
    /// How many of these one workload may hold.
    pub max_pending_per_workload: u32,
    /// How many service addresses and how many backends of all of them there may be; the same holds.
    pub max_services: u32,
    /// See above.
    pub max_backends: u32,
    /// Workloads of other nodes are reached by tunnel or not at all.
    pub strict: bool,
    /// Where agents take tunnels.
    pub tunnel_port: u16,
    /// Where the agent takes captured connections.
    pub capture_port: u16,
    /// Where the agent takes questions to resolvers.
    pub dns_port: u16,
    /// How many connections are remembered. Adopted maps keep the size they were made with.
    pub max_connections: u32,
    /// How many entries all policy sets may have together; the same holds.
    pub max_policy_entries: u32,
    /// How many bytes of events may wait for their reader: a power of two.
    pub event_bytes: u32,
}

impl Options {
    /// Options with the defaults: 16384 pending connections, 2048 of them per workload; 65536 services
    /// and as many backends; 131072 connections remembered; 1048576 entries of policy; 1 MiB of events; not
    /// strict.
    pub fn new(cgroup_root: impl Into<PathBuf>, bpffs_dir: impl Into<PathBuf>) -> Self {
        Self {
            cgroup_root: cgroup_root.into(),
            bpffs_dir: bpffs_dir.into(),
            max_pending: 16384,
            max_pending_per_workload: 2048,
            max_services: 65536,
            max_backends: 65536,
            strict: false,
            tunnel_port: 15008,
            capture_port: 15001,
            dns_port: 15053,
            max_connections: 131_072,
            max_policy_entries: 1 << 20,
            event_bytes: 1 << 20,
        }
    }
}

/// Programs as a compiler made them, and the number of their maps' layout.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Build<'a> {
    /// The object, aligned as allocated memory is.
    pub object: &'a [u8],
    /// Maps of another layout are made anew.
    pub layout: u32,
}

impl Build<'static> {
    /// What this crate was built with.
    pub fn own() -> Self {
        Self {
            object: OBJECT,
            layout: LAYOUT,
        }
    }
}

/// What the kernel knows of a cgroup that is a workload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Workload {
    /// The caller's own number for it; comes back in [`Origin`](crate::Origin).
    pub index: u32,
    /// Its security identity; 0 while not known.
    pub identity: u32,
}

/// One of the programs' counters, summed over CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// Its name, fit for a metric's label.
    pub name: &'static str,
    /// Since the maps were made.
    pub value: u64,
}

/// The loaded programs and their maps.
pub struct Kernel {
    adopted: bool,
    replaced_layout: Option<u32>,
    pub(crate) maps: PathBuf,
    pub(crate) classifiers: Classifiers,
    pub(crate) judged: Processes,
    workloads: Map<u64, RawWorkload>,
    pub(crate) shares: Map<u64, i32>,
    pub(crate) namespaces: Map<u64, u32>,
    pub(crate) processes: Map<RawProcess, u32>,
    counters: PerCpuArray<MapData, u64>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel")
            .field("adopted", &self.adopted)
            .field("maps", &self.maps)
            .finish_non_exhaustive()
    }
}

impl Kernel {
    /// Loads the programs and puts them to work at the node's cgroup. Maps that an earlier process
    /// left are adopted with what they hold, links are replaced in place: no connection falls
    /// between two versions.
    pub fn load(options: &Options) -> Result<Self, Error> {
        Self::load_build(options, Build::own())
    }

    /// The same with other programs, as another release has them.
    #[doc(hidden)]
    pub fn load_build(options: &Options, build: Build<'_>) -> Result<Self, Error> {
        let folder = &options.bpffs_dir;
        if !filesystems::is_bpffs(folder) {
            return Err(Error::NotBpffs { path: folder.clone() });
        }
        // Folders above may be on another file system, where dots are nothing special.
        let new = folder.ancestors().take_while(|part| !part.exists());
        if new
            .filter_map(Path::file_name)
            .any(|name| name.to_string_lossy().contains('.'))
        {
            return Err(Error::Dots { path: folder.clone() });
        }
        let cgroup_id = filesystems::cgroup_id(&options.cgroup_root)?;
        let cgroup = File::open(&options.cgroup_root).map_err(|source| Error::Cgroup {
            path: options.cgroup_root.clone(),
            source,
        })?;

        let maps = maps_dir(folder, build.layout);
        let replaced_layout =
            (!maps.exists()).then(|| map_dirs(folder).first().and_then(|dir| layout_of(dir)));
        let links = links_dir(folder);
        for dir in [&maps, &links] {
            fs::create_dir_all(dir).map_err(|source| Error::Pin {
                path: dir.clone(),
                action: "make",
                source,
            })?;
        }

        let level = filesystems::cgroup_level(&options.cgroup_root);
        let mut object = EbpfLoader::new()
            .default_map_pin_directory(&maps)
            .map_max_entries("conntrack", options.max_connections.max(1))
            .map_max_entries("events", options.event_bytes)
            .map_max_entries("passing", passing()?)
            .map_max_entries("policy", options.max_policy_entries.max(1))
            .override_global("tunnel_port", &options.tunnel_port, true)
            .override_global("capture_port", &options.capture_port, true)
            .override_global("dns_port", &options.dns_port, true)
            .override_global("root_cgroup", &cgroup_id, true)
            .override_global("root_level", &level, true)
            .map_max_entries("pending", options.max_pending.max(1))
            .map_max_entries("services", options.max_services.max(1))
            .map_max_entries("backends", options.max_backends.max(1))
            // While a set changes both the old backends and the new ones are members.
            .map_max_entries("members", options.max_backends.max(1).saturating_mul(2))
            .override_global("strict", &u8::from(options.strict), true)
            .override_global("share_max", &options.max_pending_per_workload.max(1), true)
            .load(build.object)
            .map_err(|error| load_error("the object", &error))?;

        let classifiers = Classifiers {
            programs: [
                load_program(&mut object, tcx::PROGRAMS[0].0)?,
                load_program(&mut object, tcx::PROGRAMS[1].0)?,
            ],
            links: links.clone(),
        };
        let mut loaded = Vec::with_capacity(PROGRAMS.len());
        for (name, _) in PROGRAMS {
            loaded.push(load_program(&mut object, name)?);
        }
        if let Some(old) = replaced_layout.flatten() {
            carry_over(&maps_dir(folder, old), &maps)?;
        }
        // All were accepted: from here on one after the other is replaced.
        let mut adopted = true;
        for (program, (name, kind)) in loaded.iter().zip(PROGRAMS) {
            adopted &= links::install(&links, (name, kind), program.as_fd(), &cgroup, cgroup_id)?;
        }
        classifiers.adopt()?;
        let processes = Processes {
            programs: [
                load_program(&mut object, PROCESS_PROGRAMS[0].0)?,
                load_program(&mut object, PROCESS_PROGRAMS[1].0)?,
            ],
            links,
            cgroup,
            cgroup_id,
        };
        processes.adopt()?;
        let mut kernel = Self::open(maps, adopted, classifiers, processes)?;
        kernel.replaced_layout = replaced_layout.flatten();
        // Zero is no epoch; and no program of before is at work any more.
        kernel.epoch()?.next();
        remove_older_maps(folder, build.layout)?;
        Ok(kernel)
    }

    fn open(
        maps: PathBuf,
        adopted: bool,
        classifiers: Classifiers,
        judged: Processes,
    ) -> Result<Self, Error> {
        let workloads = typed(&maps, "workloads")?;
        let shares = typed(&maps, "shares")?;
        let namespaces = typed(&maps, "namespaces")?;
        let processes = typed(&maps, "processes")?;
        let counters = MapData::from_pin(maps.join("counters"))
            .and_then(|data| PerCpuArray::try_from(aya::maps::Map::PerCpuArray(data)))
            .map_err(|error| Error::Layout {
                map: "counters".into(),
                detail: error.to_string(),
            })?;
        Ok(Self {
            adopted,
            replaced_layout: None,
            maps,
            classifiers,
            judged,
            workloads,
            shares,
            namespaces,
            processes,
            counters,
        })
    }

    /// Whether links of an earlier process were replaced rather than made.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// The layout of an earlier process's maps, if that is another one: of what they held only who is whose
    /// is known, and everything is closed until policy is written again.
    pub fn replaced_layout(&self) -> Option<u32> {
        self.replaced_layout
    }

    /// From now on, connections by processes in this cgroup, and in cgroups below it, carry this
    /// workload's record. Calling it again changes the workload's values.
    pub fn add_workload(&self, cgroup_id: u64, workload: Workload) -> Result<(), Error> {
        let failed = |map| {
            move |source: io::Error| match source.raw_os_error() {
                Some(libc::E2BIG) => Error::WorkloadsFull { max: MAX_WORKLOADS },
                _ => Error::Map {
                    map,
                    action: "add to",
                    source,
                },
            }
        };
        match self.shares.update(&cgroup_id, &0, sys::NOEXIST) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed("shares"))?,
        }
        let raw = RawWorkload {
            index: workload.index,
            identity: workload.identity,
        };
        self.workloads.update(&cgroup_id, &raw, 0).map_err(|error| {
            let _ = self.shares.delete(&cgroup_id);
            failed("workloads")(error)
        })
    }

    /// New connections from this cgroup have no record any more. Returns whether it was registered.
    pub fn remove_workload(&self, cgroup_id: u64) -> Result<bool, Error> {
        let failed = |map| {
            move |source| Error::Map {
                map,
                action: "remove from",
                source,
            }
        };
        let there = self.workloads.delete(&cgroup_id).map_err(failed("workloads"))?;
        self.shares.delete(&cgroup_id).map_err(failed("shares"))?;
        Ok(there)
    }

    /// The registered workloads by cgroup id, also those that an earlier process registered: whoever
    /// adopts them removes what is no longer there.
    pub fn workloads(&self) -> Result<Vec<(u64, Workload)>, Error> {
        let failed = |source| Error::Map {
            map: "workloads",
            action: "read",
            source,
        };
        let mut found = Vec::new();
        for id in self.workloads.keys().map_err(failed)? {
            if let Some(raw) = self.workloads.lookup(&id).map_err(failed)? {
                found.push((
                    id,
                    Workload {
                        index: raw.index,
                        identity: raw.identity,
                    },
                ));
            }
        }
        Ok(found)
    }

    /// A read-only descriptor of the table of origins, to be handed to the process that accepts
    /// connections; see [`Origins`](crate::Origins).
    pub fn origins_map_fd(&self) -> Result<OwnedFd, Error> {
        let path = self.maps.join("origins");
        sys::open_pin(&path, true).map_err(|source| Error::Pin {
            path,
            action: "open",
            source,
        })
    }

    /// What the programs counted, refusals and overflows among it.
    pub fn counters(&self) -> Result<Vec<Counter>, Error> {
        let mut all = Vec::with_capacity(COUNTERS.len());
        for (index, name) in (0u32..).zip(COUNTERS) {
            let values = self.counters.get(&index, 0).map_err(|error| Error::Map {
                map: "counters",
                action: "read",
                source: io::Error::other(error),
            })?;
            all.push(Counter {
                name,
                value: values.iter().sum(),
            });
        }
        Ok(all)
    }
}

/// Entries of the map `passing`: so many for each CPU that there can be.
fn passing() -> Result<u32, Error> {
    let cpus = aya::util::nr_cpus().map_err(|(_, source)| Error::Map {
        map: "passing",
        action: "size",
        source,
    })?;
    Ok(u32::try_from(cpus).unwrap_or(u32::MAX).saturating_mul(PASSING))
}

fn load_program(object: &mut Ebpf, name: &str) -> Result<OwnedFd, Error> {
    let missing = || Error::Load {
        what: name.into(),
        detail: "the object does not contain it".into(),
    };
    let program = object.program_mut(name).ok_or_else(missing)?;
    match program {
        Program::CgroupSockAddr(program) => CgroupSockAddr::load(program),
        Program::CgroupSock(program) => CgroupSock::load(program),
        Program::SockOps(program) => SockOps::load(program),
        Program::CgroupSkb(program) => CgroupSkb::load(program),
        Program::SchedClassifier(program) => SchedClassifier::load(program),
        _ => return Err(missing()),
    }
    .map_err(|error| load_error(name, &error))?;
    program
        .fd()
        .map_err(|error| load_error(name, &error))?
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| load_error(name, &error))
}

/// The whole chain of causes: the verifier's words are at its end.
fn load_error(what: &str, error: &dyn std::error::Error) -> Error {
    let mut detail = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !detail.contains(&text) {
            detail.push_str(": ");
            detail.push_str(&text);
        }
        cause = inner.source();
    }
    Error::Load {
        what: what.to_string(),
        detail,
    }
}
