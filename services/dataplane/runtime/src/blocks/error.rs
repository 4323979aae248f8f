//! Dapr's errors of the building blocks: code and message, status of HTTP and of gRPC, and details.

use crate::error::json;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tonic::Code;
use tonic_types::{ErrorDetails, StatusExt};
use weft_components_api::StateError;
use weft_l7::Body;

/// Whose errors these are, as details name it.
const DOMAIN: &str = "dapr.io";
/// A request's body has at most so many bytes (Dapr's default of `--max-body-size`).
pub(crate) const MAX_BODY: usize = 4 * 1024 * 1024;

type Pairs = Vec<(String, String)>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Detail {
    Info {
        reason: &'static str,
        metadata: Option<Pairs>,
    },
    Resource {
        kind: &'static str,
        name: String,
        description: String,
    },
    Field {
        field: String,
        description: String,
    },
    Link {
        description: &'static str,
        url: &'static str,
    },
}

/// An error as apps see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlockError {
    status: StatusCode,
    grpc: Code,
    code: &'static str,
    message: String,
    details: Vec<Detail>,
}

impl BlockError {
    /// As older parts of Dapr make them: HTTP gets no details, gRPC the code as a reason.
    fn plain(status: StatusCode, grpc: Code, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            grpc,
            code,
            message: message.into(),
            details: Vec::new(),
        }
    }

    fn with(mut self, detail: Detail) -> Self {
        self.details.push(detail);
        self
    }

    fn info(self, reason: &'static str, metadata: Option<Pairs>) -> Self {
        self.with(Detail::Info { reason, metadata })
    }

    fn resource(self, kind: &'static str, name: &str, description: &str) -> Self {
        self.with(Detail::Resource {
            kind,
            name: name.to_owned(),
            description: description.to_owned(),
        })
    }

    /// The code, for flows and tests.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The status of HTTP.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The text.
    pub fn message(&self) -> &str {
        &self.message
    }

    // State.

    pub fn state_not_configured(store: &str, app_id: &str) -> Self {
        let message = format!("state store {store} is not configured");
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let code = "ERR_STATE_STORE_NOT_CONFIGURED";
        Self::plain(status, Code::FailedPrecondition, code, message).info(
            "DAPR_STATE_NOT_CONFIGURED",
            Some(vec![("appID".into(), app_id.into())]),
        )
    }

    pub fn state_not_found(store: &str, app_id: &str) -> Self {
        let message = format!("state store {store} is not found");
        let code = "ERR_STATE_STORE_NOT_FOUND";
        Self::plain(StatusCode::BAD_REQUEST, Code::InvalidArgument, code, message).info(
            "DAPR_STATE_NOT_FOUND",
            Some(vec![("appID".into(), app_id.into())]),
        )
    }

    /// A key may not hold the separator. HTTP's text holds gRPC's, as in Dapr.
    pub fn illegal_key(store: &str, key: &str, http: bool) -> Self {
        let mut message = format!("input key/keyPrefix '{key}' can't contain '||'");
        if http {
            message = format!("api error: code = InvalidArgument desc = {message}");
        }
        let field = Detail::Field {
            field: key.to_owned(),
            description: message.clone(),
        };
        Self::plain(
            StatusCode::BAD_REQUEST,
            Code::InvalidArgument,
            "ERR_MALFORMED_REQUEST",
            message,
        )
        .with(field)
        .resource("state", store, "")
        .info("DAPR_STATE_ILLEGAL_KEY", None)
    }

    pub fn transactions_not_supported(store: &str) -> Self {
        let message = format!("state store {store} doesn't support transactions");
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let link = Detail::Link {
            description: "Check the list of state stores and the features they support",
            url: "https://docs.dapr.io/reference/components-reference/supported-state-stores/",
        };
        Self::plain(
            status,
            Code::Unimplemented,
            "ERR_STATE_STORE_NOT_SUPPORTED",
            message,
        )
        .with(link)
        .resource("state", store, "")
        .info("DAPR_STATE_TRANSACTIONS_NOT_SUPPORTED", None)
    }

    pub fn too_many_operations(store: &str, count: usize, most: usize) -> Self {
        let message = format!(
            "the transaction contains {count} operations, which is more than what the state store supports: {most}"
        );
        let metadata = vec![
            ("currentOpsTransaction".into(), count.to_string()),
            ("maxOpsPerTransaction".into(), most.to_string()),
        ];
        let code = "ERR_STATE_STORE_TOO_MANY_TRANSACTIONS";
        Self::plain(StatusCode::BAD_REQUEST, Code::InvalidArgument, code, message)
            .resource("state", store, "")
            .info("DAPR_STATE_TOO_MANY_TRANSACTIONS", Some(metadata))
    }

    pub fn query_not_supported(store: &str) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let message = "state store does not support querying";
        Self::plain(status, Code::Internal, "ERR_STATE_STORE_NOT_SUPPORTED", message)
            .resource("state", store, "")
            .info("DAPR_STATE_QUERYING_NOT_SUPPORTED", None)
    }

    pub fn operation_not_supported(operation: &str) -> Self {
        let message = format!("operation type {operation} not supported");
        let code = "ERR_NOT_SUPPORTED_STATE_OPERATION";
        Self::plain(StatusCode::BAD_REQUEST, Code::Unimplemented, code, message)
    }

    pub fn state_get(store: &str, key: &str, error: &StateError) -> Self {
        let message = format!("fail to get {key} from state store {store}: {error}");
        Self::plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            Code::Internal,
            "ERR_STATE_GET",
            message,
        )
    }

    pub fn state_save(store: &str, error: &StateError) -> Self {
        let message = format!("failed saving state in state store {store}: {error}");
        let (status, grpc) = write_status(error);
        Self::plain(status, grpc, "ERR_STATE_SAVE", message)
    }

    pub fn state_delete(key: &str, error: &StateError) -> Self {
        let message = format!("failed deleting state with key {key}: {error}");
        let (status, grpc) = write_status(error);
        Self::plain(status, grpc, "ERR_STATE_DELETE", message)
    }

    pub fn state_delete_bulk(store: &str, error: &StateError) -> Self {
        let message = format!("failed deleting state in state store {store}: {error}");
        let (status, grpc) = write_status(error);
        Self::plain(status, grpc, "ERR_STATE_BULK_DELETE", message)
    }

    pub fn state_transaction(error: &StateError) -> Self {
        let message = format!("error while executing state transaction: {error}");
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::plain(status, Code::Internal, "ERR_STATE_TRANSACTION", message)
    }

    pub fn empty_key() -> Self {
        let message = "state key cannot be empty";
        Self::plain(
            StatusCode::BAD_REQUEST,
            Code::InvalidArgument,
            "ERR_STATE_SAVE",
            message,
        )
    }

    // What can not be read.

    /// A request that is not of its form.
    pub fn malformed(message: impl Into<String>) -> Self {
        let code = "ERR_MALFORMED_REQUEST";
        Self::plain(StatusCode::BAD_REQUEST, Code::InvalidArgument, code, message)
    }

    pub fn malformed_body(error: impl std::fmt::Display) -> Self {
        Self::malformed(format!("failed deserializing HTTP body: {error}"))
    }

    // Publish.

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

    // Bindings.

    pub fn output_binding(name: &str, error: &str) -> Self {
        let message = format!("error invoking output binding {name}: {error}");
        let (status, code) = (StatusCode::INTERNAL_SERVER_ERROR, "ERR_INVOKE_OUTPUT_BINDING");
        Self::plain(status, Code::Internal, code, message)
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

fn write_status(error: &StateError) -> (StatusCode, Code) {
    match error {
        StateError::EtagMismatch(_) => (StatusCode::CONFLICT, Code::Aborted),
        StateError::EtagInvalid(_) => (StatusCode::BAD_REQUEST, Code::InvalidArgument),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal),
    }
}

