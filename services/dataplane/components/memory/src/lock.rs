//! `lock.in-memory`: between the apps of a namespace on this node.

use crate::shared::Shared;
use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::Instant;
use weft_components_api::{
    Block, Component, Driver, InitError, Instance, LockError, LockStore, Schema, Unlocked,
};

/// Locks of one component that are held at once.
const MAX_LOCKS: usize = 100_000;

/// The driver.
#[derive(Default)]
pub struct MemoryLock {
    stores: Shared<Locks>,
}

impl MemoryLock {
    /// Without any lock yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Driver for MemoryLock {
    fn block(&self) -> Block {
        Block::Lock
    }

    fn kind(&self) -> &'static str {
        "lock.in-memory"
    }

    fn schema(&self) -> &'static Schema {
        &Schema { fields: &[] }
    }

    fn open(&self, instance: Instance) -> BoxFuture<'_, Result<Component, InitError>> {
        let store = Store(self.stores.of(&instance));
        async move { Ok(Component::Lock(Arc::new(store))) }.boxed()
    }
}

/// By resource: who has it, and until when.
#[derive(Default)]
struct Locks(Mutex<HashMap<String, (String, Instant)>>);

struct Store(Arc<Locks>);

impl Store {
    fn lock(&self, resource: String, owner: String, expiry: Duration) -> Result<bool, LockError> {
        let now = Instant::now();
        let mut held = self.0.0.lock();
        if held.get(&resource).is_some_and(|(_, until)| *until > now) {
            return Ok(false);
        }
        if held.len() >= MAX_LOCKS {
            held.retain(|_, (_, until)| *until > now);
        }
        if held.len() >= MAX_LOCKS {
            return Err(LockError(format!("{MAX_LOCKS} locks are held already")));
        }
        let until = now.checked_add(expiry);
        let until = until.ok_or_else(|| LockError("the expiry is too far away".into()))?;
        held.insert(resource, (owner, until));
        Ok(true)
    }

    fn free(&self, resource: &str, owner: &str) -> Unlocked {
        let mut held = self.0.0.lock();
        match held.get(resource) {
            Some((_, until)) if *until <= Instant::now() => {
                held.remove(resource);
                Unlocked::NotThere
            }
            None => Unlocked::NotThere,
            Some((holder, _)) if holder != owner => Unlocked::OfOthers,
            Some(_) => {
                held.remove(resource);
                Unlocked::Success
            }
        }
    }
}

impl LockStore for Store {
    fn try_lock(
        &self,
        resource: String,
        owner: String,
        expiry: Duration,
    ) -> BoxFuture<'_, Result<bool, LockError>> {
        async move { self.lock(resource, owner, expiry) }.boxed()
    }

    fn unlock(&self, resource: String, owner: String) -> BoxFuture<'_, Result<Unlocked, LockError>> {
        async move { Ok(self.free(&resource, &owner)) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_components_conformance::{instance, lock};

    #[tokio::test]
    async fn conforms() {
        let driver = MemoryLock::new();
        let shown = lock::conforms(|| async {
            match driver.open(instance("locks", &[])).await {
                Ok(Component::Lock(store)) => store,
                other => panic!("{other:?}"),
            }
        })
        .await;
        weft_components_conformance::table::told("lock.in-memory", &shown);
    }
}
