//! What both databases have in common: metadata, and sweeping what has ended.

use std::{future::Future, time::Duration};
use tokio::task::AbortHandle;
use weft_components_api::{Metadata, MetadataError, StateError};

/// An operation may take so long when the manifest does not say.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// A duration under one of two names; a number counts seconds. 0 is one too.
pub(crate) fn duration(metadata: &Metadata, names: [&str; 2]) -> Result<Option<Duration>, MetadataError> {
    for name in names {
        if metadata.get(name).is_some_and(|text| !text.trim().is_empty()) {
            return metadata.duration(name);
        }
    }
    Ok(None)
}

/// How long an operation may take.
pub(crate) fn timeout(metadata: &Metadata) -> Result<Duration, MetadataError> {
    let given = duration(metadata, ["timeout", "timeoutInSeconds"])?.unwrap_or(TIMEOUT);
    match given < Duration::from_secs(1) {
        true => Err(Metadata::wrong("timeout", "must be greater than 1s")),
        false => Ok(given),
    }
}

/// A name of a table, by itself or with its schema: it becomes part of statements.
pub(crate) fn identifier(metadata: &Metadata, key: &str, default: &str) -> Result<String, MetadataError> {
    let text = metadata.get(key).map(str::trim).filter(|text| !text.is_empty());
    let text = text.unwrap_or(default);
    let part = |part: &str| {
        let mut letters = part.chars();
        let first = letters
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        first && part.len() <= 63 && letters.all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    match text.is_empty() || (text.split('.').count() <= 2 && text.split('.').all(part)) {
        true => Ok(text.to_owned()),
        false => Err(Metadata::wrong(key, format!("{text:?} is no identifier"))),
    }
}

/// Within its time.
pub(crate) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, StateError>>,
) -> Result<T, StateError> {
    let done = tokio::time::timeout(limit, work).await;
    done.unwrap_or_else(|_| Err(StateError::Failed(format!("not done within {limit:?}"))))
}

pub(crate) fn failed(error: impl std::fmt::Display) -> StateError {
    StateError::Failed(error.to_string())
}

pub(crate) fn exists() -> StateError {
    StateError::EtagMismatch("item already exists and no etag was passed".into())
}

pub(crate) fn mismatch(key: &str) -> StateError {
    StateError::EtagMismatch(format!("state etag not match for key={key}"))
}

/// Something that goes on until this is dropped.
pub(crate) struct Running(AbortHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Running {
    pub fn new(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task).abort_handle())
    }

    /// Sweeps every so often; not at all without an interval.
    pub fn sweeping<F, W>(interval: Option<Duration>, sweep: F) -> Option<Self>
    where
        F: Fn() -> W + Send + 'static,
        W: Future<Output = Result<u64, sqlx::Error>> + Send,
    {
        let interval = interval.filter(|i| !i.is_zero())?;
        Some(Self::new(async move {
            loop {
                tokio::time::sleep(interval).await;
                match sweep().await {
                    Ok(0) => {}
                    Ok(rows) => tracing::debug!(rows, "values that had ended are removed"),
                    Err(error) => tracing::warn!(%error, "values that have ended can not be removed"),
                }
            }
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&str, &str)]) -> Metadata {
        let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Metadata::new(pairs.collect()).unwrap()
    }

    #[test]
    fn only_names_become_part_of_statements() {
        let read = |text: &str| identifier(&metadata(&[("tableName", text)]), "tableName", "state");
        for good in ["state", "_a1", "dapr.state", "A"] {
            assert_eq!(read(good).unwrap(), good);
        }
        assert_eq!(read(" ").unwrap(), "state");
        for bad in [
            "a b",
            "a;drop",
            "1a",
            "a.b.c",
            "a.",
            "\"a\"",
            "a--",
            "é",
            &"a".repeat(64),
        ] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains("is no identifier"), "{error}");
        }
    }

    #[test]
    fn times_have_two_names() {
        let read = |pairs: &[(&str, &str)]| timeout(&metadata(pairs));
        assert_eq!(read(&[]), Ok(TIMEOUT));
        assert_eq!(read(&[("timeoutInSeconds", "3")]), Ok(Duration::from_secs(3)));
        assert_eq!(read(&[("timeout", "2m")]), Ok(Duration::from_secs(120)));
        assert!(read(&[("timeout", "10ms")]).is_err() && read(&[("timeout", "x")]).is_err());
    }
}
