//! Questions to the API server: with an end in time, and answers with an end in size.

use super::ClusterError;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;
use std::{path::Path, time::Duration};

/// Of an answer that says why not.
const MAX_REASON: usize = 64 * 1024;
/// The longest wait that a server is granted.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// Why there is no answer. The texts go on after "the API server".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("does not remember as far back as asked")]
    Gone,
    #[error("knows no such object or kind")]
    NotFound,
    #[error("has another version by now")]
    Conflict,
    #[error("has too many requests")]
    Busy(Option<Duration>),
    #[error("answered with status {code}: {message}")]
    Refused { code: u16, message: String },
    #[error("sent more than {0} bytes in one piece")]
    TooLarge(usize),
    #[error("sent what can not be understood: {0}")]
    Garbage(String),
    #[error("did not answer within {0:?}")]
    Silent(Duration),
    #[error("can not be reached: {0}")]
    Away(String),
}

impl Fault {
    pub(super) fn garbage(why: impl std::fmt::Display) -> Self {
        Self::Garbage(one_line(&why.to_string()))
    }

    /// Of an answer's status, with what it said.
    fn of(status: StatusCode, retry_after: Option<Duration>, message: String) -> Self {
        match (status.as_u16(), retry_after) {
            (404, _) => Self::NotFound,
            (409, _) => Self::Conflict,
            (410, _) => Self::Gone,
            (429, wait) | (503, wait @ Some(_)) => Self::Busy(wait),
            (code, _) => Self::Refused { code, message },
        }
    }
}

/// What others wrote, fit for a log.
pub(super) fn one_line(text: &str) -> String {
    let sound = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    sound.take(300).collect()
}

/// The API server.
#[derive(Clone)]
pub(super) struct Api(Client);

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

impl Api {
    /// Prepares a client; asks nothing yet.
    pub(super) async fn connect(kubeconfig: Option<&Path>) -> Result<Self, ClusterError> {
        let unusable = |e: &dyn std::fmt::Display| ClusterError(e.to_string());
        let mut config = match kubeconfig {
            Some(path) => {
                let read = Kubeconfig::read_from(path).map_err(|e| unusable(&e))?;
                Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                    .await
                    .map_err(|e| unusable(&e))?
            }
            None => Config::incluster()
                .map_err(|e| unusable(&format!("{e}; outside of a cluster, name a --kubeconfig")))?,
        };
        // What is tried again, and when, is decided here.
        config.default_retry = false;
        Client::try_from(config).map(Self).map_err(|e| unusable(&e))
    }

    /// Of the account or the context.
    pub(super) fn namespace(&self) -> &str {
        self.0.default_namespace()
    }

    /// Asks for something that is read whole.
    pub(super) async fn get(&self, path: &str, limit: usize, within: Duration) -> Result<Vec<u8>, Fault> {
        let asking = async {
            let body = self.open(Method::GET, path, None).await?;
            whole(body, limit).await
        };
        let answer = tokio::time::timeout(within, asking).await;
        answer.map_err(|_| Fault::Silent(within))?
    }

    /// Sends an object; answered with an object.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        content: (&'static str, &Value),
        limit: usize,
        within: Duration,
    ) -> Result<Value, Fault> {
        let asking = async {
            let body = self.open(method, path, Some(content)).await?;
            let bytes = whole(body, limit).await?;
            serde_json::from_slice(&bytes).map_err(Fault::garbage)
        };
        let answer = tokio::time::timeout(within, asking).await;
        answer.map_err(|_| Fault::Silent(within))?
    }

    /// The body of a good answer.
    pub(super) async fn open(
        &self,
        method: Method,
        path: &str,
        content: Option<(&'static str, &Value)>,
    ) -> Result<Body, Fault> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, "application/json");
        let body = match content {
            Some((kind, value)) => {
                request = request.header(header::CONTENT_TYPE, kind);
                Body::from(value.to_string().into_bytes())
            }
            None => Body::empty(),
        };
        let request = request.body(body).map_err(Fault::garbage)?;
        let away = |e: kube::Error| Fault::Away(one_line(&e.to_string()));
        let (head, body) = self.0.send(request).await.map_err(away)?.into_parts();
        if head.status.is_success() {
            return Ok(body);
        }
        let seconds = head.headers.get(header::RETRY_AFTER);
        let seconds = seconds.and_then(|v| v.to_str().ok()?.trim().parse::<u64>().ok());
        let retry_after = seconds.map(|s| Duration::from_secs(s).min(MAX_WAIT));
        let said = whole(body, MAX_REASON).await.unwrap_or_default();
        let status: Value = serde_json::from_slice(&said).unwrap_or_default();
        let message = one_line(status["message"].as_str().unwrap_or_default());
        Err(Fault::of(head.status, retry_after, message))
    }
}

async fn whole(mut body: Body, limit: usize) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    while let Some(chunk) = chunk(&mut body).await? {
        if bytes.len() + chunk.len() > limit {
            return Err(Fault::TooLarge(limit));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The next bytes of a body; nothing at its end.
pub(super) async fn chunk(body: &mut Body) -> Result<Option<bytes::Bytes>, Fault> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(error)) => return Err(Fault::Away(one_line(&error.to_string()))),
            // Trailers mean nothing here.
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(_) => continue,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overloaded_server_is_told_from_one_that_refuses() {
        let of = |code, wait: Option<u64>| {
            let status = StatusCode::from_u16(code).unwrap_or_default();
            Fault::of(status, wait.map(Duration::from_secs), "no".into())
        };
        assert_eq!(of(429, None), Fault::Busy(None));
        assert_eq!(of(429, Some(3)), Fault::Busy(Some(Duration::from_secs(3))));
        assert_eq!(of(503, Some(3)), Fault::Busy(Some(Duration::from_secs(3))));
        let refused = |code| Fault::Refused {
            code,
            message: "no".into(),
        };
        assert_eq!((of(503, None), of(403, Some(3))), (refused(503), refused(403)));
        assert_eq!(
            (of(404, None), of(409, None), of(410, None)),
            (Fault::NotFound, Fault::Conflict, Fault::Gone)
        );
    }
}
