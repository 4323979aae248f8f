//! `state.in-memory`.

use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::SystemTime};
use weft_components_api::{
    Block, Component, Concurrency, DeleteRequest, Driver, GetRequest, InitError, Instance, Item, Operation,
    Schema, SetRequest, StateCapability, StateError, StateStore, state_ttl,
};

/// What one app may keep.
#[derive(Debug, Clone)]
pub struct StateLimits {
    /// Keys.
    pub keys: usize,
    /// Bytes of keys and values.
    pub bytes: usize,
}

impl Default for StateLimits {
    fn default() -> Self {
        Self {
            keys: 100_000,
            bytes: 64 * 1024 * 1024,
        }
    }
}

/// The driver.
#[derive(Debug, Clone, Default)]
pub struct MemoryState {
    limits: StateLimits,
}

impl MemoryState {
    /// With these limits for each app.
    pub fn new(limits: StateLimits) -> Self {
        Self { limits }
    }
}

impl Driver for MemoryState {
    fn block(&self) -> Block {
        Block::State
    }

    fn kind(&self) -> &'static str {
        "state.in-memory"
    }

    fn schema(&self) -> &'static Schema {
        &Schema { fields: &[] }
    }

    fn open(&self, _: Instance) -> BoxFuture<'_, Result<Component, InitError>> {
        let store = Store {
            limits: self.limits.clone(),
            kept: Mutex::default(),
        };
        async move { Ok(Component::State(Arc::new(store))) }.boxed()
    }
}

struct Store {
    limits: StateLimits,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    items: HashMap<String, Item>,
    bytes: usize,
}

/// What a write makes of a key.
type Change = (String, Option<Item>);

fn size(key: &str, item: &Item) -> usize {
    key.len() + item.value.len()
}

fn is_over(item: &Item, now: SystemTime) -> bool {
    item.expires.is_some_and(|end| end <= now)
}

impl Kept {
    fn get(&mut self, key: &str, now: SystemTime) -> Option<&Item> {
        if self.items.get(key).is_some_and(|item| is_over(item, now)) {
            self.put(key, None);
        }
        self.items.get(key)
    }

    fn put(&mut self, key: &str, item: Option<Item>) {
        let old = match item {
            Some(item) => {
                self.bytes += size(key, &item);
                self.items.insert(key.to_owned(), item)
            }
            None => self.items.remove(key),
        };
        if let Some(old) = old {
            self.bytes -= size(key, &old);
        }
    }

    /// Whether a write may be made on what is there. Texts as Dapr's own driver has them.
    fn check(
        &mut self,
        key: &str,
        etag: Option<&str>,
        concurrency: Concurrency,
        now: SystemTime,
    ) -> Result<(), StateError> {
        let there = self.get(key, now);
        let mismatch = |text: String| Err(StateError::EtagMismatch(text));
        match (etag.filter(|e| !e.is_empty()), there) {
            (None, Some(_)) if concurrency == Concurrency::FirstWrite => {
                mismatch("item already exists and no etag was passed".into())
            }
            (None, _) => Ok(()),
            (Some(_), None) => mismatch(format!("state not exist or expired for key={key}")),
            (Some(wanted), Some(item)) if item.etag.as_deref() != Some(wanted) => {
                let current = item.etag.as_deref().unwrap_or("nil");
                mismatch(format!(
                    "state etag not match for key={key}: current={current}, expect={wanted}"
                ))
            }
            (Some(_), Some(_)) => Ok(()),
        }
    }

    fn sweep(&mut self, now: SystemTime) {
        let over: Vec<String> = self
            .items
            .iter()
            .filter(|(_, item)| is_over(item, now))
            .map(|(key, _)| key.clone())
            .collect();
        for key in over {
            self.put(&key, None);
        }
    }
}

