//! Locks, by HTTP and gRPC.

use super::{
    BlockError, Blocks,
    app::Lock,
    record::{Record, failure},
    request::{empty_or_json, read_body},
};
use crate::{AppContext, error::empty};
use http::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use weft_components_api::Unlocked;
use weft_flows::Kind;
use weft_l7::Body;

/// What is asked of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub store: String,
    pub resource: String,
    pub owner: String,
    /// In seconds; only of a lock.
    pub expiry: i64,
}

fn find(blocks: &Blocks, app: &AppContext, asked: &Asked) -> Result<Arc<Lock>, BlockError> {
    let view = blocks.of(app);
    let Asked {
        store,
        resource,
        owner,
        ..
    } = asked;
    if view.locks.is_empty() {
        return Err(BlockError::lock_not_configured());
    }
    if resource.is_empty() {
        return Err(BlockError::malformed(format!(
            "ResourceId is empty in lock store {store}"
        )));
    }
    if owner.is_empty() {
        return Err(BlockError::malformed(format!(
            "LockOwner is empty in lock store {store}"
        )));
    }
    let found = view.locks.get(store).cloned();
    found.ok_or_else(|| BlockError::lock_not_found(store))
}

fn illegal(resource: &str) -> String {
    format!("input key/keyPrefix '{resource}' can't contain '||'")
}

async fn recorded<T>(
    (blocks, app, lock): (&Blocks, &AppContext, &Lock),
    (what, trace_id): (&str, [u8; 16]),
    work: impl Future<Output = Result<T, BlockError>>,
) -> Result<T, BlockError> {
    let record = Record::call(
        Kind::Lock,
        app.party(),
        app.proof(),
        &lock.party,
        what,
        &lock.name,
    );
    let done = work.await;
    let status = done.as_ref().map_or_else(|e| e.status().as_u16(), |_| 200);
    let record = record.traced(trace_id);
    record.end(&blocks.flows(), status, failure(status));
    done
}

/// Whether the app has the lock now.
pub(crate) async fn try_lock(
    blocks: &Blocks,
    app: &AppContext,
    asked: Asked,
    trace_id: [u8; 16],
) -> Result<bool, BlockError> {
    let expiry = u64::try_from(asked.expiry).ok().filter(|seconds| *seconds > 0);
    let Some(expiry) = expiry else {
        let message = format!("ExpiryInSeconds is not positive in lock store {}", asked.store);
        return Err(BlockError::malformed(message));
    };
    let lock = find(blocks, app, &asked)?;
    let locking = async {
        let resource = lock.prefix.add(&asked.resource);
        let resource = resource.ok_or_else(|| BlockError::try_lock(&illegal(&asked.resource)))?;
        let done = lock
            .store
            .try_lock(resource, asked.owner, Duration::from_secs(expiry))
            .await;
        done.map_err(|e| BlockError::try_lock(&e.to_string()))
    };
    recorded((blocks, app, &lock), ("try-lock", trace_id), locking).await
}

/// Gives a lock back.
pub(crate) async fn unlock(
    blocks: &Blocks,
    app: &AppContext,
    asked: Asked,
    trace_id: [u8; 16],
) -> Result<Unlocked, BlockError> {
    let lock = find(blocks, app, &asked)?;
    let unlocking = async {
        let resource = lock.prefix.add(&asked.resource);
        let resource = resource.ok_or_else(|| BlockError::unlock(&illegal(&asked.resource)))?;
        let done = lock.store.unlock(resource, asked.owner).await;
        done.map_err(|e| BlockError::unlock(&e.to_string()))
    };
    recorded((blocks, app, &lock), ("unlock", trace_id), unlocking).await
}

/// As protobuf's JSON has it: names in both forms, numbers also as texts.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wanted {
    #[serde(rename = "resourceId", alias = "resource_id")]
    resource: String,
    #[serde(rename = "lockOwner", alias = "lock_owner")]
    owner: String,
    #[serde(rename = "expiryInSeconds", alias = "expiry_in_seconds")]
    expiry: Value,
}

fn read(store: &str, body: &[u8]) -> Result<Asked, BlockError> {
    let read: Option<Wanted> = serde_json::from_slice(body).map_err(BlockError::malformed_body)?;
    let read = read.unwrap_or_default();
    let expiry = match &read.expiry {
        Value::Null => Some(0),
        Value::String(text) => text.parse().ok(),
        other => other.as_i64(),
    };
    let expiry = expiry.filter(|n| i32::try_from(*n).is_ok());
    Ok(Asked {
        store: store.to_owned(),
        resource: read.resource,
        owner: read.owner,
        expiry: expiry
            .ok_or_else(|| BlockError::malformed_body("expiryInSeconds is no number of 32 bits"))?,
    })
}

/// `POST /v1.0-alpha1/lock/{store}`, or `unlock`.
pub(crate) async fn serve(
    blocks: &Blocks,
    app: &AppContext,
    store: &str,
    locks: bool,
    mut request: Request<Body>,
) -> Response<Body> {
    if request.method() != Method::POST {
        return empty(StatusCode::METHOD_NOT_ALLOWED);
    }
    let trace_id = weft_l7::trace::trace(request.headers_mut());
    let answer = async {
        let body = read_body(blocks, app, request)
            .await
            .map_err(BlockError::malformed_body)?;
        let asked = read(store, &body)?;
        Ok::<_, BlockError>(match locks {
            true => json!({ "success": try_lock(blocks, app, asked, trace_id).await? }),
            false => json!({ "status": status(unlock(blocks, app, asked, trace_id).await?) }),
        })
    };
    match answer.await {
        Ok(value) => empty_or_json(Some(value)),
        Err(e) => e.into(),
    }
}

/// The number of an outcome, in both APIs.
pub(crate) fn status(outcome: Unlocked) -> i32 {
    match outcome {
        Unlocked::Success => 0,
        Unlocked::NotThere => 1,
        Unlocked::OfOthers => 2,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_protobuf_reads_json() {
        let wanted = Asked {
            store: "s".into(),
            resource: "r".into(),
            owner: "o".into(),
            expiry: 60,
        };
        for body in [
            r#"{"resourceId": "r", "lockOwner": "o", "expiryInSeconds": 60, "more": 1}"#,
            r#"{"resource_id": "r", "lock_owner": "o", "expiry_in_seconds": "60"}"#,
        ] {
            assert_eq!(read("s", body.as_bytes()).unwrap(), wanted);
        }
        for bad in [
            "",
            r#"{"resourceId": 1}"#,
            r#"{"expiryInSeconds": 1.5}"#,
            r#"{"expiryInSeconds": 4294967296}"#,
        ] {
            let error = read("s", bad.as_bytes()).unwrap_err();
            assert_eq!(error.code(), "ERR_MALFORMED_REQUEST", "{bad}");
            assert!(
                error.message().starts_with("failed deserializing HTTP body: "),
                "{error:?}"
            );
        }
    }
}
