//! Messages on their way from a broker to the app: which path, and what its answer means.

use super::{
    Consumer,
    app::Broker,
    cloud_event::{self, Event},
    content_type,
    publish::is_raw,
    record::{Record, failure},
    subscriptions::Subscription,
};
use futures::{FutureExt, future::BoxFuture};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use weft_components_api::{Message, MessageHandler, Outcome};
use weft_flows::{DropReason, Kind, Party};

/// An app may take so long to answer a message of a stream.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Where messages go that do not go to the app's port.
pub(crate) trait AppSide: Send + Sync + 'static {
    /// The app in flows.
    fn party(&self) -> Arc<Party>;

    /// Takes one to the app and waits for what it says.
    fn ask<'a>(&'a self, event: &'a Event, path: &'a str) -> BoxFuture<'a, Verdict>;
}

/// One subscription's messages.
pub(crate) struct Delivery {
    pub consumer: Arc<Consumer>,
    pub broker: Arc<Broker>,
    pub subscription: Arc<Subscription>,
    /// `None`: the app's port.
    pub side: Option<Arc<dyn AppSide>>,
}

/// What the app said of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Success,
    Retry(String),
    Drop(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AppAnswer {
    status: String,
}

/// The meaning of an answer.
fn verdict(status: StatusCode, body: &[u8]) -> Verdict {
    if status == StatusCode::NOT_FOUND {
        return Verdict::Drop("the app has no such path (404)".into());
    }
    if !status.is_success() {
        let body: String = String::from_utf8_lossy(body).chars().take(200).collect();
        return Verdict::Retry(format!("the app answered {}: {body}", status.as_u16()));
    }
    // An answer that says nothing of a status says that all is well.
    let answer: AppAnswer = serde_json::from_slice(body).unwrap_or_default();
    match answer.status.as_str() {
        "" | "SUCCESS" => Verdict::Success,
        "RETRY" => Verdict::Retry("the app answered RETRY".into()),
        "DROP" => Verdict::Drop("the app answered DROP".into()),
        other => {
            let other: String = other.chars().take(50).collect();
            Verdict::Retry(format!("the app answered an unknown status {other:?}"))
        }
    }
}

/// A message as the app is to see it.
struct Seen {
    event: Event,
    data: bytes::Bytes,
}

impl Delivery {
    fn see(&self, message: &Message) -> Result<Seen, String> {
        let topic = &self.subscription.topic;
        if is_raw(&self.subscription.metadata)? {
            let event = cloud_event::around_raw(&message.data, topic, &self.broker.name);
            let data = Value::from(event.clone()).to_string().into();
            return Ok(Seen { event, data });
        }
        let event: Event =
            serde_json::from_slice(&message.data).map_err(|e| format!("it is no CloudEvent: {e}"))?;
        Ok(Seen {
            event,
            data: message.data.clone(),
        })
    }

    /// To the dead-letter topic, if there is one: then it is done with.
    async fn bury(&self, message: &Message) -> Option<Outcome> {
        let topic = self.subscription.dead_letter.as_deref()?;
        let buried = Message {
            topic: self.broker.topic(topic),
            ..message.clone()
        };
        match self.broker.broker.publish(buried).await {
            Ok(()) => Some(Outcome::Done),
            Err(error) => {
                tracing::warn!(topic, %error, "a message could not be sent to the dead-letter topic");
                None
            }
        }
    }

    /// It is not for the app: told in a flow, and buried.
    async fn leave(&self, message: &Message, why: &str) -> Outcome {
        let (consumer, topic) = (&self.consumer, &self.subscription.topic);
        tracing::debug!(pubsub = self.broker.name, topic, why, "a message is dropped");
        let app = consumer.party();
        let record = Record::delivery(Kind::Deliver, &self.broker.party, &app, 0, "DROP", topic);
        record.end(&consumer.flows(), 0, Some(DropReason::NoRoute));
        self.bury(message).await;
        Outcome::Done
    }

    async fn deliver(&self, message: Message) -> Outcome {
        let seen = match self.see(&message) {
            Ok(seen) => seen,
            Err(why) => return self.bury(&message).await.unwrap_or(Outcome::Retry(why)),
        };
        if cloud_event::has_expired(&seen.event) {
            return self.leave(&message, "its time is over").await;
        }
        let path = match self.subscription.rules.find(&seen.event) {
            Ok(Some(path)) => path,
            Ok(None) => return self.leave(&message, "no route wants it").await,
            Err(why) => return self.bury(&message).await.unwrap_or(Outcome::Retry(why)),
        };
        match self.ask(&message, &seen, path).await {
            Verdict::Success => Outcome::Done,
            Verdict::Drop(why) => {
                let topic = &self.subscription.topic;
                tracing::warn!(app = %self.consumer.party().app_id, topic, why, "a message is dropped");
                let buried = self.bury(&message).await;
                match self.subscription.dead_letter {
                    Some(_) => buried.unwrap_or(Outcome::Retry(why)),
                    None => Outcome::Done,
                }
            }
            Verdict::Retry(why) => self.bury(&message).await.unwrap_or(Outcome::Retry(why)),
        }
    }

    async fn ask(&self, message: &Message, seen: &Seen, path: &str) -> Verdict {
        let consumer = &self.consumer;
        let _turn = consumer.turn(seen.data.len()).await;
        if let Some(side) = &self.side {
            return self.ask_aside(&**side, seen, path).await;
        }
        let Some(endpoint) = consumer.endpoint() else {
            return Verdict::Retry("no workload of the app is ready".into());
        };
        let mut headers = message.metadata.clone();
        headers.push(("pubsubname".into(), self.broker.name.clone()));
        headers.push(("content-type".into(), content_type::CLOUD_EVENT.into()));
        let trace = seen.event.get("traceparent").and_then(Value::as_str);
        headers.extend(trace.map(|trace| ("traceparent".to_owned(), trace.to_owned())));
        let port = consumer.port(&endpoint);
        let record = Record::delivery(
            Kind::Deliver,
            &self.broker.party,
            endpoint.party(),
            port,
            "POST",
            path,
        )
        .traced(trace.map(trace_id).unwrap_or_default());
        let asked = consumer
            .ask_at(&endpoint, Method::POST, path, headers, seen.data.clone())
            .await;
        let (status, verdict) = match asked {
            Ok(answer) => (answer.status.as_u16(), verdict(answer.status, &answer.body)),
            Err(why) => (503, Verdict::Retry(why)),
        };
        record.end(&consumer.flows(), status, failure(status));
        verdict
    }
}

impl Delivery {
    async fn ask_aside(&self, side: &dyn AppSide, seen: &Seen, path: &str) -> Verdict {
        let trace = seen.event.get("traceparent").and_then(Value::as_str);
        let (broker, app, topic) = (&self.broker.party, side.party(), &self.subscription.topic);
        let record = Record::delivery(Kind::Deliver, broker, &app, 0, "STREAM", topic);
        let record = record.traced(trace.map(trace_id).unwrap_or_default());
        let asked = tokio::time::timeout(ANSWER_WITHIN, side.ask(&seen.event, path)).await;
        let verdict = asked.unwrap_or_else(|_| Verdict::Retry(format!("no answer within {ANSWER_WITHIN:?}")));
        let status = match &verdict {
            Verdict::Success => 200,
            Verdict::Drop(_) => 404,
            Verdict::Retry(_) => 503,
        };
        record.end(&self.consumer.flows(), status, failure(status));
        verdict
    }
}

/// The trace of an event; zeros when it is none.
fn trace_id(traceparent: &str) -> [u8; 16] {
    let mut headers = http::HeaderMap::new();
    match http::HeaderValue::from_str(traceparent) {
        Ok(value) => {
            headers.insert("traceparent", value);
            weft_l7::trace::trace(&mut headers)
        }
        Err(_) => [0; 16],
    }
}

impl MessageHandler for Delivery {
    fn handle(&self, message: Message) -> BoxFuture<'_, Outcome> {
        self.deliver(message).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_means_what_dapr_says() {
        let says = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).unwrap_or_default();
            match verdict(status, body.as_bytes()) {
                Verdict::Success => "success",
                Verdict::Retry(_) => "retry",
                Verdict::Drop(_) => "drop",
            }
        };
        for (status, body, wanted) in [
            (200, "", "success"),
            (204, "", "success"),
            (200, "OK", "success"),
            (200, "{}", "success"),
            (200, "{\"status\": \"SUCCESS\"}", "success"),
            (201, "{\"status\": \"RETRY\"}", "retry"),
            (200, "{\"status\": \"DROP\"}", "drop"),
            (200, "{\"status\": \"later\"}", "retry"),
            (200, "{\"status\": 5}", "success"),
            (404, "", "drop"),
            (400, "", "retry"),
            (500, "{\"status\": \"SUCCESS\"}", "retry"),
            (302, "", "retry"),
        ] {
            assert_eq!(says(status, body), wanted, "{status} {body}");
        }
    }
}
