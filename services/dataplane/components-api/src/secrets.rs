//! Secret stores.

use futures::future::BoxFuture;
use std::collections::BTreeMap;

/// What a secret holds: values by their keys. Most stores have one, under the secret's own name.
pub type Secret = BTreeMap<String, String>;

/// What a store can do beyond one value per secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretFeature {
    /// A secret holds several values.
    MultipleValues,
}

impl SecretFeature {
    /// As Dapr's metadata names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MultipleValues => "MULTIPLE_KEY_VALUES_PER_SECRET",
        }
    }
}

/// Why there is no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The store has none of this name.
    #[error("secret {0} not found")]
    NotFound(String),
    /// The store could not.
    #[error("{0}")]
    Failed(String),
}

/// A secret store, opened for one app. Which of its secrets the app may see is not asked here.
pub trait SecretStore: Send + Sync + 'static {
    /// What it can do.
    fn features(&self) -> &'static [SecretFeature];

    /// One secret.
    fn get(
        &self,
        name: String,
        metadata: Vec<(String, String)>,
    ) -> BoxFuture<'_, Result<Secret, SecretError>>;

    /// All of them, by name.
    fn bulk(
        &self,
        metadata: Vec<(String, String)>,
    ) -> BoxFuture<'_, Result<BTreeMap<String, Secret>, SecretError>>;
}
