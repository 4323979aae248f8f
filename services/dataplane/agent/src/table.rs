//! The table of this node's workloads: one task owns it, everything else asks.
//!
//! Owns adding, removing, and the reconciliation with what the policy service believes: what it
//! has for this node and is not here is deregistered.

mod owner;

use crate::{
    agent::Shared,
    host::{PlaceError, Placement},
    locals::Locals,
    workload::Progress,
};
use owner::Owner;
use std::{sync::Arc, time::Duration};
use tokio::sync::{mpsc, oneshot, watch};
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
        tokio::spawn(Owner::new(shared).run(replayed, queue, drain));
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
