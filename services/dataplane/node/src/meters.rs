//! What the node counts.

use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
use weft_telemetry::Metrics;

/// The node's metrics; shown once registered. Clones share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meters {
    pub(crate) workloads: Gauge,
    pub(crate) links: Gauge,
    pub(crate) agent_starts: Counter,
    kernel: Family<Vec<(&'static str, &'static str)>, Gauge>,
}

impl Meters {
    pub(crate) fn register(&self, metrics: &Metrics) {
        metrics.register(
            "workloads",
            "Workloads placed on this node",
            self.workloads.clone(),
        );
        metrics.register(
            "agent_links",
            "Agents connected: 1, or 2 during an upgrade",
            self.links.clone(),
        );
        metrics.register(
            "agent_starts",
            "How often an agent was started",
            self.agent_starts.clone(),
        );
        metrics.register(
            "kernel_events",
            "What the BPF programs counted since their maps were made",
            self.kernel.clone(),
        );
    }

    pub(crate) fn kernel(&self, event: &'static str, value: u64) {
        self.kernel
            .get_or_create(&vec![("event", event)])
            .set(i64::try_from(value).unwrap_or(i64::MAX));
    }
}
