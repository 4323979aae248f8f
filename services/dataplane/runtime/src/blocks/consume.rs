//! What reaches one app by itself: its subscriptions' messages and its input bindings' events. Begun
//! when a workload of it listens, begun anew where what they hang on changed.

use super::{
    Blocks, Consumer, Slot,
    app::{Broker, Input},
    binding::{self, ToApp},
    delivery::{AppSide, Delivery},
    subscriptions::{self, Subscription},
};
use bytes::Bytes;
use http::{Method, StatusCode, header};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use weft_components_api::{Reading, Subscribe};

/// An app that does not answer what it subscribes to is asked again after this pause, so often.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ATTEMPTS: u32 = 5;

/// What is under way.
#[derive(Default)]
struct Running {
    /// What the app said when it was asked; asked anew when other workloads of it are ready.
    own: Option<Vec<Arc<Subscription>>>,
    subscriptions: BTreeMap<(String, String), Subscribed>,
    bindings: BTreeMap<String, Bound>,
}

struct Subscribed {
    broker: Arc<Broker>,
    subscription: Arc<Subscription>,
    /// `None`: it could not be.
    _guard: Option<weft_components_api::Subscription>,
}

struct Bound {
    input: Arc<Input>,
    /// `None`: the app does not want it.
    _reading: Option<Reading>,
}

/// Until the app is gone.
pub(super) async fn run(blocks: Blocks, slot: Arc<Slot>) {
    let (mut opened, mut readied) = (slot.opened.subscribe(), slot.readied.subscribe());
    let consumer = Arc::new(Consumer {
        slot: slot.clone(),
        surroundings: blocks.0.surroundings.clone(),
    });
    let mut running = Running::default();
    loop {
        opened.mark_unchanged();
        readied.mark_unchanged();
        tokio::select! {
            () = running.refresh(&blocks, &consumer) => {}
            () = slot.gone.cancelled() => return,
        }
        tokio::select! {
            Ok(()) = opened.changed() => {}
            Ok(()) = readied.changed() => {
                if consumer.endpoint().is_none() {
                    // The next one that is ready may be another version.
                    running = Running::default();
                    slot.subscribed.store(Arc::default());
                }
            }
            () = slot.gone.cancelled() => return,
        }
    }
}

impl Running {
    async fn refresh(&mut self, blocks: &Blocks, consumer: &Arc<Consumer>) {
        if consumer.endpoint().is_none() {
            return;
        }
        // As Dapr does: without a broker there is nothing to subscribe to, and nothing is asked.
        if self.own.is_none() && !consumer.slot.view.load().brokers.is_empty() {
            self.own = Some(ask(consumer).await);
        }
        self.subscribe(blocks, consumer).await;
        self.bind(consumer).await;
    }

    /// What the app says, and what manifests say; of two for the same topic the manifest's counts.
    fn wanted(&self, blocks: &Blocks, consumer: &Consumer) -> BTreeMap<(String, String), Arc<Subscription>> {
        let owner = &consumer.slot.owner;
        let desired = blocks.0.desired.read();
        let declared = desired.subscriptions.iter().filter(|((namespace, _), declared)| {
            let scoped = declared.scopes.is_empty() || declared.scopes.contains(&owner.app_id);
            *namespace == owner.namespace && scoped
        });
        let declared = declared.map(|(_, declared)| &declared.subscription);
        let own = self.own.iter().flatten();
        let all = own.chain(declared);
        all.map(|s| ((s.pubsub.clone(), s.topic.clone()), s.clone()))
            .collect()
    }

    async fn subscribe(&mut self, blocks: &Blocks, consumer: &Arc<Consumer>) {
        let view = consumer.slot.view.load_full();
        let wanted = self.wanted(blocks, consumer);
        self.subscriptions.retain(|key, there| {
            let broker = view.brokers.get(&key.0);
            let same = broker.is_some_and(|b| Arc::ptr_eq(&b.broker, &there.broker.broker));
            same && wanted.get(key).is_some_and(|s| *s == there.subscription)
        });
        for (key, subscription) in wanted {
            if self.subscriptions.contains_key(&key) {
                continue;
            }
            let Some(broker) = view.brokers.get(&key.0).cloned() else {
                tracing::warn!(
                    app = consumer.slot.owner.app_id,
                    pubsub = key.0,
                    topic = key.1,
                    "no such pub/sub component yet"
                );
                continue;
            };
            let guard = begin(consumer, &broker, &subscription, None).await;
            let there = Subscribed {
                broker,
                subscription,
                _guard: guard,
            };
            self.subscriptions.insert(key, there);
        }
        let active = self.subscriptions.values().filter(|there| there._guard.is_some());
        let active = active.map(|there| there.subscription.clone()).collect();
        consumer.slot.subscribed.store(Arc::new(active));
    }

