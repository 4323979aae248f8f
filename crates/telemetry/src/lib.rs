//! Logs, metrics and traces, the same for every binary.
//!
//! Owns: the process's tracing subscriber ([`init`]), the metrics registry ([`Metrics`]), what is
//! ready ([`Health`]) and the HTTP port that shows both ([`http::serve`]). Metric names are
//! `weft_<service>_*`. With an OTLP endpoint, spans, log records and metrics ([`push`]) are exported as well.
//! No place in the code can flood the log (see `limit`).

mod health;
pub mod http;
mod limit;
mod logs;
mod metrics;
mod push;

pub use health::Health;
pub use logs::{Guard, LogFormat, TelemetryConfig, TelemetryError, init};
pub use metrics::Metrics;
pub use push::push;
