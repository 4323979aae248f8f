//! Publish and subscribe.

use crate::Guard;
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use std::sync::Arc;

/// What a broker does itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PubSubFeature {
    /// Ends messages by their TTL. Where a broker does not, the runtime does.
    MessageTtl,
    /// Takes several messages in one call.
    BulkPublish,
}

impl PubSubFeature {
    /// As Dapr's metadata names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MessageTtl => "MESSAGE_TTL",
            Self::BulkPublish => "BULK_PUBSUB",
        }
    }
}

/// One message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its topic.
    pub topic: String,
    /// Its content: a CloudEvent, or whatever was published as it is.
    pub data: Bytes,
    /// What travels beside it.
    pub metadata: Vec<(String, String)>,
}

/// Why a message was not taken or a topic not subscribed to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PubSubError {
    /// Something in the request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// A bound is reached; later it may be taken.
    #[error("{0}")]
    Full(String),
    /// The broker could not.
    #[error("{0}")]
    Failed(String),
}

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done with: the broker forgets the message.
    Done,
    /// It is to be delivered again, later; and why.
    Retry(String),
}

/// Takes the messages of one subscription.
pub trait MessageHandler: Send + Sync + 'static {
    /// Takes one. The broker keeps the message until the answer, and delivers it again when there is
    /// none (the future was dropped).
    fn handle(&self, message: Message) -> BoxFuture<'_, Outcome>;
}

/// What is subscribed to.
#[derive(Debug, Clone)]
pub struct Subscribe {
    /// The topic.
    pub topic: String,
    /// Subscriptions of the same group share its messages; each group gets all.
    pub group: String,
    /// For the driver.
    pub metadata: Vec<(String, String)>,
}

/// A subscription: it ends when this is dropped.
pub type Subscription = Guard;

/// A broker, opened for one app.
pub trait PubSub: Send + Sync + 'static {
    /// What it does itself.
    fn features(&self) -> &'static [PubSubFeature];

    /// Takes a message: when this is `Ok`, the message is not lost any more, as far as the broker goes.
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), PubSubError>>;

    /// Takes several, each for itself, in their order.
    fn bulk_publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<(), PubSubError>>> {
        async move {
            let mut done = Vec::with_capacity(messages.len());
            for message in messages {
                done.push(self.publish(message).await);
            }
            done
        }
        .boxed()
    }

    /// From now on `handler` gets the topic's messages.
    fn subscribe(
        &self,
        request: Subscribe,
        handler: Arc<dyn MessageHandler>,
    ) -> BoxFuture<'_, Result<Subscription, PubSubError>>;
}
