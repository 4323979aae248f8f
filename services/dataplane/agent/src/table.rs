//! The table of this node's workloads: one task owns it, everything else asks.
//!
//! Owns adding, removing, and the reconciliation with what the policy service believes: what it
//! has for this node and is not here is deregistered.

use crate::{
    agent::Shared,
    backoff::Backoff,
    host::{PlaceError, Placement},
    locals::{Local, Locals},
    workload::{Driver, Progress, registration},
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use weft_drain::Watcher;
use weft_model::{check_app_id, check_dns_label, check_name};
use weft_proto::weft::dataplane::v1::{Placed, WorkloadSpec};

/// Workloads of one node.
const MAX_WORKLOADS: usize = 4096;
/// Labels and annotations of one workload, each.
const MAX_PAIRS: usize = 256;
/// Commands that wait.
const QUEUE: usize = 256;
/// So long an added workload may take to become ready.
const START_WITHIN: Duration = Duration::from_secs(20);
/// So long a new agent waits for what was here before it, before it accepts.
const SETTLE_WITHIN: Duration = Duration::from_secs(3);
/// So long a deregistration is tried; reconciliation does the rest.
const DEREGISTER_WITHIN: Duration = Duration::from_secs(20);

/// Why a workload was not added or removed.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// It could not be put in its place.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The policy service refused it.
    #[error("{0}")]
    Refused(String),
    /// It did not become ready in time.
    #[error("workload {name} was not ready within {} s; it waits for: {waiting}", START_WITHIN.as_secs())]
    NotReady {
        /// As asked for.
        name: String,
        /// The last thing it waited for.
        waiting: String,
    },
    /// The bound is reached.
    #[error("this node has {MAX_WORKLOADS} workloads, which is the most it takes")]
    Full,
    /// No such workload.
    #[error("no workload {0} on this node; `weft status` lists them")]
    NotFound(String),
    /// The agent stops.
    #[error("the agent is shutting down")]
    Stopping,
}

type Reply<T> = oneshot::Sender<Result<T, TableError>>;

enum Command {
    Add {
        spec: Box<WorkloadSpec>,
        attached: bool,
        reply: Reply<Box<Added>>,
    },
    Resume {
        id: String,
        reply: Reply<Box<Added>>,
    },
    Remove {
        id: String,
        reply: Reply<()>,
    },
    Placed(Box<Placement>),
    Gone {
        id: String,
        reason: String,
    },
    Replayed(Vec<Placement>),
}

/// Asks the table. Clones share.
#[derive(Debug, Clone)]
pub struct Table {
    commands: mpsc::Sender<Command>,
    locals: Locals,
}

