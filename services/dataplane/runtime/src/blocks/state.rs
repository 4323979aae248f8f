//! State, whatever API it is asked for by.

use super::{
    BlockError, Blocks,
    app::{AppBlocks, State},
    record::{Record, failure},
};
use crate::AppContext;
use std::sync::Arc;
use weft_components_api::{
    Concurrency, DeleteRequest, GetRequest, Item, Operation, SetRequest, StateCapability, StateError,
    time::rfc3339,
};
use weft_flows::Kind;

/// Keys of one request.
const MAX_KEYS: usize = 10_000;

/// One app at one of its stores, in one call.
pub(crate) struct StateCall<'a> {
    blocks: &'a Blocks,
    app: &'a AppContext,
    state: Arc<State>,
    trace_id: [u8; 16],
    http: bool,
}

/// What an app asks for, before its key is the store's.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Write {
    pub key: String,
    pub value: bytes::Bytes,
    pub etag: Option<String>,
    pub concurrency: String,
    pub consistency: String,
    pub metadata: Vec<(String, String)>,
}

/// One part of a transaction.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WriteOperation {
    Upsert(Write),
    Delete(Write),
}

/// The store of a name.
pub(crate) fn store(blocks: &AppBlocks, name: &str, app_id: &str) -> Result<Arc<State>, BlockError> {
    if blocks.states.is_empty() {
        return Err(BlockError::state_not_configured(name, app_id));
    }
    let found = blocks.states.get(name).cloned();
    found.ok_or_else(|| BlockError::state_not_found(name, app_id))
}

/// What comes with a value.
pub(crate) fn item_metadata(item: &Item) -> Option<(&'static str, String)> {
    Some(("ttlExpireTime", rfc3339(item.expires?)))
}

fn check(write: &Write) -> Result<Concurrency, StateError> {
    if !matches!(write.consistency.as_str(), "" | "strong" | "eventual") {
        let text = format!("unrecognized consistency model '{}'", write.consistency);
        return Err(StateError::Invalid(text));
    }
    match write.concurrency.as_str() {
        "" | "last-write" => Ok(Concurrency::LastWrite),
        "first-write" => Ok(Concurrency::FirstWrite),
        other => Err(StateError::Invalid(format!(
            "unrecognized concurrency model '{other}'"
        ))),
    }
}

impl<'a> StateCall<'a> {
    /// `http`: by which of the two APIs it is asked.
    pub fn new(
        blocks: &'a Blocks,
        app: &'a AppContext,
        name: &str,
        trace_id: [u8; 16],
        http: bool,
    ) -> Result<Self, BlockError> {
        let state = store(&blocks.of(app), name, &app.party().app_id)?;
        Ok(Self {
            blocks,
            app,
            state,
            trace_id,
            http,
        })
    }

    fn key(&self, key: &str) -> Result<String, BlockError> {
        let with = self.state.prefix.add(key);
        with.ok_or_else(|| BlockError::illegal_key(&self.state.name, key, self.http))
    }

