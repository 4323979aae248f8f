//! Placing a workload: what it gets, and what is refused.

use crate::{
    NodeError,
    core::{Core, Workload},
    listen,
    namespace::Namespace,
};
use prost::Message as _;
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use weft_handoff::Placed;
use weft_proto::weft::dataplane::v1::{WorkloadSpec, workload_spec};

/// Largest specification: with its answer's other fields it must fit one message to the agent, now
/// and each time an agent starts.
const MAX_SPEC: usize = weft_handoff::wire::MAX_MESSAGE / 2;

/// How often, and after which pause, a port that is in use is tried again.
const PORT_TRIES: u32 = 5;
const PORT_PAUSE: Duration = Duration::from_millis(40);

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
                self.place_pod(&id, spec, namespace).await?
            }
        };
        let placed = workload.placed.clone();
        self.workloads.insert(id, workload);
        Ok(placed)
    }

    async fn place_pod(
        &mut self,
        id: &str,
        spec: WorkloadSpec,
        namespace: Namespace,
    ) -> Result<Workload, NodeError> {
        let place = namespace.place.to_string();
        let refuse = |detail: String| {
            Err(NodeError::Namespace {
                place: place.clone(),
                detail,
            })
        };
        if namespace.same(&self.parts.namespace) {
            return refuse("it is the node's own; add the workload as a process of the node".into());
        }
        if let Some(other) = self
            .workloads
            .values()
            .find(|other| other.namespace.same(&namespace))
        {
            return refuse(format!(
                "it belongs to workload {}; remove that one first",
                other.placed.id
            ));
        }
        let runtime = !spec.app_id.is_empty();
        let words = format!("network namespace {place}");
        let mut tries = 0;
        let (listeners, found) = loop {
            let words = words.clone();
            let opened = self.parts.entrance.run(&namespace, move || {
                let listeners = listen::open_all(runtime, &words)?;
                let addresses = listen::addresses().map_err(|source| NodeError::Process {
                    action: "read a namespace's addresses",
                    source,
                })?;
                Ok((listeners, addresses))
            });
            match opened.await {
                // Whoever had this pod before may be just about to close its listeners: an agent
                // that hears of a removal, a process between fork and exec.
                Err(NodeError::PortInUse { .. }) if tries < PORT_TRIES => {
                    tries += 1;
                    tokio::time::sleep(PORT_PAUSE).await;
                }
                opened => break opened?,
            }
        };
        let addresses = match spec.addresses.is_empty() {
            true => found,
            false => spec
                .addresses
                .iter()
                .map(|text| {
                    text.parse().map_err(|_| NodeError::Name {
                        what: "address of the workload",
                        detail: format!("{text:?} is no IP address"),
                    })
                })
                .collect::<Result<_, _>>()?,
        };
        let namespace = Arc::new(namespace);
        let watching = self.watches.namespace(id, Arc::clone(&namespace))?;
        let placed = Placed {
            id: id.to_owned(),
            spec,
            listeners,
            cgroup: None,
            cgroup_id: 0,
            addresses,
            derived: None,
        };
        Ok(Workload {
            placed,
            namespace,
            index: 0,
            _watching: watching,
        })
    }

    fn place_process(&mut self, id: &str, spec: WorkloadSpec) -> Result<Workload, NodeError> {
        let cgroups = self
            .parts
            .cgroups
            .as_mut()
            .map_err(|reason| NodeError::NoCgroups(reason.clone()))?;
        let (path, cgroup_id) = cgroups.make(&spec.namespace, &spec.name)?;
        self.last_index += 1;
        let index = self.last_index;
        // Known to the kernel before its first process starts.
        let made = self
            .parts
            .programs
            .set(cgroup_id, index, 0)
            .and_then(|()| self.watches.cgroup(id, &path));
        let watching = match made {
            Ok(watching) => watching,
            Err(error) => {
                self.parts.programs.remove(cgroup_id);
                cgroups.release(&path);
                return Err(error);
            }
        };
        let placed = Placed {
            id: id.to_owned(),
            spec,
            listeners: Vec::new(),
            cgroup: Some(path),
            cgroup_id,
            addresses: Vec::new(),
            derived: None,
        };
        let namespace = Arc::clone(&self.parts.namespace);
        Ok(Workload {
            placed,
            namespace,
            index,
            _watching: Some(watching),
        })
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
