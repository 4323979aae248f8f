//! An agent with components, and apps that keep what they get.

use crate::world::{self, Agent, SOON, World};
use bytes::Bytes;
use http::{HeaderMap, Method, Response};
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tokio::{sync::mpsc, time::timeout};
use weft_components_api::{Driver, Drivers};
use weft_components_bindings::{Cron, LocalStorage};
use weft_components_memory::{MemoryConfiguration, MemoryLock, MemoryPubSub, MemoryState};
use weft_components_secrets::{LocalEnv, LocalFile};
use weft_runtime::{AppSettings, RuntimeLimits};

/// A world with one agent.
pub struct Stage {
    pub world: World,
    pub agent: Agent,
    pub files: tempfile::TempDir,
}

impl Stage {
    pub fn new() -> Self {
        let mut world = World::new();
        let files = tempfile::tempdir().unwrap();
        let drivers: Vec<Arc<dyn Driver>> = vec![
            Arc::new(MemoryState::default()),
            Arc::new(MemoryPubSub::new()),
            Arc::new(Cron),
            Arc::new(LocalStorage),
            Arc::new(LocalEnv),
            Arc::new(LocalFile),
            Arc::new(MemoryConfiguration::new()),
            Arc::new(MemoryLock::new()),
        ];
        let drivers = Drivers::new(drivers);
        let limits = RuntimeLimits::default();
        let agent = world.agent_with_components("n1", limits, drivers, files.path().to_owned());
        Self { world, agent, files }
    }

    /// Applies a component of namespace `default`.
    pub fn component(&self, name: &str, kind: &str, metadata: &[(&str, &str)], scopes: &[&str]) {
        let metadata = metadata
            .iter()
            .map(|(k, v)| serde_json::json!({"name": k, "value": v}));
        let metadata: Vec<_> = metadata.collect();
        let spec = serde_json::json!({"spec": {"type": kind, "version": "v1", "metadata": metadata}});
        let scopes: Vec<String> = scopes.iter().map(ToString::to_string).collect();
        let manifest = (scopes.as_slice(), spec.to_string().into_bytes());
        let blocks = self.agent.runtime.blocks();
        blocks
            .set_component("default", name, Some((manifest.0, &manifest.1)))
            .unwrap();
    }

    /// Applies a manifest of namespace `default` as it is.
    pub fn manifest(&self, name: &str, manifest: &serde_json::Value) {
        let blocks = self.agent.runtime.blocks();
        let json = manifest.to_string().into_bytes();
        let done = match manifest["kind"].as_str() {
            Some("Configuration") => blocks.set_configuration("default", name, Some(&json)),
            _ => blocks.set_component("default", name, Some((&[], &json))),
        };
        done.unwrap();
    }

    /// An app with annotations.
    pub async fn annotated(&self, app_id: &str, app: &App, annotations: &[(&str, &str)]) -> world::Workload {
        let all: Vec<(String, String)> = annotations
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let settings = AppSettings::of(all.iter().map(|(k, v)| (k, v)));
        self.world
            .workload_that(&self.agent, app_id, app.port, None, settings)
            .await
    }

    /// An app that answers as `answer` says, and what it gets.
    pub async fn app(&self, app_id: &str, app: &App) -> world::Workload {
        self.world.workload(&self.agent, app_id, app.port).await
    }
}

/// What an app was asked.
#[derive(Debug, Clone)]
pub struct Got {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Got {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Answers by path: status and body; 404 for others. An answer that is a list is given in turn, the last
/// one from then on.
pub type Answers = HashMap<String, Vec<(u16, String)>>;

/// An app that keeps what it gets.
pub struct App {
    pub port: u16,
    got: mpsc::UnboundedReceiver<Got>,
}

impl App {
    pub async fn new(answers: &[(&str, u16, &str)]) -> Self {
        let mut all = Answers::new();
        for (path, status, body) in answers {
            let list = all.entry((*path).to_owned()).or_default();
            list.push((*status, (*body).to_owned()));
        }
        let answers = Arc::new(Mutex::new(all));
        let (sender, got) = mpsc::unbounded_channel();
        let port = world::app(move |request| {
            let (sender, answers) = (sender.clone(), answers.clone());
            async move {
                let (head, body) = request.into_parts();
                let path = head.uri.path().to_owned();
                let seen = Got {
                    method: head.method.clone(),
                    path: path.clone(),
                    headers: head.headers,
                    body: body.collect().await.unwrap().to_bytes(),
                };
                let answer = {
                    let mut answers = answers.lock();
                    let list = answers.get_mut(&format!("{} {path}", head.method));
                    match list {
                        Some(list) if list.len() > 1 => Some(list.remove(0)),
                        Some(list) => list.first().cloned(),
                        None => None,
                    }
                };
                let (status, body) = answer.unwrap_or((404, String::new()));
                let _ = sender.send(seen);
                let response = Response::builder().status(status);
                response.body(Full::from(body)).unwrap()
            }
        })
        .await;
        Self { port, got }
    }

    /// That subscribes to a topic of pubsub `bus`.
    pub async fn subscriber(subscription: &str, answers: &[(&str, u16, &str)]) -> Self {
        let subscribe = ("GET /dapr/subscribe", 200, subscription);
        Self::new(&[&[subscribe], answers].concat()).await
    }

    /// The next that it was asked, besides what it subscribes to and binds.
    pub async fn next(&mut self) -> Got {
        let next = async {
            loop {
                let got = self.got.recv().await.unwrap();
                if got.path != "/dapr/subscribe" && got.method != Method::OPTIONS {
                    return got;
                }
            }
        };
        timeout(SOON, next).await.expect("the app was not asked")
    }

    /// The next that it was asked, whatever it is.
    pub async fn next_of_all(&mut self) -> Got {
        timeout(SOON, self.got.recv())
            .await
            .expect("the app was not asked")
            .unwrap()
    }

    /// Whether it was asked anything else so far.
    pub fn is_quiet(&mut self) -> bool {
        self.got.try_recv().is_err()
    }
}

/// Asks until it is so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let wait = async {
        while !ask().await {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, wait)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come about"));
}
