//! The small APIs: health and metadata.

use crate::{
    AppContext,
    blocks::{Blocks, Subscription},
    error::{ApiError, empty, json},
    path::percent_decode,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};
use std::time::Duration;
use weft_l7::Body;

/// A value of the extended metadata is read up to this size, and in this time.
const MAX_VALUE_BYTES: usize = 8 * 1024;
const MAX_VALUE_TIME: Duration = Duration::from_secs(10);

/// `GET /v1.0/healthz[?appid=…]`.
pub(crate) fn healthz(app: &AppContext, method: &Method, query: Option<&str>) -> Response<Body> {
    if let Some(refused) = only_get(method) {
        return refused;
    }
    let asked = query
        .unwrap_or_default()
        .split('&')
        .find_map(|pair| pair.strip_prefix("appid="));
    if asked.is_some_and(|id| percent_decode(id).as_deref() != Some(&app.party().app_id)) {
        let text = "dapr app-id does not match";
        return ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "ERR_HEALTH_APPID_NOT_MATCH",
            text,
        )
        .into();
    }
    if !app.health().is_ready() {
        let text = "dapr is not ready";
        return ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "ERR_HEALTH_NOT_READY", text).into();
    }
    empty(StatusCode::NO_CONTENT)
}

/// `GET /v1.0/healthz/outbound`.
pub(crate) fn healthz_outbound(app: &AppContext, method: &Method) -> Response<Body> {
    if let Some(refused) = only_get(method) {
        return refused;
    }
    if !app.health().is_outbound_ready() {
        let text = "dapr outbound is not ready";
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return ApiError::new(status, "ERR_OUTBOUND_HEALTH_NOT_READY", text).into();
    }
    empty(StatusCode::NO_CONTENT)
}

/// `GET /v1.0/metadata`.
pub(crate) fn metadata(blocks: &Blocks, app: &AppContext, method: &Method) -> Response<Body> {
    if let Some(refused) = only_get(method) {
        return refused;
    }
    let channel = app.channel();
    let protocol = if channel.protocol.is_empty() {
        "http"
    } else {
        &channel.protocol
    };
    let connection = match channel.port {
        0 => json!({ "maxConcurrency": 0 }),
        port => json!({
            "port": port,
            "protocol": protocol,
            "channelAddress": "127.0.0.1",
            "maxConcurrency": 0,
        }),
    };
    let view = blocks.of(app);
    let components = view.listed.iter().map(|component| {
        json!({
            "name": component.name,
            "type": component.kind,
            "version": component.version,
            "capabilities": component.capabilities,
        })
    });
    let components: Vec<Value> = components.collect();
    let subscriptions = blocks.subscriptions(app);
    let subscriptions: Vec<Value> = subscriptions.iter().map(|s| subscription(s)).collect();
    let body = json!({
        "id": &*app.party().app_id,
        "runtimeVersion": weft_model::VERSION,
        "enabledFeatures": [],
        "actors": [],
        "components": components,
        "extended": app.extended(),
        "subscriptions": subscriptions,
        "httpEndpoints": [],
        "appConnectionProperties": connection,
        "actorRuntime": {
            "runtimeStatus": "DISABLED",
            "activeActors": [],
            "hostReady": false,
            "placement": "",
        },
        "scheduler": { "connected_addresses": [] },
        "workflows": { "connectedWorkers": 0 },
    });
    json(StatusCode::OK, &body)
}

fn subscription(subscription: &Subscription) -> Value {
    let rules = subscription.rules.0.iter().map(|rule| {
        let mut told = json!({ "path": rule.path() });
        if !rule.condition().is_empty() {
            told["match"] = rule.condition().into();
        }
        told
    });
    let mut told = json!({
        "pubsubname": subscription.pubsub,
        "topic": subscription.topic,
        "rules": rules.collect::<Vec<_>>(),
        "deadLetterTopic": subscription.dead_letter.as_deref().unwrap_or_default(),
        "type": subscription.origin.as_str(),
    });
    if !subscription.metadata.is_empty() {
        let metadata = subscription.metadata.iter().cloned();
        told["metadata"] = metadata.map(|(k, v)| (k, Value::from(v))).collect();
    }
    told
}

/// `PUT /v1.0/metadata/{key}`: the body is the value.
pub(crate) async fn set_metadata(app: &AppContext, key: &str, request: Request<Body>) -> Response<Body> {
    if request.method() != Method::PUT {
        return empty(StatusCode::METHOD_NOT_ALLOWED);
    }
    let Some(key) = percent_decode(key).filter(|k| !k.is_empty()) else {
        return ApiError::malformed("the key can not be read").into();
    };
    let value = Limited::new(request.into_body(), MAX_VALUE_BYTES).collect();
    let value = match tokio::time::timeout(MAX_VALUE_TIME, value).await {
        Ok(Ok(value)) => String::from_utf8(value.to_bytes().into()),
        _ => return ApiError::malformed("the value is too long, or did not come").into(),
    };
    match value {
        Ok(value) if app.set_extended(&key, &value) => empty(StatusCode::NO_CONTENT),
        Ok(_) => ApiError::malformed("no more metadata can be kept for this app").into(),
        Err(_) => ApiError::malformed("the value is no UTF-8").into(),
    }
}

fn only_get(method: &Method) -> Option<Response<Body>> {
    (*method != Method::GET && *method != Method::HEAD).then(|| empty(StatusCode::METHOD_NOT_ALLOWED))
}
