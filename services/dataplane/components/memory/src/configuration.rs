//! `configuration.in-memory`: what the manifest says, and who is told when it is changed.

use crate::shared::Shared;
use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::{sync::watch, task::AbortHandle};
use weft_components_api::{
    Block, Component, ConfigurationError, ConfigurationHandler, ConfigurationItem, ConfigurationItems,
    ConfigurationStore, Driver, Field, Guard, InitError, Instance, Metadata, Schema, SpecError,
};

/// The driver.
#[derive(Default)]
pub struct MemoryConfiguration {
    stores: Shared<Items>,
}

impl MemoryConfiguration {
    /// Without any store yet.
    pub fn new() -> Self {
        Self::default()
    }
}

/// The metadata that has the items: a JSON object.
const ITEMS: &str = "items";

impl Driver for MemoryConfiguration {
    fn block(&self) -> Block {
        Block::Configuration
    }

    fn kind(&self) -> &'static str {
        "configuration.in-memory"
    }

    fn schema(&self) -> &'static Schema {
        const SCHEMA: &Schema = &Schema {
            fields: &[Field::required(ITEMS)],
        };
        SCHEMA
    }

    fn open(&self, instance: Instance) -> BoxFuture<'_, Result<Component, InitError>> {
        async move {
            let items = read(instance.metadata.get(ITEMS).unwrap_or_default());
            let items = items.map_err(|e| SpecError::from(Metadata::wrong(ITEMS, e)))?;
            let store = self.stores.of(&instance);
            store.0.lock().send_if_modified(|now| {
                let changed = **now != items;
                *now = Arc::new(items);
                changed
            });
            Ok(Component::Configuration(store))
        }
        .boxed()
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Given {
    Value(String),
    Item(Item),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    value: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

/// `{"a": "1", "b": {"value": "2", "version": "v1"}}`
fn read(text: &str) -> Result<ConfigurationItems, String> {
    let given: BTreeMap<String, Given> = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let item = |given| match given {
        Given::Value(value) => ConfigurationItem {
            value,
            ..ConfigurationItem::default()
        },
        Given::Item(item) => ConfigurationItem {
            value: item.value,
            version: item.version,
            metadata: item.metadata,
        },
    };
    Ok(given.into_iter().map(|(key, given)| (key, item(given))).collect())
}

/// The same for all who have it open, and for who watches it while it is opened anew.
struct Items(Mutex<watch::Sender<Arc<ConfigurationItems>>>);

impl Default for Items {
    fn default() -> Self {
        Self(Mutex::new(watch::Sender::default()))
    }
}

/// What is otherwise now, of these keys; what is gone is there without a value.
fn changes(
    old: &ConfigurationItems,
    new: &ConfigurationItems,
    keys: &BTreeSet<String>,
) -> ConfigurationItems {
    let all: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let wanted = all
        .into_iter()
        .filter(|key| keys.is_empty() || keys.contains(*key));
    let changed = wanted.filter(|key| old.get(*key) != new.get(*key));
    changed
        .map(|key| (key.clone(), new.get(key).cloned().unwrap_or_default()))
        .collect()
}

/// Ends when it is dropped.
struct Telling(AbortHandle);

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ConfigurationStore for Items {
    fn get(
        &self,
        keys: Vec<String>,
        _: Vec<(String, String)>,
    ) -> BoxFuture<'_, Result<ConfigurationItems, ConfigurationError>> {
        let now = self.0.lock().borrow().clone();
        async move {
            if keys.is_empty() {
                return Ok((*now).clone());
            }
            let found = keys.into_iter().filter_map(|key| {
                let item = now.get(&key)?.clone();
                Some((key, item))
            });
            Ok(found.collect())
        }
        .boxed()
    }

    fn watch(
        &self,
        keys: Vec<String>,
        _: Vec<(String, String)>,
        handler: Arc<dyn ConfigurationHandler>,
    ) -> BoxFuture<'_, Result<Guard, ConfigurationError>> {
        let keys: BTreeSet<String> = keys.into_iter().collect();
        let mut items = self.0.lock().subscribe();
        async move {
            let mut known = items.borrow_and_update().clone();
            let telling = tokio::spawn(async move {
                while items.changed().await.is_ok() {
                    let now = items.borrow_and_update().clone();
                    let changed = changes(&known, &now, &keys);
                    if !changed.is_empty() {
                        handler.changed(changed).await;
                    }
                    known = now;
                }
            });
            Ok(Guard::new(Telling(telling.abort_handle())))
        }
        .boxed()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_components_conformance::{configuration, instance};

    async fn open(driver: &MemoryConfiguration, items: &str) -> Arc<dyn ConfigurationStore> {
        match driver.open(instance("conf", &[(ITEMS, items)])).await {
            Ok(Component::Configuration(store)) => store,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn conforms() {
        let driver = MemoryConfiguration::new();
        let shown = configuration::conforms(async |items| {
            let all: serde_json::Map<_, _> = items
                .iter()
                .map(|(key, (value, version))| {
                    (
                        (*key).to_owned(),
                        serde_json::json!({"value": value, "version": version}),
                    )
                })
                .collect();
            open(&driver, &serde_json::Value::Object(all).to_string()).await
        })
        .await;
        weft_components_conformance::table::told("configuration.in-memory", &shown);
    }

    #[tokio::test]
    async fn what_is_no_item_is_named() {
        let driver = MemoryConfiguration::new();
        for (items, said) in [
            ("[]", "\"items\""),
            (r#"{"a": 5}"#, "\"items\""),
            (r#"{"a": {"valu": ""}}"#, "\"items\""),
        ] {
            let error = driver
                .open(instance("conf", &[(ITEMS, items)]))
                .await
                .unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
        let store = open(&driver, r#"{"a": "1"}"#).await;
        assert_eq!(store.get(Vec::new(), Vec::new()).await.unwrap()["a"].value, "1");
    }
}