impl Store {
    /// Makes all changes or none.
    fn write(&self, operations: Vec<Operation>) -> Result<(), StateError> {
        let now = SystemTime::now();
        let mut kept = self.kept.lock();
        let mut changes: Vec<Change> = Vec::with_capacity(operations.len());
        for operation in operations {
            match operation {
                Operation::Upsert(set) => {
                    let item = Item {
                        expires: state_ttl(&set.metadata)?.map(|ttl| now + ttl),
                        value: set.value,
                        etag: Some(uuid::Uuid::new_v4().to_string()),
                    };
                    kept.check(&set.key, set.etag.as_deref(), set.concurrency, now)?;
                    changes.push((set.key, Some(item)));
                }
                Operation::Delete(delete) => {
                    kept.check(&delete.key, delete.etag.as_deref(), delete.concurrency, now)?;
                    changes.push((delete.key, None));
                }
            }
        }
        self.has_room(&mut kept, &changes, now)?;
        for (key, item) in changes {
            kept.put(&key, item);
        }
        Ok(())
    }

    fn has_room(&self, kept: &mut Kept, changes: &[Change], now: SystemTime) -> Result<(), StateError> {
        let added = |kept: &Kept| {
            let new = changes
                .iter()
                .filter_map(|(key, item)| Some((key, item.as_ref()?)));
            let bytes: usize = new.clone().map(|(key, item)| size(key, item)).sum();
            let keys = new.filter(|(key, _)| !kept.items.contains_key(*key)).count();
            let freed = changes.iter().filter_map(|(key, _)| {
                let old = kept.items.get(key)?;
                Some(size(key, old))
            });
            let freed: usize = freed.sum();
            (
                kept.items.len() + keys,
                (kept.bytes + bytes).saturating_sub(freed),
            )
        };
        let fits = |(keys, bytes): (usize, usize)| keys <= self.limits.keys && bytes <= self.limits.bytes;
        if fits(added(kept)) {
            return Ok(());
        }
        kept.sweep(now);
        if fits(added(kept)) {
            return Ok(());
        }
        let StateLimits { keys, bytes } = self.limits;
        Err(StateError::Full(format!(
            "the store is full: an app may keep {keys} keys and {bytes} bytes in memory"
        )))
    }
}

impl StateStore for Store {
    fn capabilities(&self) -> &'static [StateCapability] {
        &[
            StateCapability::Etag,
            StateCapability::Transactional,
            StateCapability::Ttl,
        ]
    }

    fn get(&self, request: GetRequest) -> BoxFuture<'_, Result<Option<Item>, StateError>> {
        async move {
            let item = self.kept.lock().get(&request.key, SystemTime::now()).cloned();
            Ok(item)
        }
        .boxed()
    }

    fn set(&self, request: SetRequest) -> BoxFuture<'_, Result<(), StateError>> {
        async move { self.write(vec![Operation::Upsert(request)]) }.boxed()
    }

    fn delete(&self, request: DeleteRequest) -> BoxFuture<'_, Result<(), StateError>> {
        async move { self.write(vec![Operation::Delete(request)]) }.boxed()
    }

    fn transact(&self, operations: Vec<Operation>) -> BoxFuture<'_, Result<(), StateError>> {
        async move { self.write(operations) }.boxed()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_components_conformance::{instance, state};

    async fn open(limits: StateLimits) -> Arc<dyn StateStore> {
        match MemoryState::new(limits).open(instance("store", &[])).await {
            Ok(Component::State(store)) => store,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn conforms() {
        let shown = state::conforms(|| open(StateLimits::default())).await;
        weft_components_conformance::table::told("state.in-memory", &shown);
    }

    #[tokio::test]
    async fn a_full_store_says_so_and_takes_what_fits() {
        let store = open(StateLimits { keys: 2, bytes: 100 }).await;
        let set = |key: &str, len: usize| {
            store.set(SetRequest {
                key: key.into(),
                value: vec![0; len].into(),
                ..SetRequest::default()
            })
        };
        assert!(set("a", 40).await.is_ok() && set("b", 40).await.is_ok());
        assert!(matches!(set("c", 1).await, Err(StateError::Full(_))));
        // In the place of what is there.
        assert!(set("a", 59).await.is_err());
        assert!(set("a", 58).await.is_ok());
        let delete = DeleteRequest {
            key: "b".into(),
            ..DeleteRequest::default()
        };
        assert!(store.delete(delete).await.is_ok());
        assert!(set("c", 1).await.is_ok());
    }
}
