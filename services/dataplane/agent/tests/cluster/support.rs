//! A mesh in one process: identity, policy and placement over mTLS on loopback, agents without
//! root, apps, and a client for their runtime APIs.

use crate::{
    control::Control,
    flows::{self, Flow},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::{
    collections::HashMap,
    convert::Infallible,
    net::IpAddr,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use weft_agent::{AgentConfig, AgentError, Environment, Handle, Secret};
use weft_drain::{Outcome, Trigger};
use weft_proto::weft::dataplane::v1::{
    AddRequest, Placed, WorkloadSpec, status_client::StatusClient, workloads_client::WorkloadsClient,
};
use weft_telemetry::{Health, Metrics};

/// Nothing here takes longer unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Tries until `done`, at most for [`LIMIT`]; says what it waited for.
pub async fn eventually<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(value) = done().await {
            return value;
        }
        assert!(Instant::now() < until, "waited for {what} in vain");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A mesh in a temporary folder.
pub struct Mesh {
    pub folder: TempDir,
    control: Option<Control>,
    addresses: [String; 3],
    tunnel_port: u16,
}

impl Mesh {
    /// With these manifests.
    pub async fn new(manifests: &[(&str, &str)]) -> Self {
        weft_tls::install_provider();
        let folder = TempDir::new().unwrap();
        let resources = folder.path().join("resources");
        std::fs::create_dir(&resources).unwrap();
        for (name, text) in manifests {
            std::fs::write(resources.join(name), text).unwrap();
        }
        let control = Control::start(folder.path(), [127, 0, 0, 1].into(), Default::default()).await;
        Self {
            addresses: control.addresses(),
            folder,
            control: Some(control),
            tunnel_port: free_port().await,
        }
    }

    /// Ends identity, policy and placement.
    pub async fn stop_control(&mut self) {
        self.control.take().unwrap().stop().await;
    }

    /// Of identity, policy and placement.
    pub fn addresses(&self) -> &[String; 3] {
        &self.addresses
    }

    /// Joins as a node that has no agent.
    pub async fn join(&self, name: &str, drain: weft_drain::Watcher) -> weft_enroll::Member {
        let token = self.control.as_ref().unwrap().node_token(name).await;
        let id = weft_model::TrustDomain::default().node(name).unwrap();
        let folder = self.folder.path().join(format!("{name}-member"));
        weft_enroll::Enrollment::new(id, folder, self.addresses[0].clone())
            .token(weft_enroll::TokenSource::text(&token).unwrap())
            .enroll(drain)
            .await
            .unwrap()
    }

    /// Starts an agent; the first time with a token, later with what it kept.
    pub async fn agent(&self, name: &str, address: [u8; 4]) -> Agent {
        self.try_agent(name, address, |_| {}).await.unwrap()
    }

    /// The same with what `change` makes of its configuration.
    pub async fn try_agent(
        &self,
        name: &str,
        address: [u8; 4],
        change: impl FnOnce(&mut AgentConfig),
    ) -> Result<Agent, AgentError> {
        let data_dir = self.folder.path().join(name);
        let join_token = match &self.control {
            Some(control) if !data_dir.exists() => Some(Secret(control.node_token(name).await)),
            _ => None,
        };
        let [identity, policy, placement] = self.addresses.clone();
        let mut config = AgentConfig {
            node: name.into(),
            identity,
            policy,
            placement,
            join_token,
            hubble_listen: format!("{}:0", IpAddr::from(address)),
            local_socket: data_dir.join("agent.sock"),
            data_dir,
            listen: "127.0.0.1:0".into(),
            address: IpAddr::from(address),
            tunnel_port: self.tunnel_port,
            ..AgentConfig::default()
        };
        change(&mut config);
        let (trigger, drain) = weft_drain::channel();
        let metrics = Metrics::new("dataplane");
        let health = Health::default();
        let started = weft_agent::start(config, Environment::Rootless, &metrics, &health, drain);
        let handle = started.await?;
        Ok(Agent {
            handle,
            trigger,
            metrics,
        })
    }
}

/// A port that is free on the addresses of both nodes.
async fn free_port() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let port = first.local_addr().unwrap().port();
        if TcpListener::bind(("127.0.0.3", port)).await.is_ok() {
            return port;
        }
    }
}

