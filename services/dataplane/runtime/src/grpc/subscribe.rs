//! Subscriptions by a stream.

use super::{Api, convert::pairs};
use crate::blocks::{self, BlockError, Said, Streamed};
use futures::{Stream, StreamExt, stream};
use prost_types::{ListValue, Struct, Value as ProtoValue, value::Kind};
use std::pin::Pin;
use tonic::{Status, Streaming};
use weft_proto::dapr::runtime::v1::{
    self as pb, subscribe_topic_events_request_alpha1::SubscribeTopicEventsRequestType as Asked,
    subscribe_topic_events_response_alpha1::SubscribeTopicEventsResponseType as Told,
    topic_event_response::TopicEventResponseStatus,
};

/// What a stream carries to the app.
pub(super) type Events =
    Pin<Box<dyn Stream<Item = Result<pb::SubscribeTopicEventsResponseAlpha1, Status>> + Send>>;

/// Extensions that are deeper than this are left out.
const MAX_DEPTH: usize = 16;

fn value(json: &serde_json::Value, depth: usize) -> ProtoValue {
    use serde_json::Value as Json;
    let kind = match json {
        _ if depth > MAX_DEPTH => Kind::NullValue(0),
        Json::Null => Kind::NullValue(0),
        Json::Bool(b) => Kind::BoolValue(*b),
        Json::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(all) => Kind::ListValue(ListValue {
            values: all.iter().map(|one| value(one, depth + 1)).collect(),
        }),
        Json::Object(all) => Kind::StructValue(Struct {
            fields: all
                .iter()
                .map(|(k, v)| (k.clone(), value(v, depth + 1)))
                .collect(),
        }),
    };
    ProtoValue { kind: Some(kind) }
}

/// What an event has beside what every event has.
fn extensions(event: &serde_json::Map<String, serde_json::Value>) -> Option<Struct> {
    const KNOWN: [&str; 9] = [
        "id",
        "source",
        "type",
        "specversion",
        "datacontenttype",
        "data",
        "data_base64",
        "topic",
        "pubsubname",
    ];
    let more = event.iter().filter(|(name, _)| !KNOWN.contains(&name.as_str()));
    let fields = more.map(|(name, json)| (name.clone(), value(json, 0)));
    Some(Struct {
        fields: fields.collect(),
    })
}

fn told(message: Streamed) -> pb::SubscribeTopicEventsResponseAlpha1 {
    let text = |name: &str| {
        message
            .event
            .get(name)
            .and_then(|v| v.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let event = pb::TopicEventRequest {
        source: text("source"),
        r#type: text("type"),
        spec_version: text("specversion"),
        data_content_type: text("datacontenttype"),
        extensions: extensions(&message.event),
        path: "/".into(),
        id: message.id,
        data: message.data,
        topic: message.topic,
        pubsub_name: message.pubsub,
    };
    pb::SubscribeTopicEventsResponseAlpha1 {
        subscribe_topic_events_response_type: Some(Told::EventMessage(event)),
    }
}

fn said(status: Option<pb::TopicEventResponse>) -> Said {
    match status.unwrap_or_default().status() {
        TopicEventResponseStatus::Success => Said::Success,
        TopicEventResponseStatus::Retry => Said::Retry,
        TopicEventResponseStatus::Drop => Said::Drop,
    }
}

impl Api {
    pub(super) async fn subscribe(
        &self,
        request: tonic::Request<Streaming<pb::SubscribeTopicEventsRequestAlpha1>>,
    ) -> Result<Events, Status> {
        let mut asked = request.into_inner();
        let first = asked
            .message()
            .await?
            .and_then(|m| m.subscribe_topic_events_request_type);
        let Some(Asked::InitialRequest(initial)) = first else {
            return Err(Status::unknown("initial request is required"));
        };
        if initial.pubsub_name.is_empty() {
            return Err(Status::unknown("pubsubName is required"));
        }
        if initial.topic.is_empty() {
            return Err(Status::unknown("topic is required"));
        }
        let opened = blocks::open_stream(
            self.runtime.blocks(),
            &self.app,
            &initial.pubsub_name,
            &initial.topic,
            pairs(initial.metadata),
            initial.dead_letter_topic,
        );
        let opened = opened.await.map_err(BlockError::into);
        let mut opened: blocks::Stream = match opened {
            Ok(opened) => opened,
            Err(status) => return Err(status),
        };
        let first = pb::SubscribeTopicEventsResponseAlpha1 {
            subscribe_topic_events_response_type: Some(Told::InitialResponse(
                pb::SubscribeTopicEventsResponseInitialAlpha1 {},
            )),
        };
        let replies = opened.replies.clone();
        // The app's answers are read for as long as its messages are; the end of one is the end of both.
        let messages = stream::poll_fn(move |context| {
            // All of it belongs to the stream, and ends with it.
            let opened = &mut opened;
            opened.messages.poll_recv(context)
        });
        let messages = messages.map(|m| Some(told(m)));
        let answers = asked.map(move |answer| match answer {
            Ok(answer) => {
                if let Some(Asked::EventProcessed(done)) = answer.subscribe_topic_events_request_type {
                    replies.settle(&done.id, said(done.status));
                }
                Ok(())
            }
            Err(status) => Err(status),
        });
        let ended = stream::once(std::future::ready(Err(Status::ok(""))));
        let answers = answers.chain(ended);
        let both = stream::select(messages.map(Ok), answers.map(|answer| answer.map(|()| None)));
        // Whatever breaks off, the client's end or its error, ends the subscription.
        let both = both.take_while(|item| std::future::ready(item.is_ok()));
        let both = both.filter_map(|item| std::future::ready(item.ok().flatten().map(Ok)));
        let draining = self.draining();
        Ok(stream::once(std::future::ready(Ok(first)))
            .chain(both)
            .take_until(draining)
            .boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn extensions_are_what_is_not_known() {
        let event =
            json!({"id": "1", "data": 5, "topic": "t", "traceid": "x", "own": {"a": [1, true, null]}});
        let Some(event) = event.as_object() else { return };
        let fields = extensions(event).map(|s| s.fields).unwrap_or_default();
        assert_eq!(fields.keys().collect::<Vec<_>>(), ["own", "traceid"]);
        assert_eq!(fields["traceid"].kind, Some(Kind::StringValue("x".into())));
    }
}
