//! Reading a request of a building block: its query, and its body within the app's bounds.

use super::{BlockError, Blocks, budget::Share, error::MAX_BODY};
use crate::{
    AppContext,
    error::{empty, json},
};
use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use std::time::Duration;
use weft_l7::Body;

/// A body may take so long to come, waiting for the app's other bodies included.
const BODY_WITHIN: Duration = Duration::from_secs(30);
/// Pairs of one query.
const MAX_PAIRS: usize = 256;
/// What metadata in a query begin with.
const METADATA: &str = "metadata.";

/// A query, decoded.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub fn of(uri: &Uri) -> Self {
        let text = uri.query().unwrap_or_default();
        let pairs = form_urlencoded::parse(text.as_bytes()).into_owned();
        Self(pairs.take(MAX_PAIRS).collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// All values of a name, in their order.
    pub fn all(&self, name: &str) -> Vec<String> {
        let found = self.0.iter().filter(|(key, _)| key == name);
        found.map(|(_, value)| value.clone()).collect()
    }

    /// What stands after `metadata.`; of a name that is there twice the first.
    pub fn metadata(&self) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = Vec::new();
        for (key, value) in &self.0 {
            if let Some(key) = key.strip_prefix(METADATA)
                && all.iter().all(|(known, _)| known != key)
            {
                all.push((key.to_owned(), value.clone()));
            }
        }
        all
    }
}

/// A body, and its share of what the app may hold.
#[derive(Debug)]
pub(crate) struct Held {
    bytes: Bytes,
    _share: Share,
}

impl std::ops::Deref for Held {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

/// The whole body. All bodies of an app that are held at once have a bound; beyond it they wait.
pub(crate) async fn read_body(
    blocks: &Blocks,
    app: &AppContext,
    request: Request<Body>,
) -> Result<Held, String> {
    let body = request.into_body();
    let upper = http_body::Body::size_hint(&body).upper();
    let bytes = upper.map_or(MAX_BODY, |upper| usize::try_from(upper).unwrap_or(MAX_BODY + 1));
    if bytes > MAX_BODY {
        return Err("http: request body too large".into());
    }
    let budget = blocks.budget(app);
    let read = async {
        let share = budget.hold(bytes).await;
        let body = Limited::new(body, MAX_BODY).collect().await?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Held {
            bytes: body.to_bytes(),
            _share: share,
        })
    };
    match tokio::time::timeout(BODY_WITHIN, read).await {
        Ok(Ok(held)) => Ok(held),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
            Err("http: request body too large".into())
        }
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("the body did not come within {BODY_WITHIN:?}")),
    }
}

/// A body as it should be.
pub(crate) fn read_json<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, BlockError> {
    let read: Option<T> = serde_json::from_slice(body).map_err(BlockError::malformed_body)?;
    Ok(read.unwrap_or_default())
}

/// JSON, or 204.
pub(crate) fn empty_or_json(value: Option<serde_json::Value>) -> Response<Body> {
    match value {
        Some(value) => json(StatusCode::OK, &value),
        None => empty(StatusCode::NO_CONTENT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_are_what_stands_after_their_prefix() {
        let uri =
            Uri::from_static("/x?metadata.a=1&b=2&metadata.c=%20x&metadata.a=3&concurrency=first-write");
        let query = Query::of(&uri);
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(query.metadata(), [pair("a", "1"), pair("c", " x")]);
        assert_eq!(query.get("concurrency"), Some("first-write"));
        assert!(Query::of(&Uri::from_static("/x?")).metadata().is_empty());
    }
}
