//! `pubsub.redis`: streams, read by consumer groups.
//!
//! A message is the group's from when the group is there, and it stays pending at the server until the app
//! has taken it: what an agent held when it went, another gets after `processingTimeout`.

use crate::{
    client::{Client, Error, Pauses},
    settings::{COMMON, duration, with},
};
use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue, Pipeline, Value, aio::MultiplexedConnection};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::Semaphore,
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout},
};
use weft_components_api::{
    Block, Component, Driver, Field, InitError, Instance, Message, MessageHandler, Metadata, MetadataError,
    Outcome, PubSub, PubSubError, PubSubFeature, Schema, SpecError, Subscribe, Subscription,
};

/// A reader waits in the server for so long at a time.
const BLOCK: Duration = Duration::from_secs(2);
/// What is read ahead at most, whatever `queueDepth` says.
const MAX_DEPTH: u64 = 10_000;
const MAX_CONCURRENCY: u64 = 1_000;

/// The driver.
#[derive(Debug, Clone, Copy, Default)]
pub struct RedisPubSub;

impl Driver for RedisPubSub {
    fn block(&self) -> Block {
        Block::PubSub
    }

    fn kind(&self) -> &'static str {
        "pubsub.redis"
    }

    fn schema(&self) -> &'static Schema {
        const FIELDS: [Field; COMMON.len() + 6] = with([
            "processingTimeout",
            "redeliverInterval",
            "queueDepth",
            "concurrency",
            "maxLenApprox",
            "streamTTL",
        ]);
        const SCHEMA: &Schema = &Schema { fields: &FIELDS };
        SCHEMA
    }

    fn open(&self, instance: Instance) -> BoxFuture<'_, Result<Component, InitError>> {
        async move {
            let limits = Limits::read(&instance.metadata).map_err(SpecError::from)?;
            let client = Client::open(&instance).await?;
            Ok(Component::PubSub(Arc::new(Broker { client, limits })))
        }
        .boxed()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Limits {
    /// A message that is pending for so long is delivered again; `None`: never.
    processing: Option<Duration>,
    /// How often that is looked for.
    redeliver: Duration,
    depth: usize,
    concurrency: usize,
    trim: Option<Trim>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trim {
    Length(u64),
    Age(Duration),
}

/// As Dapr reads them here: a number counts milliseconds.
fn milliseconds(
    metadata: &Metadata,
    key: &str,
    default: Duration,
) -> Result<Option<Duration>, MetadataError> {
    let text = metadata.get(key).unwrap_or_default().trim();
    let number = text.parse().ok().map(Duration::from_millis);
    let read = match text {
        "" => default,
        _ => match number {
            Some(number) => number,
            None => duration(metadata, key, Duration::ZERO)?,
        },
    };
    Ok(Some(read).filter(|d| !d.is_zero()))
}

impl Limits {
    fn read(metadata: &Metadata) -> Result<Self, MetadataError> {
        let count = |key: &str, default: u64, most: u64| {
            let given = metadata.get(key).filter(|text| !text.trim().is_empty());
            let number = given.map(|_| metadata.number(key)).transpose()?.flatten();
            Ok(number.unwrap_or(default).clamp(1, most))
        };
        let processing = milliseconds(metadata, "processingTimeout", Duration::from_secs(60))?;
        let redeliver = milliseconds(metadata, "redeliverInterval", Duration::from_secs(15))?;
        let length = count("maxLenApprox", 0, u64::MAX);
        let given = metadata
            .get("maxLenApprox")
            .is_some_and(|text| !matches!(text.trim(), "" | "0"));
        let length = given.then_some(length).transpose()?;
        let age = duration(metadata, "streamTTL", Duration::ZERO)?;
        let age = Some(age).filter(|age| !age.is_zero());
        if length.is_some() && age.is_some() {
            return Err(Metadata::wrong(
                "streamTTL",
                "and maxLenApprox can not be used together",
            ));
        }
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Ok(Self {
            // Without the one there is nothing for the other to do, as in Dapr.
            processing: processing.filter(|_| redeliver.is_some()),
            redeliver: redeliver.unwrap_or_default(),
            depth: size(count("queueDepth", 100, MAX_DEPTH)?),
            concurrency: size(count("concurrency", 10, MAX_CONCURRENCY)?),
            trim: length.map(Trim::Length).or(age.map(Trim::Age)),
        })
    }
}

struct Broker {
    client: Client,
    limits: Limits,
}

fn failed(e: &Error) -> PubSubError {
    PubSubError::Failed(format!("redis streams: error from publish: {e}"))
}

impl Broker {
    fn add(&self, message: &Message) -> Cmd {
        let mut add = redis::cmd("XADD");
        add.arg(&message.topic);
        match self.limits.trim {
            Some(Trim::Length(length)) => drop(add.arg("MAXLEN").arg("~").arg(length)),
            Some(Trim::Age(age)) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                let oldest = now.unwrap_or_default().saturating_sub(age).as_millis();
                add.arg("MINID")
                    .arg("~")
                    .arg(u64::try_from(oldest).unwrap_or(u64::MAX));
            }
            None => {}
        }
        add.arg("*").arg("data").arg(message.data.as_ref());
        if !message.metadata.is_empty() {
            let pairs: BTreeMap<_, _> = message
                .metadata
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect();
            add.arg("metadata").arg(serde_json::json!(pairs).to_string());
        }
        add
    }
}

