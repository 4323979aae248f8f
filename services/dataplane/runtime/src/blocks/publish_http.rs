//! Publishing over HTTP.

use super::{
    BlockError, Blocks, content_type,
    publish::{Entry, Publisher, Trace},
    request::{Query, read_body},
};
use crate::{
    AppContext,
    error::{empty, json},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use weft_l7::Body;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BulkEntry {
    /// One of Dapr's SDKs writes it otherwise than its API.
    #[serde(rename = "entryId", alias = "entryID")]
    id: String,
    event: Value,
    #[serde(rename = "contentType")]
    content_type: String,
    metadata: Option<BTreeMap<String, String>>,
}

const MISMATCH: &str = "error: mismatch between contentType and event";

/// An entry's event as the bytes that it stands for.
fn content(event: &Value, kind: &str) -> Result<Bytes, String> {
    let text = event.as_str();
    if content_type::is_binary(kind) {
        let decoded = STANDARD.decode(text.ok_or(MISMATCH)?);
        let decoded = decoded
            .map_err(|e| format!("error: unable to decode base64 application/octect-stream data: {e}"))?;
        return Ok(decoded.into());
    }
    if content_type::is_text(kind) {
        return Ok(text.ok_or(MISMATCH)?.to_owned().into());
    }
    if content_type::is_json(kind) || content_type::is_cloud_event(kind) {
        return Ok(event.to_string().into());
    }
    Err(MISMATCH.into())
}

/// One request to publish to `topic` of broker `name`.
pub(crate) async fn serve(
    blocks: &Blocks,
    app: &AppContext,
    name: &str,
    topic: &str,
    bulk: bool,
    mut request: Request<Body>,
) -> Response<Body> {
    if !matches!(*request.method(), Method::POST | Method::PUT) {
        return empty(StatusCode::METHOD_NOT_ALLOWED);
    }
    let metadata = Query::of(request.uri()).metadata();
    let trace = Trace::of(request.headers_mut());
    let publisher = match Publisher::new(blocks, app, name, topic, metadata, trace) {
        Ok(publisher) => publisher,
        Err(e) => return e.into(),
    };
    let kind = request.headers().get(header::CONTENT_TYPE);
    let kind = kind.and_then(|k| k.to_str().ok()).unwrap_or_default().to_owned();
    let body = match read_body(blocks, app, request).await {
        Ok(body) => body,
        Err(e) if bulk => return publisher.unreadable_bulk(&e).into(),
        Err(e) => return publisher.unreadable(&e).into(),
    };
    if !bulk {
        return match publisher.publish(&body, &kind).await {
            Ok(()) => empty(StatusCode::NO_CONTENT),
            Err(e) => e.into(),
        };
    }
    let done = match entries(&publisher, &body) {
        Ok(entries) => publisher.publish_bulk(entries).await,
        Err(e) => Err(e),
    };
    match done {
        Err(e) => e.into(),
        Ok(failed) if failed.is_empty() => empty(StatusCode::NO_CONTENT),
        Ok(failed) => incomplete(&publisher.incomplete(&failed), failed),
    }
}

fn entries(publisher: &Publisher<'_>, body: &[u8]) -> Result<Vec<Entry>, BlockError> {
    let given: Option<Vec<BulkEntry>> =
        serde_json::from_slice(body).map_err(|e| publisher.unreadable_bulk(&e.to_string()))?;
    let entries = given.unwrap_or_default().into_iter().map(|entry| {
        let data = content(&entry.event, &entry.content_type);
        Ok(Entry {
            data: data.map_err(|e| publisher.mismatch(&e))?,
            id: entry.id,
            content_type: entry.content_type,
            metadata: entry.metadata,
        })
    });
    entries.collect()
}

fn incomplete(error: &BlockError, failed: Vec<(String, String)>) -> Response<Body> {
    let entries = failed.into_iter();
    let entries = entries.map(|(id, error)| serde_json::json!({ "entryId": id, "error": error }));
    let body = serde_json::json!({
        "failedEntries": entries.collect::<Vec<_>>(),
        "errorCode": error.code(),
    });
    let mut response = json(error.status(), &body);
    let text = format!("api error: code = Internal desc = {}", error.message());
    if let Ok(text) = HeaderValue::from_str(&text) {
        response.headers_mut().insert("metadata.error", text);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_of_the_kind_that_it_says() {
        let json = serde_json::json!({"a": 1});
        let bytes = |text: &'static str| Ok(Bytes::from_static(text.as_bytes()));
        assert_eq!(content(&"hi".into(), "text/plain"), bytes("hi"));
        assert_eq!(content(&json, "application/json"), bytes("{\"a\":1}"));
        assert_eq!(content(&"hi".into(), "application/json"), bytes("\"hi\""));
        assert_eq!(content(&"aGk=".into(), "application/octet-stream"), bytes("hi"));
        let mismatch = Err(MISMATCH.to_owned());
        assert_eq!(content(&json, "text/plain"), mismatch);
        assert_eq!(content(&json, "application/octet-stream"), mismatch);
        assert_eq!(content(&"hi".into(), ""), mismatch);
        assert!(content(&"!".into(), "application/octet-stream").is_err());
    }
}
