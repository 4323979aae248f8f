//! Pods: what they get, and what becomes of it when their interfaces or addresses change.

use crate::{
    NodeError,
    cgroup::Of,
    core::{Core, Workload},
    listen,
    namespace::Namespace,
    netlink,
    sight::{self, Sight},
};
use std::{
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};
use weft_handoff::{Placed, SharedListener};
use weft_proto::weft::dataplane::v1::WorkloadSpec;

/// How often, and after which pause, a port that is in use is tried again.
const PORT_TRIES: u32 = 5;
const PORT_PAUSE: Duration = Duration::from_millis(40);
/// How often, and after which pause, a pod whose interfaces change under the eye is looked at again.
const LOOKS: u32 = 5;
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// What the kernel's maps hold of a pod beside its endpoint number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wired {
    pub(crate) cookie: u64,
    pub(crate) interfaces: Vec<u32>,
    /// What it may send from.
    pub(crate) sources: Vec<IpAddr>,
}

/// What is made in a pod's namespace.
struct Opened {
    listeners: Vec<SharedListener>,
    sight: Sight,
    changes: OwnedFd,
}

fn refuse(namespace: &Namespace, detail: String) -> NodeError {
    NodeError::Namespace {
        place: namespace.place.to_string(),
        detail,
    }
}

fn unseen(source: std::io::Error) -> NodeError {
    NodeError::Process {
        action: "read a namespace's interfaces",
        source,
    }
}

impl Core {
    pub(crate) async fn place_pod(
        &mut self,
        id: &str,
        spec: WorkloadSpec,
        namespace: Namespace,
    ) -> Result<Workload, NodeError> {
        self.check_namespace(&namespace)?;
        let stated = stated(&spec)?;
        let Opened {
            listeners,
            sight,
            changes,
        } = self.open(&namespace, !spec.app_id.is_empty()).await?;
        if let Some(around) = sight.around {
            let detail = format!(
                "{around}: its traffic could not be judged; give the pod a veth to this node, or name the node it is on"
            );
            return Err(refuse(&namespace, detail));
        }
        let namespace = Arc::new(namespace);
        let endpoint = self.endpoint(self.parts.programs.endpoint_of_namespace(sight.cookie));
        let wired = self.wired(id, &stated, &sight);
        let addresses = if stated.is_empty() {
            sight.addresses
        } else {
            stated
        };
        let (cgroup, cgroup_id) = self.pod_cgroup(&spec, endpoint)?;
        let mut workload = Workload {
            placed: Placed {
                id: id.to_owned(),
                spec,
                listeners,
                cgroup,
                cgroup_id,
                endpoint,
                addresses,
                derived: None,
            },
            namespace: Arc::clone(&namespace),
            wired: None,
            restored: false,
            watching: Vec::new(),
        };
        let made = match self.rewire(endpoint, None, &wired).await {
            Ok(()) => {
                workload.wired = Some(wired);
                self.watches.namespace(id, namespace, changes)
            }
            Err(error) => Err(error),
        };
        match made {
            Ok(watching) => {
                workload.watching = watching;
                Ok(workload)
            }
            Err(error) => {
                self.unwire(&mut workload);
                Err(error)
            }
        }
    }

    /// A namespace that is not this node's, as far as can be told, is not entered: its agent could
    /// name any.
    fn check_namespace(&self, namespace: &Namespace) -> Result<(), NodeError> {
        if namespace.same(&self.parts.namespace) {
            let words = "it is the node's own; add the workload as a process of the node";
            return Err(refuse(namespace, words.into()));
        }
        if self.parts.foreign.iter().any(|other| namespace.same(other)) {
            let words = "it is the machine's own, not one of this node's pods'";
            return Err(refuse(namespace, words.into()));
        }
        match self.workloads.values().find(|w| w.namespace.same(namespace)) {
            Some(other) => Err(refuse(
                namespace,
                format!(
                    "it belongs to workload {}; remove that one first",
                    other.placed.id
                ),
            )),
            None => Ok(()),
        }
    }

    async fn open(&self, namespace: &Namespace, runtime: bool) -> Result<Opened, NodeError> {
        let words = format!("network namespace {}", namespace.place);
        let mut tries = 0;
        loop {
            let words = words.clone();
            let node = self.parts.namespace.try_clone_fd()?;
            let opened = self.parts.entrance.run(namespace, move || {
                // Before the look, so that no change falls between.
                let changes = netlink::subscribe().map_err(unseen)?;
                let sight = sight::look(node.as_fd()).map_err(unseen)?;
                let listeners = match &sight.around {
                    None => listen::open_all(runtime, &words)?,
                    Some(_) => Vec::new(),
                };
                Ok(Opened {
                    listeners,
                    sight,
                    changes,
                })
            });
            match opened.await {
                // Whoever had this pod before may be just about to close its listeners: an agent
                // that hears of a removal, a process between fork and exec.
                Err(NodeError::PortInUse { .. }) if tries < PORT_TRIES => {
                    tries += 1;
                    tokio::time::sleep(PORT_PAUSE).await;
                }
                opened => return opened,
            }
        }
    }

    /// A cgroup below the node's programs, where these do not see everybody anyway.
    fn pod_cgroup(
        &mut self,
        spec: &WorkloadSpec,
        endpoint: u32,
    ) -> Result<(Option<std::path::PathBuf>, u64), NodeError> {
        let Ok(cgroups) = &mut self.parts.cgroups else {
            return Ok((None, 0));
        };
        if cgroups.is_whole() {
            return Ok((None, 0));
        }
        let (path, id) = cgroups.make(Of::Pod, &spec.namespace, &spec.name)?;
        if let Err(error) = self.parts.programs.register(id, endpoint) {
            cgroups.release(&path);
            return Err(error);
        }
        Ok((Some(path), id))
    }

