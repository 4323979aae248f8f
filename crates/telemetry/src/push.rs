//! Metrics by OTLP: what `/metrics` shows, sent to a collector at intervals and once at the end.
//!
//! The registry's own text is read back, so that both ways out show the same names and values:
//! counters become monotonic cumulative sums, all other samples gauges.

use crate::{Metrics, TelemetryError};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    metrics::v1::{
        AggregationTemporality, Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
        metric::Data, number_data_point,
    },
    resource::v1::Resource,
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tonic::transport::{Channel, Endpoint};
use weft_drain::Watcher;

/// Between two exports.
const INTERVAL: Duration = Duration::from_secs(15);
/// A collector that takes longer is tried again at the next interval.
const PATIENCE: Duration = Duration::from_secs(3);

/// Sends `metrics` to `endpoint` until the drain, and once more then. Must be called in a runtime.
pub fn push(service: &str, endpoint: &str, metrics: Metrics, drain: Watcher) -> Result<(), TelemetryError> {
    let failed = |e: tonic::transport::Error| TelemetryError::Otlp {
        endpoint: endpoint.to_owned(),
        reason: e.to_string(),
    };
    let channel = Endpoint::from_shared(endpoint.to_owned())
        .map_err(failed)?
        .timeout(PATIENCE)
        .connect_lazy();
    let pusher = Pusher {
        client: MetricsServiceClient::new(channel),
        service: service.to_owned(),
        since: now(),
        metrics,
    };
    tokio::spawn(pusher.run(drain));
    Ok(())
}

struct Pusher {
    client: MetricsServiceClient<Channel>,
    service: String,
    since: u64,
    metrics: Metrics,
}

impl Pusher {
    async fn run(mut self, mut drain: Watcher) {
        let mut failing = false;
        loop {
            let last = tokio::select! {
                () = tokio::time::sleep(INTERVAL) => false,
                () = drain.draining() => true,
            };
            let request = self.request();
            let sent = tokio::time::timeout(PATIENCE, self.client.export(request)).await;
            let error = match sent {
                Ok(Ok(_)) => None,
                Ok(Err(status)) => Some(status.message().to_owned()),
                Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
            };
            if let Some(error) = error.as_ref().filter(|_| !failing) {
                tracing::warn!(error, "metrics are not taken by the collector; trying on");
            }
            failing = error.is_some();
            if last {
                return;
            }
        }
    }

    fn request(&self) -> ExportMetricsServiceRequest {
        let metrics = read(&self.metrics.text(), self.since, now());
        let resource = Resource {
            attributes: vec![text("service.name", &self.service)],
            ..Resource::default()
        };
        let scope = InstrumentationScope {
            name: "weft".into(),
            ..InstrumentationScope::default()
        };
        ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(resource),
                scope_metrics: vec![ScopeMetrics {
                    scope: Some(scope),
                    metrics,
                    ..ScopeMetrics::default()
                }],
                ..ResourceMetrics::default()
            }],
        }
    }
}

/// Nanoseconds since the Unix epoch.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value.into())),
        }),
        ..KeyValue::default()
    }
}

/// OpenMetrics text as OTLP metrics, a metric for each name of samples.
fn read(exposed: &str, since: u64, at: u64) -> Vec<Metric> {
    let mut counter = None;
    let mut metrics: Vec<Metric> = Vec::new();
    for line in exposed.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            counter = declared
                .strip_suffix(" counter")
                .map(|name| format!("{name}_total"));
            continue;
        }
        let Some((name, labels, value)) = sample(line) else {
            continue;
        };
        let point = NumberDataPoint {
            attributes: labels,
            start_time_unix_nano: since,
            time_unix_nano: at,
            value: Some(number_data_point::Value::AsDouble(value)),
            ..NumberDataPoint::default()
        };
        match metrics
            .last_mut()
            .filter(|m| m.name == name)
            .and_then(|m| m.data.as_mut())
        {
            Some(Data::Sum(sum)) => sum.data_points.push(point),
            Some(Data::Gauge(gauge)) => gauge.data_points.push(point),
            _ => {
                let data_points = vec![point];
                let data = if counter.as_deref() == Some(name) {
                    let aggregation_temporality = AggregationTemporality::Cumulative.into();
                    Data::Sum(Sum {
                        data_points,
                        aggregation_temporality,
                        is_monotonic: true,
                    })
                } else {
                    Data::Gauge(Gauge { data_points })
                };
                metrics.push(Metric {
                    name: name.into(),
                    data: Some(data),
                    ..Metric::default()
                });
            }
        }
    }
    metrics
}

/// `name{a="b",c="d"} 3`.
fn sample(line: &str) -> Option<(&str, Vec<KeyValue>, f64)> {
    if line.starts_with('#') {
        return None;
    }
    let name_end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (key, after) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next()? {
                    (at, '"') => break at + 1,
                    (_, '\\') => value.push(match chars.next()?.1 {
                        'n' => '\n',
                        other => other,
                    }),
                    (_, other) => value.push(other),
                }
            };
            labels.push(text(key.trim_start_matches(','), &value));
            rest = &after[end..];
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some((name, labels, value))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read() {
        let exposed = "# HELP x_calls Calls.\n# TYPE x_calls counter\nx_calls_total{to=\"a,b\",why=\"say \\\"no\\\"\\\\\"} 3\n\
                       x_calls_total{to=\"c\"} 4\n# TYPE x_open gauge\nx_open 2.5\n# EOF\n";
        let metrics = read(exposed, 1, 2);
        let names: Vec<&str> = metrics.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["x_calls_total", "x_open"]);
        let Some(Data::Sum(sum)) = &metrics[0].data else {
            panic!("no sum")
        };
        assert!(sum.is_monotonic && sum.data_points.len() == 2);
        assert_eq!(
            sum.data_points[0].attributes,
            [text("to", "a,b"), text("why", "say \"no\"\\")]
        );
        let Some(Data::Gauge(gauge)) = &metrics[1].data else {
            panic!("no gauge")
        };
        assert_eq!(
            gauge.data_points[0].value,
            Some(number_data_point::Value::AsDouble(2.5))
        );
    }

    #[test]
    fn damaged_lines_are_left_out() {
        for bad in [
            "",
            "x",
            "x{",
            "x{a",
            "x{a=\"b",
            "x{a=\"b\"",
            "x{a=\"b\"}",
            "x nothing",
            "{} 1x",
        ] {
            assert_eq!(read(bad, 1, 2), [], "{bad}");
        }
    }
}
