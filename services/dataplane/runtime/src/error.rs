//! Answers that the runtime makes itself, in Dapr's form: `{"errorCode": …, "message": …}`.

use http::{HeaderValue, Response, StatusCode, header};
use weft_l7::Body;

/// An error as Dapr's clients expect it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
}

/// Marks an answer as the runtime's own and not the app's; with its message.
#[derive(Debug, Clone)]
pub(crate) struct Own(pub String);

const MALFORMED: &str = "ERR_MALFORMED_REQUEST";
const DIRECT_INVOKE: &str = "ERR_DIRECT_INVOKE";

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }

    /// Neither the path nor a header says whom to call: also what unknown paths get.
    pub fn no_app_id() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            DIRECT_INVOKE,
            "failed getting app id either from the URL path or the header dapr-app-id",
        )
    }

    pub fn bad_app_id(shown: &str) -> Self {
        let shown: String = shown.chars().take(80).collect();
        Self::new(
            StatusCode::BAD_REQUEST,
            DIRECT_INVOKE,
            format!("{shown:?} is no app id"),
        )
    }

    pub fn no_endpoint(app_id: &str) -> Self {
        Self::invoke(
            StatusCode::INTERNAL_SERVER_ERROR,
            app_id,
            &format!("couldn't find service: {app_id}"),
        )
    }

    /// Names neither the rule nor whose it is: that is for the operator, in the flow.
    pub fn denied(app_id: &str) -> Self {
        Self::invoke(
            StatusCode::FORBIDDEN,
            app_id,
            "rpc error: code = PermissionDenied desc = the call has been denied by network policy",
        )
    }

    pub fn unavailable(app_id: &str, what: &str) -> Self {
        let text = format!("rpc error: code = Unavailable desc = {what}");
        Self::invoke(StatusCode::INTERNAL_SERVER_ERROR, app_id, &text)
    }

    pub fn overloaded(app_id: &str) -> Self {
        let text = "rpc error: code = ResourceExhausted desc = too many requests under way";
        Self::invoke(StatusCode::SERVICE_UNAVAILABLE, app_id, text)
    }

    fn invoke(status: StatusCode, app_id: &str, what: &str) -> Self {
        Self::new(
            status,
            DIRECT_INVOKE,
            format!("failed to invoke, id: {app_id}, err: {what}"),
        )
    }

    pub fn unserved(api: &str, code: &'static str) -> Self {
        let message = format!("the {api} API is not served by this version of Weft");
        Self::new(StatusCode::NOT_IMPLEMENTED, code, message)
    }

    /// Nothing more is read from a connection that sent this.
    pub fn malformed(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, MALFORMED, what.to_string())
    }
}

impl From<ApiError> for Response<Body> {
    fn from(e: ApiError) -> Self {
        let body = serde_json::json!({ "errorCode": e.code, "message": e.message });
        let mut response = json(e.status, &body);
        if e.code == MALFORMED {
            response
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(Own(e.message));
        response
    }
}

pub(crate) fn json(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(crate) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
