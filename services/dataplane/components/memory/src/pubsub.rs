//! `pubsub.in-memory`.

use crate::{broker::Broker, shared::Shared};
use futures::{FutureExt, future::BoxFuture};
use std::sync::Arc;
use weft_components_api::{
    Block, Component, Driver, InitError, Instance, Message, MessageHandler, PubSub, PubSubError,
    PubSubFeature, Schema, Subscribe, Subscription,
};

/// The driver: it keeps the brokers, each for as long as an app has it open.
#[derive(Default)]
pub struct MemoryPubSub {
    brokers: Shared<Broker>,
}

impl MemoryPubSub {
    /// Without any broker yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Driver for MemoryPubSub {
    fn block(&self) -> Block {
        Block::PubSub
    }

    fn kind(&self) -> &'static str {
        "pubsub.in-memory"
    }

    fn schema(&self) -> &'static Schema {
        &Schema { fields: &[] }
    }

    fn open(&self, instance: Instance) -> BoxFuture<'_, Result<Component, InitError>> {
        let broker = self.brokers.of(&instance);
        async move { Ok(Component::PubSub(Arc::new(Client(broker)))) }.boxed()
    }
}

/// One app at a broker.
struct Client(Arc<Broker>);

impl PubSub for Client {
    fn features(&self) -> &'static [PubSubFeature] {
        &[]
    }

    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), PubSubError>> {
        async move { self.0.publish(message) }.boxed()
    }

    fn subscribe(
        &self,
        request: Subscribe,
        handler: Arc<dyn MessageHandler>,
    ) -> BoxFuture<'_, Result<Subscription, PubSubError>> {
        async move {
            let reader = self.0.subscribe(request.topic, request.group, handler)?;
            Ok(Subscription::new(reader))
        }
        .boxed()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_components_conformance::{instance, pubsub};

    async fn open(driver: &MemoryPubSub, instance: Instance) -> Arc<dyn PubSub> {
        match driver.open(instance).await {
            Ok(Component::PubSub(broker)) => broker,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn conforms() {
        let driver = MemoryPubSub::new();
        let shown = pubsub::conforms(|app| open(&driver, instance_of(app, "conform"))).await;
        weft_components_conformance::table::told("pubsub.in-memory", &shown);
    }

    fn instance_of(app: &str, component: &str) -> Instance {
        let mut instance = instance(component, &[]);
        instance.owner.app_id = app.to_owned();
        instance
    }
}
