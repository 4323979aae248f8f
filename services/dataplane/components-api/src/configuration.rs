//! Configuration stores.

use crate::Guard;
use futures::future::BoxFuture;
use std::{collections::BTreeMap, sync::Arc};

/// One item.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigurationItem {
    /// Its value.
    pub value: String,
    /// Its version; empty where the store keeps none.
    pub version: String,
    /// What comes beside it.
    pub metadata: BTreeMap<String, String>,
}

/// Items by their keys.
pub type ConfigurationItems = BTreeMap<String, ConfigurationItem>;

/// Why a store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigurationError {
    /// Something in the request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The store could not.
    #[error("{0}")]
    Failed(String),
}

/// Takes what changes.
pub trait ConfigurationHandler: Send + Sync + 'static {
    /// Takes changed items; one without a value is gone. The next come after the answer.
    fn changed(&self, items: ConfigurationItems) -> BoxFuture<'_, ()>;
}

/// A configuration store, opened for one app.
pub trait ConfigurationStore: Send + Sync + 'static {
    /// The items of these keys that are there; no keys: all items.
    fn get(
        &self,
        keys: Vec<String>,
        metadata: Vec<(String, String)>,
    ) -> BoxFuture<'_, Result<ConfigurationItems, ConfigurationError>>;

    /// From now on `handler` gets what changes of these keys (none: of all), until the guard is dropped.
    fn watch(
        &self,
        keys: Vec<String>,
        metadata: Vec<(String, String)>,
        handler: Arc<dyn ConfigurationHandler>,
    ) -> BoxFuture<'_, Result<Guard, ConfigurationError>>;
}
