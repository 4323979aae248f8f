//! What happens while processes run: telemetry leaves them, certificates are renewed.
#![allow(clippy::unwrap_used, missing_docs)]

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::any_value::Value,
    resource::v1::Resource,
};
use std::{
    collections::BTreeSet,
    fs,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use weft_process_tests::{Home, Mesh, SERVICES};
use weft_proto::weft::dataplane::v1::{GetRequest, GetResponse, status_client::StatusClient};

/// What was received: of which process, what it is, all of it as text.
type Received = Arc<Mutex<Vec<(String, &'static str, String)>>>;

/// An OTLP receiver.
#[derive(Clone, Default)]
struct Receiver(Received);

impl Receiver {
    fn take(&self, resource: Option<Resource>, what: &'static str, text: String) {
        let attributes = resource.unwrap().attributes;
        let name = attributes.into_iter().find(|a| a.key == "service.name").unwrap();
        let Some(Value::StringValue(name)) = name.value.unwrap().value else {
            panic!("service.name is no text");
        };
        self.0.lock().unwrap().push((name, what, text));
    }
}

#[tonic::async_trait]
impl LogsService for Receiver {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        for logs in request.into_inner().resource_logs {
            let text = format!("{logs:?}");
            self.take(logs.resource, "logs", text);
        }
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for spans in request.into_inner().resource_spans {
            let text = format!("{spans:?}");
            self.take(spans.resource, "spans", text);
        }
        Ok(Response::new(Default::default()))
    }
}

async fn healthy(mesh: &Mesh, name: &str) {
    let channel = mesh.operator().channel(mesh, name);
    let reply = HealthClient::new(channel)
        .check(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(reply.status(), ServingStatus::Serving);
}

/// Every service sends its log and a span of a call, and not even the most talkative log of its own
/// code holds a token or a key.
#[tokio::test(flavor = "multi_thread")]
async fn logs_and_spans_reach_a_receiver_and_hold_no_secret() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let receiver = Receiver::default();
    let server = Server::builder()
        .add_service(LogsServiceServer::new(receiver.clone()))
        .add_service(TraceServiceServer::new(receiver.clone()))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);

    let home = Home::new();
    for name in SERVICES {
        let settings = format!("telemetry:\n  otlp_endpoint: {endpoint}\n");
        home.file(&format!("{name}.yaml"), &settings);
    }
    let mut mesh = Mesh::prepared(home, "info,weft=trace").completed();
    for name in SERVICES {
        healthy(&mesh, name).await;
    }
    let mut said = String::new();
    for name in ["weft-agent", "weft-placement", "weft-policy", "weft-identity"] {
        // What is left is sent at the end.
        let ended = mesh.processes.remove(name).unwrap().terminate();
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        said += &ended.stderr;
    }
    let received = receiver.0.lock().unwrap();
    for name in SERVICES {
        let of = |what: &str, word: &str| {
            received
                .iter()
                .any(|(from, kind, text)| from == name && *kind == what && text.contains(word))
        };
        assert!(of("logs", &format!("{name} started")), "no log of {name}");
        assert!(of("spans", "/grpc.health.v1.Health/Check"), "no span of {name}");
    }
    for (_, _, text) in received.iter() {
        said += text;
    }
    let mut secrets = BTreeSet::new();
    for name in ["policy", "placement", "agent"] {
        let token = fs::read_to_string(mesh.home.at(&format!("{name}.token"))).unwrap();
        let (public, secret) = token.trim().rsplit_once('.').unwrap();
        // The twin: what may be said of a token is said.
        let id = public.rsplit_once('.').unwrap().1;
        assert!(said.contains(id), "the search finds not even the id {id}");
        secrets.insert(secret.to_owned());
    }
    let key = fs::read_to_string(mesh.home.at("admin").join("client-key.pem")).unwrap();
    secrets.extend(key.lines().filter(|l| !l.starts_with("---")).map(str::to_owned));
    for secret in &secrets {
        assert!(
            secret.len() >= 20 && !said.contains(secret),
            "{secret} was logged"
        );
    }
}

async fn status(mesh: &Mesh) -> GetResponse {
    let channel = mesh.operator().channel(mesh, "weft-agent");
    let reply = StatusClient::new(channel).get(GetRequest::default()).await;
    reply.unwrap().into_inner()
}

/// With certificates of the shortest life: when all of the first ones have ended, all processes
/// serve and are served.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_and_shown_while_all_go_on() {
    let home = Home::new();
    let settings = "ca:\n  service_ttl_seconds: 60\n  node_ttl_seconds: 60\n  workload_ttl_seconds: 60\n";
    home.file("weft-identity.yaml", settings);
    let mut mesh = Mesh::prepared(home, "info").completed();
    let first = status(&mesh).await;
    let end = SystemTime::try_from(first.certificate_not_after.unwrap()).unwrap();
    // The last to join was the agent.
    let left = end.duration_since(SystemTime::now()).unwrap();
    assert!(left <= Duration::from_secs(60), "{left:?}");
    tokio::time::sleep(left + Duration::from_secs(1)).await;

    for name in SERVICES {
        // A server that shows an expired certificate is not talked to.
        healthy(&mesh, name).await;
        let renewed = if name == "weft-identity" {
            "own certificate renewed"
        } else {
            "certificate renewed"
        };
        mesh.processes[name].logged(renewed, "serial");
    }
    let now = status(&mesh).await;
    assert!(SystemTime::try_from(now.certificate_not_after.unwrap()).unwrap() > SystemTime::now());
    // Its streams ended with the certificates they were opened with; new ones are there.
    let connected = async {
        loop {
            let now = status(&mesh).await;
            if now.upstreams.len() == first.upstreams.len() && now.upstreams.iter().all(|u| u.connected) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), connected)
        .await
        .unwrap();
    // A newcomer joins through all of it.
    let policy = mesh.home.at("weft-policy");
    mesh.stop("weft-policy");
    fs::remove_dir_all(policy).unwrap();
    mesh.start("weft-policy");
    healthy(&mesh, "weft-policy").await;
    for name in ["weft-agent", "weft-placement", "weft-policy", "weft-identity"] {
        mesh.stop(name);
    }
}
