//! Subscriptions that an app opens itself, by a stream of gRPC: messages come by the stream, and so do
//! the answers to them. An app needs no port for them.

use super::{
    BlockError, Blocks, Consumer,
    app::Broker,
    cloud_event::{Event, payload},
    consume,
    delivery::{AppSide, Verdict},
    rules::{Rule, Rules},
    subscriptions::{Origin, Subscription},
};
use crate::AppContext;
use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tokio::sync::{mpsc, oneshot};
use weft_flows::Party;

/// Messages on their way to one stream.
const QUEUE: usize = 16;
/// Streams of one app.
const MAX_STREAMS: usize = 1024;

/// A message as a stream carries it.
#[derive(Debug)]
pub(crate) struct Streamed {
    /// By which the app answers.
    pub id: String,
    pub event: Event,
    pub data: Vec<u8>,
    pub pubsub: String,
    pub topic: String,
}

/// What an app said of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    Success,
    Retry,
    Drop,
}

type Answers = Arc<Mutex<HashMap<String, oneshot::Sender<Said>>>>;

/// The app at the other end of a stream.
struct ByStream {
    party: Arc<Party>,
    messages: mpsc::Sender<Streamed>,
    answers: Answers,
    pubsub: String,
    topic: String,
}

/// An answer that is waited for, no longer than this is there.
struct Awaited {
    answers: Answers,
    id: String,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.answers.lock().remove(&self.id);
    }
}

impl AppSide for ByStream {
    fn party(&self) -> Arc<Party> {
        self.party.clone()
    }

    fn ask<'a>(&'a self, event: &'a Event, _: &'a str) -> BoxFuture<'a, Verdict> {
        async move {
            let id = event
                .get("id")
                .and_then(|id| id.as_str())
                .unwrap_or_default()
                .to_owned();
            let (sender, said) = oneshot::channel();
            {
                let mut answers = self.answers.lock();
                if answers.contains_key(&id) {
                    return Verdict::Retry("an event of this id is with the app already".into());
                }
                answers.insert(id.clone(), sender);
            }
            let _awaited = Awaited {
                answers: self.answers.clone(),
                id: id.clone(),
            };
            let streamed = Streamed {
                id,
                data: payload(event),
                event: event.clone(),
                pubsub: self.pubsub.clone(),
                topic: self.topic.clone(),
            };
            if self.messages.send(streamed).await.is_err() {
                return Verdict::Retry("the app has closed its stream".into());
            }
            match said.await {
                Ok(Said::Success) => Verdict::Success,
                Ok(Said::Retry) => Verdict::Retry("the app answered RETRY".into()),
                Ok(Said::Drop) => Verdict::Drop("the app answered DROP".into()),
                Err(_) => Verdict::Retry("the app has closed its stream".into()),
            }
        }
        .boxed()
    }
}

/// One stream's subscription; it ends when this is dropped.
pub(crate) struct Stream {
    pub messages: mpsc::Receiver<Streamed>,
    pub replies: Replies,
    _listed: Listed,
    _following: Following,
}

/// Where the app's answers go.
#[derive(Clone)]
pub(crate) struct Replies(Answers);

impl Replies {
    /// The app said this of a message; of one that it does not have, nothing comes of it.
    pub fn settle(&self, id: &str, said: Said) {
        let waiting = self.0.lock().remove(id);
        if let Some(waiting) = waiting {
            let _ = waiting.send(said);
        }
    }
}

struct Listed {
    slot: Arc<super::Slot>,
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.slot.streams.lock().all.remove(&self.id);
    }
}

struct Following(tokio::task::AbortHandle);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What an app has open, for the metadata API.
#[derive(Default)]
pub(crate) struct Streams {
    last: u64,
    all: HashMap<u64, Arc<Subscription>>,
}

impl Streams {
    /// In the order of their topics.
    pub fn list(&self) -> Vec<Arc<Subscription>> {
        let mut all: Vec<_> = self.all.values().cloned().collect();
        all.sort_by(|a, b| (&a.pubsub, &a.topic).cmp(&(&b.pubsub, &b.topic)));
        all
    }
}

/// Opens a subscription for a stream.
pub(crate) async fn open(
    blocks: &Blocks,
    app: &AppContext,
    pubsub: &str,
    topic: &str,
    metadata: Vec<(String, String)>,
    dead_letter: Option<String>,
) -> Result<Stream, BlockError> {
    let slot = blocks.slot(app);
    let slot = slot.ok_or_else(|| BlockError::pubsub_not_found(pubsub, &metadata))?;
    let find = || slot.view.load().brokers.get(pubsub).cloned();
    let broker = find().ok_or_else(|| BlockError::pubsub_not_found(pubsub, &metadata))?;
    if !broker.scopes.may_subscribe(topic) {
        return Err(BlockError::publish_forbidden(pubsub, topic, &app.party().app_id));
    }
    let subscription = Arc::new(Subscription {
        pubsub: pubsub.to_owned(),
        topic: topic.to_owned(),
        rules: Rules(vec![Rule::new("", "/").map_err(BlockError::malformed)?]),
        metadata,
        dead_letter: dead_letter.filter(|topic| !topic.is_empty()),
        origin: Origin::Streaming,
    });
    let (sender, messages) = mpsc::channel(QUEUE);
    let answers = Answers::default();
    let side: Arc<dyn AppSide> = Arc::new(ByStream {
        party: app.party().clone(),
        messages: sender,
        answers: answers.clone(),
        pubsub: pubsub.to_owned(),
        topic: topic.to_owned(),
    });
    let consumer = Arc::new(Consumer {
        slot: slot.clone(),
        surroundings: blocks.0.surroundings.clone(),
    });
    let mut opened = slot.opened.subscribe();
    opened.mark_unchanged();
    let guard = consume::begin(&consumer, &broker, &subscription, Some(&side)).await;
    let failed = "the broker does not take the subscription";
    let guard = guard.ok_or_else(|| BlockError::publish(pubsub, topic, failed))?;
    let id = {
        let mut streams = slot.streams.lock();
        if streams.all.len() >= MAX_STREAMS {
            return Err(BlockError::publish(
                pubsub,
                topic,
                "the app has too many streams open",
            ));
        }
        streams.last += 1;
        let id = streams.last;
        streams.all.insert(id, subscription.clone());
        id
    };
    let listed = Listed {
        slot: slot.clone(),
        id,
    };
    let name = pubsub.to_owned();
    // A broker that is opened anew is subscribed to anew.
    let following = tokio::spawn(async move {
        let mut there: Option<(Arc<Broker>, weft_components_api::Subscription)> = Some((broker, guard));
        while opened.changed().await.is_ok() {
            let now = slot.view.load().brokers.get(&name).cloned();
            let same = match (&now, &there) {
                (Some(now), Some((was, _))) => Arc::ptr_eq(&now.broker, &was.broker),
                _ => false,
            };
            if same {
                continue;
            }
            there = None;
            if let Some(now) = now
                && let Some(guard) = consume::begin(&consumer, &now, &subscription, Some(&side)).await
            {
                there = Some((now, guard));
            }
        }
        drop(there);
    });
    Ok(Stream {
        messages,
        replies: Replies(answers),
        _listed: listed,
        _following: Following(following.abort_handle()),
    })
}
