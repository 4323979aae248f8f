//! The BPF part as the node uses it, and the list of what is enforced here.
//!
//! Without the kernel's means the node goes on: pods are attributed by their own listeners and
//! need no program. What is missing is told, never assumed.

use crate::{
    NodeError,
    config::{Config, Encryption},
    meters::Meters,
    pod::Wired,
    sockets::Sockets,
    wiring::{Adopted, Wiring},
};
use std::{
    collections::HashSet,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};
use weft_bpf::{Build, Kernel, Options, Workload};
use weft_proto::weft::dataplane::v1::Capability;

/// Loaded programs, if they could be loaded.
#[derive(Debug)]
pub(crate) struct Programs {
    loaded: Option<Loaded>,
    capabilities: Vec<Capability>,
    /// Also kept when loading failed half-way: something may be there.
    pins: PathBuf,
    run_dir: PathBuf,
}

#[derive(Debug)]
struct Loaded {
    kernel: Kernel,
    wiring: Wiring,
    sockets: Arc<Sockets>,
    shared: Vec<(&'static str, Arc<OwnedFd>)>,
    adopted: Adopted,
}

impl Programs {
    /// Loads or adopts. `cgroup_root` is `Err` with the reason when there are no cgroups.
    /// Runs in the node's namespace.
    pub(crate) fn start(config: &Config, cgroup_root: Result<&Path, &str>) -> Self {
        let Config {
            node_name: node,
            bpffs,
            run_dir,
            encryption,
            programs,
            ..
        } = config;
        let (encryption, build) = (*encryption, programs.unwrap_or_else(Build::own));
        let pins = weft_bpf::pin_dir(bpffs, node);
        let loaded = cgroup_root.map_err(ToOwned::to_owned).and_then(|root| {
            let load = || {
                if weft_bpf::ensure_bpffs(bpffs)?
                    && let Err(error) = weft_bpf::note_mount(bpffs, run_dir)
                {
                    tracing::warn!(%error, path = %bpffs.display(), "the bpf file system will stay mounted");
                }
                load(root, &pins, encryption, build)
            };
            load().map_err(|error: weft_bpf::Error| error.to_string())
        });
        let others = cgroup_root.map_or_else(str::to_owned, beside);
        let mut capabilities = vec![capability(
            "pod-listeners",
            Ok("callers in pods are known by the listener inside their namespace".into()),
        )];
        capabilities.push(capability(
            "process-attribution",
            loaded
                .as_ref()
                .map(|_| "connect, sendmsg, recvmsg, getpeername and sockops at the node's cgroup".into())
                .map_err(|reason| {
                    format!("connections of processes have no caller and are refused: {reason}")
                }),
        ));
        capabilities.push(capability(
            "kernel-policy",
            loaded
                .as_ref()
                .map(judged)
                .map_err(|reason| format!("connections that bypass the agent are not judged: {reason}")),
        ));
        capabilities.push(capability(
            "encryption",
            loaded
                .as_ref()
                .map(|_| match encryption {
                    Encryption::Tunnel => "TCP between nodes goes by mTLS tunnels, UDP and ICMP as they are \
                        (--encryption strict drops them)"
                        .into(),
                    Encryption::Strict => {
                        "TCP between nodes goes by mTLS tunnels, anything else between them is dropped".into()
                    }
                })
                .map_err(|reason| format!("only calls by the agents' APIs are encrypted: {reason}")),
        ));
        capabilities.push(capability("other-programs", Ok(others)));
        capabilities.extend(weft_bpf::probe(bpffs).into_iter().map(|found| Capability {
            name: found.name.to_owned(),
            active: found.active,
            reason: found.reason,
        }));
        for missing in capabilities.iter().filter(|c| !c.active) {
            tracing::warn!(capability = %missing.name, reason = %missing.reason, "not enforced on this node");
        }
        Self {
            loaded: loaded.ok(),
            capabilities,
            pins,
            run_dir: run_dir.to_owned(),
        }
    }

    /// Whether there are programs in the kernel.
    pub(crate) fn are_loaded(&self) -> bool {
        self.loaded.is_some()
    }

