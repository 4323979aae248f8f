//! Dapr's errors of the building blocks: code and message, status of HTTP and of gRPC, and details.

mod publish;
mod state;
mod stores;

use crate::error::json;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tonic::Code;
use tonic_types::{ErrorDetails, StatusExt};
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

    /// A request that is not of its form.
    pub fn malformed(message: impl Into<String>) -> Self {
        let code = "ERR_MALFORMED_REQUEST";
        Self::plain(StatusCode::BAD_REQUEST, Code::InvalidArgument, code, message)
    }

    pub fn malformed_body(error: impl std::fmt::Display) -> Self {
        Self::malformed(format!("failed deserializing HTTP body: {error}"))
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