    async fn recorded<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, BlockError>>,
    ) -> Result<T, BlockError> {
        let (party, name) = (&self.state.party, &self.state.name);
        let record = Record::call(Kind::State, self.app.party(), self.app.proof(), party, what, name);
        let done = work.await;
        let status = done.as_ref().map_or_else(|e| e.status().as_u16(), |_| 200);
        let record = record.traced(self.trace_id);
        record.end(&self.blocks.flows(), status, failure(status));
        done
    }

    /// One value.
    pub async fn get(&self, key: &str, metadata: Vec<(String, String)>) -> Result<Option<Item>, BlockError> {
        let request = GetRequest {
            key: self.key(key)?,
            metadata,
        };
        let get = async {
            let got = self.state.store.get(request).await;
            got.map_err(|e| BlockError::state_get(&self.state.name, key, &e))
        };
        self.recorded("get", get).await
    }

    /// Several values, in the order asked for.
    pub async fn bulk_get(
        &self,
        keys: &[String],
        parallelism: usize,
        metadata: &[(String, String)],
    ) -> Result<Vec<Result<Option<Item>, StateError>>, BlockError> {
        bounded(keys.len())?;
        let request = |key: &String| {
            Ok(GetRequest {
                key: self.key(key)?,
                metadata: metadata.to_vec(),
            })
        };
        let requests = keys.iter().map(request).collect::<Result<Vec<_>, BlockError>>()?;
        let get = async { Ok(self.state.store.bulk_get(requests, parallelism).await) };
        self.recorded("bulk-get", get).await
    }

    fn set_request(&self, write: Write) -> Result<Result<SetRequest, StateError>, BlockError> {
        let key = self.key(&write.key)?;
        Ok(check(&write).map(|concurrency| SetRequest {
            key,
            value: write.value,
            etag: write.etag,
            concurrency,
            metadata: write.metadata,
        }))
    }

    fn delete_request(&self, write: Write) -> Result<Result<DeleteRequest, StateError>, BlockError> {
        let key = self.key(&write.key)?;
        Ok(check(&write).map(|concurrency| DeleteRequest {
            key,
            etag: write.etag,
            concurrency,
            metadata: write.metadata,
        }))
    }

    /// Writes values, each for itself.
    pub async fn save(&self, writes: Vec<Write>) -> Result<(), BlockError> {
        bounded(writes.len())?;
        let requests = writes.into_iter().map(|write| self.set_request(write));
        let requests = requests.collect::<Result<Vec<_>, BlockError>>()?;
        let single = requests.len() == 1;
        let failed = |e: StateError| BlockError::state_save(&self.state.name, &e);
        let save = async {
            let mut done = Vec::with_capacity(requests.len());
            let mut sound = Vec::new();
            for request in requests {
                match request {
                    Ok(request) => sound.push(request),
                    Err(e) => done.push(Err(e)),
                }
            }
            if single && let Some(request) = sound.pop() {
                return self.state.store.set(request).await.map_err(failed);
            }
            done.extend(self.state.store.bulk_set(sound).await);
            together(done, single).map_err(failed)
        };
        self.recorded("set", save).await
    }

    /// Removes one value.
    pub async fn delete(&self, write: Write) -> Result<(), BlockError> {
        let key = write.key.clone();
        let request = self.delete_request(write)?;
        let delete = async {
            let done = match request {
                Ok(request) => self.state.store.delete(request).await,
                Err(e) => Err(e),
            };
            done.map_err(|e| BlockError::state_delete(&key, &e))
        };
        self.recorded("delete", delete).await
    }

    /// Removes several values, each for itself.
    pub async fn delete_bulk(&self, writes: Vec<Write>) -> Result<(), BlockError> {
        bounded(writes.len())?;
        let requests = writes.into_iter().map(|write| self.delete_request(write));
        let requests = requests.collect::<Result<Vec<_>, BlockError>>()?;
        let single = requests.len() == 1;
        let delete = async {
            let mut done = Vec::with_capacity(requests.len());
            let mut sound = Vec::new();
            for request in requests {
                match request {
                    Ok(request) => sound.push(request),
                    Err(e) => done.push(Err(e)),
                }
            }
            done.extend(self.state.store.bulk_delete(sound).await);
            together(done, single).map_err(|e| BlockError::state_delete_bulk(&self.state.name, &e))
        };
        self.recorded("bulk-delete", delete).await
    }

    /// Whether the store can do all or nothing.
    pub fn needs_transactions(&self) -> Result<(), BlockError> {
        let can = self.state.store.capabilities();
        match can.contains(&StateCapability::Transactional) {
            true => Ok(()),
            false => Err(BlockError::transactions_not_supported(&self.state.name)),
        }
    }

    /// All or nothing.
    pub async fn transact(&self, operations: Vec<WriteOperation>) -> Result<(), BlockError> {
        bounded(operations.len())?;
        let prepared = operations.into_iter().map(|operation| {
            Ok(match operation {
                WriteOperation::Upsert(write) => self.set_request(write)?.map(Operation::Upsert),
                WriteOperation::Delete(write) => self.delete_request(write)?.map(Operation::Delete),
            })
        });
        let prepared = prepared.collect::<Result<Vec<_>, BlockError>>()?;
        if let Some(most) = self.state.store.max_transaction()
            && prepared.len() > most
        {
            let error = BlockError::too_many_operations(&self.state.name, prepared.len(), most);
            return Err(error);
        }
        let transact = async {
            let sound: Result<Vec<Operation>, StateError> = prepared.into_iter().collect();
            let done = match sound {
                Ok(operations) => self.state.store.transact(operations).await,
                Err(e) => Err(e),
            };
            done.map_err(|e| BlockError::state_transaction(&e))
        };
        self.recorded("transaction", transact).await
    }

    /// No store can be queried yet.
    pub fn query(&self) -> BlockError {
        BlockError::query_not_supported(&self.state.name)
    }
}

fn bounded(count: usize) -> Result<(), BlockError> {
    match count > MAX_KEYS {
        true => Err(BlockError::malformed(format!(
            "more than {MAX_KEYS} keys in one request"
        ))),
        false => Ok(()),
    }
}

/// One error of many, as Dapr joins them: with an ETag that does not fit among them it is one of ETags.
fn together(done: Vec<Result<(), StateError>>, single: bool) -> Result<(), StateError> {
    let mut errors: Vec<StateError> = done.into_iter().filter_map(Result::err).collect();
    if errors.is_empty() {
        return Ok(());
    }
    if single {
        return Err(errors.swap_remove(0));
    }
    let is_etag = |e: &StateError| matches!(e, StateError::EtagMismatch(_) | StateError::EtagInvalid(_));
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let text = texts.join("\n");
    if errors.iter().all(is_etag) {
        let invalid = errors.iter().any(|e| matches!(e, StateError::EtagInvalid(_)));
        return Err(match invalid {
            true => StateError::EtagInvalid(text),
            false => StateError::EtagMismatch(text),
        });
    }
    match errors.iter().position(is_etag) {
        Some(at) => Err(errors.swap_remove(at)),
        None => Err(StateError::Failed(text)),
    }
}
