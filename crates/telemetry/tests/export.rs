//! Logging is per process, so this file holds the one test that sets it up: a real OTLP receiver
//! gets a span and a log record with the service's name.
#![allow(clippy::unwrap_used, missing_docs)]

use opentelemetry_proto::tonic::collector::{
    logs::v1::{
        ExportLogsServiceRequest, ExportLogsServiceResponse,
        logs_service_server::{LogsService, LogsServiceServer},
    },
    metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tonic::{Request, Response, Status};
use weft_telemetry::{Health, Metrics, TelemetryConfig, http, init};

struct Receiver(mpsc::UnboundedSender<String>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(format!("traces {:?}", request.into_inner())).unwrap();
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Receiver {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.0.send(format!("logs {:?}", request.into_inner())).unwrap();
        Ok(Response::new(Default::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_and_records_reach_a_receiver() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (tx, mut rx) = mpsc::unbounded_channel();
    let server = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Receiver(tx.clone())))
        .add_service(LogsServiceServer::new(Receiver(tx)))
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    tokio::spawn(server);

    let config = TelemetryConfig {
        otlp_endpoint: Some(endpoint),
        ..TelemetryConfig::default()
    };
    let guard = init("weft-test", &config).unwrap();
    tracing::info_span!("a-span-of-ours").in_scope(|| tracing::info!("a record of ours"));
    tokio::task::spawn_blocking(|| guard.finish()).await.unwrap();

    let mut seen = Vec::new();
    while let Ok(Some(export)) = tokio::time::timeout(Duration::from_secs(5), rx.recv()).await {
        seen.push(export);
        if seen.iter().any(|s| s.starts_with("traces")) && seen.iter().any(|s| s.starts_with("logs")) {
            break;
        }
    }
    let traces = seen
        .iter()
        .find(|s| s.starts_with("traces"))
        .expect("no spans arrived");
    assert!(
        traces.contains("a-span-of-ours") && traces.contains("weft-test"),
        "{traces}"
    );
    let logs = seen
        .iter()
        .find(|s| s.starts_with("logs"))
        .expect("no records arrived");
    assert!(
        logs.contains("a record of ours") && logs.contains("weft-test"),
        "{logs}"
    );
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    reply
}

#[tokio::test]
async fn metrics_and_health_are_served() {
    let listener = http::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (metrics, health) = (Metrics::new("test"), Health::default());
    let counter = prometheus_client::metrics::counter::Counter::<u64>::default();
    metrics.register("things", "Things seen", counter.clone());
    counter.inc_by(3);
    health.ready("a");
    health.waiting("b", "not joined yet");
    let (trigger, drain) = weft_drain::channel();
    let server = tokio::spawn(http::serve(listener, metrics, health.clone(), drain));

    let text = get(address, "/metrics").await;
    assert!(
        text.contains("weft_test_things_total 3") && text.contains("weft_test_build_info"),
        "{text}"
    );
    let waiting = get(address, "/healthz").await;
    assert!(
        waiting.starts_with("HTTP/1.1 503") && waiting.contains("b: not joined yet"),
        "{waiting}"
    );
    health.ready("b");
    assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get(address, "/").await.starts_with("HTTP/1.1 404"));

    assert_eq!(
        trigger.drain(Duration::from_secs(5)).await,
        weft_drain::Outcome::Drained
    );
    server.await.unwrap();
    // A port that is taken is said so, with the way out.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = http::bind(taken.local_addr().unwrap())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("--metrics-listen"), "{error}");
}

struct Taker(mpsc::UnboundedSender<String>);

#[tonic::async_trait]
impl MetricsService for Taker {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.0.send(format!("{:?}", request.into_inner())).unwrap();
        Ok(Response::new(Default::default()))
    }
}

#[tokio::test]
async fn metrics_reach_a_receiver_at_the_latest_when_the_process_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (tx, mut rx) = mpsc::unbounded_channel();
    let server = tonic::transport::Server::builder()
        .add_service(MetricsServiceServer::new(Taker(tx)))
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    tokio::spawn(server);

    let metrics = Metrics::new("test");
    let counter = prometheus_client::metrics::counter::Counter::<u64>::default();
    metrics.register("things", "Things seen", counter.clone());
    counter.inc_by(41);
    let (trigger, drain) = weft_drain::channel();
    weft_telemetry::push("weft-test", &endpoint, metrics, drain).unwrap();
    assert_eq!(
        trigger.drain(Duration::from_secs(5)).await,
        weft_drain::Outcome::Drained
    );
    let seen = rx.try_recv().unwrap();
    assert!(
        seen.contains("weft_test_things_total") && seen.contains("AsDouble(41.0)"),
        "{seen}"
    );
    assert!(
        seen.contains("weft-test") && seen.contains("weft_test_build_info"),
        "{seen}"
    );
}
