//! What `/metrics` says of the policy service.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use weft_telemetry::Metrics;

/// Clones share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    pub workloads: Gauge,
    pub identities: Gauge,
    pub nodes: Gauge,
    pub bad_files: Gauge,
    pub nacks: Counter,
    pub slow_starts: Counter,
    pub not_permitted: Counter,
}

impl Counts {
    pub(crate) fn register(&self, metrics: &Metrics) {
        metrics.register("workloads", "Workloads in the registry", self.workloads.clone());
        metrics.register(
            "identities",
            "Security identities in use or in grace",
            self.identities.clone(),
        );
        metrics.register("connected_nodes", "Nodes with an open stream", self.nodes.clone());
        metrics.register(
            "bad_files",
            "Files that are not in force because of a mistake",
            self.bad_files.clone(),
        );
        metrics.register(
            "refused_hosts",
            "Registrations refused because no host pattern of the node permits them",
            self.not_permitted.clone(),
        );
        metrics.register("nacks", "Updates that a node could not apply", self.nacks.clone());
        metrics.register(
            "slow_starts",
            "Workloads that started before every node whose policies name them knew them",
            self.slow_starts.clone(),
        );
    }
}
