//! Placing a workload: what it gets, and what is refused.

use crate::{
    NodeError,
    cgroup::Of,
    core::{Core, Workload},
    kept::Kept,
    namespace::Namespace,
};
use prost::Message as _;
use std::{
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use weft_handoff::Placed;
use weft_proto::weft::{
    dataplane::v1::{WorkloadSpec, workload_spec},
    node::v1::WorkloadPlaced,
};

/// Largest specification: with its answer's other fields it must fit one message to the agent, now
/// and each time an agent starts.
const MAX_SPEC: usize = weft_handoff::wire::MAX_MESSAGE / 2;

impl Core {
    /// Checks a specification, makes what the workload needs and remembers it.
    pub(crate) async fn place(&mut self, mut spec: WorkloadSpec) -> Result<Placed, NodeError> {
        let name = |what, e: weft_model::NameError| NodeError::Name {
            what,
            detail: e.to_string(),
        };
        weft_model::check_dns_label(&spec.namespace).map_err(|e| name("namespace of the workload", e))?;
        weft_model::check_name(&spec.name).map_err(|e| name("name of the workload", e))?;
        let size = spec.encoded_len();
        if size > MAX_SPEC {
            return Err(NodeError::Name {
                what: "specification of the workload",
                detail: format!(
                    "it has {size} bytes, {MAX_SPEC} are allowed: shorten its labels and annotations"
                ),
            });
        }
        let limit = weft_bpf::MAX_WORKLOADS as usize;
        if self.workloads.len() >= limit {
            return Err(NodeError::Full(limit));
        }
        let start = self.next_start();
        let id = format!("{}/{}/{}/{start}", self.parts.node, spec.namespace, spec.name);
        let workload = match spec.place.take() {
            None | Some(workload_spec::Place::Process(_)) => {
                spec.place = Some(workload_spec::Place::Process(Default::default()));
                self.place_process(&id, spec)?
            }
            Some(place) => {
                let namespace = match &place {
                    workload_spec::Place::NetnsPid(pid) => Namespace::by_pid(*pid)?,
                    workload_spec::Place::NetnsPath(path) => Namespace::by_path(Path::new(path))?,
                    workload_spec::Place::Process(_) => Namespace::own()?,
                };
                spec.place = Some(place);
                if let Some(placed) = self.claim(&spec, &namespace).await {
                    return Ok(placed);
                }
                self.place_pod(&id, spec, namespace).await?
            }
        };
        let placed = workload.placed.clone();
        if workload.wired.is_some() {
            self.parts.keep(&placed);
        }
        self.workloads.insert(id, workload);
        Ok(placed)
    }

    /// Places the pods again that an earlier node had, each in the namespace that it had then.
    pub(crate) async fn restore(&mut self) {
        for kept in self.parts.kept.iter().flat_map(Kept::all).collect::<Vec<_>>() {
            let (id, endpoint) = (kept.id.clone(), kept.endpoint);
            let restored = self.restore_one(kept).await;
            match restored {
                Ok(()) => tracing::info!(workload = %id, "a pod of before is still here"),
                Err(error) => {
                    tracing::info!(workload = %id, %error, "a pod of before is gone");
                    self.parts.kept.iter().for_each(|kept| kept.forget(endpoint));
                }
            }
        }
    }

    async fn restore_one(&mut self, kept: WorkloadPlaced) -> Result<(), NodeError> {
        let spec = kept.spec.unwrap_or_default();
        let namespace = match &spec.place {
            Some(workload_spec::Place::NetnsPid(pid)) => Namespace::by_pid(*pid)?,
            Some(workload_spec::Place::NetnsPath(path)) => Namespace::by_path(Path::new(path))?,
            _ => return Err(NodeError::UnknownWorkload(kept.id)),
        };
        let mut workload = self.place_pod(&kept.id, spec, namespace).await?;
        if workload.placed.endpoint != kept.endpoint {
            // Another namespace under the same name, or a process that got the number of one that ended.
            self.unwire(&mut workload);
            return Err(NodeError::UnknownWorkload(kept.id));
        }
        workload.restored = true;
        workload.placed.derived = kept.derived.map(|d| (d.identity, d.spiffe_id));
        self.workloads.insert(kept.id, workload);
        Ok(())
    }

    /// A restored pod that its launcher adds again: the same one, as it is described now.
    async fn claim(&mut self, spec: &WorkloadSpec, namespace: &Namespace) -> Option<Placed> {
        let (id, workload) = self.workloads.iter_mut().find(|(_, other)| {
            let old = &other.placed.spec;
            let named =
                (&old.namespace, &old.name, &old.app_id) == (&spec.namespace, &spec.name, &spec.app_id);
            other.restored && named && other.namespace.same(namespace)
        })?;
        workload.restored = false;
        workload.placed.spec = spec.clone();
        let id = id.clone();
        if let Err(reason) = self.look_again(&id).await {
            tracing::error!(workload = %id, %reason, "a pod can not be enforced any more");
            self.gone(&id, &reason);
        }
        let placed = self.workloads.get(&id)?.placed.clone();
        self.parts.keep(&placed);
        Some(placed)
    }

    fn place_process(&mut self, id: &str, spec: WorkloadSpec) -> Result<Workload, NodeError> {
        let cgroups = self
            .parts
            .cgroups
            .as_mut()
            .map_err(|reason| NodeError::NoCgroups(reason.clone()))?;
        let (path, cgroup_id) = cgroups.make(Of::Process, &spec.namespace, &spec.name)?;
        let known = self.parts.programs.endpoint_of_cgroup(cgroup_id);
        let endpoint = self.endpoint(known);
        // Known to the kernel before its first process starts.
        let made = self
            .parts
            .programs
            .register(cgroup_id, endpoint)
            .and_then(|()| self.watches.cgroup(id, &path));
        let watching = match made {
            Ok(watching) => watching,
            Err(error) => {
                self.parts.programs.remove(cgroup_id);
                if let Ok(cgroups) = &mut self.parts.cgroups {
                    cgroups.release(&path);
                }
                return Err(error);
            }
        };
        let placed = Placed {
            id: id.to_owned(),
            spec,
            listeners: Vec::new(),
            cgroup: Some(path),
            cgroup_id,
            endpoint,
            addresses: Vec::new(),
            derived: None,
        };
        let namespace = Arc::clone(&self.parts.namespace);
        Ok(Workload {
            placed,
            namespace,
            wired: None,
            restored: false,
            watching: vec![watching],
        })
    }

    /// The number that the kernel's maps have for a workload already, or a new one.
    pub(crate) fn endpoint(&mut self, known: Option<u32>) -> u32 {
        let free = |number: &u32| !self.workloads.values().any(|w| w.placed.endpoint == *number);
        if let Some(known) = known.filter(free) {
            return known;
        }
        // Above all that the maps have ever held, as long as 32 bits last.
        self.last_endpoint = self.last_endpoint.wrapping_add(1).max(1);
        self.last_endpoint
    }

    /// Milliseconds since 1970, and more than the last one's.
    fn next_start(&mut self) -> u128 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_millis());
        self.last_start = now.max(self.last_start + 1);
        self.last_start
    }
}