/// A running agent.
pub struct Agent {
    pub handle: Handle,
    trigger: Trigger,
    pub metrics: Metrics,
}

impl Agent {
    fn channel(&self) -> tonic::transport::Channel {
        weft_rpc::channel_local(self.handle.local_socket().into()).unwrap()
    }

    pub fn workloads(&self) -> WorkloadsClient<tonic::transport::Channel> {
        WorkloadsClient::new(self.channel())
    }

    pub fn status(&self) -> StatusClient<tonic::transport::Channel> {
        StatusClient::new(self.channel())
    }

    /// Adds an app that listens on `port`.
    pub async fn add(&self, app_id: &str, port: u16) -> App {
        let request = AddRequest {
            spec: Some(spec(app_id, port)),
        };
        let added = self.workloads().add(request).await.unwrap().into_inner();
        App::of(added.placed.unwrap())
    }

    /// The flows so far.
    pub async fn flows(&self) -> Vec<Flow> {
        let path = self.handle.local_socket().with_file_name("hubble.sock");
        flows::all(weft_rpc::channel_local(path).unwrap()).await
    }

    /// The last flow about a path that was judged in this direction.
    pub async fn flow(&self, path: &str, direction: &str) -> Flow {
        let flows = self.flows().await;
        let mut judged = flows.iter().rev().filter(|f| f.path == path);
        let found = judged.find(|f| f.direction == direction).cloned();
        found.unwrap_or_else(|| panic!("no {direction} flow about {path} in {flows:#?}"))
    }

    /// Drains it.
    pub async fn stop(self) {
        let waiting = tokio::spawn(self.handle.wait());
        assert_eq!(
            self.trigger.drain(Duration::from_secs(10)).await,
            Outcome::Drained
        );
        waiting.await.unwrap().unwrap();
    }
}

pub fn spec(app_id: &str, port: u16) -> WorkloadSpec {
    WorkloadSpec {
        namespace: "default".into(),
        name: app_id.into(),
        app_id: app_id.into(),
        app_port: port.into(),
        ..Default::default()
    }
}

/// What an app knows of its runtime.
#[derive(Debug, Clone)]
pub struct App {
    pub placed: Placed,
    pub http: u16,
    pub token: String,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl App {
    pub fn of(placed: Placed) -> Self {
        let environment: &HashMap<String, String> = &placed.environment;
        Self {
            http: environment["DAPR_HTTP_PORT"].parse().unwrap(),
            token: environment["DAPR_API_TOKEN"].clone(),
            placed,
        }
    }

    /// Calls another app as this one, by its runtime's plain HTTP API.
    pub async fn invoke(&self, app_id: &str, method: &str) -> Answer {
        let path = format!("/v1.0/invoke/{app_id}/method/{method}");
        get(self.http, &path, &[("dapr-api-token", &self.token)])
            .await
            .unwrap()
    }

    /// As [`App::invoke`], with headers that an app might make up.
    pub async fn invoke_with(&self, app_id: &str, method: &str, headers: &[(&str, &str)]) -> Answer {
        let path = format!("/v1.0/invoke/{app_id}/method/{method}");
        let mut all = vec![("dapr-api-token", self.token.as_str())];
        all.extend(headers);
        get(self.http, &path, &all).await.unwrap()
    }
}

/// One GET on a connection of its own.
pub async fn get(port: u16, path: &str, headers: &[(&str, &str)]) -> std::io::Result<Answer> {
    let other = std::io::Error::other::<hyper::Error>;
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(other)?;
    tokio::spawn(connection);
    let mut request = Request::get(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let response = sender.send_request(request).await.map_err(other)?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(other)?.to_bytes();
    Ok(Answer {
        status,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

/// An app that answers with its name, what was asked and who it was told has called.
pub async fn serve_app(name: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(move |request: Request<Incoming>| async move {
                let header = |n: &str| {
                    let value = request.headers().get(n).and_then(|v| v.to_str().ok());
                    value.unwrap_or("-").to_owned()
                };
                let text = format!(
                    "{name} {} by {} of {}",
                    request.uri(),
                    header("dapr-caller-app-id"),
                    header("dapr-caller-namespace")
                );
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
            });
            tokio::spawn(async move {
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    port
}
