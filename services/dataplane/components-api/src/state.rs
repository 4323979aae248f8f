//! State stores.

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self},
};
use std::time::{Duration, SystemTime};

/// Bulk operations that are made of single ones have so many of them under way at most.
const PARALLEL: usize = 16;

/// What a store can do beyond get, set and delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateCapability {
    /// Values have a version that a write can demand.
    Etag,
    /// Several operations are done all or none.
    Transactional,
    /// Values end by themselves.
    Ttl,
}

impl StateCapability {
    /// As Dapr's metadata names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Etag => "ETAG",
            Self::Transactional => "TRANSACTIONAL",
            Self::Ttl => "TTL",
        }
    }
}

/// Which write wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Concurrency {
    /// The last one; also what is meant when nothing is said.
    #[default]
    LastWrite,
    /// The first one: without an ETag only what does not exist may be written.
    FirstWrite,
}

/// A value as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The bytes.
    pub value: Bytes,
    /// Its version.
    pub etag: Option<String>,
    /// When it ends by itself.
    pub expires: Option<SystemTime>,
}

/// Reads one key.
#[derive(Debug, Clone, Default)]
pub struct GetRequest {
    /// The key, with its prefix.
    pub key: String,
    /// For the driver.
    pub metadata: Vec<(String, String)>,
}

/// Writes one key.
#[derive(Debug, Clone, Default)]
pub struct SetRequest {
    /// The key, with its prefix.
    pub key: String,
    /// What is written.
    pub value: Bytes,
    /// The version that must be there now. An empty one is none.
    pub etag: Option<String>,
    /// Which write wins.
    pub concurrency: Concurrency,
    /// For the driver: `ttlInSeconds` among them.
    pub metadata: Vec<(String, String)>,
}

/// Removes one key.
#[derive(Debug, Clone, Default)]
pub struct DeleteRequest {
    /// The key, with its prefix.
    pub key: String,
    /// The version that must be there now. An empty one is none.
    pub etag: Option<String>,
    /// Which write wins.
    pub concurrency: Concurrency,
    /// For the driver.
    pub metadata: Vec<(String, String)>,
}

/// One part of a transaction.
#[derive(Debug, Clone)]
pub enum Operation {
    /// Write.
    Upsert(SetRequest),
    /// Remove.
    Delete(DeleteRequest),
}

/// Why an operation was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Another version is there than the one demanded.
    #[error("possible etag mismatch. error from state store: {0}")]
    EtagMismatch(String),
    /// The store can not read this ETag.
    #[error("invalid etag value: {0}")]
    EtagInvalid(String),
    /// Something in the request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The store's bound is reached.
    #[error("{0}")]
    Full(String),
    /// The store could not.
    #[error("{0}")]
    Failed(String),
}

/// A state store, opened for one app.
pub trait StateStore: Send + Sync + 'static {
    /// What it can do.
    fn capabilities(&self) -> &'static [StateCapability];

    /// The value of a key; `None` when there is none.
    fn get(&self, request: GetRequest) -> BoxFuture<'_, Result<Option<Item>, StateError>>;

    /// Writes a key.
    fn set(&self, request: SetRequest) -> BoxFuture<'_, Result<(), StateError>>;

    /// Removes a key; one that does not exist is removed all the same.
    fn delete(&self, request: DeleteRequest) -> BoxFuture<'_, Result<(), StateError>>;

    /// All of them or none. Only asked where [`StateCapability::Transactional`] is declared.
    fn transact(&self, operations: Vec<Operation>) -> BoxFuture<'_, Result<(), StateError>> {
        let _ = operations;
        async { Err(StateError::Failed("transactions are not supported".into())) }.boxed()
    }

    /// Most operations of one transaction, where the store has a bound.
    fn max_transaction(&self) -> Option<usize> {
        None
    }

    /// Several keys, in the order asked for. `parallelism` 0: as many at a time as is good.
    fn bulk_get(
        &self,
        requests: Vec<GetRequest>,
        parallelism: usize,
    ) -> BoxFuture<'_, Vec<Result<Option<Item>, StateError>>> {
        let each = requests.into_iter().map(|request| self.get(request));
        stream::iter(each)
            .buffered(at_once(parallelism))
            .collect()
            .boxed()
    }

    /// Writes several keys, each for itself; the errors with the place of their request.
    fn bulk_set(&self, requests: Vec<SetRequest>) -> BoxFuture<'_, Vec<Result<(), StateError>>> {
        let each = requests.into_iter().map(|request| self.set(request));
        stream::iter(each).buffered(at_once(0)).collect().boxed()
    }

    /// Removes several keys, each for itself.
    fn bulk_delete(&self, requests: Vec<DeleteRequest>) -> BoxFuture<'_, Vec<Result<(), StateError>>> {
        let each = requests.into_iter().map(|request| self.delete(request));
        stream::iter(each).buffered(at_once(0)).collect().boxed()
    }
}

/// For how long a value stays, as metadata `ttlInSeconds` says; none, 0 and less are for ever.
pub fn state_ttl(metadata: &[(String, String)]) -> Result<Option<Duration>, StateError> {
    let given = metadata.iter().find(|(key, _)| key == "ttlInSeconds");
    let Some((_, text)) = given.filter(|(_, text)| !text.is_empty()) else {
        return Ok(None);
    };
    let seconds: i32 = text
        .parse()
        .map_err(|_| StateError::Invalid(format!("metadata ttlInSeconds: {text:?} is no whole number")))?;
    let seconds = u64::try_from(seconds).unwrap_or(0);
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

fn at_once(wished: usize) -> usize {
    match wished {
        0 => PARALLEL,
        n => n.min(PARALLEL),
    }
}