    /// For the hello and for `weft status`.
    pub(crate) fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }

    /// Maps to hand over.
    pub(crate) fn maps(&self) -> Vec<(String, Arc<OwnedFd>)> {
        self.loaded
            .iter()
            .flat_map(|loaded| &loaded.shared)
            .map(|(name, map)| ((*name).to_owned(), Arc::clone(map)))
            .collect()
    }

    /// What the programs know of sockets, if there are any.
    pub(crate) fn sockets(&self) -> Option<Arc<Sockets>> {
        self.loaded.as_ref().map(|loaded| Arc::clone(&loaded.sockets))
    }

    /// Registers a process workload, or a pod's cgroup; who had this number before keeps its identity.
    pub(crate) fn register(&self, cgroup: u64, endpoint: u32) -> Result<(), NodeError> {
        let adopted = self
            .loaded
            .as_ref()
            .and_then(|l| l.adopted.by_cgroup.get(&cgroup));
        let identity = adopted.filter(|a| a.index == endpoint).map_or(0, |a| a.identity);
        self.set(cgroup, endpoint, identity)
    }

    /// Changes its identity.
    pub(crate) fn set(&self, cgroup: u64, index: u32, identity: u32) -> Result<(), NodeError> {
        match &self.loaded {
            Some(loaded) => Ok(loaded.kernel.add_workload(cgroup, Workload { index, identity })?),
            None => Ok(()),
        }
    }

    /// The number that an earlier node gave to the process or pod of a cgroup.
    pub(crate) fn endpoint_of_cgroup(&self, cgroup: u64) -> Option<u32> {
        let adopted = self.loaded.as_ref()?.adopted.by_cgroup.get(&cgroup)?;
        Some(adopted.index)
    }

    /// The number that an earlier node gave to the pod of a namespace.
    pub(crate) fn endpoint_of_namespace(&self, cookie: u64) -> Option<u32> {
        self.loaded.as_ref()?.adopted.by_namespace.get(&cookie).copied()
    }

    /// The highest number that was ever given, as far as the maps tell.
    pub(crate) fn last_endpoint(&self) -> u32 {
        self.loaded.as_ref().map_or(0, |loaded| loaded.adopted.last)
    }

    /// Makes the maps hold `after` of a pod where they held `before`.
    pub(crate) fn rewire(
        &self,
        endpoint: u32,
        before: Option<&Wired>,
        after: Option<&Wired>,
    ) -> Result<(), NodeError> {
        match &self.loaded {
            Some(loaded) => Ok(loaded.wiring.rewire(&loaded.kernel, endpoint, before, after)?),
            None => Ok(()),
        }
    }

    /// Takes it away.
    pub(crate) fn remove(&self, cgroup: u64) {
        if let Some(loaded) = &self.loaded
            && let Err(error) = loaded.kernel.remove_workload(cgroup)
        {
            tracing::warn!(%error, cgroup, "a workload stays registered in the kernel");
        }
    }

    /// After an adoption: forgets workloads whose cgroup is gone and pods without an interface. Must
    /// run in the node's namespace.
    pub(crate) fn keep_only(&self, cgroups: &HashSet<u64>) {
        let Some(loaded) = &self.loaded else { return };
        match loaded.kernel.workloads() {
            Ok(known) => known
                .iter()
                .filter(|(id, _)| !cgroups.contains(id))
                .for_each(|(id, _)| self.remove(*id)),
            Err(error) => tracing::warn!(%error, "adopted workloads cannot be read"),
        }
        if let Err(error) = loaded.wiring.forget_gone_pods(&loaded.kernel) {
            tracing::warn!(%error, "something of pods that are gone stays in the kernel's maps");
        }
    }

    /// Shows what the programs counted.
    pub(crate) fn count(&self, meters: &Meters) {
        match self.loaded.as_ref().map(|loaded| loaded.kernel.counters()) {
            Some(Ok(counters)) => counters.iter().for_each(|c| meters.kernel(c.name, c.value)),
            Some(Err(error)) => tracing::debug!(%error, "the kernel's counters cannot be read"),
            None => {}
        }
    }

