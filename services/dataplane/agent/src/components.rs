//! Components, subscriptions and Configurations on their way from the policy service to the building blocks, and the
//! drivers that this agent has.

use crate::{agent::Shared, mesh::Mesh};
use parking_lot::Mutex;
use std::{collections::BTreeSet, path::Path, path::PathBuf, sync::Arc};
use tokio::sync::Notify;
use weft_components_api::{Driver, Drivers};
use weft_components_bindings::{Cron, LocalStorage};
use weft_components_memory::{MemoryConfiguration, MemoryLock, MemoryPubSub, MemoryState};
use weft_components_redis::{RedisConfiguration, RedisLock, RedisPubSub, RedisState};
use weft_components_secrets::{LocalEnv, LocalFile};
use weft_components_sql::{PostgresState, SqliteState};
use weft_drain::Watcher;
use weft_proto::weft::policy::v1::resource::Body;
use weft_runtime::{BlockProblem, Blocks};

/// A new driver is a line here.
pub fn drivers() -> Drivers {
    let drivers: Vec<Arc<dyn Driver>> = vec![
        Arc::new(MemoryState::default()),
        Arc::new(MemoryPubSub::new()),
        Arc::new(Cron),
        Arc::new(LocalStorage),
        Arc::new(LocalEnv),
        Arc::new(LocalFile),
        Arc::new(MemoryConfiguration::new()),
        Arc::new(MemoryLock::new()),
        Arc::new(RedisState),
        Arc::new(RedisPubSub),
        Arc::new(RedisConfiguration),
        Arc::new(RedisLock),
        Arc::new(SqliteState),
        Arc::new(PostgresState),
    ];
    Drivers::new(drivers)
}

/// The folder of apps' files: `apps`, beside the agent's own (`/var/lib/weft/apps`).
pub fn files(data_dir: &Path) -> PathBuf {
    data_dir.with_file_name("apps")
}

/// What changed and is not told yet. Clones share.
#[derive(Debug, Clone, Default)]
pub struct Changes(Arc<Pending>);

#[derive(Debug, Default)]
struct Pending {
    /// Kinds and names.
    changed: Mutex<BTreeSet<(String, String)>>,
    /// One at a time tells, so that who returns from it knows that all before was told.
    telling: Mutex<()>,
    more: Notify,
}

fn is_wanted(kind: &str) -> bool {
    matches!(kind, "component" | "subscription" | "configuration")
}

impl Changes {
    /// A resource came, changed or went. [`Changes::notify`] follows.
    pub fn resource(&self, kind: &str, name: &str) {
        if is_wanted(kind) {
            self.0.changed.lock().insert((kind.to_owned(), name.to_owned()));
        }
    }

    /// What was noted is in the mesh now.
    pub fn notify(&self) {
        if !self.0.changed.lock().is_empty() {
            self.0.more.notify_one();
        }
    }

    /// Tells all that changed, in the calling thread.
    pub fn tell(&self, mesh: &Mesh, blocks: &Blocks) {
        let _turn = self.0.telling.lock();
        let changed = std::mem::take(&mut *self.0.changed.lock());
        for (kind, name) in changed {
            if let Err(problem) = tell(mesh, blocks, &kind, &name) {
                tracing::error!(%problem, "a manifest can not be used");
            }
        }
    }
}

fn tell(mesh: &Mesh, blocks: &Blocks, kind: &str, name: &str) -> Result<(), BlockProblem> {
    let resource = mesh.sent(|sent| sent.other(kind, name).cloned());
    let body = match resource.as_ref().and_then(|r| r.body.as_ref()) {
        Some(Body::Component(object) | Body::Subscription(object) | Body::Configuration(object)) => {
            Some(object)
        }
        _ => None,
    };
    let manifest = body.map(|object| (object.scopes.as_slice(), object.json.as_slice()));
    let Some((namespace, name)) = name.split_once('/') else {
        return Ok(());
    };
    match kind {
        "component" => blocks.set_component(namespace, name, manifest),
        "configuration" => blocks.set_configuration(namespace, name, manifest.map(|(_, json)| json)),
        _ => blocks.set_subscription(namespace, name, manifest),
    }
}

/// Tells what changes, until the drain.
pub async fn follow(shared: Arc<Shared>, mut drain: Watcher) {
    loop {
        shared.tell_components();
        let changes = shared.view.mesh.components.clone();
        tokio::select! {
            () = changes.0.more.notified() => {}
            () = drain.draining() => return,
        }
    }
}
