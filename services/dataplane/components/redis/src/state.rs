//! `state.redis`: hashes with the fields `data`, `version` and `first-write`, as Dapr keeps them.
//!
//! Redis undoes nothing, so a write checks first and changes then, in one script: all of a transaction
//! or nothing of it.

use crate::{
    client::{Client, Error},
    settings::{COMMON, with},
};
use futures::{FutureExt, future::BoxFuture};
use redis::{Pipeline, Value};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use weft_components_api::{
    Block, Component, Concurrency, DeleteRequest, Driver, Field, GetRequest, InitError, Instance, Item,
    Metadata, Operation, Schema, SetRequest, SpecError, StateCapability, StateError, StateStore, state_ttl,
};

/// Of one transaction: the script holds the server for as long as it runs.
const MAX_OPERATIONS: usize = 1000;

/// For each key five arguments: what to do, the version that must be there, whether only the first write
/// counts, the seconds that it stays, its content. Answers 0, or which key is not as it must be.
const WRITE: &str = r"
local there = {}
for i = 1, #KEYS do
  local a = (i - 1) * 5
  there[i] = redis.call('TYPE', KEYS[i]).ok
  local version = ''
  if there[i] == 'hash' then version = redis.call('HGET', KEYS[i], 'version') or '' end
  if ARGV[a + 2] ~= '' then
    if version ~= ARGV[a + 2] then return {i, there[i], version} end
  elseif ARGV[a + 3] == '1' and there[i] ~= 'none' then
    return {i, there[i], version}
  end
end
for i = 1, #KEYS do
  local a = (i - 1) * 5
  if ARGV[a + 1] == 'delete' then
    redis.call('DEL', KEYS[i])
  else
    if there[i] ~= 'hash' and there[i] ~= 'none' then redis.call('DEL', KEYS[i]) end
    redis.call('HSET', KEYS[i], 'data', ARGV[a + 5])
    if ARGV[a + 3] == '1' then
      redis.call('HSET', KEYS[i], 'first-write', 0)
    else
      redis.call('HDEL', KEYS[i], 'first-write')
    end
    redis.call('HINCRBY', KEYS[i], 'version', 1)
    if tonumber(ARGV[a + 4]) > 0 then
      redis.call('EXPIRE', KEYS[i], ARGV[a + 4])
    else
      redis.call('PERSIST', KEYS[i])
    end
  end
end
return {0}";

/// The driver.
#[derive(Debug, Clone, Copy, Default)]
pub struct RedisState;

impl Driver for RedisState {
    fn block(&self) -> Block {
        Block::State
    }

    fn kind(&self) -> &'static str {
        "state.redis"
    }

    fn schema(&self) -> &'static Schema {
        const FIELDS: [Field; COMMON.len() + 1] = with(["ttlInSeconds"]);
        const SCHEMA: &Schema = &Schema { fields: &FIELDS };
        SCHEMA
    }

    fn open(&self, instance: Instance) -> BoxFuture<'_, Result<Component, InitError>> {
        async move {
            let default_ttl = instance
                .metadata
                .get("ttlInSeconds")
                .unwrap_or_default()
                .to_owned();
            let default_ttl = state_ttl(&[("ttlInSeconds".to_owned(), default_ttl)]);
            let default_ttl =
                default_ttl.map_err(|e| SpecError::from(Metadata::wrong("ttlInSeconds", e.to_string())))?;
            let client = Client::open(&instance).await?;
            Ok(Component::State(Arc::new(Store { client, default_ttl })))
        }
        .boxed()
    }
}

struct Store {
    client: Client,
    default_ttl: Option<Duration>,
}

struct Write {
    key: String,
    arguments: [Vec<u8>; 5],
}

fn failed(e: &Error) -> StateError {
    StateError::Failed(e.to_string())
}

/// A version is a number; what is none can not be there.
fn version(etag: Option<&str>) -> Result<Vec<u8>, StateError> {
    let Some(etag) = etag.filter(|etag| !etag.is_empty()) else {
        return Ok(Vec::new());
    };
    match etag.parse::<u64>() {
        Ok(_) => Ok(etag.as_bytes().to_vec()),
        Err(_) => Err(StateError::EtagInvalid(format!(
            "{etag:?} is no version of redis"
        ))),
    }
}

fn first(concurrency: Concurrency) -> Vec<u8> {
    match concurrency {
        Concurrency::FirstWrite => b"1".to_vec(),
        Concurrency::LastWrite => b"0".to_vec(),
    }
}

