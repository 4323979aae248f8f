//! `configuration.redis`: texts `value||version` under their keys; changes come by keyspace events, which
//! the server must be told to send (`notify-keyspace-events KA`).

use crate::{
    client::{Client, Pauses},
    settings::{COMMON, with},
};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use redis::{Pipeline, Value};
use std::sync::Arc;
use tokio::{task::AbortHandle, time::Instant};
use weft_components_api::{
    Block, Component, ConfigurationError, ConfigurationHandler, ConfigurationItem, ConfigurationItems,
    ConfigurationStore, Driver, Field, Guard, InitError, Instance, Schema,
};

/// Of one answer.
const MAX_ITEMS: usize = 10_000;

/// The driver.
#[derive(Debug, Clone, Copy, Default)]
pub struct RedisConfiguration;

impl Driver for RedisConfiguration {
    fn block(&self) -> Block {
        Block::Configuration
    }

    fn kind(&self) -> &'static str {
        "configuration.redis"
    }

    fn schema(&self) -> &'static Schema {
        const FIELDS: [Field; COMMON.len()] = with([]);
        const SCHEMA: &Schema = &Schema { fields: &FIELDS };
        SCHEMA
    }

    fn open(&self, instance: Instance) -> BoxFuture<'_, Result<Component, InitError>> {
        async move {
            let store = Store(Client::open(&instance).await?);
            Ok(Component::Configuration(Arc::new(store)))
        }
        .boxed()
    }
}

#[derive(Clone)]
struct Store(Client);

fn item(text: &str) -> ConfigurationItem {
    let mut parts = text.split("||");
    let mut part = || parts.next().unwrap_or_default().to_owned();
    ConfigurationItem {
        value: part(),
        version: part(),
        ..ConfigurationItem::default()
    }
}

fn failed(e: impl std::fmt::Display) -> ConfigurationError {
    ConfigurationError::Failed(e.to_string())
}

impl Store {
    async fn keys(&self) -> Result<Vec<String>, ConfigurationError> {
        let (mut keys, mut cursor) = (Vec::new(), b"0".to_vec());
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("COUNT").arg(1000);
            let answer = self.0.run(&scan).await.map_err(failed)?;
            let (next, some): (Vec<u8>, Vec<String>) = redis::from_redis_value(answer).map_err(failed)?;
            keys.extend(some);
            if keys.len() > MAX_ITEMS {
                return Err(failed(format!(
                    "the database has more than {MAX_ITEMS} keys; name those that are wanted"
                )));
            }
            if next == b"0" {
                keys.sort_unstable();
                keys.dedup();
                return Ok(keys);
            }
            cursor = next;
        }
    }

    /// What is no text, or not there, is left out.
    async fn items(&self, keys: &[String]) -> Result<ConfigurationItems, ConfigurationError> {
        let keys = match keys {
            [] => self.keys().await?,
            keys => keys.to_vec(),
        };
        if keys.is_empty() {
            return Ok(ConfigurationItems::new());
        }
        let mut gets = Pipeline::new();
        for key in &keys {
            gets.cmd("GET").arg(key);
        }
        let answers = self.0.run_all(&gets).await.map_err(failed)?;
        let mut items = ConfigurationItems::new();
        for (key, answer) in keys.into_iter().zip(answers) {
            if let Value::BulkString(bytes) = answer {
                let item = item(&String::from_utf8_lossy(&bytes));
                if !item.value.is_empty() {
                    items.insert(key, item);
                }
            }
        }
        Ok(items)
    }

    /// Tells what changes, for as long as the connection lasts; first what changed before it was made.
    async fn listen(&self, watched: &mut Watched) -> Result<(), ConfigurationError> {
        let mut events = self.0.listen().await.map_err(failed)?;
        let start = format!("__keyspace@{}__:", self.0.settings().database);
        match watched.keys.as_slice() {
            [] => events.psubscribe(format!("{start}*")).await.map_err(failed)?,
            keys => {
                let channels: Vec<String> = keys.iter().map(|key| format!("{start}{key}")).collect();
                events.subscribe(channels).await.map_err(failed)?;
            }
        }
        let now = self.items(&watched.keys).await?;
        watched.became(now).await;
        if let Some(ready) = watched.ready.take() {
            let _ = ready.send(());
        }
        let mut events = events.into_on_message();
        while let Some(event) = events.next().await {
            let channel = event.get_channel_name();
            let Some(key) = channel.strip_prefix(start.as_str()) else {
                continue;
            };
            let mut now = self.items(&[key.to_owned()]).await?;
            let item = now.remove(key);
            watched.changed(key, item).await;
        }
        Err(failed("the connection is closed"))
    }
}

/// What is watched, and what was told of it.
struct Watched {
    keys: Vec<String>,
    /// `None` before anything is known.
    known: Option<ConfigurationItems>,
    handler: Arc<dyn ConfigurationHandler>,
    ready: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Watched {
    async fn became(&mut self, now: ConfigurationItems) {
        let Some(known) = self.known.replace(now) else {
            return;
        };
        let now = self.known.clone().unwrap_or_default();
        let mut changed = ConfigurationItems::new();
        for key in known.keys().chain(now.keys()) {
            if known.get(key) != now.get(key) {
                changed.insert(key.clone(), now.get(key).cloned().unwrap_or_default());
            }
        }
        if !changed.is_empty() {
            self.handler.changed(changed).await;
        }
    }

    async fn changed(&mut self, key: &str, item: Option<ConfigurationItem>) {
        let known = self.known.get_or_insert_default();
        // Events come for more than values: for an expiry that is set, for instance.
        if known.get(key) == item.as_ref() {
            return;
        }
        match &item {
            Some(item) => drop(known.insert(key.to_owned(), item.clone())),
            None => drop(known.remove(key)),
        }
        let changed = [(key.to_owned(), item.unwrap_or_default())];
        self.handler.changed(changed.into()).await;
    }
}

struct Listening(AbortHandle);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ConfigurationStore for Store {
    fn get(
        &self,
        keys: Vec<String>,
        _: Vec<(String, String)>,
    ) -> BoxFuture<'_, Result<ConfigurationItems, ConfigurationError>> {
        async move { self.items(&keys).await }.boxed()
    }

    fn watch(
        &self,
        keys: Vec<String>,
        _: Vec<(String, String)>,
        handler: Arc<dyn ConfigurationHandler>,
    ) -> BoxFuture<'_, Result<Guard, ConfigurationError>> {
        async move {
            let (ready, is_ready) = tokio::sync::oneshot::channel();
            let mut watched = Watched {
                keys,
                known: None,
                handler,
                ready: Some(ready),
            };
            let store = self.clone();
            let listening = tokio::spawn(async move {
                let mut pauses = Pauses::default();
                loop {
                    let began = Instant::now();
                    if let Err(error) = store.listen(&mut watched).await {
                        tracing::warn!(%error, "configuration is watched again later");
                    }
                    pauses.after(began).await;
                }
            });
            let guard = Guard::new(Listening(listening.abort_handle()));
            let within = self.0.settings().dial_within;
            match tokio::time::timeout(within, is_ready).await {
                Ok(Ok(())) => Ok(guard),
                _ => Err(failed(format!("not subscribed within {within:?}"))),
            }
        }
        .boxed()
    }
}