    /// Detaches the programs and removes their pins.
    pub(crate) fn uninstall(&self) {
        if let Err(error) = weft_bpf::uninstall(&self.pins) {
            tracing::warn!(%error, "pins stay");
        }
        // `<bpffs>/weft` is shared by nodes; only the last one can remove it.
        if let Some(parent) = self.pins.parent() {
            let _ = std::fs::remove_dir(parent);
        }
        if let Some(path) = weft_bpf::mounted_by_weft(&self.run_dir)
            && let Err(error) = weft_bpf::unmount_if_unused(&path, &self.run_dir)
        {
            tracing::warn!(%error, path = %path.display(), "the bpf file system stays mounted");
        }
    }
}

fn judged(loaded: &Loaded) -> String {
    let judged = "every packet is judged: of pods at their interfaces, of processes at the node's cgroup";
    match loaded.kernel.replaced_layout() {
        None => judged.into(),
        Some(layout) => format!(
            "{judged}; no policy was kept of an earlier release's tables (layout {layout}), so all was closed \
             until it was written again"
        ),
    }
}

fn load(
    cgroup_root: &Path,
    pins: &Path,
    encryption: Encryption,
    build: Build<'_>,
) -> Result<Loaded, weft_bpf::Error> {
    let mut options = Options::new(cgroup_root, pins);
    options.strict = encryption == Encryption::Strict;
    let kernel = Kernel::load_build(&options, build)?;
    kernel.attach_processes()?;
    let sockets = Arc::new(Sockets::open(&kernel)?);
    let shared = kernel.shared_maps()?.into_iter();
    let shared = shared.map(|(name, map)| (name, Arc::new(map))).collect();
    // Two releases with the same digest run the same programs.
    let digest = kernel.running().map(|programs| {
        let tags = programs.iter().map(|program| program.tag);
        tags.fold(0u64, |all, tag| all.rotate_left(7) ^ tag)
    });
    let digest = digest.map_or_else(|error| error.to_string(), |digest| format!("{digest:016x}"));
    tracing::info!(adopted = kernel.adopted(), digest, pins = %pins.display(), "programs attached");
    if let Some(layout) = kernel.replaced_layout() {
        tracing::warn!(
            layout,
            "an earlier release's maps have another layout and no policy of them is kept: workloads are closed \
             until the agent has written it again"
        );
    }
    let adopted = Adopted::read(&kernel)?;
    Ok(Loaded {
        wiring: Wiring::open(&kernel)?,
        kernel,
        sockets,
        shared,
        adopted,
    })
}

/// Whose programs decide beside Weft's: at the interfaces of the calling thread's namespace, the node's,
/// and at its cgroup and those above.
fn beside(cgroup_root: &Path) -> String {
    let interfaces = nix::net::if_::if_nameindex().map(|all| {
        let named = all.into_iter();
        named
            .map(|i| (i.index(), i.name().to_string_lossy().into_owned()))
            .collect::<Vec<_>>()
    });
    let found = interfaces.map_err(std::io::Error::from).and_then(|interfaces| {
        let mounted = weft_bpf::find_cgroup2().map_err(std::io::Error::other)?;
        weft_bpf::others(&interfaces, cgroup_root, &mounted)
    });
    match found {
        Ok(found) if found.is_empty() => "none at the hooks that Weft uses".into(),
        Ok(found) => {
            let told: Vec<String> = found
                .iter()
                .map(|at| format!("{}: {}", at.place, at.programs.join(", ")))
                .collect();
            let told = told.join("; ");
            tracing::warn!(programs = %told, "programs of others decide at the same hooks");
            format!("others decide as well, and are left alone: {told}")
        }
        Err(error) => format!("whose programs are beside Weft's cannot be told: {error}"),
    }
}

fn capability(name: &str, found: Result<String, String>) -> Capability {
    Capability {
        name: name.to_owned(),
        active: found.is_ok(),
        reason: found.unwrap_or_else(|reason| reason),
    }
}
