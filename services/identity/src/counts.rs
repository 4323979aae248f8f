//! The service's metrics, `weft_identity_*`.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use weft_telemetry::Metrics;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decision {
    action: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

/// Counters and gauges. Clones share.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    decisions: Family<Decision, Counter>,
    refused: Family<Why, Counter>,
    own_certificate: Gauge,
    workloads: Gauge,
}

impl Counts {
    /// Registers them to be served.
    pub fn register(metrics: &Metrics) -> Self {
        let counts = Self::default();
        metrics.register(
            "decisions",
            "Certificates and tokens given out or refused, by method",
            counts.decisions.clone(),
        );
        metrics.register(
            "refused",
            "Certificates and tokens refused, by reason",
            counts.refused.clone(),
        );
        metrics.register(
            "own_certificate_expiry_timestamp_seconds",
            "When the service's own certificate ends, in Unix time",
            counts.own_certificate.clone(),
        );
        metrics.register(
            "registry_workloads",
            "Workloads in the copy of the policy service's registry",
            counts.workloads.clone(),
        );
        counts
    }

    pub(crate) fn issued(&self, action: &'static str) {
        self.decisions
            .get_or_create(&Decision {
                action,
                outcome: "issue",
            })
            .inc();
    }

    pub(crate) fn refused(&self, action: &'static str, reason: &'static str) {
        self.refused.get_or_create(&Why { reason }).inc();
        self.decisions
            .get_or_create(&Decision {
                action,
                outcome: "refuse",
            })
            .inc();
    }

    pub(crate) fn own_certificate(&self, not_after: u64) {
        self.own_certificate
            .set(i64::try_from(not_after).unwrap_or(i64::MAX));
    }

    pub(crate) fn workloads(&self, count: usize) {
        self.workloads.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_counted_by_method_and_outcome() {
        let metrics = Metrics::new("identity");
        let counts = Counts::register(&metrics);
        counts.issued("join");
        counts.refused("join", "TOKEN_EXPIRED");
        counts.refused("call", "ROLE_NOT_ADMITTED");
        counts.workloads(3);
        let text = metrics.text();
        for line in [
            "weft_identity_decisions_total{action=\"join\",outcome=\"issue\"} 1",
            "weft_identity_decisions_total{action=\"join\",outcome=\"refuse\"} 1",
            "weft_identity_refused_total{reason=\"ROLE_NOT_ADMITTED\"} 1",
            "weft_identity_refused_total{reason=\"TOKEN_EXPIRED\"} 1",
            "weft_identity_registry_workloads 3",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