impl Detail {
    fn to_json(&self) -> Value {
        let kind = |name: &str| format!("type.googleapis.com/google.rpc.{name}");
        match self {
            Self::Info { reason, metadata } => json!({
                "@type": kind("ErrorInfo"),
                "domain": DOMAIN,
                "reason": reason,
                "metadata": metadata.as_ref().map(|m| m.iter().cloned().collect::<BTreeMap<_, _>>()),
            }),
            Self::Resource {
                kind: of,
                name,
                description,
            } => json!({
                "@type": kind("ResourceInfo"),
                "resource_type": of,
                "resource_name": name,
                "owner": "",
                "description": description,
            }),
            Self::Field { field, description } => json!({
                "@type": kind("BadRequest"),
                "field_violations": [{ "field": field, "description": description }],
            }),
            Self::Link { description, url } => json!({
                "@type": kind("Help"),
                "links": [{ "description": description, "url": url }],
            }),
        }
    }

    fn add_to(&self, details: &mut ErrorDetails) {
        match self {
            Self::Info { reason, metadata } => {
                let metadata = metadata.clone().unwrap_or_default().into_iter();
                details.set_error_info(
                    *reason,
                    DOMAIN,
                    metadata.collect::<std::collections::HashMap<_, _>>(),
                );
            }
            Self::Resource {
                kind,
                name,
                description,
            } => {
                details.set_resource_info(*kind, name, "", description);
            }
            Self::Field { field, description } => {
                details.add_bad_request_violation(field, description);
            }
            Self::Link { description, url } => {
                details.add_help_link(*description, *url);
            }
        }
    }
}

impl From<BlockError> for Response<Body> {
    fn from(e: BlockError) -> Self {
        let mut body = json!({ "errorCode": e.code, "message": e.message });
        if !e.details.is_empty() {
            body["details"] = e.details.iter().map(Detail::to_json).collect();
        }
        json(e.status, &body)
    }
}

impl From<BlockError> for tonic::Status {
    fn from(e: BlockError) -> Self {
        let mut details = ErrorDetails::new();
        if e.details.is_empty() {
            details.set_error_info(e.code, DOMAIN, std::collections::HashMap::new());
        }
        for detail in &e.details {
            detail.add_to(&mut details);
        }
        Self::with_error_details(e.grpc, e.message, details)
    }
}