impl Store {
    fn prepare(&self, operation: Operation) -> Result<Write, StateError> {
        Ok(match operation {
            Operation::Upsert(set) => {
                let ttl = match set
                    .metadata
                    .iter()
                    .any(|(key, text)| key == "ttlInSeconds" && !text.is_empty())
                {
                    true => state_ttl(&set.metadata)?,
                    false => self.default_ttl,
                };
                let ttl = ttl.map_or(0, |ttl| ttl.as_secs());
                Write {
                    arguments: [
                        b"set".to_vec(),
                        version(set.etag.as_deref())?,
                        first(set.concurrency),
                        ttl.to_string().into_bytes(),
                        set.value.to_vec(),
                    ],
                    key: set.key,
                }
            }
            Operation::Delete(delete) => Write {
                arguments: [
                    b"delete".to_vec(),
                    version(delete.etag.as_deref())?,
                    first(delete.concurrency),
                    b"0".to_vec(),
                    Vec::new(),
                ],
                key: delete.key,
            },
        })
    }

    async fn write(&self, operations: Vec<Operation>) -> Result<(), StateError> {
        let writes = operations.into_iter().map(|operation| self.prepare(operation));
        let writes = writes.collect::<Result<Vec<_>, _>>()?;
        if writes.is_empty() {
            return Ok(());
        }
        let mut command = redis::cmd("EVAL");
        command.arg(WRITE).arg(writes.len());
        for write in &writes {
            command.arg(&write.key);
        }
        for write in &writes {
            for argument in &write.arguments {
                command.arg(argument.as_slice());
            }
        }
        let answer = self.client.run(&command).await.map_err(|e| failed(&e))?;
        let Value::Array(answer) = &answer else {
            return Err(StateError::Failed(format!("an unknown answer: {answer:?}")));
        };
        let at = match answer.first() {
            Some(Value::Int(0)) => return Ok(()),
            Some(Value::Int(at)) => usize::try_from(at - 1).unwrap_or(0),
            _ => return Err(StateError::Failed("an answer without a number".into())),
        };
        let Some(write) = writes.get(at) else {
            return Err(StateError::Failed("an answer about no key".into()));
        };
        let key = &write.key;
        let text = |value: Option<&Value>| match value {
            Some(Value::BulkString(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
            Some(Value::SimpleString(text)) => text.clone(),
            _ => String::new(),
        };
        let wanted = String::from_utf8_lossy(&write.arguments[1]);
        Err(StateError::EtagMismatch(
            match (wanted.as_ref(), text(answer.get(1)).as_str()) {
                ("", _) => "item already exists and no etag was passed".into(),
                (_, "none") => format!("state not exist or expired for key={key}"),
                (wanted, _) => {
                    let current = text(answer.get(2));
                    format!("state etag not match for key={key}: current={current}, expect={wanted}")
                }
            },
        ))
    }

    /// What somebody else wrote as a plain text.
    async fn plain(&self, key: &str) -> Result<Option<Item>, StateError> {
        let answer = self
            .client
            .run(redis::cmd("GET").arg(key))
            .await
            .map_err(|e| failed(&e))?;
        Ok(bytes_of(answer).map(|value| Item {
            value: value.into(),
            etag: None,
            expires: None,
        }))
    }

    async fn read(&self, key: &str) -> Result<Option<Item>, StateError> {
        let mut both = Pipeline::new();
        both.cmd("HMGET").arg(key).arg("data").arg("version");
        both.cmd("PTTL").arg(key);
        let answers = match self.client.run_all(&both).await {
            Err(e) if e.code() == Some("WRONGTYPE") => return self.plain(key).await,
            done => done.map_err(|e| failed(&e))?,
        };
        let mut answers = answers.into_iter();
        let fields = match answers.next() {
            Some(Value::Array(fields)) => fields,
            Some(Value::ServerError(e)) if e.code() == "WRONGTYPE" => return self.plain(key).await,
            other => return Err(StateError::Failed(format!("an unknown answer: {other:?}"))),
        };
        let mut fields = fields.into_iter().map(bytes_of);
        let Some(value) = fields.next().flatten() else {
            return Ok(None);
        };
        let etag = fields
            .next()
            .flatten()
            .map(|v| String::from_utf8_lossy(&v).into_owned());
        let left = match answers.next() {
            Some(Value::Int(left)) => u64::try_from(left).ok(),
            _ => None,
        };
        Ok(Some(Item {
            value: value.into(),
            etag,
            expires: left.map(|left| SystemTime::now() + Duration::from_millis(left)),
        }))
    }
}

fn bytes_of(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
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
        async move { self.read(&request.key).await }.boxed()
    }

    fn set(&self, request: SetRequest) -> BoxFuture<'_, Result<(), StateError>> {
        self.write(vec![Operation::Upsert(request)]).boxed()
    }

    fn delete(&self, request: DeleteRequest) -> BoxFuture<'_, Result<(), StateError>> {
        self.write(vec![Operation::Delete(request)]).boxed()
    }

    fn transact(&self, operations: Vec<Operation>) -> BoxFuture<'_, Result<(), StateError>> {
        self.write(operations).boxed()
    }

    fn max_transaction(&self) -> Option<usize> {
        Some(MAX_OPERATIONS)
    }
}
