//! The few calls of the Docker Engine API that are needed, over its unix socket.

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, de::DeserializeOwned};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
use tokio::net::UnixStream;

/// More than a machine's containers ever take: 10,000 of 3 KiB.
const MAX_ANSWER: usize = 32 * 1024 * 1024;
/// An engine that is busy starting containers answers late.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A Docker engine.
#[derive(Debug, Clone)]
pub struct Engine {
    socket: PathBuf,
}

/// One line of the list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Listed {
    pub id: String,
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
}

/// What a running container is.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Inspected {
    pub id: String,
    pub name: String,
    pub state: State,
    pub config: Config,
    pub host_config: HostConfig,
    #[serde(default)]
    pub network_settings: NetworkSettings,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct State {
    pub running: bool,
    /// In the engine's own process namespace.
    pub pid: u32,
    pub started_at: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Config {
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostConfig {
    #[serde(default)]
    pub network_mode: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkSettings {
    #[serde(default)]
    pub networks: Option<BTreeMap<String, Network>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Network {
    #[serde(default, rename = "IPAddress")]
    pub ip_address: String,
    #[serde(default, rename = "GlobalIPv6Address")]
    pub global_ipv6_address: String,
}

/// Containers and networks that changed. What exactly is asked for afterwards.
#[derive(Debug)]
pub struct Events(Incoming);

impl Events {
    /// Until something changed.
    pub async fn next(&mut self) -> Result<()> {
        loop {
            let frame = self.0.frame().await;
            let frame = frame.ok_or_else(|| anyhow!("the Docker engine ended its events"))?;
            let frame = frame.context("the Docker engine's events broke off")?;
            if frame.is_data() {
                return Ok(());
            }
        }
    }
}

impl Engine {
    /// Behind this socket.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// All that run now.
    pub async fn running(&self) -> Result<Vec<Listed>> {
        self.ask("/containers/json")
            .await?
            .context("no list of containers")
    }

    /// One container; `None` when it is gone.
    pub async fn inspect(&self, id: &str) -> Result<Option<Inspected>> {
        // Ids come from the engine; a wrong one must not become another path.
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            bail!("the Docker engine named a container {id:?}");
        }
        self.ask(&format!("/containers/{id}/json")).await
    }

    /// From now on.
    pub async fn events(&self) -> Result<Events> {
        // {"type":["container","network"]}
        let path = "/events?filters=%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%7D";
        let response = self.send(path).await?;
        if !response.status().is_success() {
            bail!("the Docker engine refused its events: {}", response.status());
        }
        Ok(Events(response.into_body()))
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        let asked = async {
            let response = self.send(path).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|e| anyhow!("the Docker engine's answer to {path}: {e}"))?;
            if status == hyper::StatusCode::NOT_FOUND {
                return Ok(None);
            }
            let body = body.to_bytes();
            if !status.is_success() {
                let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
                bail!("the Docker engine refused {path}: {status}: {}", text.trim());
            }
            let answer = serde_json::from_slice(&body);
            answer
                .map(Some)
                .with_context(|| format!("the Docker engine's answer to {path}"))
        };
        tokio::time::timeout(ANSWER_WITHIN, asked)
            .await
            .map_err(|_| anyhow!("the Docker engine did not answer {path} within {ANSWER_WITHIN:?}"))?
    }

    /// On a connection of its own, which ends with the answer.
    async fn send(&self, path: &str) -> Result<Response<Incoming>> {
        let socket = self.socket.display();
        let stream = UnixStream::connect(&self.socket).await.with_context(|| {
            format!("no Docker engine answers at {socket}; name its socket with --docker-socket")
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends when sender and answer are dropped.
        tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", "docker")
            .body(Empty::<bytes::Bytes>::new())?;
        let response = sender.send_request(request).await;
        response.with_context(|| format!("the Docker engine at {socket} does not speak HTTP"))
    }
}
