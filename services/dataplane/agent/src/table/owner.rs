//! The task that owns the table.

use super::{Added, Command, DEREGISTER_WITHIN, MAX_WORKLOADS, Reply, SETTLE_WITHIN, TableError};
use crate::{
    agent::Shared,
    backoff::Backoff,
    host::{PlaceError, Placement},
    locals::{Local, Seat},
    workload::{Driver, Progress, registration},
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use weft_drain::Watcher;
use weft_proto::weft::dataplane::v1::Placed;

struct Entry {
    local: Arc<Local>,
    added: Added,
}

pub(super) struct Owner {
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
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            entries: HashMap::new(),
            placing: JoinSet::new(),
            background: JoinSet::new(),
        }
    }

    pub(super) async fn run(
        mut self,
        replayed: Vec<Placement>,
        mut queue: mpsc::Receiver<Command>,
        mut drain: Watcher,
    ) {
        let mut known = Vec::new();
        for placement in replayed {
            let named = placement.derived.is_some();
            let added = self.insert(placement);
            if named {
                known.push(added.progress);
            }
        }
        // Who is here is known from now on: what the kernel holds of anybody else can go.
        if self.shared.kernel.is_some() {
            self.shared.view.mesh.journal.open();
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
            Seat {
                number: placement.endpoint,
                addresses: placement.addresses.clone(),
                app_port: u16::try_from(placement.spec.app_port).unwrap_or(0),
            },
            placement.token.as_deref(),
        );
        self.shared.view.locals.insert(local.clone());
        self.shared.view.mesh.journal.here(&placement.id);
        let (progress, progressed) = watch::channel(Progress::Waiting("the policy service".into()));
        let driver = Driver {
            shared: self.shared.clone(),
            local: local.clone(),
            registration: registration(&self.shared.node, &placement),
            derived: placement.derived,
            http: placement.http,
            grpc: placement.grpc,
            tunnel: placement.tunnel,
            capture: placement.capture,
            dns: placement.dns,
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
        shared.view.mesh.journal.here(id);
        shared.view.mesh.change_local(|e| e.local_down(id));
        shared.forget_identity(&entry.local);
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
        let shared: HashSet<String> = self
            .shared
            .view
            .mesh
            .shared_here()
            .into_iter()
            .map(|w| w.id)
            .collect();
        let missing = |id: &String| !self.entries.contains_key(id) && !shared.contains(id);
        for id in known.into_iter().filter(missing) {
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
