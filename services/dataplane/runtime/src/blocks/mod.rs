//! Dapr's building blocks for every app of the node: state, publish and subscribe, bindings.
//!
//! Owns which components are opened for which app: an instance per component and app-id, made when the
//! first workload of the app is here and ended with the last; manifests that come, change or go take
//! effect at once. Who an app is and how it is reached comes from its [`AppContext`] and [`Endpoint`].

mod app;
mod binding;
mod budget;
mod channel;
mod cloud_event;
mod configuration;
mod configured;
mod consume;
mod content_type;
mod delivery;
mod error;
mod lock;
mod net;
mod open;
mod prefix;
mod publish;
mod publish_http;
mod record;
mod request;
mod rules;
mod secrets;
mod serve;
mod state;
mod state_http;
mod streaming;
mod subscriptions;

pub(crate) use app::AppBlocks;
pub(crate) use binding::invoke as invoke_binding;
pub(crate) use channel::{Consumer, Surroundings};
pub(crate) use configuration::{ConfigurationCall, new_id as new_watch_id};
pub(crate) use error::BlockError;
pub(crate) use lock::{Asked as AskedLock, status as unlock_status, try_lock, unlock};
pub(crate) use publish::{Entry, Publisher, Trace};
pub(crate) use rules::Rule;
pub(crate) use secrets::SecretCall;
pub(crate) use serve::{Call, serve};
pub(crate) use state::{StateCall, Write, WriteOperation, item_metadata};
pub(crate) use streaming::{Said, Stream, Streamed, open as open_stream};
pub(crate) use subscriptions::Subscription;

use crate::{AppContext, Endpoint, Place};
use arc_swap::ArcSwap;
use budget::Budget;
use configured::Configured;
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use weft_components_api::{ComponentSpec, Drivers, Home, Net, Owner, SpecError};
use weft_flows::FlowLog;

/// Deliveries of one app that are under way at once.
const MAX_DELIVERIES: usize = 64;

/// The building blocks of a node. Clones share.
#[derive(Clone)]
pub struct Blocks(Arc<Shared>);

/// The apps of a namespace, by app-id.
type Apps = HashMap<Arc<str>, Arc<Slot>>;

struct Shared {
    drivers: Drivers,
    /// Each app's files are in `<files>/<namespace>/<app-id>`.
    files: PathBuf,
    surroundings: Surroundings,
    desired: RwLock<Desired>,
    /// By namespace.
    apps: RwLock<HashMap<Arc<str>, Apps>>,
}

/// What manifests say, by namespace and name.
#[derive(Default)]
struct Desired {
    components: BTreeMap<(String, String), Arc<ComponentSpec>>,
    subscriptions: BTreeMap<(String, String), Arc<Declared>>,
    configurations: BTreeMap<(String, String), Arc<Configured>>,
    /// What of it can not be read, by kind, namespace and name.
    problems: BTreeMap<(&'static str, String, String), String>,
}

/// A manifest of kind Subscription.
#[derive(Debug, PartialEq)]
struct Declared {
    scopes: Vec<String>,
    subscription: Arc<Subscription>,
}

/// One app-id, as long as a workload of it is on this node.
pub(crate) struct Slot {
    owner: Owner,
    view: ArcSwap<AppBlocks>,
    /// Which of its components can not be used, and why.
    problems: ArcSwap<Vec<String>>,
    /// What it is subscribed to now, for the metadata API.
    subscribed: ArcSwap<Vec<Arc<Subscription>>>,
    /// Subscriptions that it has opened itself.
    streams: Mutex<streaming::Streams>,
    /// Counts changes of what is desired for it.
    wanted: watch::Sender<u64>,
    /// The change up to which its components are open, or known not to be.
    opened: watch::Sender<u64>,
    /// Counts changes of which workloads are ready.
    readied: watch::Sender<u64>,
    replicas: Mutex<BTreeMap<Arc<str>, Replica>>,
    /// Of configuration; told to the app as they change.
    watches: configuration::Watches,
    deliveries: Arc<Semaphore>,
    budget: Budget,
    gone: CancellationToken,
}

/// One workload of an app.
struct Replica {
    context: Arc<AppContext>,
    /// Where it listens, once it does.
    ready: Option<Arc<Endpoint>>,
}

/// What a component that can not be used is told as: `<namespace>/<name>: …`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {namespace}/{name}: {problem}")]
pub struct BlockProblem {
    /// "component", "subscription" or "configuration".
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub problem: String,
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocks")
            .field("drivers", &self.0.drivers)
            .finish_non_exhaustive()
    }
}

