//! What the service counts.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use weft_telemetry::Metrics;

/// Counted by the core.
#[derive(Debug, Clone, Default)]
pub(crate) struct CoreMetrics {
    pub nodes: Gauge,
    pub hosts: Gauge,
    pub types: Gauge,
    pub versions: Counter,
    pub leases_lost: Counter,
}

impl CoreMetrics {
    pub fn register(metrics: &Metrics) -> Self {
        let own = Self::default();
        metrics.register("nodes", "Nodes with a stream", own.nodes.clone());
        metrics.register("hosts", "App instances that host actors", own.hosts.clone());
        metrics.register(
            "actor_types",
            "Actor types, also those without hosts now",
            own.types.clone(),
        );
        metrics.register("table_versions", "Changes of tables", own.versions.clone());
        metrics.register(
            "leases_lost",
            "Nodes that did not renew in time",
            own.leases_lost.clone(),
        );
        own
    }
}