impl PubSub for Broker {
    fn features(&self) -> &'static [PubSubFeature] {
        &[]
    }

    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), PubSubError>> {
        async move {
            let done = self.client.run(&self.add(&message)).await;
            done.map(drop).map_err(|e| failed(&e))
        }
        .boxed()
    }

    fn bulk_publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<(), PubSubError>>> {
        async move {
            let mut all = Pipeline::new();
            for message in &messages {
                all.add_command(self.add(message));
            }
            match self.client.run_all(&all).await {
                Ok(answers) => {
                    let each = answers.into_iter().map(|answer| match answer {
                        Value::ServerError(e) => Err(failed(&Error::Redis(e.into()))),
                        _ => Ok(()),
                    });
                    each.collect()
                }
                Err(e) => messages.iter().map(|_| Err(failed(&e))).collect(),
            }
        }
        .boxed()
    }

    fn subscribe(
        &self,
        request: Subscribe,
        handler: Arc<dyn MessageHandler>,
    ) -> BoxFuture<'_, Result<Subscription, PubSubError>> {
        async move {
            let reader = Reader(Arc::new(Shared {
                client: self.client.clone(),
                limits: self.limits.clone(),
                topic: request.topic,
                group: request.group,
                handler,
                held: Mutex::default(),
                turns: Arc::new(Semaphore::new(self.limits.concurrency)),
            }));
            let made = reader.make_group().await;
            made.map_err(|e| PubSubError::Failed(format!("redis streams: {e}")))?;
            let reading = tokio::spawn(reader.run());
            Ok(Subscription::new(Reading(reading.abort_handle())))
        }
        .boxed()
    }
}

struct Reading(AbortHandle);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One subscription.
#[derive(Clone)]
struct Reader(Arc<Shared>);

struct Shared {
    client: Client,
    limits: Limits,
    topic: String,
    group: String,
    handler: Arc<dyn MessageHandler>,
    /// What is in the hands of this reader: it is not taken again, however long it takes.
    held: Mutex<HashSet<String>>,
    turns: Arc<Semaphore>,
}

type Fields = Vec<(String, Vec<u8>)>;
type Entry = (String, Fields);

/// Gives an entry back to those that may be taken.
struct Held {
    reader: Reader,
    id: String,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.reader.0.held.lock().remove(&self.id);
    }
}

fn read<T: FromRedisValue>(value: Value) -> Result<T, Error> {
    redis::from_redis_value(value).map_err(|e| Error::Redis(e.into()))
}

