//! Of bindings, secrets, configuration and locks.

use super::BlockError;
use http::StatusCode;
use tonic::Code;

const INTERNAL: StatusCode = StatusCode::INTERNAL_SERVER_ERROR;

impl BlockError {
    pub fn output_binding(name: &str, error: &str) -> Self {
        let message = format!("error invoking output binding {name}: {error}");
        let (status, code) = (StatusCode::INTERNAL_SERVER_ERROR, "ERR_INVOKE_OUTPUT_BINDING");
        Self::plain(status, Code::Internal, code, message)
    }

    pub fn secret_stores_not_configured() -> Self {
        let code = "ERR_SECRET_STORES_NOT_CONFIGURED";
        Self::plain(
            INTERNAL,
            Code::FailedPrecondition,
            code,
            "secret store is not configured",
        )
    }

    pub fn secret_store_not_found(store: &str) -> Self {
        let message = format!("failed finding secret store with key {store}");
        let code = "ERR_SECRET_STORE_NOT_FOUND";
        Self::plain(StatusCode::UNAUTHORIZED, Code::InvalidArgument, code, message)
    }

    pub fn secret_denied(store: &str, key: &str) -> Self {
        let message = format!("access denied by policy to get {key:?} from {store:?}");
        let code = "ERR_PERMISSION_DENIED";
        Self::plain(StatusCode::FORBIDDEN, Code::PermissionDenied, code, message)
    }

    pub fn secret_get(store: &str, key: &str, error: &str) -> Self {
        let message = format!("failed getting secret with key {key} from secret store {store}: {error}");
        Self::plain(INTERNAL, Code::Internal, "ERR_SECRET_GET", message)
    }

    pub fn secrets_get(store: &str, error: &str) -> Self {
        let message = format!("failed getting secrets from secret store {store}: {error}");
        Self::plain(INTERNAL, Code::Internal, "ERR_SECRET_GET", message)
    }

    pub fn configuration_not_configured() -> Self {
        let code = "ERR_CONFIGURATION_STORE_NOT_CONFIGURED";
        let message = "configuration stores not configured";
        Self::plain(INTERNAL, Code::FailedPrecondition, code, message)
    }

    pub fn configuration_not_found(store: &str) -> Self {
        let message = format!("configuration store {store} not found");
        let code = "ERR_CONFIGURATION_STORE_NOT_FOUND";
        Self::plain(StatusCode::BAD_REQUEST, Code::InvalidArgument, code, message)
    }

    /// Keys are shown as Go shows a list of texts.
    pub fn configuration_get(store: &str, keys: &[String], error: &str) -> Self {
        let message = format!(
            "failed to get [{}] from Configuration store {store}: {error}",
            keys.join(" ")
        );
        Self::plain(INTERNAL, Code::Internal, "ERR_CONFIGURATION_GET", message)
    }

    pub fn configuration_subscribe(store: &str, keys: &[String], error: &str) -> Self {
        let keys = keys.join(" ");
        let message = format!("failed to subscribe [{keys}] from Configuration store {store}: {error}");
        Self::plain(INTERNAL, Code::Internal, "ERR_CONFIGURATION_SUBSCRIBE", message)
    }

    pub fn no_app_channel() -> Self {
        let message = "app channel is not initialized. cannot subscribe to configuration updates";
        Self::plain(INTERNAL, Code::Internal, "ERR_APP_CHANNEL_NIL", message)
    }

    pub fn lock_not_configured() -> Self {
        let code = "ERR_LOCK_STORE_NOT_CONFIGURED";
        Self::plain(
            INTERNAL,
            Code::FailedPrecondition,
            code,
            "lock store is not configured",
        )
    }

    pub fn lock_not_found(store: &str) -> Self {
        let message = format!("lock store {store} not found");
        let code = "ERR_LOCK_STORE_NOT_FOUND";
        Self::plain(StatusCode::BAD_REQUEST, Code::InvalidArgument, code, message)
    }

    pub fn try_lock(error: &str) -> Self {
        let message = format!("failed to try acquiring lock: {error}");
        Self::plain(INTERNAL, Code::Internal, "ERR_TRY_LOCK", message)
    }

    pub fn unlock(error: &str) -> Self {
        let message = format!("failed to release lock: {error}");
        Self::plain(INTERNAL, Code::Internal, "ERR_UNLOCK", message)
    }
}