impl Table {
    /// Starts the task. `replayed`: what was here before this agent.
    pub fn start(shared: Arc<Shared>, replayed: Vec<Placement>, drain: Watcher) -> Self {
        let (commands, queue) = mpsc::channel(QUEUE);
        let locals = shared.view.locals.clone();
        let owner = Owner {
            shared,
            entries: HashMap::new(),
            placing: JoinSet::new(),
            background: JoinSet::new(),
        };
        tokio::spawn(owner.run(replayed, queue, drain));
        Self { commands, locals }
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, TableError>>) -> Command,
    ) -> Result<T, TableError> {
        let (reply, answer) = oneshot::channel();
        let asked = self.commands.send(command(reply)).await;
        asked.map_err(|_| TableError::Stopping)?;
        answer.await.map_err(|_| TableError::Stopping)?
    }

    /// Adds a workload; answers when it is ready. If it does not become ready, or the caller gives
    /// up before, it is removed.
    pub async fn add(&self, spec: WorkloadSpec, attached: bool) -> Result<Placed, TableError> {
        check(&spec)?;
        let name = format!("{}/{}", spec.namespace, spec.name);
        let spec = Box::new(spec);
        let added = self
            .ask(|reply| Command::Add {
                spec,
                attached,
                reply,
            })
            .await?;
        let mut unready = RemoveOnDrop(Some((self.clone(), added.placed.id.clone())));
        let placed = self.ready(name, *added).await?;
        unready.0 = None;
        Ok(placed)
    }

    /// Takes up a workload whose launcher was attached to an agent before this one.
    pub async fn resume(&self, id: &str) -> Result<Placed, TableError> {
        let id = id.to_owned();
        let added = self.ask(|reply| Command::Resume { id, reply }).await?;
        self.ready(added.placed.id.clone(), *added).await
    }

    async fn ready(&self, name: String, added: Added) -> Result<Placed, TableError> {
        let Added {
            mut placed,
            mut progress,
        } = added;
        let ended = {
            let ready = progress.wait_for(|p| matches!(p, Progress::Ready | Progress::Refused(_)));
            let ready = tokio::time::timeout(START_WITHIN, ready).await;
            ready.map(|r| r.map(|p| p.clone()))
        };
        let ended = match ended {
            Ok(Ok(ended)) => ended,
            Ok(Err(_)) => return Err(TableError::NotFound(placed.id.clone())),
            Err(_) => progress.borrow().clone(),
        };
        match ended {
            Progress::Ready => {}
            Progress::Refused(reason) => return Err(TableError::Refused(reason)),
            Progress::Waiting(waiting) => return Err(TableError::NotReady { name, waiting }),
            Progress::Known => {
                let waiting = "the workloads that were here before".into();
                return Err(TableError::NotReady { name, waiting });
            }
        }
        let member = self.locals.get(&placed.id).and_then(|l| l.member());
        let member = member.ok_or_else(|| TableError::NotFound(placed.id.clone()))?;
        placed.identity = member.workload.identity;
        placed.spiffe_id = member.workload.spiffe_id.clone();
        Ok(placed)
    }

    /// Removes a workload.
    pub async fn remove(&self, id: &str) -> Result<(), TableError> {
        let id = id.to_owned();
        self.ask(|reply| Command::Remove { id, reply }).await
    }

    /// Removes a workload when there is nobody to wait for it.
    pub fn remove_later(&self, id: String) {
        let table = self.clone();
        tokio::spawn(async move {
            if let Err(error) = table.remove(&id).await {
                tracing::debug!(workload = id, %error, "not removed");
            }
        });
    }

    /// `weft-node` has a workload that this agent did not ask for (or gave up asking for).
    pub async fn placed(&self, placement: Placement) {
        let _ = self.commands.send(Command::Placed(Box::new(placement))).await;
    }

    /// `weft-node` started anew and says what is there.
    pub async fn replayed(&self, placements: Vec<Placement>) {
        let _ = self.commands.send(Command::Replayed(placements)).await;
    }

    /// `weft-node` says that a workload is gone.
    pub async fn gone(&self, id: String, reason: String) {
        let _ = self.commands.send(Command::Gone { id, reason }).await;
    }
}

struct RemoveOnDrop(Option<(Table, String)>);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some((table, id)) = self.0.take() {
            table.remove_later(id);
        }
    }
}

/// What can be said of a specification before anything is made of it.
fn check(spec: &WorkloadSpec) -> Result<(), TableError> {
    let invalid = |field: &str, e: &dyn std::fmt::Display| TableError::Invalid(format!("spec.{field}: {e}"));
    check_dns_label(&spec.namespace).map_err(|e| invalid("namespace", &e))?;
    check_name(&spec.name).map_err(|e| invalid("name", &e))?;
    if !spec.app_id.is_empty() {
        check_app_id(&spec.app_id).map_err(|e| invalid("app_id", &e))?;
    }
    if let Some(annotated) = spec.annotations.get("dapr.io/app-id") {
        check_app_id(annotated).map_err(|e| invalid("annotations[dapr.io/app-id]", &e))?;
        if !spec.app_id.is_empty() && spec.app_id != *annotated {
            return Err(invalid(
                "app_id",
                &format!("differs from annotation dapr.io/app-id ({annotated})"),
            ));
        }
    }
    if u16::try_from(spec.app_port).is_err() {
        return Err(invalid("app_port", &"must be at most 65535"));
    }
    if !["", "http"].contains(&spec.app_protocol.as_str()) {
        return Err(invalid(
            "app_protocol",
            &format!("{:?} is not served yet; only http is", spec.app_protocol),
        ));
    }
    if spec.labels.len() > MAX_PAIRS || spec.annotations.len() > MAX_PAIRS {
        return Err(invalid(
            "labels",
            &format!("more than {MAX_PAIRS} labels or annotations"),
        ));
    }
    Ok(())
}

/// A workload in its place, on its way to be served.
#[derive(Clone)]
struct Added {
    placed: Placed,
    progress: watch::Receiver<Progress>,
}

struct Entry {
    local: Arc<Local>,
    added: Added,
}

