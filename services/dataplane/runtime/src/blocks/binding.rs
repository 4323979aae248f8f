//! Bindings: an app calls something outside by one, and gets events by another.

use super::{
    BlockError, Blocks, Consumer,
    app::Input,
    record::{Record, failure},
    request::{empty_or_json, read_body},
};
use crate::{AppContext, error::empty};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use weft_components_api::{BindingError, BindingEvent, BindingHandler, BindingRequest, BindingResponse};
use weft_flows::Kind;
use weft_l7::Body;

/// An app may take so long to say whether it wants a binding's events (Dapr's default of
/// `--app-binding-options-timeout` is 3 s).
const OPTIONS_WITHIN: Duration = Duration::from_secs(3);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Invocation {
    metadata: Option<BTreeMap<String, String>>,
    data: Value,
    operation: Option<String>,
}

/// `app` calls a binding.
pub(crate) async fn invoke(
    blocks: &Blocks,
    app: &AppContext,
    name: &str,
    request: BindingRequest,
    trace_id: [u8; 16],
) -> Result<Option<BindingResponse>, BlockError> {
    let failed = |error: String| BlockError::output_binding(name, &error);
    if request.operation.is_empty() {
        return Err(failed("operation field is missing from request".into()));
    }
    let Some(output) = blocks.of(app).outputs.get(name).cloned() else {
        return Err(failed(format!("couldn't find output binding {name}")));
    };
    let operations = output.binding.operations();
    if !operations.contains(&request.operation.as_str()) {
        return Err(failed(format!(
            "binding {name} does not support operation {}. supported operations:{}",
            request.operation,
            operations.join(" ")
        )));
    }
    let operation = request.operation.clone();
    let record = Record::call(
        Kind::Binding,
        app.party(),
        app.proof(),
        &output.party,
        &operation,
        &output.name,
    );
    let done = output
        .binding
        .invoke(request)
        .await
        .map_err(|e| failed(e.to_string()));
    let status = done.as_ref().map_or_else(|e| e.status().as_u16(), |_| 200);
    record
        .traced(trace_id)
        .end(&blocks.flows(), status, failure(status));
    done
}

/// `POST /v1.0/bindings/{name}`.
pub(crate) async fn serve(
    blocks: &Blocks,
    app: &AppContext,
    name: &str,
    mut request: Request<Body>,
) -> Response<Body> {
    if !matches!(*request.method(), Method::POST | Method::PUT) {
        return empty(StatusCode::METHOD_NOT_ALLOWED);
    }
    let trace_id = weft_l7::trace::trace(request.headers_mut());
    let traceparent = request.headers().get("traceparent").cloned();
    let body = match read_body(blocks, app, request).await {
        Ok(body) => body,
        Err(e) => return BlockError::malformed_body(e).into(),
    };
    let asked: Invocation = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(e) => return BlockError::malformed_body(e).into(),
    };
    let mut metadata = asked.metadata.unwrap_or_default();
    if let Some(trace) = traceparent.as_ref().and_then(|t| t.to_str().ok()) {
        metadata.insert("traceparent".into(), trace.to_owned());
    }
    let request = BindingRequest {
        operation: asked.operation.unwrap_or_default(),
        data: asked.data.to_string().into(),
        metadata: metadata.into_iter().collect(),
    };
    match invoke(blocks, app, name, request, trace_id).await {
        Err(e) => e.into(),
        Ok(None) => empty_or_json(None),
        Ok(Some(answer)) => {
            let mut response = Response::new(Body::full(answer.data));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            for (key, value) in answer.metadata {
                let name = HeaderName::try_from(format!("metadata.{key}").to_ascii_lowercase());
                if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&value)) {
                    headers.append(name, value);
                }
            }
            response
        }
    }
}

/// Whether the app takes a binding's events.
pub(crate) async fn wants(consumer: &Consumer, input: &Input) -> bool {
    if input.explicit {
        return true;
    }
    let asked = consumer.ask(Method::OPTIONS, &input.route, Vec::new(), Bytes::new());
    let asked = tokio::time::timeout(OPTIONS_WITHIN, asked).await;
    let status = asked.ok().and_then(Result::ok).map(|answer| answer.status);
    status.is_some_and(|s| s.is_success() || s == StatusCode::METHOD_NOT_ALLOWED)
}

/// Takes a binding's events to the app.
pub(crate) struct ToApp {
    pub consumer: Arc<Consumer>,
    pub input: Arc<Input>,
}

impl BindingHandler for ToApp {
    fn handle(&self, event: BindingEvent) -> BoxFuture<'_, Result<Bytes, BindingError>> {
        async move {
            let (consumer, input) = (&self.consumer, &self.input);
            let _turn = consumer.turn(event.data.len()).await;
            let Some(endpoint) = consumer.endpoint() else {
                return Err(BindingError::Failed("no workload of the app is ready".into()));
            };
            let record = Record::delivery(
                Kind::Binding,
                &input.party,
                endpoint.party(),
                consumer.port(&endpoint),
                "POST",
                &input.route,
            );
            let mut headers = vec![(header::CONTENT_TYPE.to_string(), "application/json".to_owned())];
            headers.extend(event.metadata);
            let done = consumer
                .ask_at(&endpoint, Method::POST, &input.route, headers, event.data)
                .await;
            let status = done.as_ref().map_or(503, |answer| answer.status.as_u16());
            record.end(&consumer.flows(), status, failure(status));
            let answer = done.map_err(BindingError::Failed)?;
            if answer.status != StatusCode::OK {
                let text = format!("error sending binding event to application, status {status}");
                return Err(BindingError::Failed(text));
            }
            Ok(answer.body)
        }
        .boxed()
    }
}