    async fn bind(&mut self, consumer: &Arc<Consumer>) {
        let view = consumer.slot.view.load_full();
        self.bindings.retain(|name, bound| {
            let input = view.inputs.get(name);
            input.is_some_and(|input| Arc::ptr_eq(&input.binding, &bound.input.binding))
        });
        for (name, input) in &view.inputs {
            if self.bindings.contains_key(name) {
                continue;
            }
            let reading = match binding::wants(consumer, input).await {
                true => read(consumer, input).await,
                false => {
                    tracing::info!(
                        app = consumer.slot.owner.app_id,
                        binding = name,
                        "the app does not take its events"
                    );
                    None
                }
            };
            let bound = Bound {
                input: input.clone(),
                _reading: reading,
            };
            self.bindings.insert(name.clone(), bound);
        }
    }
}

/// Subscribes an app: at its port, or where else its messages go.
pub(super) async fn begin(
    consumer: &Arc<Consumer>,
    broker: &Arc<Broker>,
    subscription: &Arc<Subscription>,
    side: Option<&Arc<dyn AppSide>>,
) -> Option<weft_components_api::Subscription> {
    let (app, pubsub, topic) = (
        &consumer.slot.owner.app_id,
        &subscription.pubsub,
        &subscription.topic,
    );
    if !broker.scopes.may_subscribe(topic) {
        tracing::error!(app, pubsub, topic, "subscription to this topic is not allowed");
        return None;
    }
    let request = Subscribe {
        topic: broker.topic(topic),
        group: broker.group.clone(),
        metadata: subscription.metadata.clone(),
    };
    let delivery = Delivery {
        consumer: consumer.clone(),
        broker: broker.clone(),
        subscription: subscription.clone(),
        side: side.cloned(),
    };
    match broker.broker.subscribe(request, Arc::new(delivery)).await {
        Ok(guard) => {
            tracing::info!(app, pubsub, topic, "subscribed");
            Some(guard)
        }
        Err(error) => {
            tracing::error!(app, pubsub, topic, %error, "not subscribed");
            None
        }
    }
}

async fn read(consumer: &Arc<Consumer>, input: &Arc<Input>) -> Option<Reading> {
    let to_app = ToApp {
        consumer: consumer.clone(),
        input: input.clone(),
    };
    let (app, binding) = (&consumer.slot.owner.app_id, &input.name);
    match input.binding.read(Arc::new(to_app)).await {
        Ok(reading) => {
            tracing::info!(app, binding, "events are read");
            Some(reading)
        }
        Err(error) => {
            tracing::error!(app, binding, %error, "events can not be read");
            None
        }
    }
}

/// What the app says that it subscribes to.
async fn ask(consumer: &Consumer) -> Vec<Arc<Subscription>> {
    let app = &consumer.slot.owner.app_id;
    let json = || vec![(header::CONTENT_TYPE.to_string(), "application/json".to_owned())];
    for attempt in 1..=ATTEMPTS {
        if attempt > 1 {
            tokio::time::sleep(ASK_AGAIN).await;
        }
        let answer = match consumer
            .ask(Method::GET, "/dapr/subscribe", json(), Bytes::new())
            .await
        {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(app, error, "GET /dapr/subscribe");
                continue;
            }
        };
        if answer.status == StatusCode::NOT_FOUND {
            return Vec::new();
        }
        if answer.status != StatusCode::OK {
            let status = answer.status.as_u16();
            tracing::error!(
                app,
                status,
                "app returned http status code from subscription endpoint"
            );
            return Vec::new();
        }
        let read = tokio::task::spawn_blocking(move || subscriptions::programmatic(&answer.body)).await;
        return match read.unwrap_or_else(|e| Err(e.to_string())) {
            Ok((sound, problems)) => {
                for problem in problems {
                    tracing::error!(app, problem, "a subscription is left out");
                }
                sound.into_iter().map(Arc::new).collect()
            }
            Err(error) => {
                tracing::error!(app, error, "its answer to GET /dapr/subscribe can not be read");
                Vec::new()
            }
        };
    }
    tracing::error!(app, "it does not answer GET /dapr/subscribe");
    Vec::new()
}