/// Entries of a stream; one that was removed has no fields.
fn entries(value: Value) -> Result<Vec<Entry>, Error> {
    let given: Vec<Option<(String, Option<Fields>)>> = read(value)?;
    let there = given.into_iter().flatten();
    Ok(there
        .map(|(id, fields)| (id, fields.unwrap_or_default()))
        .collect())
}

impl Reader {
    async fn make_group(&self) -> Result<(), Error> {
        let mut create = redis::cmd("XGROUP");
        create
            .arg("CREATE")
            .arg(&self.0.topic)
            .arg(&self.0.group)
            .arg("0")
            .arg("MKSTREAM");
        match self.0.client.run(&create).await {
            Err(e) if e.code() == Some("BUSYGROUP") => Ok(()),
            done => done.map(drop),
        }
    }

    async fn run(self) {
        let mut under_way = JoinSet::new();
        let mut pauses = Pauses::default();
        loop {
            let began = Instant::now();
            if let Err(error) = self.read(&mut under_way).await {
                let (topic, group) = (&self.0.topic, &self.0.group);
                tracing::warn!(topic, group, %error, "redis streams: reading goes on later");
            }
            pauses.after(began).await;
            // A server that has forgotten the group has forgotten its messages.
            let _ = self.make_group().await;
        }
    }

    /// Reads until the connection is lost.
    async fn read(&self, under_way: &mut JoinSet<()>) -> Result<(), Error> {
        let Shared {
            limits, topic, group, ..
        } = &*self.0;
        let mut connection = self.0.client.own().await?;
        let mut next_look = Instant::now();
        loop {
            if let Some(pending_for) = limits.processing
                && Instant::now() >= next_look
            {
                self.reclaim(&mut connection, pending_for, under_way).await?;
                next_look = Instant::now() + limits.redeliver;
            }
            let mut read_group = redis::cmd("XREADGROUP");
            let block = match limits.processing {
                Some(_) => BLOCK.min(next_look.saturating_duration_since(Instant::now())),
                None => BLOCK,
            };
            // 0 would be for ever.
            let block = u64::try_from(block.as_millis()).unwrap_or(1).max(1);
            read_group
                .arg("GROUP")
                .arg(group)
                .arg(group)
                .arg("COUNT")
                .arg(limits.depth);
            read_group
                .arg("BLOCK")
                .arg(block)
                .arg("STREAMS")
                .arg(topic)
                .arg(">");
            let asked = timeout(BLOCK * 3, connection.send_packed_command(&read_group)).await;
            let answer = asked.map_err(|_| Error::Connect {
                at: topic.clone(),
                problem: "the server does not answer".into(),
            })?;
            let answer = answer.and_then(Value::extract_error)?;
            let streams: Option<Vec<(String, Value)>> = read(answer)?;
            for (_, value) in streams.unwrap_or_default() {
                for entry in entries(value)? {
                    self.deliver(entry, under_way).await;
                }
            }
        }
    }

    /// Takes what is pending for too long, whoever had it.
    async fn reclaim(
        &self,
        connection: &mut MultiplexedConnection,
        pending_for: Duration,
        under_way: &mut JoinSet<()>,
    ) -> Result<(), Error> {
        let Shared {
            limits, topic, group, ..
        } = &*self.0;
        let idle_at_least = u64::try_from(pending_for.as_millis()).unwrap_or(u64::MAX);
        loop {
            let mut pending = redis::cmd("XPENDING");
            pending.arg(topic).arg(group).arg("-").arg("+").arg(limits.depth);
            let answer = connection.send_packed_command(&pending).await?;
            let answer = answer.extract_error()?;
            let all: Vec<(String, String, u64, u64)> = read(answer)?;
            let held = self.0.held.lock().clone();
            let overdue = all
                .into_iter()
                .filter(|(id, _, idle, _)| *idle >= idle_at_least && !held.contains(id));
            let overdue: Vec<String> = overdue.map(|(id, ..)| id).collect();
            if overdue.is_empty() {
                return Ok(());
            }
            let mut claim = redis::cmd("XCLAIM");
            claim.arg(topic).arg(group).arg(group).arg(idle_at_least);
            for id in &overdue {
                claim.arg(id);
            }
            let answer = connection.send_packed_command(&claim).await?;
            let claimed = entries(answer.extract_error()?)?;
            let mut gone: HashSet<String> = overdue.into_iter().collect();
            for entry in claimed {
                gone.remove(&entry.0);
                self.deliver(entry, under_way).await;
            }
            // What was trimmed away meanwhile can not be delivered any more.
            for id in gone {
                self.acknowledge(&id).await;
            }
        }
    }

