//! The tracing subscriber: lines for people on a terminal, JSON elsewhere, and OTLP when configured.

use crate::limit::{Limit, TELL};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{LogExporter, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{Resource, logs::SdkLoggerProvider, trace::SdkTracerProvider};
use serde::{Deserialize, Serialize};
use std::{io::IsTerminal, net::SocketAddr, time::Duration};
use tracing_subscriber::{
    EnvFilter, Layer, filter::FilterExt, layer::SubscriberExt, util::SubscriberInitExt,
};

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// A line for people.
    Text,
    /// A JSON object per line.
    Json,
}

/// What every binary lets the operator choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Level or filter directives, as `info` or `info,weft_tunnel=debug`.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// OTLP over gRPC, as `http://127.0.0.1:4317`; nothing is exported without it.
    pub otlp_endpoint: Option<String>,
    /// Where `/metrics` and `/healthz` are served; nowhere without it.
    pub metrics_listen: Option<SocketAddr>,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            log: "info".into(),
            log_format: LogFormat::Auto,
            otlp_endpoint: None,
            metrics_listen: None,
        }
    }
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("log filter {filter:?} can not be used: {reason}; try `info` or `info,weft_agent=debug`")]
    Filter {
        /// As configured.
        filter: String,
        /// What is wrong.
        reason: String,
    },
    /// The OTLP endpoint can not be used.
    #[error("OTLP endpoint {endpoint:?} can not be used: {reason}; write it as http://host:4317")]
    Otlp {
        /// As configured.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
    /// A subscriber is in place already.
    #[error("logging is set up twice in this process")]
    Twice,
    /// The metrics port.
    #[error("cannot serve metrics on {address}: {source}; choose another with --metrics-listen")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Exports what is left when dropped or [`Guard::finish`]ed.
#[derive(Debug, Default)]
pub struct Guard {
    traces: Option<SdkTracerProvider>,
    logs: Option<SdkLoggerProvider>,
}

/// How long the last export may take.
const FLUSH: Duration = Duration::from_secs(3);

impl Guard {
    /// Exports what is left; at most 3 s for each of spans and log records.
    pub fn finish(mut self) {
        self.flush();
    }

    fn flush(&mut self) {
        // An exporter that is not reachable must not keep the process from ending.
        if let Some(traces) = self.traces.take() {
            let _ = traces.shutdown_with_timeout(FLUSH);
        }
        if let Some(logs) = self.logs.take() {
            let _ = logs.shutdown_with_timeout(FLUSH);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.flush();
    }
}

impl TelemetryConfig {
    /// Finds what [`init`] would refuse, and sets nothing up.
    pub fn check(&self) -> Result<(), TelemetryError> {
        filter(&self.log)?;
        self.otlp_endpoint.as_deref().map_or(Ok(()), check_endpoint)
    }
}

fn filter(directives: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(directives)
        .map_err(|e| TelemetryError::Filter {
            filter: directives.to_owned(),
            reason: e.to_string(),
        })
}

fn check_endpoint(endpoint: &str) -> Result<(), TelemetryError> {
    if endpoint.starts_with("http://") || endpoint.starts_with("https://") {
        return Ok(());
    }
    Err(TelemetryError::Otlp {
        endpoint: endpoint.to_owned(),
        reason: "it has no scheme".into(),
    })
}

/// Sets up logging for the process, once; `service` is the OTLP resource's `service.name`
/// (`weft-policy`). Call it inside a tokio runtime when an OTLP endpoint is configured.
pub fn init(service: &str, config: &TelemetryConfig) -> Result<Guard, TelemetryError> {
    let json = match config.log_format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    // A file full of colour codes helps nobody.
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = if json {
        lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed()
    } else {
        lines.boxed()
    };
    let mut guard = Guard::default();
    let limit = Limit::default();
    let mut layers = vec![lines.with_filter(filter(&config.log)?.and(limit.clone())).boxed()];
    if let Some(endpoint) = &config.otlp_endpoint {
        let failed = |reason: String| TelemetryError::Otlp {
            endpoint: endpoint.clone(),
            reason,
        };
        check_endpoint(endpoint)?;
        let resource = Resource::builder().with_service_name(service.to_owned()).build();
        let spans = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()
            .map_err(|e| failed(e.to_string()))?;
        let traces = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_batch_exporter(spans)
            .build();
        let records = LogExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()
            .map_err(|e| failed(e.to_string()))?;
        let logs = SdkLoggerProvider::builder()
            .with_resource(resource)
            .with_batch_exporter(records)
            .build();
        // The exporter's own transport would otherwise export its own events, for ever.
        let quiet = format!(
            "{},h2=off,hyper=off,tonic=off,tower=off,opentelemetry=off",
            config.log
        );
        let span_layer = tracing_opentelemetry::layer().with_tracer(traces.tracer("weft"));
        layers.push(span_layer.with_filter(filter(&quiet)?).boxed());
        let record_layer = opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge::new(&logs);
        let bounded = filter(&quiet)?.and(Limit::default());
        layers.push(record_layer.with_filter(bounded).boxed());
        guard = Guard {
            traces: Some(traces),
            logs: Some(logs),
        };
    }
    tracing_subscriber::registry()
        .with(layers)
        .try_init()
        .map_err(|_| TelemetryError::Twice)?;
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(async move {
            let mut every = tokio::time::interval(TELL);
            loop {
                every.tick().await;
                limit.tell();
            }
        });
    }
    Ok(guard)
}
