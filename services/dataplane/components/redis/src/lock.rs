//! `lock.redis`: keys that only who made them removes.

use crate::{
    client::Client,
    settings::{COMMON, with},
};
use futures::{FutureExt, future::BoxFuture};
use redis::Value;
use std::{sync::Arc, time::Duration};
use weft_components_api::{
    Block, Component, Driver, Field, InitError, Instance, LockError, LockStore, Schema, Unlocked,
};

const UNLOCK: &str = "local holder = redis.call('GET', KEYS[1])
if not holder then return -1 end
if holder ~= ARGV[1] then return -2 end
return redis.call('DEL', KEYS[1])";

/// The driver.
#[derive(Debug, Clone, Copy, Default)]
pub struct RedisLock;

impl Driver for RedisLock {
    fn block(&self) -> Block {
        Block::Lock
    }

    fn kind(&self) -> &'static str {
        "lock.redis"
    }

    fn schema(&self) -> &'static Schema {
        const FIELDS: [Field; COMMON.len()] = with([]);
        const SCHEMA: &Schema = &Schema { fields: &FIELDS };
        SCHEMA
    }

    fn open(&self, instance: Instance) -> BoxFuture<'_, Result<Component, InitError>> {
        async move { Ok(Component::Lock(Arc::new(Store(Client::open(&instance).await?)))) }.boxed()
    }
}

struct Store(Client);

impl LockStore for Store {
    fn try_lock(
        &self,
        resource: String,
        owner: String,
        expiry: Duration,
    ) -> BoxFuture<'_, Result<bool, LockError>> {
        async move {
            let mut set = redis::cmd("SET");
            let expiry = u64::try_from(expiry.as_millis()).unwrap_or(u64::MAX);
            set.arg(resource).arg(owner).arg("NX").arg("PX").arg(expiry);
            match self.0.run(&set).await {
                Ok(answer) => Ok(answer != Value::Nil),
                Err(e) => Err(LockError(e.to_string())),
            }
        }
        .boxed()
    }

    fn unlock(&self, resource: String, owner: String) -> BoxFuture<'_, Result<Unlocked, LockError>> {
        async move {
            let mut eval = redis::cmd("EVAL");
            eval.arg(UNLOCK).arg(1).arg(resource).arg(owner);
            match self.0.run(&eval).await {
                Ok(Value::Int(-1)) => Ok(Unlocked::NotThere),
                Ok(Value::Int(-2)) => Ok(Unlocked::OfOthers),
                Ok(_) => Ok(Unlocked::Success),
                Err(e) => Err(LockError(e.to_string())),
            }
        }
        .boxed()
    }
}