    /// Begins a delivery once there is a turn for it.
    async fn deliver(&self, (id, fields): Entry, under_way: &mut JoinSet<()>) {
        if !self.0.held.lock().insert(id.clone()) {
            return;
        }
        let held = Held {
            reader: self.clone(),
            id: id.clone(),
        };
        let Ok(turn) = self.0.turns.clone().acquire_owned().await else {
            return;
        };
        while under_way.try_join_next().is_some() {}
        let message = message(&self.0.topic, fields);
        let reader = self.clone();
        let handler = self.0.handler.clone();
        under_way.spawn(async move {
            let _turn = turn;
            let within = reader.0.limits.processing;
            let outcome = match within {
                Some(within) => timeout(within, handler.handle(message)).await,
                None => Ok(handler.handle(message).await),
            };
            match outcome {
                Ok(Outcome::Done) => reader.acknowledge(&id).await,
                Ok(Outcome::Retry(why)) => {
                    tracing::debug!(topic = reader.0.topic, id, why, "a message stays pending");
                }
                Err(_) => tracing::warn!(
                    topic = reader.0.topic,
                    id,
                    ?within,
                    "a message was not taken in time"
                ),
            }
            drop(held);
        });
    }

    async fn acknowledge(&self, id: &str) {
        let mut acknowledge = redis::cmd("XACK");
        acknowledge.arg(&self.0.topic).arg(&self.0.group).arg(id);
        if let Err(error) = self.0.client.run(&acknowledge).await {
            tracing::warn!(topic = self.0.topic, id, %error, "a message that was taken comes again");
        }
    }
}

fn message(topic: &str, fields: Fields) -> Message {
    let (mut data, mut metadata) = (Vec::new(), BTreeMap::<String, String>::new());
    for (name, value) in fields {
        match name.as_str() {
            "data" => data = value,
            "metadata" => metadata = serde_json::from_slice(&value).unwrap_or_default(),
            _ => {}
        }
    }
    Message {
        topic: topic.to_owned(),
        data: data.into(),
        metadata: metadata.into_iter().collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Limits, MetadataError> {
        let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Limits::read(&Metadata::new(pairs.collect()).unwrap())
    }

    #[test]
    fn limits_are_read_as_dapr_reads_them() {
        let usual = read(&[]).unwrap();
        assert_eq!(
            (usual.processing, usual.redeliver),
            (Some(Duration::from_secs(60)), Duration::from_secs(15))
        );
        assert_eq!((usual.depth, usual.concurrency, usual.trim), (100, 10, None));
        let own = [
            ("processingTimeout", "500"),
            ("redeliverInterval", "2s"),
            ("maxLenApprox", "7"),
        ];
        let own = read(&own).unwrap();
        assert_eq!(
            (own.processing, own.redeliver),
            (Some(Duration::from_millis(500)), Duration::from_secs(2))
        );
        assert_eq!(own.trim, Some(Trim::Length(7)));
        assert_eq!(
            read(&[("streamTTL", "1h")]).unwrap().trim,
            Some(Trim::Age(Duration::from_secs(3600)))
        );
        assert_eq!(
            read(&[("redeliverInterval", "0")]).unwrap().processing,
            None,
            "it is switched off"
        );
        let both = read(&[("streamTTL", "1h"), ("maxLenApprox", "7")]).unwrap_err();
        assert!(both.to_string().contains("\"streamTTL\""), "{both}");
        assert!(read(&[("queueDepth", "many")]).is_err());
    }
}