struct Owner {
    shared: Arc<Shared>,
    entries: HashMap<String, Entry>,
    placing: JoinSet<Placing>,
    background: JoinSet<()>,
}

struct Placing {
    result: Result<Placement, PlaceError>,
    reply: Reply<Box<Added>>,
}

impl Owner {
    async fn run(mut self, replayed: Vec<Placement>, mut queue: mpsc::Receiver<Command>, mut drain: Watcher) {
        let mut known = Vec::new();
        for placement in replayed {
            let named = placement.derived.is_some();
            let added = self.insert(placement);
            if named {
                known.push(added.progress);
            }
        }
        let settled = self.shared.settled.clone();
        self.background.spawn(async move {
            let all = async {
                for mut progress in known {
                    let _ = progress.wait_for(|p| !matches!(p, Progress::Waiting(_))).await;
                }
            };
            let _ = tokio::time::timeout(SETTLE_WITHIN, all).await;
            settled.cancel();
        });
        let mut sessions = self.shared.sessions.subscribe();
        let mut view = self.shared.view.mesh.subscribe();
        // Set by a new session, done at the first view after it.
        let mut reconcile = false;
        loop {
            tokio::select! {
                command = queue.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                Some(placed) = self.placing.join_next() => {
                    if let Ok(placed) = placed {
                        self.added(placed);
                    }
                }
                Some(_) = self.background.join_next() => {}
                Ok(()) = sessions.changed() => reconcile = true,
                Ok(()) = view.changed() => {
                    if std::mem::take(&mut reconcile) {
                        self.reconcile();
                    }
                }
                () = drain.draining() => break,
            }
        }
        self.stop(drain).await;
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Add {
                spec,
                attached,
                reply,
            } => {
                if self.entries.len() + self.placing.len() >= MAX_WORKLOADS {
                    let _ = reply.send(Err(TableError::Full));
                    return;
                }
                let host = self.shared.view.host.clone();
                self.placing.spawn(async move {
                    let result = host.place(*spec, attached).await;
                    Placing { result, reply }
                });
            }
            Command::Resume { id, reply } => {
                let found = self.entries.get(&id).map(|e| Box::new(e.added.clone()));
                let _ = reply.send(found.ok_or(TableError::NotFound(id)));
            }
            Command::Remove { id, reply } => {
                let removed = self.remove(&id, true);
                let _ = reply.send(if removed {
                    Ok(())
                } else {
                    Err(TableError::NotFound(id))
                });
            }
            Command::Placed(placement) => {
                self.insert(*placement);
            }
            Command::Replayed(placements) => {
                let there: HashSet<&str> = placements.iter().map(|p| p.id.as_str()).collect();
                let gone: Vec<String> = self
                    .entries
                    .keys()
                    .filter(|id| !there.contains(id.as_str()))
                    .cloned()
                    .collect();
                for id in gone {
                    tracing::info!(workload = id, "workload is gone");
                    self.remove(&id, false);
                }
                for placement in placements {
                    self.insert(placement);
                }
            }
            Command::Gone { id, reason } => {
                tracing::info!(workload = id, reason, "workload is gone");
                self.remove(&id, false);
            }
        }
    }

    fn added(&mut self, Placing { result, reply }: Placing) {
        let placement = match result {
            Ok(placement) => placement,
            Err(error) => {
                let _ = reply.send(Err(error.into()));
                return;
            }
        };
        let added = self.insert(placement);
        let id = added.placed.id.clone();
        if reply.send(Ok(Box::new(added))).is_err() {
            // Who asked has gone.
            self.remove(&id, true);
        }
    }

    fn insert(&mut self, placement: Placement) -> Added {
        // A node that starts anew hands over the same workload with other listeners.
        if let Some(old) = self.entries.remove(&placement.id) {
            old.local.gone.cancel();
        }
        let cgroup = placement.cgroup.as_ref();
        let placed = Placed {
            id: placement.id.clone(),
            cgroup: cgroup.map_or_else(String::new, |p| p.display().to_string()),
            environment: placement.environment.clone(),
            identity: 0,
            spiffe_id: String::new(),
        };
        let local = Local::new(
            &placement.id,
            placement.kind,
            placement.proof,
            placement.cgroup_id,
            placement.token.as_deref(),
        );
        self.shared.view.locals.insert(local.clone());
        let (progress, progressed) = watch::channel(Progress::Waiting("the policy service".into()));
        let driver = Driver {
            shared: self.shared.clone(),
            local: local.clone(),
            registration: registration(&self.shared.node, &placement),
            derived: placement.derived,
            http: placement.http,
            grpc: placement.grpc,
            tunnel: placement.tunnel,
            progress,
        };
        tokio::spawn(driver.run());
        let added = Added {
            placed,
            progress: progressed,
        };
        let entry = Entry {
            local,
            added: added.clone(),
        };
        self.entries.insert(placement.id, entry);
        added
    }

    /// `true`: it was there. `at_host`: the host is to take it away too.
    fn remove(&mut self, id: &str, at_host: bool) -> bool {
        let Some(entry) = self.entries.remove(id) else {
            return false;
        };
        entry.local.gone.cancel();
        let shared = self.shared.clone();
        shared.view.locals.remove(id);
        shared.view.mesh.change_local(|e| e.local_down(id));
        if let Some(member) = entry.local.member() {
            // Another workload of this node may have the same identity and answer for it.
            let other = shared
                .view
                .locals
                .all()
                .into_iter()
                .find(|l| l.member().is_some_and(|m| m.spiffe_id == member.spiffe_id));
            match other {
                Some(other) => shared.identities.insert(&member.spiffe_id, other.svid.clone()),
                None => shared.identities.remove(&member.spiffe_id),
            }
        }
        let id = id.to_owned();
        self.background.spawn(async move {
            if at_host && let Err(error) = shared.view.host.remove(&id).await {
                tracing::warn!(workload = id, %error, "weft-node did not take it away");
            }
            deregister(&shared, &id).await;
        });
        true
    }

    /// What the policy service has for this node and is not here.
    fn reconcile(&mut self) {
        let known = self.shared.view.mesh.ids_of_node(&self.shared.node);
        for id in known.into_iter().filter(|id| !self.entries.contains_key(id)) {
            tracing::info!(workload = id, "registered, but not here any more");
            let shared = self.shared.clone();
            self.background
                .spawn(async move { deregister(&shared, &id).await });
        }
    }

    /// With `weft-node` the workloads stay for the next agent; without it, only what was added to
    /// stay does, and the next agent's reconciliation finds the rest.
    async fn stop(mut self, drain: Watcher) {
        let _ = drain
            .until_forced(async {
                let rest = async { while self.background.join_next().await.is_some() {} };
                let _ = tokio::time::timeout(Duration::from_secs(2), rest).await;
            })
            .await;
    }
}

