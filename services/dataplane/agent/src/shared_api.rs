//! What an agent answers at the address of a shared endpoint: Dapr's HTTP and gRPC APIs for whoever speaks as
//! its app, and what was asked of them, as daprd tells it at its port for metrics.
//!
//! Owns which port is what, and the counters.

use crate::locals::Local;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, Weak},
};
use weft_flows::Party;
use weft_l7::Body;
use weft_proxy::Answers;
use weft_runtime::Runtime;

/// Dapr's HTTP API.
pub const HTTP_PORT: u16 = 3500;
/// Dapr's gRPC API.
pub const GRPC_PORT: u16 = 50001;
/// For Prometheus.
const METRICS_PORT: u16 = 9090;

const SERVICE: &str = "/dapr.proto.runtime.v1.Dapr/";
/// Methods of gRPC that are counted by name; more than there are.
const MAX_METHODS: usize = 256;
/// The content type of Prometheus' text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Debug, Clone, Copy)]
enum Kind {
    Http,
    Grpc,
    Metrics,
}

/// Answers at one port of a shared endpoint.
pub struct SharedApi {
    kind: Kind,
    runtime: Weak<Runtime>,
    local: Arc<Local>,
}

impl SharedApi {
    /// Who answers at a port; `None`: nobody.
    pub fn at(port: u16, runtime: &Weak<Runtime>, local: &Arc<Local>) -> Option<Self> {
        let kind = match port {
            HTTP_PORT => Kind::Http,
            GRPC_PORT => Kind::Grpc,
            METRICS_PORT => Kind::Metrics,
            _ => return None,
        };
        Some(Self {
            kind,
            runtime: runtime.clone(),
            local: local.clone(),
        })
    }
}

impl Answers for SharedApi {
    fn answer(&self, from: &Arc<Party>, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        let (runtime, member, local) = (self.runtime.upgrade(), self.local.member(), self.local.clone());
        let (kind, from) = (self.kind, from.clone());
        Box::pin(async move {
            let Some((runtime, member)) = runtime.zip(member) else {
                return status(StatusCode::SERVICE_UNAVAILABLE);
            };
            let app = &member.context;
            match kind {
                Kind::Http => {
                    let method = request.method().clone();
                    let answer = runtime.answer(app, &from, request).await;
                    local.asked.http(&method, answer.status());
                    answer
                }
                Kind::Grpc => {
                    let method = request.uri().path().to_owned();
                    let answer = runtime.answer_grpc(app, &from, request).await;
                    counted(answer, local, method)
                }
                Kind::Metrics => metrics(&request, &local.asked, &app.party().app_id),
            }
        })
    }
}

fn status(code: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = code;
    response
}

/// Counts a call when it has ended: its status is in the trailers, or in the head of one that has no message.
fn counted(answer: Response<Body>, local: Arc<Local>, method: String) -> Response<Body> {
    const STATUS: &str = "grpc-status";
    let read = |headers: &http::HeaderMap| headers.get(STATUS)?.to_str().ok()?.parse::<u16>().ok();
    if let Some(code) = read(answer.headers()) {
        local.asked.grpc(&method, code);
        return answer;
    }
    answer.map(|body| {
        Body::made(body.map_frame(move |frame| {
            if let Some(code) = frame.trailers_ref().and_then(read) {
                local.asked.grpc(&method, code);
            }
            frame
        }))
    })
}

fn metrics(request: &Request<Body>, asked: &Asked, app_id: &str) -> Response<Body> {
    if !matches!(request.uri().path(), "/" | "/metrics") {
        return status(StatusCode::NOT_FOUND);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return status(StatusCode::METHOD_NOT_ALLOWED);
    }
    let mut response = Response::new(Body::full(asked.text(app_id)));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, http::HeaderValue::from_static(TEXT));
    response
}

/// What was asked at one shared endpoint, since its agent answers for it.
#[derive(Debug, Default)]
pub struct Asked {
    http: Mutex<BTreeMap<(&'static str, u16), u64>>,
    grpc: Mutex<BTreeMap<(String, u16), u64>>,
}

impl Asked {
    fn http(&self, method: &Method, status: StatusCode) {
        let known = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"];
        let method = known.into_iter().find(|m| *m == method.as_str());
        let key = (method.unwrap_or("other"), status.as_u16());
        *self.http.lock().entry(key).or_default() += 1;
    }

    fn grpc(&self, path: &str, status: u16) {
        // As gRPC's own libraries name methods: without the slash in front.
        let name = path.strip_prefix('/').filter(|_| path.starts_with(SERVICE));
        let mut all = self.grpc.lock();
        let key = (name.unwrap_or("other").to_owned(), status);
        let key = if all.len() < MAX_METHODS || all.contains_key(&key) {
            key
        } else {
            ("other".to_owned(), 0)
        };
        *all.entry(key).or_default() += 1;
    }

    /// In Prometheus' text format, by the names that daprd has for them.
    fn text(&self, app_id: &str) -> String {
        let mut text = String::new();
        const HTTP: &str = "dapr_http_server_request_count";
        const GRPC: &str = "dapr_grpc_io_server_completed_rpcs";
        // Writing to a string does not fail; app-ids, methods and codes need no escaping.
        let _ = writeln!(
            text,
            "# HELP {HTTP} HTTP requests answered.\n# TYPE {HTTP} counter"
        );
        for ((method, status), count) in &*self.http.lock() {
            let labels = format!("app_id=\"{app_id}\",method=\"{method}\",status=\"{status}\"");
            let _ = writeln!(text, "{HTTP}{{{labels}}} {count}");
        }
        let _ = writeln!(
            text,
            "# HELP {GRPC} gRPC calls that have ended.\n# TYPE {GRPC} counter"
        );
        for ((method, code), count) in &*self.grpc.lock() {
            let status = name_of(*code);
            let labels = format!(
                "app_id=\"{app_id}\",grpc_server_method=\"{method}\",grpc_server_status=\"{status}\""
            );
            let _ = writeln!(text, "{GRPC}{{{labels}}} {count}");
        }
        text
    }
}

/// The name of a code of gRPC, as its libraries write it.
fn name_of(code: u16) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.get(usize::from(code)).copied().unwrap_or("UNKNOWN")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_is_told_by_daprs_names_and_is_bounded() {
        let asked = Asked::default();
        for _ in 0..2 {
            asked.http(&Method::GET, StatusCode::OK);
        }
        asked.http(&Method::from_bytes(b"BREW").unwrap(), StatusCode::IM_A_TEAPOT);
        asked.grpc("/dapr.proto.runtime.v1.Dapr/GetState", 5);
        for number in 0..400 {
            asked.grpc(&format!("/dapr.proto.runtime.v1.Dapr/Made{number}"), 12);
            asked.grpc(&format!("/other.Service/Made{number}"), 12);
        }
        let text = asked.text("cart");
        for line in [
            r#"dapr_http_server_request_count{app_id="cart",method="GET",status="200"} 2"#,
            r#"dapr_http_server_request_count{app_id="cart",method="other",status="418"} 1"#,
            r#"dapr_grpc_io_server_completed_rpcs{app_id="cart",grpc_server_method="dapr.proto.runtime.v1.Dapr/GetState",grpc_server_status="NOT_FOUND"} 1"#,
            r#"dapr_grpc_io_server_completed_rpcs{app_id="cart",grpc_server_method="other",grpc_server_status="UNIMPLEMENTED"} 400"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        assert!(text.lines().count() < MAX_METHODS + 10);
    }
}
