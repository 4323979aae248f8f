//! State over HTTP: what requests say, and how answers look.

use super::{
    BlockError, Blocks,
    request::{Query, empty_or_json, read_body, read_json},
    state::{StateCall, Write, WriteOperation, item_metadata},
};
use crate::{AppContext, error::empty};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use weft_components_api::Item;
use weft_l7::Body;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Options {
    concurrency: Option<String>,
    consistency: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    key: Option<String>,
    value: Value,
    etag: Option<String>,
    metadata: Option<BTreeMap<String, String>>,
    options: Option<Options>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BulkGet {
    keys: Option<Vec<String>>,
    parallelism: i64,
    metadata: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Transaction {
    operations: Option<Vec<TransactionOperation>>,
    metadata: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TransactionOperation {
    operation: String,
    request: Value,
}

/// The pairs of a request, then those of its query, which count more.
fn merged(own: Option<BTreeMap<String, String>>, query: &[(String, String)]) -> Vec<(String, String)> {
    let mut all = own.unwrap_or_default();
    all.extend(query.iter().cloned());
    all.into_iter().collect()
}

impl Entry {
    fn write(self, query: &[(String, String)]) -> Write {
        let options = self.options.unwrap_or_default();
        Write {
            key: self.key.unwrap_or_default(),
            value: self.value.to_string().into(),
            etag: self.etag,
            concurrency: options.concurrency.unwrap_or_default(),
            consistency: options.consistency.unwrap_or_default(),
            metadata: merged(self.metadata, query),
        }
    }
}

/// What a body says of writes.
fn writes(body: &[u8], query: &[(String, String)]) -> Result<Vec<Write>, BlockError> {
    let entries: Option<Vec<Entry>> =
        serde_json::from_slice(body).map_err(|e| BlockError::malformed(e.to_string()))?;
    let entries = entries.unwrap_or_default();
    if entries
        .iter()
        .any(|entry| entry.key.as_deref().unwrap_or_default().is_empty())
    {
        return Err(BlockError::malformed("\"key\" is a required field"));
    }
    Ok(entries.into_iter().map(|entry| entry.write(query)).collect())
}

/// What a body says of a transaction.
fn transaction(body: &[u8], query: &[(String, String)]) -> Result<Vec<WriteOperation>, BlockError> {
    let given: Transaction = read_json(body)?;
    let _ = given.metadata;
    let operations = given.operations.unwrap_or_default().into_iter();
    let read = operations.map(|operation| {
        let request = || -> Result<Write, BlockError> {
            let entry: Option<Entry> =
                serde_json::from_value(operation.request.clone()).map_err(BlockError::malformed_body)?;
            Ok(entry.unwrap_or_default().write(query))
        };
        match operation.operation.as_str() {
            "upsert" => Ok(WriteOperation::Upsert(request()?)),
            "delete" => Ok(WriteOperation::Delete(request()?)),
            other => Err(BlockError::operation_not_supported(other)),
        }
    });
    read.collect()
}

/// What is asked of a store: the parts of the path after its name.
pub(crate) enum Asked<'a> {
    /// The store itself: values are written.
    Store,
    /// `bulk`
    Bulk,
    /// `transaction`
    Transaction,
    /// `query`, of the alpha API.
    Query,
    /// A key.
    Key(&'a str),
}

/// One request for a store.
pub(crate) async fn serve(
    blocks: &Blocks,
    app: &AppContext,
    store: &str,
    asked: Asked<'_>,
    mut request: Request<Body>,
) -> Response<Body> {
    let trace_id = weft_l7::trace::trace(request.headers_mut());
    let call = match StateCall::new(blocks, app, store, trace_id, true) {
        Ok(call) => call,
        Err(e) => return e.into(),
    };
    let answered = match (asked, request.method()) {
        (Asked::Key(key), &Method::GET) => get(&call, key, &request).await,
        (Asked::Key(key), &Method::DELETE) => delete(&call, key, &request).await,
        (Asked::Store, &Method::POST | &Method::PUT) => save(blocks, app, &call, request).await,
        (Asked::Bulk, &Method::POST | &Method::PUT) => bulk_get(blocks, app, &call, request).await,
        (Asked::Transaction, &Method::POST | &Method::PUT) => transact(blocks, app, &call, request).await,
        (Asked::Query, &Method::POST | &Method::PUT) => Err(call.query()),
        _ => Ok(empty(StatusCode::METHOD_NOT_ALLOWED)),
    };
    answered.unwrap_or_else(Into::into)
}

async fn get(call: &StateCall<'_>, key: &str, request: &Request<Body>) -> Result<Response<Body>, BlockError> {
    let query = Query::of(request.uri());
    let Some(item) = call.get(key, query.metadata()).await? else {
        return Ok(empty(StatusCode::NO_CONTENT));
    };
    let mut response = Response::new(Body::full(item.value.clone()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(etag) = item.etag.as_deref().and_then(|e| HeaderValue::from_str(e).ok()) {
        headers.insert(header::ETAG, etag);
    }
    if let Some((name, value)) = item_metadata(&item)
        && let Ok(name) = HeaderName::try_from(format!("metadata.{name}").to_ascii_lowercase())
        && let Ok(value) = HeaderValue::from_str(&value)
    {
        headers.insert(name, value);
    }
    Ok(response)
}

async fn delete(
    call: &StateCall<'_>,
    key: &str,
    request: &Request<Body>,
) -> Result<Response<Body>, BlockError> {
    let query = Query::of(request.uri());
    let etag = request.headers().get(header::IF_MATCH);
    let write = Write {
        key: key.to_owned(),
        etag: etag.map(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()),
        concurrency: query.get("concurrency").unwrap_or_default().to_owned(),
        consistency: query.get("consistency").unwrap_or_default().to_owned(),
        metadata: query.metadata(),
        ..Write::default()
    };
    call.delete(write).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

async fn save(
    blocks: &Blocks,
    app: &AppContext,
    call: &StateCall<'_>,
    request: Request<Body>,
) -> Result<Response<Body>, BlockError> {
    let query = Query::of(request.uri()).metadata();
    let body = read_body(blocks, app, request)
        .await
        .map_err(BlockError::malformed)?;
    let writes = writes(&body, &query)?;
    if !writes.is_empty() {
        call.save(writes).await?;
    }
    Ok(empty(StatusCode::NO_CONTENT))
}

async fn transact(
    blocks: &Blocks,
    app: &AppContext,
    call: &StateCall<'_>,
    request: Request<Body>,
) -> Result<Response<Body>, BlockError> {
    call.needs_transactions()?;
    let query = Query::of(request.uri()).metadata();
    let body = read_body(blocks, app, request)
        .await
        .map_err(BlockError::malformed_body)?;
    let operations = transaction(&body, &query)?;
    if !operations.is_empty() {
        call.transact(operations).await?;
    }
    Ok(empty(StatusCode::NO_CONTENT))
}

async fn bulk_get(
    blocks: &Blocks,
    app: &AppContext,
    call: &StateCall<'_>,
    request: Request<Body>,
) -> Result<Response<Body>, BlockError> {
    let query = Query::of(request.uri()).metadata();
    let body = read_body(blocks, app, request)
        .await
        .map_err(BlockError::malformed_body)?;
    let asked: BulkGet = read_json(&body)?;
    let keys = asked.keys.unwrap_or_default();
    let metadata = merged(asked.metadata, &query);
    let parallelism = usize::try_from(asked.parallelism).unwrap_or(0);
    let items = match keys.is_empty() {
        true => Vec::new(),
        false => call.bulk_get(&keys, parallelism, &metadata).await?,
    };
    let answers = keys.iter().zip(items).map(|(key, item)| {
        let mut answer = json!({ "key": key });
        match item {
            Ok(Some(item)) => fill(&mut answer, &item),
            Ok(None) => {}
            Err(error) => answer["error"] = error.to_string().into(),
        }
        answer
    });
    Ok(empty_or_json(Some(answers.collect())))
}

fn fill(answer: &mut Value, item: &Item) {
    answer["data"] = as_json(&item.value);
    if let Some(etag) = &item.etag {
        answer["etag"] = etag.as_str().into();
    }
    if let Some((name, value)) = item_metadata(item) {
        answer["metadata"] = json!({ name: value });
    }
}

/// A value within JSON: what was saved by gRPC need not be any.
fn as_json(value: &[u8]) -> Value {
    use base64::{Engine, engine::general_purpose::STANDARD};
    serde_json::from_slice(value).unwrap_or_else(|_| match std::str::from_utf8(value) {
        Ok(text) => text.into(),
        Err(_) => STANDARD.encode(value).into(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn writes_are_read() {
        let query = [("ttlInSeconds".to_owned(), "5".to_owned())];
        let body =
            br#"[{"key": "a", "value": {"b": 1}, "etag": "e", "metadata": {"ttlInSeconds": "9", "x": "y"},
            "options": {"concurrency": "first-write", "consistency": "strong"}}, {"key": "b"}]"#;
        let read = writes(body, &query).unwrap();
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        let first = Write {
            key: "a".into(),
            value: "{\"b\":1}".into(),
            etag: Some("e".into()),
            concurrency: "first-write".into(),
            consistency: "strong".into(),
            metadata: vec![pair("ttlInSeconds", "5"), pair("x", "y")],
        };
        assert_eq!(read[0], first);
        assert_eq!(read[1].value, "null");
        assert_eq!(writes(b"null", &[]).unwrap(), []);
        for (body, said) in [
            ("[{\"value\": 1}]", "\"key\" is a required field"),
            ("[{\"key\": \"\"}]", "\"key\" is a required field"),
            ("[{\"key\": 1}]", "invalid type"),
            ("{}", "expected a sequence"),
            ("", "EOF"),
        ] {
            let error = writes(body.as_bytes(), &[]).unwrap_err();
            assert!(error.message().contains(said), "{body}: {error:?}");
            assert_eq!(error.code(), "ERR_MALFORMED_REQUEST");
        }
    }

    #[test]
    fn transactions_are_read() {
        let body = br#"{"operations": [{"operation": "upsert", "request": {"key": "a", "value": 1}},
            {"operation": "delete", "request": {"key": "b", "etag": "x"}}]}"#;
        let read = transaction(body, &[]).unwrap();
        assert!(matches!(&read[0], WriteOperation::Upsert(w) if w.key == "a" && w.value == "1"));
        assert!(matches!(&read[1], WriteOperation::Delete(w) if w.etag.as_deref() == Some("x")));
        let error = transaction(br#"{"operations": [{"operation": "merge"}]}"#, &[]).unwrap_err();
        assert_eq!(error.message(), "operation type merge not supported");
        let wrong = transaction(br#"{"operations": [{"operation": "upsert", "request": 5}]}"#, &[]);
        assert!(
            wrong
                .unwrap_err()
                .message()
                .starts_with("failed deserializing HTTP body: ")
        );
    }

    #[test]
    fn fuzz_state_request() {
        let seeds = [
            r#"[{"key": "a", "value": {"b": [1, 2.5, null]}, "etag": "e", "metadata": {"ttlInSeconds": "9"}, "options": {"concurrency": "first-write"}}]"#,
            r#"{"operations": [{"operation": "upsert", "request": {"key": "a", "value": 1}}, {"operation": "delete", "request": {"key": "b"}}], "metadata": {}}"#,
            r#"{"keys": ["a", "b"], "parallelism": 10, "metadata": {"x": "y"}}"#,
        ];
        let corpus =
            weft_fuzz::Corpus::of(seeds).words(["\"key\"", "null", "||", "upsert", "[]", "{}", "-1"]);
        weft_fuzz::target!(corpus, |body: &[u8]| {
            for write in writes(body, &[]).unwrap_or_default() {
                assert!(!write.key.is_empty());
                assert!(serde_json::from_slice::<Value>(&write.value).is_ok());
            }
            let _ = transaction(body, &[]);
            let _ = read_json::<BulkGet>(body);
        });
    }

    proptest! {
        /// Whatever was saved, an answer within JSON is JSON.
        #[test]
        fn any_value_fits_into_an_answer(value in proptest::collection::vec(any::<u8>(), 0..40)) {
            let text = json!({ "data": as_json(&value) }).to_string();
            prop_assert!(serde_json::from_str::<Value>(&text).is_ok());
        }
    }
}