async fn deregister(shared: &Shared, id: &str) {
    let mut backoff = Backoff::upstream();
    let tried = async {
        while let Err(error) = shared.registry.deregister(id).await {
            tracing::debug!(workload = id, %error, "trying again");
            tokio::time::sleep(backoff.pause()).await;
        }
    };
    if tokio::time::timeout(DEREGISTER_WITHIN, tried).await.is_err() {
        tracing::warn!(
            workload = id,
            "not deregistered: the policy service is away; it is told when it is back"
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_specification_names_its_field() {
        let good = WorkloadSpec {
            namespace: "default".into(),
            name: "cart".into(),
            app_id: "cart".into(),
            app_port: 8080,
            ..Default::default()
        };
        assert!(check(&good).is_ok());
        let other = ("dapr.io/app-id".to_owned(), "shop".to_owned());
        let wrong = [
            (
                "namespace",
                WorkloadSpec {
                    namespace: "A".into(),
                    ..good.clone()
                },
            ),
            (
                "name",
                WorkloadSpec {
                    name: String::new(),
                    ..good.clone()
                },
            ),
            (
                "app_id",
                WorkloadSpec {
                    app_id: "a/b".into(),
                    ..good.clone()
                },
            ),
            (
                "app_id",
                WorkloadSpec {
                    annotations: [other].into(),
                    ..good.clone()
                },
            ),
            (
                "app_port",
                WorkloadSpec {
                    app_port: 70_000,
                    ..good.clone()
                },
            ),
            (
                "app_protocol",
                WorkloadSpec {
                    app_protocol: "grpc".into(),
                    ..good.clone()
                },
            ),
        ];
        for (field, spec) in wrong {
            let error = check(&spec).unwrap_err().to_string();
            assert!(error.starts_with(&format!("spec.{field}")), "{error}");
        }
    }
}