impl Blocks {
    pub(crate) fn new(drivers: Drivers, files: PathBuf, surroundings: Surroundings) -> Self {
        Self(Arc::new(Shared {
            drivers,
            files,
            surroundings,
            desired: RwLock::default(),
            apps: RwLock::default(),
        }))
    }

    /// Takes a component's manifest, or that it is gone (`None`). What can not be read is as if it was
    /// gone, and told.
    pub fn set_component(
        &self,
        namespace: &str,
        name: &str,
        manifest: Option<(&[String], &[u8])>,
    ) -> Result<(), BlockProblem> {
        let read = |(scopes, json): (&[String], &[u8])| ComponentSpec::read(namespace, name, scopes, json);
        let (spec, problem) = match manifest.map(read).transpose() {
            Ok(spec) => (spec, None),
            Err(e) => (None, Some(e)),
        };
        let key = (namespace.to_owned(), name.to_owned());
        {
            let mut desired = self.0.desired.write();
            match spec {
                Some(spec) => desired.components.insert(key, Arc::new(spec)),
                None => desired.components.remove(&key),
            };
        }
        self.wake(namespace);
        self.note(
            "component",
            namespace,
            name,
            problem.map(|e: SpecError| e.to_string()),
        )
    }

    /// Takes a subscription's manifest, or that it is gone.
    pub fn set_subscription(
        &self,
        namespace: &str,
        name: &str,
        manifest: Option<(&[String], &[u8])>,
    ) -> Result<(), BlockProblem> {
        let read = |(scopes, json): (&[String], &[u8])| {
            let subscription = Arc::new(subscriptions::declarative(json)?);
            let scopes = scopes.to_vec();
            Ok::<_, String>(Arc::new(Declared { scopes, subscription }))
        };
        let (declared, problem) = match manifest.map(read).transpose() {
            Ok(declared) => (declared, None),
            Err(e) => (None, Some(e)),
        };
        let key = (namespace.to_owned(), name.to_owned());
        {
            let mut desired = self.0.desired.write();
            match declared {
                Some(declared) => drop(desired.subscriptions.insert(key, declared)),
                None => drop(desired.subscriptions.remove(&key)),
            }
        }
        self.wake(namespace);
        self.note("subscription", namespace, name, problem)
    }

    /// Takes the manifest of a Configuration, or that it is gone. What can not be read is as if it was
    /// gone: apps that name it see no secrets then.
    pub fn set_configuration(
        &self,
        namespace: &str,
        name: &str,
        manifest: Option<&[u8]>,
    ) -> Result<(), BlockProblem> {
        let read = manifest.map(Configured::read).transpose();
        let (configured, problem) = match read {
            Ok(configured) => (configured, None),
            Err(e) => (None, Some(e)),
        };
        let key = (namespace.to_owned(), name.to_owned());
        {
            let mut desired = self.0.desired.write();
            match configured {
                Some(configured) => drop(desired.configurations.insert(key, Arc::new(configured))),
                None => drop(desired.configurations.remove(&key)),
            }
        }
        self.note("configuration", namespace, name, problem)
    }

