//! Kubernetes as the source: what is desired is read from its API server, and what became of it is
//! written there as status.
//!
//! Owns: one follower per kind ([`reflect`]), and for all replicas together one writer ([`writer`]),
//! which a Lease chooses ([`election`]). What crosses the border are [`Reading`]s, as from a folder: one
//! per object, called `<kind> <namespace>/<name>`, with one for a kind that can not be read.

mod api;
mod backoff;
mod election;
#[cfg(test)]
mod fuzz;
mod lines;
mod object;
mod observed;
mod reflect;
mod status;
mod wire;
mod writer;

pub(crate) use object::{key_of, place, reread};

use crate::{files::Reading, owner::Event, world::ObjectKey};
use api::Api;
use election::ClusterLease;
use observed::Observed;
use reflect::Reflector;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};
use weft_drain::Watcher;
use weft_resources::Kind;
use writer::Writer;

/// The Lease of who writes statuses.
const LEASE: &str = "weft-policy";
/// A service that has a last good state serves it after this time at the latest, also without an API
/// server.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the API server can not be asked at all.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ClusterError(String);

/// How the API server is used.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Where the Lease is; the account's namespace when nothing is said.
    pub lease_namespace: Option<String>,
    pub lease: Duration,
    /// The longest time until what failed is tried again.
    pub retry: Duration,
}

/// Whether a client can be made; nothing is asked.
pub(crate) async fn check(kubeconfig: Option<&Path>) -> Result<(), ClusterError> {
    Api::connect(kubeconfig).await.map(|_| ())
}

/// The API server, before anything was asked.
#[derive(Debug)]
pub(crate) struct Cluster {
    api: Api,
    settings: Settings,
    observed: Observed,
}

impl Cluster {
    /// Prepares a client; asks nothing yet. `news` says that a status may have to be written.
    pub(crate) async fn connect(
        kubeconfig: Option<&Path>,
        settings: Settings,
        news: Arc<Notify>,
    ) -> Result<Self, ClusterError> {
        Ok(Self {
            api: Api::connect(kubeconfig).await?,
            settings,
            observed: Observed::new(news),
        })
    }

    /// Follows every kind until the drain. `known`: what is in force since before.
    pub(crate) fn follow(
        &self,
        known: Vec<ObjectKey>,
        readings: &mpsc::Sender<Vec<Reading>>,
        drain: &Watcher,
        tasks: &mut JoinSet<Result<(), crate::ServeError>>,
    ) -> Complete {
        let (complete, told) = mpsc::unbounded_channel();
        let known_any = !known.is_empty();
        let mut by_kind: BTreeMap<Kind, Vec<ObjectKey>> = BTreeMap::new();
        for key in known {
            by_kind.entry(key.kind).or_default().push(key);
        }
        for kind in Kind::ALL {
            let reflector = Reflector::new(
                (self.api.clone(), kind),
                by_kind.remove(&kind).unwrap_or_default().into_iter(),
                readings.clone(),
                self.observed.clone(),
                complete.clone(),
                self.settings.retry,
            );
            let drain = drain.clone();
            tasks.spawn(async move {
                drain.until_draining(reflector.run()).await;
                Ok(())
            });
        }
        Complete {
            told,
            known_any,
            patience: self.settings.retry.min(PATIENCE),
        }
    }

    /// Runs for the lead and writes statuses until the drain.
    pub(crate) async fn write(self, events: mpsc::Sender<Event>, drain: Watcher) {
        let Self {
            api,
            settings,
            observed,
        } = self;
        let me = format!("weft-policy-{}", uuid::Uuid::new_v4());
        let namespace = settings.lease_namespace;
        let lease = ClusterLease {
            namespace: namespace.unwrap_or_else(|| api.namespace().to_owned()),
            api: api.clone(),
            name: LEASE,
            within: settings.lease / 3,
        };
        let (leads, leading) = watch::channel(None);
        let writer = Writer {
            api,
            observed,
            events,
            leading,
            refused: BTreeMap::new(),
        };
        let work = async {
            tokio::select! {
                () = election::run(&lease, &me, settings.lease, &leads) => {}
                () = writer.run() => {}
            }
        };
        drain.until_draining(work).await;
        // The writer is gone. If this fails, the others wait for the lease's end.
        if leads.borrow().is_some()
            && let Ok(Err(fault)) = tokio::time::timeout(lease.within, election::release(&lease, &me)).await
        {
            tracing::debug!(%fault, "the lease runs out by itself: the API server");
        }
    }
}

/// Says when the first complete lists are there.
#[derive(Debug)]
pub(crate) struct Complete {
    told: mpsc::UnboundedReceiver<Kind>,
    known_any: bool,
    patience: Duration,
}

impl Complete {
    /// Waits until every kind was read, and sent. With a last good state, not forever: it is better
    /// than nothing, and than what a node without word from here has.
    pub(crate) async fn wait(mut self) {
        let mut waiting: BTreeSet<Kind> = Kind::ALL.into();
        loop {
            let read = async {
                while !waiting.is_empty() {
                    match self.told.recv().await {
                        Some(kind) => waiting.remove(&kind),
                        None => return,
                    };
                }
            };
            if tokio::time::timeout(self.patience, read).await.is_ok() {
                return;
            }
            let kinds: Vec<&str> = waiting.iter().map(|k| k.name()).collect();
            let kinds = kinds.join(", ");
            if self.known_any {
                tracing::warn!(
                    kinds,
                    "not read from the API server yet; what was last good is served"
                );
                return;
            }
            tracing::warn!(
                kinds,
                "not read from the API server yet; nothing is served before"
            );
        }
    }
}
