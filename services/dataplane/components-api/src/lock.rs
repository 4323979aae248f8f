//! Lock stores.

use futures::future::BoxFuture;
use std::time::Duration;

/// What became of an unlocking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlocked {
    /// It is free.
    Success,
    /// Nobody held it.
    NotThere,
    /// Another owner holds it.
    OfOthers,
}

/// Why a store did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LockError(pub String);

/// A lock store, opened for one app.
pub trait LockStore: Send + Sync + 'static {
    /// Whether `owner` has the resource from now on, for so long. It is not waited for; who has it already
    /// does not get it again.
    fn try_lock(
        &self,
        resource: String,
        owner: String,
        expiry: Duration,
    ) -> BoxFuture<'_, Result<bool, LockError>>;

    /// Gives it back.
    fn unlock(&self, resource: String, owner: String) -> BoxFuture<'_, Result<Unlocked, LockError>>;
}