    /// What the kernel is to know: the addresses its launcher stated, or those that were found and
    /// are nobody else's.
    fn wired(&self, id: &str, stated: &[IpAddr], sight: &Sight) -> Wired {
        let others = self.workloads.values().filter(|other| other.placed.id != id);
        let taken: Vec<&IpAddr> = others
            .flat_map(|other| &other.placed.addresses)
            .chain(&self.parts.addresses)
            .collect();
        let found = sight.addresses.iter().filter(|found| {
            let free = !taken.contains(found);
            if !free {
                tracing::warn!(workload = id, address = %found, "this address is somebody else's: the pod may not send from it");
            }
            free
        });
        let mut sources: Vec<IpAddr> = match stated.is_empty() {
            true => found.copied().collect(),
            false => stated.to_vec(),
        };
        sources.extend(&sight.link_local);
        sources.sort();
        sources.dedup();
        Wired {
            cookie: sight.cookie,
            interfaces: sight.interfaces.iter().copied().collect(),
            sources,
        }
    }

    /// Makes the kernel know `after` where it knew `before`. Programs are attached in the node's
    /// namespace, which the entrance's thread enters.
    async fn rewire(&self, endpoint: u32, before: Option<&Wired>, after: &Wired) -> Result<(), NodeError> {
        let programs = Arc::clone(&self.parts.programs);
        let (before, after) = (before.cloned(), after.clone());
        let node = Arc::clone(&self.parts.namespace);
        self.parts
            .entrance
            .run(&node, move || {
                programs.rewire(endpoint, before.as_ref(), Some(&after))
            })
            .await
    }

    /// Takes away what the kernel and the cgroups hold of a workload.
    pub(crate) fn unwire(&mut self, workload: &mut Workload) {
        let placed = &workload.placed;
        if let Some(wired) = workload.wired.take()
            && let Err(error) = self.parts.programs.rewire(placed.endpoint, Some(&wired), None)
        {
            tracing::warn!(%error, workload = %placed.id, "something of a pod stays in the kernel's maps");
        }
        if let Some(path) = &placed.cgroup {
            self.parts.programs.remove(placed.cgroup_id);
            if let Ok(cgroups) = &mut self.parts.cgroups
                && !cgroups.release(path)
            {
                tracing::info!(workload = %placed.id, cgroup = %path.display(), "its cgroup stays until its processes are gone");
            }
        }
    }

    /// Looks at a pod again whose interfaces or addresses may have changed. `Err`: it cannot be
    /// enforced any more and must go.
    pub(crate) async fn look_again(&mut self, id: &str) -> Result<(), String> {
        let mut tries = 0;
        loop {
            match self.look_once(id).await {
                // An interface may have gone between the look and the attachment.
                Err(Unfollowed::Kernel(error)) if tries < LOOKS => {
                    tracing::debug!(%error, workload = id, "a changed pod is looked at again");
                    tries += 1;
                    tokio::time::sleep(LOOK_PAUSE).await;
                }
                Err(Unfollowed::Kernel(error)) => return Err(error.to_string()),
                Err(Unfollowed::Around(reason)) => return Err(reason),
                Ok(()) => return Ok(()),
            }
        }
    }

    async fn look_once(&mut self, id: &str) -> Result<(), Unfollowed> {
        let Some(workload) = self.workloads.get(id) else {
            return Ok(());
        };
        let (namespace, node) = (
            Arc::clone(&workload.namespace),
            self.parts.namespace.try_clone_fd(),
        );
        let node = node.map_err(Unfollowed::Kernel)?;
        let look = move || sight::look(node.as_fd()).map_err(unseen);
        let sight = match self.parts.entrance.run(&namespace, look).await {
            Ok(sight) => sight,
            // It is about to be reported as gone.
            Err(error) => {
                tracing::debug!(%error, workload = id, "a changed pod cannot be looked at");
                return Ok(());
            }
        };
        if let Some(around) = sight.around {
            let reason = format!("{around}: its traffic cannot be judged any more");
            return Err(Unfollowed::Around(reason));
        }
        let stated = stated(&workload.placed.spec).map_err(Unfollowed::Kernel)?;
        let (endpoint, before) = (workload.placed.endpoint, workload.wired.clone());
        let after = self.wired(id, &stated, &sight);
        if before.as_ref() == Some(&after) {
            return Ok(());
        }
        self.rewire(endpoint, before.as_ref(), &after)
            .await
            .map_err(Unfollowed::Kernel)?;
        tracing::info!(workload = id, interfaces = ?after.interfaces, sources = ?after.sources, "a pod's network changed");
        let found: Vec<IpAddr> = after
            .sources
            .iter()
            .filter(|a| !sight.link_local.contains(a))
            .copied()
            .collect();
        let Some(workload) = self.workloads.get_mut(id) else {
            return Ok(());
        };
        workload.wired = Some(after);
        if stated.is_empty() && workload.placed.addresses != found {
            workload.placed.addresses = found;
            let placed = workload.placed.clone();
            self.tell_all(None, |sender| sender.placed(placed.clone()));
        }
        Ok(())
    }
}

/// Why a change could not be followed.
enum Unfollowed {
    Around(String),
    Kernel(NodeError),
}

/// The addresses that the launcher says the pod has.
fn stated(spec: &WorkloadSpec) -> Result<Vec<IpAddr>, NodeError> {
    let parse = |text: &String| {
        text.parse().map_err(|_| NodeError::Name {
            what: "address of the workload",
            detail: format!("{text:?} is no IP address"),
        })
    };
    spec.addresses.iter().map(parse).collect()
}
