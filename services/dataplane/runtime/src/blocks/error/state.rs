//! Of state.

use super::{BlockError, Detail};
use http::StatusCode;
use tonic::Code;
use weft_components_api::StateError;

impl BlockError {
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
}

fn write_status(error: &StateError) -> (StatusCode, Code) {
    match error {
        StateError::EtagMismatch(_) => (StatusCode::CONFLICT, Code::Aborted),
        StateError::EtagInvalid(_) => (StatusCode::BAD_REQUEST, Code::InvalidArgument),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal),
    }
}