    /// Keeps what is wrong with a manifest, for as long as it is.
    fn note(
        &self,
        kind: &'static str,
        namespace: &str,
        name: &str,
        problem: Option<String>,
    ) -> Result<(), BlockProblem> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        let told = problem.map(|problem| problem_of(kind, namespace, name, problem));
        let mut desired = self.0.desired.write();
        match told {
            Some(told) => {
                desired.problems.insert(key, told.to_string());
                Err(told)
            }
            None => {
                desired.problems.remove(&key);
                Ok(())
            }
        }
    }

    /// What of the manifests can not be used on this node, each in a line.
    pub fn problems(&self) -> Vec<String> {
        let mut all: Vec<String> = self.0.desired.read().problems.values().cloned().collect();
        let apps = self.0.apps.read();
        for slot in apps.values().flat_map(HashMap::values) {
            all.extend(slot.problems.load().iter().cloned());
        }
        all.sort_unstable();
        all
    }

    /// Whether any app here has components.
    pub fn has_components(&self) -> bool {
        let apps = self.0.apps.read();
        let mut slots = apps.values().flat_map(HashMap::values);
        slots.any(|slot| !slot.view.load().listed.is_empty())
    }

    /// Whether an app may see a secret. With a Configuration that is not known here it may see none.
    pub(crate) fn may_see(&self, app: &AppContext, store: &str, secret: &str) -> bool {
        let named = &app.settings().configuration;
        if named.is_empty() {
            return true;
        }
        let key = (app.party().namespace.to_string(), named.clone());
        let desired = self.0.desired.read();
        let configured = desired.configurations.get(&key);
        configured.is_some_and(|configured| configured.allows(store, secret))
    }

    fn wake(&self, namespace: &str) {
        if let Some(apps) = self.0.apps.read().get(namespace) {
            for slot in apps.values() {
                slot.wanted.send_modify(|n| *n += 1);
            }
        }
    }

    /// A workload of an app is here, or here under another name: its components are opened. Ends when
    /// they are, each within its time.
    pub async fn app_here(&self, context: &Arc<AppContext>) {
        let party = context.party();
        if party.app_id.is_empty() {
            return;
        }
        self.leave_others(context);
        let slot = self.enter(context);
        let mut opened = slot.opened.subscribe();
        let wanted = *slot.wanted.borrow();
        let _ = opened.wait_for(|n| *n >= wanted).await;
    }

    /// Another name of the same workload is not its name any more.
    fn leave_others(&self, context: &AppContext) {
        let party = context.party();
        let elsewhere = |slot: &&Arc<Slot>| {
            let same = *slot.owner.namespace == *party.namespace && *slot.owner.app_id == *party.app_id;
            !same && slot.replicas.lock().contains_key(context.workload())
        };
        let apps = self.0.apps.read();
        let found = apps.values().flat_map(HashMap::values).find(elsewhere).cloned();
        drop(apps);
        if let Some(slot) = found {
            self.remove(&slot, context.workload());
        }
    }

    fn enter(&self, context: &Arc<AppContext>) -> Arc<Slot> {
        let party = context.party();
        let mut apps = self.0.apps.write();
        let of_namespace = apps.entry(party.namespace.clone()).or_default();
        let known = of_namespace.get(&party.app_id).cloned();
        let is_new = known.is_none();
        let slot = known.unwrap_or_else(|| {
            let owner = Owner {
                namespace: party.namespace.to_string(),
                app_id: party.app_id.to_string(),
            };
            let slot = Slot::new(owner);
            of_namespace.insert(party.app_id.clone(), slot.clone());
            slot
        });
        let mut replicas = slot.replicas.lock();
        match replicas.get_mut(context.workload()) {
            Some(replica) => replica.context = context.clone(),
            None => {
                let replica = Replica {
                    context: context.clone(),
                    ready: None,
                };
                replicas.insert(context.workload().clone(), replica);
            }
        }
        drop(replicas);
        // Not before: components are opened as one of its workloads.
        if is_new {
            tokio::spawn(open::run(self.clone(), slot.clone()));
            tokio::spawn(consume::run(self.clone(), slot.clone()));
        }
        slot
    }

    /// A workload of the app listens: it is asked what it subscribes to, and events reach it. One without
    /// a port takes none.
    pub fn app_ready(&self, context: &Arc<AppContext>, endpoint: &Arc<Endpoint>) {
        let listens = matches!(endpoint.place(), Place::Local { app_port } if *app_port != 0);
        if context.party().app_id.is_empty() || !listens {
            return;
        }
        let slot = self.enter(context);
        if let Some(replica) = slot.replicas.lock().get_mut(context.workload()) {
            replica.ready = Some(endpoint.clone());
        }
        slot.readied.send_modify(|n| *n += 1);
    }

    /// A workload is gone. With the last one of an app its components are closed.
    pub fn app_gone(&self, workload: &str) {
        let has = |slot: &&Arc<Slot>| slot.replicas.lock().contains_key(workload);
        let apps = self.0.apps.read();
        let found = apps.values().flat_map(HashMap::values).find(has).cloned();
        drop(apps);
        if let Some(slot) = found {
            self.remove(&slot, workload);
        }
    }

    fn remove(&self, slot: &Arc<Slot>, workload: &str) {
        let mut apps = self.0.apps.write();
        let last = {
            let mut replicas = slot.replicas.lock();
            replicas.remove(workload);
            replicas.is_empty()
        };
        if last {
            slot.gone.cancel();
            slot.watches.clear();
            if let Some(of_namespace) = apps.get_mut(slot.owner.namespace.as_str()) {
                of_namespace.remove(slot.owner.app_id.as_str());
                if of_namespace.is_empty() {
                    apps.remove(slot.owner.namespace.as_str());
                }
            }
        }
        drop(apps);
        slot.readied.send_modify(|n| *n += 1);
    }

    fn slot(&self, app: &AppContext) -> Option<Arc<Slot>> {
        let party = app.party();
        let apps = self.0.apps.read();
        apps.get(&*party.namespace)?.get(&*party.app_id).cloned()
    }

    /// What an app has; nothing before [`Blocks::app_here`].
    pub(crate) fn of(&self, app: &AppContext) -> Arc<AppBlocks> {
        self.slot(app)
            .map(|slot| slot.view.load_full())
            .unwrap_or_default()
    }

    /// What an app is subscribed to.
    pub(crate) fn subscriptions(&self, app: &AppContext) -> Vec<Arc<Subscription>> {
        let Some(slot) = self.slot(app) else {
            return Vec::new();
        };
        let mut all = slot.subscribed.load_full().to_vec();
        all.extend(slot.streams.lock().list());
        all
    }

    pub(crate) fn budget(&self, app: &AppContext) -> Budget {
        self.slot(app).map(|slot| slot.budget.clone()).unwrap_or_default()
    }

    pub(crate) fn flows(&self) -> FlowLog {
        self.0.surroundings.flows.clone()
    }

    /// What drivers get of an app's own.
    fn home_of(&self, slot: &Arc<Slot>) -> Home {
        let owner = &slot.owner;
        let replicas = slot.replicas.lock();
        let environment = replicas
            .values()
            .next()
            .map(|r| r.context.settings().environment.clone());
        Home {
            files: self.0.files.join(&owner.namespace).join(&owner.app_id),
            environment: environment.unwrap_or_default(),
            net: Net::new(net::AppNet::new(slot, &self.0.surroundings)),
        }
    }
}

fn problem_of(kind: &'static str, namespace: &str, name: &str, problem: String) -> BlockProblem {
    BlockProblem {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        problem,
    }
}

impl Slot {
    fn new(owner: Owner) -> Arc<Self> {
        Arc::new(Self {
            owner,
            view: ArcSwap::default(),
            problems: ArcSwap::default(),
            subscribed: ArcSwap::default(),
            streams: Mutex::default(),
            // One is wanted from the start, so that somebody waits for it to be opened.
            wanted: watch::Sender::new(1),
            opened: watch::Sender::new(0),
            readied: watch::Sender::new(0),
            replicas: Mutex::default(),
            watches: Default::default(),
            deliveries: Arc::new(Semaphore::new(MAX_DELIVERIES)),
            budget: Budget::default(),
            gone: CancellationToken::new(),
        })
    }
}
