//! Of publishing.

use super::{BlockError, Pairs};
use http::StatusCode;
use tonic::Code;

impl BlockError {
    pub fn pubsub_not_found(name: &str, metadata: &[(String, String)]) -> Self {
        let message = format!("pubsub {name} is not found");
        Self::plain(
            StatusCode::NOT_FOUND,
            Code::InvalidArgument,
            "ERR_PUBSUB_NOT_FOUND",
            message,
        )
        .info("DAPR_PUBSUB_NOT_FOUND", Some(metadata.to_vec()))
    }

    pub fn pubsub_name_empty(metadata: &[(String, String)]) -> Self {
        let message = "pubsub name is empty";
        Self::plain(
            StatusCode::NOT_FOUND,
            Code::InvalidArgument,
            "ERR_PUBSUB_EMPTY",
            message,
        )
        .resource("pubsub", "", message)
        .info("DAPR_PUBSUB_NAME_EMPTY", Some(metadata.to_vec()))
    }

    pub fn topic_empty(name: &str, metadata: &[(String, String)]) -> Self {
        let message = format!("topic is empty in pubsub {name}");
        let code = "ERR_TOPIC_NAME_EMPTY";
        Self::plain(
            StatusCode::NOT_FOUND,
            Code::InvalidArgument,
            code,
            message.clone(),
        )
        .resource("pubsub", name, &message)
        .info("DAPR_PUBSUB_TOPIC_NAME_EMPTY", Some(metadata.to_vec()))
    }

    pub fn publish_metadata(name: &str, metadata: &[(String, String)], error: &str) -> Self {
        let message = format!("failed deserializing metadata. Error: {error}");
        let code = "ERR_PUBSUB_REQUEST_METADATA";
        Self::plain(
            StatusCode::BAD_REQUEST,
            Code::InvalidArgument,
            code,
            message.clone(),
        )
        .resource("pubsub", name, &message)
        .info("DAPR_PUBSUB_METADATA_DESERIALIZATION", Some(metadata.to_vec()))
    }

    pub fn cloud_event(name: &str, app_id: &str, error: &str) -> Self {
        let message = "cannot create cloudevent";
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::plain(
            status,
            Code::InvalidArgument,
            "ERR_PUBSUB_CLOUD_EVENTS_SER",
            message,
        )
        .resource("pubsub", name, message)
        .info("DAPR_PUBSUB_CLOUD_EVENT_CREATION", of_app(app_id, Some(error)))
    }

    pub fn envelope(name: &str, topic: &str, app_id: &str, error: &str) -> Self {
        let message =
            format!("error when marshalling cloud event envelope for topic {topic} pubsub {name}: {error}");
        Self::events(name, message).info("DAPR_PUBSUB_MARSHAL_ENVELOPE", of_app(app_id, Some(error)))
    }

    pub fn entries(name: &str, topic: &str, app_id: &str) -> Self {
        let error = "entryId is duplicated or not present for entry";
        let message =
            format!("error marshaling events to bytes for topic {topic} pubsub {name}. error: {error}");
        Self::events(name, message).info("DAPR_PUBSUB_MARSHAL_EVENTS", of_app(app_id, Some(error)))
    }

    pub fn unreadable_events(name: &str, topic: &str, app_id: &str, error: &str) -> Self {
        let message = format!("error when unmarshaling the request for topic {topic} pubsub {name}: {error}");
        Self::events(name, message).info("DAPR_PUBSUB_UNMARSHAL_EVENTS", of_app(app_id, None))
    }

    fn events(name: &str, message: String) -> Self {
        let code = "ERR_PUBSUB_EVENTS_SER";
        Self::plain(
            StatusCode::BAD_REQUEST,
            Code::InvalidArgument,
            code,
            message.clone(),
        )
        .resource("pubsub", name, &message)
    }

    pub fn publish_forbidden(name: &str, topic: &str, app_id: &str) -> Self {
        let message = format!("topic {topic} is not allowed for app id {app_id}");
        let metadata = of_topic(topic, &message);
        let code = "ERR_PUBSUB_FORBIDDEN";
        Self::plain(
            StatusCode::FORBIDDEN,
            Code::PermissionDenied,
            code,
            message.clone(),
        )
        .resource("pubsub", name, &message)
        .info("DAPR_PUBSUB_FORBIDDEN", Some(metadata))
    }

    pub fn publish(name: &str, topic: &str, error: &str) -> Self {
        let message = format!("error when publishing to topic {topic} in pubsub {name}: {error}");
        let metadata = of_topic(topic, error);
        let (status, code) = (StatusCode::INTERNAL_SERVER_ERROR, "ERR_PUBSUB_PUBLISH_MESSAGE");
        Self::plain(status, Code::Internal, code, message.clone())
            .resource("pubsub", name, &message)
            .info("DAPR_PUBSUB_PUBLISH_MESSAGE", Some(metadata))
    }
}

fn of_app(app_id: &str, error: Option<&str>) -> Option<Pairs> {
    let mut pairs = vec![("appID".to_owned(), app_id.to_owned())];
    pairs.extend(error.map(|error| ("error".to_owned(), error.to_owned())));
    Some(pairs)
}

fn of_topic(topic: &str, error: &str) -> Pairs {
    vec![("topic".into(), topic.into()), ("error".into(), error.into())]
}
